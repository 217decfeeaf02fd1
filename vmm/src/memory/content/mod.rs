//! The content of guest memory, on its way to a snapshot and back.
//!
//! Saving reads only what was touched (`touched`) and stores only what is not zero. Restoring maps the
//! snapshot's file copy-on-write, or reads it into memory; what each zone can have is decided here
//! ([`RestorePlan`]), and said in the answer. Chunks go through a buffer on their way, so that what is
//! checked is what is used, whoever else may write to shared memory meanwhile.

mod load;
mod pages;
mod plan;
mod save;
mod sync;
mod tally;
#[cfg(test)]
pub(super) mod tests;
mod touched;

use std::{io, path::PathBuf};

use thiserror::Error;
use vm_migration::snapshot::ChunkError;

pub use self::{
    load::{for_each_part, load, verify},
    pages::is_zero,
    plan::{MemoryMode, RestorePlan, ZoneMode, is_kept_in_snapshot},
    save::{Rest, Stored, ZonePages, save},
    sync::write_out,
    tally::Tally,
    touched::{data, touched},
};

/// Chunks for which a thread of its own is worth it.
const CHUNKS_PER_THREAD: usize = 16;

/// Guest memory could not be saved or restored.
#[derive(Debug, Error)]
pub enum ContentError {
    /// What was touched of a zone cannot be found out.
    #[error("memory zone {zone}: cannot find what was written")]
    Scan {
        /// Which zone.
        zone: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something cannot be done with the memory file.
    #[error("cannot {operation} {} at {offset:#x}", .path.display())]
    File {
        /// Write, sync, examine, page in.
        operation: &'static str,
        /// The memory file.
        path: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Saved memory cannot be read, or is not what was saved.
    #[error(transparent)]
    Saved(#[from] ChunkError),
    /// Nobody learns any more what the guest touches.
    #[error("guest memory cannot be paged in any more")]
    Paging(#[source] io::Error),
    /// There is no thread or descriptor to check mapped memory with.
    #[error("guest memory cannot be checked as it comes in")]
    Unchecked(#[source] io::Error),
    /// Memory cannot be put into place ahead of the guest.
    #[error("memory zone {zone}: cannot be brought in ahead")]
    Place {
        /// Which zone.
        zone: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No zone comes back in a way that shows what the guest touches.
    #[error("the working set cannot be recorded: no memory zone comes back in mode cow or ondemand")]
    NothingToRecord,
    /// Somebody asked for it to be given up.
    #[error("given up, as was asked for")]
    Cancelled,
    /// Zones of the snapshot and of the configuration differ.
    #[error("memory zone {zone}: {why}")]
    Zone {
        /// Which zone.
        zone: String,
        /// How they differ.
        why: String,
    },
    /// The memory mode cannot be had for a zone.
    #[error("memory mode {mode}: memory zone {zone} {why}")]
    Mode {
        /// What was asked for.
        mode: MemoryMode,
        /// Which zone.
        zone: String,
        /// Why not.
        why: &'static str,
    },
}
