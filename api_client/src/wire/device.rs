//! The devices that need few words.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::pci::pci_device;

pci_device! {
    /// The entropy source.
    pub struct RngConfig {
        ..pci,
        /// Where entropy is read from.
        pub src: PathBuf,
    }
}

impl Default for RngConfig {
    fn default() -> Self {
        let src = PathBuf::from("/dev/urandom");
        Self { id: None, iommu: false, pci_segment: 0, pci_device_id: None, src }
    }
}

pci_device! {
    /// The virtio clock.
    #[derive(Default)]
    #[serde(default)]
    pub struct RtcConfig {
        ..pci,
    }
}

pci_device! {
    /// The memory balloon.
    #[derive(Default)]
    pub struct BalloonConfig {
        ..pci,
        /// Bytes that the guest is asked to give back; less than all RAM.
        pub size: u64,
        /// Whether the balloon gives way when the guest runs out of memory.
        #[serde(default)]
        pub deflate_on_oom: bool,
        /// Whether the guest reports free pages.
        #[serde(default)]
        pub free_page_reporting: bool,
    }
}

pci_device! {
    /// A shared file system, served by a vhost-user back end.
    pub struct FsConfig {
        ..pci,
        /// Name by which the guest mounts it.
        pub tag: String,
        /// The back end's socket.
        pub socket: PathBuf,
        /// Number of request queues; at most `boot_vcpus`.
        #[serde(default = "one_queue")]
        pub num_queues: usize,
        /// Size of a queue: a power of two.
        #[serde(default = "fs_queue_size")]
        pub queue_size: u16,
    }
}

fn one_queue() -> usize {
    1
}

fn fs_queue_size() -> u16 {
    1024
}

impl Default for FsConfig {
    fn default() -> Self {
        Self {
            id: None,
            iommu: false,
            pci_segment: 0,
            pci_device_id: None,
            tag: String::new(),
            socket: PathBuf::new(),
            num_queues: one_queue(),
            queue_size: fs_queue_size(),
        }
    }
}

pci_device! {
    /// A device of any type, served by a vhost-user back end.
    #[derive(Default)]
    pub struct GenericVhostUserConfig {
        ..pci,
        /// The back end's socket.
        pub socket: PathBuf,
        /// Size of each queue.
        pub queue_sizes: Vec<u16>,
        /// Device id of the virtio specification.
        #[serde(alias = "virtio_id")]
        pub device_type: u32,
    }
}

pci_device! {
    /// Persistent memory.
    #[derive(Default)]
    pub struct PmemConfig {
        ..pci,
        /// File that backs it; or, with a size, a directory for one without a name.
        pub file: PathBuf,
        /// Size in bytes, a multiple of 2 MiB; the file's if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub size: Option<u64>,
        /// Whether what the guest writes is dropped at the end, and the file is only read.
        #[serde(default)]
        pub discard_writes: bool,
    }
}

pci_device! {
    /// A device of the host, handed to the guest by VFIO.
    #[derive(Default)]
    #[serde(default)]
    pub struct DeviceConfig {
        ..pci,
        /// Its directory in sysfs; excludes `fd`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub path: Option<PathBuf>,
        /// Its opened character device; over the API it travels beside the request.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub fd: Option<i32>,
        /// Group of devices that may reach each other directly.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub x_nv_gpudirect_clique: Option<u8>,
        /// BARs that are not mapped into the guest.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        pub x_exclude_mmap_bars: Vec<u8>,
    }
}

pci_device! {
    /// A device in another process, by vfio-user.
    #[derive(Default)]
    pub struct UserDeviceConfig {
        ..pci,
        /// The process's socket.
        pub socket: PathBuf,
    }
}

pci_device! {
    /// A vDPA device.
    pub struct VdpaConfig {
        ..pci,
        /// Its character device.
        pub path: PathBuf,
        /// Number of queues.
        #[serde(default = "one_queue")]
        pub num_queues: usize,
    }
}

impl Default for VdpaConfig {
    fn default() -> Self {
        Self {
            id: None,
            iommu: false,
            pci_segment: 0,
            pci_device_id: None,
            path: PathBuf::new(),
            num_queues: one_queue(),
        }
    }
}

pci_device! {
    /// The virtio socket device.
    #[derive(Default)]
    pub struct VsockConfig {
        ..pci,
        /// Context id of the guest; not 0, 1, 2 or 0xffffffff.
        pub cid: u32,
        /// The host's end of the connections.
        pub socket: PathBuf,
    }
}

pci_device! {
    /// Memory shared with other VMs.
    #[derive(Default)]
    pub struct IvshmemConfig {
        ..pci,
        /// File that backs it.
        pub path: PathBuf,
        /// Size in bytes, a power of two.
        pub size: u64,
    }
}

/// A TPM, served by another process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TpmConfig {
    /// The process's socket.
    pub socket: PathBuf,
}
