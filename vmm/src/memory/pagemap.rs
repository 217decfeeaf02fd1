//! What the kernel says of the pages of a mapping: which are there, and which are the process's own.

#![expect(unsafe_code, reason = "PAGEMAP_SCAN is an ioctl of its own")]

use std::{
    fs::File,
    io,
    ops::Range,
    os::{fd::AsRawFd, unix::fs::FileExt},
};

use vm_memory::MmapRegion;

use crate::config::PAGE_SIZE;

/// Pages that follow one another and are of one kind: offsets from the start of the mapping in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pages {
    /// Which.
    pub range: Range<u64>,
    /// Whether they are the process's own, as what was written in a private mapping of a file is. The others are the
    /// file's.
    pub own: bool,
}

/// `struct pm_scan_arg` (Linux, include/uapi/linux/fs.h).
#[repr(C)]
#[derive(Clone, Copy)]
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

/// Nothing is wanted.
const NOTHING: ScanArguments = ScanArguments {
    size: 0,
    flags: 0,
    start: 0,
    end: 0,
    walk_end: 0,
    vec: 0,
    vec_len: 0,
    max_pages: 0,
    category_inverted: 0,
    category_mask: 0,
    category_anyof_mask: 0,
    return_mask: 0,
};

/// What is there.
const PRESENT: ScanArguments =
    ScanArguments { category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED, ..NOTHING };

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
/// `PM_SCAN_WP_MATCHING`: what is found is protected, so that it is found again only if it is written again.
const SCAN_PROTECT: u64 = 1;
/// `PM_SCAN_CHECK_WPASYNC`: nothing else is mapped there than what is registered for it.
const SCAN_CHECK: u64 = 1 << 1;
/// Regions that one call returns at most.
const SCAN_LENGTH: usize = 512;

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = {
    let size = size_of::<ScanArguments>() as libc::c_ulong;
    3 << 30 | size << 16 | (b'f' as libc::c_ulong) << 8 | 16
};

/// The kernel's table of this process's pages.
#[derive(Debug)]
pub struct Pagemap(File);

impl Pagemap {
    /// Opens it.
    ///
    /// # Errors
    /// There is no `/proc`, or no descriptor left.
    pub fn open() -> io::Result<Self> {
        File::open("/proc/self/pagemap").map(Self)
    }

    /// The pages of a part of `mapping`, on page boundaries, that are in memory or swapped out, in order.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn present(&self, mapping: &MmapRegion, part: Range<u64>) -> io::Result<Vec<Pages>> {
        self.scan_or_read(mapping, part, &PRESENT)
    }

    /// Those among them that have content: not the kernel's page of zeros, which is there where something was read that
    /// nobody has written. Before Linux 6.7 that does not show.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn filled(&self, mapping: &MmapRegion, part: Range<u64>) -> io::Result<Vec<Pages>> {
        let filled =
            ScanArguments { category_inverted: PAGE_IS_PFNZERO, category_mask: PAGE_IS_PFNZERO, ..PRESENT };
        self.scan_or_read(mapping, part, &filled)
    }

    /// Adds to `pages` the process's own pages of `mapping` that were written since the last call, in order; from now on
    /// they count as not written. The mapping is registered for that, with a userfaultfd. What was zero and was read for
    /// the first time may be among them.
    ///
    /// # Errors
    /// The kernel cannot tell, or it is not registered. What was added counts as not written all the same, and more may.
    pub fn take_written(&self, mapping: &MmapRegion, pages: &mut Vec<Pages>) -> io::Result<()> {
        // Pages that are there, and not the file's: to protect what is not there, the kernel would note that for
        // each page, and show it as swapped out.
        let written = ScanArguments {
            flags: SCAN_PROTECT | SCAN_CHECK,
            category_inverted: PAGE_IS_FILE,
            category_mask: PAGE_IS_WRITTEN | PAGE_IS_FILE,
            ..PRESENT
        };
        self.regions(mapping, 0..mapping.size() as u64, &written, pages)
    }

    /// The pages of `mapping` that are swapped out, or were protected and thrown away, in order.
    ///
    /// # Errors
    /// The kernel cannot tell.
    pub fn swapped(&self, mapping: &MmapRegion) -> io::Result<Vec<Pages>> {
        let swapped = ScanArguments { category_mask: PAGE_IS_SWAPPED, ..NOTHING };
        let mut pages = Vec::new();
        self.regions(mapping, 0..mapping.size() as u64, &swapped, &mut pages)?;
        Ok(pages)
    }

    fn scan_or_read(
        &self,
        mapping: &MmapRegion,
        part: Range<u64>,
        wanted: &ScanArguments,
    ) -> io::Result<Vec<Pages>> {
        let size = mapping.size() as u64;
        let part = part.start.min(size)..part.end.min(size);
        let mut pages = Vec::new();
        match self.regions(mapping, part.clone(), wanted, &mut pages) {
            // Before Linux 6.7 the file has no ioctl.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
                self.entries(mapping, part)
            }
            scanned => scanned.map(|()| pages),
        }
    }

    fn regions(
        &self,
        mapping: &MmapRegion,
        part: Range<u64>,
        wanted: &ScanArguments,
        pages: &mut Vec<Pages>,
    ) -> io::Result<()> {
        let base = mapping.as_ptr() as u64;
        let end = base.saturating_add(part.end);
        let mut regions = [PageRegion::default(); SCAN_LENGTH];
        let mut start = base.saturating_add(part.start);
        while start < end {
            let mut arguments = ScanArguments {
                size: size_of::<ScanArguments>() as u64,
                start,
                end,
                vec: regions.as_mut_ptr() as u64,
                vec_len: SCAN_LENGTH as u64,
                return_mask: PAGE_IS_FILE | PAGE_IS_SWAPPED,
                ..*wanted
            };
            // SAFETY: the argument has the layout that the kernel expects, and names an array of that many
            // regions, which outlives the call; the kernel writes nothing else.
            let count = unsafe { libc::ioctl(self.0.as_raw_fd(), PAGEMAP_SCAN, &raw mut arguments) };
            let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
            for region in regions.iter().take(count) {
                let range = region.start.saturating_sub(base)..region.end.saturating_sub(base);
                let own = region.categories & PAGE_IS_FILE == 0 || region.categories & PAGE_IS_SWAPPED != 0;
                append(pages, range, own);
            }
            if arguments.walk_end <= start {
                break;
            }
            start = arguments.walk_end;
        }
        Ok(())
    }

    /// The same out of the entries of the file, eight bytes a page (Linux, admin-guide/mm/pagemap.rst).
    fn entries(&self, mapping: &MmapRegion, part: Range<u64>) -> io::Result<Vec<Pages>> {
        const IN_MEMORY: u64 = 1 << 63;
        const SWAPPED: u64 = 1 << 62;
        const OF_FILE: u64 = 1 << 61;
        let first = mapping.as_ptr() as u64 / PAGE_SIZE;
        let last = part.end / PAGE_SIZE;
        let mut pages = Vec::new();
        let mut buffer = vec![0u8; 64 << 10];
        let mut page = part.start / PAGE_SIZE;
        while page < last {
            let left = usize::try_from(last - page).unwrap_or(usize::MAX).saturating_mul(8);
            let length = buffer.len().min(left);
            let Some(wanted) = buffer.get_mut(..length) else { break };
            self.0.read_exact_at(wanted, (first + page) * 8)?;
            for entry in wanted.chunks_exact(8) {
                let entry = entry.try_into().map_or(0, u64::from_ne_bytes);
                if entry & (IN_MEMORY | SWAPPED) != 0 {
                    let at = page * PAGE_SIZE;
                    append(&mut pages, at..at + PAGE_SIZE, entry & OF_FILE == 0 || entry & SWAPPED != 0);
                }
                page += 1;
            }
        }
        Ok(pages)
    }
}

/// Adds a range, as a part of the last if it goes on with it.
fn append(pages: &mut Vec<Pages>, range: Range<u64>, own: bool) {
    match pages.last_mut() {
        Some(last) if last.range.end == range.start && last.own == own => last.range.end = range.end,
        _ => pages.push(Pages { range, own }),
    }
}

#[cfg(test)]
mod tests {
    use rustix::mm::Advice;
    use vm_memory::{FileOffset, VolatileMemory};

    use super::*;
    use crate::memory::mapping;

    const PAGE: usize = 4096;

    fn write(mapping: &MmapRegion, page: usize) {
        mapping.get_slice(page * PAGE, 8).unwrap().copy_from(&[1u8; 8]);
    }

    /// First page, the page after the last, and whether they are the process's own.
    fn both_ways(mapping: &MmapRegion, part: Range<u64>) -> Vec<(u64, u64, bool)> {
        let pagemap = Pagemap::open().unwrap();
        let part = part.start..part.end.min(mapping.size() as u64);
        let pages = pagemap.present(mapping, part.clone()).unwrap();
        assert_eq!(pages, pagemap.entries(mapping, part).unwrap());
        pages.iter().map(|run| (run.range.start / PAGE_SIZE, run.range.end / PAGE_SIZE, run.own)).collect()
    }

    #[test]
    fn what_was_written_is_found_by_both_ways() {
        let mapping = MmapRegion::new(64 * PAGE).unwrap();
        [0, 1, 7, 63].into_iter().for_each(|page| write(&mapping, page));
        assert_eq!(both_ways(&mapping, 0..u64::MAX), [(0, 2, true), (7, 8, true), (63, 64, true)]);
        assert_eq!(both_ways(&mapping, 4096..8 * 4096), [(1, 2, true), (7, 8, true)]);
    }

    #[test]
    fn what_was_only_read_has_no_content() {
        let mapping = MmapRegion::new(64 * PAGE).unwrap();
        // A huge page of zeros does not show on every kernel.
        mapping::advise(&mapping, Advice::LinuxNoHugepage).unwrap();
        write(&mapping, 7);
        for page in [3, 7, 8, 20] {
            mapping.get_slice(page * PAGE, 8).unwrap().copy_to(&mut [0u8; 8]);
        }
        assert_eq!(both_ways(&mapping, 0..u64::MAX), [(3, 4, true), (7, 9, true), (20, 21, true)]);
        let filled = Pagemap::open().unwrap().filled(&mapping, 0..u64::MAX).unwrap();
        let page = PAGE as u64;
        assert_eq!(filled, [Pages { range: 7 * page..8 * page, own: true }]);
        write(&mapping, 20);
        assert_eq!(Pagemap::open().unwrap().filled(&mapping, 0..u64::MAX).unwrap().len(), 2);
    }

    #[test]
    fn what_was_read_of_a_file_is_told_from_what_was_written() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(256 << 12).unwrap();
        let behind = FileOffset::new(file, 0);
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        let mapping =
            MmapRegion::<()>::build(Some(behind), 256 * PAGE, libc::PROT_READ | libc::PROT_WRITE, flags)
                .unwrap();
        assert!(both_ways(&mapping, 0..u64::MAX).is_empty());
        mapping.get_slice(130 * PAGE, 8).unwrap().copy_to(&mut [0u8; 8]);
        write(&mapping, 7);
        let pages = both_ways(&mapping, 0..u64::MAX);
        assert!(pages.contains(&(7, 8, true)), "{pages:?}");
        assert_eq!(pages.iter().filter(|(.., own)| *own).count(), 1, "{pages:?}");
        assert!(pages.iter().any(|(from, to, own)| !own && (*from..*to).contains(&130)), "{pages:?}");
    }

    #[test]
    fn more_regions_than_one_call_returns() {
        let mapping = MmapRegion::new(4096 * PAGE).unwrap();
        (0..4096).step_by(2).for_each(|page| write(&mapping, page));
        assert_eq!(both_ways(&mapping, 0..u64::MAX).len(), 2048);
    }
}
