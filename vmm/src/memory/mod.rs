//! Guest memory: how each zone is backed by host memory, and where it lies in the guest.
//!
//! A [`Backing`] is one zone's host memory; the layout says which part of it is where. What is
//! absent: the guest's wiring (`address-manager` sets the slots) and where content comes from at a
//! restore (`paging`, to come).

mod backing;
mod mapping;

use std::{collections::BTreeMap, sync::Arc};

use address_manager::{Owner, Slot, SlotFlags, SlotRole, Wired};
use vm_memory::MmapRegion;

pub use self::backing::{Backing, BackingError};
use crate::{config::MemoryZoneConfig, layout::RamLayout};

/// The host memory of all zones, by zone id.
#[derive(Debug, Default)]
pub struct GuestMemory {
    zones: BTreeMap<String, Arc<MmapRegion>>,
}

impl GuestMemory {
    /// Maps the memory of every zone.
    ///
    /// # Errors
    /// The host refuses; the error names the zone, the size and the cause.
    pub fn map(zones: &[MemoryZoneConfig]) -> Result<Self, BackingError> {
        let mapped = zones.iter().map(|zone| Ok((zone.id.clone(), Backing::of(zone).map()?)));
        Ok(Self { zones: mapped.collect::<Result<_, BackingError>>()? })
    }

    /// The slots that show this memory where `layout` says.
    ///
    /// # Panics
    /// The layout names a zone that is not there: the two come out of one configuration.
    pub fn wired(&self, layout: &[RamLayout]) -> Wired {
        let slots = layout.iter().map(|ram| {
            let mapping = self.zones.get(&ram.zone).expect("the layout was checked against the zones");
            Slot {
                base: ram.base,
                size: ram.size,
                mapping: Arc::clone(mapping),
                offset: ram.zone_offset,
                flags: SlotFlags::empty(),
                role: SlotRole::Ram,
                owner: Owner::new(&ram.zone),
            }
        });
        Wired { slots: slots.collect(), ..Wired::default() }
    }
}
