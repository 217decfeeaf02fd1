//! A chain of snapshots into one that stands alone. No machine has a part in it.

use std::{
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use serde::Serialize;
use thiserror::Error;
use vm_migration::snapshot::{FORMAT, Manifest, SavedMemory, Snapshot, SnapshotError, SnapshotWriter};

use crate::memory::content::{self, ContentError};

/// Snapshots could not be merged.
#[derive(Debug, Error)]
pub enum MergeError {
    /// One of them, or the directory to write, cannot be used.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Memory cannot be read or written, or is damaged.
    #[error("guest memory")]
    Memory(#[from] ContentError),
    /// The manifest cannot be written.
    #[error("cannot write the manifest")]
    Write(#[from] serde_json::Error),
}

/// What merging came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MergeReport {
    /// Where the new snapshot is.
    pub directory: PathBuf,
    /// Its checksum over all.
    pub root: u32,
    /// Snapshots that went into it.
    pub snapshots: usize,
    /// Bytes of guest memory that were stored.
    pub memory_bytes: u64,
}

/// Writes what the snapshot in `from` and those that it builds on come to into `to`, a directory that is there and
/// holds none; all of it is checked on the way. The configuration is the one in `from`, edits included.
///
/// # Errors
/// See [`MergeError`]; `to` then holds no snapshot.
pub fn merge(from: &Path, to: &Path) -> Result<MergeReport, MergeError> {
    let snapshot = Snapshot::open(from, true)?;
    let memory = snapshot.open_memory()?;
    let snapshots = memory.files().count();
    let writer = SnapshotWriter::create(to)?;
    let memory_bytes = copy(&memory, writer.memory(), &writer.memory_path())?;
    let (manifest, config) = (snapshot.manifest.clone(), snapshot.config.clone());
    let sections: Vec<_> = snapshot.into_sections().into_values().collect();
    let describe = |state, sections| Manifest { format: FORMAT, state, sections, chain: None, ..manifest };
    let written = writer.finish(&config, &sections, describe, &|| false)?;
    Ok(MergeReport { directory: to.to_owned(), root: written.root()?, snapshots, memory_bytes })
}

/// Copies what is not zero; returns how many bytes that were.
fn copy(memory: &SavedMemory, file: &std::fs::File, path: &Path) -> Result<u64, ContentError> {
    let failed = |offset| {
        move |source| ContentError::File { operation: "write", path: path.to_owned(), offset, source }
    };
    file.set_len(memory.table().size).map_err(failed(0))?;
    let written = AtomicU64::new(0);
    content::for_each_part(memory, |offset, bytes| {
        file.write_all_at(bytes, offset).map_err(failed(offset))?;
        written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    })?;
    Ok(written.into_inner())
}
