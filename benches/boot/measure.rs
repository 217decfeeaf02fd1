//! One boot, timed or weighed.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::contender::{Contender, Guest, MEMORY_MIB};

const FIRST_LINE: &str = "NANO-INIT";
const UP_LINE: &str = "NANO-UP";
/// Ends a boot that hangs. Nothing is judged by it.
const BOOT_MAX: Duration = Duration::from_secs(600);
/// Guest memory is what is mapped in pieces of at least this size.
const GUEST_PIECE_KIB: u32 = MEMORY_MIB * 1024 / 4;
const DISK_BYTES: u64 = 64 << 20;

/// Why there is no measurement.
#[derive(Debug, Error)]
pub enum MeasureError {
    #[error("{path:?} cannot be used")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{name} cannot be started: {source}")]
    Start { name: &'static str, source: io::Error },
    #[error("{name} ended before its guest printed {line}; see {log:?}")]
    Ended { name: &'static str, line: &'static str, log: PathBuf },
    #[error("{name}: the guest did not print {line} within {} s", BOOT_MAX.as_secs())]
    Silent { name: &'static str, line: &'static str },
    #[error("{name}: {found} MiB are mapped in large pieces, but the guest has {MEMORY_MIB} MiB")]
    GuestMemory { name: &'static str, found: u32 },
}

/// Files in memory for the time of the benchmark.
pub struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    pub fn new() -> Result<Self, MeasureError> {
        let dir = PathBuf::from(format!("/dev/shm/bench-boot-{}", std::process::id()));
        fs::create_dir_all(&dir).map_err(|source| MeasureError::File { path: dir.clone(), source })?;
        Ok(Self { dir })
    }

    /// A copy of a file, made once.
    pub fn keep(&self, original: &Path) -> Result<PathBuf, MeasureError> {
        let copy = self.dir.join(original.file_name().unwrap_or_default());
        if !copy.exists() {
            fs::copy(original, &copy)
                .map_err(|source| MeasureError::File { path: original.to_owned(), source })?;
        }
        Ok(copy)
    }

    /// Empty disk images.
    pub fn disks(&self, count: u8) -> Result<Vec<PathBuf>, MeasureError> {
        (0..count)
            .map(|index| {
                let path = self.dir.join(format!("disk{index}.raw"));
                File::create(&path)
                    .and_then(|file| file.set_len(DISK_BYTES))
                    .map_err(|source| MeasureError::File { path: path.clone(), source })?;
                Ok(path)
            })
            .collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left behind is memory of a machine that is thrown away.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Resident memory beyond the guest's.
pub struct Memory {
    pub resident_kib: u32,
    pub private_kib: u32,
}

/// From just before the process is started to its guest's first line.
pub fn time_to_init(contender: &Contender, guest: &Guest) -> Result<Duration, MeasureError> {
    let mut running = Running::start(contender, guest)?;
    running.wait_for(FIRST_LINE)
}

/// With the guest up and idle.
pub fn memory(contender: &Contender, guest: &Guest) -> Result<Memory, MeasureError> {
    let mut running = Running::start(contender, guest)?;
    running.wait_for(UP_LINE)?;
    // The guest's shell starts, and nothing else happens.
    thread::sleep(Duration::from_secs(2));
    let path = PathBuf::from(format!("/proc/{}/smaps", running.child.id()));
    let smaps = fs::read_to_string(&path).map_err(|source| MeasureError::File { path, source })?;
    let (memory, guest_kib) = weigh(&smaps);
    let found = guest_kib / 1024;
    if !(MEMORY_MIB..=MEMORY_MIB + MEMORY_MIB / 8).contains(&found) {
        return Err(MeasureError::GuestMemory { name: contender.name, found });
    }
    Ok(memory)
}

/// Adds up `/proc/PID/smaps`: what is not guest memory, and the size of what is.
fn weigh(smaps: &str) -> (Memory, u32) {
    let mut memory = Memory { resident_kib: 0, private_kib: 0 };
    let (mut guest_kib, mut of_guest) = (0, false);
    for line in smaps.lines() {
        let Some((key, rest)) = line.split_once(':') else { continue };
        let kib = rest.split_whitespace().next().and_then(|number| number.parse::<u32>().ok());
        match (key, kib) {
            ("Size", Some(kib)) => {
                of_guest = kib >= GUEST_PIECE_KIB;
                guest_kib += if of_guest { kib } else { 0 };
            }
            ("Rss", Some(kib)) if !of_guest => memory.resident_kib += kib,
            ("Private_Clean" | "Private_Dirty", Some(kib)) if !of_guest => memory.private_kib += kib,
            _ => {}
        }
    }
    (memory, guest_kib)
}

/// A VMM with its guest. Ends with the value.
struct Running {
    name: &'static str,
    child: Child,
    console: Option<ChildStdout>,
    started: Instant,
    log: PathBuf,
}

impl Running {
    fn start(contender: &Contender, guest: &Guest) -> Result<Self, MeasureError> {
        let log = PathBuf::from("/tmp/bench-boot.log");
        let errors = File::create(&log).map_err(|source| MeasureError::File { path: log.clone(), source })?;
        let mut command = contender.command(guest);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let started = Instant::now();
        let mut child =
            command.spawn().map_err(|source| MeasureError::Start { name: contender.name, source })?;
        let console = child.stdout.take();
        Ok(Self { name: contender.name, child, console, started, log })
    }

    /// Blocks in a read, so that waiting takes nothing from the guest; a second thread only keeps the time.
    fn wait_for(&mut self, wanted: &'static str) -> Result<Duration, MeasureError> {
        let Some(console) = self.console.take() else { return Ok(Duration::ZERO) };
        let started = self.started;
        let (send, receive) = channel();
        thread::spawn(move || {
            let mut console = BufReader::new(console);
            let mut line = Vec::new();
            while console.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                if String::from_utf8_lossy(&line).contains(wanted) && send.send(started.elapsed()).is_err() {
                    return;
                }
                line.clear();
            }
        });
        receive.recv_timeout(BOOT_MAX).map_err(|error| match error {
            RecvTimeoutError::Timeout => MeasureError::Silent { name: self.name, line: wanted },
            RecvTimeoutError::Disconnected => {
                MeasureError::Ended { name: self.name, line: wanted, log: self.log.clone() }
            }
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_told_by_its_size_and_left_out() {
        let smaps = "\
00400000-00500000 r-xp 00000000 00:1a 5 /vmm/cumulet
Size:               1024 kB
Rss:                 600 kB
Pss:                 600 kB
Private_Clean:       400 kB
Private_Dirty:         8 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0020000000 rw-p 00000000 00:00 0
Size:             524288 kB
Rss:              100000 kB
Private_Dirty:    100000 kB
7f1000000000-7f1000100000 rw-p 00000000 00:00 0 [heap]
Size:               1024 kB
Rss:                  40 kB
Private_Dirty:        40 kB
";
        let (memory, guest_kib) = weigh(smaps);
        assert_eq!((memory.resident_kib, memory.private_kib), (640, 448));
        assert_eq!(guest_kib, 524_288);
    }
}
