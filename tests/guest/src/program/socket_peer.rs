//! Orders on the virtio socket device (virtio 1.3, section 5.10): a peer that sends back what it gets, over connections
//! from and to the host, while the program waits for orders.
//!
//! Each connection has a ring for what came and was not sent back yet; that is the room that the host is told of. Packets
//! lie in buffers that belong to the chains by their numbers.

use test_guest::orders::Words;

use super::Program;
use super::reply::{OrderError, say};
use super::virtio_orders::NO_ANSWER;
use crate::cell::table;
use crate::cpu::{self, Width, read, write};
use crate::pci::Bdf;
use crate::virtio::queue::{Queue, Segment};
use crate::virtio::{DeviceError, KIND_VSOCK, Virtio};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const EVENT: u16 = 2;

const HOST_CID: u64 = 2;
const TYPE_STREAM: u64 = 1;

const OP_REQUEST: u64 = 1;
const OP_RESPONSE: u64 = 2;
const OP_RST: u64 = 3;
const OP_SHUTDOWN: u64 = 4;
const OP_RW: u64 = 5;
const OP_CREDIT_UPDATE: u64 = 6;
const OP_CREDIT_REQUEST: u64 = 7;

const SHUTDOWN_SEND: u64 = 2;
const SHUTDOWN_BOTH: u64 = 3;

// Offsets in a header.
const SOURCE_CID: u64 = 0;
const DESTINATION_CID: u64 = 8;
const SOURCE_PORT: u64 = 16;
const DESTINATION_PORT: u64 = 20;
const LEN: u64 = 24;
const TYPE: u64 = 28;
const OPERATION: u64 = 30;
const FLAGS: u64 = 32;
const BUFFER: u64 = 36;
const FORWARDED: u64 = 40;
const HEADER_BYTES: u64 = 44;

const PAYLOAD_MAX: u64 = 4096;
/// A packet's buffer.
const PACKET_BYTES: u64 = (HEADER_BYTES + PAYLOAD_MAX).next_multiple_of(64);
const RING_BYTES: u32 = 16384;
const CONNECTIONS: usize = 64;
const EVENTS: u64 = 4;
const EVENT_BYTES: u64 = 64;

/// The first port of connections to the host.
const FIRST_PORT: u32 = 5000;

/// Packets that are taken before the others have their turn.
const PACKETS_MAX: u32 = 64;

const ANSWER_TSC: u64 = 20_000_000_000;

/// One connection.
#[derive(Clone, Copy, Debug)]
struct Connection {
    host: u32,
    guest: u32,
    open: bool,
    /// What is said next.
    owes: Option<u64>,
    /// Nothing more will come.
    ended: bool,
    /// The host was told that nothing more will go.
    closing: bool,
    received: u32,
    /// How much of it was sent back.
    sent_back: u32,
    sent: u32,
    host_buffer: u32,
    host_forwarded: u32,
}

/// The peer, its buffers and its counts.
#[derive(Debug)]
pub struct SocketPeer {
    bdf: Bdf,
    cid: u64,
    /// The port that it listens on.
    port: u32,
    next_port: u32,
    connections: &'static mut [Option<Connection>],
    receive_buffers: u64,
    transmit_buffers: u64,
    event_buffers: u64,
    rings: u64,
    echoed: u64,
    resets: u64,
    events: u64,
}

impl Program {
    /// `vsock-serve BDF PORT`: listens on PORT, and sends back what it gets.
    pub(super) fn vsock_serve(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let bdf = Bdf(words.bdf()?);
        let port = words.narrow("PORT")?;
        words.end()?;
        if let Some(peer) = self.peer.as_mut().filter(|peer| peer.bdf == bdf) {
            peer.port = port;
            return Ok(());
        }
        if self.virtio.device(bdf)?.transport.kind != KIND_VSOCK {
            return Err(OrderError::Refused("the device is no socket device"));
        }
        let sizes = [RECEIVE, TRANSMIT]
            .map(|index| self.virtio.queue(bdf, index).map(|queue| u64::from(queue.size())));
        let [receive, transmit] = sizes;
        let (receive, transmit) = (receive? * PACKET_BYTES, transmit? * PACKET_BYTES);
        let rings = u64::from(RING_BYTES) * CONNECTIONS as u64;
        let all = receive + transmit + rings + EVENTS * EVENT_BYTES;
        let receive_buffers = self.virtio.buffers(&mut self.memory, bdf, all)?;
        let connections = table(&mut self.memory, CONNECTIONS)?;
        let mut peer = SocketPeer {
            bdf,
            cid: 0,
            port,
            next_port: FIRST_PORT,
            connections,
            receive_buffers,
            transmit_buffers: receive_buffers + receive,
            rings: receive_buffers + receive + transmit,
            event_buffers: receive_buffers + receive + transmit + rings,
            echoed: 0,
            resets: 0,
            events: 0,
        };
        peer.start(&mut self.virtio)?;
        self.peer = Some(peer);
        Ok(())
    }

    /// `vsock-state`: the peer's counts.
    pub(super) fn vsock_state(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        words.end()?;
        let SocketPeer { cid, connections, echoed, resets, events, .. } =
            self.peer.as_ref().ok_or(OrderError::Refused(NOT_SERVED))?;
        let open = connections.iter().flatten().filter(|connection| connection.open).count();
        say!(self.reply, " cid={cid} connections={open} echoed={echoed} resets={resets} events={events}");
        Ok(())
    }

    /// `vsock-connect PORT`: connects to a port of the host's, and sends back what it gets from there.
    pub(super) fn vsock_connect(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let host = words.narrow("PORT")?;
        words.end()?;
        let peer = self.peer.as_mut().ok_or(OrderError::Refused(NOT_SERVED))?;
        let guest = peer.next_port;
        peer.next_port = guest.wrapping_add(1);
        let place = peer.add(host, guest).ok_or(OrderError::Refused("there are too many connections"))?;
        peer.connections[place]
            .as_mut()
            .into_iter()
            .for_each(|connection| connection.owes = Some(OP_REQUEST));
        let start = cpu::tsc();
        loop {
            self.echo();
            let peer = self.peer.as_ref().ok_or(OrderError::Refused(NOT_SERVED))?;
            match &peer.connections[place] {
                None => return Err(OrderError::Refused("the host refuses")),
                Some(connection) if connection.open => break,
                Some(_) if cpu::tsc().wrapping_sub(start) > ANSWER_TSC => {
                    return Err(OrderError::Refused(NO_ANSWER));
                }
                Some(_) => core::hint::spin_loop(),
            }
        }
        say!(self.reply, " guest={guest}");
        Ok(())
    }

    /// `vsock-close`: ends all connections, and waits until the host has agreed.
    pub(super) fn vsock_close(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        words.end()?;
        let peer = self.peer.as_mut().ok_or(OrderError::Refused(NOT_SERVED))?;
        peer.connections.iter_mut().flatten().for_each(|connection| connection.ended = true);
        let start = cpu::tsc();
        while self.peer.as_ref().is_some_and(|peer| peer.connections.iter().any(Option::is_some)) {
            if cpu::tsc().wrapping_sub(start) > ANSWER_TSC {
                return Err(OrderError::Refused(NO_ANSWER));
            }
            self.echo();
        }
        Ok(())
    }

    /// Sends back what has come. Returns whether there was anything to do.
    pub(super) fn echo(&mut self) -> bool {
        match &mut self.peer {
            Some(peer) => peer.step(&mut self.virtio),
            None => false,
        }
    }

    /// Ends the peer of a device that is set up anew.
    pub(super) fn release_peer(&mut self, bdf: Bdf) {
        self.peer.take_if(|peer| peer.bdf == bdf);
    }
}

const NOT_SERVED: &str = "vsock-serve comes first";

impl SocketPeer {
    /// Hands all buffers to the device.
    fn start(&mut self, virtio: &mut Virtio) -> Result<(), DeviceError> {
        self.read_cid(virtio);
        let receive = virtio.queue(self.bdf, RECEIVE)?;
        while receive.has_room(1) {
            self.add_receive_buffer(receive);
        }
        receive.kick();
        let event = virtio.queue(self.bdf, EVENT)?;
        for _ in 0..EVENTS {
            self.add_event_buffer(event);
        }
        event.kick();
        Ok(())
    }

    fn read_cid(&mut self, virtio: &Virtio) {
        if let Ok(device) = virtio.device(self.bdf) {
            self.cid = device.transport.config(0, Width::Quad);
        }
    }

    fn step(&mut self, virtio: &mut Virtio) -> bool {
        let mut busy = self.take_events(virtio);
        busy |= self.take_packets(virtio).unwrap_or(false);
        busy |= self.send(virtio).unwrap_or(false);
        busy
    }

    /// After a reset of the transport all connections are gone, and the context id may be another.
    fn take_events(&mut self, virtio: &mut Virtio) -> bool {
        let mut came = 0;
        if let Ok(queue) = virtio.queue(self.bdf, EVENT) {
            while queue.take_used().is_some() {
                came += 1;
                self.add_event_buffer(queue);
            }
            if came > 0 {
                queue.notify();
            }
        }
        if came > 0 {
            self.events += came;
            self.connections.fill(None);
            self.read_cid(virtio);
        }
        came > 0
    }

    fn take_packets(&mut self, virtio: &mut Virtio) -> Result<bool, DeviceError> {
        let transmit = virtio.queue(self.bdf, TRANSMIT)?;
        while transmit.take_used().is_some() {}
        let mut taken = 0;
        while taken < PACKETS_MAX
            // Each may have to be answered.
            && virtio.queue(self.bdf, TRANSMIT)?.has_room(1)
            && let Some((id, len)) = virtio.queue(self.bdf, RECEIVE)?.take_used()
        {
            taken += 1;
            let packet = self.receive_buffers + u64::from(id) * PACKET_BYTES;
            if u64::from(len) >= HEADER_BYTES {
                self.receive(virtio.queue(self.bdf, TRANSMIT)?, packet);
            }
            self.add_receive_buffer(virtio.queue(self.bdf, RECEIVE)?);
        }
        if taken > 0 {
            virtio.queue(self.bdf, RECEIVE)?.notify();
            virtio.queue(self.bdf, TRANSMIT)?.notify();
        }
        Ok(taken > 0)
    }

    fn receive(&mut self, transmit: &mut Queue, packet: u64) {
        let operation = read(packet + OPERATION, Width::Word);
        let (host, guest) = (port(packet + SOURCE_PORT), port(packet + DESTINATION_PORT));
        let of = |connection: &Connection| connection.host == host && connection.guest == guest;
        let place = self.connections.iter().position(|place| place.as_ref().is_some_and(of));
        if operation == OP_RST {
            self.resets += u64::from(place.is_some());
            place.into_iter().for_each(|place| self.connections[place] = None);
            return;
        }
        let place = match place {
            None if operation == OP_REQUEST && guest == self.port => {
                let place = self.add(host, guest);
                if let Some(connection) = place.and_then(|place| self.connections[place].as_mut()) {
                    connection.open = true;
                    connection.owes = Some(OP_RESPONSE);
                }
                place
            }
            other => other,
        };
        let Some(place) = place else {
            return self.add_packet(transmit, &Connection::new(host, guest), OP_RST, 0, 0);
        };
        let Some(connection) = &mut self.connections[place] else {
            return;
        };
        connection.host_buffer = port(packet + BUFFER);
        connection.host_forwarded = port(packet + FORWARDED);
        match operation {
            OP_RESPONSE => connection.open = true,
            OP_CREDIT_REQUEST => connection.owes = Some(OP_CREDIT_UPDATE),
            OP_SHUTDOWN => connection.ended |= read(packet + FLAGS, Width::Long) & SHUTDOWN_SEND != 0,
            OP_RW => {
                let ring = self.rings + u64::from(RING_BYTES) * place as u64;
                // More than what the host was told of is its mistake, and shows in what comes back.
                let len = port(packet + LEN)
                    .min(RING_BYTES - (connection.received.wrapping_sub(connection.sent_back)));
                for offset in 0..len {
                    let byte = read(packet + HEADER_BYTES + u64::from(offset), Width::Byte);
                    let at = connection.received.wrapping_add(offset) % RING_BYTES;
                    write(ring + u64::from(at), Width::Byte, byte);
                }
                connection.received = connection.received.wrapping_add(len);
            }
            _ => {}
        }
    }

    /// What every connection has to say, as far as there is room.
    fn send(&mut self, virtio: &mut Virtio) -> Result<bool, DeviceError> {
        let transmit = virtio.queue(self.bdf, TRANSMIT)?;
        let mut said = false;
        for place in 0..self.connections.len() {
            while transmit.has_room(1)
                && let Some(mut connection) = self.connections[place]
                && let Some((operation, len, flags)) = connection.next()
            {
                if operation == OP_RW {
                    self.copy_back(transmit, place, &connection, len);
                    connection.sent_back = connection.sent_back.wrapping_add(len);
                    connection.sent = connection.sent.wrapping_add(len);
                    self.echoed += u64::from(len);
                }
                self.add_packet(transmit, &connection, operation, len, flags);
                self.connections[place] = Some(connection);
                said = true;
            }
        }
        if said {
            transmit.notify();
        }
        Ok(said)
    }

    /// Copies what was not sent back yet into the packet that is added next.
    fn copy_back(&self, transmit: &Queue, place: usize, connection: &Connection, len: u32) {
        let ring = self.rings + u64::from(RING_BYTES) * place as u64;
        let packet = packet_of(self.transmit_buffers, transmit);
        for offset in 0..len {
            let at = connection.sent_back.wrapping_add(offset) % RING_BYTES;
            let byte = read(ring + u64::from(at), Width::Byte);
            write(packet + HEADER_BYTES + u64::from(offset), Width::Byte, byte);
        }
    }

    /// Adds a packet whose bytes, if there are any, are in place.
    fn add_packet(&self, transmit: &mut Queue, of: &Connection, operation: u64, len: u32, flags: u64) {
        let packet = packet_of(self.transmit_buffers, transmit);
        write(packet + SOURCE_CID, Width::Quad, self.cid);
        write(packet + DESTINATION_CID, Width::Quad, HOST_CID);
        write(packet + TYPE, Width::Word, TYPE_STREAM);
        write(packet + OPERATION, Width::Word, operation);
        for (offset, value) in [
            (SOURCE_PORT, of.guest),
            (DESTINATION_PORT, of.host),
            (LEN, len),
            (BUFFER, RING_BYTES),
            (FORWARDED, of.sent_back),
        ] {
            write(packet + offset, Width::Long, value.into());
        }
        write(packet + FLAGS, Width::Long, flags);
        let bytes = u32::try_from(HEADER_BYTES).unwrap_or(0) + len;
        transmit.add(&[Segment::read(packet, bytes)]);
    }

    fn add_receive_buffer(&self, receive: &mut Queue) {
        let packet = packet_of(self.receive_buffers, receive);
        receive.add(&[Segment::write(packet, u32::try_from(HEADER_BYTES + PAYLOAD_MAX).unwrap_or(0))]);
    }

    fn add_event_buffer(&self, event: &mut Queue) {
        // Events say but one thing: they can share a buffer.
        event.add(&[Segment::write(self.event_buffers, 4)]);
    }

    fn add(&mut self, host: u32, guest: u32) -> Option<usize> {
        let place = self.connections.iter().position(Option::is_none)?;
        self.connections[place] = Some(Connection::new(host, guest));
        Some(place)
    }
}

impl Connection {
    fn new(host: u32, guest: u32) -> Self {
        Self {
            host,
            guest,
            open: false,
            owes: None,
            ended: false,
            closing: false,
            received: 0,
            sent_back: 0,
            sent: 0,
            host_buffer: 0,
            host_forwarded: 0,
        }
    }

    /// Operation, bytes and flags of what it says next.
    fn next(&mut self) -> Option<(u64, u32, u64)> {
        if let Some(operation) = self.owes.take() {
            return Some((operation, 0, 0));
        }
        if !self.open || self.closing {
            return None;
        }
        let waiting = self.received.wrapping_sub(self.sent_back);
        let credit = self.host_buffer.saturating_sub(self.sent.wrapping_sub(self.host_forwarded));
        let len = waiting.min(credit).min(u32::try_from(PAYLOAD_MAX).unwrap_or(0));
        if len > 0 {
            return Some((OP_RW, len, 0));
        }
        if self.ended && waiting == 0 {
            self.closing = true;
            return Some((OP_SHUTDOWN, 0, SHUTDOWN_BOTH));
        }
        None
    }
}

/// Where the packet lies that is added next to a queue.
fn packet_of(buffers: u64, queue: &Queue) -> u64 {
    buffers + u64::from(queue.next_chain()) * PACKET_BYTES
}

fn port(address: u64) -> u32 {
    u32::try_from(read(address, Width::Long)).unwrap_or(0)
}
