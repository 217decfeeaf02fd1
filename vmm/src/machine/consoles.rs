//! The consoles' other ends, from when the VM is asked for until its machine is built.
//!
//! Clients learn from the answer to their request whether a console's file or socket can be had, and where
//! its pseudo-terminal is; the machine is built later, perhaps never. So the ends are opened here first, and
//! the builder takes them. At the next boot it finds none, and opens new ones.

use std::{path::PathBuf, sync::Arc};

use devices::terminal::Terminal;
use parking_lot::Mutex;

use super::attach::{
    AttachError,
    terminal::{self, Existing, Opened},
};
use crate::config::ConsoleTarget;

/// Which console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seat {
    /// COM1.
    Serial,
    /// The virtio console.
    Virtio,
}

/// The ends that are open and not yet taken, and where the pseudo-terminals are.
#[derive(Debug, Default)]
pub struct Consoles {
    serial: Mutex<Place>,
    virtio: Mutex<Place>,
}

#[derive(Debug, Default)]
struct Place {
    opened: Option<(ConsoleTarget, Opened)>,
    pty: Option<PathBuf>,
    // The file that was made for it, if one was.
    made: Option<PathBuf>,
    // Held until the console is gone.
    _socket: Option<SocketFile>,
}

/// The file of a socket that we listen on.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl SocketFile {
    fn of(target: &ConsoleTarget) -> Option<Self> {
        match target {
            ConsoleTarget::Socket(path) => Some(Self(path.clone())),
            _ => None,
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            log::warn!("{} stays: {error}", self.0.display());
        }
    }
}

impl Consoles {
    /// Opens a console's end, for the machine that is built next.
    ///
    /// # Errors
    /// It cannot be opened, made or listened on.
    pub fn prepare(&self, seat: Seat, target: &ConsoleTarget, existing: Existing) -> Result<(), AttachError> {
        let opened = terminal::open(target, existing)?;
        let pty = opened.as_ref().and_then(|opened| opened.pty.clone());
        let made = opened.as_ref().and_then(|opened| opened.made.clone());
        let opened = opened.map(|opened| (target.clone(), opened));
        *self.place(seat).lock() = Place { opened, pty, made, _socket: SocketFile::of(target) };
        Ok(())
    }

    /// A console's end: the one that is open, or else a new one, as for a machine that is built again. A file then keeps
    /// what it has: a guest's last words before it rebooted are the ones that matter. `None` if there shall be no device.
    ///
    /// # Errors
    /// It cannot be opened, made or listened on.
    pub fn take(&self, seat: Seat, target: &ConsoleTarget) -> Result<Option<Arc<Terminal>>, AttachError> {
        let mut place = self.place(seat).lock();
        let prepared = place.opened.take().filter(|(of, _)| of == target).map(|(_, opened)| opened);
        if prepared.is_some() {
            return Ok(prepared.map(|opened| opened.terminal));
        }
        let opened = terminal::open(target, Existing::Append)?;
        let pty = opened.as_ref().and_then(|opened| opened.pty.clone());
        let made = opened.as_ref().and_then(|opened| opened.made.clone());
        *place = Place { opened: None, pty, made, _socket: SocketFile::of(target) };
        Ok(opened.map(|opened| opened.terminal))
    }

    /// Where a console's pseudo-terminal is, if it has one.
    pub fn pty(&self, seat: Seat) -> Option<PathBuf> {
        self.place(seat).lock().pty.clone()
    }

    /// There is no machine for them after all: as [`forget`](Self::forget), and files that were made for them are removed
    /// if nothing has been written to them.
    pub fn give_up(&self) {
        for seat in [Seat::Serial, Seat::Virtio] {
            let place = std::mem::take(&mut *self.place(seat).lock());
            place.made.iter().for_each(|path| terminal::remove_if_empty(path));
        }
    }

    /// The consoles are gone: closes what nobody has taken, removes what was made for them but for files.
    pub fn forget(&self) {
        for seat in [Seat::Serial, Seat::Virtio] {
            *self.place(seat).lock() = Place::default();
        }
    }

    fn place(&self, seat: Seat) -> &Mutex<Place> {
        match seat {
            Seat::Serial => &self.serial,
            Seat::Virtio => &self.virtio,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_emptied_for_a_new_machine_and_kept_when_it_is_built_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        let target = ConsoleTarget::File(path.clone());
        let consoles = Consoles::default();
        fs::write(&path, "of another machine").unwrap();
        consoles.prepare(Seat::Serial, &target, Existing::Truncate).unwrap();
        drop(consoles.take(Seat::Serial, &target).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
        fs::write(&path, "last words").unwrap();
        consoles.forget();
        drop(consoles.take(Seat::Serial, &target).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "last words");
    }

    #[test]
    fn a_file_that_was_made_in_vain_is_removed_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        let target = ConsoleTarget::File(path.clone());
        let consoles = Consoles::default();
        for existing in [Existing::Append, Existing::Truncate] {
            // Taken or not.
            for take in [false, true] {
                consoles.prepare(Seat::Virtio, &target, existing).unwrap();
                assert!(path.exists());
                if take {
                    drop(consoles.take(Seat::Virtio, &target).unwrap());
                }
                consoles.give_up();
                assert!(!path.exists());
            }
        }
        // One of a machine that lived, and one that something has been written to.
        consoles.prepare(Seat::Virtio, &target, Existing::Append).unwrap();
        consoles.forget();
        assert!(path.exists());
        fs::remove_file(&path).unwrap();
        consoles.prepare(Seat::Virtio, &target, Existing::Append).unwrap();
        fs::write(&path, "words").unwrap();
        consoles.give_up();
        assert_eq!(fs::read_to_string(&path).unwrap(), "words");
        // One that was there, though empty; and what a link led to.
        fs::write(&path, "").unwrap();
        consoles.prepare(Seat::Virtio, &target, Existing::Append).unwrap();
        consoles.give_up();
        assert!(path.exists());
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path().join("behind"), &link).unwrap();
        consoles.prepare(Seat::Virtio, &ConsoleTarget::File(link.clone()), Existing::Append).unwrap();
        consoles.give_up();
        assert!(link.exists());
    }
}
