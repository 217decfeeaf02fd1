//! The table of guest memory that a vhost device of the kernel or a vhost-user process works by, and the listener that
//! keeps it up to date.
//!
//! There is a [`MemoryTableListener`] for each back end. A commit starts all of them, each on a thread of its own, before
//! it waits for the first, so that back ends take the table over side by side; and all must have it within the same time.
//! If one does not, all get the old table again.
//!
//! What is absent: the calls and messages. They are of whoever implements [`MemoryTableBackend`].

mod listener;
mod table;

pub use self::{
    listener::MemoryTableListener,
    table::{MemoryTable, RegionFile, TableRegion},
};

use std::{error::Error, io, time::Duration, time::Instant};

use thiserror::Error;

/// Whoever works by such a table.
pub trait MemoryTableBackend: Send + Sync {
    /// Who it is, for reports and errors: a device's id, say.
    fn name(&self) -> &str;

    /// How many regions a table may have: 64 with vhost unless its module was told otherwise (`max_mem_regions`), at
    /// least 8 with vhost-user.
    fn max_regions(&self) -> usize;

    /// Whether memory is handed over by its files, as to another process. A region without one is refused then.
    fn takes_files(&self) -> bool;

    /// Has this table be the one that it works by, instead of any it had; an empty one takes all memory away. Returns
    /// when that is so. After `deadline` nobody waits for it any more, so it may give up then.
    ///
    /// Calls come one after the other, each from another thread.
    ///
    /// # Errors
    /// It is not so, or it is not known.
    fn set_memory_table(
        &self,
        table: &MemoryTable,
        deadline: Instant,
    ) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// A back end has no table of how memory is now.
#[derive(Debug, Error)]
pub enum MemoryTableError {
    /// Memory is in too many pieces.
    #[error("guest memory is {regions} regions, and it takes {max} at most")]
    TooManyRegions {
        /// Regions that it would have.
        regions: usize,
        /// What the back end takes.
        max: usize,
    },
    /// Memory that cannot be handed to another process.
    #[error("guest memory at {guest_address:#x} is in no shared file that could be handed over")]
    NotShared {
        /// Where the region begins.
        guest_address: u64,
    },
    /// The host has no thread to send it.
    #[error("no thread to send the memory table")]
    Thread(#[source] io::Error),
    /// It took too long.
    #[error("the memory table was not taken within {0:?}")]
    Late(Duration),
    /// It did not take it.
    #[error("the memory table was not taken")]
    Refused(#[source] Box<dyn Error + Send + Sync>),
}

#[cfg(test)]
mod tests;
