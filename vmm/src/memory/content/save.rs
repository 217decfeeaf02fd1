//! Guest memory into a snapshot's memory file.

use std::{
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
use vm_migration::snapshot::{ChunkDigests, MemoryTable};

use super::{CHUNKS_PER_THREAD, ContentError, Tally, pages::filled, touched::touched};
use crate::parallel;

/// A chunk of a zone that may not be zero.
struct Chunk<'zone> {
    mapping: &'zone MmapRegion,
    /// Where in the zone it begins, and how much of it is the zone's.
    within: Range<u64>,
    /// Where in the file.
    offset: u64,
    /// Parts of the zone, in or across this chunk, that were touched.
    parts: &'zone [Range<u64>],
}

/// Writes the zones that `table` keeps into `file`, sparse, and their checksums into `table`. The guest must
/// stand still. `tally` is told of bytes as they are written. Returns the number of bytes that were.
///
/// # Errors
/// The file cannot be written, or the kernel does not tell what was touched.
pub fn save(
    zones: &[(String, Arc<MmapRegion>)],
    table: &mut MemoryTable,
    file: &File,
    path: &Path,
    tally: &dyn Tally,
) -> Result<u64, ContentError> {
    let failed = |offset| {
        move |source| ContentError::File { operation: "write", path: path.to_owned(), offset, source }
    };
    file.set_len(table.size).map_err(failed(0))?;
    let mut kept = Vec::new();
    for (zone, mapping) in zones {
        if let Some(offset) = table.zone(zone).and_then(|content| content.offset) {
            let parts =
                touched(mapping).map_err(|source| ContentError::Scan { zone: zone.clone(), source })?;
            kept.push((mapping, offset, parts));
        }
    }
    let size = table.chunk_size;
    let mut work = Vec::new();
    for (mapping, offset, parts) in &kept {
        let end = mapping.size() as u64;
        let mut next = 0;
        for part in parts {
            let mut at = (part.start / size * size).max(next);
            while at < part.end {
                let within = at..at.saturating_add(size).min(end);
                work.push(Chunk { mapping, within, offset: offset + at, parts });
                at += size;
            }
            next = at;
        }
    }
    let length = usize::try_from(size).unwrap_or(usize::MAX);
    let written = AtomicU64::new(0);
    let mut digests = parallel::for_each(&work, CHUNKS_PER_THREAD, length, |chunk, buffer| {
        if tally.is_cancelled() {
            return Err(ContentError::Cancelled);
        }
        let Some(bytes) = fetch(chunk, buffer) else { return Ok(None) };
        let runs = filled(bytes);
        if runs.is_empty() {
            return Ok(None);
        }
        for run in runs {
            let at = chunk.offset + run.start as u64;
            let content = bytes.get(run).unwrap_or_default();
            file.write_all_at(content, at).map_err(failed(at))?;
            written.fetch_add(content.len() as u64, Ordering::Relaxed);
            tally.add(content.len() as u64);
        }
        // The last chunk of a zone is filled up with zeros, as the file is.
        Ok(Some((chunk.offset / size, crc32c::crc32c(bytes))))
    })?;
    digests.sort_unstable();
    table.chunks = ChunkDigests::from_sorted(digests);
    Ok(written.load(Ordering::Relaxed))
}

/// Copies what was touched of a chunk into the buffer; the rest of it is zero. `None` if nothing was.
fn fetch<'buffer>(chunk: &Chunk<'_>, buffer: &'buffer mut [u8]) -> Option<&'buffer [u8]> {
    let Range { start, end } = chunk.within;
    let first = chunk.parts.partition_point(|part| part.end <= start);
    let mut filled_to = 0;
    for part in chunk.parts.get(first..)?.iter().take_while(|part| part.start < end) {
        let (from, to) = (part.start.max(start), part.end.min(end));
        let place = usize::try_from(from - start).ok()?..usize::try_from(to - start).ok()?;
        buffer.get_mut(filled_to..place.start)?.fill(0);
        filled_to = place.end;
        let slice = chunk.mapping.get_slice(usize::try_from(from).ok()?, place.len()).ok()?;
        slice.copy_to(buffer.get_mut(place)?);
    }
    buffer.get_mut(filled_to..)?.fill(0);
    (filled_to > 0).then_some(&*buffer)
}
