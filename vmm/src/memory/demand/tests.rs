//! What is touched is what was saved, and damage is never seen.

use std::{os::unix::fs::FileExt, sync::mpsc};

use vm_memory::VolatileMemory;
use vm_migration::snapshot::{CHUNK_SIZE, ChunkDigests, MemoryFile, MemoryTable};

use super::*;

/// A file of eight chunks of which every second one is zero, and its table.
fn source() -> Source {
    let file = tempfile::tempfile().unwrap();
    let mut table = MemoryTable::new([("a", 8 * CHUNK_SIZE - 4096, true)]).unwrap();
    file.set_len(table.size).unwrap();
    let mut digests = Vec::new();
    for chunk in (0..8u8).step_by(2) {
        let content = vec![chunk + 1; usize::try_from(CHUNK_SIZE).unwrap()];
        file.write_all_at(&content, u64::from(chunk) * CHUNK_SIZE).unwrap();
        digests.push((u64::from(chunk), crc32c::crc32c(&content)));
    }
    table.chunks = ChunkDigests::from_sorted(digests);
    Source {
        saved: Arc::new(SavedMemory::new(table, MemoryFile::new(file, "memory-ranges".into()))),
        check: true,
    }
}

fn mapping() -> Arc<MmapRegion> {
    Arc::new(MmapRegion::new(usize::try_from(8 * CHUNK_SIZE - 4096).unwrap()).unwrap())
}

fn read(mapping: &MmapRegion, at: u64) -> u8 {
    let mut value = [0];
    mapping.get_slice(usize::try_from(at).unwrap(), 1).unwrap().copy_to(&mut value);
    value[0]
}

fn start(source: Source) -> (Arc<MmapRegion>, Pager, mpsc::Receiver<String>) {
    let mapping = mapping();
    let (sender, receiver) = mpsc::channel();
    let on_failure: OnFailure = Arc::new(move |error| drop(sender.send(error.to_string())));
    let zone = DemandZone { mapping: Arc::clone(&mapping), offset: 0, present: Vec::new() };
    let pager = Pager::start(vec![zone], source, on_failure, true).unwrap();
    (mapping, pager, receiver)
}

/// A pager of a machine that is there, whose third chunk is damaged; and the file.
fn start_damaged() -> (Arc<MmapRegion>, Pager, mpsc::Receiver<String>, Arc<std::fs::File>) {
    let source = source();
    source.saved.base().file.write_all_at(&[0xff], 2 * CHUNK_SIZE + 7).unwrap();
    let file = Arc::clone(&source.saved.base().file);
    let (mapping, pager, failures) = start(source);
    (mapping, pager, failures, file)
}

#[test]
fn pages_come_as_they_are_touched() {
    let (mapping, pager, _) = start(source());
    assert_eq!(pager.brought(), 0);
    for (chunk, value) in [(6, 7), (1, 0), (0, 1), (7, 0)] {
        assert_eq!(read(&mapping, chunk * CHUNK_SIZE + 5000), value);
    }
    assert_eq!(pager.brought(), 4 * CHUNK_SIZE - 4096);
    mapping.get_slice(usize::try_from(3 * CHUNK_SIZE).unwrap(), 1).unwrap().copy_from(&[0u8]);
    let touched = pager.filler().take_touched();
    let expected = [6, 1, 0, 7].map(|chunk| Touch { chunk, written: false });
    assert_eq!(touched, [&expected[..], &[Touch { chunk: 3, written: true }]].concat());
    // Many at once, on the same chunks.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for at in (0..8 * CHUNK_SIZE - 4096).step_by(4096) {
                    let chunk = u8::try_from(at / CHUNK_SIZE).unwrap();
                    assert_eq!(read(&mapping, at), if chunk.is_multiple_of(2) { chunk + 1 } else { 0 });
                }
            });
        }
    });
    assert_eq!(pager.brought(), 8 * CHUNK_SIZE - 4096);
}

#[test]
fn the_rest_can_be_filled_and_a_part_fetched_before() {
    let (mapping, pager, _) = start(source());
    let (filler, mut buffer) = (pager.filler(), vec![0; usize::try_from(CHUNK_SIZE).unwrap()]);
    let brought = [4, 5, 99, 4].map(|chunk| filler.bring(chunk, &mut buffer).unwrap());
    assert_eq!(brought, [true, true, false, false]);
    assert_eq!(pager.brought(), 2 * CHUNK_SIZE);
    pager.fill(&()).unwrap();
    // The four that are stored, and a fifth that was fetched.
    assert_eq!(pager.brought(), 5 * CHUNK_SIZE);
    drop(filler);
    drop(pager);
    for chunk in 0..7u8 {
        let value = if chunk.is_multiple_of(2) { chunk + 1 } else { 0 };
        assert_eq!(read(&mapping, u64::from(chunk) * CHUNK_SIZE + 99), value);
    }
    assert_eq!(read(&mapping, 3 * CHUNK_SIZE), 0);
}

#[test]
fn damage_is_told_and_not_put_there() {
    let (mapping, pager, failures, file) = start_damaged();
    assert_eq!(read(&mapping, 0), 1);
    pager.building().end().unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&mapping, 2 * CHUNK_SIZE));
        let failure = failures.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
        assert!(failure.contains("memory at 0x80000 is damaged"), "{failure}");
        assert!(!reader.is_finished(), "nobody sees it");
        assert!(pager.fill(&()).is_err());
        // The file is mended: whoever waited goes on.
        file.write_all_at(&[3], 2 * CHUNK_SIZE + 7).unwrap();
        pager.fill(&()).unwrap();
        assert_eq!(reader.join().unwrap(), 3);
    });
}

#[test]
fn nobody_waits_for_what_a_machine_that_is_being_built_cannot_have() {
    let (mapping, pager, failures, _) = start_damaged();
    let building = pager.building();
    assert_eq!((read(&mapping, 4 * CHUNK_SIZE), read(&mapping, 2 * CHUNK_SIZE + 5)), (5, 0));
    // All else is as good as gone, too.
    assert_eq!(read(&mapping, 6 * CHUNK_SIZE), 0);
    let error = building.end().unwrap_err().to_string();
    assert!(error.contains("memory at 0x80000 is damaged"), "{error}");
    assert!(failures.try_recv().is_err() && !pager.has_failed(), "whoever builds it is told, nobody else");
    drop(pager);
}

#[test]
fn whoever_waits_is_let_go_when_the_machine_stands_still() {
    let (mapping, pager, failures, _) = start_damaged();
    pager.building().end().unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&mapping, 2 * CHUNK_SIZE));
        failures.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
        assert!(pager.has_failed() && !reader.is_finished());
        pager.let_go();
        assert_eq!(reader.join().unwrap(), 0);
    });
    assert!(failures.try_recv().is_err());
}

#[test]
fn whoever_touches_what_is_on_its_way_and_does_not_come_is_heard() {
    let (mapping, pager, failures, _) = start_damaged();
    pager.building().end().unwrap();
    let (zone, chunk) = (&pager.shared.zones[0], 2);
    // Somebody else brings it in.
    zone.chunks[chunk].store(COMING, Ordering::Release);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&mapping, 2 * CHUNK_SIZE));
        while pager.shared.touched.lock().as_ref().is_none_or(Vec::is_empty) {
            std::thread::yield_now();
        }
        assert!(failures.try_recv().is_err());
        zone.chunks[chunk].store(MISSING, Ordering::Release);
        assert!(pager.shared.bring_beside(zone, chunk, &mut pager.shared.buffer()).is_err());
        let failure = failures.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
        assert!(failure.contains("memory at 0x80000 is damaged"), "{failure}");
        pager.let_go();
        reader.join().unwrap();
    });
}

#[test]
fn what_was_brought_in_by_half_is_brought_in_by_the_rest() {
    let (mapping, pager, _) = start(source());
    let start = mapping.as_ptr() as u64;
    let uffd = &pager.shared.uffd;
    // As a call leaves it that ends early, for want of memory: of what is stored, and of what is zero.
    uffd.copy(start, &[1; 3 * 4096]).unwrap();
    uffd.zero(start + CHUNK_SIZE + 8192, 4096).unwrap();
    // Whoever waited for these has gone on, and has written.
    for at in [4096, CHUNK_SIZE + 8192] {
        mapping.get_slice(usize::try_from(at).unwrap(), 1).unwrap().copy_from(&[200u8]);
    }
    pager.fill(&()).unwrap();
    for (at, value) in [(0, 1), (4096, 200), (4097, 1), (3 * 4096, 1), (CHUNK_SIZE - 1, 1)] {
        assert_eq!(read(&mapping, at), value, "{at:#x}");
    }
    for (at, value) in [(0, 0), (8191, 0), (8192, 200), (8193, 0), (CHUNK_SIZE - 1, 0)] {
        assert_eq!(read(&mapping, CHUNK_SIZE + at), value, "{at:#x}");
    }
    assert!(!pager.has_failed());
}

#[test]
fn the_owner_is_told_if_faults_cannot_be_read_any_more() {
    let (sender, failures) = mpsc::channel();
    let uffd = std::fs::File::options().write(true).open("/dev/null").unwrap();
    let shared = Shared {
        uffd: Userfaultfd::of(uffd.into()),
        stop: eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
        zones: Vec::new(),
        source: source(),
        stage: parking_lot::Mutex::new(Stage::Running { failed: false }),
        on_failure: Arc::new(move |error| drop(sender.send(crate::error::chain(error)))),
        brought: AtomicU64::new(0),
        touched: parking_lot::Mutex::new(None),
    };
    shared.serve();
    let failure = failures.try_recv().unwrap();
    assert!(
        failure.contains("cannot be paged in any more") && failure.contains("Bad file desc"),
        "{failure}"
    );
    assert!(matches!(*shared.stage.lock(), Stage::Running { failed: true }));
}
