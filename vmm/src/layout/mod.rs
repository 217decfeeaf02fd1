//! All that fixes the guest's wiring: memory regions, the device tree, BAR addresses, GSIs, queue
//! counts. Pure policy: a configuration and the host's capabilities in, a [`Layout`] out; no file,
//! no clock, no lock.
//!
//! A layout is part of a snapshot, and an interface with the guest: its kernel has seen these
//! addresses. It is allocated once, at cold boot, and taken over as it is at every restore.

mod allocate;
mod check;
#[cfg(test)]
mod tests;

use devices::pci::Bdf;
use serde::{Deserialize, Serialize};
use virtio_devices::transport::pci::BarLayout;

pub use self::{allocate::HostCaps, check::LayoutError};
use crate::config::DeviceKind;

/// The guest's map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Physical address bits of the guest.
    pub phys_bits: u8,
    /// Where RAM lies, by address.
    pub ram: Vec<RamLayout>,
    /// Where memory may be added, by address.
    pub hotplug: Vec<HotplugLayout>,
    /// Processors, by index.
    pub vcpus: Vec<VcpuLayout>,
    /// PCI segments, by number.
    pub segments: Vec<SegmentLayout>,
    /// PCI devices, in the order in which they are built.
    pub devices: Vec<DeviceLayout>,
    /// Port of the debug exit device.
    pub debug_exit: Option<u16>,
    /// Whether COM1 is there.
    pub serial: bool,
    /// Whether the panic port is there.
    pub pvpanic: bool,
    /// Address of the VM generation id; none in machines that were made before there was one.
    #[serde(default)]
    pub generation_id: Option<u64>,
    /// Where firmware lies that is read-only memory; none in machines without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flash: Option<RangeLayout>,
}

/// A part of a memory zone and its place in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RamLayout {
    /// The zone.
    pub zone: String,
    /// Where in the zone it begins, in bytes.
    pub zone_offset: u64,
    /// Guest-physical address.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
}

/// A range that is kept for memory which is added to a zone while the machine runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HotplugLayout {
    /// The zone.
    pub zone: String,
    /// Guest-physical address: a multiple of 1 GiB.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
}

/// A processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuLayout {
    /// Index, 0 up.
    pub index: u32,
    /// Local APIC id.
    pub apic_id: u32,
    /// Whether it exists at boot, or only may be plugged.
    pub present: bool,
}

/// Ranges of a PCI segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentLayout {
    /// Its number.
    pub number: u16,
    /// Configuration space in memory.
    pub ecam: RangeLayout,
    /// Where BARs below 4 GiB can be.
    pub mmio32: RangeLayout,
    /// Where BARs above 4 GiB can be.
    pub mmio64: RangeLayout,
}

/// An address range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RangeLayout {
    /// First address.
    pub base: u64,
    /// Length.
    pub size: u64,
}

/// A PCI device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceLayout {
    /// Its id.
    pub id: String,
    /// Its kind.
    pub kind: DeviceKind,
    /// Its address.
    pub bdf: Bdf,
    /// Address of its register BAR.
    pub bar: u64,
    /// Greatest size of each of its virtqueues.
    pub queue_sizes: Vec<u16>,
    /// Where it shows memory of its own; none for kinds that have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<RangeLayout>,
}

impl Layout {
    /// Indices of the vCPUs that are there.
    pub fn present_vcpus(&self) -> Vec<u32> {
        self.vcpus.iter().filter(|vcpu| vcpu.present).map(|vcpu| vcpu.index).collect()
    }

    /// The memory zone behind `size` bytes at a guest-physical address, and where in it they begin. `None` where
    /// that is not RAM all through.
    pub fn in_ram(&self, address: u64, size: u64) -> Option<(&str, u64)> {
        self.ram.iter().find_map(|part| {
            let within = address.checked_sub(part.base)?;
            let fits = within.checked_add(size).is_some_and(|end| end <= part.size);
            fits.then(|| Some((part.zone.as_str(), part.zone_offset.checked_add(within)?)))?
        })
    }

    /// Whether interrupts have destinations that eight bits cannot name.
    pub fn has_wide_apic_ids(&self) -> bool {
        self.vcpus.iter().any(|vcpu| vcpu.apic_id > MAX_NARROW_APIC_ID)
    }
}

/// Greatest APIC id of eight bits; 255 is all of them.
const MAX_NARROW_APIC_ID: u32 = 254;

/// Size of a virtio device's register BAR, by its number of queues.
fn bar_size(queues: usize) -> u64 {
    BarLayout::new(u16::try_from(queues).unwrap_or(u16::MAX)).spec().size
}
