//! The saved form of a virtio function.

use devices::pci::EndpointState;
use serde::{Deserialize, Serialize};
use vm_migration::{Section, State};

use crate::queue::RingProgress;

/// A virtio function: its PCI part, its registers, its queues, and its device's own state.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VirtioPciState {
    /// Configuration space, BARs and vectors.
    pub pci: EndpointState,
    /// The window that configuration space has onto the BAR.
    pub window: WindowState,
    /// Which half of the device's features can be read.
    pub device_feature_select: u32,
    /// Which half of the driver's features can be accessed.
    pub driver_feature_select: u32,
    /// The driver's features; negotiated, once the status has FEATURES_OK.
    pub driver_features: u64,
    /// Device status.
    pub status: u8,
    /// Interrupt status.
    pub isr: u8,
    /// Configuration generation.
    pub config_generation: u8,
    /// Vector of configuration changes.
    pub config_vector: u16,
    /// The selected queue.
    pub queue_select: u16,
    /// The queues.
    pub queues: Vec<QueueRegistersState>,
    /// The device.
    pub device: Section,
}

impl State for VirtioPciState {
    const KIND: &'static str = "virtio-pci";
    const VERSION: u32 = 1;
}

/// The window of `VIRTIO_PCI_CAP_PCI_CFG` (virtio 1.3 section 4.1.4.9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowState {
    /// BAR number.
    pub bar: u8,
    /// Offset in the BAR.
    pub offset: u32,
    /// Width of the access in bytes.
    pub length: u32,
}

/// One queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueRegistersState {
    /// Number of descriptors.
    pub size: u16,
    /// Whether the driver enabled it.
    pub enabled: bool,
    /// Its vector.
    pub vector: u16,
    /// Descriptor area.
    pub descriptors: u64,
    /// Driver area.
    pub driver: u64,
    /// Device area.
    pub device: u64,
    /// How far it has come, if it is being served; null, but not missing, if not.
    #[serde(deserialize_with = "Option::deserialize")]
    pub progress: Option<RingProgress>,
}
