//! What of a machine's memory may have changed since a snapshot.
//!
//! There are four ways to find out, and for each zone the cheapest that is right is taken. Writes that were
//! tracked since that very snapshot are known ([`Tracker`]). Of a zone that was mapped from it, pages that were
//! written are the process's own, and the others are still the file's. Of one that is paged in from it, what has
//! not come in has not changed. In all other cases everything that may differ from it is looked at. Whatever the
//! way, a page is only stored if it differs from what the snapshot has.

#[cfg(test)]
mod tests;
mod track;

use std::{collections::BTreeMap, fmt, ops::Range};

use vm_memory::MmapRegion;
use vm_migration::snapshot::{PAGE_SIZE, PageRuns, SavedMemory};

pub use self::track::{TrackError, Tracker};
use super::{
    GuestMemory,
    content::{ContentError, MemoryMode, Rest, RestorePlan, ZonePages},
    pagemap::{Pagemap, Pages},
};

/// How it was found out what changed in a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Writes were tracked since the other snapshot.
    Tracked,
    /// The zone was mapped from it: what was written since are pages of its own.
    Mapped,
    /// The zone is paged in from it: what has not come in was left out, the rest compared.
    Paged,
    /// All that was touched was compared with it.
    Compared,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tracked => "tracked",
            Self::Mapped => "mapped",
            Self::Paged => "paged",
            Self::Compared => "compared",
        })
    }
}

/// How it was found out for one zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneWay {
    /// The zone.
    pub zone: String,
    /// How.
    pub way: Way,
}

/// The snapshot that a machine came out of.
#[derive(Debug)]
pub struct Origin {
    /// Its checksum over all.
    root: u32,
    modes: BTreeMap<String, MemoryMode>,
}

impl Origin {
    /// The snapshot with that checksum over all, restored so.
    pub fn new(root: u32, plan: &RestorePlan) -> Self {
        let modes = plan.zones.iter().map(|zone| (zone.zone.clone(), zone.mode));
        Self { root, modes: modes.collect() }
    }

    fn mode(&self, root: u32, zone: &str) -> Option<MemoryMode> {
        self.modes.get(zone).copied().filter(|_| self.root == root)
    }

    /// Whether it is the snapshot with that checksum.
    pub fn is(&self, root: u32) -> bool {
        self.root == root
    }
}

impl GuestMemory {
    /// All that may not be zero of the zones that `table` keeps.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn pages(&self, kept: &[&str]) -> Result<Vec<ZonePages>, ContentError> {
        let zones = self.zones().into_iter().filter(|(zone, _)| kept.contains(&zone.as_str()));
        let pages = zones.map(|(zone, mapping)| {
            let parts = self.touched(&zone, &mapping).map_err(failed(&zone))?;
            Ok(ZonePages { zone, mapping, parts, rest: Rest::Zero })
        });
        pages.collect()
    }

    /// All that may differ from `saved`, the snapshot with that checksum over all, of the zones that it has;
    /// and how that was found out. What is being tracked has been collected.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn changes(
        &self,
        root: u32,
        saved: &SavedMemory,
    ) -> Result<(Vec<ZonePages>, Vec<ZoneWay>), ContentError> {
        let (mut changes, mut ways) = (Vec::new(), Vec::new());
        for (zone, mapping) in self.zones() {
            if saved.chunks_of(&zone).is_empty() {
                continue;
            }
            let (way, parts, rest) = self.changed(root, &zone, &mapping).map_err(failed(&zone))?;
            ways.push(ZoneWay { zone: zone.clone(), way });
            changes.push(ZonePages { zone, mapping, parts, rest });
        }
        Ok((changes, ways))
    }

    fn changed(
        &self,
        root: u32,
        zone: &str,
        mapping: &MmapRegion,
    ) -> std::io::Result<(Way, Vec<Range<u64>>, Rest)> {
        if let Some(changed) = self.tracker.as_ref().and_then(|tracker| tracker.since(root, zone)) {
            return Ok((Way::Tracked, bytes(&changed), Rest::Unwritten));
        }
        match self.origin.as_ref().and_then(|origin| origin.mode(root, zone)) {
            Some(MemoryMode::Cow) => {
                let own = own(mapping)?;
                match self.placed.get(zone) {
                    None => Ok((Way::Mapped, bytes(&own), Rest::Unwritten)),
                    Some(placed) => {
                        let all = PageRuns::from_ranges(own.iter().chain(placed.iter().map(pages_of)));
                        Ok((Way::Mapped, bytes(&all), Rest::Unchanged))
                    }
                }
            }
            Some(MemoryMode::OnDemand) if let Some(pager) = self.pager() => {
                Ok((Way::Paged, pager.brought_of(mapping), Rest::Unchanged))
            }
            _ => Ok((Way::Compared, self.touched(zone, mapping)?, Rest::Zero)),
        }
    }
}

fn failed(zone: &str) -> impl FnOnce(std::io::Error) -> ContentError {
    move |source| ContentError::Scan { zone: zone.to_owned(), source }
}

/// Pages that are the process's own: everything that was written, where the mapping is private.
fn own(mapping: &MmapRegion) -> std::io::Result<PageRuns> {
    Pagemap::open()?.present(mapping, 0..mapping.size() as u64).map(owned)
}

/// Those of some pages that are the process's own.
fn owned(pages: Vec<Pages>) -> PageRuns {
    let own = pages.into_iter().filter(|pages| pages.own);
    PageRuns::from_ranges(own.map(|pages| pages_of(&pages.range)))
}

fn pages_of(bytes: &Range<u64>) -> Range<u64> {
    bytes.start / PAGE_SIZE..bytes.end.div_ceil(PAGE_SIZE)
}

fn bytes(pages: &PageRuns) -> Vec<Range<u64>> {
    pages.iter().map(|run| run.start.saturating_mul(PAGE_SIZE)..run.end.saturating_mul(PAGE_SIZE)).collect()
}
