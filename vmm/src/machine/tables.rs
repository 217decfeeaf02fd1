//! What firmware tables say of a machine: a layout and a configuration in, ACPI and SMBIOS tables out.

use arch::x86_64::{
    acpi::{
        self, AcpiArea, AcpiConfig, AcpiError, AcpiTables, EventDevice, IoApic, IsaDevice, NumaMemory,
        PciSegment, PlacedTables, PowerPorts,
    },
    layout::{self as map, Range},
    memory_map::MemoryMapEntry,
    reset_vector,
    smbios::{self, SmbiosConfig, SmbiosError},
};
use devices::platform::{PmTimer, PowerControl, PvPanic, Rtc, Serial};

use super::platform::{EVENTS_BASE, EVENTS_GSI};
use crate::{
    config::{NumaNode, PlatformConfig, VmConfig},
    layout::{Layout, RangeLayout, SegmentLayout},
};

/// ACPI tables with their place, and the range that they take out of RAM, if any.
///
/// # Errors
/// They do not fit.
pub fn acpi(layout: &Layout, config: &VmConfig) -> Result<(PlacedTables, Option<MemoryMapEntry>), AcpiError> {
    let tables = AcpiTables::build(&describe(layout, config))?;
    let low_ram = layout.ram.iter().filter(|part| part.base < map::HOLE_START);
    let low_ram_end = low_ram.map(|part| part.base + part.size).max().unwrap_or(0);
    let (area, taken) = AcpiArea::choose(tables.size(), low_ram_end)?;
    Ok((tables.place(&area)?, taken))
}

/// Code for a guest that reboots through a BIOS, and its address. Every memory map has its place reserved.
pub fn reset_vector() -> (u64, [u8; 16]) {
    reset_vector::build(port(PowerControl::BASE + 2), PowerControl::RESET)
}

/// SMBIOS, and its address. Every memory map has its place reserved.
///
/// # Errors
/// A string cannot be represented, or all together are too long.
pub fn smbios(platform: &PlatformConfig) -> Result<(u64, Vec<u8>), SmbiosError> {
    let PlatformConfig {
        serial_number,
        uuid,
        manufacturer,
        product_name,
        version,
        family,
        sku_number,
        chassis_asset_tag,
        oem_strings,
    } = platform.clone();
    smbios::build(&SmbiosConfig {
        manufacturer,
        product: product_name,
        version,
        serial: serial_number,
        uuid: uuid.as_deref().map(smbios::parse_uuid).transpose()?,
        sku: sku_number,
        family,
        asset_tag: chassis_asset_tag,
        oem_strings,
    })
}

fn describe(layout: &Layout, config: &VmConfig) -> AcpiConfig {
    let present = layout.vcpus.iter().filter(|vcpu| vcpu.present).count();
    AcpiConfig {
        topology: config.cpus.topology,
        boot_vcpus: u32::try_from(present).unwrap_or(u32::MAX),
        cpu_hotplug: None,
        ioapic: IoApic { id: 0, address: low(map::IOAPIC_START), gsi_base: 0 },
        overrides: Vec::new(),
        power: PowerPorts {
            sleep_control: port(PowerControl::BASE),
            sleep_status: port(PowerControl::BASE + 1),
            reset: port(PowerControl::BASE + 2),
            reset_value: PowerControl::RESET,
        },
        pm_timer_port: Some(port(PmTimer::BASE)),
        events: EventDevice { address: EVENTS_BASE, gsi: EVENTS_GSI },
        serial: layout.serial.then_some(IsaDevice {
            port: port(Serial::COM1),
            ports: 8,
            gsi: Serial::COM1_IRQ,
        }),
        rtc: Some(IsaDevice { port: port(Rtc::BASE), ports: 2, gsi: Rtc::IRQ }),
        pvpanic_port: layout.pvpanic.then_some(port(PvPanic::BASE)),
        generation_id: layout.generation_id,
        segments: layout.segments.iter().map(|segment| describe_segment(segment, &config.numa)).collect(),
        nodes: config.numa.iter().map(|node| describe_node(node, layout)).collect(),
    }
}

fn describe_segment(layout: &SegmentLayout, nodes: &[NumaNode]) -> PciSegment {
    let range = |of: RangeLayout| Range { start: of.base, size: of.size };
    PciSegment {
        id: layout.number,
        ecam: range(layout.ecam),
        mmio32: Some(range(layout.mmio32)),
        mmio64: Some(range(layout.mmio64)),
        ports: layout.number == 0,
        intx: None,
        node: nodes.iter().find(|node| node.pci_segments.contains(&layout.number)).map(|node| node.id),
    }
}

/// A node with its zones where they lie: RAM, and what may be added to it.
fn describe_node(node: &NumaNode, layout: &Layout) -> acpi::NumaNode {
    let NumaNode { id, cpus, memory_zones, pci_segments: _, distances } = node;
    let memory = |base, size, hotpluggable| NumaMemory { range: Range { start: base, size }, hotpluggable };
    let ram = layout.ram.iter().filter(|part| memory_zones.contains(&part.zone));
    let hotplug = layout.hotplug.iter().filter(|range| memory_zones.contains(&range.zone));
    acpi::NumaNode {
        id: *id,
        vcpus: cpus.clone(),
        memory: ram
            .map(|part| memory(part.base, part.size, false))
            .chain(hotplug.map(|range| memory(range.base, range.size, true)))
            .collect(),
        distances: distances.iter().map(|(to, distance)| (*to, *distance)).collect(),
    }
}

/// A port of the architecture's: all are below 64 KiB.
fn port(base: u64) -> u16 {
    u16::try_from(base).unwrap_or(u16::MAX)
}

/// An address of the architecture's below 4 GiB.
fn low(address: u64) -> u32 {
    u32::try_from(address).unwrap_or(u32::MAX)
}
