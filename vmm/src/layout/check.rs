//! Whether a saved layout can be taken over: it comes from a file or a peer, and is hostile.

use std::collections::BTreeSet;

use arch::x86_64::layout as map;
use thiserror::Error;

use super::{DeviceLayout, HostCaps, HotplugLayout, Layout, RangeLayout, allocate::HOTPLUG_ALIGNMENT};
use crate::config::{ConsoleTarget, DeviceConfig, PMEM_ALIGNMENT, VmConfig};

/// A layout that cannot be.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LayoutError {
    /// Memory or a window does not fit the address space.
    #[error("memory layout")]
    Map(#[from] map::LayoutError),
    /// More memory than the guest can address.
    #[error("memory: {size} bytes do not fit {phys_bits} physical address bits")]
    Memory {
        /// Size of all memory.
        size: u64,
        /// Bits of the guest's addresses.
        phys_bits: u8,
    },
    /// A segment's share of a device window is nothing.
    #[error("PCI segment {segment}, of {segments}: its aperture weights leave it no device window")]
    Windows {
        /// The segment.
        segment: u16,
        /// Number of segments.
        segments: u16,
    },
    /// More vCPUs than the hypervisor gives.
    #[error("cpus: {asked} vCPUs, this hypervisor gives a VM at most {max}")]
    Vcpus {
        /// What was asked for.
        asked: u32,
        /// What there is.
        max: u32,
    },
    /// An APIC id beyond the hypervisor's limit.
    #[error("cpus: vCPU {vcpu} has APIC id {apic_id} in this topology, this hypervisor's limit is {limit}")]
    ApicId {
        /// Which vCPU.
        vcpu: u32,
        /// Its APIC id.
        apic_id: u32,
        /// The limit.
        limit: u32,
    },
    /// A slot is asked for twice.
    #[error("{id}: PCI slot {slot} of segment {segment} is taken")]
    SlotTaken {
        /// Which device.
        id: String,
        /// The segment.
        segment: u16,
        /// The slot.
        slot: u8,
    },
    /// No slot, or no room for the BAR, is left.
    #[error("{id}: no place is left in PCI segment {segment}")]
    SegmentFull {
        /// Which device.
        id: String,
        /// The segment.
        segment: u16,
    },
    /// A saved layout and the configuration are of different machines.
    #[error("saved layout: {what}")]
    Mismatch {
        /// Where they differ.
        what: String,
    },
}

impl Layout {
    /// Checks a saved layout against a configuration and this host.
    ///
    /// # Errors
    /// It is of another machine, contradicts itself, or needs more than this host has.
    pub fn check(&self, config: &VmConfig, caps: &HostCaps) -> Result<(), LayoutError> {
        let mismatch = |what: String| Err(LayoutError::Mismatch { what });
        if self.phys_bits > caps.phys_bits {
            return mismatch(format!(
                "{} physical address bits, the host has {}",
                self.phys_bits, caps.phys_bits
            ));
        }
        let present = self.vcpus.iter().filter(|vcpu| vcpu.present).count();
        if self.vcpus.len() != usize::try_from(config.cpus.max).unwrap_or(usize::MAX)
            || present != usize::try_from(config.cpus.boot).unwrap_or(usize::MAX)
        {
            let (boot, max) = (config.cpus.boot, config.cpus.max);
            return mismatch(format!("{present} of {} vCPUs, configured {boot} of {max}", self.vcpus.len()));
        }
        let apic_ids: BTreeSet<u32> = self.vcpus.iter().map(|vcpu| vcpu.apic_id).collect();
        if apic_ids.len() != self.vcpus.len() || apic_ids.iter().any(|id| *id >= caps.max_apic_id) {
            return mismatch("APIC ids are not unique, or beyond the hypervisor's limit".into());
        }
        self.check_ram(config)?;
        if let Some(at) = self.generation_id
            && self.in_ram(at, map::GENERATION_ID_SIZE).is_none()
        {
            return mismatch(format!("the generation id at {at:#x} is not in memory"));
        }
        if let Some(RangeLayout { base, size }) = self.flash
            && !map::flash(size).is_ok_and(|flash| (flash.start, flash.size) == (base, size))
        {
            return mismatch(format!("firmware at {base:#x}+{size:#x}"));
        }
        let serial = config.serial != ConsoleTarget::Off;
        if self.serial != serial {
            let whether = |there: bool| if there { "a serial port" } else { "no serial port" };
            return mismatch(format!("{}, configured {}", whether(self.serial), whether(serial)));
        }
        self.check_hotplug(config)?;
        self.check_devices(config)
    }

    fn check_ram(&self, config: &VmConfig) -> Result<(), LayoutError> {
        let mismatch = |what: String| Err(LayoutError::Mismatch { what });
        for part in &self.ram {
            let zone = config.memory.iter().find(|zone| zone.id == part.zone);
            let fits = zone.is_some_and(|zone| {
                part.zone_offset.checked_add(part.size).is_some_and(|end| end <= zone.size)
            });
            let limit = 1u64.checked_shl(u32::from(self.phys_bits)).unwrap_or(u64::MAX);
            let addressable = part.base.checked_add(part.size).is_some_and(|end| end <= limit);
            if !fits || !addressable || part.size == 0 {
                let (base, size, zone) = (part.base, part.size, &part.zone);
                return mismatch(format!("memory {base:#x}+{size:#x} is not in zone {zone}"));
            }
        }
        let total = self.ram.iter().fold(0u64, |sum, part| sum.saturating_add(part.size));
        if total != config.memory_size() {
            return mismatch(format!("{total} bytes of memory, configured {}", config.memory_size()));
        }
        Ok(())
    }

    fn check_hotplug(&self, config: &VmConfig) -> Result<(), LayoutError> {
        let mismatch = |what: String| Err(LayoutError::Mismatch { what });
        let wanted = config.memory.iter().filter(|zone| zone.hotplug_size > 0);
        let wanted: Vec<(&str, u64)> = wanted.map(|zone| (zone.id.as_str(), zone.hotplug_size)).collect();
        let kept: Vec<(&str, u64)> =
            self.hotplug.iter().map(|range| (range.zone.as_str(), range.size)).collect();
        if kept != wanted {
            return mismatch(format!("memory may be added to {kept:?}, configured {wanted:?}"));
        }
        let limit = 1u64.checked_shl(u32::from(self.phys_bits)).unwrap_or(u64::MAX);
        // Above all RAM and one after the other.
        let mut free = self.ram.iter().map(|part| part.base.saturating_add(part.size)).max().unwrap_or(0);
        for HotplugLayout { zone, base, size } in &self.hotplug {
            match base.checked_add(*size) {
                Some(end) if *base >= free && end <= limit && base.is_multiple_of(HOTPLUG_ALIGNMENT) => {
                    free = end;
                }
                _ => return mismatch(format!("memory of zone {zone} may be added at {base:#x}+{size:#x}")),
            }
        }
        Ok(())
    }

    fn check_devices(&self, config: &VmConfig) -> Result<(), LayoutError> {
        let mismatch = |what: String| Err(LayoutError::Mismatch { what });
        if self.segments.len() != usize::from(config.pci_segments) {
            return mismatch(format!(
                "{} PCI segments, configured {}",
                self.segments.len(),
                config.pci_segments
            ));
        }
        for (device, wanted) in self.devices.iter().zip(&config.devices) {
            if device.id != wanted.id() || device.kind != wanted.kind() {
                return mismatch(format!("device {} where {} is configured", device.id, wanted.id()));
            }
            if device.queue_sizes != wanted.queue_sizes() {
                return mismatch(format!("{}: other virtqueues than configured", device.id));
            }
            let size = super::bar_size(device.queue_sizes.len());
            if !device.bar.is_multiple_of(size) {
                return mismatch(format!("{}: BAR at {:#x}", device.id, device.bar));
            }
            self.check_window(device, wanted)?;
        }
        if self.devices.len() != config.devices.len() {
            return mismatch(format!("{} devices, configured {}", self.devices.len(), config.devices.len()));
        }
        let places: BTreeSet<_> = self.devices.iter().map(|device| device.bdf).collect();
        if places.len() != self.devices.len() {
            return mismatch("two devices have one PCI address".into());
        }
        Ok(())
    }

    /// The memory that a device shows: there where its kind has some, as large as is configured, in the upper window of
    /// its segment. That nothing else is there is found out when it is staged.
    fn check_window(&self, device: &DeviceLayout, wanted: &DeviceConfig) -> Result<(), LayoutError> {
        let mismatch = |what: String| Err(LayoutError::Mismatch { what });
        let id = &device.id;
        let asked = match wanted {
            DeviceConfig::Pmem(pmem) => pmem.size,
            _ if device.window.is_none() => return Ok(()),
            _ => return mismatch(format!("{id}: memory that no device of its kind has")),
        };
        let Some(RangeLayout { base, size }) = device.window else {
            return mismatch(format!("{id}: its memory has no place"));
        };
        if let Some(asked) = asked.filter(|asked| *asked != size) {
            return mismatch(format!("{id}: {size} bytes of memory, configured {asked}"));
        }
        let segment = self.segments.iter().find(|segment| segment.number == device.bdf.segment());
        let within = |range: RangeLayout| {
            let last = range.base.saturating_add(range.size);
            base >= range.base && base.checked_add(size).is_some_and(|end| end <= last)
        };
        let is_whole = size > 0 && size.is_multiple_of(PMEM_ALIGNMENT) && base.is_multiple_of(PMEM_ALIGNMENT);
        if !is_whole || !segment.is_some_and(|segment| within(segment.mmio64)) {
            return mismatch(format!("{id}: memory at {base:#x}+{size:#x}"));
        }
        Ok(())
    }
}
