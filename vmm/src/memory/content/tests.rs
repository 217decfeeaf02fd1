//! Content that was saved comes back, and damage is found.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use vm_memory::{MmapRegion, VolatileMemory};
use vm_migration::snapshot::{CHUNK_SIZE, ChunkError, MemoryFile, MemoryTable, SavedMemory};

use super::{ContentError, MemoryMode, RestorePlan, load, save, verify};
use crate::{
    config::MemoryZoneConfig,
    memory::{GuestMemory, Locking, OwnFiles, ahead::ReadAhead},
};

const PAGE: u64 = 4096;

pub(in crate::memory) fn zone(id: &str, size: u64) -> MemoryZoneConfig {
    MemoryZoneConfig {
        id: id.into(),
        size,
        file: None,
        shared: false,
        hugepage_size: None,
        host_numa_node: None,
        prefault: false,
        reserve: false,
        mergeable: false,
        thp: false,
        hotplug_size: 0,
    }
}

fn write(mapping: &MmapRegion, at: u64, value: u8) {
    mapping.get_slice(usize::try_from(at).unwrap(), 8).unwrap().copy_from(&[value; 8]);
}

fn read(mapping: &MmapRegion, at: u64) -> u8 {
    let mut value = [0];
    mapping.get_slice(usize::try_from(at).unwrap(), 1).unwrap().copy_to(&mut value);
    value[0]
}

/// Two zones, the second of which does not end with a chunk, and a few written pages.
struct Saved {
    zones: Vec<MemoryZoneConfig>,
    memory: Arc<SavedMemory>,
    stored: u64,
}

const PLACES: [(usize, u64, u8); 6] = [
    (0, 0, 1),
    (0, CHUNK_SIZE - PAGE, 2),
    (0, 40 * CHUNK_SIZE + 3 * PAGE, 3),
    (1, 5 * PAGE, 4),
    (1, 2 * CHUNK_SIZE + 2 * PAGE, 5),
    (0, 63 * CHUNK_SIZE, 6),
];

fn path() -> PathBuf {
    PathBuf::from("memory-ranges")
}

fn saved(shared: bool) -> Saved {
    let mut zones = vec![zone("a", 64 * CHUNK_SIZE), zone("b", 2 * CHUNK_SIZE + 3 * PAGE)];
    zones.iter_mut().for_each(|zone| zone.shared = shared);
    let guest = GuestMemory::map(&zones, &()).unwrap();
    let memory = guest.zones();
    for (zone, at, value) in PLACES {
        write(&memory[zone].1, at, value);
    }
    // Written, and zero again: takes no room.
    write(&memory[0].1, 20 * CHUNK_SIZE, 0);
    let sizes = zones.iter().map(|zone| (zone.id.as_str(), zone.size, true));
    let mut table = MemoryTable::new(sizes).unwrap();
    let file = tempfile::tempfile().unwrap();
    let stored = store(&guest, &mut table, &file).unwrap();
    Saved { zones, memory: Arc::new(SavedMemory::new(table, MemoryFile::new(file, path()))), stored }
}

fn store(guest: &GuestMemory, table: &mut MemoryTable, file: &File) -> Result<u64, ContentError> {
    let pages = guest.pages(&["a", "b"]).unwrap();
    save(&pages, None, table, (file, Path::new("target/memory-ranges")), &()).map(|stored| stored.bytes)
}

fn restored(saved: &Saved, mode: Option<MemoryMode>) -> GuestMemory {
    let plan = RestorePlan::new(&saved.zones, saved.memory.table(), mode).unwrap();
    let mut files = OwnFiles::open(&saved.zones, &plan, Locking::Take, &()).unwrap();
    let ahead = ReadAhead::default();
    let memory =
        GuestMemory::map_restored(&saved.zones, &plan, &saved.memory, &ahead, &mut files, &()).unwrap();
    files.keep();
    let copied = memory.zones().into_iter().filter(|(zone, _)| plan.mode(zone) == Some(MemoryMode::Copy));
    load(&copied.collect::<Vec<_>>(), &saved.memory, true, &()).unwrap();
    memory
}

#[test]
fn only_what_is_not_zero_is_stored() {
    for shared in [false, true] {
        let saved = saved(shared);
        assert_eq!(saved.stored, PLACES.len() as u64 * PAGE);
        assert_eq!(saved.memory.table().chunks.count(), 5);
        assert_eq!(saved.memory.base().file.metadata().unwrap().len(), 67 * CHUNK_SIZE);
        assert!(saved.memory.base().file.metadata().unwrap().blocks() * 512 <= 64 * PAGE, "sparse");
        verify(&saved.memory, true, &()).unwrap();
    }
}

#[test]
fn every_mode_brings_it_back() {
    for mode in [None, Some(MemoryMode::Copy), Some(MemoryMode::Cow)] {
        let saved = saved(false);
        let guest = restored(&saved, mode);
        let memory = guest.zones();
        for (zone, at, value) in PLACES {
            assert_eq!(read(&memory[zone].1, at), value, "{mode:?} {zone} {at:#x}");
        }
        assert_eq!(read(&memory[0].1, 10 * CHUNK_SIZE), 0);
        assert_eq!(read(&memory[1].1, 0), 0);
        // A machine that goes on leaves the snapshot as it is, and can be saved again.
        write(&memory[1].1, 0, 9);
        verify(&saved.memory, true, &()).unwrap();
        let mut table = saved.memory.table().clone();
        let again = tempfile::tempfile().unwrap();
        let stored = store(&guest, &mut table, &again).unwrap();
        assert_eq!(stored, saved.stored + PAGE, "{mode:?}");
    }
}

#[test]
fn zones_get_what_they_can_have() {
    let directory = tempfile::tempdir().unwrap();
    let plain = zone("a", 2 * CHUNK_SIZE);
    let table = MemoryTable::new([("a", plain.size, true)]).unwrap();
    let shared = MemoryZoneConfig { shared: true, ..plain.clone() };
    let shared_file = MemoryZoneConfig { file: Some(directory.path().join("zone")), ..shared.clone() };
    let huge = MemoryZoneConfig { hugepage_size: Some(2 << 20), ..plain.clone() };
    let nameless = MemoryZoneConfig { file: Some(directory.path().into()), ..plain.clone() };
    let why = [
        "is shared, and what other processes touch cannot be brought in",
        "is backed by huge pages, and the snapshot's file is not",
        "is backed by a file in a directory of its own",
    ];
    for (zone, why) in [
        (plain, None),
        (shared, Some(why[0])),
        (shared_file, Some(why[0])),
        (huge, Some(why[1])),
        (nameless, Some(why[2])),
    ] {
        let zones = [zone];
        let planned = |asked| RestorePlan::new(&zones, &table, asked);
        // What cannot be is replaced where nothing is asked for, and refused where it is; to be copied anything can.
        let mode = if why.is_some() { MemoryMode::Copy } else { MemoryMode::Cow };
        let chosen = &planned(None).unwrap().zones[0];
        assert_eq!((chosen.mode, chosen.why), (mode, why), "{zones:?}");
        let copied = &planned(Some(MemoryMode::Copy)).unwrap().zones[0];
        assert_eq!((copied.mode, copied.why), (MemoryMode::Copy, None), "{zones:?}");
        for asked in [MemoryMode::Cow, MemoryMode::OnDemand] {
            match (planned(Some(asked)), why) {
                (Ok(plan), None) => assert_eq!(plan.zones[0].mode, asked),
                (Err(refused), Some(why)) => {
                    let expected = format!("memory mode {asked}: memory zone a {why}");
                    assert_eq!(refused.to_string(), expected);
                }
                (plan, _) => panic!("{zones:?}: {plan:?}"),
            }
        }
    }
    let saved = saved(true);
    let memory = restored(&saved, None).zones();
    for (zone, at, value) in PLACES {
        assert_eq!(read(&memory[zone].1, at), value);
    }
}

#[test]
fn a_private_zones_file_is_not_used_and_that_is_said() {
    let mut saved = self::saved(false);
    saved.zones[0].file = Some("/of/another/machine".into());
    for asked in [None, Some(MemoryMode::Copy), Some(MemoryMode::Cow), Some(MemoryMode::OnDemand)] {
        let plan = RestorePlan::new(&saved.zones, saved.memory.table(), asked).unwrap();
        let [first, second] = &plan.zones[..] else { panic!("there are two zones") };
        assert_eq!((first.mode, second.mode), (asked.unwrap_or(MemoryMode::Cow), first.mode));
        assert!(first.why.is_some_and(|why| why.contains("its own file is not used")), "{first:?}");
        assert_eq!(second.why, None);
    }
}

#[test]
fn zones_that_differ_are_refused() {
    let saved = saved(false);
    let refused = |zones: &[MemoryZoneConfig]| {
        RestorePlan::new(zones, saved.memory.table(), None).unwrap_err().to_string()
    };
    assert!(refused(&saved.zones[..1]).contains("b: is in the snapshot, and not configured"));
    let mut more = saved.zones.clone();
    more.push(zone("c", PAGE));
    assert!(refused(&more).contains("c: is not in the snapshot"));
    let mut larger = saved.zones.clone();
    larger[0].size += PAGE;
    assert!(refused(&larger).contains("a: 16777216 bytes in the snapshot"));
}

#[test]
fn a_zones_own_file_keeps_its_content() {
    let directory = tempfile::tempdir().unwrap();
    let mut own = zone("a", 4 * CHUNK_SIZE);
    own.file = Some(directory.path().join("zone"));
    own.shared = true;
    let zones = vec![own];
    let guest = GuestMemory::map(&zones, &()).unwrap();
    write(&guest.zones()[0].1, PAGE, 7);
    let keep = super::is_kept_in_snapshot(&zones[0]);
    let mut table = MemoryTable::new([("a", zones[0].size, keep)]).unwrap();
    let file = tempfile::tempfile().unwrap();
    assert_eq!(store(&guest, &mut table, &file).unwrap(), 0);
    assert_eq!((table.size, table.chunks.count()), (0, 0));
    // Many machines from one template: each maps the file privately.
    let mut private = zones.clone();
    private[0].shared = false;
    let saved = Saved {
        zones: private,
        memory: Arc::new(SavedMemory::new(table, MemoryFile::new(file, path()))),
        stored: 0,
    };
    // Once the template itself is gone.
    drop(guest);
    let memory = restored(&saved, None).zones();
    assert_eq!(read(&memory[0].1, PAGE), 7);
    write(&memory[0].1, PAGE, 8);
    let mut missing = saved.zones.clone();
    missing[0].file = None;
    let refused = RestorePlan::new(&missing, saved.memory.table(), None).unwrap_err().to_string();
    assert!(refused.contains("left in its own file"), "{refused}");
}

#[test]
fn damage_is_found_before_it_is_used() {
    let saved = saved(false);
    let damage = |at: u64| {
        let mut byte = [0];
        saved.memory.base().file.read_exact_at(&mut byte, at).unwrap();
        saved.memory.base().file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    };
    let check = || verify(&saved.memory, true, &());
    // In what was stored, and in what was not.
    for at in [3, CHUNK_SIZE - 1, 40 * CHUNK_SIZE + 5, 10 * CHUNK_SIZE, 66 * CHUNK_SIZE + 4 * PAGE] {
        damage(at);
        let error = check().unwrap_err();
        assert!(
            matches!(error, ContentError::Saved(ChunkError::Damaged { offset, .. }) if offset == at / CHUNK_SIZE * CHUNK_SIZE)
        );
        damage(at);
        check().unwrap();
    }
    damage(40 * CHUNK_SIZE + 5);
    let plan = RestorePlan::new(&saved.zones, saved.memory.table(), Some(MemoryMode::Copy)).unwrap();
    let memory = GuestMemory::map_restored(
        &saved.zones,
        &plan,
        &saved.memory,
        &ReadAhead::default(),
        &mut OwnFiles::default(),
        &(),
    )
    .unwrap()
    .zones();
    let error = load(&memory, &saved.memory, true, &()).unwrap_err();
    assert!(error.to_string().contains("memory at 0xa00000 is damaged"), "{error}");
}

#[test]
fn files_that_cannot_be_written_or_read_are_named() {
    let saved = saved(false);
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let guest = restored(&saved, None);
    let mut table = saved.memory.table().clone();
    let error = store(&guest, &mut table, &full);
    assert!(error.unwrap_err().to_string().contains("cannot write target/memory-ranges"));
    let short = SavedMemory::new(
        saved.memory.table().clone(),
        MemoryFile::new(tempfile::tempfile().unwrap(), path()),
    );
    let error = load(&guest.zones(), &short, true, &()).unwrap_err();
    assert!(matches!(error, ContentError::Saved(ChunkError::Read { .. })));
}
