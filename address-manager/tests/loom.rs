//! Publication and dispatch in every interleaving that the memory model allows:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p address-manager --release --test loom
//! ```
#![cfg(loom)]

use std::sync::{Arc, Weak};

use address_manager::{
    Dispatch, Dispatcher, Handler, HandlerRange, IoSpace, Owner, Wiring,
    publish::{Publication, Reader},
};
use loom::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

/// A table whose halves belong together.
#[derive(Debug, PartialEq)]
struct Table(u64, u64);

fn table(number: u64) -> Arc<Table> {
    Arc::new(Table(number, !number))
}

fn look(reader: &mut Reader<Table>) -> u64 {
    let Table(number, other) = **reader.get();
    assert_eq!(other, !number, "a torn table");
    number
}

/// A reader sees whole tables, never an older one than it saw before, and never an older one than
/// one whose publication it knows to be over.
#[test]
fn a_reader_goes_forward() {
    loom::model(|| {
        let publication = Publication::new(Table(0, !0));
        let published = Arc::new(AtomicU64::new(0));
        let mut reader = publication.reader();
        let publisher = {
            let (publication, published) = (Arc::clone(&publication), Arc::clone(&published));
            thread::spawn(move || {
                for number in 1..=3 {
                    publication.publish(table(number));
                    published.store(number, Ordering::Release);
                }
            })
        };
        let mut last = 0;
        for _ in 0..2 {
            let over = published.load(Ordering::Acquire);
            let seen = look(&mut reader);
            assert!(seen >= over, "sees {seen} after {over} was published");
            assert!(seen >= last, "sees {seen} after {last}");
            last = seen;
        }
        publisher.join().unwrap();
        assert_eq!(look(&mut reader), 3);
        assert_eq!(publication.latest().0, 3);
    });
}

/// Two readers, of which one is made while a table is being published.
#[test]
fn readers_do_not_hold_each_other_up() {
    loom::model(|| {
        let publication = Publication::new(Table(0, !0));
        let publisher = {
            let publication = Arc::clone(&publication);
            thread::spawn(move || publication.publish(table(1)))
        };
        let late = {
            let publication = Arc::clone(&publication);
            thread::spawn(move || look(&mut publication.reader()))
        };
        let mut reader = publication.reader();
        let (first, second) = (look(&mut reader), look(&mut reader));
        assert!(first <= second);
        publisher.join().unwrap();
        late.join().unwrap();
        assert_eq!(look(&mut reader), 1);
    });
}

/// Two publishers: whatever comes last stays, and both places agree on it.
#[test]
fn publishers_take_turns() {
    loom::model(|| {
        let publication = Publication::new(Table(0, !0));
        let others: Vec<_> = (1..=2)
            .map(|number| {
                let publication = Arc::clone(&publication);
                thread::spawn(move || publication.publish(table(number)))
            })
            .collect();
        for other in others {
            other.join().unwrap();
        }
        let last = publication.latest().0;
        assert!(last == 1 || last == 2);
        assert_eq!(look(&mut publication.reader()), last);
    });
}

/// Once a publication is over, the old table is held by readers alone that have not looked since.
#[test]
fn old_tables_go() {
    loom::model(|| {
        let first = table(1);
        let old: Weak<Table> = Arc::downgrade(&first);
        let publication = Publication::new(Table(0, !0));
        publication.publish(first);
        let mut reader = publication.reader();
        let publisher = {
            let publication = Arc::clone(&publication);
            thread::spawn(move || publication.publish(table(2)))
        };
        look(&mut reader);
        publisher.join().unwrap();
        look(&mut reader);
        assert_eq!(old.strong_count(), 0);
    });
}

struct Answers(u8);

impl Handler for Answers {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(self.0);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

/// A device that moves: a vCPU that finds it in its new place does not find it in the old one, and
/// one that starts after the commit finds it in the new one.
#[test]
fn a_device_is_in_one_place() {
    let at = |base| {
        let mut wiring = Wiring::default();
        let handler = Arc::new(Answers(7));
        let range =
            HandlerRange { space: IoSpace::Mmio, base, size: 4, handler, owner: Owner::new("device") };
        wiring.add_handler(range).unwrap();
        Dispatch::new(&wiring)
    };
    loom::model(move || {
        let publication = Publication::new(at(0x1000));
        let mut vcpu = Dispatcher::new(&publication);
        let mover = {
            let publication = Arc::clone(&publication);
            thread::spawn(move || publication.publish(Arc::new(at(0x2000))))
        };
        let mut data = [0; 4];
        let mut read = |address| vcpu.read(IoSpace::Mmio, address, &mut data);
        let (new, old) = (read(0x2000), read(0x1000));
        assert!(!(new && old), "in both places");
        mover.join().unwrap();
        assert!(read(0x2000) && !read(0x1000));
        assert_eq!(data, [0xff; 4]);
    });
}
