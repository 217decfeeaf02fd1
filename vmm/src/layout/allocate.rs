//! A layout out of a configuration: what goes where at a cold boot.

use std::collections::{BTreeMap, BTreeSet};

use arch::x86_64::layout::{self as map, Range};
use devices::pci::Bdf;

use super::{
    DeviceLayout, HotplugLayout, Layout, LayoutError, RamLayout, RangeLayout, SegmentLayout, VcpuLayout,
};
use crate::config::{DeviceConfig, PMEM_ALIGNMENT, SegmentWeights, VmConfig};

/// Where memory that is added begins is a multiple of this: guests add memory in blocks, of 128 MiB and more.
pub(super) const HOTPLUG_ALIGNMENT: u64 = 1 << 30;

/// What the windows of a segment are multiples of, below 4 GiB and above RAM.
const MMIO32_ALIGNMENT: u64 = 1 << 20;
const MMIO64_ALIGNMENT: u64 = 1 << 32;

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
    /// Allocates a layout for a machine that has none. `flash` is where its firmware's image says it has to be; `windows`
    /// has the sizes of the memory that devices show, by their ids.
    ///
    /// # Errors
    /// Something does not fit: memory, devices in their slots, BARs in their window, vCPUs.
    pub fn allocate(
        config: &VmConfig,
        caps: &HostCaps,
        flash: Option<Range>,
        windows: &BTreeMap<String, u64>,
    ) -> Result<Self, LayoutError> {
        let phys_bits = config.cpus.max_phys_bits.min(caps.phys_bits);
        let ram = place_ram(config)?;
        let ram_end = ram.iter().map(|part| part.base + part.size).max().unwrap_or(0).max(map::HOLE_END);
        let limit = 1u64.checked_shl(u32::from(phys_bits)).unwrap_or(u64::MAX);
        let too_large = || {
            let sizes = config.memory.iter().flat_map(|zone| [zone.size, zone.hotplug_size]);
            LayoutError::Memory { size: sizes.fold(0, u64::saturating_add), phys_bits }
        };
        let (hotplug, ram_end) = place_hotplug(config, ram_end).ok_or_else(too_large)?;
        if ram_end > limit {
            return Err(too_large());
        }
        let segments = place_segments(config, ram_end, phys_bits)?;
        let devices = place_devices(&config.devices, windows, &segments)?;
        let mut layout = Self {
            phys_bits,
            ram,
            hotplug,
            vcpus: place_vcpus(config, caps)?,
            segments,
            devices,
            debug_exit: config.debug_exit,
            serial: config.serial != crate::config::ConsoleTarget::Off,
            pvpanic: config.pvpanic,
            generation_id: None,
            flash: flash.map(|Range { start: base, size }| RangeLayout { base, size }),
        };
        let generation_id = map::GENERATION_ID_START;
        layout.generation_id =
            layout.in_ram(generation_id, map::GENERATION_ID_SIZE).is_some().then_some(generation_id);
        Ok(layout)
    }
}

/// Zones one after the other, around the hole below 4 GiB.
fn place_ram(config: &VmConfig) -> Result<Vec<RamLayout>, LayoutError> {
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
    Ok(ram)
}

/// What may be added to each zone, above all RAM; and the end of that. `None` if there are no such addresses.
fn place_hotplug(config: &VmConfig, ram_end: u64) -> Option<(Vec<HotplugLayout>, u64)> {
    let mut hotplug = Vec::new();
    let mut end = ram_end;
    for zone in config.memory.iter().filter(|zone| zone.hotplug_size > 0) {
        let base = end.checked_next_multiple_of(HOTPLUG_ALIGNMENT)?;
        end = base.checked_add(zone.hotplug_size)?;
        hotplug.push(HotplugLayout { zone: zone.id.clone(), base, size: zone.hotplug_size });
    }
    Some((hotplug, end))
}

/// Each segment gets its weight's share of the two device windows, one after the other.
fn place_segments(config: &VmConfig, ram_end: u64, phys_bits: u8) -> Result<Vec<SegmentLayout>, LayoutError> {
    let count = config.pci_segments;
    let weights: Vec<SegmentWeights> = (0..usize::from(count))
        .map(|number| config.segment_weights.get(number).copied().unwrap_or_default())
        .collect();
    let (low_weights, high_weights): (Vec<u32>, Vec<u32>) =
        weights.iter().map(|weights| (weights.mmio32, weights.mmio64)).unzip();
    let window = map::pci64_window(ram_end, phys_bits)?;
    let low = share(map::PCI32_START, map::PCI32_SIZE, &low_weights, MMIO32_ALIGNMENT);
    let high = share(window.start, window.size, &high_weights, MMIO64_ALIGNMENT);
    if let Some((number, _)) =
        (0..count).zip(low.iter().zip(&high)).find(|(_, (low, high))| low.size.min(high.size) == 0)
    {
        return Err(LayoutError::Windows { segment: number, segments: count });
    }
    let segments = (0..count).zip(low.into_iter().zip(high)).map(|(number, (mmio32, mmio64))| {
        let ecam = map::ecam(number)?;
        let ecam = RangeLayout { base: ecam.start, size: ecam.size };
        Ok(SegmentLayout { number, ecam, mmio32, mmio64 })
    });
    segments.collect()
}

/// `size` bytes from `base` on, dealt out by weight in multiples of `align`.
fn share(base: u64, size: u64, weights: &[u32], align: u64) -> Vec<RangeLayout> {
    let sum: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    let mut next = base;
    let ranges = weights.iter().map(|weight| {
        // At most `size`, so it fits again.
        let exact = (u128::from(size) * u128::from(*weight)).checked_div(sum).unwrap_or(0);
        let size = u64::try_from(exact).unwrap_or(0) / align * align;
        let range = RangeLayout { base: next, size };
        next += size;
        range
    });
    ranges.collect()
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
/// follow one another in each segment's upper window, and the memory that devices show comes behind them.
fn place_devices(
    configs: &[DeviceConfig],
    windows: &BTreeMap<String, u64>,
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
    let mut next_free: BTreeMap<u16, u64> =
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
        let next = next_free.get_mut(&number).ok_or_else(full)?;
        let bar = take(next, size, size, segment).ok_or_else(full)?;
        devices.push(DeviceLayout {
            id: id.to_owned(),
            kind: config.kind(),
            bdf: Bdf::new(number, 0, slot, 0).ok_or_else(full)?,
            bar,
            queue_sizes,
            window: None,
        });
    }
    for device in &mut devices {
        let Some(size) = windows.get(&device.id).copied() else { continue };
        let number = device.bdf.segment();
        let full = || LayoutError::SegmentFull { id: device.id.clone(), segment: number };
        let segment = segments.iter().find(|segment| segment.number == number).ok_or_else(full)?;
        let next = next_free.get_mut(&number).ok_or_else(full)?;
        let base = take(next, size, PMEM_ALIGNMENT, segment).ok_or_else(full)?;
        device.window = Some(RangeLayout { base, size });
    }
    Ok(devices)
}

/// The next `size` bytes of a segment's upper window, from a multiple of `align` on; `None` if there are not so many.
fn take(next: &mut u64, size: u64, align: u64, segment: &SegmentLayout) -> Option<u64> {
    let base = next.checked_next_multiple_of(align)?;
    let end = base.checked_add(size)?;
    if end > segment.mmio64.base + segment.mmio64.size {
        return None;
    }
    *next = end;
    Some(base)
}
