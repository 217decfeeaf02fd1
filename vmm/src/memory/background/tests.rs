//! What the threads do for a machine whose guest is this test.

use std::{
    os::unix::fs::FileExt,
    sync::mpsc,
    time::{Duration, Instant},
};

use api_client::wire::JobState;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vm_memory::VolatileMemory;
use vm_migration::snapshot::{
    CHUNK_SIZE, ChunkDigests, MemoryFile, MemoryTable, PageRun, WorkingSet, ZonePages,
};

use super::*;
use crate::{
    config::MemoryZoneConfig,
    memory::{
        GuestMemory, OwnFiles,
        content::{MemoryMode, RestorePlan, tests::zone},
        demand::{Building, Source},
        pagemap::Pagemap,
    },
};

const CHUNKS: u64 = 32;
const SIZE: u64 = CHUNKS * CHUNK_SIZE;
const PATIENCE: Duration = Duration::from_secs(20);

struct Machine {
    memory: GuestMemory,
    saved: Arc<SavedMemory>,
    jobs: Jobs,
    failures: mpsc::Receiver<String>,
    directory: tempfile::TempDir,
}

/// What is asked for.
struct Work {
    fill: Fill,
    ahead: Option<(Vec<PageRun>, Vec<PageRun>)>,
    record: Option<Duration>,
    check: bool,
}

const NOTHING: Work = Work { fill: Fill::None, ahead: None, record: None, check: false };

/// A snapshot of which the first half is not zero.
fn saved() -> SavedMemory {
    let mut table = MemoryTable::new([("a", SIZE, true)]).unwrap();
    let file = tempfile::tempfile().unwrap();
    file.set_len(table.size).unwrap();
    let digests = (0..CHUNKS / 2).map(|chunk| {
        let content = vec![u8::try_from(chunk).unwrap() + 1; usize::try_from(CHUNK_SIZE).unwrap()];
        file.write_all_at(&content, chunk * CHUNK_SIZE).unwrap();
        (chunk, crc32c::crc32c(&content))
    });
    table.chunks = ChunkDigests::from_sorted(digests.collect::<Vec<_>>());
    SavedMemory::new(table, MemoryFile::new(file, "memory-ranges".into()))
}

fn machine(mode: MemoryMode, saved: SavedMemory, work: Work) -> Machine {
    try_machine(mode, saved, work, || ()).unwrap()
}

/// Calls `before` before something is done for its memory.
fn try_machine(
    mode: MemoryMode,
    saved: SavedMemory,
    work: Work,
    before: impl FnOnce(),
) -> Result<Machine, ContentError> {
    let zones: [MemoryZoneConfig; 1] = [zone("a", SIZE)];
    let saved = Arc::new(saved);
    let plan = RestorePlan::new(&zones, saved.table(), Some(mode)).unwrap();
    let ahead = match work.ahead {
        Some((written, read)) => {
            let zone = ZonePages { zone: "a".into(), written, read };
            ReadAhead::new(&WorkingSet { zones: vec![zone], ..WorkingSet::default() }, &zones, &plan, &saved)
        }
        None => ReadAhead::default(),
    };
    let directory = tempfile::tempdir().unwrap();
    let (sender, failures) = mpsc::channel();
    let jobs = Jobs::new(Events::default());
    let on_failure: OnFailure = Arc::new(move |error| drop(sender.send(error.to_string())));
    let watch = Watch { on_failure: Arc::clone(&on_failure), jobs: jobs.clone(), events: Events::default() };
    let recording =
        work.record.map(|window| Recording { window, directory: directory.path().to_owned(), root: 7 });
    let mut memory =
        GuestMemory::map_restored(&zones, &plan, &saved, &ahead, &mut OwnFiles::default(), &()).unwrap();
    let source = Source { saved: Arc::clone(&saved), check: true };
    memory.page_in(&plan, source, &ahead, recording.is_some(), on_failure).unwrap();
    before();
    memory.look_after(&plan, &saved, work.check, (work.fill, ahead, recording), watch)?;
    memory.building().map_or(Ok(()), Building::end).unwrap();
    Ok(Machine { memory, saved, jobs, failures, directory })
}

impl Machine {
    fn run(&self) {
        self.memory.background().unwrap().run();
    }

    fn pause(&self) {
        self.memory.background().unwrap().pause();
    }

    fn read(&self, at: u64) -> u8 {
        let mut value = [0];
        let at = usize::try_from(at).unwrap();
        self.memory.zones()[0].1.get_slice(at, 1).unwrap().copy_to(&mut value);
        value[0]
    }

    fn write(&self, at: u64) {
        self.memory.zones()[0].1.get_slice(usize::try_from(at).unwrap(), 1).unwrap().copy_from(&[0xffu8]);
    }

    /// Bytes that are there, and how many of them are the process's own.
    fn present(&self) -> (u64, u64) {
        let pages = Pagemap::open().unwrap().present(&self.memory.zones()[0].1, 0..SIZE).unwrap();
        let bytes = |own: bool| {
            let pages = pages.iter().filter(move |pages| !own || pages.own);
            pages.map(|pages| pages.range.end - pages.range.start).sum()
        };
        (bytes(false), bytes(true))
    }

    fn counters(&self) -> (u64, u64) {
        let counters = self.memory.background().unwrap().counters();
        (counters.filled.load(Ordering::Relaxed), counters.checked.load(Ordering::Relaxed))
    }

    fn recorded(&self) -> Option<WorkingSet> {
        WorkingSet::read(self.directory.path(), 7, self.saved.table()).unwrap()
    }
}

fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < end, "waited in vain");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn what_comes_in_is_checked_and_nothing_else() {
    let saved = saved();
    // One chunk is damaged, and one that was zero is not any more.
    saved.base().file.write_all_at(&[0], 12 * CHUNK_SIZE + 5).unwrap();
    saved.base().file.write_all_at(&[1], 25 * CHUNK_SIZE).unwrap();
    let machine = machine(MemoryMode::Cow, saved, Work { check: true, ..NOTHING });
    assert_eq!(machine.read(2 * CHUNK_SIZE), 3);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(machine.counters(), (0, 0), "it does not begin before the guest");
    machine.run();
    until(|| (machine.counters().1 > 0).then_some(()));
    machine.write(8 * CHUNK_SIZE);
    let before = machine.counters().1;
    until(|| (machine.counters().1 > before).then_some(()));
    // Everything that came in is what was saved, and the damage was not looked at.
    std::thread::sleep(Duration::from_millis(100));
    assert!(machine.failures.try_recv().is_err() && machine.counters().1 < 8);
    machine.read(12 * CHUNK_SIZE + 70_000);
    let failure = machine.failures.recv_timeout(PATIENCE).unwrap();
    assert!(failure.contains("memory at 0x300000 is damaged"), "{failure}");
}

#[test]
fn what_was_zero_is_checked_too() {
    let saved = saved();
    saved.base().file.write_all_at(&[1], 25 * CHUNK_SIZE).unwrap();
    let machine = machine(MemoryMode::Cow, saved, Work { check: true, ..NOTHING });
    machine.run();
    machine.read(25 * CHUNK_SIZE + 9000);
    let failure = machine.failures.recv_timeout(PATIENCE).unwrap();
    assert!(failure.contains("memory at 0x640000 is damaged"), "{failure}");
}

#[test]
fn damage_is_not_saved_again() {
    let saved = saved();
    let machine = machine(MemoryMode::Cow, saved, Work { check: true, ..NOTHING });
    let rest = || machine.memory.background().unwrap().check_rest(&()).map_err(|error| error.to_string());
    machine.read(CHUNK_SIZE);
    for (chunk, expected) in [(12, "memory at 0x300000 is damaged"), (25, "memory at 0x640000 is damaged")] {
        let flip = |to: u8| machine.saved.base().file.write_all_at(&[to], chunk * CHUNK_SIZE).unwrap();
        flip(99);
        assert!(rest().unwrap_err().contains(expected));
        flip(if chunk == 25 { 0 } else { 13 });
    }
    rest().unwrap();
    assert_eq!(machine.counters().1, CHUNKS / 2);
}

#[test]
fn what_the_guest_has_made_of_damage_is_not_saved() {
    let machine = machine(MemoryMode::Cow, saved(), Work { check: true, ..NOTHING });
    let touched =
        || machine.memory.background().unwrap().check_touched(&()).map_err(|error| error.to_string());
    machine.read(3 * CHUNK_SIZE);
    let flip = |chunk: u64, to: u8| {
        machine.saved.base().file.write_all_at(&[to], chunk * CHUNK_SIZE + 4096).unwrap();
    };
    // What nobody has touched is as in the snapshot.
    flip(12, 99);
    touched().unwrap();
    // What was read, and what was written, and so is not the file's any more.
    for chunk in [4, 5] {
        flip(chunk, 99);
        let at = usize::try_from(chunk * CHUNK_SIZE).unwrap();
        let (_, mapping) = &machine.memory.zones()[0];
        match chunk {
            4 => assert_eq!(machine.read(chunk * CHUNK_SIZE), 5),
            _ => mapping.get_slice(at, 1).unwrap().copy_from(&[7u8]),
        }
        let said = touched().unwrap_err();
        assert!(said.contains(&format!("memory at {:#x} is damaged", chunk * CHUNK_SIZE)), "{said}");
        flip(chunk, u8::try_from(chunk).unwrap() + 1);
        touched().unwrap();
    }
}

#[test]
fn a_recorded_set_is_brought_in_and_damage_in_it_is_left_alone() {
    for mode in [MemoryMode::Cow, MemoryMode::OnDemand] {
        let saved = saved();
        saved.base().file.write_all_at(&[0], 3 * CHUNK_SIZE).unwrap();
        // Four pages to be written, four to be read, and four of the damaged chunk.
        let ahead = Some((vec![PageRun(0, 4), PageRun(192, 4)], vec![PageRun(640, 4)]));
        let work = Work { fill: Fill::WorkingSet, ahead, check: true, ..NOTHING };
        let machine = machine(mode, saved, work);
        assert_eq!(machine.present().0, 0, "{mode}");
        machine.run();
        let (filled, present) = match mode {
            MemoryMode::Cow => (8 * 4096, (8 * 4096, 4 * 4096)),
            _ => (2 * CHUNK_SIZE, (2 * CHUNK_SIZE, 2 * CHUNK_SIZE)),
        };
        until(|| (machine.counters().0 == filled).then_some(()));
        let found = machine.present();
        assert!(
            found.0 >= present.0 && found.0 <= 4 * CHUNK_SIZE && found.1 == present.1,
            "{mode}: {found:?}"
        );
        assert!(machine.failures.try_recv().is_err());
        assert_eq!(machine.read(10 * CHUNK_SIZE), 11);
    }
}

#[test]
fn all_is_brought_in_no_faster_than_asked_for_and_ends() {
    for mode in [MemoryMode::Cow, MemoryMode::OnDemand] {
        // Sixteen chunks at eighty a second.
        let rate = NonZeroU64::new(80 * CHUNK_SIZE).unwrap();
        let machine = machine(mode, saved(), Work { fill: Fill::All { rate }, ..NOTHING });
        let begun = Instant::now();
        machine.run();
        let job = until(|| machine.jobs.list().pop().filter(|job| job.state != JobState::Running));
        assert!(begun.elapsed() >= Duration::from_nanos(15 * 12_500_000), "{mode}: {:?}", begun.elapsed());
        assert_eq!((job.state, job.bytes_done, job.bytes_total), (JobState::Done, SIZE / 2, Some(SIZE / 2)));
        let all = if mode == MemoryMode::Cow { SIZE / 2 } else { SIZE };
        assert!(machine.present().0 >= all, "{mode}");
    }
}

#[test]
fn a_fill_stands_still_in_a_pause_and_ends_with_the_machine() {
    let rate = NonZeroU64::new(20 * CHUNK_SIZE).unwrap();
    let machine = machine(MemoryMode::OnDemand, saved(), Work { fill: Fill::All { rate }, ..NOTHING });
    machine.run();
    until(|| (machine.counters().0 > 0).then_some(()));
    machine.pause();
    // A step that was under way is done.
    std::thread::sleep(Duration::from_millis(20));
    let before = machine.counters();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(machine.counters(), before);
    machine.run();
    until(|| (machine.counters().0 > before.0).then_some(()));
    let Machine { memory, jobs, .. } = machine;
    let begun = Instant::now();
    drop(memory);
    assert!(begun.elapsed() < Duration::from_millis(300), "it ends at once");
    assert_eq!(jobs.list().pop().unwrap().state, JobState::Failed);
}

#[test]
fn a_fill_that_meets_damage_fails_and_the_machine_does_not() {
    for mode in [MemoryMode::Cow, MemoryMode::OnDemand] {
        let saved = saved();
        saved.base().file.write_all_at(&[0], 3 * CHUNK_SIZE).unwrap();
        let rate = NonZeroU64::MAX;
        let machine = machine(mode, saved, Work { fill: Fill::All { rate }, check: true, ..NOTHING });
        machine.run();
        let job = until(|| machine.jobs.list().pop().filter(|job| job.state != JobState::Running));
        assert_eq!(job.state, JobState::Failed);
        assert!(job.error.unwrap().concat().contains("memory at 0xc0000 is damaged"));
        assert!(machine.failures.try_recv().is_err());
        assert!(machine.present().0 <= 4 * CHUNK_SIZE, "{mode}");
    }
}

#[test]
fn what_is_touched_in_the_window_is_recorded() {
    let window = Duration::from_millis(150);
    for mode in [MemoryMode::Cow, MemoryMode::OnDemand] {
        let machine = machine(mode, saved(), Work { record: Some(window), ..NOTHING });
        machine.run();
        machine.read(10 * CHUNK_SIZE);
        machine.write(20 * CHUNK_SIZE + 4096);
        let set = until(|| machine.recorded());
        machine.write(30 * CHUNK_SIZE);
        assert!(set.window_ms >= 150 && machine.recorded() == Some(set.clone()), "{set:?}");
        let pages = set.zone("a").unwrap();
        let (written, read) = match mode {
            MemoryMode::Cow => (PageRun(20 * 64 + 1, 1), 1),
            _ => (PageRun(20 * 64, 64), 64),
        };
        assert_eq!(pages.written, [written], "{mode}");
        assert!(pages.read.iter().any(|run| run.0 <= 640 && run.end() > 640 && run.1 >= read), "{pages:?}");
    }
}

#[test]
fn a_pause_ends_the_window_and_the_end_of_the_machine_records_nothing() {
    let window = Duration::from_mins(10);
    for mode in [MemoryMode::Cow, MemoryMode::OnDemand] {
        let machine = machine(mode, saved(), Work { record: Some(window), ..NOTHING });
        machine.run();
        machine.write(0);
        machine.pause();
        // As a snapshot does.
        machine.read(10 * CHUNK_SIZE);
        let set = until(|| machine.recorded());
        assert!(set.pages() > 0 && set.pages() <= 64, "{set:?}");
    }
    let machine = machine(MemoryMode::Cow, saved(), Work { record: Some(window), ..NOTHING });
    machine.run();
    machine.write(0);
    let Machine { memory, directory, .. } = machine;
    drop(memory);
    assert_eq!(directory.path().read_dir().unwrap().count(), 0);
}

#[test]
fn there_is_no_machine_whose_memory_should_be_checked_and_cannot_be() {
    let name = "there_is_no_machine_whose_memory_should_be_checked_and_cannot_be";
    if !devices::testing::is_alone(module_path!(), name) {
        return;
    }
    let before = getrlimit(Resource::Nofile);
    let checked = Work { check: true, ..NOTHING };
    let none = || setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..before }).unwrap();
    let error = try_machine(MemoryMode::Cow, saved(), checked, none).err();
    setrlimit(Resource::Nofile, before).unwrap();
    let said = crate::error::chain(&error.unwrap());
    assert!(said.contains("cannot be checked") && said.contains("Too many open files"), "{said}");
    let checks = || {
        let threads = std::fs::read_dir("/proc/self/task").unwrap();
        let names =
            threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("comm")).ok());
        names.filter(|name| name == "check-memory\n").count()
    };
    assert_eq!(checks(), 0);
    // It is there before the guest is.
    let machine = machine(MemoryMode::Cow, saved(), Work { check: true, ..NOTHING });
    until(|| (checks() == 1).then_some(()));
    drop(machine);
    until(|| (checks() == 0).then_some(()));
}
