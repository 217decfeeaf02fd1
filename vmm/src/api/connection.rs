//! One client: what it sends becomes requests, one after the other; their answers go back.

use std::{
    collections::VecDeque,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use rustix::{
    event::PollFlags,
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendFlags,
        Shutdown, recvmsg, sendmsg, shutdown,
    },
};

use super::http::{Bytes, Event, MAX_DESCRIPTORS, Parser, Request, Response};

/// How long a client may be silent in the middle of something.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes that are read at once.
const CHUNK: usize = 16 << 10;

/// A client.
pub(super) struct Connection {
    pub(super) id: u64,
    socket: UnixStream,
    parser: Parser,
    /// What is to be written: its answer, and what must be said after that. None of it is empty.
    output: VecDeque<Bytes>,
    /// How much of the first of it is written.
    written: usize,
    phase: Phase,
    /// When the current phase began, or the client last took a part of its answer.
    since: Instant,
    /// Whether a request of it was ever answered.
    known: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It may send.
    Reading,
    /// Its request is being answered.
    Answering,
    /// It is not understood: what it still sends is thrown away until it has read the answer and gone.
    Leaving,
    /// It is gone.
    Gone,
}

impl Connection {
    pub(super) fn new(id: u64, socket: UnixStream) -> Self {
        Self {
            id,
            socket,
            parser: Parser::default(),
            output: VecDeque::new(),
            written: 0,
            phase: Phase::Reading,
            since: Instant::now(),
            known: false,
        }
    }

    /// What to poll for. Hanging up is seen in any case.
    pub(super) fn interest(&self) -> PollFlags {
        match self.phase {
            _ if self.has_output() => PollFlags::OUT,
            Phase::Reading | Phase::Leaving => PollFlags::IN,
            Phase::Answering | Phase::Gone => PollFlags::empty(),
        }
    }

    /// Until when something must happen; `None` if this may take as long as it likes.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let waits_for_client = match self.phase {
            _ if self.has_output() => true,
            Phase::Reading => !self.is_idle(),
            Phase::Leaving => true,
            Phase::Answering | Phase::Gone => false,
        };
        waits_for_client.then(|| self.since + PATIENCE)
    }

    /// Since when it has had nothing to say, if it is one that was answered before. Clients keep a connection
    /// open for the life of a VM; it is given up when others need the room.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        (self.phase == Phase::Reading && self.is_idle() && !self.has_output()).then_some(self.since)
    }

    pub(super) fn is_gone(&self) -> bool {
        self.phase == Phase::Gone
    }

    /// Whether its request is being answered.
    pub(super) fn is_waiting(&self) -> bool {
        self.phase == Phase::Answering
    }

    /// Whether an answer is on its way to it.
    pub(super) fn is_owed(&self) -> bool {
        self.phase == Phase::Answering || (self.phase != Phase::Gone && self.has_output())
    }

    pub(super) fn close(&mut self) {
        self.phase = Phase::Gone;
    }

    /// Something happened on the socket. Returns a request if one is complete.
    pub(super) fn ready(&mut self, flags: PollFlags) -> Option<Request> {
        if flags.contains(PollFlags::OUT) {
            self.write();
            if self.phase == Phase::Reading && !self.has_output() {
                // What it has asked behind that has waited until it took the answer.
                return self.next();
            }
        }
        if flags.contains(PollFlags::IN) && !self.has_output() {
            match self.phase {
                Phase::Reading => return self.read(),
                Phase::Leaving => self.discard(),
                Phase::Answering | Phase::Gone => {}
            }
        } else if flags.intersects(PollFlags::HUP | PollFlags::ERR) {
            self.close();
        }
        None
    }

    /// The answer to its request. Returns the next request if that has arrived already and the client takes its
    /// answers: one that only asks does not fill this process with what it is owed.
    pub(super) fn answer(&mut self, response: Response) -> Option<Request> {
        if self.phase != Phase::Answering {
            return None;
        }
        self.known = true;
        self.phase = Phase::Reading;
        self.send(response.into_pieces());
        if self.has_output() { None } else { self.next() }
    }

    fn is_idle(&self) -> bool {
        self.known && self.parser.is_idle()
    }

    fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    fn read(&mut self) -> Option<Request> {
        let mut bytes = [0; CHUNK];
        let mut descriptors = Vec::new();
        let was_idle = self.parser.is_idle();
        match receive(&self.socket, &mut bytes, &mut descriptors) {
            Ok(0) => self.close(),
            Ok(length) => {
                if was_idle {
                    self.since = Instant::now();
                }
                let received = bytes.get(..length).unwrap_or_default();
                match self.parser.feed(received, descriptors) {
                    Ok(()) => return self.next(),
                    Err(error) => self.refuse(&error.to_string()),
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::NOBUFS) => self.refuse("The file descriptors cannot be received."),
            Err(error) => {
                log::debug!("API client: {error}");
                self.close();
            }
        }
        None
    }

    /// The next request, if it has arrived.
    fn next(&mut self) -> Option<Request> {
        loop {
            match self.parser.take() {
                Ok(Some(Event::Continue)) => self.send([Response::go_on()]),
                Ok(Some(Event::Request(request))) => {
                    self.phase = Phase::Answering;
                    return Some(request);
                }
                Ok(None) => return None,
                Err(error) => {
                    self.refuse(&error.to_string());
                    return None;
                }
            }
        }
    }

    /// Where its next request begins is not known any more: it is told, and that was all.
    fn refuse(&mut self, why: &str) {
        log::debug!("API client: {why}");
        self.phase = Phase::Leaving;
        self.send(Response::unreadable(why).into_pieces());
    }

    fn send(&mut self, pieces: impl IntoIterator<Item = Bytes>) {
        self.since = Instant::now();
        let was_empty = !self.has_output();
        self.output.extend(pieces.into_iter().filter(|piece| !piece.is_empty()));
        if was_empty {
            self.write();
        }
    }

    fn write(&mut self) {
        let rest = self.output.front().and_then(|piece| piece.get(self.written..)).unwrap_or_default();
        let slices: Vec<IoSlice<'_>> = [rest]
            .into_iter()
            .chain(self.output.iter().skip(1).map(|piece| &**piece))
            .map(IoSlice::new)
            .collect();
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match sendmsg(&self.socket, &slices, &mut SendAncillaryBuffer::default(), flags) {
            Ok(length) => {
                // However long it is: whoever reads it is not silent.
                self.since = Instant::now();
                self.has_written(length);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.close(),
        }
        if self.has_output() {
            return;
        }
        if self.phase == Phase::Leaving {
            // Fails only if it has gone.
            let _ = shutdown(&self.socket, Shutdown::Write);
        }
    }

    fn has_written(&mut self, length: usize) {
        self.written += length;
        while let Some(piece) = self.output.front()
            && self.written >= piece.len()
        {
            self.written -= piece.len();
            self.output.pop_front();
        }
    }

    fn discard(&mut self) {
        let mut descriptors = Vec::new();
        match receive(&self.socket, &mut [0; CHUNK], &mut descriptors) {
            Ok(1..) | Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => {}
            Ok(0) | Err(_) => self.close(),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Receives bytes and the descriptors that come with them. [`Errno::NOBUFS`] if some of those were lost.
fn receive(socket: &UnixStream, bytes: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut beside, flags)?;
    for item in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = item {
            descriptors.extend(received);
        }
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Errno::NOBUFS);
    }
    Ok(message.bytes)
}
