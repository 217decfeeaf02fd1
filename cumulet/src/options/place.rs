//! The keys that all PCI devices have.

use super::grammar::{GrammarError, Pairs};

/// The keys of every PCI device.
pub const PCI: &[&str] = &["id=ID", "pci_segment=0", "pci_device_id=SLOT"];

/// The key of those that can be behind the virtual IOMMU.
pub const IOMMU: &[&str] = &["iommu=off"];

/// What they say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The device's id.
    pub id: Option<String>,
    /// Whether it is behind the virtual IOMMU.
    pub iommu: bool,
    /// Its PCI segment.
    pub pci_segment: u16,
    /// Its slot.
    pub pci_device_id: Option<u8>,
}

impl Place {
    /// Reads them.
    ///
    /// # Errors
    /// A value is not of its type.
    pub fn parse(pairs: &Pairs) -> Result<Self, GrammarError> {
        Ok(Self {
            id: pairs.text("id"),
            iommu: pairs.toggle("iommu")?.unwrap_or(false),
            pci_segment: pairs.number("pci_segment")?.unwrap_or(0),
            pci_device_id: pairs.number("pci_device_id")?,
        })
    }
}
