//! What the kernel is told of a mapping: where its pages come from, of which kind they are, and when.

#![expect(unsafe_code, reason = "the calls take an address and a length")]

use std::{
    fs::File,
    io,
    ops::Range,
    ptr,
    sync::atomic::{AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use vm_memory::{MmapRegion, mmap::MmapRegionError};

use super::content::Tally;
use crate::config::PAGE_SIZE;

/// Greatest number of a NUMA node; more than any kernel is built for.
const MAX_NODE: u32 = 1023;

/// Pages are populated in pieces of at least this many bytes, each by one of several threads; between two of them it
/// can be given up. A host that is very busy takes a tenth of a second for one.
const POPULATE_PIECE: usize = 16 << 20;
const POPULATE_THREADS: usize = 16;

/// Gives the kernel an advice about all of a mapping: one that changes nothing of its content.
///
/// # Errors
/// The kernel does not take it.
pub(super) fn advise(mapping: &MmapRegion, advice: Advice) -> io::Result<()> {
    // SAFETY: the range is exactly one mapping of ours, and no advice that is given here changes its content.
    unsafe { rustix::mm::madvise(mapping.as_ptr().cast(), mapping.size(), advice) }?;
    Ok(())
}

/// Has a part of a private mapping show a file from `offset` on instead of what it shows; offset and length are
/// multiples of the page size, and nobody has used the mapping yet.
///
/// # Errors
/// The part is not inside, or the kernel does not map it.
pub(super) fn map_over(
    mapping: &MmapRegion,
    at: usize,
    length: usize,
    (file, offset): (&File, u64),
) -> io::Result<()> {
    if length == 0 || at.checked_add(length).is_none_or(|end| end > mapping.size()) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let rights = ProtFlags::READ | ProtFlags::WRITE;
    let mut flags = MapFlags::PRIVATE | MapFlags::FIXED;
    if mapping.flags() & libc::MAP_NORESERVE != 0 {
        flags |= MapFlags::NORESERVE;
    }
    let address = mapping.as_ptr().wrapping_add(at);
    // SAFETY: the range is a part of one mapping of ours, which is taken down as a whole, and of which nobody holds
    // a reference to content; what takes its place is as long and has the same rights.
    unsafe { rustix::mm::mmap(address.cast(), length, rights, flags, file, offset) }?;
    Ok(())
}

/// Throws pages away, as a balloon does: they are as if nobody had touched them.
#[cfg(test)]
pub(super) fn discard(mapping: &MmapRegion, at: usize, length: usize) -> io::Result<()> {
    assert!(at + length <= mapping.size(), "outside");
    // SAFETY: the range is a part of one mapping of ours, to whose content nobody holds a reference.
    unsafe { rustix::mm::madvise(mapping.as_ptr().wrapping_add(at).cast(), length, Advice::LinuxDontNeed) }?;
    Ok(())
}

/// A page of memory, to ask the kernel about.
///
/// # Errors
/// There is none.
pub(super) fn page() -> Result<MmapRegion, MmapRegionError> {
    MmapRegion::new(usize::try_from(PAGE_SIZE).unwrap_or(usize::MAX))
}

/// Has all pages come from one NUMA node of the host, those that are there already included.
///
/// # Errors
/// There is no such node, or this process may not have its memory.
pub(super) fn bind(mapping: &MmapRegion, node: u32) -> io::Result<()> {
    // <linux/mempolicy.h>
    const MPOL_BIND: libc::c_long = 2;
    const MPOL_MF_STRICT: libc::c_long = 1;
    const MPOL_MF_MOVE: libc::c_long = 2;
    if node > MAX_NODE {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut nodes = [0u64; (MAX_NODE as usize + 1) / 64];
    if let Some(word) = nodes.get_mut(node as usize / 64) {
        *word = 1 << (node % 64);
    }
    // The kernel takes one bit less than it is told of.
    let bits = libc::c_long::from(MAX_NODE) + 2;
    // SAFETY: the range is exactly one mapping of ours, and the mask has as many bits as are read.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            mapping.as_ptr(),
            mapping.size(),
            MPOL_BIND,
            nodes.as_ptr(),
            bits,
            MPOL_MF_STRICT | MPOL_MF_MOVE,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has every page be there, for writing, when this returns. `page` is the size of a page in bytes, if it is not the
/// usual one; `tally` is told of bytes as they are there. False if it was given up.
///
/// # Errors
/// The host has not that much memory left, or is older than Linux 5.14.
pub(super) fn populate(mapping: &MmapRegion, page: Option<u64>, tally: &dyn Tally) -> io::Result<bool> {
    // Two threads in one page would both wait for it.
    let piece_size = page.and_then(|page| usize::try_from(page).ok()).unwrap_or(0).max(POPULATE_PIECE);
    let pieces = mapping.size().div_ceil(piece_size);
    let processors = crate::parallel::processors();
    let next = AtomicUsize::new(0);
    let result = Mutex::new(Ok(true));
    let work = || {
        loop {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= pieces {
                return;
            }
            let start = piece * piece_size;
            let length = (mapping.size() - start).min(piece_size);
            let done = if tally.is_cancelled() {
                Ok(false)
            } else {
                populate_range(mapping, start, length, Advice::LinuxPopulateWrite).map(|()| true)
            };
            if !matches!(done, Ok(true)) {
                *result.lock() = done;
                // There is nothing left to do for anybody.
                next.store(pieces, Ordering::Relaxed);
                return;
            }
            tally.add(length as u64);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..pieces.min(processors).min(POPULATE_THREADS) {
            // Fewer threads than wished for do it too.
            let _ = std::thread::Builder::new().name("prefault".into()).spawn_scoped(scope, work);
        }
        work();
    });
    result.into_inner()
}

/// Has the pages of a part of a mapping be there when this returns; with `write`, for writing, the process's own.
/// Their content stays what it is.
///
/// # Errors
/// The part is not one of the mapping, the host has not that much memory left, or is older than Linux 5.14.
pub(super) fn populate_part(mapping: &MmapRegion, part: Range<u64>, write: bool) -> io::Result<()> {
    let wrong = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let (start, end) =
        (usize::try_from(part.start).map_err(wrong)?, usize::try_from(part.end).map_err(wrong)?);
    if start > end || end > mapping.size() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let advice = if write { Advice::LinuxPopulateWrite } else { Advice::LinuxPopulateRead };
    populate_range(mapping, start, end - start, advice)
}

/// Has the calling thread work only when nobody else wants to.
///
/// # Errors
/// The kernel does not allow it.
pub(super) fn give_way() -> io::Result<()> {
    /// The least that a thread can ask for short of never running beside others.
    const NICEST: libc::c_int = 19;
    // SAFETY: the call takes numbers. On Linux the process 0 is the calling thread alone (setpriority(2), NOTES).
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICEST) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Address space that is kept free but for a gap in which a mapping of a certain length finds its place.
#[derive(Debug)]
pub(super) struct Gap([(*mut libc::c_void, usize); 2]);

impl Gap {
    /// Leaves a gap of `length` bytes that begins at a multiple of `alignment`, a power of two. The kernel takes the
    /// highest gap that is long enough, which is this one but for bad luck: whoever needs to know looks.
    ///
    /// # Errors
    /// There is no such address space left.
    pub(super) fn make(length: usize, alignment: usize) -> io::Result<Self> {
        let too_long = || io::Error::from(io::ErrorKind::InvalidInput);
        let whole = length.checked_add(alignment).ok_or_else(too_long)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping, at a place where there is none.
        let start = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), whole, ProtFlags::empty(), flags) }?;
        let before = start.addr().next_multiple_of(alignment) - start.addr();
        let gap = start.wrapping_byte_add(before);
        // SAFETY: a part of the mapping that was just made, which nobody uses.
        unsafe { rustix::mm::munmap(gap, length) }?;
        Ok(Self([(start, before), (gap.wrapping_byte_add(length), alignment - before)]))
    }
}

impl Drop for Gap {
    fn drop(&mut self) {
        for (start, length) in self.0.into_iter().filter(|(_, length)| *length > 0) {
            // SAFETY: what is left of the mapping that `make` made, which nobody uses.
            let _ = unsafe { rustix::mm::munmap(start, length) };
        }
    }
}

/// `start` and `length` are within the mapping.
fn populate_range(mapping: &MmapRegion, start: usize, length: usize, advice: Advice) -> io::Result<()> {
    let address = mapping.as_ptr().wrapping_add(start);
    loop {
        // SAFETY: the range is a part of one mapping of ours; its content stays what it is.
        match unsafe { rustix::mm::madvise(address.cast(), length, advice) } {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
