//! Writing a snapshot, all or nothing.
//!
//! The files are made in a hidden directory inside the target, synced, and moved into the target, the
//! manifest last; the target is synced before and after that one. Whenever that ends early the target has no manifest, and
//! is no snapshot; what was left is removed by the next attempt ([`Target`]). The target is locked
//! (`flock`) for as long as somebody writes there, so that what is removed is nobody's: a lock ends
//! with its process.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::{
    CONFIG, FileDigest, MANIFEST, MEMORY, Manifest, STATE, SectionDigest, SnapshotError, target::Target,
};
use crate::state::Section;

/// A snapshot that is being written. Dropped before [`finish`](Self::finish), it leaves nothing.
#[derive(Debug)]
pub struct SnapshotWriter {
    target: Target,
    memory: File,
}

impl SnapshotWriter {
    /// Begins a snapshot in `target`, a directory that is there and holds none.
    ///
    /// # Errors
    /// It is not there, is no directory, cannot be written, holds a snapshot or a file of somebody else in the place
    /// of one of its files, or somebody else is writing a snapshot there.
    pub fn create(target: &Path) -> Result<Self, SnapshotError> {
        let target = Target::prepare(target)?;
        let path = target.unfinished(MEMORY);
        let memory =
            make(&path).map_err(|source| SnapshotError::File { operation: "create", path, source })?;
        Ok(Self { target, memory })
    }

    /// The memory file, empty at first: whoever writes it makes it as long as the manifest's table says.
    pub fn memory(&self) -> &File {
        &self.memory
    }

    /// Where the memory file will be, for errors.
    pub fn memory_path(&self) -> PathBuf {
        self.target.join(MEMORY)
    }

    /// Writes the rest. `describe` gets the digests of the sections and makes the manifest. `is_cancelled` is asked
    /// between the steps whether it shall be given up; bringing memory to the disk is one step, which is short if that
    /// has been done before. With the manifest in its place it is done, and nobody is asked any more.
    ///
    /// # Errors
    /// A file cannot be written, synced or moved, or it was given up; the target then holds no snapshot, unless the error
    /// says so.
    pub fn finish(
        self,
        config: &str,
        sections: &[Section],
        describe: impl FnOnce(FileDigest, Vec<SectionDigest>) -> Manifest,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Manifest, SnapshotError> {
        self.finish_syncing(config, sections, describe, is_cancelled, File::sync_all)
    }

    /// Likewise; `sync` syncs the target.
    pub(super) fn finish_syncing(
        self,
        config: &str,
        sections: &[Section],
        describe: impl FnOnce(FileDigest, Vec<SectionDigest>) -> Manifest,
        is_cancelled: &dyn Fn() -> bool,
        sync: impl Fn(&File) -> io::Result<()>,
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
        if is_cancelled() {
            return Err(SnapshotError::Cancelled);
        }
        self.memory.sync_all().map_err(self.failed("sync", MEMORY))?;
        // Last: that it is there says that the others are, too.
        self.write(MANIFEST, text.as_bytes())?;
        self.target.publish(is_cancelled, sync)?;
        Ok(manifest)
    }

    fn write(&self, name: &'static str, content: &[u8]) -> Result<(), SnapshotError> {
        let mut file = make(&self.target.unfinished(name)).map_err(self.failed("create", name))?;
        file.write_all(content).map_err(self.failed("write", name))?;
        file.sync_all().map_err(self.failed("sync", name))
    }

    fn failed(&self, operation: &'static str, name: &str) -> impl FnOnce(io::Error) -> SnapshotError {
        let path = self.target.join(name);
        move |source| SnapshotError::File { operation, path, source }
    }
}

/// Makes a file for its owner only: it tells what was in a guest's memory.
fn make(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}
