//! The saved form of a socket device's own state.

use serde::{Deserialize, Serialize};
use vm_migration::State;

/// What a socket device knows beyond its queues. Connections are not saved: their other ends stay where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockState {
    /// The port that the next program of the host's gets for its side, so that a guest that lives on does not take a new
    /// connection for one that it had.
    pub next_port: u32,
}

impl State for VsockState {
    const KIND: &'static str = "virtio-vsock";
    const VERSION: u32 = 1;
}
