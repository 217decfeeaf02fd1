//! The saved form of a console's own state.

use serde::{Deserialize, Serialize};
use vm_migration::State;

/// What a console knows beyond its queues. Output that nobody has read yet is the host's: it is not saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleState {
    /// Columns that the guest was told.
    pub columns: u16,
    /// Rows that the guest was told.
    pub rows: u16,
}

impl State for ConsoleState {
    const KIND: &'static str = "virtio-console";
    const VERSION: u32 = 1;
}
