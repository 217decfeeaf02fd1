//! Guest memory: how each zone is backed by host memory, and where it lies in the guest.
//!
//! A [`Backing`] is one zone's host memory; the layout says which part of it is where. What is
//! absent: the guest's wiring (`address-manager` sets the slots). Where content comes from at a restore,
//! and how it gets into a snapshot, is [`content`].

mod backing;
pub mod content;
pub mod demand;
mod mapping;
mod pagemap;

use std::{collections::BTreeMap, sync::Arc};

use address_manager::{Owner, Slot, SlotFlags, SlotRole, Wired};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};
use vm_migration::snapshot::SavedMemory;

pub use self::backing::{Backing, BackingError};
use self::{
    content::{ContentError, MemoryMode, RestorePlan},
    demand::{OnFailure, Pager, Source},
};
use crate::{config::MemoryZoneConfig, layout::RamLayout};

/// The host memory of all zones, by zone id.
#[derive(Debug, Default)]
pub struct GuestMemory {
    zones: BTreeMap<String, Arc<MmapRegion>>,
    /// Brings in what is missing, if anything can be.
    pager: Option<Pager>,
}

impl GuestMemory {
    /// Maps the memory of every zone.
    ///
    /// # Errors
    /// The host refuses; the error names the zone, the size and the cause.
    pub fn map(zones: &[MemoryZoneConfig]) -> Result<Self, BackingError> {
        let mapped = zones.iter().map(|zone| Ok((zone.id.clone(), Backing::of(zone).map()?)));
        Ok(Self { zones: mapped.collect::<Result<_, BackingError>>()?, pager: None })
    }

    /// Maps the memory of every zone of a restored machine as `plan` says; what is to be read is not read
    /// yet.
    ///
    /// # Errors
    /// The host refuses; the error names the zone, the size and the cause.
    pub fn map_restored(
        zones: &[MemoryZoneConfig],
        plan: &RestorePlan,
        saved: &SavedMemory,
    ) -> Result<Self, BackingError> {
        let mapped = zones.iter().map(|zone| {
            let backing = Backing::of(zone);
            let offset = saved.table().zone(&zone.id).and_then(|content| content.offset);
            let mapping = match (plan.mode(&zone.id), offset) {
                (Some(MemoryMode::Cow), Some(offset)) => {
                    backing.map_over(FileOffset::from_arc(Arc::clone(saved.file()), offset))?
                }
                (Some(MemoryMode::Kept), _) => backing.map()?,
                _ => backing.map_fresh()?,
            };
            Ok((zone.id.clone(), mapping))
        });
        Ok(Self { zones: mapped.collect::<Result<_, BackingError>>()?, pager: None })
    }

    /// Has the zones that `plan` pages in brought in as they are touched. Nothing of them has been.
    ///
    /// # Errors
    /// The host has no userfaultfd that this process may use.
    pub fn page_in(
        &mut self,
        plan: &RestorePlan,
        source: Source,
        on_failure: OnFailure,
    ) -> Result<(), BackingError> {
        let zones: Vec<_> = self
            .zones
            .iter()
            .filter(|(zone, _)| plan.mode(zone) == Some(MemoryMode::OnDemand))
            .filter_map(|(zone, mapping)| {
                Some((Arc::clone(mapping), source.saved.table().zone(zone)?.offset?))
            })
            .collect();
        if !zones.is_empty() {
            self.pager = Some(Pager::start(zones, source, on_failure).map_err(BackingError::Pager)?);
        }
        Ok(())
    }

    /// What brings in missing pages, if some may be missing.
    pub fn pager(&self) -> Option<&Pager> {
        self.pager.as_ref()
    }

    /// Writes into a zone. What is missing there is brought in first: that can fail, where a touch would wait.
    ///
    /// # Errors
    /// There is no such place, or what is missing cannot be brought in.
    pub fn write(&self, zone: &str, offset: u64, bytes: &[u8]) -> Result<(), ContentError> {
        let outside = || ContentError::Zone {
            zone: zone.to_owned(),
            why: format!("has no {} bytes at {offset:#x}", bytes.len()),
        };
        let mapping = self.zones.get(zone).ok_or_else(outside)?;
        let at = usize::try_from(offset).map_err(|_| outside())?;
        let slice = mapping.get_slice(at, bytes.len()).map_err(|_| outside())?;
        if let Some(pager) = &self.pager {
            pager.bring_in(mapping, offset, bytes.len() as u64)?;
        }
        slice.copy_from(bytes);
        Ok(())
    }

    /// The zones and their memory, in the order of their ids.
    pub fn zones(&self) -> Vec<(String, Arc<MmapRegion>)> {
        self.zones.iter().map(|(zone, mapping)| (zone.clone(), Arc::clone(mapping))).collect()
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
