//! A snapshot's memory file into guest memory, or only through the eyes of its checksums.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path, sync::Arc};

use vm_memory::{MmapRegion, VolatileMemory};
use vm_migration::snapshot::MemoryTable;

use super::{
    CHUNKS_PER_THREAD, ContentError, Tally,
    pages::{filled, is_zero},
};
use crate::parallel;

/// Reads the content of those zones, which are zero before, out of `file`; with `check` each chunk is checked
/// before it is copied. `tally` is told of bytes as they are read.
///
/// # Errors
/// The file cannot be read, or a chunk is not what was saved.
pub fn load(
    zones: &[(String, Arc<MmapRegion>)],
    table: &MemoryTable,
    file: &File,
    path: &Path,
    check: bool,
    tally: &dyn Tally,
) -> Result<(), ContentError> {
    let size = table.chunk_size;
    let mut work = Vec::new();
    for (zone, mapping) in zones {
        let Some(content) = table.zone(zone) else { continue };
        let Some(offset) = content.offset else { continue };
        let chunks = offset / size..offset.saturating_add(content.size).div_ceil(size);
        let wanted = table.chunks.iter().filter(|(chunk, _)| chunks.contains(chunk));
        work.extend(wanted.map(|(chunk, digest)| (mapping, chunk * size - offset, chunk, digest)));
    }
    let length = usize::try_from(size).unwrap_or(usize::MAX);
    parallel::for_each(&work, CHUNKS_PER_THREAD, length, |(mapping, within, chunk, digest), buffer| {
        if tally.is_cancelled() {
            return Err(ContentError::Cancelled);
        }
        fetch(file, path, *chunk, size, buffer)?;
        if check {
            compare(path, chunk * size, buffer, *digest)?;
        }
        tally.add(size);
        let bytes = buffer.get(..buffer.len().min(mapping.size() - start_of(*within))).unwrap_or_default();
        for run in filled(bytes) {
            let at = start_of(*within) + run.start;
            // The table was checked against the zone: this cannot be outside.
            if let Ok(slice) = mapping.get_slice(at, run.len()) {
                slice.copy_from(bytes.get(run).unwrap_or_default());
            }
        }
        Ok(None::<()>)
    })?;
    Ok(())
}

fn start_of(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// Checks a file: with `listed` each chunk that was saved against its checksum (without, that is left to
/// [`load`]), and all else to be zero.
///
/// # Errors
/// The file cannot be read, or is not what was saved.
pub fn verify(table: &MemoryTable, file: &File, path: &Path, listed: bool) -> Result<(), ContentError> {
    let size = table.chunk_size;
    let mut work: Vec<(u64, Option<u32>)> =
        table.chunks.iter().filter(|_| listed).map(|(chunk, digest)| (chunk, Some(digest))).collect();
    // What has no checksum was zero: it costs nothing to look at where it is a hole.
    let scanned = super::touched::data(file, 0, table.size);
    let parts = scanned.map_err(|source| ContentError::File {
        operation: "examine",
        path: path.to_owned(),
        offset: 0,
        source,
    })?;
    let mut next = 0;
    for part in parts {
        let chunks = (part.start / size).max(next)..part.end.div_ceil(size);
        next = chunks.end;
        work.extend(chunks.filter(|chunk| table.chunks.get(*chunk).is_none()).map(|chunk| (chunk, None)));
    }
    let length = usize::try_from(size).unwrap_or(usize::MAX);
    parallel::for_each(&work, CHUNKS_PER_THREAD, length, |(chunk, digest), buffer| {
        fetch(file, path, *chunk, size, buffer)?;
        match digest {
            Some(digest) => compare(path, chunk * size, buffer, *digest)?,
            None if is_zero(buffer) => {}
            None => compare(path, chunk * size, buffer, crc32c::crc32c(&vec![0; buffer.len()]))?,
        }
        Ok(None::<()>)
    })?;
    Ok(())
}

fn fetch(file: &File, path: &Path, chunk: u64, size: u64, buffer: &mut [u8]) -> Result<(), ContentError> {
    let offset = chunk * size;
    file.read_exact_at(buffer, offset).map_err(|source: io::Error| ContentError::File {
        operation: "read",
        path: path.to_owned(),
        offset,
        source,
    })
}

fn compare(path: &Path, offset: u64, bytes: &[u8], expected: u32) -> Result<(), ContentError> {
    let found = crc32c::crc32c(bytes);
    if found == expected {
        return Ok(());
    }
    Err(ContentError::Damaged { path: path.to_owned(), offset, found, expected })
}
