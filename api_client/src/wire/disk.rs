//! Disks.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{pci::pci_device, rate_limit::RateLimiterConfig};

pci_device! {
    /// A virtio block device: an image, or a vhost-user back end.
    #[serde(default)]
    pub struct DiskConfig {
        ..pci,
        /// The image; excludes `vhost_socket`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub path: Option<PathBuf>,
        /// Whether the guest can only read.
        pub readonly: bool,
        /// Whether the host's page cache is passed by.
        pub direct: bool,
        /// Number of queues; at most `boot_vcpus`.
        pub num_queues: usize,
        /// Size of a queue: a power of two, 4 to 32768.
        pub queue_size: u16,
        /// Whether a vhost-user back end serves it.
        pub vhost_user: bool,
        /// The back end's socket.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub vhost_socket: Option<String>,
        /// The group whose limits it shares; excludes `rate_limiter_config`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub rate_limit_group: Option<String>,
        /// Limits of its own.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub rate_limiter_config: Option<RateLimiterConfig>,
        /// Serial number, at most 20 bytes.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub serial: Option<String>,
        /// On which host CPUs each queue is served.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub queue_affinity: Option<Vec<VirtQueueAffinity>>,
        /// Whether a qcow2 image may have backing files.
        pub backing_files: bool,
        /// Whether discarded ranges become holes.
        pub sparse: bool,
        /// Format of the image.
        pub image_type: ImageType,
        /// How much of the image is locked.
        pub lock_granularity: LockGranularity,
        /// Whether the guest may use packed queues. Cumulet's own.
        pub packed: bool,
        /// io_uring is not used. For tests.
        pub disable_io_uring: bool,
        /// Linux AIO is not used. For tests.
        pub disable_aio: bool,
    }
}

impl Default for DiskConfig {
    fn default() -> Self {
        Self {
            id: None,
            iommu: false,
            pci_segment: 0,
            pci_device_id: None,
            path: None,
            readonly: false,
            direct: false,
            num_queues: 1,
            queue_size: 128,
            vhost_user: false,
            vhost_socket: None,
            rate_limit_group: None,
            rate_limiter_config: None,
            serial: None,
            queue_affinity: None,
            backing_files: false,
            sparse: true,
            image_type: ImageType::default(),
            lock_granularity: LockGranularity::default(),
            packed: true,
            disable_io_uring: false,
            disable_aio: false,
        }
    }
}

/// On which host CPUs a queue is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtQueueAffinity {
    /// The queue.
    pub queue_index: u16,
    /// The host's CPUs.
    pub host_cpus: Vec<usize>,
}

/// Format of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageType {
    /// Sectors as they are.
    Raw,
    /// qcow2.
    Qcow2,
    /// VHD of fixed size.
    FixedVhd,
    /// VHDX.
    Vhdx,
    /// VMDK, flat.
    FlatVmdk,
    /// To be found out.
    #[default]
    Unknown,
}

/// How much of an image is locked against other users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockGranularity {
    /// Ranges of bytes.
    #[default]
    ByteRange,
    /// The whole file.
    Full,
}
