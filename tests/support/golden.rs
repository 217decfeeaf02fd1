//! The snapshots that are kept in `tests/golden`, unpacked for a test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::{guest::Console, monitor};

/// A copy of the snapshot of format 1, in a directory of its own.
#[derive(Debug)]
pub struct Golden {
    place: PathBuf,
    guest: Value,
}

impl Golden {
    /// Unpacks it into `place`.
    ///
    /// # Panics
    ///
    /// If there is no room, or no `tar`.
    #[must_use]
    pub fn unpack(place: &Path) -> Self {
        let kept = unpack("format-1", place);
        let guest = fs::read(kept.join("guest.json")).expect("it is there");
        Self { place: place.to_owned(), guest: serde_json::from_slice(&guest).expect("it is JSON") }
    }

    /// Unpacks the one of format 2 beside it, which builds on it; returns where that is, and what its guest has filled
    /// besides.
    ///
    /// # Panics
    ///
    /// As for [`unpack`](Self::unpack).
    #[must_use]
    pub fn on_top(&self) -> (PathBuf, String) {
        let kept = unpack("format-2", &self.place);
        let filled = fs::read_to_string(kept.join("filled")).expect("it is there");
        (self.place.join("top"), filled.trim().to_owned())
    }

    /// Where it is.
    #[must_use]
    pub fn snapshot(&self) -> PathBuf {
        self.place.join("snapshot")
    }

    /// The image of its disk.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.place.join("disk")
    }

    /// What a request to restore it needs: its disk and its serial port are in the same directory.
    #[must_use]
    pub fn overrides(&self) -> Value {
        json!([
            { "id": "_disk0", "path": self.disk() },
            { "id": "__serial", "mode": "Socket", "socket": monitor::serial_socket(&self.place) },
        ])
    }

    /// A request to restore it and to let it run, with `said` laid over it. The guest does not go by the rate of its
    /// counters, and the host that it was saved on may have had another than this one.
    #[must_use]
    pub fn request(&self, said: &Value) -> Value {
        let mut whole = monitor::restore_request(
            &self.snapshot(),
            &json!({ "overrides": self.overrides(), "tsc": "host" }),
        );
        monitor::lay(&mut whole, said);
        whole
    }

    /// What the guest knows.
    ///
    /// # Panics
    ///
    /// If there is no such thing.
    #[must_use]
    pub fn known(&self, what: &str) -> &str {
        self.guest[what].as_str().unwrap_or_else(|| panic!("nothing is known of {what}"))
    }

    /// What it had counted of its timer, at least.
    ///
    /// # Panics
    ///
    /// If that is not known.
    #[must_use]
    pub fn ticks(&self) -> u64 {
        self.guest["ticks"].as_u64().expect("it is a number")
    }

    /// The guest is the one that was saved, and everything of it works. Returns its serial port.
    ///
    /// # Panics
    ///
    /// If it is another one, or does not work.
    pub fn proves_itself(&self) -> Console {
        let mut console = monitor::serial(&self.place);
        self.is_proven_over(&mut console);
        console
    }

    /// The same, over a connection to its serial port that is there already.
    ///
    /// # Panics
    ///
    /// If it is another one, or does not work.
    pub fn is_proven_over(&self, console: &mut Console) {
        assert_eq!(console.ok("nonce"), self.known("nonce"));
        assert_eq!(console.ok(&format!("verify {}", self.known("filled"))), "same");
        let disk = self.known("disk");
        let read = console.ok(&format!("vblk-read {disk} 1 8 8 0x2100000"));
        assert_eq!(read, format!("status=0 sum={}", self.known("sum")));
    }
}

/// Unpacks what is kept of a format for processors of this host's maker, else for those of AMD; returns where that is.
fn unpack(format: &str, place: &Path) -> PathBuf {
    let mut kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(format);
    let host = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if host.lines().any(|line| line.starts_with("vendor_id") && line.ends_with("GenuineIntel")) {
        kept.push("intel");
    }
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(kept.join("snapshot.tar.gz")).arg("-C").arg(place);
    assert!(tar.status().is_ok_and(|status| status.success()), "{tar:?}");
    kept
}
