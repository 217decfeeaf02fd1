//! Who is connected to whom. Packets of the guest's go in, packets for the guest come out; in between are the
//! connections, and the host's end of each.
//!
//! A place is taken by each program of the host that is connected to us: from when it says whom it wants
//! (`Place::Calling`), over the connection (`Place::Linked`), until what the guest has said last was taken
//! (`Place::Leaving`). Places that have something to say to the guest take turns, one packet a turn. Those that wait for
//! an answer of the guest's have a limit; the switch is told what time it is, and has no clock of its own.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    FIRST_HOST_PORT, Host, LAST_HOST_PORT, Stream,
    connection::{Connection, Received},
    packet::{HOST_CID, Header, STREAM, operation},
};

/// Most places.
pub const MAX_PLACES: usize = 1024;

/// Most programs that have not said yet whom they want. Another one takes the place of the first of them.
const MAX_CALLING: usize = 64;

/// Resets that may wait for the guest, before no more packets are taken from it.
const MAX_RESETS: usize = 1024;

/// Most bytes in one packet for the guest.
pub const MAX_PAYLOAD: usize = 64 << 10;

/// Longest line of a program that says whom it wants: `CONNECT 4294967295`, and room for a careless one.
const MAX_LINE: usize = 32;

/// What the rest of the device knows of a switch.
#[derive(Debug)]
pub struct Tally {
    /// The next port for a program of the host's.
    pub next_port: AtomicU32,
    /// Bytes that the guest was sent.
    pub to_guest: AtomicU64,
    /// Bytes that the guest has sent.
    pub from_guest: AtomicU64,
    /// Connections that were made.
    pub made: AtomicU64,
    /// Resets that the guest was sent.
    pub resets: AtomicU64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            next_port: AtomicU32::new(FIRST_HOST_PORT),
            to_guest: AtomicU64::new(0),
            from_guest: AtomicU64::new(0),
            made: AtomicU64::new(0),
            resets: AtomicU64::new(0),
        }
    }
}

/// The two ports of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ports {
    host: u32,
    guest: u32,
}

/// A program of the host's, and what it is here for.
#[derive(Debug)]
enum Place<S> {
    /// It says whom it wants.
    Calling { stream: S, line: Vec<u8> },
    /// It is connected to the guest, or will be when that agrees.
    Linked(Link<S>),
    /// The guest is done with it, and it has not taken all that the guest sent.
    Leaving { stream: S, waiting: VecDeque<u8> },
}

#[derive(Debug)]
struct Link<S> {
    stream: S,
    ports: Ports,
    connection: Connection,
    /// Whether the stream may have bytes. Certain is only that it has none when this is false.
    readable: bool,
    /// Whether it waits for its turn.
    queued: bool,
    writing_ended: bool,
    /// When the guest's time for an answer is over, while one is awaited.
    answer_by: Option<Duration>,
}

/// What a packet of the guest's is for.
enum Found {
    /// For somebody else, or for no stream.
    Wrong,
    /// For a connection that is not there.
    Nothing(Ports),
    /// For the connection of a place.
    Place(usize),
}

/// What came of trying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    Goes,
}

/// All connections of a guest.
#[derive(Debug)]
pub struct Switch<H: Host> {
    cid: u64,
    host: H,
    places: Vec<Option<Place<H::Stream>>>,
    free: Vec<usize>,
    linked: BTreeMap<Ports, usize>,
    /// Those of `Place::Calling`, the first to come first.
    calling: VecDeque<usize>,
    /// Those that have something to say to the guest.
    turns: VecDeque<usize>,
    resets: VecDeque<Header>,
    /// How long the guest has for an answer.
    limit: Duration,
    /// What time it is.
    now: Duration,
    /// Those that wait for an answer of the guest's, and until when.
    awaiting: BTreeSet<(Duration, usize)>,
    /// Places that were taken since somebody asked.
    taken: Vec<usize>,
    tally: Arc<Tally>,
}

impl<H: Host> Switch<H> {
    /// Nobody is connected to the guest of that context id, which has `limit` for each answer. It is time 0.
    pub fn new(cid: u32, host: H, tally: Arc<Tally>, limit: Duration) -> Self {
        Self {
            cid: u64::from(cid),
            host,
            places: Vec::new(),
            free: Vec::new(),
            linked: BTreeMap::new(),
            calling: VecDeque::new(),
            turns: VecDeque::new(),
            resets: VecDeque::new(),
            limit,
            now: Duration::ZERO,
            awaiting: BTreeSet::new(),
            taken: Vec::new(),
            tally,
        }
    }

    /// The host.
    pub fn host(&self) -> &H {
        &self.host
    }

    /// Places that were taken since this was asked last, and have not been left yet. Whoever waits for streams has to
    /// wait for theirs from now on; one that has gone is not waited for any more, as its descriptor is closed.
    pub fn take_new(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.taken)
    }

    /// Whoever waits for streams has forgotten all of them.
    pub fn renew(&mut self) {
        self.taken = self.all();
    }

    /// All places that are taken.
    pub fn all(&self) -> Vec<usize> {
        (0..self.places.len()).filter(|at| self.stream(*at).is_some()).collect()
    }

    /// The stream of a place.
    pub fn stream(&self, at: usize) -> Option<&H::Stream> {
        self.places.get(at)?.as_ref().map(|place| match place {
            Place::Calling { stream, .. } | Place::Leaving { stream, .. } => stream,
            Place::Linked(link) => &link.stream,
        })
    }

    /// Whether packets of the guest's are taken. If not, it has to take some first.
    pub fn takes_packets(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// Whether there may be something for the guest.
    pub fn has_packets(&self) -> bool {
        !self.resets.is_empty() || !self.turns.is_empty()
    }

    /// It is that time: what begins to wait for an answer from now on does so then.
    pub fn set_time(&mut self, now: Duration) {
        self.now = now;
    }

    /// Gives up whatever the guest has not answered in time. Its answers are to be taken first.
    pub fn give_up(&mut self) {
        while let Some((by, at)) = self.awaiting.pop_first() {
            if by > self.now {
                self.awaiting.insert((by, at));
                break;
            }
            self.abort(at);
        }
    }

    /// When there will be something to [give up](Self::give_up).
    pub fn next_limit(&self) -> Option<Duration> {
        self.awaiting.first().map(|(by, _)| *by)
    }

    /// Takes the next program that wants to talk to the guest.
    ///
    /// # Errors
    /// `WouldBlock` if there is none, or whatever else keeps it away.
    pub fn accept(&mut self) -> io::Result<()> {
        let stream = self.host.accept()?;
        if self.calling.len() >= MAX_CALLING
            && let Some(at) = self.calling.pop_front()
        {
            self.leave(at);
        }
        // Without a place it is gone at once, and knows it.
        if let Some(at) = self.take_place(Place::Calling { stream, line: Vec::new() }) {
            self.calling.push_back(at);
            self.ready(at);
        }
        Ok(())
    }

    /// A packet of the guest's, with the bytes that it says it has. Only [`operation::RW`] needs its bytes.
    pub fn receive(&mut self, header: &Header, bytes: &[u8]) {
        match self.find(header) {
            Found::Wrong => self.refuse(header),
            Found::Nothing(ports) if header.operation == operation::REQUEST => self.open(header, ports),
            Found::Nothing(_) => self.refuse(header),
            Found::Place(at) => self.receive_on(at, header, bytes),
        }
    }

    /// A packet of the guest's whose bytes are not those that it says it has, or are too many. Its connection, if there
    /// is one, is reset.
    pub fn break_off(&mut self, header: &Header) {
        if let Found::Place(at) = self.find(header) {
            self.leave(at);
        }
        self.refuse(header);
    }

    fn find(&self, header: &Header) -> Found {
        let addressed = header.socket_type == STREAM
            && header.destination_cid == HOST_CID
            && header.source_cid == self.cid;
        let ports = Ports { host: header.destination_port, guest: header.source_port };
        match self.linked.get(&ports) {
            _ if !addressed => Found::Wrong,
            Some(at) => Found::Place(*at),
            None => Found::Nothing(ports),
        }
    }

    /// Answers a packet that makes no sense, or whose connection is not there (virtio 1.3 sections 5.10.6.4 and
    /// 5.10.6.5).
    fn refuse(&mut self, header: &Header) {
        // A reset is never answered, or there would be no end to it.
        if header.operation != operation::RST {
            self.resets.push_back(header.reset());
        }
    }

    /// Something has happened to the stream of a place, or may have: looks at it.
    pub fn ready(&mut self, at: usize) {
        let fate = match self.places.get_mut(at) {
            Some(Some(Place::Calling { stream, line })) => match read_line(stream, line) {
                Line::Partial => Fate::Stays,
                Line::Bad => Fate::Goes,
                Line::Port(port) => self.call(at, port),
            },
            Some(Some(Place::Linked(link))) => {
                link.readable = true;
                link.look();
                let abandoned = !link.connection.is_open() && link.stream.is_hung_up();
                if abandoned { Fate::Goes } else { Fate::Stays }
            }
            Some(Some(Place::Leaving { stream, waiting })) => drain(stream, waiting),
            _ => Fate::Stays,
        };
        match fate {
            Fate::Stays => self.settle(at),
            Fate::Goes => self.abort(at),
        }
    }

    /// The next packet for the guest: its header, and its bytes at the beginning of `data`, of which there are not more
    /// than that has room for.
    pub fn next_packet(&mut self, data: &mut [u8]) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            self.tally.resets.fetch_add(1, Ordering::Relaxed);
            return Some(reset);
        }
        // Whoever has bytes and no room for them in this buffer keeps its turn.
        for _ in 0..self.turns.len() {
            let at = self.turns.pop_front()?;
            let Some(Some(Place::Linked(link))) = self.places.get_mut(at) else { continue };
            link.queued = false;
            let said = link.speak(data);
            let ports = link.ports;
            self.settle(at);
            if let Some(said) = said {
                self.tally.to_guest.fetch_add(u64::from(said.len), Ordering::Relaxed);
                return Some(Header {
                    source_cid: HOST_CID,
                    destination_cid: self.cid,
                    source_port: ports.host,
                    destination_port: ports.guest,
                    socket_type: STREAM,
                    ..said
                });
            }
        }
        None
    }

    fn open(&mut self, request: &Header, ports: Ports) {
        if !self.has_place() {
            return self.refuse(request);
        }
        let stream = match self.host.connect(ports.host) {
            Ok(stream) => stream,
            Err(error) => {
                log::debug!("vsock: nobody takes port {}: {error}", ports.host);
                return self.refuse(request);
            }
        };
        self.tally.made.fetch_add(1, Ordering::Relaxed);
        let link = Link::new(stream, ports, Connection::from_guest(request));
        if let Some(at) = self.take_place(Place::Linked(link)) {
            self.linked.insert(ports, at);
            self.settle(at);
        }
    }

    /// A program says that it wants that port of the guest's.
    fn call(&mut self, at: usize, port: u32) -> Fate {
        self.calling.retain(|other| *other != at);
        let Some(host) = self.next_port(port) else { return Fate::Goes };
        let ports = Ports { host, guest: port };
        let Some(place) = self.places.get_mut(at) else { return Fate::Goes };
        match place.take() {
            Some(Place::Calling { stream, line: _ }) => {
                *place = Some(Place::Linked(Link::new(stream, ports, Connection::from_host())));
                self.linked.insert(ports, at);
                Fate::Stays
            }
            other => {
                *place = other;
                Fate::Goes
            }
        }
    }

    /// A port for a program of the host's that no connection to that port of the guest's has.
    fn next_port(&self, guest: u32) -> Option<u32> {
        // One more than there can be connections: one of them is free.
        (0..=MAX_PLACES)
            .map(|_| {
                let after = |port: u32| {
                    if (FIRST_HOST_PORT..LAST_HOST_PORT).contains(&port) { port + 1 } else { FIRST_HOST_PORT }
                };
                let taken = self
                    .tally
                    .next_port
                    .fetch_update(Ordering::AcqRel, Ordering::Acquire, |port| Some(after(port)));
                taken.unwrap_or(FIRST_HOST_PORT)
            })
            .find(|host| !self.linked.contains_key(&Ports { host: *host, guest }))
    }

    fn receive_on(&mut self, at: usize, header: &Header, bytes: &[u8]) {
        let Some(Some(Place::Linked(link))) = self.places.get_mut(at) else { return };
        let fate = match link.connection.receive(header) {
            Received::Noted => Fate::Stays,
            Received::Opened => {
                self.tally.made.fetch_add(1, Ordering::Relaxed);
                link.greet()
            }
            Received::Bytes => {
                self.tally.from_guest.fetch_add(u64::from(header.len), Ordering::Relaxed);
                link.pass(bytes);
                Fate::Stays
            }
            Received::ShutDown if link.connection.guest_is_done() => {
                // The clean end (virtio 1.3 section 5.10.6.5): the guest needs us no more, the program may.
                self.resets.push_back(header.reset());
                return self.finish(at);
            }
            Received::ShutDown => {
                link.look();
                Fate::Stays
            }
            Received::Ended => {
                self.leave(at);
                return;
            }
            Received::Broken => Fate::Goes,
        };
        match fate {
            Fate::Stays => self.settle(at),
            Fate::Goes => {
                self.resets.push_back(header.reset());
                self.leave(at);
            }
        }
    }

    /// The guest is done: the place is left when the program has taken all there is.
    fn finish(&mut self, at: usize) {
        if let Some(Place::Linked(link)) = self.places.get_mut(at).and_then(Option::take) {
            self.unlink(at, &link);
            let Link { mut stream, connection, .. } = link;
            stream.end_reading();
            if let Some(place) = self.places.get_mut(at) {
                *place = Some(Place::Leaving { stream, waiting: connection.into_waiting() });
            }
        }
        self.ready(at);
    }

    /// Leaves a place for the host's reasons; a guest that knows of the connection is told.
    fn abort(&mut self, at: usize) {
        if let Some(Some(Place::Linked(link))) = self.places.get(at)
            && link.connection.is_known()
        {
            let reset = Header {
                source_cid: HOST_CID,
                destination_cid: self.cid,
                source_port: link.ports.host,
                destination_port: link.ports.guest,
                socket_type: STREAM,
                operation: operation::RST,
                ..Header::default()
            };
            self.resets.push_back(reset);
        }
        self.leave(at);
    }

    /// Closes the stream of a place. The guest is not told.
    fn leave(&mut self, at: usize) {
        let Some(left) = self.places.get_mut(at).and_then(Option::take) else { return };
        match left {
            Place::Linked(link) => self.unlink(at, &link),
            Place::Calling { .. } => self.calling.retain(|other| *other != at),
            Place::Leaving { .. } => {}
        }
        self.taken.retain(|other| *other != at);
        self.free.push(at);
    }

    /// The connection of a place is no more.
    fn unlink(&mut self, at: usize, link: &Link<H::Stream>) {
        self.linked.remove(&link.ports);
        self.turns.retain(|other| *other != at);
        if let Some(by) = link.answer_by {
            self.awaiting.remove(&(by, at));
        }
    }

    /// Whether there is a place, or one can be made: of two that are done with each other but for the guest's last
    /// word, which it has had time for (virtio 1.3 section 5.10.6.5).
    fn has_place(&mut self) -> bool {
        if self.free.is_empty() && self.places.len() >= MAX_PLACES {
            let done = self.places.iter().position(
                |place| matches!(place, Some(Place::Linked(link)) if link.connection.host_is_done()),
            );
            if let Some(at) = done {
                self.abort(at);
            }
        }
        !self.free.is_empty() || self.places.len() < MAX_PLACES
    }

    fn take_place(&mut self, place: Place<H::Stream>) -> Option<usize> {
        if !self.has_place() {
            return None;
        }
        let at = match self.free.pop() {
            Some(at) => at,
            None => {
                self.places.push(None);
                self.places.len() - 1
            }
        };
        *self.places.get_mut(at)? = Some(place);
        self.taken.push(at);
        Some(at)
    }

    /// After whatever has happened to a place: gives it a turn if it has something to say, and a limit as long as it
    /// waits for an answer.
    fn settle(&mut self, at: usize) {
        let Some(Some(Place::Linked(link))) = self.places.get_mut(at) else { return };
        if !link.queued && link.has_something_to_say() {
            link.queued = true;
            self.turns.push_back(at);
        }
        if !link.connection.awaits_answer() {
            if let Some(by) = link.answer_by.take() {
                self.awaiting.remove(&(by, at));
            }
        } else if link.answer_by.is_none() {
            let by = self.now.saturating_add(self.limit);
            link.answer_by = Some(by);
            self.awaiting.insert((by, at));
        }
    }
}

impl<S: Stream> Link<S> {
    fn new(stream: S, ports: Ports, connection: Connection) -> Self {
        Self {
            stream,
            ports,
            connection,
            readable: true,
            queued: false,
            writing_ended: false,
            answer_by: None,
        }
    }

    fn has_something_to_say(&self) -> bool {
        let bytes = self.readable && self.connection.takes_bytes();
        self.connection.owes() || bytes && (self.connection.credit() > 0 || self.connection.may_ask_credit())
    }

    /// The guest has taken the connection: the program is told its port.
    fn greet(&mut self) -> Fate {
        let line = format!("OK {}\n", self.ports.host);
        // Nothing was written to it before: it has room, or it has gone.
        match self.stream.write(line.as_bytes()) {
            Ok(count) if count == line.len() => Fate::Stays,
            _ => Fate::Goes,
        }
    }

    /// Bytes of the guest's.
    fn pass(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        if !self.connection.has_waiting() {
            match write(&mut self.stream, rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(_) => {
                    // What it has said last, if anything, is still there to be read.
                    self.readable = true;
                    return self.connection.host_ends_receiving();
                }
            }
        }
        self.connection.keep(rest);
    }

    /// Does what the state of the stream and of the connection lets it do.
    fn look(&mut self) {
        while self.connection.has_waiting() {
            match write(&mut self.stream, self.connection.waiting()) {
                Ok(0) => return,
                Ok(count) => self.connection.took(count),
                Err(_) => self.connection.host_ends_receiving(),
            }
        }
        if self.connection.guest_sends_no_more() && !self.writing_ended {
            self.writing_ended = true;
            self.stream.end_writing();
        }
        if self.connection.guest_receives_no_more() {
            self.stream.end_reading();
        }
        if self.connection.is_open() && !self.connection.takes_bytes() && self.stream.is_hung_up() {
            self.connection.host_ends_sending();
            self.connection.host_ends_receiving();
        }
    }

    /// One packet, its bytes in `data`.
    fn speak(&mut self, data: &mut [u8]) -> Option<Header> {
        if let Some(first) = self.connection.say_first() {
            return Some(first);
        }
        if self.readable && self.connection.takes_bytes() {
            let credit = usize::try_from(self.connection.credit()).unwrap_or(usize::MAX);
            let room = credit.min(MAX_PAYLOAD).min(data.len());
            match data.get_mut(..room) {
                Some(data) if room > 0 => {
                    if let Some(count) = self.read(data) {
                        return Some(self.connection.say_bytes(count));
                    }
                }
                _ if credit == 0 => {
                    if let Some(asks) = self.connection.ask_credit() {
                        return Some(asks);
                    }
                }
                _ => {}
            }
        }
        self.connection.say_last()
    }

    /// Bytes of the program's, if it has any.
    fn read(&mut self, data: &mut [u8]) -> Option<u32> {
        loop {
            match self.stream.read(data) {
                Ok(0) => {
                    self.connection.host_ends_sending();
                    if self.stream.is_hung_up() {
                        self.connection.host_ends_receiving();
                    }
                }
                Ok(count) => return u32::try_from(count.min(data.len())).ok(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    self.connection.host_ends_sending();
                    self.connection.host_ends_receiving();
                }
            }
            self.readable = false;
            return None;
        }
    }
}

/// Writes what there is room for.
fn write(stream: &mut impl Stream, data: &[u8]) -> io::Result<usize> {
    if data.is_empty() {
        return Ok(0);
    }
    loop {
        match stream.write(data) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            done => return done.map(|count| count.min(data.len())),
        }
    }
}

/// Writes the last bytes for a program; it goes when there are none left, or it takes none.
fn drain(stream: &mut impl Stream, waiting: &mut VecDeque<u8>) -> Fate {
    while !waiting.is_empty() {
        match write(stream, waiting.as_slices().0) {
            Ok(0) => return Fate::Stays,
            Ok(count) => drop(waiting.drain(..count)),
            Err(_) => return Fate::Goes,
        }
    }
    Fate::Goes
}

/// What a program has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Partial,
    Port(u32),
    Bad,
}

/// Reads on until the end of the line, and not further: what follows it is the guest's.
fn read_line(stream: &mut impl Stream, line: &mut Vec<u8>) -> Line {
    let mut byte = [0];
    while line.len() < MAX_LINE {
        match stream.read(&mut byte) {
            Ok(0) => return Line::Bad,
            Ok(_) if byte == *b"\n" => return wanted_port(line).map_or(Line::Bad, Line::Port),
            Ok(_) => line.extend(byte),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Line::Partial,
            Err(_) => return Line::Bad,
        }
    }
    Line::Bad
}

/// The port that `CONNECT PORT` names.
fn wanted_port(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (verb, port, rest) = (words.next()?, words.next()?, words.next());
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    if !verb.eq_ignore_ascii_case("CONNECT") || !digits || rest.is_some() {
        return None;
    }
    port.parse().ok()
}
#[cfg(test)]
mod tests;
