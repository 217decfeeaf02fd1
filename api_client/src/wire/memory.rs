//! Memory.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::on;

/// Memory. Sizes are in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryConfig {
    /// Size; 0 when `zones` describes all of it.
    pub size: u64,
    /// Whether equal pages may be merged (KSM).
    #[serde(default)]
    pub mergeable: bool,
    /// How memory is added to a running VM.
    #[serde(default)]
    pub hotplug_method: HotplugMethod,
    /// How much can be added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hotplug_size: Option<u64>,
    /// How much of that is added at boot, by virtio-mem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hotplugged_size: Option<u64>,
    /// Whether other processes may map it.
    #[serde(default)]
    pub shared: bool,
    /// Whether huge pages back it.
    #[serde(default)]
    pub hugepages: bool,
    /// Size of the huge pages, a power of two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugepage_size: Option<u64>,
    /// Whether all of it is populated at once.
    #[serde(default)]
    pub prefault: bool,
    /// Whether the host reserves all of it.
    #[serde(default)]
    pub reserve: bool,
    /// Zones that the user defines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zones: Option<Vec<MemoryZoneConfig>>,
    /// Whether transparent huge pages may back it.
    #[serde(default = "on")]
    pub thp: bool,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            size: 512 << 20,
            mergeable: false,
            hotplug_method: HotplugMethod::default(),
            hotplug_size: None,
            hotplugged_size: None,
            shared: false,
            hugepages: false,
            hugepage_size: None,
            prefault: false,
            reserve: false,
            zones: None,
            thp: true,
        }
    }
}

/// How memory is added to a running VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HotplugMethod {
    /// As memory devices of ACPI.
    #[default]
    Acpi,
    /// By virtio-mem.
    VirtioMem,
}

/// A zone of memory. Sizes are in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryZoneConfig {
    /// Id, unique over all devices, rate limit groups and memory zones.
    pub id: String,
    /// Size.
    pub size: u64,
    /// File or directory that backs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Whether other processes may map it.
    #[serde(default)]
    pub shared: bool,
    /// Whether huge pages back it.
    #[serde(default)]
    pub hugepages: bool,
    /// Size of the huge pages, a power of two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugepage_size: Option<u64>,
    /// NUMA node of the host that it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_numa_node: Option<u32>,
    /// How much can be added by virtio-mem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hotplug_size: Option<u64>,
    /// How much of that is added at boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hotplugged_size: Option<u64>,
    /// Whether all of it is populated at once.
    #[serde(default)]
    pub prefault: bool,
    /// Whether the host reserves all of it.
    #[serde(default)]
    pub reserve: bool,
    /// Whether equal pages may be merged (KSM).
    #[serde(default)]
    pub mergeable: bool,
}
