//! Boot time and memory of Cumulet beside QEMU, both starting the same Linux guest with the same devices.
//!
//! Runs on a KVM host that boots Linux guests, such as the lab's; docs/boot.md has the command and the results. Prints
//! Markdown tables, and judges nothing.
//!
//! Time is from just before the process is started to the arrival of the first line of the guest's init, which comes
//! by the virtio console and the VMM's standard output. The two take turns, so that a slow phase of the machine meets
//! both. Memory is what the process has resident beyond the guest's memory, with the guest idle at its prompt.

#![expect(clippy::print_stdout, reason = "its output is what the program is for")]
#![expect(clippy::print_stderr, reason = "progress and errors of a command-line program")]

mod contender;
mod measure;

use std::collections::BTreeMap;
use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use contender::{Contender, Guest};
use measure::{MeasureError, Memory};

/// Processor counts of the boot-time table.
const VCPUS: [u8; 3] = [1, 2, 4];
/// Processors and disks of each row of the memory table.
const SHAPES: [(u8, u8); 2] = [(1, 1), (16, 8)];

/// What the command line says.
struct Options {
    runs: usize,
    vmm: PathBuf,
    qemu: PathBuf,
    kernel: PathBuf,
    initramfs: PathBuf,
}

const USAGE: &str = "\
usage: bench-boot [--runs N] [--vmm FILE] [--qemu FILE] [--kernel FILE] [--initramfs FILE]

The guest is to print NANO-INIT as the first line of its init, and NANO-UP when it is up (the lab's `nano` does).";

fn options() -> Result<Options, String> {
    let mut named: BTreeMap<String, String> = BTreeMap::new();
    let mut args = env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().ok_or(USAGE)?;
        let known = ["--runs", "--vmm", "--qemu", "--kernel", "--initramfs"];
        if !known.contains(&name.as_str()) {
            return Err(USAGE.to_owned());
        }
        named.insert(name, value);
    }
    let path = |name: &str, default: &str| named.get(name).map_or(default, String::as_str).into();
    let runs = named.get("--runs").map_or("5", String::as_str);
    Ok(Options {
        runs: runs.parse().ok().filter(|runs| *runs > 0).ok_or(format!("--runs {runs}: not a count"))?,
        vmm: path("--vmm", "/vmm/cumulet"),
        qemu: path("--qemu", "qemu-system-x86_64"),
        kernel: path("--kernel", "/art/guestkernel/vmlinux"),
        initramfs: path("--initramfs", "/art/nano.cpio"),
    })
}

fn main() -> ExitCode {
    let outcome = options().and_then(|options| run(&options).map_err(|error| error.to_string()));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("bench-boot: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), MeasureError> {
    // In memory, so that neither contender is the one that warms the cache of a slow file system.
    let scratch = measure::Scratch::new()?;
    let guest = |vcpus, disks| -> Result<Guest, MeasureError> {
        Ok(Guest {
            kernel: scratch.keep(&options.kernel)?,
            initramfs: scratch.keep(&options.initramfs)?,
            vcpus,
            disks: scratch.disks(disks)?,
        })
    };
    let contenders = [Contender::cumulet(scratch.keep(&options.vmm)?), Contender::qemu(options.qemu.clone())];
    boot_times(&contenders, options.runs, |vcpus| guest(vcpus, 1))?;
    memory(&contenders, guest)
}

fn boot_times(
    contenders: &[Contender; 2],
    runs: usize,
    guest: impl Fn(u8) -> Result<Guest, MeasureError>,
) -> Result<(), MeasureError> {
    let mut table = vec![format!(
        "| vCPUs | {} | {} | ratio |\n| --- | --- | --- | --- |",
        contenders[0].name, contenders[1].name
    )];
    for vcpus in VCPUS {
        let guest = guest(vcpus)?;
        let mut seconds = [const { Vec::new() }; 2];
        // The first run of each is not counted: it reads the program from its disk.
        for run in 0..=runs {
            for (contender, seconds) in contenders.iter().zip(&mut seconds) {
                let took = measure::time_to_init(contender, &guest)?.as_secs_f64();
                eprintln!("{} vCPUs, run {run}: {} {took:.3} s", vcpus, contender.name);
                if run > 0 {
                    seconds.push(took);
                }
            }
        }
        let [ours, theirs] = seconds.map(Spread::of);
        table.push(format!("| {vcpus} | {ours} | {theirs} | {:.2} |", ours.median / theirs.median));
    }
    println!(
        "Process start to the first line of the guest's init, in seconds: median of {runs} (least to most)\n"
    );
    println!("{}\n", table.join("\n"));
    Ok(())
}

fn memory(
    contenders: &[Contender; 2],
    guest: impl Fn(u8, u8) -> Result<Guest, MeasureError>,
) -> Result<(), MeasureError> {
    println!(
        "Resident memory beyond guest memory, in MiB: all of it (and the share of it that no other process has)\n"
    );
    println!("| vCPUs, disks | {} | {} |\n| --- | --- | --- |", contenders[0].name, contenders[1].name);
    for (vcpus, disks) in SHAPES {
        let guest = guest(vcpus, disks)?;
        let mut cells = Vec::new();
        for contender in contenders {
            let Memory { resident_kib, private_kib } = measure::memory(contender, &guest)?;
            cells.push(format!("{:.1} ({:.1})", mib(resident_kib), mib(private_kib)));
        }
        println!("| {vcpus}, {disks} | {} |", cells.join(" | "));
    }
    Ok(())
}

fn mib(kib: u32) -> f64 {
    f64::from(kib) / 1024.0
}

/// Median, least and most of some measurements.
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            at(middle)
        } else {
            f64::midpoint(at(middle.wrapping_sub(1)), at(middle))
        };
        Self { median, least: at(0), most: at(values.len().wrapping_sub(1)) }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} ({:.2} to {:.2})", self.median, self.least, self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middles() {
        let odd = Spread::of(vec![3.0, 1.0, 2.0]);
        assert_eq!(odd.to_string(), "2.00 (1.00 to 3.00)");
        assert_eq!(Spread::of(vec![4.0, 1.0, 2.0, 3.0]).to_string(), "2.50 (1.00 to 4.00)");
        assert_eq!(Spread::of(vec![4.0]).to_string(), "4.00 (4.00 to 4.00)");
    }
}
