use std::{fs::File, sync::Arc};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::{
    device::VirtioDevice,
    features,
    testing::{
        Buffer,
        conformance::conformance,
        machine::{DATA, Machine},
    },
    worker::PlainThreads,
};

fn make() -> Box<dyn VirtioDevice> {
    Box::new(Rng::new("dev0", File::open("/dev/urandom").unwrap(), Arc::new(PlainThreads)))
}

fn ask(machine: &mut Machine, driver: &mut crate::testing::Driver, len: u32) -> Vec<u8> {
    let memory = machine.memory();
    let id = driver.add(&*memory, &[Buffer::writable(DATA, len)], false).unwrap();
    let written = machine.run(driver, 0, id);
    let mut bytes = vec![0; written as usize];
    memory.read_slice(&mut bytes, GuestAddress(DATA)).unwrap();
    bytes
}

fn drive(machine: &mut Machine) {
    for wanted in [0, features::RING_EVENT_IDX, features::RING_PACKED] {
        let mut drivers = machine.start(wanted, 16);
        for _ in 0..40 {
            assert_eq!(ask(machine, &mut drivers[0], 64).len(), 64);
        }
    }
}

conformance!(conforms, make: make, drive: drive);

#[test]
fn bytes_come_and_differ() {
    let mut machine = Machine::new(make());
    let mut driver = machine.start(0, 8).remove(0);
    assert_eq!(machine.config::<4>(0), [0; 4], "an empty configuration space");
    let first = ask(&mut machine, &mut driver, 100);
    assert_eq!(first.len(), 100);
    assert_ne!(ask(&mut machine, &mut driver, 100), first);
    // More than is given at once.
    assert_eq!(ask(&mut machine, &mut driver, 10_000).len(), 4096);
}

#[test]
fn a_queue_that_is_reset_alone_begins_again() {
    for wanted in [0, features::RING_PACKED] {
        let mut machine = Machine::new(make());
        let mut driver = machine.start(wanted | features::RING_RESET, 8).remove(0);
        assert_eq!(ask(&mut machine, &mut driver, 100).len(), 100);
        machine.write16(22, 0);
        machine.write16(58, 1);
        assert_eq!(machine.read16(28), 0);
        let mut driver = machine.enable_queue(0, 4);
        assert_eq!(ask(&mut machine, &mut driver, 100).len(), 100);
    }
}

#[test]
fn a_source_that_ends_is_no_end_of_the_device() {
    let empty = Rng::new("dev0", File::open("/dev/null").unwrap(), Arc::new(PlainThreads));
    let mut machine = Machine::new(Box::new(empty));
    let mut driver = machine.start(0, 8).remove(0);
    assert_eq!(ask(&mut machine, &mut driver, 100).len(), 0);
    assert_eq!(ask(&mut machine, &mut driver, 100).len(), 0);
}
