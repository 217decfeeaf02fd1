//! Blocks of memory that are put into place before the guest runs.

#![expect(unsafe_code, reason = "parts of a mapping are replaced and written by their address")]

use std::{io, ops::Range, sync::Arc};

use rustix::mm::{Advice, MapFlags, ProtFlags};
use vm_memory::MmapRegion;
use vm_migration::snapshot::SavedMemory;

use super::{BLOCK, ZoneAhead};
use crate::{
    memory::content::{ContentError, Tally},
    parallel,
};

/// Blocks for which a thread of its own is worth it.
const BLOCKS_PER_THREAD: usize = 2;

/// Puts the blocks of a zone into place: huge pages that are the process's own, with what was saved; with `check` it
/// is held against its checksums. `over_file` says that the mapping shows a file, which the blocks replace.
///
/// Nobody may use the mapping meanwhile.
///
/// # Errors
/// The host gives no memory, or what was saved cannot be read or is damaged.
pub fn place(
    mapping: &Arc<MmapRegion>,
    ahead: &ZoneAhead,
    over_file: bool,
    saved: &SavedMemory,
    check: bool,
    tally: &dyn Tally,
) -> Result<(), ContentError> {
    let failed = |source| ContentError::Place { zone: ahead.zone.clone(), source };
    for part in ahead.placed() {
        make_room(mapping, part, over_file).map_err(failed)?;
    }
    let first = saved.chunks_of(&ahead.zone).start;
    let (size, length) = (saved.table().chunk_size, saved.chunk_length());
    parallel::for_each(&ahead.blocks, BLOCKS_PER_THREAD, 0, |block, _| {
        for at in (*block..block.saturating_add(BLOCK)).step_by(length) {
            if tally.is_cancelled() {
                return Err(ContentError::Cancelled);
            }
            let chunk = first + at / size;
            // What has no checksum is zero, as fresh memory is.
            if saved.table().chunks.get(chunk).is_none() {
                continue;
            }
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            if at.saturating_add(length) > mapping.size() {
                return Err(failed(io::ErrorKind::InvalidInput.into()));
            }
            // SAFETY: these bytes lie within the mapping, as was just looked at, are memory of the process's own by
            // `make_room`, and belong to this block alone, which one thread has; the machine that will use them is
            // not built yet.
            let place = unsafe { std::slice::from_raw_parts_mut(mapping.as_ptr().wrapping_add(at), length) };
            saved.read_chunk(chunk, place, check)?;
            tally.add(size);
        }
        Ok(None::<()>)
    })?;
    Ok(())
}

/// Has a part of a mapping be fresh memory of the process's own, in huge pages where there are any.
fn make_room(mapping: &MmapRegion, part: Range<u64>, over_file: bool) -> io::Result<()> {
    let wrong = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let (start, end) =
        (usize::try_from(part.start).map_err(wrong)?, usize::try_from(part.end).map_err(wrong)?);
    if start >= end || end > mapping.size() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let (address, length) = (mapping.as_ptr().wrapping_add(start).cast(), end - start);
    if over_file {
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: the part lies within the mapping, which is ours as a whole and unmaps all of it in the end; nobody
        // has used it yet, so nothing that anybody borrows is replaced.
        unsafe { rustix::mm::mmap_anonymous(address, length, ProtFlags::READ | ProtFlags::WRITE, flags) }?;
    }
    // A kernel without huge pages refuses: small ones do.
    // SAFETY: as above; the advice changes nothing of the content.
    let _ = unsafe { rustix::mm::madvise(address, length, Advice::LinuxHugepage) };
    Ok(())
}
