//! The saved form of a block device's own state.

use serde::{Deserialize, Serialize};
use vm_migration::{LoadError, State};

use crate::host::disk::{DiskImage, SECTOR};

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

impl BlockState {
    /// Checks that an image can be the disk that the guest knows: no smaller, and of the same blocks.
    ///
    /// # Errors
    /// It cannot; the field says why.
    pub fn check(&self, image: &dyn DiskImage) -> Result<(), LoadError> {
        let Self { capacity_sectors, block_size, writeback: _ } = *self;
        let now = image.size_bytes() / SECTOR;
        if capacity_sectors > now {
            let why = format!("the disk had {capacity_sectors} sectors, its image now has {now}");
            return Err(LoadError::field("device.capacity_sectors", why));
        }
        let blocks = image.geometry().logical_block;
        if block_size != blocks {
            let why = format!("the disk had blocks of {block_size} bytes, its image now has {blocks}");
            return Err(LoadError::field("device.block_size", why));
        }
        Ok(())
    }
}
