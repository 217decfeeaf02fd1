//! A guest that sends whatever packets it likes to a socket device, and programs of the host that read, write and go
//! when they like.
//!
//! Whatever they do: no panic, no packet for the guest that is not from the host or carries more than there is room for,
//! no more bytes on a connection than the guest has said it has room for, no place that is taken twice, no answer waited
//! for when its time is over, and the guest is held up before the resets that it does not take are more than their bound.

#![no_main]

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use cumulet_fuzz::Bytes;
use libfuzzer_sys::fuzz_target;
use virtio_devices::vsock::{
    ANSWER_LIMIT, Host, Stream,
    packet::{HEADER, HOST_CID, Header, operation},
    switch::{MAX_PLACES, Switch},
};

const CID: u32 = 3;

/// More would only repeat.
const MAX_OPERATIONS: usize = 256;

/// More resets than may wait, with those of connections that end at the same time.
const MAX_RESETS: usize = 1024 + MAX_PLACES;

fuzz_target!(|input: &[u8]| {
    let _ = run(Bytes::new(input));
});

/// `None` when the input is used up.
fn run(mut input: Bytes<'_>) -> Option<()> {
    let mut switch = Switch::new(CID, Programs::default(), Arc::default(), ANSWER_LIMIT);
    let (mut room, mut now) = (BTreeMap::new(), Duration::ZERO);
    for _ in 0..MAX_OPERATIONS {
        let choice = input.byte()?;
        match choice % 8 {
            0..=3 => send(&mut switch, &mut room, packet(&mut input)?, choice),
            4 => {
                // Each program says what its number begins.
                let _ = switch.accept();
            }
            5 => switch.ready(usize::from(input.byte()?)),
            6 if choice >= 128 => {
                now += Duration::from_secs((choice / 8 % 16).into());
                switch.set_time(now);
                switch.give_up();
                assert!(switch.next_limit().is_none_or(|limit| limit > now));
            }
            _ => hear(&mut switch, &mut room, usize::from(input.half()?) % 5000),
        }
        let places = switch.all();
        assert!(places.len() <= MAX_PLACES && switch.take_new().iter().all(|at| places.contains(at)));
    }
    // What is left is not without end either, where nothing new comes.
    let left = (0..MAX_RESETS + 100_000).take_while(|_| switch.next_packet(&mut [0; 4096]).is_some()).count();
    assert!(left < MAX_RESETS + 100_000);
    Some(())
}

/// A packet that is often a good one.
fn packet(input: &mut Bytes<'_>) -> Option<Header> {
    let kind = input.byte()?;
    if kind == u8::MAX {
        let mut bytes = [0; HEADER];
        for byte in &mut bytes {
            *byte = input.byte()?;
        }
        return Some(Header::from_bytes(&bytes));
    }
    let port = input.byte()?;
    Some(Header {
        source_cid: CID.into(),
        destination_cid: HOST_CID,
        source_port: u32::from(port % 4),
        destination_port: if port & 64 == 0 {
            u32::from(port / 4 % 4)
        } else {
            (1 << 30) + u32::from(port / 4 % 4)
        },
        len: u32::from(input.half()?),
        socket_type: 1,
        operation: u16::from(kind % 9),
        flags: u32::from(kind / 9),
        buffer: u32::from(input.half()?),
        forwarded: u32::from(input.half()?),
    })
}

/// What the guest has said of its room, and what it was sent, by guest's and host's port.
type Room = BTreeMap<(u32, u32), (Header, u32)>;

fn send(switch: &mut Switch<Programs>, room: &mut Room, header: Header, choice: u8) {
    if !switch.takes_packets() {
        return;
    }
    let ports = (header.source_port, header.destination_port);
    if header.source_cid == u64::from(CID) && header.destination_cid == HOST_CID && header.socket_type == 1 {
        let sent = match header.operation {
            operation::REQUEST => 0,
            _ => room.get(&ports).map_or(0, |(_, sent)| *sent),
        };
        if header.operation != operation::RST {
            room.insert(ports, (header, sent));
        }
    }
    if choice & 128 != 0 {
        return switch.break_off(&header);
    }
    let len = if header.operation == operation::RW { header.len & 0xffff } else { 0 };
    switch.receive(&Header { len, ..header }, &vec![7; len as usize]);
}

fn hear(switch: &mut Switch<Programs>, room: &mut Room, len: usize) {
    let mut data = vec![0; len];
    let Some(header) = switch.next_packet(&mut data) else { return };
    let Header { operation, .. } = header;
    // A reset mirrors what it answers.
    if operation == operation::RST {
        return;
    }
    assert_eq!((header.source_cid, header.destination_cid), (HOST_CID, CID.into()));
    assert!(header.len as usize <= len && (header.len == 0 || operation == operation::RW));
    let ports = (header.destination_port, header.source_port);
    if operation == operation::REQUEST {
        room.remove(&ports);
    } else if header.len > 0 {
        let (said, sent) = room.get_mut(&ports).expect("it has said what room it has");
        let credit = said.buffer.saturating_sub(sent.wrapping_sub(said.forwarded));
        assert!(header.len <= credit, "{} bytes, with room for {credit}", header.len);
        *sent = sent.wrapping_add(header.len);
    }
}

/// The host: every fourth port has nobody, and programs come as often as they are let in.
#[derive(Debug, Default)]
struct Programs {
    next: u8,
}

impl Host for Programs {
    type Stream = Program;

    fn connect(&mut self, port: u32) -> io::Result<Program> {
        if port % 4 == 3 {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        self.next = self.next.wrapping_add(1);
        Ok(Program { seed: self.next, line: b"" })
    }

    fn accept(&mut self) -> io::Result<Program> {
        const LINES: [&[u8]; 4] = [b"CONNECT 1\n", b"CONNECT 2\nbytes", b"CONN", b"HELLO\n"];
        self.next = self.next.wrapping_add(1);
        Ok(Program { seed: self.next, line: LINES[usize::from(self.next % 4)] })
    }
}

/// A program that does something else each time.
#[derive(Debug)]
struct Program {
    seed: u8,
    line: &'static [u8],
}

impl Program {
    fn next(&mut self) -> u8 {
        self.seed = self.seed.wrapping_mul(5).wrapping_add(13);
        self.seed
    }
}

impl Stream for Program {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        if !self.line.is_empty() {
            let count = self.line.len().min(data.len());
            let (now, later) = self.line.split_at(count);
            data[..count].copy_from_slice(now);
            self.line = later;
            return Ok(count);
        }
        match self.next() % 8 {
            0 => Ok(0),
            1 => Err(io::ErrorKind::ConnectionReset.into()),
            2..=4 => Err(io::ErrorKind::WouldBlock.into()),
            _ => Ok(data.len().min(usize::from(self.seed))),
        }
    }

    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self.next() % 8 {
            0 => Err(io::ErrorKind::BrokenPipe.into()),
            1..=3 => Err(io::ErrorKind::WouldBlock.into()),
            4 => Ok(data.len()),
            _ => Ok(data.len().min(usize::from(self.seed))),
        }
    }

    fn end_writing(&mut self) {}

    fn end_reading(&mut self) {}

    fn is_hung_up(&self) -> bool {
        self.seed % 16 == 0
    }
}
