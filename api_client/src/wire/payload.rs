//! What a VM boots.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::on;

/// What a VM boots: a kernel or firmware.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PayloadConfig {
    /// Firmware; excludes `kernel`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<PathBuf>,
    /// Kernel: an ELF file with a PVH entry, or a bzImage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// The kernel's initial file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<PathBuf>,
    /// An IGVM file; excludes `firmware`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub igvm: Option<PathBuf>,
    /// Data that the host binds to a confidential VM: 64 hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_data: Option<String>,
    /// The fw_cfg device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fw_cfg_config: Option<FwCfgConfig>,
}

/// What the guest finds in the fw_cfg device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FwCfgConfig {
    /// The memory map.
    #[serde(default = "on")]
    pub e820: bool,
    /// The kernel.
    #[serde(default = "on")]
    pub kernel: bool,
    /// The kernel's command line.
    #[serde(default = "on")]
    pub cmdline: bool,
    /// The initial file system.
    #[serde(default = "on")]
    pub initramfs: bool,
    /// The ACPI tables.
    #[serde(default = "on")]
    pub acpi_tables: bool,
    /// Items of the user's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<FwCfgItemList>,
}

impl Default for FwCfgConfig {
    fn default() -> Self {
        Self { e820: true, kernel: true, cmdline: true, initramfs: true, acpi_tables: true, items: None }
    }
}

/// Items of the user's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FwCfgItemList {
    /// The items.
    #[serde(default)]
    pub item_list: Vec<FwCfgItem>,
}

/// A named item; exactly one of `file` and `string` gives its content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FwCfgItem {
    /// Name by which the guest finds it.
    pub name: String,
    /// File with its content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Its content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub string: Option<String>,
}
