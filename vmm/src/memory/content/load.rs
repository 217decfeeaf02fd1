//! A snapshot's memory into guest memory, or only through the eyes of its checksums.

use std::sync::Arc;

use vm_memory::{MmapRegion, VolatileMemory};
use vm_migration::snapshot::{MemoryFile, SavedMemory};

use super::{CHUNKS_PER_THREAD, ContentError, Tally, pages::filled};
use crate::parallel;

/// Reads the content of those zones, which are zero before; with `check` each chunk is checked before it is
/// copied. `tally` is told of bytes as they are read.
///
/// # Errors
/// The snapshot cannot be read, a chunk is not what was saved, or somebody asked for it to be given up.
pub fn load(
    zones: &[(String, Arc<MmapRegion>)],
    saved: &SavedMemory,
    check: bool,
    tally: &dyn Tally,
) -> Result<(), ContentError> {
    let table = saved.table();
    let size = table.chunk_size;
    let mut work = Vec::new();
    for (zone, mapping) in zones {
        let chunks = saved.chunks_of(zone);
        let wanted = table.chunks.iter().filter(|(chunk, _)| chunks.contains(chunk));
        work.extend(wanted.map(|(chunk, _)| (mapping, (chunk - chunks.start) * size, chunk)));
    }
    parallel::for_each(
        &work,
        CHUNKS_PER_THREAD,
        saved.chunk_length(),
        |(mapping, within, chunk), buffer| {
            if tally.is_cancelled() {
                return Err(ContentError::Cancelled);
            }
            saved.read_chunk(*chunk, buffer, check)?;
            tally.add(size);
            let bytes =
                buffer.get(..buffer.len().min(mapping.size() - start_of(*within))).unwrap_or_default();
            for run in filled(bytes) {
                let at = start_of(*within) + run.start;
                // The table was checked against the zone: this cannot be outside.
                if let Ok(slice) = mapping.get_slice(at, run.len()) {
                    slice.copy_from(bytes.get(run).unwrap_or_default());
                }
            }
            Ok(None::<()>)
        },
    )?;
    Ok(())
}

fn start_of(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// Hands out all of a snapshot's memory that is not zero, several parts at once and in no order, each with its place
/// in the file in bytes. Each chunk is checked before.
///
/// # Errors
/// The snapshot cannot be read, a chunk is not what was saved, or that of `take`.
pub fn for_each_part(
    saved: &SavedMemory,
    take: impl Fn(u64, &[u8]) -> Result<(), ContentError> + Sync,
) -> Result<(), ContentError> {
    let size = saved.table().chunk_size;
    let work: Vec<u64> = saved.table().chunks.iter().map(|(chunk, _)| chunk).collect();
    parallel::for_each(&work, CHUNKS_PER_THREAD, saved.chunk_length(), |chunk, buffer| {
        saved.read_chunk(*chunk, buffer, true)?;
        for run in filled(buffer) {
            take(chunk * size + run.start as u64, buffer.get(run).unwrap_or_default())?;
        }
        Ok::<_, ContentError>(None::<()>)
    })?;
    Ok(())
}

/// Checks a snapshot's memory: with `listed` each chunk that was saved against its checksum (without, that is
/// left to [`load`]), and all else to be zero.
///
/// `tally` is told of a phase `verify` if there is something to be read, and of bytes as they are.
///
/// # Errors
/// It cannot be read, is not what was saved, or somebody asked for it to be given up.
pub fn verify(saved: &SavedMemory, listed: bool, tally: &dyn Tally) -> Result<(), ContentError> {
    let table = saved.table();
    let size = table.chunk_size;
    let mut work: Vec<u64> = table.chunks.iter().filter(|_| listed).map(|(chunk, _)| chunk).collect();
    // What has no checksum was zero: it costs nothing to look at where it is a hole.
    for MemoryFile { file, path } in saved.files() {
        let (operation, offset) = ("examine", 0);
        let failed = |source| ContentError::File { operation, path: path.clone(), offset, source };
        for part in super::touched::data(file, 0, table.size).map_err(failed)? {
            let chunks = part.start / size..part.end.div_ceil(size);
            work.extend(chunks.filter(|chunk| table.chunks.get(*chunk).is_none()));
        }
    }
    work.sort_unstable();
    work.dedup();
    if !work.is_empty() {
        tally.phase("verify", Some((work.len() as u64).saturating_mul(size)));
    }
    parallel::for_each(&work, CHUNKS_PER_THREAD, saved.chunk_length(), |chunk, buffer| {
        if tally.is_cancelled() {
            return Err(ContentError::Cancelled);
        }
        saved.read_chunk(*chunk, buffer, true)?;
        tally.add(size);
        Ok::<_, ContentError>(None::<()>)
    })?;
    Ok(())
}
