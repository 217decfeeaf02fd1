//! A machine of the test guest that is saved: what it has, that it works, and the request.

use std::{
    fs,
    path::{Path, PathBuf},
};

use api_client::wire::VmState;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    guest::{self, Console},
    monitor::{self, Monitor},
};

/// A directory for files that are flushed: in memory where the host has such a place, because the guest does not wait for ever
/// and a disk that others keep busy may take longer.
///
/// # Panics
///
/// If there is no room.
#[must_use]
pub fn quick_directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("there is room")
}

/// Two processors, a disk of two queues, a console and an entropy source, in a directory of their own.
///
/// # Panics
///
/// If there is no room for the disk.
#[must_use]
pub fn machine(directory: &Path) -> Value {
    let disk = directory.join("disk");
    fs::write(&disk, vec![0; 16 << 20]).expect("there is room for a disk");
    json!({
        "cpus": { "boot_vcpus": 2, "max_vcpus": 2 },
        "disks": [{ "path": disk, "num_queues": 2, "image_type": "Raw" }],
        "console": { "mode": "Null" },
    })
}

/// First address that is the tests' own (docs/test-guest.md).
pub const FREE: u64 = 32 << 20;

/// A snapshot of a machine under way, and what its guest knows.
#[derive(Debug)]
pub struct Saved {
    directory: TempDir,
    /// Where the snapshot is.
    pub snapshot: PathBuf,
    /// What the guest has made of its own.
    pub nonce: String,
}

impl Saved {
    /// Has a machine boot, its devices work and its memory filled, and saves it. `machine` says what it is to be, in a
    /// directory of its own.
    ///
    /// # Panics
    ///
    /// If that fails.
    #[must_use]
    pub fn of(machine: impl FnOnce(&Path) -> Value) -> Self {
        let directory = tempfile::tempdir().expect("there is room");
        let place = directory.path();
        let mut monitor = Monitor::start(place, &[] as &[&str]);
        let mut console = monitor.boot(place, &machine(place));
        drive(&mut console);
        check(&mut console);
        console.ok(&format!("fill {FREE:#x} 24M 7"));
        let nonce = console.ok("nonce");
        let snapshot = snapshot(&mut monitor, place);
        monitor.quit();
        Self { directory, snapshot, nonce }
    }

    /// Its directory.
    #[must_use]
    pub fn place(&self) -> &Path {
        self.directory.path()
    }

    /// The guest that is there now is the one that was saved, and everything of it works.
    ///
    /// # Panics
    ///
    /// If not.
    pub fn proves_itself(&self) -> Console {
        self.is_proven_by(monitor::serial(self.place()))
    }

    /// Likewise, of one whose serial port is elsewhere.
    ///
    /// # Panics
    ///
    /// If not.
    pub fn is_proven_by(&self, mut console: Console) -> Console {
        assert_eq!(console.ok("nonce"), self.nonce);
        assert_eq!(console.ok(&format!("verify {FREE:#x} 24M 7")), "same");
        check(&mut console);
        console
    }
}

/// Sets every virtio device up; returns their addresses and types.
///
/// # Panics
///
/// If the guest cannot.
pub fn drive(console: &mut Console) -> Vec<(String, u64)> {
    let listed = console.ok("virtio");
    let devices: Vec<(String, u64)> = listed
        .split('[')
        .skip(1)
        .map(|device| {
            (device.split_whitespace().next().expect("an address").to_owned(), guest::field(device, "type"))
        })
        .collect();
    for (bdf, _) in &devices {
        console.ok(&format!("vinit {bdf}"));
    }
    devices
}

/// Every queue answers, and every vector that answers signals.
///
/// # Panics
///
/// If not.
pub fn check(console: &mut Console) {
    let said = console.ok("vcheck");
    let field = |name| guest::field(&said, name);
    assert!(field("asked") >= 3, "{said}");
    assert_eq!(field("asked"), field("answered"), "{said}");
    assert_eq!(field("vectors"), field("signalled"), "{said}");
}

/// Pauses the machine and saves it into a directory of its own in `directory`, whose path is returned.
///
/// # Panics
///
/// If that fails.
#[must_use]
pub fn snapshot(monitor: &mut Monitor, directory: &Path) -> PathBuf {
    let target = directory.join("snapshot");
    fs::create_dir(&target).expect("it can be made");
    monitor.put("vm.pause", &Value::Null).expect("it can be paused");
    let request = json!({ "destination_url": monitor::url(&target) });
    monitor.put("vm.snapshot", &request).expect("it can be saved");
    assert_eq!(monitor.state(), VmState::Paused);
    target
}
