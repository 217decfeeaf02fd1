//! The ACPI tables of the machine (ACPI 6.5), made of one plain description.
//!
//! The machine is hardware-reduced (ACPI 6.5, 4.1): no SCI, no fixed event registers. Power-off goes
//! through the sleep control register, reboot through the reset register, and everything that
//! happens to a running machine (power button, hotplug) through one generic event device. Linux then
//! probes neither PIC nor PIT. The PM timer is there all the same, for guests without a better clock
//! and for firmware.
//!
//! [`AcpiTables::build`] makes the tables; where they lie is decided when their size is known
//! ([`AcpiTables::place`]). Every address, GSI and count comes from the caller.

mod dsdt;
mod fadt;
mod madt;
mod mcfg;
mod numa;
#[cfg(test)]
mod reader;
mod table;
#[cfg(test)]
mod tests;

pub use dsdt::{cpu_hotplug, event};
use thiserror::Error;

use super::{
    layout::{self, Range},
    memory_map::{MemoryKind, MemoryMapEntry},
    topology::Topology,
};

/// What the tables are to describe.
#[derive(Clone, Debug)]
pub struct AcpiConfig {
    /// All vCPUs the machine can have; their APIC ids follow.
    pub topology: Topology,
    /// vCPUs present at boot, from the first on.
    pub boot_vcpus: u32,
    /// Registers of vCPU hotplug in memory (see [`cpu_hotplug`]); without, the guest is told of no
    /// vCPU beyond those present at boot.
    pub cpu_hotplug: Option<u64>,
    /// The IOAPIC.
    pub ioapic: IoApic,
    /// ISA interrupts that are not at the GSI of the same number.
    pub overrides: Vec<InterruptOverride>,
    /// Power-off and reboot.
    pub power: PowerPorts,
    /// Port of the 32-bit PM timer.
    pub pm_timer_port: Option<u16>,
    /// The generic event device.
    pub events: EventDevice,
    /// First serial port.
    pub serial: Option<IsaDevice>,
    /// Real-time clock.
    pub rtc: Option<IsaDevice>,
    /// Port of the panic notifier.
    pub pvpanic_port: Option<u16>,
    /// Address of the 16 bytes of the VM generation id.
    pub generation_id: Option<u64>,
    /// PCI segments, each with one bus. The first is segment 0.
    pub segments: Vec<PciSegment>,
    /// NUMA nodes; none for a machine without NUMA.
    pub nodes: Vec<NumaNode>,
}

/// The IOAPIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// Its APIC id.
    pub id: u8,
    /// Address of its registers.
    pub address: u32,
    /// GSI of its first pin.
    pub gsi_base: u32,
}

/// An ISA interrupt that arrives at another GSI (ACPI 6.5, 5.2.12.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptOverride {
    /// ISA interrupt.
    pub isa: u8,
    /// Where it arrives.
    pub gsi: u32,
    /// Level-triggered, active low; else as the ISA bus has it: edge-triggered, active high.
    pub level_low: bool,
}

/// Registers of power-off and reboot, each a byte wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerPorts {
    /// Sleep control register. [`POWER_OFF`] is written to it.
    pub sleep_control: u16,
    /// Sleep status register.
    pub sleep_status: u16,
    /// Reset register.
    pub reset: u16,
    /// What is written to the reset register.
    pub reset_value: u8,
}

/// Sleep type of the soft-off state.
const SLEEP_TYPE_S5: u8 = 5;

/// What a guest writes to the sleep control register to power off: SLP_TYP 5 and SLP_EN (ACPI 6.5,
/// 4.8.3.7). OVMF's Cloud Hypervisor build writes the same, to port 0x600.
pub const POWER_OFF: u8 = SLEEP_TYPE_S5 << 2 | 1 << 5;

/// The generic event device (ACPI 6.5, 5.6.9): an interrupt, and a register that says what happened.
/// See [`event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventDevice {
    /// Address of the register.
    pub address: u64,
    /// Its edge-triggered interrupt.
    pub gsi: u32,
}

/// A device with ports and one edge-triggered interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IsaDevice {
    /// First port.
    pub port: u16,
    /// Number of ports.
    pub ports: u8,
    /// Its interrupt.
    pub gsi: u32,
}

/// A PCI segment with one bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciSegment {
    /// Segment group number.
    pub id: u16,
    /// Its configuration space in memory.
    pub ecam: Range,
    /// Window for 32-bit BARs, below 4 GiB; absent when the segment has none.
    pub mmio32: Option<Range>,
    /// Window for 64-bit BARs; absent when the segment has none.
    pub mmio64: Option<Range>,
    /// Whether the segment has the I/O ports (all that are not a platform device's).
    pub ports: bool,
    /// GSIs of INTA to INTD, rotated by device number; `None` when no device has a pin.
    pub intx: Option<[u32; 4]>,
    /// NUMA node it is attached to.
    pub node: Option<u32>,
}

/// A NUMA node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NumaNode {
    /// Proximity domain.
    pub id: u32,
    /// vCPUs in it.
    pub vcpus: Vec<u32>,
    /// Memory in it.
    pub memory: Vec<NumaMemory>,
    /// Distances to other nodes; 10 to itself and 20 to others where none is given.
    pub distances: Vec<(u32, u8)>,
}

/// Memory of a NUMA node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumaMemory {
    /// Where it is, or may come to be.
    pub range: Range,
    /// Whether it may be absent.
    pub hotpluggable: bool,
}

/// Why a description is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AcpiError {
    /// No vCPU at boot, or more than the topology has.
    #[error("{boot} vCPUs at boot of {max}")]
    Vcpus {
        /// vCPUs at boot.
        boot: u32,
        /// All vCPUs.
        max: u32,
    },

    /// A segment given twice, or a number out of order.
    #[error("PCI segment {id} at position {position}")]
    Segment {
        /// Its number.
        id: u16,
        /// Its position in the list.
        position: usize,
    },

    /// A window that is empty or does not fit its width.
    #[error("PCI segment {id}: {what} at {start:#x} of {size:#x} bytes")]
    Window {
        /// Segment.
        id: u16,
        /// Which window.
        what: &'static str,
        /// Its start.
        start: u64,
        /// Its size.
        size: u64,
    },

    /// Ports that wrap around.
    #[error("{what} at port {port:#x} with {ports} ports")]
    Ports {
        /// Which device.
        what: &'static str,
        /// First port.
        port: u16,
        /// Number of ports.
        ports: u8,
    },

    /// A node given twice.
    #[error("NUMA node {id} is given twice")]
    NodeTwice {
        /// Its number.
        id: u32,
    },

    /// Something refers to a node that is not there.
    #[error("{what} {number} refers to NUMA node {node}, which is not there")]
    NoNode {
        /// What refers to it.
        what: &'static str,
        /// Its number.
        number: u32,
        /// The node.
        node: u32,
    },

    /// A node with a vCPU that is not there, or is in another node too.
    #[error("NUMA node {node}: vCPU {vcpu} is not there or is in two nodes")]
    NodeVcpu {
        /// The node.
        node: u32,
        /// The vCPU.
        vcpu: u32,
    },

    /// Distances below 10 are reserved, and 10 is the distance to itself (ACPI 6.5, 5.2.17).
    #[error("NUMA distance {distance} from node {from} to node {to}: expected 11 to 255, and 10 to itself")]
    Distance {
        /// From.
        from: u32,
        /// To.
        to: u32,
        /// The distance.
        distance: u8,
    },

    /// More nodes than a table of distances is made for.
    #[error("{nodes} NUMA nodes: at most {max}")]
    TooManyNodes {
        /// Nodes.
        nodes: usize,
        /// Most.
        max: usize,
    },

    /// The tables do not fit where they are to be.
    #[error("ACPI tables of {size:#x} bytes do not fit into {room:#x} bytes at {start:#x}")]
    NoRoom {
        /// Size of the tables.
        size: u64,
        /// Size of the area.
        room: u64,
        /// Start of the area.
        start: u64,
    },
}

/// The tables, not yet placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiTables {
    dsdt: Vec<u8>,
    fadt: fadt::Fadt,
    /// All other tables that the XSDT lists.
    others: Vec<Vec<u8>>,
}

/// The tables with their addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedTables {
    /// Address of the root pointer.
    pub rsdp: u64,
    /// What goes where. No two pieces overlap.
    pub pieces: Vec<(u64, Vec<u8>)>,
}

/// Where the tables go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcpiArea {
    /// Address of the root pointer.
    pub rsdp: u64,
    /// Range of all other tables.
    pub tables: Range,
}

impl AcpiArea {
    /// The place below 1 MiB if tables of `size` bytes fit, else the end of RAM below the hole, which
    /// ends at `low_ram_end`. That range must then go into the memory map, so it is returned as well.
    ///
    /// # Errors
    /// Low RAM is too small.
    pub fn choose(size: u64, low_ram_end: u64) -> Result<(Self, Option<MemoryMapEntry>), AcpiError> {
        let rsdp = layout::ACPI_START;
        let low = Range { start: rsdp + table::ALIGNMENT, size: layout::ACPI_SIZE - table::ALIGNMENT };
        if size <= low.size {
            return Ok((Self { rsdp, tables: low }, None));
        }
        let no_room = AcpiError::NoRoom { size, room: low_ram_end, start: 0 };
        let start = low_ram_end
            .checked_sub(size)
            .map(|start| start / layout::PAGE_SIZE * layout::PAGE_SIZE)
            .filter(|start| *start > layout::HIGH_RAM_START)
            .ok_or(no_room)?;
        let tables = Range { start, size: low_ram_end - start };
        Ok((Self { rsdp, tables }, Some(MemoryMapEntry { range: tables, kind: MemoryKind::Acpi })))
    }
}

impl AcpiTables {
    /// Makes the tables.
    ///
    /// # Errors
    /// The description contradicts itself.
    pub fn build(config: &AcpiConfig) -> Result<Self, AcpiError> {
        check(config)?;
        let mut others = vec![madt::build(config), mcfg::build(&config.segments)];
        others.extend(numa::build(config)?);
        Ok(Self { dsdt: dsdt::build(config), fadt: fadt::Fadt::new(config), others })
    }

    /// Room that the tables need, without the root pointer.
    pub fn size(&self) -> u64 {
        let sizes = [self.dsdt.len(), fadt::Fadt::SIZE, table::xsdt_size(self.others.len() + 1)];
        sizes.into_iter().chain(self.others.iter().map(Vec::len)).map(table::aligned).sum()
    }

    /// Gives every table its address.
    ///
    /// # Errors
    /// The tables do not fit.
    pub fn place(&self, area: &AcpiArea) -> Result<PlacedTables, AcpiError> {
        let mut next = area.tables.start.next_multiple_of(table::ALIGNMENT);
        let size = self.size();
        if next.checked_add(size).is_none_or(|end| end > area.tables.end()) {
            let Range { start, size: room } = area.tables;
            return Err(AcpiError::NoRoom { size, room, start });
        }
        let mut pieces = Vec::with_capacity(self.others.len() + 4);
        let mut put = |bytes: Vec<u8>| {
            let at = next;
            next += table::aligned(bytes.len());
            pieces.push((at, bytes));
            at
        };
        let dsdt = put(self.dsdt.clone());
        let mut listed = vec![put(self.fadt.pointing_to(dsdt))];
        listed.extend(self.others.iter().map(|bytes| put(bytes.clone())));
        let xsdt = put(table::xsdt(&listed));
        pieces.push((area.rsdp, table::rsdp(xsdt)));
        Ok(PlacedTables { rsdp: area.rsdp, pieces })
    }
}

/// What the tables' own modules take for granted.
fn check(config: &AcpiConfig) -> Result<(), AcpiError> {
    let max = config.topology.vcpus();
    if !(1..=max).contains(&config.boot_vcpus) {
        return Err(AcpiError::Vcpus { boot: config.boot_vcpus, max });
    }
    for (position, segment) in config.segments.iter().enumerate() {
        if usize::from(segment.id) != position || segment.id >= layout::MAX_PCI_SEGMENTS {
            return Err(AcpiError::Segment { id: segment.id, position });
        }
        check_window(segment.id, "configuration space", &segment.ecam, layout::HOLE_END)?;
        if let Some(window) = &segment.mmio32 {
            check_window(segment.id, "32-bit window", window, layout::HOLE_END)?;
        }
        if let Some(window) = &segment.mmio64 {
            check_window(segment.id, "64-bit window", window, 1 << layout::MAX_PHYS_BITS)?;
        }
        if let Some(node) = segment.node
            && !config.nodes.iter().any(|known| known.id == node)
        {
            return Err(AcpiError::NoNode { what: "PCI segment", number: segment.id.into(), node });
        }
    }
    let isa = [("serial port", config.serial), ("real-time clock", config.rtc)];
    for (what, device) in isa.into_iter().filter_map(|(what, device)| device.map(|device| (what, device))) {
        let IsaDevice { port, ports, .. } = device;
        if ports == 0 || port.checked_add(u16::from(ports) - 1).is_none() {
            return Err(AcpiError::Ports { what, port, ports });
        }
    }
    Ok(())
}

fn check_window(id: u16, what: &'static str, window: &Range, limit: u64) -> Result<(), AcpiError> {
    let Range { start, size } = *window;
    match start.checked_add(size) {
        Some(end) if size > 0 && end <= limit => Ok(()),
        _ => Err(AcpiError::Window { id, what, start, size }),
    }
}
