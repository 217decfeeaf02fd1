//! Which parts of a mapping may hold anything but zeros: pages that are present or swapped out, and what
//! is not a hole in the file behind it.

#![expect(unsafe_code, reason = "PAGEMAP_SCAN is an ioctl of its own")]

use std::{
    fs::File,
    io,
    ops::Range,
    os::{fd::AsRawFd, unix::fs::FileExt},
};

use rustix::fs::SeekFrom;
use vm_memory::MmapRegion;

use crate::config::PAGE_SIZE;

/// The parts of `mapping` that may not be zero: offsets from its start in bytes, on page boundaries, in
/// order, apart from one another.
///
/// # Errors
/// The kernel does not tell.
pub fn touched(mapping: &MmapRegion) -> io::Result<Vec<Range<u64>>> {
    let size = mapping.size() as u64;
    let private = mapping.flags() & libc::MAP_SHARED == 0;
    let mut parts = Vec::new();
    if private {
        parts = present(mapping)?;
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

/// `struct pm_scan_arg` (Linux, include/uapi/linux/fs.h).
#[repr(C)]
#[derive(Default)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
/// Regions that one call returns at most.
const SCAN_LENGTH: usize = 512;

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = {
    let size = size_of::<ScanArguments>() as libc::c_ulong;
    3 << 30 | size << 16 | (b'f' as libc::c_ulong) << 8 | 16
};

/// Pages of a mapping that are in memory or swapped out.
fn present(mapping: &MmapRegion) -> io::Result<Vec<Range<u64>>> {
    let pagemap = File::open("/proc/self/pagemap")?;
    match scan(&pagemap, mapping) {
        // Before Linux 6.7 the file has no ioctl.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
            entries(&pagemap, mapping)
        }
        parts => parts,
    }
}

fn scan(pagemap: &File, mapping: &MmapRegion) -> io::Result<Vec<Range<u64>>> {
    let base = mapping.as_ptr() as u64;
    let end = base.saturating_add(mapping.size() as u64);
    let mut regions = [PageRegion::default(); SCAN_LENGTH];
    let mut parts = Vec::new();
    let mut start = base;
    while start < end {
        let mut arguments = ScanArguments {
            size: size_of::<ScanArguments>() as u64,
            start,
            end,
            vec: regions.as_mut_ptr() as u64,
            vec_len: SCAN_LENGTH as u64,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_PRESENT,
            ..ScanArguments::default()
        };
        // SAFETY: the argument has the layout that the kernel expects, and names an array of that many
        // regions, which outlives the call; the kernel writes nothing else.
        let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arguments) };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        let found = regions.iter().take(count);
        parts.extend(found.map(|region| region.start.saturating_sub(base)..region.end.saturating_sub(base)));
        if arguments.walk_end <= start {
            break;
        }
        start = arguments.walk_end;
    }
    Ok(parts)
}

/// The same out of the entries of the file, eight bytes a page (Linux, admin-guide/mm/pagemap.rst).
fn entries(pagemap: &File, mapping: &MmapRegion) -> io::Result<Vec<Range<u64>>> {
    const PRESENT_OR_SWAPPED: u64 = 3 << 62;
    let first = mapping.as_ptr() as u64 / PAGE_SIZE;
    let pages = mapping.size() as u64 / PAGE_SIZE;
    let mut parts: Vec<Range<u64>> = Vec::new();
    let mut buffer = vec![0u8; 64 << 10];
    let mut page = 0;
    while page < pages {
        let length = buffer.len().min(usize::try_from(pages - page).unwrap_or(usize::MAX).saturating_mul(8));
        let Some(wanted) = buffer.get_mut(..length) else { break };
        pagemap.read_exact_at(wanted, (first + page) * 8)?;
        for entry in wanted.chunks_exact(8) {
            let entry = entry.try_into().map_or(0, u64::from_ne_bytes);
            if entry & PRESENT_OR_SWAPPED != 0 {
                let at = page * PAGE_SIZE;
                match parts.last_mut() {
                    Some(last) if last.end == at => last.end += PAGE_SIZE,
                    _ => parts.push(at..at + PAGE_SIZE),
                }
            }
            page += 1;
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::{FileOffset, VolatileMemory};

    use super::*;

    fn anonymous(pages: usize) -> MmapRegion {
        MmapRegion::new(pages * 4096).unwrap()
    }

    /// First page and the page after the last of each part.
    fn pages(mapping: &MmapRegion) -> Vec<(u64, u64)> {
        let parts = touched(mapping).unwrap();
        parts.into_iter().map(|part| (part.start / PAGE_SIZE, part.end / PAGE_SIZE)).collect()
    }

    fn write(mapping: &MmapRegion, page: usize) {
        mapping.get_slice(page * 4096, 8).unwrap().copy_from(&[1u8; 8]);
    }

    #[test]
    fn what_was_written_is_found_by_both_ways() {
        let mapping = anonymous(64);
        for page in [0, 1, 7, 63] {
            write(&mapping, page);
        }
        let expected = [0..2, 7..8, 63..64].map(|pages| pages.start * 4096..pages.end * 4096);
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        assert_eq!(joined(entries(&pagemap, &mapping).unwrap()), expected);
        assert_eq!(pages(&mapping), [(0, 2), (7, 8), (63, 64)]);
    }

    #[test]
    fn more_regions_than_one_call_returns() {
        let mapping = anonymous(4096);
        for page in (0..4096).step_by(2) {
            write(&mapping, page);
        }
        assert_eq!(touched(&mapping).unwrap().len(), 2048);
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
