//! What a machine shall be, checked and complete: defaults are filled in, ids are given, references
//! resolve. Nothing after this module changes a [`VmConfig`].
//!
//! What the user said, on the command line or over the REST API, has one form, the wire types of
//! `api_client`; [`wire`] turns that into this, and [`check`](VmConfig::check) looks at the whole. What it
//! comes to in addresses is `layout`'s business.

mod check;
mod device;
mod numa;
pub mod wire;

use std::path::PathBuf;

use arch::x86_64::{feature::FeatureSet, topology::Topology};

pub use self::{
    check::{ConfigError, ErrorClass},
    device::{
        BlockConfig, BucketConfig, ConsoleConfig, ConsoleTarget, DeviceConfig, DeviceKind, ImageType,
        LockGranularity, NetConfig, PMEM_ALIGNMENT, PciPlace, PmemConfig, RateLimit, RngConfig, VsockConfig,
    },
    numa::NumaNode,
};

/// Size of the pages that memory is counted in, in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// A machine.
#[derive(Clone, Debug)]
pub struct VmConfig {
    /// Its processors.
    pub cpus: CpusConfig,
    /// Its memory.
    pub memory: Vec<MemoryZoneConfig>,
    /// How memory is added to it while it runs.
    pub hotplug_method: HotplugMethod,
    /// What it boots; absent only until a restored machine's state is loaded.
    pub payload: Option<Payload>,
    /// Its PCI devices, in slot order.
    pub devices: Vec<DeviceConfig>,
    /// Limits that several disks share.
    pub rate_limit_groups: Vec<RateLimitGroup>,
    /// The serial port COM1.
    pub serial: ConsoleTarget,
    /// Port of the debug exit device, if there shall be one.
    pub debug_exit: Option<u16>,
    /// Number of PCI segments, 1 to 96.
    pub pci_segments: u16,
    /// The share that each PCI segment has of the device windows, by segment number.
    pub segment_weights: Vec<SegmentWeights>,
    /// NUMA nodes, in the order given; none for a machine without NUMA.
    pub numa: Vec<NumaNode>,
    /// Whether the guest can report a panic.
    pub pvpanic: bool,
    /// What firmware tables say of the machine.
    pub platform: PlatformConfig,
}

/// Processors.
#[derive(Clone, Debug)]
pub struct CpusConfig {
    /// How many there are at boot; 1 to `max`.
    pub boot: u32,
    /// How many there may be.
    pub max: u32,
    /// How they are arranged.
    pub topology: Topology,
    /// Features to hide from the guest.
    pub hide: FeatureSet,
    /// Whether the guest may run virtual machines of its own.
    pub nested: bool,
    /// Whether the guest gets AMX.
    pub amx: bool,
    /// Greatest number of physical address bits.
    pub max_phys_bits: u8,
    /// Host CPUs for each vCPU that is named, in vCPU order.
    pub affinity: Vec<(u32, Vec<usize>)>,
    /// What may run on the other threads of a core while a vCPU runs on one.
    pub core_scheduling: CoreScheduling,
}

/// What may share a core of the host with a vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CoreScheduling {
    /// Anything.
    Off,
    /// Other vCPUs of the same machine; anything on a host that cannot tell them apart.
    #[default]
    Vm,
    /// Nothing.
    Vcpu,
}

/// A zone of guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryZoneConfig {
    /// Its id.
    pub id: String,
    /// Size in bytes; a multiple of the page size in use, not 0.
    pub size: u64,
    /// File or directory that backs it.
    pub file: Option<PathBuf>,
    /// Whether other processes may map it.
    pub shared: bool,
    /// Size of the huge pages that back it, in bytes; a power of two.
    pub hugepage_size: Option<u64>,
    /// Host NUMA node that it comes from.
    pub host_numa_node: Option<u32>,
    /// Whether all of it is populated at once.
    pub prefault: bool,
    /// Whether the host reserves all of it.
    pub reserve: bool,
    /// Whether equal pages may be merged (KSM).
    pub mergeable: bool,
    /// Whether transparent huge pages may back it.
    pub thp: bool,
    /// Address space kept for hotplug, in bytes.
    pub hotplug_size: u64,
}

/// How memory is added to a running machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HotplugMethod {
    /// As memory devices of ACPI.
    #[default]
    Acpi,
    /// By virtio-mem.
    VirtioMem,
}

/// Limits that several disks share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimitGroup {
    /// Its id.
    pub id: String,
    /// The limits: one bucket at least.
    pub limit: RateLimit,
}

/// A PCI segment's share of the device windows. A segment gets its weight's part of the sum of all
/// weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentWeights {
    /// Of the window below 4 GiB, above 0.
    pub mmio32: u32,
    /// Of the window above RAM, above 0.
    pub mmio64: u32,
}

impl Default for SegmentWeights {
    fn default() -> Self {
        Self { mmio32: 1, mmio64: 1 }
    }
}

/// What a machine boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A kernel, entered directly.
    Kernel {
        /// ELF with a PVH entry, or bzImage.
        kernel: PathBuf,
        /// Initial file system.
        initramfs: Option<PathBuf>,
        /// Command line.
        cmdline: String,
    },
    /// Firmware.
    Firmware {
        /// Its image.
        firmware: PathBuf,
    },
}

/// What SMBIOS tells the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlatformConfig {
    /// Type 1 serial number.
    pub serial_number: Option<String>,
    /// Type 1 UUID.
    pub uuid: Option<String>,
    /// Type 1 manufacturer.
    pub manufacturer: Option<String>,
    /// Type 1 product name.
    pub product_name: Option<String>,
    /// Type 1 version.
    pub version: Option<String>,
    /// Type 1 family.
    pub family: Option<String>,
    /// Type 1 SKU number.
    pub sku_number: Option<String>,
    /// Type 3 asset tag.
    pub chassis_asset_tag: Option<String>,
    /// Type 11 strings.
    pub oem_strings: Vec<String>,
}

impl VmConfig {
    /// Size of all memory, in bytes.
    pub fn memory_size(&self) -> u64 {
        self.memory.iter().fold(0, |sum, zone| sum.saturating_add(zone.size))
    }
}
