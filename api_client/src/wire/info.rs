//! Answers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::vm::VmConfig;

/// The version of the interface that existing clients find here: they ask for one that they know.
pub const REFERENCE_VERSION: &str = "53.0";

/// What answers to a ping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmPingResponse {
    /// The version as its build says it.
    pub build_version: String,
    /// The version, as three numbers.
    pub version: String,
    /// Process id.
    pub pid: i64,
    /// What it was built with.
    pub features: Vec<String>,
}

/// What is known of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmInfo {
    /// Its configuration: defaults, ids and paths of terminals filled in.
    pub config: Box<VmConfig>,
    /// What it does.
    pub state: VmState,
    /// Bytes of RAM: at boot, less the balloon, with what was plugged.
    pub memory_actual_size: u64,
    /// Its devices, by id; absent unless it is booted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_tree: Option<BTreeMap<String, DeviceNode>>,
}

/// What a VM does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmState {
    /// It is configured, and not booted.
    Created,
    /// It runs.
    Running,
    /// It has ended.
    Shutdown,
    /// It stands still.
    Paused,
    /// A debugger has stopped it.
    BreakPoint,
}

/// A node of the device tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Id, as the key.
    pub id: String,
    /// What it occupies.
    pub resources: Vec<Resource>,
    /// The node above it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The nodes below it.
    pub children: Vec<String>,
    /// Its place in PCI, as `SSSS:BB:DD.F`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci_bdf: Option<String>,
}

/// What a device occupies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resource {
    /// Ports.
    PioAddressRange {
        /// The first.
        base: u16,
        /// How many.
        size: u16,
    },
    /// Memory-mapped registers, or memory that a device shows.
    MmioAddressRange {
        /// Address.
        base: u64,
        /// Length in bytes.
        size: u64,
    },
    /// A BAR.
    PciBar {
        /// Its number.
        index: usize,
        /// Address.
        base: u64,
        /// Length in bytes.
        size: u64,
        /// Where it can be.
        type_: PciBarType,
        /// Whether reading it has no effect.
        prefetchable: bool,
    },
    /// An interrupt line.
    LegacyIrq(u32),
    /// Message-signalled interrupts.
    MsiIrq {
        /// How they are set up.
        ty: MsiIrqType,
        /// The first GSI.
        base: u32,
        /// How many.
        size: u32,
    },
    /// A MAC address.
    MacAddress(String),
    /// A memory slot of the hypervisor.
    KvmMemSlot(u32),
}

/// Where a BAR can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PciBarType {
    /// In memory below 4 GiB.
    Mmio32,
    /// Anywhere in memory.
    Mmio64,
    /// In ports.
    Io,
}

/// How message-signalled interrupts are set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MsiIrqType {
    /// By PCI's MSI capability.
    PciMsi,
    /// By PCI's MSI-X capability.
    PciMsix,
    /// In another way.
    GenericMsi,
}

/// Where a device was put.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciDeviceInfo {
    /// Its id.
    pub id: String,
    /// Its place, as `SSSS:BB:DD.F`.
    pub bdf: String,
}

/// Counters by name, by device.
pub type VmCounters = BTreeMap<String, BTreeMap<String, u64>>;
