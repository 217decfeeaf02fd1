//! What all PCI devices have in common on the wire, and the segments that they are on.

use serde::{Deserialize, Serialize};

/// The members that every PCI device has.
pub trait PciDevice {
    /// The device's id, if it has one.
    fn id(&self) -> Option<&str>;

    /// Gives it an id.
    fn set_id(&mut self, id: String);

    /// Whether the device is placed behind the virtual IOMMU.
    fn iommu(&self) -> bool;

    /// Number of its PCI segment.
    fn pci_segment(&self) -> u16;

    /// Its slot, if one is asked for.
    fn pci_device_id(&self) -> Option<u8>;
}

/// Defines a device: its own members, and the common ones where `..pci` stands.
macro_rules! pci_device {
    ($(#[$attribute:meta])* pub struct $name:ident {
        $($(#[$before_attribute:meta])* pub $before:ident: $before_type:ty,)*
        ..pci,
        $($(#[$after_attribute:meta])* pub $after:ident: $after_type:ty,)*
    }) => {
        #[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        $(#[$attribute])*
        pub struct $name {
            $($(#[$before_attribute])* pub $before: $before_type,)*
            /// Id, unique over all devices, rate limit groups and memory zones; given when the VM boots
            /// if absent.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub id: Option<String>,
            /// Whether the device is placed behind the virtual IOMMU.
            #[serde(default, skip_serializing_if = "crate::wire::is_default")]
            pub iommu: bool,
            /// Number of its PCI segment.
            #[serde(default)]
            pub pci_segment: u16,
            /// Slot, 0 to 31; the next free one if absent.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub pci_device_id: Option<u8>,
            $($(#[$after_attribute])* pub $after: $after_type,)*
        }

        impl crate::wire::PciDevice for $name {
            fn id(&self) -> Option<&str> {
                self.id.as_deref()
            }

            fn set_id(&mut self, id: String) {
                self.id = Some(id);
            }

            fn iommu(&self) -> bool {
                self.iommu
            }

            fn pci_segment(&self) -> u16 {
                self.pci_segment
            }

            fn pci_device_id(&self) -> Option<u8> {
                self.pci_device_id
            }
        }
    };
}

pub(super) use pci_device;

/// A PCI segment's share of the device windows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PciSegmentConfig {
    /// Number of the segment.
    pub pci_segment: u16,
    /// Weight of its share of the window below 4 GiB, above 0.
    pub mmio32_aperture_weight: u32,
    /// Weight of its share of the window above RAM, above 0.
    pub mmio64_aperture_weight: u32,
}

impl Default for PciSegmentConfig {
    fn default() -> Self {
        Self { pci_segment: 0, mmio32_aperture_weight: 1, mmio64_aperture_weight: 1 }
    }
}
