use std::{
    fs::File,
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

use parking_lot::Mutex;
use vm_memory::{FileOffset, MmapRegion};
use vmm_sys_util::tempfile::TempFile;

use super::{table::join, *};
use crate::{
    AddressManager, Slot, SlotRole, Transaction,
    testing::{PAGE, host, manager, msi, ram},
};

/// Ends tests that hang only.
const PATIENCE: Duration = Duration::from_secs(60);

type Answer = Result<(), Box<dyn Error + Send + Sync>>;

/// Of <linux/mman.h>.
const MAP_PRIVATE: i32 = 2;

/// Keeps what it is told.
struct BackEnd {
    name: &'static str,
    max_regions: usize,
    takes_files: bool,
    tables: Mutex<Vec<MemoryTable>>,
    calls: AtomicUsize,
    /// What it does with the table of that number, of all.
    answer: Box<dyn Fn(usize) -> Answer + Send + Sync>,
}

impl MemoryTableBackend for BackEnd {
    fn name(&self) -> &str {
        self.name
    }

    fn max_regions(&self) -> usize {
        self.max_regions
    }

    fn takes_files(&self) -> bool {
        self.takes_files
    }

    fn set_memory_table(&self, table: &MemoryTable, _deadline: Instant) -> Answer {
        let answer = (self.answer)(self.calls.fetch_add(1, Ordering::Relaxed));
        self.tables.lock().push(table.clone());
        answer
    }
}

/// One with the limit of vhost-user, in this process.
fn back_end(name: &'static str) -> BackEnd {
    let answer = Box::new(|_| Ok(()));
    let (tables, calls) = (Mutex::default(), AtomicUsize::default());
    BackEnd { name, max_regions: 8, takes_files: false, tables, calls, answer }
}

fn listen(transaction: &Transaction<'_>, back_end: BackEnd) -> Arc<BackEnd> {
    let back_end = Arc::new(back_end);
    transaction.add_listener(MemoryTableListener::new(Arc::clone(&back_end) as _, PATIENCE));
    back_end
}

/// The tables that it was sent since the last call, each as the first page and the number of pages of its regions.
fn sent(back_end: &BackEnd) -> Vec<Vec<(u64, u64)>> {
    let pages = |table: &MemoryTable| {
        table.regions().iter().map(|region| (region.guest_address / PAGE, region.size / PAGE)).collect()
    };
    std::mem::take(&mut *back_end.tables.lock()).iter().map(pages).collect()
}

fn commit(manager: &AddressManager, slots: impl IntoIterator<Item = Slot>) -> Result<(), String> {
    let transaction = manager.begin();
    slots.into_iter().for_each(|slot| transaction.add_slot(slot).unwrap());
    transaction.commit().map(drop).map_err(|error| {
        let (mut said, mut cause) = (error.to_string(), error.source());
        while let Some(error) = cause {
            said = format!("{said}: {error}");
            cause = error.source();
        }
        said
    })
}

fn file(pages: u64) -> Arc<File> {
    let file = TempFile::new().unwrap().into_file();
    file.set_len(pages * PAGE).unwrap();
    Arc::new(file)
}

fn mapped(file: &Arc<File>, page: u64, pages: u64) -> Arc<MmapRegion> {
    let file = FileOffset::from_arc(Arc::clone(file), page * PAGE);
    Arc::new(MmapRegion::from_file(file, usize::try_from(pages * PAGE).unwrap()).unwrap())
}

#[test]
fn a_table_has_main_and_persistent_memory_with_its_addresses_and_files() {
    let (manager, _vm) = manager();
    let (own, file) = (host(16), file(16));
    let shared = mapped(&file, 4, 8);
    let copy = FileOffset::from_arc(Arc::clone(&file), 0);
    let private = MmapRegion::build(Some(copy), usize::try_from(PAGE).unwrap(), shared.prot(), MAP_PRIVATE);
    let transaction = manager.begin();
    // Out of order, in pieces, with a window of a device between them.
    transaction.add_slot(Slot { role: SlotRole::Persistent, ..ram(64, 2, &shared, 3) }).unwrap();
    transaction.add_slot(ram(2, 3, &own, 2)).unwrap();
    transaction.add_slot(ram(0, 2, &own, 0)).unwrap();
    transaction.add_slot(Slot { role: SlotRole::Device, ..ram(5, 1, &own, 5) }).unwrap();
    // Its neighbour's in the guest, but not in this process.
    transaction.add_slot(ram(6, 1, &own, 8)).unwrap();
    transaction.add_slot(ram(7, 1, &own, 7)).unwrap();
    transaction.add_slot(ram(80, 1, &Arc::new(private.unwrap()), 0)).unwrap();
    let back_end = listen(&transaction, back_end("one"));
    transaction.commit().unwrap();
    let at = |mapping: &MmapRegion, page: u64| mapping.as_ptr() as u64 + page * PAGE;
    let region = |page: u64, pages: u64, host_address: u64, file: Option<RegionFile>| TableRegion {
        guest_address: page * PAGE,
        size: pages * PAGE,
        host_address,
        file,
    };
    let tables = back_end.tables.lock();
    let [table] = &tables[..] else { panic!("{} tables", tables.len()) };
    let (private, others) = table.regions().split_last().unwrap();
    let of_file = RegionFile { file, offset: 7 * PAGE };
    assert_eq!(
        others,
        [
            region(0, 5, at(&own, 0), None),
            region(6, 1, at(&own, 8), None),
            region(7, 1, at(&own, 7), None),
            region(64, 2, at(&shared, 3), Some(of_file)),
        ]
    );
    assert_eq!(
        (private.guest_address, &private.file),
        (80 * PAGE, &None),
        "the file has not what is written"
    );
}

#[test]
fn regions_are_joined_where_they_continue_for_everybody() {
    let (one, other) = (file(8), file(8));
    let region = |guest: u64, host: u64, file: Option<(&Arc<File>, u64)>| TableRegion {
        guest_address: guest * PAGE,
        size: PAGE,
        host_address: host * PAGE,
        file: file.map(|(file, page)| RegionFile { file: Arc::clone(file), offset: page * PAGE }),
    };
    let first = region(1, 101, Some((&one, 1)));
    for (next, joined) in [
        (region(2, 102, Some((&one, 2))), true),
        (region(3, 102, Some((&one, 2))), false),
        (region(2, 103, Some((&one, 2))), false),
        (region(2, 102, Some((&one, 3))), false),
        (region(2, 102, Some((&other, 2))), false),
        (region(2, 102, None), false),
    ] {
        let regions = join([first.clone(), next.clone()]);
        if joined {
            assert_eq!(regions, [TableRegion { size: 2 * PAGE, ..first.clone() }]);
        } else {
            assert_eq!(regions, [first.clone(), next]);
        }
    }
    let own = join([region(1, 101, None), region(2, 102, None), region(3, 103, None)]);
    assert_eq!(own, [TableRegion { size: 3 * PAGE, ..region(1, 101, None) }]);
    let last = region(u64::MAX / PAGE, 5, None);
    assert_eq!(join([last.clone(), region(0, 6, None)]), [last, region(0, 6, None)]);
}

#[test]
fn a_commit_sends_one_table_and_only_another_one() {
    let (manager, _vm) = manager();
    let memory = host(16);
    let transaction = manager.begin();
    let back_ends = ["a", "b", "c"].map(|name| listen(&transaction, back_end(name)));
    for page in [0, 1, 2, 4] {
        transaction.add_slot(ram(page, 1, &memory, page)).unwrap();
    }
    for back_end in &back_ends {
        assert_eq!(sent(back_end).len(), 0, "nothing is sent before the commit");
    }
    transaction.commit().unwrap();
    for back_end in &back_ends {
        assert_eq!(sent(back_end), [[(0, 3), (4, 1)]]);
    }

    // What is no memory, what is back where it was, and what is memory for the kernel alone.
    let transaction = manager.begin();
    transaction.add_route(msi(30, 1)).unwrap();
    transaction.remove_slot(&ram(1, 1, &memory, 1)).unwrap();
    transaction.add_slot(ram(1, 1, &memory, 1)).unwrap();
    transaction.add_slot(Slot { role: SlotRole::Device, ..ram(9, 1, &memory, 9) }).unwrap();
    transaction.track_dirty(true);
    transaction.commit().unwrap();
    // One that comes later has all of it from the beginning.
    let late = Arc::new(back_end("late"));
    manager.add_listener(MemoryTableListener::new(Arc::clone(&late) as _, PATIENCE)).unwrap();
    assert_eq!(sent(&late), [[(0, 3), (4, 1)]]);
    for back_end in &back_ends {
        assert_eq!(sent(back_end).len(), 0);
    }

    commit(&manager, [ram(3, 1, &memory, 3)]).unwrap();
    for back_end in back_ends.iter().chain([&late]) {
        assert_eq!(sent(back_end), [[(0, 5)]]);
    }
}

#[test]
fn back_ends_take_it_side_by_side() {
    let (manager, _vm) = manager();
    let both = Arc::new(Barrier::new(2));
    let transaction = manager.begin();
    transaction.add_slot(ram(0, 1, &host(1), 0)).unwrap();
    let waiting = ["a", "b"].map(|name| {
        let both = Arc::clone(&both);
        let answer = Box::new(move |_| {
            both.wait();
            Ok(())
        });
        listen(&transaction, BackEnd { answer, ..back_end(name) })
    });
    transaction.commit().unwrap();
    for back_end in waiting {
        assert_eq!(sent(&back_end), [[(0, 1)]]);
    }
}

#[test]
fn if_one_refuses_all_have_the_old_table_again() {
    let (manager, vm) = manager();
    let memory = host(4);
    let transaction = manager.begin();
    transaction.add_slot(ram(0, 1, &memory, 0)).unwrap();
    let refuses = Box::new(|number| if number == 1 { Err("no room".into()) } else { Ok(()) });
    let back_ends = [
        listen(&transaction, back_end("before")),
        listen(&transaction, BackEnd { answer: refuses, ..back_end("_net0") }),
        listen(&transaction, back_end("behind")),
    ];
    transaction.commit().unwrap();
    let view = manager.memory().view();

    let said = commit(&manager, [ram(2, 1, &memory, 2)]).unwrap_err();
    assert_eq!(said, "cannot have _net0 finish the change: the memory table was not taken: no room");
    for back_end in &back_ends {
        assert_eq!(sent(back_end), [vec![(0, 1)], vec![(0, 1), (2, 1)], vec![(0, 1)]], "{}", back_end.name);
    }
    assert_eq!(vm.wiring_state().slots.len(), 1);
    assert!(Arc::ptr_eq(&view, &manager.memory().view()));

    // Neither is one kept that came with such a commit, nor does it keep what it was told.
    let transaction = manager.begin();
    transaction.add_slot(ram(2, 1, &memory, 2)).unwrap();
    let refuses = Box::new(|_| Err("gone".into()));
    let good = listen(&transaction, back_end("good"));
    listen(&transaction, BackEnd { answer: refuses, ..back_end("bad") });
    assert!(transaction.commit().is_err());
    assert_eq!(sent(&good), [vec![(0, 1), (2, 1)], vec![]]);
    back_ends.iter().for_each(|back_end| assert_eq!(sent(back_end).len(), 2));

    commit(&manager, [ram(2, 1, &memory, 2)]).unwrap();
    for back_end in &back_ends {
        assert_eq!(sent(back_end), [[(0, 1), (2, 1)]]);
    }
    assert_eq!(sent(&good).len(), 0);
}

#[test]
fn one_that_is_late_is_not_waited_for_and_has_the_old_table_in_the_end() {
    let (manager, vm) = manager();
    let (go, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let answer = Box::new(move |number| {
        if number == 0 {
            held.lock().recv()?;
        }
        Ok(())
    });
    let late = Arc::new(BackEnd { answer, ..back_end("late") });
    let listener = MemoryTableListener::new(Arc::clone(&late) as _, Duration::from_millis(50));
    let memory = host(1);
    let attempt = || {
        let transaction = manager.begin();
        transaction.add_listener(Arc::clone(&listener) as _);
        transaction.add_slot(ram(0, 1, &memory, 0)).unwrap();
        transaction.commit()
    };
    let error = attempt().unwrap_err();
    let source = error.source().unwrap().to_string();
    assert!(error.to_string().contains("late"), "{error}");
    assert!(source.contains("not taken within 50ms"), "{source}");
    assert!(vm.wiring_state().slots.is_empty());

    go.send(()).unwrap();
    let begun = Instant::now();
    while late.tables.lock().len() < 2 {
        assert!(begun.elapsed() < PATIENCE, "the old table does not come");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(sent(&late), [vec![(0, 1)], vec![]]);
    // A busy host may be late once more.
    while attempt().is_err() {
        assert!(begun.elapsed() < PATIENCE, "it is late again and again");
    }
    assert_eq!(sent(&late).last().unwrap(), &[(0, 1)]);
}

#[test]
fn memory_that_cannot_be_told_is_refused_before_anything_is_sent() {
    let (manager, _vm) = manager();
    let file = file(8);
    let transaction = manager.begin();
    let two = listen(&transaction, BackEnd { max_regions: 2, takes_files: true, ..back_end("two") });
    let shared = mapped(&file, 0, 8);
    transaction.add_slot(ram(0, 1, &shared, 0)).unwrap();
    transaction.add_slot(ram(2, 1, &shared, 2)).unwrap();
    transaction.commit().unwrap();
    assert_eq!(sent(&two), [[(0, 1), (2, 1)]]);

    let said = commit(&manager, [ram(4, 1, &shared, 4)]).unwrap_err();
    assert_eq!(said, "cannot tell two of the change: guest memory is 3 regions, and it takes 2 at most");
    // Two again, of which one is this process's own.
    let transaction = manager.begin();
    transaction.remove_slot(&ram(2, 1, &shared, 2)).unwrap();
    transaction.add_slot(ram(6, 1, &host(1), 0)).unwrap();
    let error = transaction.commit().unwrap_err();
    let source = error.source().unwrap().to_string();
    assert!(source.contains("guest memory at 0x6000 is in no shared file"), "{source}");
    assert_eq!(sent(&two).len(), 0);
}
