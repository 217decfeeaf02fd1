use std::{
    fs::File,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use devices::Device;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::{
    device::VirtioDevice,
    features,
    interrupt::status,
    testing::{
        Buffer, Driver,
        conformance::conformance,
        machine::{DATA, Machine},
    },
    worker::PlainThreads,
};

const START: u64 = 0x12_3460_0000;
const SIZE: u64 = 6 << 20;
/// Where answers are put.
const ANSWERS: u64 = DATA + 0x1000;

fn device(store: Arc<dyn Store>) -> Box<dyn VirtioDevice> {
    let config = PmemConfig { id: "dev0".into(), start: START, size: SIZE };
    Box::new(Pmem::new(config, store, Arc::new(PlainThreads)))
}

fn make() -> Box<dyn VirtioDevice> {
    device(Arc::new(tempfile::tempfile().unwrap()))
}

/// Makes a request of that type available, its answer to be the one of that number.
fn add(machine: &Machine, driver: &mut Driver, kind: u32, number: u64) -> u16 {
    let memory = machine.memory();
    memory.write_obj(kind, GuestAddress(DATA + 4 * u64::from(kind & 0xff))).unwrap();
    memory.write_obj(0x5a5a_5a5a_u32, GuestAddress(ANSWERS + 4 * number)).unwrap();
    let buffers =
        [Buffer::readable(DATA + 4 * u64::from(kind & 0xff), 4), Buffer::writable(ANSWERS + 4 * number, 4)];
    driver.add(&*memory, &buffers, false).unwrap()
}

fn answer(machine: &Machine, number: u64) -> i32 {
    machine.memory().read_obj(GuestAddress(ANSWERS + 4 * number)).unwrap()
}

fn ask(machine: &mut Machine, driver: &mut Driver, kind: u32) -> i32 {
    let id = add(machine, driver, kind, 0);
    assert_eq!(machine.run(driver, 0, id), 4);
    answer(machine, 0)
}

fn drive(machine: &mut Machine) {
    for wanted in [0, features::RING_EVENT_IDX, features::RING_PACKED] {
        let mut drivers = machine.start(wanted, 16);
        for _ in 0..40 {
            assert_eq!(ask(machine, &mut drivers[0], 0), 0);
        }
    }
}

conformance!(conforms, make: make, drive: drive);

/// Counts, and fails on demand.
#[derive(Debug, Default)]
struct Counted {
    flushes: AtomicU64,
    failures_left: AtomicU64,
}

impl Store for Counted {
    fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        let less = |left: u64| left.checked_sub(1);
        match self.failures_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less) {
            Ok(_) => Err(io::Error::from_raw_os_error(libc::EIO)),
            Err(_) => Ok(()),
        }
    }
}

#[test]
fn the_driver_is_told_where_the_window_is() {
    let mut machine = Machine::new(make());
    assert_eq!(u64::from_le_bytes(machine.config(0)), START);
    assert_eq!(u64::from_le_bytes(machine.config(8)), SIZE);
    assert_eq!(machine.config::<8>(16), [0; 8], "there is nothing behind it");
    // It cannot be told otherwise.
    machine.write(0x2000, &[0xff; 8]);
    assert_eq!(u64::from_le_bytes(machine.config(0)), START);
}

#[test]
fn a_flush_that_fails_is_answered_so_and_the_next_may_succeed() {
    let store = Arc::new(Counted::default());
    let mut machine = Machine::new(device(Arc::clone(&store) as _));
    let mut driver = machine.start(0, 8).remove(0);
    assert_eq!(ask(&mut machine, &mut driver, 0), 0);
    store.failures_left.store(2, Ordering::SeqCst);
    assert_eq!([0; 3].map(|kind| ask(&mut machine, &mut driver, kind)), [-1, -1, 0]);
    assert_eq!(store.flushes.load(Ordering::SeqCst), 4);
    let counters = machine.function.lock().counters();
    assert_eq!(counters, [("flush_ops", 2), ("flush_errors", 2)].into());
}

#[test]
fn files_are_flushed_and_what_is_none_fails() {
    // The kernel has nothing to make stable there.
    for (store, expected) in [(tempfile::tempfile().unwrap(), 0), (File::open("/dev/null").unwrap(), -1)] {
        let mut machine = Machine::new(device(Arc::new(store)));
        let mut driver = machine.start(0, 8).remove(0);
        assert_eq!(ask(&mut machine, &mut driver, 0), expected);
    }
    let mut machine = Machine::new(device(Arc::new(Nowhere)));
    let mut driver = machine.start(0, 8).remove(0);
    assert_eq!(ask(&mut machine, &mut driver, 0), 0);
}

#[test]
fn requests_that_wait_are_flushed_together() {
    let store = Arc::new(Counted::default());
    let mut machine = Machine::new(device(Arc::clone(&store) as _));
    let mut driver = machine.start(0, 256).remove(0);
    machine.function.lock().pause().unwrap();
    let ids: Vec<u16> = (0..100).map(|number| add(&machine, &mut driver, 0, number)).collect();
    machine.resume();
    for (number, id) in (0..).zip(ids) {
        assert_eq!(machine.finish(&mut driver, 0, id), 4);
        assert_eq!(answer(&machine, number), 0);
    }
    assert_eq!(store.flushes.load(Ordering::SeqCst), 2);
}

#[test]
fn what_is_no_flush_is_answered_and_makes_none() {
    let store = Arc::new(Counted::default());
    let mut machine = Machine::new(device(Arc::clone(&store) as _));
    let mut driver = machine.start(0, 8).remove(0);
    for kind in [1, 0x100, u32::MAX] {
        assert_eq!(ask(&mut machine, &mut driver, kind), -1);
    }
    // A request without a type, and one whose type is not whole.
    for readable in [&[][..], &[Buffer::readable(DATA, 3)]] {
        let buffers = [readable, &[Buffer::writable(ANSWERS, 64)]].concat();
        let id = driver.add(&*machine.memory(), &buffers, false).unwrap();
        assert_eq!(machine.run(&mut driver, 0, id), 4);
        assert_eq!(answer(&machine, 0), -1);
    }
    assert_eq!(store.flushes.load(Ordering::SeqCst), 0);
    assert_eq!(ask(&mut machine, &mut driver, 0), 0);
}

#[test]
fn a_request_that_cannot_be_answered_stops_the_device_until_it_is_reset() {
    for buffers in [vec![Buffer::readable(DATA, 4)], vec![Buffer::writable(ANSWERS, 3)]] {
        let mut machine = Machine::new(make());
        let mut driver = machine.start(0, 8).remove(0);
        driver.add(&*machine.memory(), &buffers, false).unwrap();
        machine.kick(0);
        machine.wait_config();
        assert_ne!(machine.status() & status::NEEDS_RESET, 0);
        let mut driver = machine.start(0, 8).remove(0);
        assert_eq!(ask(&mut machine, &mut driver, 0), 0);
    }
}

#[test]
fn a_state_of_another_window_is_refused() {
    let state = PmemState { start: START, size: SIZE };
    state.check(START, SIZE).unwrap();
    let refused = |start, size| state.check(start, size).unwrap_err().to_string();
    assert!(refused(START + 4096, SIZE).contains("device.start"));
    let said = refused(START, SIZE / 2);
    assert!(said.contains("device.size") && said.contains("had 6291456 bytes, and has 3145728"), "{said}");
}
