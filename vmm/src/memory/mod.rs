//! Guest memory: how each zone is backed by host memory, and where it lies in the guest.
//!
//! A [`Backing`] is one zone's host memory; the layout says which part of it is where. What is
//! absent: the guest's wiring (`address-manager` sets the slots). Where content comes from at a restore,
//! and how it gets into a snapshot, is [`content`]; what of it is brought in before it is touched, [`ahead`]; what is
//! done for it while the guest runs, [`background`].

pub mod ahead;
pub mod background;
mod backing;
pub mod changes;
pub mod content;
pub mod demand;
mod error;
mod mapping;
mod overlays;
mod own_files;
mod pagemap;
mod persistent;

use std::{collections::BTreeMap, io, ops::Range, sync::Arc};

use address_manager::{Owner, Slot, SlotFlags, SlotRole, Wired};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};
use vm_migration::snapshot::SavedMemory;

use self::{
    ahead::ReadAhead,
    background::{Background, Fill, Ground, MappedZone, Recording, Watch},
    changes::{Origin, TrackError, Tracker},
    content::{ContentError, MemoryMode, RestorePlan, Tally},
    demand::{Building, DemandZone, OnFailure, Pager, Source},
    overlays::Overlays,
};
pub use self::{
    backing::Backing,
    error::BackingError,
    own_files::{Locking, OwnFiles},
    persistent::{Keeping, PersistentMemory},
};
use crate::{config::MemoryZoneConfig, layout::RamLayout};

/// Bytes of the smallest huge page.
const HUGE_PAGE: usize = 2 << 20;

/// The host memory of all zones, by zone id.
#[derive(Debug, Default)]
pub struct GuestMemory {
    zones: BTreeMap<String, Arc<MmapRegion>>,
    /// What zones are mapped from that come out of a snapshot's files.
    mapped: BTreeMap<String, Arc<SavedMemory>>,
    /// Parts of these that were put into place before, offsets in bytes. A zone is there if anything of it was or is
    /// read ahead: pages may be the process's own without having been written.
    placed: BTreeMap<String, Vec<Range<u64>>>,
    /// The snapshot that all came out of.
    origin: Option<Origin>,
    tracker: Option<Tracker>,
    /// Looks after it while the guest runs. Before the pager, which it uses, in the order in which they go.
    background: Option<Background>,
    /// Brings in what is missing, if anything can be.
    pager: Option<Pager>,
}

impl GuestMemory {
    /// Maps the memory of every zone. `tally` is told of a phase `prefault` if something is populated.
    ///
    /// # Errors
    /// The host refuses; the error names the zone, the size and the cause. Or it was given up.
    pub fn map(zones: &[MemoryZoneConfig], tally: &dyn Tally) -> Result<Self, BackingError> {
        begin_prefault(zones, tally);
        let mapped = zones.iter().map(|zone| Ok((zone.id.clone(), Backing::of(zone, tally).map()?)));
        Ok(Self { zones: mapped.collect::<Result<_, BackingError>>()?, ..Self::default() })
    }

    /// Maps the memory of every zone of a restored machine as `plan` says, `files` where zones use their own; what is to
    /// be read is not read yet. Room is made for the blocks of `ahead`. `tally` is told of a phase `prefault` if something is populated.
    ///
    /// # Errors
    /// The host refuses; the error names the zone, the size and the cause. Or it was given up.
    pub fn map_restored(
        zones: &[MemoryZoneConfig],
        plan: &RestorePlan,
        saved: &Arc<SavedMemory>,
        ahead: &ReadAhead,
        files: &mut OwnFiles,
        tally: &dyn Tally,
    ) -> Result<Self, BackingError> {
        begin_prefault(zones, tally);
        let (mut over, mut placed) = (BTreeMap::new(), BTreeMap::new());
        let mapped = zones.iter().map(|zone| {
            let in_blocks = ahead.zone(&zone.id).is_some_and(|ahead| !ahead.blocks.is_empty());
            let backing = Backing::of(zone, tally).in_blocks(in_blocks);
            let offset = saved.table().zone(&zone.id).and_then(|content| content.offset);
            let mapping = match (plan.mode(&zone.id), offset) {
                (Some(MemoryMode::Cow), Some(offset)) => {
                    over.insert(zone.id.clone(), Arc::clone(saved));
                    placed.extend(ahead.zone(&zone.id).map(|ahead| (zone.id.clone(), ahead.placed())));
                    let base = FileOffset::from_arc(Arc::clone(&saved.base().file), offset);
                    backing.map_over(base, &Overlays::of(saved, &zone.id))?
                }
                _ => backing.map_again(files.provide(&zone.id)?)?,
            };
            Ok((zone.id.clone(), mapping))
        });
        let zones = mapped.collect::<Result<_, BackingError>>()?;
        Ok(Self { zones, mapped: over, placed, ..Self::default() })
    }

    /// Puts the blocks of `ahead` into place. Nobody has touched anything yet.
    ///
    /// # Errors
    /// The host gives no memory, or what was saved cannot be read or, with `check`, is damaged.
    pub fn place(
        &self,
        plan: &RestorePlan,
        ahead: &ReadAhead,
        saved: &SavedMemory,
        check: bool,
        tally: &dyn Tally,
    ) -> Result<(), ContentError> {
        for zone in &ahead.zones {
            if let Some(mapping) = self.zones.get(&zone.zone) {
                let over_file = plan.mode(&zone.zone) == Some(MemoryMode::Cow);
                ahead::place(mapping, zone, over_file, saved, check, tally)?;
            }
        }
        Ok(())
    }

    /// Has the zones that `plan` pages in brought in as they are touched. Nothing of them has been, and nothing is there
    /// but the blocks of `ahead`. With `note`, what is touched is noted.
    ///
    /// # Errors
    /// The host has no userfaultfd that this process may use.
    pub fn page_in(
        &mut self,
        plan: &RestorePlan,
        source: Source,
        ahead: &ReadAhead,
        note: bool,
        on_failure: OnFailure,
    ) -> Result<(), BackingError> {
        let zones: Vec<_> = self
            .zones
            .iter()
            .filter(|(zone, _)| plan.mode(zone) == Some(MemoryMode::OnDemand))
            .filter_map(|(zone, mapping)| {
                let offset = source.saved.table().zone(zone)?.offset?;
                let present = ahead.zone(zone).map(ahead::ZoneAhead::placed).unwrap_or_default();
                Some(DemandZone { mapping: Arc::clone(mapping), offset, present })
            })
            .collect();
        if !zones.is_empty() {
            let pager = Pager::start(zones, source, on_failure, note);
            self.pager = Some(pager.map_err(BackingError::Pager)?);
        }
        Ok(())
    }

    /// Has it looked after once the guest runs, where `plan` lets content come in as it is touched: filled, recorded and,
    /// with `check`, chunks of mapped zones checked. Zones that are paged in are, by [`page_in`](Self::page_in).
    ///
    /// # Errors
    /// Chunks are to be checked, and there is no thread or descriptor for it.
    pub fn look_after(
        &mut self,
        plan: &RestorePlan,
        saved: &Arc<SavedMemory>,
        check: bool,
        work: (Fill, ReadAhead, Option<Recording>),
        watch: Watch,
    ) -> Result<(), ContentError> {
        let (fill, ahead, recording) = work;
        let mapped = self.zones.iter().filter(|(zone, _)| plan.mode(zone) == Some(MemoryMode::Cow));
        let mapped: Vec<_> = mapped
            .map(|(zone, mapping)| {
                let known = ahead.zone(zone).map(ahead::ZoneAhead::placed).unwrap_or_default();
                MappedZone::new(zone.clone(), Arc::clone(mapping), saved, &known)
            })
            .collect();
        let filler = self.pager.as_ref().map(Pager::filler);
        if mapped.is_empty() && filler.is_none() {
            return Ok(());
        }
        let saved = Arc::clone(saved);
        let ground = Ground { saved, mapped, filler, check, watch, counters: Arc::default() };
        let background = Background::new(ground, fill, ahead, recording);
        self.background = Some(background.map_err(ContentError::Unchecked)?);
        Ok(())
    }

    /// What looks after it while the guest runs, if anything does.
    pub fn background(&self) -> Option<&Background> {
        self.background.as_ref()
    }

    /// Says what it all came out of: the snapshot with that checksum over all, restored as planned. Pages that the
    /// process has of its own must be such as were written since.
    pub fn came_from(&mut self, root: u32, plan: &RestorePlan) {
        self.origin = Some(Origin::new(root, plan));
    }

    /// Whether it came out of the snapshot with that checksum over all.
    pub fn is_from(&self, root: u32) -> bool {
        self.origin.as_ref().is_some_and(|origin| origin.is(root))
    }

    /// Whether pages that are missing are known to be as in the snapshot with that checksum over all.
    pub fn is_paged_from(&self, root: u32) -> bool {
        self.pager.is_some() && self.is_from(root)
    }

    /// Brings in all that is missing but what is zero, as memory that nobody has touched is.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or somebody asked for it to be given up.
    pub fn fill(&self, tally: &dyn Tally) -> Result<(), ContentError> {
        self.pager.as_ref().map_or(Ok(()), |pager| pager.fill(tally))
    }

    /// Pages nothing in any more: what is missing is zero from now on.
    pub fn end_paging(&mut self) {
        if self.pager.is_some() {
            // It uses the pager.
            self.background = None;
        }
        self.pager = None;
    }

    /// Tracks writes to those zones, of which nothing is missing; or, where they are tracked already, collects
    /// what was written. The machine stands still.
    ///
    /// # Errors
    /// The host cannot do it, or a zone is of a kind that cannot be tracked.
    pub fn track(&mut self, zones: &[&MemoryZoneConfig]) -> Result<(), TrackError> {
        if let Some(tracker) = &mut self.tracker {
            return tracker.collect();
        }
        let memory = zones.iter().filter_map(|zone| Some((*zone, Arc::clone(self.zones.get(&zone.id)?))));
        self.tracker = Some(Tracker::start(memory.collect())?);
        Ok(())
    }

    /// What tracks writes, if something does.
    pub fn tracker(&mut self) -> &mut Option<Tracker> {
        &mut self.tracker
    }

    /// Parts of a zone that may not be zero.
    fn touched(&self, zone: &str, mapping: &MmapRegion) -> io::Result<Vec<Range<u64>>> {
        let above = self.mapped.get(zone).map(|saved| Overlays::of(saved, zone).data()).transpose()?;
        content::touched(mapping, above.unwrap_or_default())
    }

    /// What is to be told that the machine is there, if something brings in missing pages.
    pub fn building(&self) -> Option<Building> {
        self.pager.as_ref().map(Pager::building)
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

fn begin_prefault(zones: &[MemoryZoneConfig], tally: &dyn Tally) {
    let populated = zones.iter().filter(|zone| zone.prefault);
    let bytes = populated.fold(0u64, |sum, zone| sum.saturating_add(zone.size));
    if bytes > 0 {
        tally.phase("prefault", Some(bytes));
    }
}
