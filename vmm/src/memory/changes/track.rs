//! Writes to guest memory, noted by the kernel.
//!
//! A page that is protected (userfaultfd in its asynchronous mode, Linux 6.7) loses its protection when anybody
//! writes to it through this process: the guest, whose pages KVM takes from there, a device, or the kernel for
//! one; nobody waits. [`Tracker::collect`] asks which have lost it, and protects them again. Memory that is shared
//! with other processes cannot be tracked so: what they write has nothing to do with this process.
//!
//! What is thrown away (`MADV_DONTNEED`) is not written, and yet changes: so what was there is held against what
//! is there.

use std::{collections::BTreeMap, io, sync::Arc};

use thiserror::Error;
use vm_memory::MmapRegion;
use vm_migration::snapshot::PageRuns;

use super::{own, owned};
use crate::{
    config::MemoryZoneConfig,
    memory::{demand::uffd::Userfaultfd, pagemap::Pagemap},
};

/// Writes cannot be tracked.
#[derive(Debug, Error)]
pub enum TrackError {
    /// The zone is of a kind that cannot be.
    #[error("writes to memory zone {zone} cannot be tracked: it {why}")]
    Zone {
        /// Which zone.
        zone: String,
        /// Why not.
        why: &'static str,
    },
    /// The host cannot.
    #[error("writes to guest memory cannot be tracked by this host: that needs Linux 6.7 and userfaultfd")]
    Host(#[source] io::Error),
    /// The kernel does not take the zone's memory.
    #[error("writes to memory zone {zone} cannot be tracked")]
    Memory {
        /// Which zone.
        zone: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What is noted of one zone.
#[derive(Debug)]
struct Zone {
    mapping: Arc<MmapRegion>,
    /// Pages that were there when it was last looked at.
    there: PageRuns,
    /// Pages that may have changed since the snapshot that all is held against.
    changed: PageRuns,
}

/// Notes writes, from one snapshot to the next. Dropped, it lets the memory be as it was.
#[derive(Debug)]
pub struct Tracker {
    _uffd: Userfaultfd,
    zones: BTreeMap<String, Zone>,
    /// Checksum over all of the snapshot since which writes are known.
    since: Option<u32>,
}

impl Tracker {
    /// Begins to track writes to those zones. The guest and its devices stand still.
    ///
    /// # Errors
    /// The host cannot do it, or a zone is of a kind that cannot be tracked.
    pub fn start(zones: Vec<(&MemoryZoneConfig, Arc<MmapRegion>)>) -> Result<Self, TrackError> {
        for (zone, _) in &zones {
            if let Some(why) = against(zone) {
                return Err(TrackError::Zone { zone: zone.id.clone(), why });
            }
        }
        let uffd = Userfaultfd::open_to_track().map_err(TrackError::Host)?;
        let zones = zones.into_iter().map(|(zone, mapping)| {
            let registered = uffd.register_to_track(mapping.as_ptr() as u64, mapping.size() as u64);
            registered.map_err(|source| TrackError::Memory { zone: zone.id.clone(), source })?;
            Ok((zone.id.clone(), Zone { mapping, there: PageRuns::default(), changed: PageRuns::default() }))
        });
        let zones = zones.collect::<Result<_, TrackError>>()?;
        let mut tracker = Self { _uffd: uffd, zones, since: None };
        tracker.collect()?;
        Ok(tracker)
    }

    /// Finds what was written since the last time, adds it to what is known, and begins anew. The guest and its
    /// devices stand still.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn collect(&mut self) -> Result<(), TrackError> {
        let pagemap = Pagemap::open().map_err(TrackError::Host)?;
        for (zone, noted) in &mut self.zones {
            let failed = |source| TrackError::Memory { zone: zone.clone(), source };
            // What is only read of a file is not the process's own, and has not changed.
            let written = owned(pagemap.take_written(&noted.mapping).map_err(failed)?);
            let there = own(&noted.mapping).map_err(failed)?;
            let gone = noted.there.without(&there);
            // Of a mapped file the kernel remembers a page that was protected and thrown away, and shows it as swapped
            // out; which of the two it is does not show.
            let doubtful = match noted.mapping.file_offset() {
                Some(_) => owned(pagemap.swapped(&noted.mapping).map_err(failed)?),
                None => PageRuns::default(),
            };
            let parts = [&noted.changed, &written, &gone, &doubtful];
            let all = parts.into_iter().flat_map(PageRuns::iter);
            noted.changed = PageRuns::from_ranges(all);
            noted.there = there;
        }
        Ok(())
    }

    /// Holds all from now on against the snapshot with that checksum: it has what was last collected.
    pub fn begin_at(&mut self, root: u32) {
        self.since = Some(root);
        self.zones.values_mut().for_each(|zone| zone.changed = PageRuns::default());
    }

    /// What may have changed of a zone since that snapshot; `None` if that is not known.
    pub fn since(&self, root: u32, zone: &str) -> Option<PageRuns> {
        self.zones.get(zone).filter(|_| self.since == Some(root)).map(|zone| zone.changed.clone())
    }
}

/// What speaks against tracking a zone.
fn against(zone: &MemoryZoneConfig) -> Option<&'static str> {
    if zone.shared {
        Some("is shared, and what other processes write is not seen")
    } else if zone.hugepage_size.is_some() {
        Some("is backed by huge pages")
    } else {
        None
    }
}
