//! A layout out of a configuration: what goes where at a cold boot.

use std::collections::{BTreeMap, BTreeSet};

use arch::x86_64::layout as map;
use devices::pci::Bdf;

use super::{DeviceLayout, Layout, LayoutError, RamLayout, RangeLayout, SegmentLayout, VcpuLayout};
use crate::config::{DeviceConfig, VmConfig};

/// What the host can give a guest, as far as the layout depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostCaps {
    /// Physical address bits of the host's processors.
    pub phys_bits: u8,
    /// Most vCPUs that the hypervisor gives one VM.
    pub max_vcpus: u32,
    /// Greatest local APIC id plus one.
    pub max_apic_id: u32,
}

impl Layout {
    /// Allocates a layout for a machine that has none.
    ///
    /// # Errors
    /// Something does not fit: memory, devices in their slots, BARs in their window, vCPUs.
    pub fn allocate(config: &VmConfig, caps: &HostCaps) -> Result<Self, LayoutError> {
        let phys_bits = config.cpus.max_phys_bits.min(caps.phys_bits);
        let (ram, ram_end) = place_ram(config)?;
        let limit = 1u64.checked_shl(u32::from(phys_bits)).unwrap_or(u64::MAX);
        if ram_end > limit {
            return Err(LayoutError::Memory { size: config.memory_size(), phys_bits });
        }
        let segments = place_segments(config.pci_segments, ram_end, phys_bits)?;
        let devices = place_devices(&config.devices, &segments)?;
        let layout = Self {
            phys_bits,
            ram,
            vcpus: place_vcpus(config, caps)?,
            segments,
            devices,
            debug_exit: config.debug_exit,
            serial: config.serial != crate::config::ConsoleTarget::Off,
            pvpanic: config.pvpanic,
        };
        Ok(layout)
    }
}

/// Zones one after the other, around the hole below 4 GiB; and the end of all, hotplug included.
fn place_ram(config: &VmConfig) -> Result<(Vec<RamLayout>, u64), LayoutError> {
    let mut ram = Vec::new();
    let mut offset = 0u64;
    for zone in &config.memory {
        let mut zone_offset = 0;
        for range in map::place_ram(offset, zone.size)? {
            ram.push(RamLayout { zone: zone.id.clone(), zone_offset, base: range.start, size: range.size });
            zone_offset += range.size;
        }
        offset = offset.saturating_add(zone.size);
    }
    let end = ram.iter().map(|part| part.base + part.size).max().unwrap_or(0).max(map::HOLE_END);
    let hotplug = config.memory.iter().fold(0u64, |sum, zone| sum.saturating_add(zone.hotplug_size));
    Ok((ram, end.saturating_add(hotplug)))
}

/// Each segment gets an equal share of the two device windows, at a power-of-two alignment.
fn place_segments(count: u16, ram_end: u64, phys_bits: u8) -> Result<Vec<SegmentLayout>, LayoutError> {
    let count64 = u64::from(count.max(1));
    let low = share(map::PCI32_SIZE, count64, 1 << 20);
    let window = map::pci64_window(ram_end, phys_bits)?;
    let high = share(window.size, count64, 1 << 32);
    if low == 0 || high == 0 {
        return Err(LayoutError::Windows { segments: count });
    }
    let segments = (0..count).map(|number| {
        let at = u64::from(number);
        let ecam = map::ecam(number)?;
        Ok(SegmentLayout {
            number,
            ecam: RangeLayout { base: ecam.start, size: ecam.size },
            mmio32: RangeLayout { base: map::PCI32_START + at * low, size: low },
            mmio64: RangeLayout { base: window.start + at * high, size: high },
        })
    });
    segments.collect()
}

fn share(size: u64, count: u64, align: u64) -> u64 {
    size / count / align * align
}

fn place_vcpus(config: &VmConfig, caps: &HostCaps) -> Result<Vec<VcpuLayout>, LayoutError> {
    if config.cpus.boot > caps.max_vcpus {
        return Err(LayoutError::Vcpus { asked: config.cpus.boot, max: caps.max_vcpus });
    }
    let vcpus = (0..config.cpus.max).map(|index| {
        let apic_id = config.cpus.topology.apic_id(index);
        if apic_id >= caps.max_apic_id {
            return Err(LayoutError::ApicId { vcpu: index, apic_id, limit: caps.max_apic_id });
        }
        Ok(VcpuLayout { index, apic_id, present: index < config.cpus.boot })
    });
    vcpus.collect()
}

/// Devices that name a slot get it; the others the next free one of their segment, in order. BARs
/// follow one another in each segment's upper window.
fn place_devices(
    configs: &[DeviceConfig],
    segments: &[SegmentLayout],
) -> Result<Vec<DeviceLayout>, LayoutError> {
    let mut taken: BTreeSet<(u16, u8)> = BTreeSet::new();
    // Slot 0 of every segment is the host bridge.
    taken.extend(segments.iter().map(|segment| (segment.number, 0)));
    for config in configs {
        if let Some(slot) = config.place().slot
            && !taken.insert((config.place().segment, slot))
        {
            return Err(LayoutError::SlotTaken {
                id: config.id().into(),
                segment: config.place().segment,
                slot,
            });
        }
    }
    let mut next_bar: BTreeMap<u16, u64> =
        segments.iter().map(|segment| (segment.number, segment.mmio64.base)).collect();
    let mut devices = Vec::with_capacity(configs.len());
    for config in configs {
        let id = config.id();
        let number = config.place().segment;
        let full = || LayoutError::SegmentFull { id: id.into(), segment: number };
        let segment = segments.iter().find(|segment| segment.number == number).ok_or_else(full)?;
        let slot = match config.place().slot {
            Some(slot) => slot,
            None => {
                let free = (1..32).find(|slot| !taken.contains(&(number, *slot))).ok_or_else(full)?;
                taken.insert((number, free));
                free
            }
        };
        let queue_sizes = config.queue_sizes();
        let size = super::bar_size(queue_sizes.len());
        let next = next_bar.get_mut(&number).ok_or_else(full)?;
        let bar = next.checked_next_multiple_of(size).ok_or_else(full)?;
        let end = bar.checked_add(size).ok_or_else(full)?;
        if end > segment.mmio64.base + segment.mmio64.size {
            return Err(full());
        }
        *next = end;
        devices.push(DeviceLayout {
            id: id.to_owned(),
            kind: config.kind(),
            bdf: Bdf::new(number, 0, slot, 0).ok_or_else(full)?,
            bar,
            queue_sizes,
        });
    }
    Ok(devices)
}
