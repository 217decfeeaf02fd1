//! Threads that stage into one transaction, threads that wait for it, and vCPUs that dispatch while
//! commits go on.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use address_manager::{
    IoSpace, Owner, Transaction, Window, WindowKind, Wired,
    testing::{Noted, PAGE, doorbell, event, handler, host, irqfd, manager, msi, ram},
};
use vm_memory::{Bytes, GuestAddress};

const THREADS: u64 = 8;
const DEVICES: u64 = 40;

#[test]
fn devices_are_staged_from_many_threads() {
    let (manager, vm) = manager();
    let tx = manager.begin();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let tx = &tx;
            scope.spawn(move || {
                let owner = Owner::new(format!("thread{thread}"));
                for _ in 0..DEVICES {
                    let bar =
                        tx.allocate(Window::new(WindowKind::Mmio64, 0), 0x1000, 0x1000, &owner).unwrap();
                    let gsi = tx.allocate(Window::new(WindowKind::Gsi, 0), 1, 1, &owner).unwrap();
                    let gsi = u32::try_from(gsi).unwrap();
                    tx.add(&Wired {
                        slots: vec![],
                        handlers: vec![handler(IoSpace::Mmio, bar, 0x1000, &Noted::new(1))],
                        doorbells: vec![doorbell(bar, &event())],
                        routes: vec![msi(gsi, 1)],
                        irq_events: vec![irqfd(gsi, &event())],
                    })
                    .unwrap();
                    assert!(tx.handler_at(IoSpace::Mmio, bar + 0xfff).is_some());
                }
            });
        }
    });
    let report = tx.commit().unwrap();
    let devices = THREADS * DEVICES;
    assert_eq!(report.operations.doorbells_added.count, devices);
    assert_eq!(report.operations.irqfds_added.count, devices);
    assert_eq!((report.operations.routing_writes.count, report.routing_entries), (1, devices));
    assert_eq!(vm.wiring_state().doorbells.len() as u64, devices);
}

#[test]
fn a_transaction_waits_for_the_one_before() {
    let (manager, _vm) = manager();
    let open = AtomicU64::new(0);
    thread::scope(|scope| {
        for thread in 0..4_u32 {
            let (manager, open) = (&manager, &open);
            scope.spawn(move || {
                for turn in 0..100 {
                    let tx = manager.begin();
                    assert_eq!(open.fetch_add(1, Ordering::SeqCst), 0, "two are open");
                    tx.set_route(msi(thread, turn)).unwrap();
                    open.fetch_sub(1, Ordering::SeqCst);
                    if turn % 3 == 0 {
                        drop(tx);
                    } else {
                        tx.commit().unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(manager.totals().commits, 4 * 66);
    assert_eq!(manager.reports().len(), 64);
    assert_eq!(manager.reports().last().unwrap().sequence, 4 * 66);
}

#[test]
fn a_transaction_can_go_to_another_thread() {
    let (manager, _vm) = manager();
    let tx: Transaction<'static> = manager.begin_owned("migration");
    tx.add_route(msi(1, 1)).unwrap();
    let report = thread::spawn(move || tx.commit().unwrap()).join().unwrap();
    assert_eq!(report.label, "migration");
    assert_eq!(manager.live().routes().count(), 1);
}

/// A device hops between two places, and its memory with it. Whoever looks sees it in one place,
/// and what was committed before the look began is seen.
#[test]
fn dispatch_and_memory_while_commits_go_on() {
    let (manager, _vm) = manager();
    let (stop, committed) = (AtomicBool::new(false), AtomicU64::new(0));
    let memory = host(1);
    let noted = Noted::new(5);
    let at = |place: u64| Wired {
        slots: vec![ram(place, 1, &memory, 0)],
        handlers: vec![handler(IoSpace::Mmio, (16 + place) * PAGE, 0x100, &noted)],
        ..Wired::default()
    };
    let tx = manager.begin();
    tx.add(&at(0)).unwrap();
    tx.commit().unwrap();
    manager.memory().view().write_obj(0x55_u8, GuestAddress(0)).unwrap();

    thread::scope(|scope| {
        for _ in 0..3 {
            let (manager, stop, committed) = (&manager, &stop, &committed);
            scope.spawn(move || {
                let mut vcpu = manager.dispatcher();
                let mut view = manager.memory().reader();
                let mut looks = 0_u64;
                while !stop.load(Ordering::Relaxed) || looks == 0 {
                    let before = committed.load(Ordering::Acquire);
                    let mut data = [0; 2];
                    let answers =
                        [0, 1].map(|place| vcpu.read(IoSpace::Mmio, (16 + place) * PAGE, &mut data));
                    let seen = view.get();
                    let places = [0, 1].map(|place| seen.read_obj::<u8>(GuestAddress(place * PAGE)));
                    let after = committed.load(Ordering::Acquire);
                    let there = places.iter().filter(|place| matches!(place, Ok(0x55))).count();
                    assert_eq!(there, 1, "one view has the memory in one place");
                    // Nothing was committed meanwhile, and nothing is being published: the commit
                    // that follows is counted before it begins.
                    if before == after && before % 2 == 0 {
                        let place = usize::from(before / 2 % 2 == 1);
                        assert!(answers[place] && !answers[1 - place], "commit {before}: {answers:?}");
                        assert!(places[place].is_ok());
                    }
                    looks += 1;
                }
            });
        }
        for hop in 0..2000_u64 {
            let (from, to) = (hop % 2, (hop + 1) % 2);
            let tx = manager.begin();
            tx.replace(&at(from), at(to)).unwrap();
            // Odd while a commit is under way.
            committed.fetch_add(1, Ordering::AcqRel);
            tx.commit().unwrap();
            committed.fetch_add(1, Ordering::AcqRel);
        }
        stop.store(true, Ordering::Relaxed);
    });
}
