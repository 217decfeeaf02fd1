//! Bodies of requests that change a VM which exists.

use serde::{Deserialize, Serialize};

/// Changes processors, memory or balloon; what is absent stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VmResize {
    /// Number of vCPUs.
    pub desired_vcpus: Option<u32>,
    /// Bytes of RAM.
    pub desired_ram: Option<u64>,
    /// Bytes in the balloon.
    pub desired_balloon: Option<u64>,
}

/// Changes the size of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmResizeDisk {
    /// The disk.
    pub id: String,
    /// Its size in bytes.
    pub desired_size: u64,
}

/// Changes the size of a memory zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmResizeZone {
    /// The zone.
    pub id: String,
    /// Its size in bytes.
    pub desired_ram: u64,
}

/// Removes a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRemoveDevice {
    /// The device.
    pub id: String,
}

/// Takes a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSnapshotConfig {
    /// Where to: `file://` and a directory that exists.
    pub destination_url: String,
    /// An earlier snapshot of the VM, likewise: what differs from it is saved. All is if not given. Cumulet's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Whether writes to memory are tracked from this snapshot on, so that the next one, with this one as its
    /// parent, finds them at once; if not given, that stays as it is. Cumulet's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub track_changes: Option<bool>,
}

impl VmSnapshotConfig {
    /// A full snapshot to `destination_url`.
    pub fn to(destination_url: impl Into<String>) -> Self {
        Self { destination_url: destination_url.into(), ..Self::default() }
    }
}

/// Dumps the guest's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmCoredumpData {
    /// Where to: `file://` and a file that does not exist.
    pub destination_url: String,
}
