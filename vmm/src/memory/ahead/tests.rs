//! What was recorded is brought in, checked, and nothing else is.

use std::{fs::File, os::unix::fs::FileExt, sync::Arc};

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{MmapRegion, VolatileMemory};
use vm_migration::snapshot::{CHUNK_SIZE, ChunkDigests, MemoryFile, MemoryTable, PageRun};

use super::*;
use crate::memory::{
    GuestMemory, OwnFiles,
    content::{ContentError, tests::zone},
    pagemap::Pagemap,
};

const SIZE: u64 = 5 * BLOCK + CHUNK_SIZE;

/// A zone of five blocks and a bit, of which every second chunk is zero.
fn saved() -> SavedMemory {
    let mut table = MemoryTable::new([("a", SIZE, true)]).unwrap();
    // Of this kind of file mappings are not aligned by themselves.
    let file = File::from(memfd_create("memory", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(table.size).unwrap();
    let mut digests = Vec::new();
    for chunk in (0..SIZE / CHUNK_SIZE).step_by(2) {
        let content = vec![u8::try_from(chunk).unwrap() + 1; usize::try_from(CHUNK_SIZE).unwrap()];
        file.write_all_at(&content, chunk * CHUNK_SIZE).unwrap();
        digests.push((chunk, crc32c::crc32c(&content)));
    }
    table.chunks = ChunkDigests::from_sorted(digests);
    SavedMemory::new(table, MemoryFile::new(file, "memory-ranges".into()))
}

fn set(written: &[(u64, u64)], read: &[(u64, u64)]) -> WorkingSet {
    let runs = |runs: &[(u64, u64)]| runs.iter().map(|run| PageRun(run.0, run.1)).collect();
    let pages = ZonePages { zone: "a".into(), written: runs(written), read: runs(read) };
    WorkingSet { root: 0, window_ms: 1, zones: vec![pages] }
}

fn ahead(set: &WorkingSet, mode: MemoryMode, change: impl FnOnce(&mut MemoryZoneConfig)) -> ZoneAhead {
    let mut zone = zone("a", SIZE);
    zone.thp = true;
    change(&mut zone);
    let saved = saved();
    let plan = RestorePlan::new(std::slice::from_ref(&zone), saved.table(), Some(mode)).unwrap();
    let none = ZoneAhead { zone: "a".into(), blocks: Vec::new(), pieces: Vec::new() };
    ReadAhead::new(set, &[zone], &plan, &saved).zones.pop().unwrap_or(none)
}

#[test]
fn blocks_are_for_what_is_written_enough() {
    // The first block, a quarter of the third, less of the fourth, and all that is left behind the last block.
    let set = set(&[(0, 512), (1024, 128), (1536, 127), (2560, 64)], &[(513, 3), (600, 400)]);
    let cow = ahead(&set, MemoryMode::Cow, |_| ());
    assert_eq!(cow.blocks, [0, 2 * BLOCK]);
    assert_eq!(cow.placed(), [0..BLOCK, 2 * BLOCK..3 * BLOCK]);
    assert_eq!(cow.background_bytes(), (127 + 64 + 403) * PAGE_SIZE);
    let chunks: Vec<u64> = cow.pieces.iter().map(|piece| piece.chunk).collect();
    assert_eq!(chunks, [8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 40]);
    let read = Pages { range: 513 * PAGE_SIZE..516 * PAGE_SIZE, own: false };
    assert_eq!(cow.pieces[0].pages, [read]);
    assert!(cow.pieces[8].pages[0].own && cow.pieces[8].pages[0].range.start == 1536 * PAGE_SIZE);
    // What is read counts where chunks become memory of the process's own anyhow.
    assert_eq!(ahead(&set, MemoryMode::OnDemand, |_| ()).blocks, [0, BLOCK, 2 * BLOCK]);
}

#[test]
fn what_cannot_be_in_blocks_is_left_to_the_background() {
    let set = set(&[(0, 2560)], &[]);
    assert_eq!(ahead(&set, MemoryMode::Cow, |_| ()).blocks.len(), 5);
    let without: [fn(&mut MemoryZoneConfig); 3] =
        [|zone| zone.thp = false, |zone| zone.mergeable = true, |zone| zone.host_numa_node = Some(0)];
    for change in without {
        let ahead = ahead(&set, MemoryMode::Cow, change);
        assert_eq!((ahead.placed_bytes(), ahead.background_bytes()), (0, 5 * BLOCK));
        assert_eq!(ahead.pieces.len(), 40);
    }
    // What is copied is there anyhow.
    let copied = ahead(&set, MemoryMode::Copy, |_| ());
    assert_eq!((copied.placed_bytes(), copied.background_bytes()), (0, 0));
}

#[test]
fn no_more_is_placed_than_one_would_wait_for() {
    let size = PLACED_MAX + 4 * BLOCK;
    let mut zone = zone("a", size);
    zone.thp = true;
    let table = MemoryTable::new([("a", size, true)]).unwrap();
    let saved =
        SavedMemory::new(table, MemoryFile::new(tempfile::tempfile().unwrap(), "memory-ranges".into()));
    let plan = RestorePlan::new(std::slice::from_ref(&zone), saved.table(), None).unwrap();
    let ahead = ReadAhead::new(&set(&[(0, size / PAGE_SIZE)], &[]), &[zone], &plan, &saved);
    assert_eq!(ahead.placed_bytes(), PLACED_MAX);
    assert_eq!(ahead.zones[0].background_bytes(), 4 * BLOCK);
}

/// The zone as a restore in that mode has it once the blocks are in place.
fn placed(mode: MemoryMode, saved: &Arc<SavedMemory>) -> Result<Arc<MmapRegion>, ContentError> {
    let mut zone = zone("a", SIZE);
    zone.thp = true;
    let zones = [zone];
    let plan = RestorePlan::new(&zones, saved.table(), Some(mode)).unwrap();
    let ahead = ReadAhead::new(&set(&[(0, 512), (1024, 512)], &[]), &zones, &plan, saved);
    let memory =
        GuestMemory::map_restored(&zones, &plan, saved, &ahead, &mut OwnFiles::default(), &()).unwrap();
    memory.place(&plan, &ahead, saved, true, &())?;
    Ok(Arc::clone(&memory.zones()[0].1))
}

#[test]
fn blocks_have_what_was_saved_and_are_the_process_s_own() {
    for mode in [MemoryMode::Cow, MemoryMode::OnDemand] {
        let saved = Arc::new(saved());
        let mapping = placed(mode, &saved).unwrap();
        assert_eq!(mapping.as_ptr() as u64 % BLOCK, 0, "{mode}");
        let present = Pagemap::open().unwrap().present(&mapping, 0..SIZE).unwrap();
        let pages = |range: Range<u64>| Pages { range, own: true };
        assert_eq!(present, [pages(0..BLOCK), pages(2 * BLOCK..3 * BLOCK)], "{mode}");
        let last = if mode == MemoryMode::Cow { SIZE / CHUNK_SIZE } else { 8 };
        for chunk in (0..last).chain(16..24) {
            let mut byte = [0];
            let at = usize::try_from(chunk * CHUNK_SIZE + 7).unwrap();
            mapping.get_slice(at, 1).unwrap().copy_to(&mut byte);
            let expected = if chunk % 2 == 0 { u8::try_from(chunk).unwrap() + 1 } else { 0 };
            assert_eq!(byte[0], expected, "{mode}: chunk {chunk}");
        }
    }
}

#[test]
fn damage_in_a_block_is_found_and_beside_it_is_not_looked_for() {
    for mode in [MemoryMode::Cow, MemoryMode::OnDemand] {
        let saved = Arc::new(saved());
        saved.base().file.write_all_at(&[0], BLOCK + 7).unwrap();
        placed(mode, &saved).unwrap();
        saved.base().file.write_all_at(&[0], 2 * BLOCK + 7).unwrap();
        let error = placed(mode, &saved).unwrap_err().to_string();
        assert!(error.contains("memory at 0x400000 is damaged"), "{error}");
    }
}
