//! The block device (virtio 1.3 section 5.2): a disk image behind any number of queues.
//!
//! Each queue has a thread and an engine of its own and shares nothing with the others but the image, the
//! write cache mode, the counters and the rate limit. Legacy features (geometry, SCSI) are absent.

mod counters;
mod device;
mod queue;
mod request;
mod state;
#[cfg(test)]
mod tests;

pub use device::{Block, BlockConfig, BlockControl};
pub use state::BlockState;

/// Feature bits (virtio 1.3 section 5.2.3).
pub mod features {
    /// Largest number of segments of a request is given.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The disk is read-only.
    pub const RO: u64 = 1 << 5;
    /// The block size is given.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// Flush requests.
    pub const FLUSH: u64 = 1 << 9;
    /// Optimal alignment is given.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// The driver chooses between write-back and write-through.
    pub const CONFIG_WCE: u64 = 1 << 11;
    /// Several queues.
    pub const MQ: u64 = 1 << 12;
    /// Discard requests.
    pub const DISCARD: u64 = 1 << 13;
    /// Write-zeroes requests.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}
