//! The saved form of a persistent memory device's own state.

use serde::{Deserialize, Serialize};
use vm_migration::{LoadError, State};

/// What a persistent memory device has told its driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PmemState {
    /// Guest-physical address of the window.
    pub start: u64,
    /// Its length in bytes.
    pub size: u64,
}

impl State for PmemState {
    const KIND: &'static str = "virtio-pmem";
    const VERSION: u32 = 1;
}

impl PmemState {
    /// Checks that a window is the one that the guest knows.
    ///
    /// # Errors
    /// It is not; the field says why.
    pub fn check(&self, start: u64, size: u64) -> Result<(), LoadError> {
        let Self { start: known, size: known_size } = *self;
        if known != start {
            let why = format!("the window was at {known:#x}, and is at {start:#x}");
            return Err(LoadError::field("device.start", why));
        }
        if known_size != size {
            let why = format!("the window had {known_size} bytes, and has {size}");
            return Err(LoadError::field("device.size", why));
        }
        Ok(())
    }
}
