//! A VM's configuration.

use serde::{Deserialize, Serialize};

use super::{
    console::{ConsoleConfig, DebugConsoleConfig, SerialConfig},
    cpus::CpusConfig,
    device::{
        BalloonConfig, DeviceConfig, FsConfig, GenericVhostUserConfig, IvshmemConfig, PmemConfig, RngConfig,
        RtcConfig, TpmConfig, UserDeviceConfig, VdpaConfig, VsockConfig,
    },
    disk::DiskConfig,
    is_default,
    memory::MemoryConfig,
    net::NetConfig,
    numa::NumaConfig,
    payload::PayloadConfig,
    pci::PciSegmentConfig,
    platform::{LandlockConfig, PlatformConfig},
    rate_limit::RateLimitGroupConfig,
};

/// A VM's configuration. Every member may be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VmConfig {
    /// Processors.
    pub cpus: CpusConfig,
    /// Memory.
    pub memory: MemoryConfig,
    /// What it boots; needed to boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<PayloadConfig>,
    /// Limits that several disks share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit_groups: Option<Vec<RateLimitGroupConfig>>,
    /// Disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disks: Option<Vec<DiskConfig>>,
    /// Network devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net: Option<Vec<NetConfig>>,
    /// The entropy source.
    pub rng: RngConfig,
    /// The memory balloon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonConfig>,
    /// Shared file systems.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fs: Option<Vec<FsConfig>>,
    /// Devices of any type on vhost-user back ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generic_vhost_user: Option<Vec<GenericVhostUserConfig>>,
    /// Persistent memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pmem: Option<Vec<PmemConfig>>,
    /// The serial port.
    pub serial: SerialConfig,
    /// The virtio console.
    pub console: ConsoleConfig,
    /// The debug console.
    pub debug_console: DebugConsoleConfig,
    /// Devices of the host, by VFIO.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<Vec<DeviceConfig>>,
    /// Devices in other processes, by vfio-user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_devices: Option<Vec<UserDeviceConfig>>,
    /// vDPA devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vdpa: Option<Vec<VdpaConfig>>,
    /// The virtio socket device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// Whether the guest can report a panic.
    pub pvpanic: bool,
    /// Whether there is a virtual IOMMU; on if a device or segment asks for it.
    pub iommu: bool,
    /// NUMA nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numa: Option<Vec<NumaConfig>>,
    /// Whether there is a watchdog.
    pub watchdog: bool,
    /// The virtio clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtc: Option<RtcConfig>,
    /// The PCI segments' shares of the device windows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_segments: Option<Vec<PciSegmentConfig>>,
    /// The machine as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<PlatformConfig>,
    /// The TPM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tpm: Option<TpmConfig>,
    /// Whether the process confines itself (Landlock).
    pub landlock_enable: bool,
    /// What the confined process may still use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub landlock_rules: Option<Vec<LandlockConfig>>,
    /// Whether a debugger may attach.
    #[serde(skip_serializing_if = "is_default")]
    pub gdb: bool,
    /// The memory control device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pvmemcontrol: Option<serde_json::Map<String, serde_json::Value>>,
    /// Memory shared with other VMs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ivshmem: Option<IvshmemConfig>,
    /// Port of the debug exit device: the VMM ends when the guest writes there. Cumulet's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub debug_exit: Option<u16>,
}
