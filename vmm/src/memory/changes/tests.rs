//! What changed is found in every way, and a chain is what the memory was.

use std::{fs::File, os::unix::fs::MetadataExt, path::Path, sync::Arc};

use vm_memory::{MmapRegion, VolatileMemory};
use vm_migration::snapshot::{CHUNK_SIZE, MemoryFile, MemoryTable, PAGE_SIZE, PageRuns, SavedMemory};

use super::*;
use crate::{
    config::MemoryZoneConfig,
    memory::{
        OwnFiles,
        ahead::{ReadAhead, ZoneAhead},
        content::{ContentError, Tally, load, save, verify},
        demand::{Pager, Source},
        mapping, overlays,
    },
};

const SIZE: u64 = 40 * CHUNK_SIZE + 3 * PAGE_SIZE;

fn zone(shared: bool) -> MemoryZoneConfig {
    MemoryZoneConfig { shared, ..crate::memory::content::tests::zone("a", SIZE) }
}

fn write(memory: &GuestMemory, page: u64, value: u8) {
    let at = usize::try_from(page * PAGE_SIZE + 8).unwrap();
    memory.zones()[0].1.get_slice(at, 8).unwrap().copy_from(&[value; 8]);
}

fn content(memory: &MmapRegion) -> Vec<u8> {
    let mut all = vec![0; memory.size()];
    memory.get_slice(0, all.len()).unwrap().copy_to(&mut all);
    all
}

fn of(memory: &GuestMemory) -> Vec<u8> {
    content(&memory.zones()[0].1)
}

/// A snapshot's memory, without a directory around it.
struct Taken {
    memory: Arc<SavedMemory>,
    layers: Vec<(MemoryFile, PageRuns)>,
    bytes: u64,
    pages: u64,
    way: Option<Way>,
}

fn table() -> MemoryTable {
    MemoryTable::new([("a", SIZE, true)]).unwrap()
}

fn full(memory: &GuestMemory) -> Taken {
    let (mut table, file) = (table(), tempfile::tempfile().unwrap());
    let pages = memory.pages(&["a"]).unwrap();
    let bytes = save(&pages, None, &mut table, (&file, Path::new("full")), &()).unwrap().bytes;
    let memory = Arc::new(SavedMemory::new(table, MemoryFile::new(file, "full".into())));
    Taken { memory, layers: Vec::new(), bytes, pages: 0, way: None }
}

fn on_top(memory: &GuestMemory, root: u32, parent: &Taken) -> Taken {
    let (mut table, file) = (table(), tempfile::tempfile().unwrap());
    let (pages, ways) = memory.changes(root, &parent.memory).unwrap();
    let target: (&File, &Path) = (&file, Path::new("difference"));
    let stored = save(&pages, Some(&parent.memory), &mut table, target, &()).unwrap();
    let below = parent.layers.iter().map(|(file, pages)| (file.clone(), pages.without(&stored.own)));
    let mut layers: Vec<_> = below.collect();
    layers.push((MemoryFile::new(file, "difference".into()), stored.own.clone()));
    let base = SavedMemory::new(table, parent.memory.base().clone());
    let memory = base.with_layers(layers.iter().map(|(file, pages)| (file.clone(), pages)));
    let way = Some(ways[0].way);
    Taken { memory: Arc::new(memory), layers, bytes: stored.bytes, pages: stored.own.pages(), way }
}

fn restored(taken: &Taken, mode: MemoryMode, root: u32) -> GuestMemory {
    verify(&taken.memory, true, &()).unwrap();
    let zones = [zone(false)];
    let plan = RestorePlan::new(&zones, taken.memory.table(), Some(mode)).unwrap();
    let mut memory = GuestMemory::map_restored(
        &zones,
        &plan,
        &taken.memory,
        &ReadAhead::default(),
        &mut OwnFiles::default(),
        &(),
    )
    .unwrap();
    let source = Source { saved: Arc::clone(&taken.memory), check: true };
    let on_failure = Arc::new(|error: &ContentError| panic!("{error}"));
    memory.page_in(&plan, source, &ReadAhead::default(), false, on_failure).unwrap();
    if mode == MemoryMode::Copy {
        load(&memory.zones(), &taken.memory, true, &()).unwrap();
    }
    memory.came_from(root, &plan);
    memory
}

const MODES: [MemoryMode; 3] = [MemoryMode::Copy, MemoryMode::Cow, MemoryMode::OnDemand];

/// Pages in several chunks: some alone, some in a row, some at an end.
fn first() -> GuestMemory {
    let memory = GuestMemory::map(&[zone(false)], &()).unwrap();
    for page in [0, 1, 2, 63, 64, 65, 640, 700, 1000, SIZE / PAGE_SIZE - 1] {
        write(&memory, page, u8::try_from(page % 200 + 1).unwrap());
    }
    memory
}

#[test]
fn a_chain_is_what_the_memory_was_in_every_mode() {
    let memory = first();
    let bottom = full(&memory);
    let at_bottom = of(&memory);
    // Written anew, written to what was zero, zero where it was not, written with what was there.
    write(&memory, 1, 99);
    write(&memory, 300, 7);
    write(&memory, 640, 0);
    write(&memory, 63, 64);
    let middle = on_top(&memory, 1, &bottom);
    assert_eq!((middle.way, middle.pages, middle.bytes), (Some(Way::Compared), 3, 2 * PAGE_SIZE));
    let at_middle = of(&memory);
    write(&memory, 1, 100);
    write(&memory, 301, 8);
    write(&memory, SIZE / PAGE_SIZE - 1, 0);
    let top = on_top(&memory, 2, &middle);
    assert_eq!((top.pages, top.bytes), (3, 2 * PAGE_SIZE));
    let blocks = top.layers[1].0.file.metadata().unwrap().blocks();
    assert!(blocks * 512 <= 4 * PAGE_SIZE, "sparse: {blocks} blocks");
    for (taken, expected) in [(&bottom, at_bottom), (&middle, at_middle), (&top, of(&memory))] {
        for mode in MODES {
            assert!(of(&restored(taken, mode, 0)) == expected, "{mode}");
        }
    }
}

#[test]
fn a_snapshot_of_what_came_out_of_its_parent() {
    let memory = first();
    let bottom = full(&memory);
    write(&memory, 5, 50);
    write(&memory, 640, 0);
    let middle = on_top(&memory, 1, &bottom);
    for (mode, way) in MODES.into_iter().zip([Way::Compared, Way::Mapped, Way::Paged]) {
        let memory = restored(&middle, mode, 2);
        write(&memory, 2, 200);
        write(&memory, 640, 4);
        write(&memory, 700, 0);
        // Read, and written with what was there.
        write(&memory, 5, 50);
        let brought = memory.pager().map(Pager::brought);
        let top = on_top(&memory, 2, &middle);
        assert_eq!((top.way, top.pages, top.bytes), (Some(way), 3, 2 * PAGE_SIZE), "{mode}");
        assert_eq!(memory.pager().map(Pager::brought), brought, "nothing was brought in for it");
        let expected = of(&memory);
        for mode in MODES {
            assert!(of(&restored(&top, mode, 0)) == expected, "{mode}");
        }
        // Of another snapshot than the parent nothing is known but its content.
        if mode != MemoryMode::OnDemand {
            assert_eq!(on_top(&memory, 1, &bottom).way, Some(Way::Compared));
        }
        // All of it, with what comes from every file of the chain.
        let again = full(&memory);
        assert!(of(&restored(&again, MemoryMode::Copy, 0)) == expected, "{mode}");
    }
}

/// How much each phase has to work through.
#[derive(Default)]
struct Totals(parking_lot::Mutex<Vec<(&'static str, u64)>>);

impl Tally for Totals {
    fn phase(&self, phase: &'static str, bytes_total: Option<u64>) {
        self.0.lock().extend(bytes_total.map(|bytes| (phase, bytes)));
    }

    fn add(&self, _bytes: u64) {}

    fn is_cancelled(&self) -> bool {
        false
    }
}

#[test]
fn what_is_zero_is_not_looked_at_again_after_it_was_paged_in() {
    let memory = first();
    let bottom = full(&memory);
    let expected = of(&memory);
    let mut memory = restored(&bottom, MemoryMode::OnDemand, 1);
    // What is read of what is zero stays so.
    memory.zones()[0].1.get_slice(20 * 64 * 4096, 1).unwrap().copy_to(&mut [0u8]);
    let totals = Totals::default();
    memory.fill(&totals).unwrap();
    let save_all = |memory: &GuestMemory| {
        let (mut table, file) = (table(), tempfile::tempfile().unwrap());
        let pages = memory.pages(&["a"]).unwrap();
        save(&pages, None, &mut table, (&file, Path::new("full")), &totals).unwrap();
        assert_eq!(&table, bottom.memory.table());
    };
    save_all(&memory);
    // Five chunks have something; the last of them is three pages long.
    let memory_bytes = 4 * CHUNK_SIZE + 3 * PAGE_SIZE;
    assert_eq!(*totals.0.lock(), [("fill", 5 * CHUNK_SIZE), ("memory", memory_bytes)]);
    memory.end_paging();
    save_all(&memory);
    assert_eq!(totals.0.lock().pop(), Some(("memory", memory_bytes)));
    assert!(of(&memory) == expected, "what never came in is zero");
}

#[test]
fn writes_are_tracked_from_snapshot_to_snapshot() {
    let zones = [zone(false)];
    let mut memory = first();
    let track = |memory: &mut GuestMemory| memory.track(&[&zones[0]]).unwrap();
    track(&mut memory);
    let mut below = full(&memory);
    memory.tracker().as_mut().unwrap().begin_at(1);
    for (root, page) in [(1u32, 10u64), (2, 2000), (3, 11)] {
        write(&memory, page, 77);
        write(&memory, 640, u8::try_from(root - 1).unwrap());
        // A snapshot that failed has asked, too.
        track(&mut memory);
        write(&memory, page + 1, 78);
        track(&mut memory);
        let taken = on_top(&memory, root, &below);
        assert_eq!((taken.way, taken.pages), (Some(Way::Tracked), 3), "{root}");
        assert_eq!(on_top(&memory, 99, &below).way, Some(Way::Compared));
        memory.tracker().as_mut().unwrap().begin_at(root + 1);
        assert!(of(&restored(&taken, MemoryMode::Copy, 0)) == of(&memory));
        below = taken;
    }
    // What is thrown away is zero, and nobody wrote it.
    mapping::discard(&memory.zones()[0].1, 700 * 4096, 4096).unwrap();
    track(&mut memory);
    let taken = on_top(&memory, 4, &below);
    assert_eq!((taken.pages, taken.bytes), (1, 0));
    assert!(of(&restored(&taken, MemoryMode::Cow, 0)) == of(&memory));
    // Reading changes nothing.
    memory.tracker().as_mut().unwrap().begin_at(5);
    assert!(of(&memory)[700 * 4096 + 8] == 0);
    track(&mut memory);
    assert_eq!(on_top(&memory, 5, &taken).pages, 0);
}

#[test]
fn what_was_written_as_a_whole_is_stored_as_a_whole() {
    let pages = CHUNK_SIZE / PAGE_SIZE;
    let bottom = full(&first());
    let memory = restored(&bottom, MemoryMode::Cow, 1);
    // The first chunk had something, and has less now; the second but last had nothing.
    for page in (0..pages).chain(38 * pages..39 * pages) {
        write(&memory, page, u8::from(page == 5 || page == 38 * pages + 1));
    }
    let top = on_top(&memory, 1, &bottom);
    assert_eq!((top.way, top.pages, top.bytes), (Some(Way::Mapped), pages + 1, 2 * PAGE_SIZE));
    // Nothing of it is read, nor does it matter.
    for mode in MODES {
        assert!(of(&restored(&top, mode, 0)) == of(&memory), "{mode}");
    }
    let all = restored(&top, MemoryMode::OnDemand, 2);
    assert!(of(&all) == of(&memory));
    assert_eq!(on_top(&all, 2, &top).pages, 0, "what was only paged in has not changed");
}

#[test]
fn what_was_mapped_from_a_snapshot_can_be_tracked_too() {
    let zones = [zone(false)];
    let bottom = full(&first());
    for mode in [MemoryMode::Cow, MemoryMode::OnDemand] {
        let mut memory = restored(&bottom, mode, 1);
        write(&memory, 3, 30);
        memory.fill(&()).unwrap();
        memory.end_paging();
        memory.track(&[&zones[0]]).unwrap();
        let middle = on_top(&memory, 1, &bottom);
        assert_eq!(middle.pages, 1, "{mode}");
        memory.tracker().as_mut().unwrap().begin_at(2);
        // Read for the first time, and written: one was there before, one was not.
        assert_eq!(of(&memory)[64 * 4096 + 8], 65);
        write(&memory, 3, 31);
        write(&memory, 64, 0);
        memory.track(&[&zones[0]]).unwrap();
        let top = on_top(&memory, 2, &middle);
        assert_eq!((top.way, top.pages), (Some(Way::Tracked), 2), "{mode}");
        assert!(of(&restored(&top, MemoryMode::Cow, 0)) == of(&memory), "{mode}");
    }
}

#[test]
fn shared_memory_is_compared_and_cannot_be_tracked() {
    let zones = [zone(true)];
    let mut memory = GuestMemory::map(&zones, &()).unwrap();
    write(&memory, 9, 9);
    let bottom = full(&memory);
    write(&memory, 9, 0);
    write(&memory, 10, 1);
    let top = on_top(&memory, 1, &bottom);
    assert_eq!((top.way, top.pages, top.bytes), (Some(Way::Compared), 2, PAGE_SIZE));
    let error = memory.track(&[&zones[0]]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "writes to memory zone a cannot be tracked: it is shared, and what other processes write is not seen"
    );
    assert!(memory.tracker().is_none());
}

#[test]
fn runs_that_are_too_many_are_copied_in() {
    let memory = first();
    let bottom = full(&memory);
    for page in (0..400).step_by(2) {
        write(&memory, page, 250);
    }
    for page in 500..520 {
        write(&memory, page, 4);
    }
    let top = on_top(&memory, 1, &bottom);
    let base = content_of_base(&top);
    for (most, copied) in [(201, 0), (100, 101), (1, 200), (0, 220)] {
        let overlays = overlays::Overlays::within(&top.memory, 0..SIZE, most);
        assert_eq!(overlays.copied_bytes(), copied * PAGE_SIZE, "{most}");
        let shown = base();
        overlays.show("a", &shown).unwrap();
        assert!(content(&shown) == of(&memory), "{most}");
    }
}

/// Maps the base of a chain privately, each time anew.
fn content_of_base(taken: &Taken) -> impl Fn() -> MmapRegion {
    let file = Arc::clone(&taken.memory.base().file);
    move || {
        let behind = vm_memory::FileOffset::from_arc(Arc::clone(&file), 0);
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        MmapRegion::build(Some(behind), usize::try_from(SIZE).unwrap(), rights, libc::MAP_PRIVATE).unwrap()
    }
}

#[test]
fn a_damaged_parent_is_not_built_on() {
    use std::os::unix::fs::FileExt;
    let memory = first();
    let bottom = full(&memory);
    bottom.memory.base().file.write_all_at(&[1], 640 * PAGE_SIZE + 100).unwrap();
    write(&memory, 641, 1);
    let (pages, _) = memory.changes(1, &bottom.memory).unwrap();
    let file = tempfile::tempfile().unwrap();
    let error = save(&pages, Some(&bottom.memory), &mut table(), (&file, Path::new("x")), &()).unwrap_err();
    assert!(matches!(error, ContentError::Saved(_)));
    assert!(error.to_string().starts_with("full: memory at 0x280000 is damaged"), "{error}");
}

#[test]
fn what_was_read_ahead_has_not_changed_for_that() {
    let zones = [zone(false)];
    let bottom = full(&first());
    let plan = RestorePlan::new(&zones, bottom.memory.table(), Some(MemoryMode::Cow)).unwrap();
    let block = ZoneAhead { zone: "a".into(), blocks: vec![0], pieces: Vec::new() };
    let ahead = ReadAhead { zones: vec![block] };
    let mut memory =
        GuestMemory::map_restored(&zones, &plan, &bottom.memory, &ahead, &mut OwnFiles::default(), &())
            .unwrap();
    memory.place(&plan, &ahead, &bottom.memory, true, &()).unwrap();
    memory.came_from(1, &plan);
    write(&memory, 2, 50);
    write(&memory, 700, 51);
    // There is no file below it any more.
    mapping::discard(&memory.zones()[0].1, 64 * 4096, 4096).unwrap();
    let top = on_top(&memory, 1, &bottom);
    assert_eq!((top.way, top.pages, top.bytes), (Some(Way::Mapped), 3, 2 * PAGE_SIZE));
    assert!(of(&restored(&top, MemoryMode::Copy, 0)) == of(&memory));
}

#[test]
fn tracking_makes_nothing_of_what_is_not_there() {
    let zones = [zone(false)];
    let bottom = full(&first());
    for (mut memory, pages) in [(first(), 10), (restored(&bottom, MemoryMode::Cow, 1), 1)] {
        write(&memory, 3 - 2 * u64::from(pages == 10), 30);
        for _ in 0..2 {
            memory.track(&[&zones[0]]).unwrap();
            assert_eq!(own(&memory.zones()[0].1).unwrap().pages(), pages);
        }
    }
}

#[test]
fn what_is_thrown_away_is_the_files_again_and_that_is_a_change() {
    let zones = [zone(false)];
    let bottom = full(&first());
    let mut memory = restored(&bottom, MemoryMode::Cow, 1);
    write(&memory, 1, 99);
    write(&memory, 2, 98);
    memory.track(&[&zones[0]]).unwrap();
    let middle = on_top(&memory, 1, &bottom);
    memory.tracker().as_mut().unwrap().begin_at(2);
    // One that was protected, and one that had been written since.
    write(&memory, 2, 97);
    for page in [1, 2] {
        mapping::discard(&memory.zones()[0].1, page * 4096, 4096).unwrap();
    }
    memory.track(&[&zones[0]]).unwrap();
    let top = on_top(&memory, 2, &middle);
    assert_eq!((top.way, top.pages), (Some(Way::Tracked), 2));
    assert!(of(&restored(&top, MemoryMode::Copy, 0)) == of(&memory));
    assert_eq!(of(&memory)[4096 + 8], 2, "as at the bottom");
}
