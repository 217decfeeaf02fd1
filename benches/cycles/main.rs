//! Lives of VMs in one process, on this host's KVM: create, boot and delete, again and again. `cargo xtask bench cycles`;
//! docs/api.md has the results.
//!
//! Prints what the process holds as a Markdown table. Unlike the other benchmarks this one judges, though not by time:
//! it fails if a life has left a descriptor, a thread or memory behind.

#![expect(clippy::print_stdout, reason = "its output is what the program is for")]
#![expect(clippy::print_stderr, reason = "progress and errors of a command-line program")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use api_client::{Client, wire};
use cumulet_benches::vm::Result;
use serde_json::json;

/// Cycles without an argument.
const CYCLES: u32 = 10_000;
/// Cycles before the first count: threads have run and the allocator has its arenas by then.
const WARM_UP: u32 = 100;
/// Cycles between two counts.
const COUNT_EVERY: u32 = 100;
/// Resident memory that may come on top in the course of all cycles, in KiB: an allocator's play. A leak of 60 bytes a
/// cycle is more than that in 10,000.
const RESIDENT_PLAY_KIB: u64 = 512;
/// How long the process may take to serve its API.
const START_MAX: Duration = Duration::from_secs(10);
/// Before the first count: what has ended is no longer listed then.
const REST: Duration = Duration::from_millis(100);
/// How long a thread that has ended may be listed at later counts.
const REST_MAX: Duration = Duration::from_secs(5);

const USAGE: &str = "usage: bench-cycles [CYCLES]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-cycles: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let cycles = match arguments {
        [] => CYCLES,
        [cycles] => cycles.parse().ok().filter(|cycles| *cycles > 0).ok_or(USAGE)?,
        _ => return Err(USAGE.into()),
    };
    let place = PathBuf::from(format!("/dev/shm/bench-cycles-{}", std::process::id()));
    fs::create_dir_all(&place)?;
    let outcome = measure(cycles, &place);
    // What is left behind is a few files in memory.
    let _ = fs::remove_dir_all(&place);
    outcome
}

fn measure(cycles: u32, place: &Path) -> Result<()> {
    let vmm = Vmm::start(place)?;
    let mut client = vmm.client()?;
    let config = configuration(place)?;
    let life = |client: &mut Client| -> Result<()> {
        client.create(&config)?;
        client.boot()?;
        client.delete()?;
        Ok(())
    };
    for _ in 0..WARM_UP {
        life(&mut client)?;
    }
    println!("| cycles | descriptors | threads | resident, KiB |\n| --- | --- | --- | --- |");
    thread::sleep(REST);
    let first = vmm.holds()?;
    first.print(0);
    let begun = Instant::now();
    let mut last = first;
    for cycle in 1..=cycles {
        life(&mut client)?;
        if cycle % COUNT_EVERY == 0 || cycle == cycles {
            last = vmm.holds_at_rest(first)?;
            if (last.descriptors, last.threads) != (first.descriptors, first.threads) {
                last.print(cycle);
                return Err(
                    format!("after {cycle} cycles descriptors or threads are other than before").into()
                );
            }
        }
        if cycle == cycles / 2 || cycle == cycles {
            last.print(cycle);
        }
    }
    let each = begun.elapsed().as_secs_f64() * 1e3 / f64::from(cycles);
    println!("\n{each:.1} ms a cycle");
    if last.resident_kib > first.resident_kib + RESIDENT_PLAY_KIB {
        return Err("resident memory has grown".into());
    }
    Ok(())
}

/// Two processors, a disk, a terminal and random numbers: every kind of thread and descriptor that needs
/// nothing set up on the host.
fn configuration(place: &Path) -> Result<wire::VmConfig> {
    let disk = place.join("disk");
    fs::File::create(&disk)?.set_len(1 << 20)?;
    let config = json!({
        "payload": { "kernel": "target/release/test-guest", "cmdline": "" },
        "cpus": { "boot_vcpus": 2, "max_vcpus": 2 },
        "memory": { "size": 64 << 20 },
        "disks": [{ "path": disk, "num_queues": 2 }],
        "serial": { "mode": "Pty" },
        "console": { "mode": "Off" },
    });
    Ok(serde_json::from_value(config)?)
}

/// What a process holds.
#[derive(Clone, Copy)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    resident_kib: u64,
}

impl Holdings {
    fn print(self, cycle: u32) {
        println!("| {cycle} | {} | {} | {} |", self.descriptors, self.threads, self.resident_kib);
    }
}

/// A process that serves its API. Dropped, it is killed.
struct Vmm {
    child: Child,
    socket: PathBuf,
}

impl Vmm {
    fn start(place: &Path) -> Result<Self> {
        let socket = place.join("api");
        let child = Command::new("target/release/cumulet")
            .arg("--api-socket")
            .arg(&socket)
            .arg("--log-file")
            .arg(place.join("log"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Self { child, socket })
    }

    fn client(&self) -> Result<Client> {
        let deadline = Instant::now() + START_MAX;
        loop {
            match Client::connect(&self.socket) {
                Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(10)),
                outcome => return Ok(outcome?),
            }
        }
    }

    /// What it holds, looked at again for a while if that is other than before: the kernel lists a thread for a moment
    /// after it was waited for.
    fn holds_at_rest(&self, before: Holdings) -> Result<Holdings> {
        let deadline = Instant::now() + REST_MAX;
        loop {
            let now = self.holds()?;
            let same = (now.descriptors, now.threads) == (before.descriptors, before.threads);
            if same || Instant::now() > deadline {
                return Ok(now);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn holds(&self) -> Result<Holdings> {
        let of = |name: &str| format!("/proc/{}/{name}", self.child.id());
        let status = fs::read_to_string(of("status"))?;
        let resident_kib = resident_kib(&status).ok_or("the kernel tells no resident memory")?;
        let count = |name: &str| fs::read_dir(of(name)).map(Iterator::count);
        Ok(Holdings { descriptors: count("fd")?, threads: count("task")?, resident_kib })
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Resident memory out of `/proc/PID/status`, in KiB.
fn resident_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_found_among_the_others() {
        let status = "Name:\tcumulet\nVmHWM:\t   9000 kB\nVmRSS:\t    5124 kB\nRssAnon:\t    1000 kB\n";
        assert_eq!(resident_kib(status), Some(5124));
        assert_eq!(resident_kib("Name:\tgone\n"), None);
    }
}
