//! The directory that a snapshot is written to: locked while somebody writes there, cleared of what an attempt that was
//! cut off has left, never of what is somebody else's, and made a snapshot by moves.
//!
//! The files are made in a hidden directory inside it, and moved out of that one by one, the manifest last. So the
//! hidden directory tells what is ours:
//!
//! | hidden directory | which files beside it are ours |
//! | --- | --- |
//! | none, or without a manifest | none: no move was begun, and none is begun while there is a file of that name |
//! | with a manifest | those that are not in it any more: they were moved |
//!
//! Clearing away goes the same way back: what was moved, the manifest in the hidden directory, the rest of it. Wherever
//! that ends early, the table still holds.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};

use super::{CONFIG, MANIFEST, MEMORY, STATE, SnapshotError};

/// Where files are made, inside the target.
const UNFINISHED: &str = ".snapshot.unfinished";

/// What is moved before the manifest, in this order.
const PARTS: [&str; 3] = [CONFIG, STATE, MEMORY];

/// A directory in which a snapshot is being made. Dropped before [`publish`](Self::publish), it is as it was.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    /// The target, open: for its lock, and to be synced.
    directory: File,
    unfinished: PathBuf,
    /// What is in the target and ours.
    moved: Vec<&'static str>,
    published: bool,
}

impl Target {
    /// Locks a directory that holds no snapshot, clears it of what was left there, and makes the place for files.
    ///
    /// # Errors
    /// It is not there, is no directory, cannot be written, holds a snapshot or a file that is not ours in the place
    /// of one of ours, or somebody else is writing a snapshot there. Then nothing has been touched.
    pub(super) fn prepare(path: &Path) -> Result<Self, SnapshotError> {
        let failed = |source| SnapshotError::Directory { path: path.to_owned(), source };
        if !fs::metadata(path).map_err(failed)?.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        let directory = lock(path)?;
        if is_there(&path.join(MANIFEST))? {
            return Err(SnapshotError::Occupied { path: path.to_owned() });
        }
        let unfinished = path.join(UNFINISHED);
        let moved = left(path, &unfinished)?;
        for part in PARTS.iter().filter(|part| !moved.contains(part)) {
            let path = path.join(part);
            if is_there(&path)? {
                return Err(SnapshotError::InTheWay { path });
            }
        }
        let mut this = Self { path: path.to_owned(), directory, unfinished, moved, published: false };
        this.clear()?;
        let path = this.unfinished.clone();
        fs::create_dir(&path).map_err(|source| SnapshotError::File { operation: "create", path, source })?;
        Ok(this)
    }

    /// Where a file will be.
    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where it is made.
    pub(super) fn unfinished(&self, name: &str) -> PathBuf {
        self.unfinished.join(name)
    }

    /// Moves the four files, which have been synced, into the target; `sync` makes the moves last. `is_cancelled` is asked
    /// before each whether it shall be given up.
    ///
    /// # Errors
    /// One cannot be moved, the target cannot be synced, or it was given up; it then holds no snapshot, unless the error
    /// says so.
    pub(super) fn publish(
        mut self,
        is_cancelled: &dyn Fn() -> bool,
        sync: impl Fn(&File) -> io::Result<()>,
    ) -> Result<(), SnapshotError> {
        let go_on = || if is_cancelled() { Err(SnapshotError::Cancelled) } else { Ok(()) };
        for part in PARTS {
            go_on()?;
            self.take_in(part)?;
            self.moved.push(part);
        }
        // After a power cut there must be no manifest without the others.
        sync(&self.directory).map_err(|source| self.unsynced(source))?;
        go_on()?;
        self.take_in(MANIFEST)?;
        self.published = true;
        let _ = fs::remove_dir(&self.unfinished);
        sync(&self.directory).map_err(|source| self.withdraw(source))
    }

    /// Takes back a snapshot of which nobody knows whether it would outlive a power cut.
    fn withdraw(&mut self, why: io::Error) -> SnapshotError {
        let manifest = self.path.join(MANIFEST);
        // Back to where it says what of the rest is ours, if that can be.
        let withdrawn = fs::create_dir(&self.unfinished)
            .and_then(|()| fs::rename(&manifest, self.unfinished.join(MANIFEST)))
            .or_else(|_| fs::remove_file(&manifest));
        match withdrawn {
            Ok(()) => {
                self.published = false;
                self.unsynced(why)
            }
            Err(_) => {
                let _ = fs::remove_dir(&self.unfinished);
                SnapshotError::Unsynced { path: self.path.clone(), source: why }
            }
        }
    }

    fn unsynced(&self, source: io::Error) -> SnapshotError {
        SnapshotError::File { operation: "sync", path: self.path.clone(), source }
    }

    /// Moves a file into the target, where nothing may be of its name.
    fn take_in(&self, name: &str) -> Result<(), SnapshotError> {
        let (from, path) = (self.unfinished.join(name), self.path.join(name));
        let moved = match renameat_with(CWD, &from, CWD, &path, RenameFlags::NOREPLACE) {
            // A file system that cannot look and rename in one step.
            Err(Errno::INVAL | Errno::NOSYS) if is_there(&path)? => Err(Errno::EXIST.into()),
            Err(Errno::INVAL | Errno::NOSYS) => fs::rename(&from, &path),
            moved => moved.map_err(io::Error::from),
        };
        moved.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => SnapshotError::InTheWay { path },
            _ => SnapshotError::File { operation: "rename", path, source },
        })
    }

    /// Removes what is ours, in the order that still tells what that is.
    fn clear(&mut self) -> Result<(), SnapshotError> {
        let sync = !self.moved.is_empty();
        while let Some(name) = self.moved.last() {
            let path = self.path.join(name);
            gone(&path, fs::remove_file(&path))?;
            self.moved.pop();
        }
        if sync {
            let unsynced =
                |source| SnapshotError::File { operation: "sync", path: self.path.clone(), source };
            self.directory.sync_all().map_err(unsynced)?;
        }
        let manifest = self.unfinished.join(MANIFEST);
        gone(&manifest, fs::remove_file(&manifest))?;
        gone(&self.unfinished, fs::remove_dir_all(&self.unfinished))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if !self.published {
            // What cannot be removed is left to the next attempt.
            let _ = self.clear();
        }
    }
}

/// Opens a directory, and keeps every other writer out for as long as it stays open.
fn lock(target: &Path) -> Result<File, SnapshotError> {
    let path = target.to_owned();
    let directory = match File::open(target) {
        Ok(directory) => directory,
        Err(source) => return Err(SnapshotError::Directory { path, source }),
    };
    match directory.try_lock() {
        Ok(()) => Ok(directory),
        Err(TryLockError::WouldBlock) => Err(SnapshotError::Busy { path }),
        Err(TryLockError::Error(source)) => Err(SnapshotError::File { operation: "lock", path, source }),
    }
}

/// What an attempt that was cut off has moved into the target.
fn left(target: &Path, unfinished: &Path) -> Result<Vec<&'static str>, SnapshotError> {
    match examine(unfinished)? {
        None => return Ok(Vec::new()),
        Some(metadata) if metadata.is_dir() => {}
        Some(_) => return Err(SnapshotError::InTheWay { path: unfinished.to_owned() }),
    }
    let mut moved = Vec::new();
    if is_there(&unfinished.join(MANIFEST))? {
        for part in PARTS {
            let is_file = examine(&target.join(part))?.is_some_and(|metadata| metadata.is_file());
            if is_file && !is_there(&unfinished.join(part))? {
                moved.push(part);
            }
        }
    }
    Ok(moved)
}

/// What is there of that name, be it a link that leads nowhere.
fn examine(path: &Path) -> Result<Option<fs::Metadata>, SnapshotError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SnapshotError::File { operation: "examine", path: path.to_owned(), source }),
    }
}

fn is_there(path: &Path) -> Result<bool, SnapshotError> {
    examine(path).map(|metadata| metadata.is_some())
}

/// What came of removing something that need not be there.
fn gone(path: &Path, removed: io::Result<()>) -> Result<(), SnapshotError> {
    match removed {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(SnapshotError::File { operation: "clear away", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
