//! What can be wrong with a snapshot directory.

use std::{io, path::PathBuf};

use thiserror::Error;

use super::CHAIN_LIMIT;
use crate::state::LoadError;

/// A snapshot could not be written, or is none that can be used.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// Not a directory, or one that is not there.
    #[error("{} is no directory that can be used", .path.display())]
    Directory {
        /// What was named.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is a snapshot already.
    #[error("{} holds a snapshot already, which is not overwritten", .path.display())]
    Occupied {
        /// The directory.
        path: PathBuf,
    },
    /// Another process, or another request, writes a snapshot there.
    #[error("another snapshot is being written to {}", .path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// Something has the name of a file that is to be written, and was not left by an attempt of ours.
    #[error("{} is in the way: it was not left by a snapshot that was cut off, and is not overwritten", .path.display())]
    InTheWay {
        /// What is there.
        path: PathBuf,
    },
    /// A whole snapshot is there, and may not be after a power cut: it can be neither synced nor taken back.
    #[error("{} holds the new snapshot, which cannot be synced", .path.display())]
    Unsynced {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody asked for it to be given up.
    #[error("given up, as was asked for")]
    Cancelled,
    /// The directory holds no whole snapshot.
    #[error("{} holds no snapshot: it has no manifest.json", .path.display())]
    None {
        /// The directory.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("cannot {operation} {}", .path.display())]
    File {
        /// What was tried: open, read, write, sync, rename.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory, a pipe, a socket or a device in the place of a file.
    #[error("{} is no regular file", .path.display())]
    NotFile {
        /// What is there.
        path: PathBuf,
    },
    /// A file is longer than any of ours can be.
    #[error("{}: {size} bytes, at most {limit} are read", .path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// A file is no JSON of its form.
    #[error("{} cannot be understood", .path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A newer program wrote the snapshot, or an older one whose format was dropped.
    #[error("snapshot format {found} (written by {program}); this program reads format {known}")]
    Format {
        /// What the manifest says.
        found: u32,
        /// Who wrote it.
        program: String,
        /// What this program reads.
        known: u32,
    },
    /// Content does not match its checksum.
    #[error("{}: {what} is damaged: checksum {found:#010x}, expected {expected:#010x}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which part of it.
        what: String,
        /// Checksum of what is there.
        found: u32,
        /// Checksum of what was written.
        expected: u32,
    },
    /// A file has another length than it was written with.
    #[error("{}: {found} bytes, expected {expected}", .path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// The length that the manifest says.
        expected: u64,
    },
    /// The manifest contradicts itself.
    #[error("{}: {why}", .path.display())]
    Contradiction {
        /// The manifest.
        path: PathBuf,
        /// What does not fit.
        why: String,
    },
    /// A snapshot that this one builds on cannot be used.
    #[error("{} builds on {}, which cannot be used", .path.display(), .ancestor.display())]
    Ancestor {
        /// The snapshot.
        path: PathBuf,
        /// The one below it.
        ancestor: PathBuf,
        /// Why.
        #[source]
        source: Box<SnapshotError>,
    },
    /// There is another snapshot than the one that was built on.
    #[error("{} is not the snapshot that was built on: checksum of all {found:#010x}, expected {expected:#010x}",
        .path.display())]
    Another {
        /// The directory.
        path: PathBuf,
        /// The checksum over all of what is there.
        found: u32,
        /// That of what was built on.
        expected: u32,
    },
    /// Too many snapshots would build on one another.
    #[error("{}: a chain of {length} snapshots, {CHAIN_LIMIT} at most: merge it, or take a full one", .path.display())]
    ChainLength {
        /// The one that would be on top.
        path: PathBuf,
        /// How many.
        length: usize,
    },
    /// A section is missing, there twice, or belongs to nothing.
    #[error("saved state")]
    Sections(#[from] LoadError),
}
