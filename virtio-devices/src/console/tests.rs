use std::{
    fs::File,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    sync::Arc,
};

use devices::terminal::{BACKLOG, Terminal};
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

fn console(terminal: &Arc<Terminal>) -> Box<dyn VirtioDevice> {
    Box::new(Console::new("dev0", Arc::clone(terminal), 80, 25, Arc::new(PlainThreads)))
}

fn make() -> Box<dyn VirtioDevice> {
    console(&Terminal::null().unwrap())
}

fn formats() -> [u64; 3] {
    [0, features::RING_EVENT_IDX, features::RING_PACKED | features::RING_EVENT_IDX]
}

fn print(machine: &mut Machine, driver: &mut Driver, text: &[u8]) {
    let memory = machine.memory();
    memory.write_slice(text, GuestAddress(DATA)).unwrap();
    let len = u32::try_from(text.len()).unwrap();
    let id = driver.add(&*memory, &[Buffer::readable(DATA, len)], false).unwrap();
    assert_eq!(machine.run(driver, 1, id), 0);
}

fn drive(machine: &mut Machine) {
    for wanted in formats() {
        let mut drivers = machine.start(wanted | FEATURE_SIZE, 16);
        for _ in 0..20 {
            print(machine, &mut drivers[1], b"output\n");
        }
    }
}

conformance!(conforms, make: make, drive: drive);

#[test]
fn output_arrives_in_order() {
    for wanted in formats() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let terminal = Terminal::file(path.reopen().unwrap()).unwrap();
        let mut machine = Machine::new(console(&terminal));
        let mut drivers = machine.start(wanted, 16);
        let text: Vec<u8> = (0..50_000u32).map(|index| index.to_le_bytes()[1]).collect();
        for part in text.chunks(9999) {
            print(&mut machine, &mut drivers[1], part);
        }
        assert!(std::fs::read(path.path()).unwrap() == text);
    }
}

fn pipe() -> (File, File) {
    let (read, write) = std::io::pipe().unwrap();
    (File::from(std::os::fd::OwnedFd::from(read)), File::from(std::os::fd::OwnedFd::from(write)))
}

#[test]
fn input_waits_for_the_guest() {
    for wanted in formats() {
        let (read, mut write) = pipe();
        let terminal = Terminal::standard(tempfile::tempfile().unwrap(), Some(read)).unwrap();
        let mut machine = Machine::new(console(&terminal));
        let mut drivers = machine.start(wanted, 16);
        let memory = machine.memory();
        // Typed before the guest has any buffer.
        write.write_all(b"hello").unwrap();
        print(&mut machine, &mut drivers[1], b"still working");
        let id = drivers[0].add(&*memory, &[Buffer::writable(DATA, 3)], false).unwrap();
        assert_eq!(machine.run(&mut drivers[0], 0, id), 3);
        assert_eq!(memory.read_obj::<[u8; 3]>(GuestAddress(DATA)).unwrap(), *b"hel");
        let id = drivers[0].add(&*memory, &[Buffer::writable(DATA, 64)], false).unwrap();
        assert_eq!(machine.run(&mut drivers[0], 0, id), 2);
        // Typed when the guest waits for it, over a pause.
        let id = drivers[0].add(&*memory, &[Buffer::writable(DATA, 64)], false).unwrap();
        drivers[0].enable_interrupts(&*memory);
        machine.kick(0);
        machine.save();
        write.write_all(b"more").unwrap();
        machine.resume();
        assert_eq!(machine.finish(&mut drivers[0], 0, id), 4);
        assert_eq!(memory.read_obj::<[u8; 4]>(GuestAddress(DATA)).unwrap(), *b"more");
        // An end of input is no end of the console.
        drop(write);
        print(&mut machine, &mut drivers[1], b"still working");
    }
}

#[test]
fn output_without_a_reader_does_not_stop_the_guest() {
    // A service has /dev/null for standard input; the guest has room for what never comes.
    for input in [None, Some(File::open("/dev/null").unwrap())] {
        let (mut read, write) = pipe();
        let terminal = Terminal::standard(write, input).unwrap();
        let mut machine = Machine::new(console(&terminal));
        let mut drivers = machine.start(0, 16);
        drivers[0].add(&*machine.memory(), &[Buffer::writable(DATA + (1 << 20), 64)], false).unwrap();
        machine.kick(0);
        let line = [b'x'; 60_000];
        for _ in 0..40 {
            print(&mut machine, &mut drivers[1], &line);
        }
        assert_eq!(terminal.kept(), BACKLOG);
        // Now somebody reads: the thread passes on what it kept, without the guest doing anything.
        let mut seen = vec![0; BACKLOG];
        read.read_exact(&mut seen).unwrap();
        assert!(seen.iter().all(|byte| *byte == b'x'));
    }
}

#[test]
fn clients_of_a_socket_come_and_go() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console");
    let terminal = Terminal::socket(UnixListener::bind(&path).unwrap()).unwrap();
    let mut machine = Machine::new(console(&terminal));
    let mut drivers = machine.start(0, 16);
    for text in [b"first", b"other"] {
        let mut client = UnixStream::connect(&path).unwrap();
        let mut seen = [0; 5];
        print(&mut machine, &mut drivers[1], text);
        client.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, text);
        let memory = machine.memory();
        let id = drivers[0].add(&*memory, &[Buffer::writable(DATA, 64)], false).unwrap();
        client.write_all(b"typed").unwrap();
        assert_eq!(machine.run(&mut drivers[0], 0, id), 5);
    }
}

#[test]
fn the_guest_is_told_of_the_size() {
    let terminal = Terminal::null().unwrap();
    let device = Console::new("dev0", Arc::clone(&terminal), 80, 25, Arc::new(PlainThreads));
    let control = device.control();
    let mut machine = Machine::new(Box::new(device));
    machine.start(FEATURE_SIZE, 16);
    assert_eq!(machine.config::<4>(0), [80, 0, 25, 0]);
    control.resize(80, 25);
    assert!(machine.take_interrupts().is_empty());
    control.resize(300, 100);
    machine.wait_config();
    assert_eq!(machine.config::<4>(0), [44, 1, 100, 0]);
    // A restored guest keeps what it was told until the machine says otherwise.
    let saved = machine.save();
    let mut restored = Machine::restore(&machine, console(&terminal), &saved).unwrap();
    restored.resume();
    assert_eq!(restored.config::<4>(0), [44, 1, 100, 0]);
    // A driver that did not ask for it is not told.
    machine.resume();
    machine.start(0, 16);
    control.resize(80, 25);
    assert!(machine.take_interrupts().is_empty());
}

#[test]
fn an_endless_request_breaks_the_queue() {
    let mut machine = Machine::new(make());
    let mut drivers = machine.start(0, 16);
    let memory = machine.memory();
    let buffers = [Buffer::readable(DATA, 0x70_0000); 3];
    drivers[1].add(&*memory, &buffers, false).unwrap();
    machine.kick(1);
    machine.wait_config();
    assert_ne!(machine.status() & status::NEEDS_RESET, 0);
    drive(&mut machine);
}
