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

use super::owned;
use crate::{
    config::MemoryZoneConfig,
    memory::{
        demand::uffd::Userfaultfd,
        pagemap::{Pagemap, Pages},
    },
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

/// What the kernel is asked.
trait Kernel {
    /// See [`Pagemap::take_written`].
    fn take_written(&self, mapping: &MmapRegion, written: &mut Vec<Pages>) -> io::Result<()>;
    /// All pages that are there.
    fn present(&self, mapping: &MmapRegion) -> io::Result<Vec<Pages>>;
    /// See [`Pagemap::swapped`].
    fn swapped(&self, mapping: &MmapRegion) -> io::Result<Vec<Pages>>;
}

impl Kernel for Pagemap {
    fn take_written(&self, mapping: &MmapRegion, written: &mut Vec<Pages>) -> io::Result<()> {
        Self::take_written(self, mapping, written)
    }

    fn present(&self, mapping: &MmapRegion) -> io::Result<Vec<Pages>> {
        Self::present(self, mapping, 0..mapping.size() as u64)
    }

    fn swapped(&self, mapping: &MmapRegion) -> io::Result<Vec<Pages>> {
        Self::swapped(self, mapping)
    }
}

impl Zone {
    /// These may have changed, too.
    fn add(&mut self, pages: &PageRuns) {
        self.changed = PageRuns::from_ranges(self.changed.iter().chain(pages.iter()));
    }
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
        self.collect_from(&pagemap)
    }

    /// Does it. What fails loses nothing: what was found is known the next time, and where that is not sure, nothing is
    /// taken for known.
    fn collect_from(&mut self, kernel: &impl Kernel) -> Result<(), TrackError> {
        for (zone, noted) in &mut self.zones {
            let failed = |source| TrackError::Memory { zone: zone.clone(), source };
            let mut written = Vec::new();
            let taken = kernel.take_written(&noted.mapping, &mut written);
            // These are protected again, and will not be found a second time. What is only read of a file is not the
            // process's own, and has not changed.
            noted.add(&owned(written));
            if let Err(error) = taken {
                // More may be protected than was found.
                self.since = None;
                return Err(failed(error));
            }
            let there = owned(kernel.present(&noted.mapping).map_err(failed)?);
            // Of a mapped file the kernel remembers a page that was protected and thrown away, and shows it as swapped
            // out; which of the two it is does not show.
            if noted.mapping.file_offset().is_some() {
                noted.add(&owned(kernel.swapped(&noted.mapping).map_err(failed)?));
            }
            noted.add(&noted.there.without(&there));
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use vm_memory::VolatileMemory;
    use vm_migration::snapshot::{CHUNK_SIZE, PAGE_SIZE};

    use super::*;
    use crate::memory::content::tests::zone;

    /// The kernel, of which one call fails.
    struct Failing {
        pagemap: Pagemap,
        calls_left: Cell<u32>,
    }

    impl Failing {
        fn after(calls: u32) -> Self {
            Self { pagemap: Pagemap::open().unwrap(), calls_left: Cell::new(calls) }
        }

        fn call(&self) -> io::Result<()> {
            let left = self.calls_left.get().checked_sub(1);
            self.calls_left.set(left.unwrap_or(0));
            left.map(|_| ()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
        }
    }

    impl Kernel for Failing {
        fn take_written(&self, mapping: &MmapRegion, written: &mut Vec<Pages>) -> io::Result<()> {
            self.pagemap.take_written(mapping, written)?;
            if self.call().is_err() {
                // What was found in the last part of it is not known.
                written.pop();
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            Ok(())
        }

        fn present(&self, mapping: &MmapRegion) -> io::Result<Vec<Pages>> {
            self.call()?;
            Kernel::present(&self.pagemap, mapping)
        }

        fn swapped(&self, mapping: &MmapRegion) -> io::Result<Vec<Pages>> {
            self.call()?;
            Kernel::swapped(&self.pagemap, mapping)
        }
    }

    #[test]
    fn what_was_found_before_something_failed_is_known_afterwards() {
        let zones = ["a", "b"].map(|id| zone(id, CHUNK_SIZE));
        let map = || Arc::new(MmapRegion::new(usize::try_from(CHUNK_SIZE).unwrap()).unwrap());
        let memory = [map(), map()];
        let page = usize::try_from(PAGE_SIZE).unwrap();
        let write = |zone: usize, at: usize| {
            memory[zone].get_slice(at * page, 8).unwrap().copy_from(&[1u8; 8]);
        };
        (0..2).for_each(|zone| write(zone, 9));
        let both = zones.iter().zip(memory.iter().map(Arc::clone)).collect();
        let mut tracker = Tracker::start(both).unwrap();
        tracker.begin_at(1);
        // Two calls a zone, the first of which is the one that protects.
        for (calls, known) in [(0, false), (1, true), (2, false), (3, true)] {
            write(0, 2);
            write(0, 30);
            write(1, 40);
            tracker.collect_from(&Failing::after(calls)).unwrap_err();
            tracker.collect().unwrap();
            let changed = ["a", "b"].map(|zone| tracker.since(1, zone));
            if known {
                let first = |runs: PageRuns| runs.iter().map(|run| run.start).collect::<Vec<_>>();
                let changed = changed.map(|runs| (runs.as_ref().unwrap().pages(), first(runs.unwrap())));
                assert_eq!(changed, [(2, vec![2, 30]), (1, vec![40])], "{calls}");
            } else {
                assert_eq!(changed, [None, None], "{calls}");
            }
            tracker.begin_at(1);
        }
    }
}
