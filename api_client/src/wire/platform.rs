//! What firmware tables say of the machine, its PCI segments and IOMMU, and the process's confinement.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::is_default;

/// The machine as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlatformConfig {
    /// Number of PCI segments, 1 to 96.
    pub num_pci_segments: u16,
    /// Segments whose devices are all behind the virtual IOMMU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommu_segments: Option<Vec<u16>>,
    /// Bits of the addresses that the virtual IOMMU takes, at most 64.
    pub iommu_address_width_bits: u8,
    /// SMBIOS serial number.
    #[serde(alias = "serial_number", skip_serializing_if = "Option::is_none")]
    pub system_serial_number: Option<String>,
    /// SMBIOS UUID.
    #[serde(alias = "uuid", skip_serializing_if = "Option::is_none")]
    pub system_uuid: Option<String>,
    /// SMBIOS OEM strings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oem_strings: Option<Vec<String>>,
    /// SMBIOS manufacturer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_manufacturer: Option<String>,
    /// SMBIOS product name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_product_name: Option<String>,
    /// SMBIOS version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_version: Option<String>,
    /// SMBIOS family.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_family: Option<String>,
    /// SMBIOS SKU number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_sku_number: Option<String>,
    /// SMBIOS asset tag of the chassis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chassis_asset_tag: Option<String>,
    /// Whether VFIO goes through iommufd.
    pub iommufd: bool,
    /// The opened iommufd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommufd_fd: Option<i32>,
    /// Whether VFIO devices may reach each other.
    pub vfio_p2p_dma: bool,
    /// Whether the VM is a TDX guest.
    #[serde(skip_serializing_if = "is_default")]
    pub tdx: bool,
    /// Whether the VM is an SEV-SNP guest.
    #[serde(skip_serializing_if = "is_default")]
    pub sev_snp: bool,
}

impl Default for PlatformConfig {
    fn default() -> Self {
        Self {
            num_pci_segments: 1,
            iommu_segments: None,
            iommu_address_width_bits: 64,
            system_serial_number: None,
            system_uuid: None,
            oem_strings: None,
            system_manufacturer: None,
            system_product_name: None,
            system_version: None,
            system_family: None,
            system_sku_number: None,
            chassis_asset_tag: None,
            iommufd: false,
            iommufd_fd: None,
            vfio_p2p_dma: true,
            tdx: false,
            sev_snp: false,
        }
    }
}

/// A path that the confined process may still use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LandlockConfig {
    /// The path.
    pub path: PathBuf,
    /// What may be done there: letters out of `r` and `w`.
    pub access: String,
}
