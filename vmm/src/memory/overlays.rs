//! What of a zone comes from the files of a chain of snapshots above its base, where the zone is mapped from
//! them: each run of pages is a mapping of its own over the base's.
//!
//! A process has a limited number of mappings (`vm.max_map_count`, 65530 by default), so the longest runs are
//! mapped, and those that are too many are copied in.

use std::{io, ops::Range, os::unix::fs::FileExt};

use vm_memory::{MmapRegion, VolatileMemory};
use vm_migration::snapshot::{Extent, SavedMemory};

use super::{BackingError, content, mapping};

/// Runs that are mapped at most, of all zones together: each makes up to two more mappings.
const MAPPED_MAX: usize = 4096;
/// Bytes that are copied at once.
const COPY_PIECE: usize = 256 << 10;

/// The runs of one zone.
#[derive(Debug, Default)]
pub struct Overlays<'saved> {
    /// Where the zone is in the files, in bytes.
    place: Range<u64>,
    mapped: Vec<Extent<'saved>>,
    copied: Vec<Extent<'saved>>,
}

impl<'saved> Overlays<'saved> {
    /// Those of a zone; none for a zone that the files do not have.
    pub fn of(saved: &'saved SavedMemory, zone: &str) -> Self {
        let table = saved.table();
        let place = table.zone(zone).and_then(|content| {
            let start = content.offset?;
            Some(start..start.saturating_add(content.size))
        });
        let Some(place) = place else { return Self::default() };
        Self::within(saved, place, MAPPED_MAX / table.zones.len().max(1))
    }

    pub(super) fn within(saved: &'saved SavedMemory, place: Range<u64>, most: usize) -> Self {
        let mut mapped: Vec<_> = saved.overlaid(place.clone()).collect();
        let mut copied = Vec::new();
        if mapped.len() > most {
            mapped.sort_by_key(|run| std::cmp::Reverse(run.end - run.start));
            copied = mapped.split_off(most);
        }
        Self { place, mapped, copied }
    }

    /// Bytes that are copied in.
    pub fn copied_bytes(&self) -> u64 {
        self.copied.iter().fold(0, |sum, run| sum.saturating_add(run.end - run.start))
    }

    /// Has `memory`, a private mapping of the base for `zone` that nobody has used yet, show them.
    ///
    /// # Errors
    /// A file cannot be mapped or read.
    pub fn show(&self, zone: &str, memory: &MmapRegion) -> Result<(), BackingError> {
        let failed = |run: &Extent<'_>| {
            let (zone, path) = (zone.to_owned(), run.from.path.clone());
            move |source| BackingError::Layer { zone, path, source }
        };
        for run in &self.mapped {
            let (at, length) = self.in_zone(run);
            mapping::map_over(memory, at, length, (&run.from.file, run.start)).map_err(failed(run))?;
        }
        let mut buffer = vec![0; if self.copied.is_empty() { 0 } else { COPY_PIECE }];
        for run in &self.copied {
            let (at, length) = self.in_zone(run);
            for start in (0..length).step_by(COPY_PIECE) {
                let piece = buffer.get_mut(..COPY_PIECE.min(length - start)).unwrap_or_default();
                run.from.file.read_exact_at(piece, run.start + start as u64).map_err(failed(run))?;
                // Runs are within the zone, which is as long as its memory.
                if let Ok(slice) = memory.get_slice(at + start, piece.len()) {
                    slice.copy_from(piece);
                }
            }
        }
        Ok(())
    }

    /// The parts of the zone whose files have data there: offsets in bytes.
    ///
    /// # Errors
    /// A file system does not tell.
    pub fn data(&self) -> io::Result<Vec<Range<u64>>> {
        let mut parts = Vec::new();
        for run in &self.mapped {
            let within = run.start - self.place.start;
            let found = content::data(&run.from.file, run.start, run.end - run.start)?;
            parts.extend(found.into_iter().map(|part| part.start + within..part.end + within));
        }
        Ok(parts)
    }

    fn in_zone(&self, run: &Extent<'_>) -> (usize, usize) {
        let fits = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        (fits(run.start - self.place.start), fits(run.end - run.start))
    }
}
