//! The saved form of a block device's own state.

use serde::{Deserialize, Serialize};
use vm_migration::State;

/// What a block device knows beyond its queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockState {
    /// Size of the disk that the guest was told, in sectors of 512 bytes.
    pub capacity_sectors: u64,
    /// Block size that the guest was told, in bytes.
    pub block_size: u32,
    /// Whether the driver asked for write-back, where that is its choice.
    pub writeback: bool,
}

impl State for BlockState {
    const KIND: &'static str = "virtio-block";
    const VERSION: u32 = 1;
}
