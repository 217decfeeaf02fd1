//! A PCI host bridge: the windows it decodes, and where its interrupt pins go.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, BufferData, Device, EISAName, Equal, IO, If, Method, Name,
    Package, PackageBuilder, Path, ResourceTemplate, Return, Uuid, ZERO,
};

use crate::x86_64::acpi::{PciSegment, table::Raw};

/// Ports of the configuration mechanism, which belong to the bridge itself.
const CONFIG_PORTS: (u16, u8) = (0xcf8, 8);

/// Devices on a bus.
const SLOTS: u32 = 32;

pub(super) fn host_bridge(segment: &PciSegment) -> Raw {
    let mut body = Raw::default();
    body.push(&Name::new("_HID".into(), &EISAName::new("PNP0A08")));
    body.push(&Name::new("_CID".into(), &EISAName::new("PNP0A03")));
    body.push(&Name::new("_UID".into(), &segment.id));
    body.push(&Name::new("_SEG".into(), &segment.id));
    body.push(&Name::new("_BBN".into(), &ZERO));
    body.push(&Name::new("_ADR".into(), &ZERO));
    if let Some(node) = &segment.node {
        body.push(&Name::new("_PXM".into(), node));
    }
    body.push(&Name::new("_CRS".into(), &ResourceTemplate::new(vec![&windows(segment)])));
    body.push(&keep_configuration());
    if let Some(gsis) = &segment.intx {
        body.push(&Name::new("_PRT".into(), &interrupt_pins(gsis)));
    }
    let mut bridge = Raw::default();
    bridge.push(&Device::new(Path::new(&format!("PC{:02X}", segment.id)), vec![&body]));
    bridge
}

fn windows(segment: &PciSegment) -> Raw {
    let mut windows = Raw::default();
    windows.push(&AddressSpace::new_bus_number(0u16, 0u16));
    if segment.ports {
        let (first, count) = CONFIG_PORTS;
        windows.push(&IO::new(first, first, 1, count));
        windows.push(&AddressSpace::new_io(0u16, first - 1, None));
        windows.push(&AddressSpace::new_io(first + u16::from(count), u16::MAX, None));
    }
    let uncached = AddressSpaceCacheable::NotCacheable;
    if let Some(window) = &segment.mmio32
        && let (Ok(first), Ok(last)) = (u32::try_from(window.start), u32::try_from(window.end() - 1))
    {
        windows.push(&AddressSpace::new_memory(uncached, true, first, last, None));
    }
    if let Some(window) = &segment.mmio64 {
        windows.push(&AddressSpace::new_memory(uncached, true, window.start, window.end() - 1, None));
    }
    windows
}

/// `_DSM`, whose function 5 tells the guest to leave BARs as it finds them (PCI Firmware
/// Specification 3.3, 4.6.5). They are all placed when the machine is built; moving each of them would
/// only cost exits.
fn keep_configuration() -> Raw {
    let pci = Uuid::new("E5C937D0-3553-4D7A-9117-EA4D19C3434D");
    let supported = BufferData::new(vec![1 | 1 << 5]);
    let (index_query, index_keep) = (0u8, 5u8);
    let query = Equal::new(&Arg(2), &index_query);
    let keep = Equal::new(&Arg(2), &index_keep);
    let mut functions = Raw::default();
    functions.push(&If::new(&query, vec![&Return::new(&supported)]));
    functions.push(&If::new(&keep, vec![&Return::new(&ZERO)]));
    let mut method = Raw::default();
    method.push(&Method::new(
        "_DSM".into(),
        4,
        false,
        vec![&If::new(&Equal::new(&Arg(0), &pci), vec![&functions]), &Return::new(&BufferData::new(vec![0]))],
    ));
    method
}

/// `_PRT`: pins are rotated by device number, so that neighbours do not share a GSI.
fn interrupt_pins(gsis: &[u32; 4]) -> PackageBuilder {
    let mut pins = PackageBuilder::new();
    for slot in 0..SLOTS {
        let any_function = slot << 16 | 0xffff;
        for (pin, rotated) in (0u8..4).zip(gsis.iter().cycle().skip(usize::try_from(slot % 4).unwrap_or(0))) {
            pins.add_element(&Package::new(vec![&any_function, &pin, &ZERO, rotated]));
        }
    }
    pins
}
