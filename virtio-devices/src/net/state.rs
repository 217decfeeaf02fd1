//! The saved form of a network device's own state.

use serde::{Deserialize, Serialize};
use vm_migration::State;

/// What a network device knows beyond its queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetState {
    /// The MAC address, if the driver chose one; the configured one is layout.
    #[serde(deserialize_with = "Option::deserialize")]
    pub chosen_mac: Option<[u8; 6]>,
    /// The driver was asked to announce itself and has not answered.
    pub announce: bool,
    /// Pairs of queues that the driver uses.
    pub pairs: u16,
    /// Offload features (those of [`super::features`] for frames to the guest) that the driver chose after
    /// it was ready; until then all that were negotiated are in use.
    #[serde(deserialize_with = "Option::deserialize")]
    pub chosen_offloads: Option<u64>,
}

impl State for NetState {
    const KIND: &'static str = "virtio-net";
    const VERSION: u32 = 1;
}
