//! Guest memory into a snapshot's memory file: all of it, or what differs from another snapshot.

use std::{
    collections::BTreeMap,
    fs::File,
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use vm_memory::{MmapRegion, VolatileMemory};
use vm_migration::snapshot::{ChunkDigests, MemoryTable, PAGE_SIZE, PageRuns, SavedMemory};

use super::{
    CHUNKS_PER_THREAD, ContentError, Tally,
    pages::{different, filled, is_zero},
};
use crate::parallel;

/// What of a zone is to be looked at.
#[derive(Debug)]
pub struct ZonePages {
    /// The zone.
    pub zone: String,
    /// Its memory.
    pub mapping: Arc<MmapRegion>,
    /// The parts: offsets in bytes on page boundaries, in order, apart from one another.
    pub parts: Vec<Range<u64>>,
    /// What is in the others.
    pub rest: Rest,
}

/// What is in pages that are not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Zeros.
    Zero,
    /// What the other snapshot has; and the others may have that, too.
    Unchanged,
    /// What the other snapshot has; all others were written since.
    Unwritten,
}

/// What was stored.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Bytes that were written.
    pub bytes: u64,
    /// Pages of the memory file that differ from the other snapshot; none if there is none.
    pub own: PageRuns,
}

/// A chunk of a zone that may have to be stored.
struct Chunk<'zone> {
    zone: &'zone ZonePages,
    /// Where in the zone it begins, and how much of it is the zone's.
    within: Range<u64>,
    /// Its number in the file.
    number: u64,
}

/// What became of a chunk.
struct Done {
    number: u64,
    /// Its checksum, if it is not zero.
    digest: Option<u32>,
    /// Pages of the file that differ from the other snapshot.
    own: Vec<Range<u64>>,
}

/// Writes zones that `table` keeps into `file`, sparse, and their checksums into `table`. With `parent`, whose
/// memory has the same table, only pages that differ from it are written, and checksums of what does not stay
/// what they are there; of a chunk of which all was written, all is taken to differ. The guest must stand still.
/// `tally` is told of a phase `memory`, and of bytes as they are looked at.
///
/// # Errors
/// The file cannot be written, the parent cannot be read or is damaged, or somebody asked for it to be given up.
pub fn save(
    zones: &[ZonePages],
    parent: Option<&SavedMemory>,
    table: &mut MemoryTable,
    (file, path): (&File, &Path),
    tally: &dyn Tally,
) -> Result<Stored, ContentError> {
    let failed = |offset| {
        move |source| ContentError::File { operation: "write", path: path.to_owned(), offset, source }
    };
    file.set_len(table.size).map_err(failed(0))?;
    let size = table.chunk_size;
    let work: Vec<_> = zones.iter().flat_map(|zone| chunks(zone, parent, table)).collect();
    let length = usize::try_from(size).unwrap_or(usize::MAX);
    let buffers = if parent.is_some() { length.saturating_mul(2) } else { length };
    let written = AtomicU64::new(0);
    let total = work.iter().fold(0u64, |sum, chunk| sum.saturating_add(chunk.size()));
    tally.phase("memory", Some(total));
    let done = parallel::for_each(&work, CHUNKS_PER_THREAD, buffers, |chunk, buffer| {
        if tally.is_cancelled() {
            return Err(ContentError::Cancelled);
        }
        tally.add(chunk.size());
        let (now, before) = buffer.split_at_mut(length.min(buffer.len()));
        let runs = match parent {
            None if !chunk.fetch(now) => return Ok(None),
            None => filled(now),
            Some(parent) => chunk.compare(parent, now, before)?,
        };
        if runs.is_empty() {
            return Ok(None);
        }
        let offset = chunk.number * size;
        for run in &runs {
            let content = now.get(run.clone()).unwrap_or_default();
            for part in filled(content) {
                let at = offset + (run.start + part.start) as u64;
                let bytes = content.get(part).unwrap_or_default();
                file.write_all_at(bytes, at).map_err(failed(at))?;
                written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
        }
        // The last chunk of a zone is filled up with zeros, as the file is.
        let digest = (parent.is_none() || !is_zero(now)).then(|| crc32c::crc32c(now));
        let pages = |run: &Range<usize>| {
            let (start, end) = (offset + run.start as u64, offset + run.end as u64);
            start / PAGE_SIZE..end.div_ceil(PAGE_SIZE)
        };
        let own = if parent.is_some() { runs.iter().map(pages).collect() } else { Vec::new() };
        Ok(Some(Done { number: chunk.number, digest, own }))
    })?;
    table.chunks = digests(parent, &done);
    let own = PageRuns::from_ranges(done.into_iter().flat_map(|done| done.own));
    Ok(Stored { bytes: written.into_inner(), own })
}

/// The checksums of what is stored now, and of what stays as it is in the parent.
fn digests(parent: Option<&SavedMemory>, done: &[Done]) -> ChunkDigests {
    let now: BTreeMap<u64, Option<u32>> = done.iter().map(|done| (done.number, done.digest)).collect();
    let before = parent.into_iter().flat_map(|parent| parent.table().chunks.iter());
    let stays = before.filter(|(number, _)| !now.contains_key(number));
    let changed = now.iter().filter_map(|(number, digest)| Some((*number, (*digest)?)));
    let mut all: Vec<_> = stays.chain(changed).collect();
    all.sort_unstable();
    ChunkDigests::from_sorted(all)
}

/// What the parent has of a chunk, which is checked.
fn below(parent: &SavedMemory, chunk: u64, buffer: &mut [u8]) -> Result<(), ContentError> {
    if parent.table().chunks.get(chunk).is_none() {
        buffer.fill(0);
        return Ok(());
    }
    Ok(parent.read_chunk(chunk, buffer, true)?)
}

/// The chunks of a zone that may have to be stored.
fn chunks<'zone>(
    zone: &'zone ZonePages,
    parent: Option<&SavedMemory>,
    table: &MemoryTable,
) -> Vec<Chunk<'zone>> {
    let size = table.chunk_size;
    let Some(all) = table.zone(&zone.zone).and_then(|content| content.chunks(size)) else {
        return Vec::new();
    };
    let touched = zone.parts.iter().flat_map(|part| part.start / size..part.end.div_ceil(size));
    let mut numbers: Vec<u64> = touched.map(|chunk| all.start.saturating_add(chunk)).collect();
    if let (Some(parent), Rest::Zero) = (parent, zone.rest) {
        // What was there and is zero now is a change, too.
        let known = parent.table().chunks.iter().map(|(chunk, _)| chunk);
        numbers.extend(known.filter(|chunk| all.contains(chunk)));
    }
    numbers.sort_unstable();
    numbers.dedup();
    let end = zone.mapping.size() as u64;
    let chunk = |number: u64| {
        let start = (number - all.start) * size;
        Chunk { zone, within: start..start.saturating_add(size).min(end), number }
    };
    numbers.into_iter().filter(|number| all.contains(number)).map(chunk).collect()
}

impl Chunk<'_> {
    fn size(&self) -> u64 {
        self.within.end - self.within.start
    }

    /// Finds what differs from the parent's, as byte ranges. `now` is then what is in the chunk.
    fn compare(
        &self,
        parent: &SavedMemory,
        now: &mut [u8],
        before: &mut [u8],
    ) -> Result<Vec<Range<usize>>, ContentError> {
        let known = parent.table().chunks.get(self.number).is_some();
        match self.zone.rest {
            Rest::Unwritten if known && self.is_covered() => {
                // Nothing of the parent's is left in it: that need not be read.
                self.fetch(now);
                let whole = 0..now.len();
                return Ok(vec![whole]);
            }
            Rest::Unchanged | Rest::Unwritten => {
                below(parent, self.number, before)?;
                now.copy_from_slice(before);
                self.lay_over(now);
            }
            Rest::Zero => {
                below(parent, self.number, before)?;
                self.fetch(now);
            }
        }
        Ok(different(now, before))
    }

    /// Whether the parts are all of it.
    fn is_covered(&self) -> bool {
        let within = length(self.within.end - self.within.start);
        self.parts().try_fold(0, |at, (_, place)| (place.start == at).then_some(place.end)) == Some(within)
    }

    /// Copies the parts into the buffer; the rest of it is zero. `false` if there is none.
    fn fetch(&self, buffer: &mut [u8]) -> bool {
        let mut filled_to = 0;
        for (from, place) in self.parts() {
            zero(buffer, filled_to..place.start);
            filled_to = place.end;
            self.copy(from, buffer.get_mut(place));
        }
        zero(buffer, filled_to..buffer.len());
        filled_to > 0
    }

    /// Copies the parts into the buffer; the rest of it stays as it is.
    fn lay_over(&self, buffer: &mut [u8]) {
        for (from, place) in self.parts() {
            self.copy(from, buffer.get_mut(place));
        }
    }

    /// Where in the zone each part in this chunk begins, and its place in a buffer.
    fn parts(&self) -> impl Iterator<Item = (u64, Range<usize>)> {
        let Range { start, end } = self.within;
        let first = self.zone.parts.partition_point(|part| part.end <= start);
        let parts = self.zone.parts.get(first..).unwrap_or_default();
        parts.iter().take_while(move |part| part.start < end).map(move |part| {
            let (from, to) = (part.start.max(start), part.end.min(end));
            (from, length(from - start)..length(to - start))
        })
    }

    fn copy(&self, from: u64, to: Option<&mut [u8]>) {
        // The parts are the zone's, and the chunk is: this cannot be outside.
        if let Some(to) = to
            && let Ok(slice) = self.zone.mapping.get_slice(length(from), to.len())
        {
            slice.copy_to(to);
        }
    }
}

fn zero(buffer: &mut [u8], gap: Range<usize>) {
    if let Some(gap) = buffer.get_mut(gap) {
        gap.fill(0);
    }
}

fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
