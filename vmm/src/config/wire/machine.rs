//! Consoles, the entropy source, persistent memory, PCI segments and what firmware tables say.

use std::path::PathBuf;

use api_client::wire::{self, ConsoleMode, PciDevice};
use arch::x86_64::smbios;

use super::{id, place};
use crate::config::{
    ConfigError, ConsoleConfig, ConsoleTarget, PlatformConfig, PmemConfig, RngConfig, SegmentWeights,
    VsockConfig,
};

/// Id of the virtio console, unless it has another.
pub(crate) const CONSOLE_ID: &str = "__console";
const RNG_ID: &str = "__rng";

/// There is an IOMMU if any device or segment asks for one.
pub(super) fn spread_iommu(said: &mut wire::VmConfig) {
    fn any<D: PciDevice>(devices: &Option<Vec<D>>) -> bool {
        devices.iter().flatten().any(PciDevice::iommu)
    }
    let segments = said.platform.as_ref().and_then(|platform| platform.iommu_segments.as_ref());
    said.iommu |= segments.is_some_and(|segments| !segments.is_empty())
        || said.console.iommu
        || said.rng.iommu
        || any(&said.disks)
        || any(&said.net)
        || any(&said.pmem)
        || any(&said.devices)
        || any(&said.vdpa)
        || said.balloon.as_ref().is_some_and(PciDevice::iommu)
        || said.rtc.as_ref().is_some_and(PciDevice::iommu)
        || said.vsock.as_ref().is_some_and(PciDevice::iommu);
}

pub(super) fn serial(said: &wire::SerialConfig) -> Result<ConsoleTarget, ConfigError> {
    target("serial", said.mode, said.file.as_ref(), said.socket.as_ref())
}

pub(super) fn console(said: &wire::ConsoleConfig) -> Result<Option<ConsoleConfig>, ConfigError> {
    if said.mode == ConsoleMode::Socket {
        // Clients that ask for it learn so when the VM is made, as they learn of a file that cannot be.
        let what = "mode Socket: only the serial port can have a socket".to_owned();
        return Err(ConfigError::Build { section: "console", what });
    }
    let target = target("console", said.mode, said.file.as_ref(), None)?;
    let console = ConsoleConfig { id: id(said, CONSOLE_ID), place: place(said), target };
    Ok((console.target != ConsoleTarget::Off).then_some(console))
}

fn target(
    section: &'static str,
    mode: ConsoleMode,
    file: Option<&PathBuf>,
    socket: Option<&PathBuf>,
) -> Result<ConsoleTarget, ConfigError> {
    let missing = |what: &str| ConfigError::Machine { section, what: what.to_owned() };
    Ok(match mode {
        ConsoleMode::Off => ConsoleTarget::Off,
        ConsoleMode::Null => ConsoleTarget::Null,
        ConsoleMode::Tty => ConsoleTarget::Tty,
        ConsoleMode::Pty => ConsoleTarget::Pty,
        ConsoleMode::File => {
            ConsoleTarget::File(file.cloned().ok_or_else(|| missing("mode File needs a file"))?)
        }
        ConsoleMode::Socket => {
            ConsoleTarget::Socket(socket.cloned().ok_or_else(|| missing("mode Socket needs a socket"))?)
        }
    })
}

pub(super) fn rng(said: &wire::RngConfig) -> RngConfig {
    RngConfig { id: id(said, RNG_ID), place: place(said), source: said.src.clone() }
}

pub(super) fn pmem(said: &wire::PmemConfig) -> PmemConfig {
    PmemConfig {
        id: id(said, ""),
        place: place(said),
        file: said.file.clone(),
        size: said.size,
        discard_writes: said.discard_writes,
    }
}

pub(super) fn vsock(said: &wire::VsockConfig) -> VsockConfig {
    // It was given one, if it had none.
    VsockConfig { id: id(said, ""), place: place(said), cid: said.cid, socket: said.socket.clone() }
}

/// Each segment's share: 1 where none is given.
pub(super) fn weights(said: &wire::VmConfig, segments: u16) -> Result<Vec<SegmentWeights>, ConfigError> {
    let wrong = |what: String| ConfigError::Machine { section: "pci_segments", what };
    let mut weights = vec![None; usize::from(segments)];
    for segment in said.pci_segments.iter().flatten() {
        let number = segment.pci_segment;
        let weight = weights
            .get_mut(usize::from(number))
            .ok_or_else(|| wrong(format!("pci_segment {number}, of {segments}")))?;
        let given =
            SegmentWeights { mmio32: segment.mmio32_aperture_weight, mmio64: segment.mmio64_aperture_weight };
        if given.mmio32 == 0 || given.mmio64 == 0 {
            return Err(wrong(format!("pci_segment {number}: an aperture weight is 0")));
        }
        if weight.replace(given).is_some() {
            return Err(wrong(format!("pci_segment {number} is there twice")));
        }
    }
    Ok(weights.into_iter().map(Option::unwrap_or_default).collect())
}

pub(super) fn platform(said: &wire::PlatformConfig) -> Result<PlatformConfig, ConfigError> {
    let wrong = |what: String| ConfigError::Machine { section: "platform", what };
    if said.iommu_address_width_bits > 64 {
        return Err(wrong(format!("iommu_address_width_bits {}: 64 at most", said.iommu_address_width_bits)));
    }
    if let Some(uuid) = &said.system_uuid {
        smbios::parse_uuid(uuid).map_err(|error| wrong(format!("system_uuid: {error}")))?;
    }
    Ok(PlatformConfig {
        serial_number: said.system_serial_number.clone(),
        uuid: said.system_uuid.clone(),
        manufacturer: said.system_manufacturer.clone(),
        product_name: said.system_product_name.clone(),
        version: said.system_version.clone(),
        family: said.system_family.clone(),
        sku_number: said.system_sku_number.clone(),
        chassis_asset_tag: said.chassis_asset_tag.clone(),
        oem_strings: said.oem_strings.clone().unwrap_or_default(),
    })
}
