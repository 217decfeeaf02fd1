//! Writing a snapshot, all or nothing.
//!
//! The files are made in a hidden directory inside the target, synced, and moved into the target, the
//! manifest last; then the target is synced. Whenever that ends early the target has no manifest, and
//! is no snapshot; what was left is removed by the next attempt. The target is locked (`flock`) for as long as
//! somebody writes there, so that what is removed is nobody's: a lock ends with its process.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{CONFIG, FileDigest, MANIFEST, MEMORY, Manifest, STATE, SectionDigest, SnapshotError};
use crate::state::Section;

/// Where files are made, inside the target.
const UNFINISHED: &str = ".snapshot.unfinished";

/// A snapshot that is being written. Dropped before [`finish`](Self::finish), it leaves nothing.
#[derive(Debug)]
pub struct SnapshotWriter {
    target: PathBuf,
    /// The target, open: for its lock, and to be synced.
    directory: File,
    unfinished: PathBuf,
    memory: File,
    /// What has been moved into the target; nothing else there is ours to remove.
    moved: Vec<&'static str>,
    finished: bool,
}

impl SnapshotWriter {
    /// Begins a snapshot in `target`, a directory that is there and holds none.
    ///
    /// # Errors
    /// It is not there, is no directory, cannot be written, holds a snapshot, or somebody else is writing one there.
    pub fn create(target: &Path) -> Result<Self, SnapshotError> {
        let directory = |source| SnapshotError::Directory { path: target.to_owned(), source };
        let metadata = fs::metadata(target).map_err(directory)?;
        if !metadata.is_dir() {
            return Err(directory(io::ErrorKind::NotADirectory.into()));
        }
        let locked = lock(target)?;
        if fs::exists(target.join(MANIFEST)).map_err(directory)? {
            return Err(SnapshotError::Occupied { path: target.to_owned() });
        }
        let unfinished = target.join(UNFINISHED);
        match fs::remove_dir_all(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(SnapshotError::File { operation: "clear away", path: unfinished, source: error });
            }
            _ => {}
        }
        fs::create_dir(&unfinished).map_err(|source| SnapshotError::File {
            operation: "create",
            path: unfinished.clone(),
            source,
        })?;
        let path = unfinished.join(MEMORY);
        let memory = OpenOptions::new().write(true).create_new(true).open(&path);
        let memory = memory.map_err(|source| {
            let _ = fs::remove_dir_all(&unfinished);
            SnapshotError::File { operation: "create", path, source }
        })?;
        let (target, moved) = (target.to_owned(), Vec::new());
        Ok(Self { target, directory: locked, unfinished, memory, moved, finished: false })
    }

    /// The memory file, empty at first: whoever writes it makes it as long as the manifest's table says.
    pub fn memory(&self) -> &File {
        &self.memory
    }

    /// Where the memory file will be, for errors.
    pub fn memory_path(&self) -> PathBuf {
        self.target.join(MEMORY)
    }

    /// Writes the rest. `describe` gets the digests of the sections and makes the manifest.
    ///
    /// # Errors
    /// A file cannot be written, synced or moved; the target then holds no snapshot.
    pub fn finish(
        mut self,
        config: &str,
        sections: &[Section],
        describe: impl FnOnce(FileDigest, Vec<SectionDigest>) -> Manifest,
    ) -> Result<Manifest, SnapshotError> {
        let form = |name| move |source| SnapshotError::Form { path: PathBuf::from(name), source };
        let state = serde_json::to_vec(sections).map_err(form(STATE))?;
        let digests = sections.iter().map(|section| SectionDigest {
            id: section.id.clone(),
            kind: section.kind.clone(),
            version: section.version,
            crc32c: crc32c::crc32c(section.state.get().as_bytes()),
        });
        let manifest = describe(FileDigest::of(&state), digests.collect());
        let text = manifest.to_text().map_err(form(MANIFEST))?;

        self.write(CONFIG, config.as_bytes())?;
        self.write(STATE, &state)?;
        self.write(MANIFEST, text.as_bytes())?;
        self.memory.sync_all().map_err(self.failed("sync", MEMORY))?;
        for name in [CONFIG, STATE, MEMORY, MANIFEST] {
            fs::rename(self.unfinished.join(name), self.target.join(name))
                .map_err(self.failed("rename", name))?;
            self.moved.push(name);
        }
        self.finished = true;
        let _ = fs::remove_dir(&self.unfinished);
        let directory = |source| SnapshotError::Directory { path: self.target.clone(), source };
        self.directory.sync_all().map_err(directory)?;
        Ok(manifest)
    }

    fn write(&self, name: &'static str, content: &[u8]) -> Result<(), SnapshotError> {
        let create = OpenOptions::new().write(true).create_new(true).open(self.unfinished.join(name));
        let mut file = create.map_err(self.failed("create", name))?;
        file.write_all(content).map_err(self.failed("write", name))?;
        file.sync_all().map_err(self.failed("sync", name))
    }

    fn failed(&self, operation: &'static str, name: &str) -> impl FnOnce(io::Error) -> SnapshotError {
        let path = self.target.join(name);
        move |source| SnapshotError::File { operation, path, source }
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

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let _ = fs::remove_dir_all(&self.unfinished);
        for name in &self.moved {
            let _ = fs::remove_file(self.target.join(name));
        }
    }
}
