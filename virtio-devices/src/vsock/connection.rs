//! One connection: what has been said, what is owed, and how much each side may send. Nothing here reads or writes
//! anything; the [switch](super::switch) does that, and says what came of it.
//!
//! ```text
//!   host asks:   Asked --RESPONSE--> Open          guest asks: (REQUEST) --> Open, which owes a RESPONSE
//!   Asked, Open  --RST, either way--> gone
//!   Open         --SHUTDOWN of the guest that leaves nothing to be sent or received--> gone, answered by a RST
//!   Asked, Open with a SHUTDOWN of the host that leaves nothing  --time--> gone, by a RST of the host
//! ```
//!
//! Counts of bytes wrap at 2^32 and are only ever subtracted from each other (virtio 1.3 section 5.10.6.3).

use std::collections::VecDeque;

use super::packet::{Header, operation, shutdown};

/// Bytes from the guest that are kept for a host program that does not read. The guest is told of so much room.
pub const BUFFER: u32 = 128 << 10;

/// Whether the connection has been made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The host asked for it, and the guest was not told yet.
    ToAsk,
    /// The guest has been asked.
    Asked,
    /// It is made.
    Open,
}

/// What a packet of the guest's means to the host's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Nothing.
    Noted,
    /// The guest takes the connection.
    Opened,
    /// The packet's bytes are for the host, and there is room for them.
    Bytes,
    /// The guest sends no more, or receives no more, or both.
    ShutDown,
    /// The guest has ended it.
    Ended,
    /// The guest broke a rule: the connection is to be reset.
    Broken,
}

/// A connection between a port of the guest's and one of the host's.
#[derive(Debug)]
pub struct Connection {
    phase: Phase,
    /// Bytes of the guest's that the host has not taken yet; [`BUFFER`] at most.
    waiting: VecDeque<u8>,
    /// Bytes that the guest has sent.
    received: u32,
    /// What the guest was last told of the bytes that left our buffer.
    told: u32,
    /// Bytes that the guest was sent.
    sent: u32,
    /// Size of the guest's buffer.
    guest_buffer: u32,
    /// Bytes that have left the guest's buffer.
    guest_forwarded: u32,
    /// Flags of [`shutdown`] that the guest has sent.
    guest_shut: u32,
    /// Flags of [`shutdown`] that are true of the host's end.
    host_shut: u32,
    /// Those of them that the guest was told.
    told_shut: u32,
    owes_response: bool,
    owes_credit: bool,
    /// The guest was asked for credit since it last said how much there is.
    asked_credit: bool,
}

impl Connection {
    /// One that the host asks for.
    pub fn from_host() -> Self {
        Self {
            phase: Phase::ToAsk,
            waiting: VecDeque::new(),
            received: 0,
            told: 0,
            sent: 0,
            guest_buffer: 0,
            guest_forwarded: 0,
            guest_shut: 0,
            host_shut: 0,
            told_shut: 0,
            owes_response: false,
            owes_credit: false,
            asked_credit: false,
        }
    }

    /// One that the guest asks for with that packet, and that the host takes.
    pub fn from_guest(request: &Header) -> Self {
        Self {
            phase: Phase::Open,
            guest_buffer: request.buffer,
            guest_forwarded: request.forwarded,
            owes_response: true,
            ..Self::from_host()
        }
    }

    /// A packet of the guest's. Only [`Received::Bytes`] is followed by [`keep`](Self::keep), for what the host does not
    /// take at once.
    pub fn receive(&mut self, header: &Header) -> Received {
        if header.operation == operation::RST {
            return Received::Ended;
        }
        self.guest_buffer = header.buffer;
        self.guest_forwarded = header.forwarded;
        self.asked_credit = false;
        match (self.phase, header.operation) {
            (Phase::Asked, operation::RESPONSE) => {
                self.phase = Phase::Open;
                Received::Opened
            }
            (Phase::Open, operation::RW) => self.receive_bytes(header.len),
            (Phase::Open, operation::SHUTDOWN) => {
                // Hints are permanent (virtio 1.3 section 5.10.6.5).
                self.guest_shut |= header.flags & shutdown::BOTH;
                Received::ShutDown
            }
            (Phase::Open, operation::CREDIT_UPDATE) => Received::Noted,
            (Phase::Open, operation::CREDIT_REQUEST) => {
                self.owes_credit = true;
                Received::Noted
            }
            _ => Received::Broken,
        }
    }

    fn receive_bytes(&mut self, len: u32) -> Received {
        if len > self.free() || self.guest_shut & shutdown::SEND != 0 {
            return Received::Broken;
        }
        self.received = self.received.wrapping_add(len);
        if self.host_shut & shutdown::RECEIVE != 0 {
            // Sent before the guest could know that nobody reads it.
            return Received::Noted;
        }
        Received::Bytes
    }

    /// Bytes that were received, and which the host did not take at once.
    pub fn keep(&mut self, bytes: &[u8]) {
        self.waiting.extend(bytes);
    }

    /// What the host is to take next. Empty only if nothing waits.
    pub fn waiting(&self) -> &[u8] {
        self.waiting.as_slices().0
    }

    /// The host has taken so many of the [waiting](Self::waiting) bytes.
    pub fn took(&mut self, count: usize) {
        self.waiting.drain(..count.min(self.waiting.len()));
        if self.waiting.is_empty() {
            // Most connections are quiet most of the time.
            self.waiting = VecDeque::new();
        }
    }

    /// Whether bytes wait for the host.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The bytes that wait, of a connection that is gone.
    pub fn into_waiting(self) -> VecDeque<u8> {
        self.waiting
    }

    /// Room in our buffer, in bytes.
    fn free(&self) -> u32 {
        BUFFER.saturating_sub(self.waiting_len())
    }

    fn waiting_len(&self) -> u32 {
        u32::try_from(self.waiting.len()).unwrap_or(u32::MAX)
    }

    /// Bytes that have left our buffer.
    fn forwarded(&self) -> u32 {
        self.received.wrapping_sub(self.waiting_len())
    }

    /// Bytes that the guest has room for. Its numbers may be anything: it harms nobody but itself with them.
    pub fn credit(&self) -> u32 {
        self.guest_buffer.saturating_sub(self.sent.wrapping_sub(self.guest_forwarded))
    }

    /// Whether bytes of the host's, if there are any, could go to the guest at some time.
    pub fn takes_bytes(&self) -> bool {
        self.phase == Phase::Open
            && self.guest_shut & shutdown::RECEIVE == 0
            && self.host_shut & shutdown::SEND == 0
    }

    /// Whether it is made.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether the guest knows of it.
    pub fn is_known(&self) -> bool {
        self.phase != Phase::ToAsk
    }

    /// Whether the guest sends no more.
    pub fn guest_sends_no_more(&self) -> bool {
        self.guest_shut & shutdown::SEND != 0
    }

    /// Whether the guest receives no more.
    pub fn guest_receives_no_more(&self) -> bool {
        self.guest_shut & shutdown::RECEIVE != 0
    }

    /// Whether the guest neither sends nor receives any more.
    pub fn guest_is_done(&self) -> bool {
        self.guest_shut == shutdown::BOTH
    }

    /// Whether the host neither sends nor receives any more, and the guest was told.
    pub fn host_is_done(&self) -> bool {
        self.told_shut == shutdown::BOTH
    }

    /// Whether nothing but an answer of the guest's can bring it on: to the host that asks for it, or that neither sends
    /// nor receives any more. That is so from before the guest is told, which it could put off by taking no packets.
    pub fn awaits_answer(&self) -> bool {
        self.phase != Phase::Open || self.host_shut == shutdown::BOTH
    }

    /// The host sends no more.
    pub fn host_ends_sending(&mut self) {
        self.host_shut |= shutdown::SEND;
    }

    /// The host receives no more: what waits for it is nobody's.
    pub fn host_ends_receiving(&mut self) {
        self.host_shut |= shutdown::RECEIVE;
        self.waiting = VecDeque::new();
    }

    /// Whether there is something to say besides bytes of the host's.
    pub fn owes(&self) -> bool {
        let open = self.phase == Phase::Open;
        self.phase == Phase::ToAsk
            || open
                && (self.owes_response
                    || self.owes_credit
                    || self.is_short_of_room()
                    || self.host_shut & !self.told_shut != 0)
    }

    /// What has to be said before anything else.
    pub fn say_first(&mut self) -> Option<Header> {
        if self.phase == Phase::ToAsk {
            self.phase = Phase::Asked;
            return Some(self.header(operation::REQUEST));
        }
        if std::mem::take(&mut self.owes_response) {
            return Some(self.header(operation::RESPONSE));
        }
        None
    }

    /// Bytes of the host's go to the guest: `len` of them, not more than its [credit](Self::credit).
    pub fn say_bytes(&mut self, len: u32) -> Header {
        self.sent = self.sent.wrapping_add(len);
        Header { len, ..self.header(operation::RW) }
    }

    /// What is said when no bytes go.
    pub fn say_last(&mut self) -> Option<Header> {
        if self.phase != Phase::Open {
            return None;
        }
        if self.host_shut & !self.told_shut != 0 {
            self.told_shut = self.host_shut;
            return Some(Header { flags: self.host_shut, ..self.header(operation::SHUTDOWN) });
        }
        if self.owes_credit || self.is_short_of_room() {
            return Some(self.header(operation::CREDIT_UPDATE));
        }
        None
    }

    /// The host has bytes, and the guest no room for them: asks it, once.
    pub fn ask_credit(&mut self) -> Option<Header> {
        if std::mem::replace(&mut self.asked_credit, true) {
            return None;
        }
        Some(self.header(operation::CREDIT_REQUEST))
    }

    /// Whether the guest would have to be [asked](Self::ask_credit) for credit.
    pub fn may_ask_credit(&self) -> bool {
        !self.asked_credit
    }

    /// Whether there is room that the guest does not know of, and it thinks that there is little.
    fn is_short_of_room(&self) -> bool {
        let believed = BUFFER.saturating_sub(self.received.wrapping_sub(self.told));
        self.forwarded() != self.told && believed < BUFFER / 2
    }

    /// A header with what every packet says. Ports and ids are the switch's.
    fn header(&mut self, operation: u16) -> Header {
        self.told = self.forwarded();
        self.owes_credit = false;
        Header { operation, buffer: BUFFER, forwarded: self.told, ..Header::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(operation: u16) -> Header {
        Header { operation, buffer: 1000, ..Header::default() }
    }

    /// Open, with nothing owed.
    fn open() -> Connection {
        let mut connection = Connection::from_guest(&packet(operation::REQUEST));
        assert!(connection.owes());
        assert_eq!(connection.say_first().unwrap().operation, operation::RESPONSE);
        assert!(!connection.owes() && connection.say_first().is_none() && connection.say_last().is_none());
        connection
    }

    fn send(connection: &mut Connection, len: u32) -> Received {
        connection.receive(&Header { len, ..packet(operation::RW) })
    }

    #[test]
    fn a_guest_is_asked_once_and_answers() {
        let mut connection = Connection::from_host();
        assert!(connection.owes() && !connection.is_known() && connection.awaits_answer());
        assert_eq!(connection.say_first().unwrap().operation, operation::REQUEST);
        assert!(connection.is_known() && !connection.is_open() && !connection.owes());
        assert!(connection.awaits_answer());
        assert_eq!((connection.say_first(), connection.say_last()), (None, None));
        assert_eq!(connection.receive(&packet(operation::RESPONSE)), Received::Opened);
        assert!(connection.is_open() && connection.takes_bytes() && !connection.awaits_answer());
        assert_eq!(connection.credit(), 1000);
    }

    #[test]
    fn what_does_not_belong_there_breaks_it() {
        let wrong = [0, operation::REQUEST, operation::RESPONSE, 8, u16::MAX];
        for operation in wrong {
            assert_eq!(open().receive(&packet(operation)), Received::Broken, "{operation}");
        }
        for operation in [operation::RW, operation::SHUTDOWN, operation::CREDIT_REQUEST, 0, 1] {
            let mut asked = Connection::from_host();
            // Before the guest was asked, it has nothing to answer to either.
            assert_eq!(asked.receive(&packet(operation::RESPONSE)), Received::Broken);
            asked.say_first();
            assert_eq!(asked.receive(&packet(operation)), Received::Broken, "{operation}");
        }
        assert_eq!(open().receive(&packet(operation::RST)), Received::Ended);
    }

    #[test]
    fn the_guest_may_send_what_there_is_room_for() {
        let mut connection = open();
        assert_eq!(send(&mut connection, BUFFER), Received::Bytes);
        connection.keep(&vec![1; BUFFER as usize]);
        assert_eq!(send(&mut connection, 0), Received::Bytes);
        assert_eq!(send(&mut connection, 1), Received::Broken);
        assert_eq!(send(&mut connection, u32::MAX), Received::Broken);
        connection.took(10);
        assert_eq!(send(&mut connection, 11), Received::Broken);
        assert_eq!(send(&mut connection, 10), Received::Bytes);
    }

    #[test]
    fn the_guest_is_told_of_room_before_it_has_none() {
        let mut connection = open();
        send(&mut connection, BUFFER / 2);
        connection.keep(&[0; BUFFER as usize / 2]);
        connection.took(BUFFER as usize / 2);
        // It believes that half is free.
        assert!(!connection.owes());
        send(&mut connection, 1);
        assert!(connection.owes());
        let update = connection.say_last().unwrap();
        assert_eq!((update.operation, update.buffer), (operation::CREDIT_UPDATE, BUFFER));
        assert_eq!(update.forwarded, BUFFER / 2 + 1);
        assert!(!connection.owes() && connection.say_last().is_none());
        // What nobody takes is no room.
        send(&mut connection, BUFFER);
        connection.keep(&[0; BUFFER as usize]);
        assert!(!connection.owes());
        connection.took(1);
        assert!(connection.owes());
        assert_eq!(connection.say_bytes(1).forwarded, BUFFER / 2 + 2, "every packet tells");
        assert!(!connection.owes());
        connection.receive(&packet(operation::CREDIT_REQUEST));
        assert_eq!(connection.say_last().unwrap().operation, operation::CREDIT_UPDATE);
    }

    #[test]
    fn credit_counts_over_the_end_of_its_numbers() {
        let mut connection = open();
        connection.sent = u32::MAX - 99;
        let mut update = Header { forwarded: u32::MAX - 99, ..packet(operation::CREDIT_UPDATE) };
        connection.receive(&update);
        assert_eq!(connection.credit(), 1000);
        connection.say_bytes(300);
        assert_eq!(connection.sent, 200);
        assert_eq!(connection.credit(), 700);
        update.forwarded = 100;
        connection.receive(&update);
        assert_eq!(connection.credit(), 900);
        // A buffer that shrinks below what is on its way, and a count that runs ahead.
        connection.receive(&Header { buffer: 50, ..update });
        assert_eq!(connection.credit(), 0);
        connection.receive(&Header { forwarded: 201, ..update });
        assert_eq!(connection.credit(), 0);
        // And the guest's bytes.
        connection.received = u32::MAX - 9;
        connection.told = u32::MAX - 9;
        for _ in 0..20 {
            assert_eq!(send(&mut connection, BUFFER), Received::Bytes);
            connection.keep(&[0; BUFFER as usize]);
            connection.took(BUFFER as usize);
            let told = connection.say_last().unwrap();
            assert_eq!(told.forwarded, connection.received);
        }
    }

    #[test]
    fn credit_is_asked_for_once() {
        let mut connection = open();
        assert!(connection.may_ask_credit());
        assert_eq!(connection.ask_credit().unwrap().operation, operation::CREDIT_REQUEST);
        assert!(!connection.may_ask_credit() && connection.ask_credit().is_none());
        connection.receive(&packet(operation::CREDIT_UPDATE));
        assert!(connection.ask_credit().is_some());
    }

    #[test]
    fn each_direction_is_shut_on_its_own() {
        let mut connection = open();
        let shut = |flags| Header { flags, ..packet(operation::SHUTDOWN) };
        assert_eq!(connection.receive(&shut(shutdown::SEND | 0xf0)), Received::ShutDown);
        assert!(connection.guest_sends_no_more() && !connection.guest_receives_no_more());
        assert!(connection.takes_bytes() && !connection.guest_is_done());
        // A hint is not taken back.
        connection.receive(&shut(0));
        assert_eq!(send(&mut connection, 1), Received::Broken);
        connection.receive(&shut(shutdown::RECEIVE));
        assert!(connection.guest_is_done() && !connection.takes_bytes());

        let mut connection = open();
        connection.host_ends_sending();
        assert!(!connection.takes_bytes() && connection.owes());
        assert_eq!(connection.say_last().unwrap().flags, shutdown::SEND);
        assert!(!connection.owes() && !connection.host_is_done() && !connection.awaits_answer());
        assert_eq!(send(&mut connection, 10), Received::Bytes);
        connection.keep(&[0; 10]);
        connection.host_ends_receiving();
        assert!(!connection.has_waiting() && connection.awaits_answer());
        // The guest cannot know yet: its bytes are dropped, and count as taken.
        assert_eq!(send(&mut connection, BUFFER), Received::Noted);
        let told = connection.say_last().unwrap();
        assert_eq!((told.flags, told.forwarded), (shutdown::BOTH, BUFFER + 10));
        assert!(connection.host_is_done());
    }
}
