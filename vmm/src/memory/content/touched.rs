//! Which parts of a mapping may hold anything but zeros: pages that are present or swapped out, but for the kernel's page
//! of zeros, and what is not a hole in the file behind it.

use std::{fs::File, io, ops::Range};

use rustix::fs::SeekFrom;
use vm_memory::MmapRegion;

use crate::{config::PAGE_SIZE, memory::pagemap::Pagemap};

/// The parts of `mapping` that may not be zero: offsets from its start in bytes, on page boundaries, in
/// order, apart from one another. `more` are such that the file behind it does not have.
///
/// # Errors
/// The kernel does not tell.
pub fn touched(mapping: &MmapRegion, more: Vec<Range<u64>>) -> io::Result<Vec<Range<u64>>> {
    let size = mapping.size() as u64;
    let private = mapping.flags() & libc::MAP_SHARED == 0;
    let mut parts = more;
    if private {
        let filled = Pagemap::open()?.filled(mapping, 0..size)?;
        parts.extend(filled.into_iter().map(|pages| pages.range));
    }
    if let Some(behind) = mapping.file_offset() {
        parts.extend(data(behind.file(), behind.start(), size)?);
    }
    Ok(joined(parts))
}

/// Sorts parts and joins those that overlap or touch.
fn joined(mut parts: Vec<Range<u64>>) -> Vec<Range<u64>> {
    parts.sort_unstable_by_key(|part| part.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(parts.len());
    for part in parts {
        match joined.last_mut() {
            Some(last) if last.end >= part.start => last.end = last.end.max(part.end),
            _ => joined.push(part),
        }
    }
    joined
}

/// What is not a hole in `size` bytes of a file from `start` on.
pub fn data(file: &File, start: u64, size: u64) -> io::Result<Vec<Range<u64>>> {
    let end = start.saturating_add(size);
    let mut parts = Vec::new();
    let mut at = start;
    while at < end {
        let from = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(from) if from < end => from.max(at),
            // No more data; or, where holes are not known, what lseek(2) makes of a place beyond the end.
            Ok(_) | Err(rustix::io::Errno::NXIO) => break,
            // A file system without holes says that all is data.
            Err(error) => return Err(error.into()),
        };
        let to = rustix::fs::seek(file, SeekFrom::Hole(from))?.min(end);
        if to <= from {
            break;
        }
        let page_end = (to - start).next_multiple_of(PAGE_SIZE).min(size);
        parts.push((from - start) / PAGE_SIZE * PAGE_SIZE..page_end);
        at = to;
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::{FileOffset, VolatileMemory};

    use super::*;

    /// First page and the page after the last of each part.
    fn pages(mapping: &MmapRegion) -> Vec<(u64, u64)> {
        let parts = touched(mapping, Vec::new()).unwrap();
        parts.into_iter().map(|part| (part.start / PAGE_SIZE, part.end / PAGE_SIZE)).collect()
    }

    fn write(mapping: &MmapRegion, page: usize) {
        mapping.get_slice(page * 4096, 8).unwrap().copy_from(&[1u8; 8]);
    }

    #[test]
    fn files_count_where_they_have_data_and_private_pages_besides() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(64 * 4096).unwrap();
        rustix::fs::seek(&file, SeekFrom::Start(16 * 4096)).unwrap();
        file.write_all(&[1; 4096]).unwrap();
        let map = |flags| {
            let behind = FileOffset::new(file.try_clone().unwrap(), 8 * 4096);
            MmapRegion::build(Some(behind), 32 * 4096, libc::PROT_READ | libc::PROT_WRITE, flags).unwrap()
        };
        let private = map(libc::MAP_PRIVATE | libc::MAP_NORESERVE);
        assert_eq!(pages(&private), [(8, 9)]);
        write(&private, 20);
        assert_eq!(pages(&private), [(8, 9), (20, 21)]);
        let shared = map(libc::MAP_SHARED);
        write(&shared, 3);
        assert_eq!(pages(&shared), [(3, 4), (8, 9)]);
    }
}
