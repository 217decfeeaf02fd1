use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustix::{
    net::{AddressFamily, SocketAddrUnix, SocketType},
    process::{Resource, Rlimit, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};
use vm_memory::{Bytes, GuestAddress};

use super::{
    packet::{HEADER, HOST_CID, Header, STREAM, operation, shutdown},
    *,
};
use crate::{
    device::VirtioDevice,
    features,
    host::vsock::{Dial, HostSocket},
    interrupt::status,
    testing::{
        Buffer, Driver,
        conformance::conformance,
        machine::{DATA, Machine},
    },
    worker::PlainThreads,
};

const CID: u32 = 3;

/// Where the guest's own packets are, and those that it gets.
const SENT: u64 = DATA;
const GOT: u64 = DATA + 0x10_0000;

/// Programs of the host's at every port but 99: the test has their ends.
#[derive(Clone, Debug, Default)]
struct Everybody(Arc<Mutex<Vec<UnixStream>>>);

impl Dial for Everybody {
    fn dial(&self, port: u32) -> io::Result<UnixStream> {
        if port == 99 {
            return Err(io::ErrorKind::NotFound.into());
        }
        let (ours, theirs) = UnixStream::pair()?;
        self.0.lock().push(theirs);
        Ok(ours)
    }
}

/// A device, where programs connect to, and the programs that listen.
fn device(cid: u32) -> (Box<dyn VirtioDevice>, std::path::PathBuf, tempfile::TempDir, Everybody) {
    device_with(cid, ANSWER_LIMIT)
}

/// The same, and how long its guest has for an answer.
fn device_with(
    cid: u32,
    limit: Duration,
) -> (Box<dyn VirtioDevice>, std::path::PathBuf, tempfile::TempDir, Everybody) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let programs = Everybody::default();
    let host = HostSocket::new(UnixListener::bind(&path).unwrap(), Box::new(programs.clone())).unwrap();
    let config = VsockConfig { id: "dev0".into(), cid };
    (Box::new(Vsock::with_limit(config, host, Arc::new(PlainThreads), limit)), path, directory, programs)
}

fn make() -> Box<dyn VirtioDevice> {
    device(CID).0
}

fn formats() -> [u64; 3] {
    [0, features::RING_EVENT_IDX, features::RING_PACKED | features::RING_EVENT_IDX]
}

fn packet(cid: u32, guest: u32, host: u32, operation: u16) -> Header {
    Header {
        source_cid: cid.into(),
        destination_cid: HOST_CID,
        source_port: guest,
        destination_port: host,
        socket_type: STREAM,
        operation,
        buffer: 1 << 20,
        ..Header::default()
    }
}

/// Sends a packet, its bytes in a buffer of their own.
fn send(machine: &mut Machine, drivers: &mut [Driver], header: Header, bytes: &[u8]) {
    let memory = machine.memory();
    let len = u32::try_from(bytes.len()).unwrap();
    memory.write_slice(&Header { len, ..header }.to_bytes(), GuestAddress(SENT)).unwrap();
    memory.write_slice(bytes, GuestAddress(SENT + 0x1000)).unwrap();
    let mut buffers = vec![Buffer::readable(SENT, 44)];
    if len > 0 {
        buffers.push(Buffer::readable(SENT + 0x1000, len));
    }
    let id = drivers[1].add(&*memory, &buffers, false).unwrap();
    assert_eq!(machine.run(&mut drivers[1], 1, id), 0);
}

/// Makes a buffer available, and waits until it is filled: the packet and its bytes.
fn receive(machine: &mut Machine, drivers: &mut [Driver]) -> (Header, Vec<u8>) {
    let id = offer(machine, drivers);
    filled(machine, drivers, id)
}

/// Makes a buffer available.
fn offer(machine: &mut Machine, drivers: &mut [Driver]) -> u16 {
    let memory = machine.memory();
    // In two parts that do not end where the header does.
    let buffers = [Buffer::writable(GOT, 50), Buffer::writable(GOT + 50, 4000)];
    let id = drivers[0].add(&*memory, &buffers, false).unwrap();
    drivers[0].enable_interrupts(&*memory);
    if drivers[0].needs_kick(&*memory) {
        machine.kick(0);
    }
    id
}

/// Waits until that buffer is filled: the packet and its bytes.
fn filled(machine: &Machine, drivers: &mut [Driver], id: u16) -> (Header, Vec<u8>) {
    let memory = machine.memory();
    let written = machine.finish(&mut drivers[0], 0, id) as usize;
    let mut bytes = vec![0; written];
    memory.read_slice(&mut bytes, GuestAddress(GOT)).unwrap();
    let header = Header::from_bytes(bytes.first_chunk().unwrap());
    assert_eq!(written, HEADER + header.len as usize);
    (header, bytes.split_off(HEADER))
}

fn connect(machine: &mut Machine, drivers: &mut [Driver], guest: u32, host: u32) {
    send(machine, drivers, packet(CID, guest, host, operation::REQUEST), b"");
    assert_eq!(receive(machine, drivers).0.operation, operation::RESPONSE);
}

fn drive(machine: &mut Machine) {
    for wanted in formats() {
        let mut drivers = machine.start(wanted, 16);
        for guest in 0..20 {
            connect(machine, &mut drivers, guest, 80);
            send(machine, &mut drivers, packet(CID, guest, 80, operation::RW), b"bytes");
        }
    }
}

conformance!(conforms, make: make, drive: drive);

#[test]
fn a_guest_talks_to_a_program() {
    for wanted in formats() {
        let (device, _path, _directory, programs) = device(CID);
        let mut machine = Machine::new(device);
        let mut drivers = machine.start(wanted | FEATURE_STREAM, 16);
        assert_eq!(machine.config::<12>(0), [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        connect(&mut machine, &mut drivers, 1000, 80);
        let mut program = programs.0.lock().pop().unwrap();
        send(&mut machine, &mut drivers, packet(CID, 1000, 80, operation::RW), b"hello");
        let mut heard = [0; 5];
        program.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
        program.write_all(&[7; 6000]).unwrap();
        let mut got = Vec::new();
        while got.len() < 6000 {
            let (header, bytes) = receive(&mut machine, &mut drivers);
            assert_eq!((header.operation, header.forwarded), (operation::RW, 5));
            got.extend(bytes);
        }
        assert_eq!(got, [7; 6000]);
        drop(program);
        let (header, _) = receive(&mut machine, &mut drivers);
        assert_eq!((header.operation, header.flags), (operation::SHUTDOWN, shutdown::BOTH));
        send(&mut machine, &mut drivers, packet(CID, 1000, 99, operation::REQUEST), b"");
        assert_eq!(receive(&mut machine, &mut drivers).0.operation, operation::RST);
    }
}

#[test]
fn a_program_talks_to_the_guest_over_a_pause() {
    for wanted in formats() {
        let (device, path, _directory, _programs) = device(CID);
        let mut machine = Machine::new(device);
        // It waits for the guest's driver.
        let mut program = UnixStream::connect(&path).unwrap();
        program.write_all(b"CONNECT 1024\nhel").unwrap();
        let mut drivers = machine.start(wanted, 16);
        let (request, _) = receive(&mut machine, &mut drivers);
        assert_eq!((request.operation, request.destination_port), (operation::REQUEST, 1024));
        send(&mut machine, &mut drivers, packet(CID, 1024, request.source_port, operation::RESPONSE), b"");
        let ok = format!("OK {}\n", request.source_port);
        let mut told = vec![0; ok.len()];
        program.read_exact(&mut told).unwrap();
        assert_eq!(told, ok.as_bytes());
        assert_eq!(receive(&mut machine, &mut drivers).1, b"hel");
        machine.save();
        program.write_all(b"lo").unwrap();
        machine.resume();
        assert_eq!(receive(&mut machine, &mut drivers).1, b"lo");
        // A driver that begins anew ends it.
        machine.set_status(0);
        assert_eq!(program.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn bytes_that_a_program_does_not_read_wait_and_arrive() {
    let (device, _path, _directory, programs) = device(CID);
    let mut machine = Machine::new(device);
    let mut drivers = machine.start(0, 16);
    connect(&mut machine, &mut drivers, 1, 80);
    let mut program = programs.0.lock().pop().unwrap();
    // As much as the kernel keeps, and a part of what we do: without reading, the guest has no more credit some time.
    let mut sent: u32 = 0;
    let mut forwarded = 0;
    let piece: Vec<u8> = (0..8192u32).map(|index| index.to_le_bytes()[0]).collect();
    let room = |sent: u32, forwarded: u32| connection::BUFFER - (sent - forwarded);
    while room(sent, forwarded) >= 8192 {
        send(&mut machine, &mut drivers, packet(CID, 1, 80, operation::RW), &piece);
        sent += 8192;
        send(&mut machine, &mut drivers, packet(CID, 1, 80, operation::CREDIT_REQUEST), b"");
        let (update, _) = receive(&mut machine, &mut drivers);
        assert_eq!(update.operation, operation::CREDIT_UPDATE);
        forwarded = update.forwarded;
    }
    // The guest says its last word; all of it arrives all the same, before the end.
    let last = Header { flags: shutdown::BOTH, ..packet(CID, 1, 80, operation::SHUTDOWN) };
    send(&mut machine, &mut drivers, last, b"");
    assert_eq!(receive(&mut machine, &mut drivers).0.operation, operation::RST);
    let mut heard = Vec::new();
    program.read_to_end(&mut heard).unwrap();
    assert_eq!(heard.len(), sent as usize);
    assert!(heard.chunks(8192).all(|chunk| chunk == piece));
}

#[test]
fn an_answer_that_does_not_come_is_waited_for_in_time_that_the_device_runs() {
    const LIMIT: Duration = Duration::from_millis(100);
    let (device, path, _directory, programs) = device_with(CID, LIMIT);
    let mut machine = Machine::new(device);
    let mut drivers = machine.start(0, 16);
    // A program that nobody takes is cut off, and the guest is told though it does nothing.
    let mut program = UnixStream::connect(&path).unwrap();
    let begun = Instant::now();
    program.write_all(b"CONNECT 1024\n").unwrap();
    assert_eq!(receive(&mut machine, &mut drivers).0.operation, operation::REQUEST);
    program.set_read_timeout(Some(100 * LIMIT)).unwrap();
    assert_eq!(program.read(&mut [0]).unwrap(), 0);
    assert!(begun.elapsed() >= LIMIT);
    let (reset, _) = receive(&mut machine, &mut drivers);
    assert_eq!((reset.operation, reset.destination_port), (operation::RST, 1024));

    connect(&mut machine, &mut drivers, 1, 80);
    let begun = Instant::now();
    drop(programs.0.lock().pop().unwrap());
    let (last, _) = receive(&mut machine, &mut drivers);
    assert_eq!((last.operation, last.flags), (operation::SHUTDOWN, shutdown::BOTH));
    machine.save();
    let paused = Instant::now();
    std::thread::sleep(2 * LIMIT);
    let paused = paused.elapsed();
    machine.resume();
    let (reset, _) = receive(&mut machine, &mut drivers);
    assert_eq!((reset.operation, reset.destination_port), (operation::RST, 1));
    assert!(begun.elapsed() >= LIMIT + paused, "{:?}, {paused:?} of it in a pause", begun.elapsed());
    // Both places are free, and the ports too.
    connect(&mut machine, &mut drivers, 1, 80);
}

/// What this process has used of the processors.
fn processor_time() -> Duration {
    clock_gettime(ClockId::ProcessCPUTime).try_into().unwrap()
}

#[test]
fn a_program_waits_while_no_descriptor_is_left() {
    if !devices::testing::is_alone(module_path!(), "a_program_waits_while_no_descriptor_is_left") {
        return;
    }
    let (device, path, _directory, programs) = device(CID);
    let mut machine = Machine::new(device);
    let mut drivers = machine.start(0, 16);
    connect(&mut machine, &mut drivers, 1, 80);
    let mut first = programs.0.lock().pop().unwrap();
    let second = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    let before = getrlimit(Resource::Nofile);
    // The standard streams are all that there may be: none can be added.
    setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..before }).unwrap();
    rustix::net::connect(&second, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    let mut second = UnixStream::from(second);
    second.write_all(b"CONNECT 52\n").unwrap();
    let used = processor_time();
    std::thread::sleep(Duration::from_millis(500));
    let used = processor_time() - used;
    assert!(used < Duration::from_millis(50), "{used:?} for doing nothing");
    // What was there goes on, and the guest is told of what cannot be.
    send(&mut machine, &mut drivers, packet(CID, 1, 80, operation::RW), b"hello");
    let mut heard = [0; 5];
    first.read_exact(&mut heard).unwrap();
    first.write_all(b"bye").unwrap();
    assert_eq!(receive(&mut machine, &mut drivers).1, b"bye");
    send(&mut machine, &mut drivers, packet(CID, 1, 81, operation::REQUEST), b"");
    assert_eq!(receive(&mut machine, &mut drivers).0.operation, operation::RST);
    // When there are descriptors again, nothing else has to happen to this device.
    let id = offer(&mut machine, &mut drivers);
    std::thread::sleep(Duration::from_millis(50));
    setrlimit(Resource::Nofile, before).unwrap();
    let (request, _) = filled(&machine, &mut drivers, id);
    assert_eq!((request.operation, request.destination_port), (operation::REQUEST, 52));
    send(&mut machine, &mut drivers, packet(CID, 52, request.source_port, operation::RESPONSE), b"");
    let mut told = [0; 2];
    second.read_exact(&mut told).unwrap();
    assert_eq!(&told, b"OK");
}

#[test]
fn a_restored_device_waits_for_nothing_that_was_before() {
    const LIMIT: Duration = Duration::from_millis(100);
    let (device, path, _directory, _programs) = device_with(CID, LIMIT);
    let mut machine = Machine::new(device);
    let mut drivers = machine.start(0, 16);
    let mut program = UnixStream::connect(&path).unwrap();
    program.write_all(b"CONNECT 5\n").unwrap();
    assert_eq!(receive(&mut machine, &mut drivers).0.operation, operation::REQUEST);
    let saved = machine.save();
    let (other, path, _other_directory, _programs) = device_with(CID, LIMIT);
    let mut restored = Machine::restore(&machine, other, &saved).unwrap();
    restored.resume();
    std::thread::sleep(2 * LIMIT);
    // The first packet is none of the old connection, and the limit of a new one is its own.
    let mut program = UnixStream::connect(&path).unwrap();
    let begun = Instant::now();
    program.write_all(b"CONNECT 6\n").unwrap();
    for operation in [operation::REQUEST, operation::RST] {
        let (header, _) = receive(&mut restored, &mut drivers);
        assert_eq!((header.operation, header.destination_port), (operation, 6));
    }
    assert!(begun.elapsed() >= LIMIT);
}

#[test]
fn a_restored_guest_is_told_once_it_can_hear() {
    for wanted in formats() {
        let (one, path, _directory, programs) = device(CID);
        let mut machine = Machine::new(one);
        let mut drivers = machine.start(wanted, 16);
        connect(&mut machine, &mut drivers, 1, 80);
        let mut caller = UnixStream::connect(&path).unwrap();
        caller.write_all(b"CONNECT 5\n").unwrap();
        let (request, _) = receive(&mut machine, &mut drivers);
        assert_eq!(request.source_port, FIRST_HOST_PORT);
        let saved = machine.save();

        let (other, path, _other_directory, _programs) = device(77);
        let mut restored = Machine::restore(&machine, other, &saved).unwrap();
        restored.resume();
        assert_eq!(restored.config::<8>(0), [77, 0, 0, 0, 0, 0, 0, 0]);
        // Its old connection is not there, and a program gets a port that it has not seen.
        send(&mut restored, &mut drivers, packet(CID, 1, 80, operation::RW), b"x");
        let (reset, _) = receive(&mut restored, &mut drivers);
        assert_eq!((reset.operation, reset.destination_cid), (operation::RST, CID.into()));
        let mut program = UnixStream::connect(&path).unwrap();
        program.write_all(b"CONNECT 5\n").unwrap();
        let (request, _) = receive(&mut restored, &mut drivers);
        assert_eq!((request.source_port, request.destination_cid), (FIRST_HOST_PORT + 1, 77));
        // The event has waited for its buffer, and comes once.
        let memory = restored.memory();
        let mut first = [0xff; 4];
        memory.write_slice(&first, GuestAddress(GOT)).unwrap();
        let id = drivers[2].add(&*memory, &[Buffer::writable(GOT, 4)], false).unwrap();
        assert_eq!(restored.run(&mut drivers[2], 2, id), 4);
        memory.read_slice(&mut first, GuestAddress(GOT)).unwrap();
        assert_eq!(first, [0; 4]);
        drivers[2].add(&*memory, &[Buffer::writable(GOT, 4)], false).unwrap();
        restored.kick(2);
        send(&mut restored, &mut drivers, packet(77, 1, 99, operation::REQUEST), b"");
        assert_eq!(receive(&mut restored, &mut drivers).0.operation, operation::RST);
        assert!(!drivers[2].has_used(&*memory));
        // The first device lives on with all it had.
        let mut old = programs.0.lock().pop().unwrap();
        old.set_nonblocking(true).unwrap();
        assert_eq!(old.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}

#[test]
fn a_driver_that_breaks_the_rules_breaks_the_queue() {
    // A packet without a header, a buffer without room for one, an event without room.
    for (queue, buffer) in [(1, Buffer::readable(SENT, 43)), (0, Buffer::writable(GOT, 43))] {
        let mut machine = Machine::new(make());
        let mut drivers = machine.start(0, 16);
        let memory = machine.memory();
        drivers[usize::from(queue)].add(&*memory, &[buffer], false).unwrap();
        machine.kick(queue);
        if queue == 0 {
            // There has to be something to be put into it.
            let request = packet(CID, 1, 99, operation::REQUEST);
            memory.write_slice(&request.to_bytes(), GuestAddress(SENT)).unwrap();
            drivers[1].add(&*memory, &[Buffer::readable(SENT, 44)], false).unwrap();
            machine.kick(1);
        }
        machine.wait_config();
        assert_ne!(machine.status() & status::NEEDS_RESET, 0);
        drive(&mut machine);
    }
}

#[test]
fn packets_that_say_more_than_they_have_are_answered_with_a_reset() {
    let mut machine = Machine::new(make());
    let mut drivers = machine.start(0, 16);
    for len in [11, connection::BUFFER + 1, u32::MAX] {
        connect(&mut machine, &mut drivers, 1, 80);
        let memory = machine.memory();
        let header = Header { len, ..packet(CID, 1, 80, operation::RW) };
        memory.write_slice(&header.to_bytes(), GuestAddress(SENT)).unwrap();
        let id = drivers[1].add(&*memory, &[Buffer::readable(SENT, 54)], false).unwrap();
        machine.run(&mut drivers[1], 1, id);
        assert_eq!(receive(&mut machine, &mut drivers).0.operation, operation::RST, "{len}");
    }
    // What follows a header that needs nothing is passed over.
    connect(&mut machine, &mut drivers, 1, 80);
    send(&mut machine, &mut drivers, packet(CID, 1, 80, operation::CREDIT_REQUEST), b"junk");
    assert_eq!(receive(&mut machine, &mut drivers).0.operation, operation::CREDIT_UPDATE);
}

#[test]
fn resets_that_nobody_takes_hold_the_guest_up_and_no_packet_is_lost() {
    let mut machine = Machine::new(make());
    let mut drivers = machine.start(features::RING_EVENT_IDX, 128);
    let memory = machine.memory();
    memory.write_slice(&packet(CID, 1, 99, operation::REQUEST).to_bytes(), GuestAddress(SENT)).unwrap();
    let (mut sent, mut reset) = (0, 0);
    // The guest sends until its queue is full and stays so.
    while sent < 1024 + 128 {
        while drivers[1].add(&*memory, &[Buffer::readable(SENT, 44)], false).is_some() {
            sent += 1;
        }
        machine.kick(1);
        while sent < 1024 + 128 && drivers[1].take_used(&*memory).is_none() {
            if !drivers[1].enable_interrupts(&*memory) {
                machine.wait_queue(1);
            }
        }
        while drivers[1].take_used(&*memory).is_some() {}
    }
    while reset < sent {
        assert_eq!(receive(&mut machine, &mut drivers).0.operation, operation::RST);
        reset += 1;
        while drivers[1].take_used(&*memory).is_some() {}
    }
}
