//! The API thread: clients come and go, their requests are handed on, the answers go back.
//!
//! It never waits for what a request asks for: whoever does that work answers through a [`Responder`],
//! from whatever thread, at whatever time. So a client that wants to know something is served while
//! another waits for a boot.

use std::{
    collections::VecDeque,
    fmt, io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::{
    answer,
    connection::{Connection, PATIENCE},
    http::{Request, Response},
    socket::ApiSocket,
};

/// Most clients at a time, without those that wait for something to be done: these take no time of the server, and
/// others ask meanwhile how it goes.
const MAX_CONNECTIONS: usize = 10;

/// Most clients in any case.
const MAX_WITH_WAITING: usize = 2 * MAX_CONNECTIONS;

/// At the end, how long clients may take to read their answers.
const FAREWELL: Duration = Duration::from_secs(1);

/// Whoever knows what requests mean.
pub(super) trait Service: Send {
    /// Answers a request, now or later. Does not wait.
    fn serve(&self, request: Request, responder: Responder);
}

/// The way back to a client whose request is being answered.
pub struct Responder {
    client: u64,
    // Taken by the answer.
    shared: Option<Arc<Shared>>,
}

impl Responder {
    /// Answers.
    pub fn send(mut self, response: Response) {
        self.put(response);
    }

    fn put(&mut self, response: Response) {
        if let Some(shared) = self.shared.take() {
            shared.put(self.client, response);
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        // Does nothing after an answer.
        self.put(answer::unanswered());
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Responder(client {})", self.client)
    }
}

/// What others leave for the API thread.
struct Shared {
    answers: Mutex<Vec<(u64, Response)>>,
    stop: AtomicBool,
    event: OwnedFd,
}

impl Shared {
    fn put(&self, client: u64, response: Response) {
        self.answers.lock().push((client, response));
        self.wake();
    }

    fn wake(&self) {
        // Fails only when the counter is full, which means it is signalled.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    fn take(&self) -> Vec<(u64, Response)> {
        // Fails only if it was not signalled.
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        std::mem::take(&mut *self.answers.lock())
    }
}

/// The API thread, from outside. Ends it when dropped; the socket's file then stays.
pub(super) struct Server {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<ApiSocket>>,
}

impl Server {
    pub(super) fn start(socket: ApiSocket, service: Box<dyn Service>) -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let shared = Arc::new(Shared { answers: Mutex::default(), stop: AtomicBool::new(false), event });
        let clients = Clients {
            socket,
            service,
            shared: Arc::clone(&shared),
            connections: Vec::new(),
            long: VecDeque::new(),
            next: 0,
            full: None,
        };
        let thread = std::thread::Builder::new().name("http-server".into()).spawn(move || clients.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Sends the answers that are there, and ends. Gives the socket back.
    pub(super) fn stop(mut self) -> Option<ApiSocket> {
        self.join()
    }

    fn join(&mut self) -> Option<ApiSocket> {
        let thread = self.thread.take()?;
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake();
        // A panic aborts the process: there is nothing to learn from the result.
        thread.join().ok()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.join());
    }
}

struct Clients {
    socket: ApiSocket,
    service: Box<dyn Service>,
    shared: Arc<Shared>,
    // In the order in which they came.
    connections: Vec<Connection>,
    /// Requests with a long body that are whole and wait for their turn, in the order in which they came.
    long: VecDeque<(u64, Request)>,
    next: u64,
    /// Since when nobody can be let in, for lack of descriptors.
    full: Option<Instant>,
}

/// Most clients let in, or sent away, before those that are in are served again.
const ACCEPTED_AT_ONCE: usize = 32;

/// Bytes of a body from which on reading it takes long enough to be noticed.
pub(super) const LONG: usize = 64 << 10;

/// After the host had no descriptor left, when to look again.
const RETRY: Duration = Duration::from_millis(100);

impl Clients {
    fn run(mut self) -> ApiSocket {
        while !self.shared.stop.load(Ordering::Acquire) {
            if let Err(error) = self.turn(true) {
                log::error!("the API is not served any more: {error}");
                return self.socket;
            }
        }
        let end = Instant::now() + FAREWELL;
        self.answer();
        while self.connections.iter().any(Connection::is_owed) && Instant::now() < end {
            if self.turn(false).is_err() {
                break;
            }
        }
        self.socket
    }

    /// Waits for something to happen and deals with it.
    fn turn(&mut self, open: bool) -> io::Result<()> {
        let events = self.wait(open)?;
        let (listening, rest) =
            events.split_first().map_or((PollFlags::empty(), &[][..]), |(one, rest)| (*one, rest));
        let mut asked = Vec::new();
        for (connection, flags) in self.connections.iter_mut().zip(rest) {
            let request = connection.ready(*flags);
            asked.extend(request.map(|request| (connection.id, request)));
        }
        for (client, request) in asked {
            self.take(client, request);
        }
        self.answer();
        // One a turn, after everybody else: a question waits for one of them at most.
        if let Some((client, request)) = self.long.pop_front() {
            self.hand_on(client, request);
            self.answer();
        }
        self.time_out();
        self.connections.retain(|connection| !connection.is_gone());
        if !listening.is_empty() {
            self.accept();
        }
        Ok(())
    }

    /// What happened on the listener, then on each connection.
    fn wait(&self, open: bool) -> io::Result<Vec<PollFlags>> {
        let accepts = open && self.full.is_none_or(|since| since.elapsed() >= RETRY);
        let timeout = self.timeout(open);
        let listener = self.socket.as_fd();
        let mut fds = vec![
            PollFd::new(&self.shared.event, PollFlags::IN),
            PollFd::new(&listener, if accepts { PollFlags::IN } else { PollFlags::empty() }),
        ];
        fds.extend(self.connections.iter().map(|connection| PollFd::new(connection, connection.interest())));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        Ok(fds.iter().skip(1).map(PollFd::revents).collect())
    }

    fn timeout(&self, open: bool) -> Option<Timespec> {
        let now = Instant::now();
        let mut next = self.connections.iter().filter_map(Connection::deadline).min();
        let mut sooner = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));
        if !self.has_room() {
            self.connections
                .iter()
                .filter_map(Connection::idle_since)
                .for_each(|since| sooner(since + PATIENCE));
        }
        if !open || self.full.is_some() {
            sooner(now + RETRY);
        }
        if !self.long.is_empty() {
            sooner(now);
        }
        next.map(|next| {
            // Rounded up, so that what was waited for is over.
            let left = next.saturating_duration_since(now) + Duration::from_millis(1);
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        })
    }

    fn take(&mut self, client: u64, request: Request) {
        if request.body.len() < LONG {
            self.hand_on(client, request);
        } else {
            self.long.push_back((client, request));
        }
    }

    fn hand_on(&self, client: u64, request: Request) {
        log::debug!("API: {:?} {}", request.method, request.path);
        self.service.serve(request, Responder { client, shared: Some(Arc::clone(&self.shared)) });
    }

    /// Passes on what was answered meanwhile, and what was asked behind that: its answer is for the next turn, so that
    /// nobody who asks many things in a row keeps others waiting.
    fn answer(&mut self) {
        for (client, response) in self.shared.take() {
            let connection = self.connections.iter_mut().find(|connection| connection.id == client);
            if let Some(request) = connection.and_then(|connection| connection.answer(response)) {
                self.take(client, request);
            }
        }
    }

    /// Closes connections that are silent in the middle of something; and, if there is no room for others,
    /// the one that has had nothing to say for longest.
    fn time_out(&mut self) {
        let now = Instant::now();
        for connection in &mut self.connections {
            if connection.deadline().is_some_and(|deadline| deadline <= now) {
                connection.close();
            }
        }
        if self.has_room() || self.connections.iter().any(Connection::is_gone) {
            return;
        }
        let idle = self
            .connections
            .iter_mut()
            .filter(|connection| connection.idle_since().is_some_and(|since| since + PATIENCE <= now));
        if let Some(oldest) = idle.min_by_key(|connection| connection.idle_since()) {
            oldest.close();
        }
    }

    fn has_room(&self) -> bool {
        let present = self.connections.iter().filter(|connection| !connection.is_waiting()).count();
        present < MAX_CONNECTIONS && self.connections.len() < MAX_WITH_WAITING
    }

    /// Lets everybody in who waits, or says that there is no room.
    fn accept(&mut self) {
        self.full = None;
        for _ in 0..ACCEPTED_AT_ONCE {
            let socket = match self.socket.listener().accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    log::warn!("an API client cannot be let in: {error}");
                    self.full = Some(Instant::now());
                    return;
                }
            };
            self.connections.retain(|connection| !connection.is_gone());
            if !self.has_room() {
                let flags = rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT;
                // One that has gone again needs no answer.
                let _ = rustix::net::send(&socket, Response::no_room(), flags);
                continue;
            }
            self.next += 1;
            self.connections.push(Connection::new(self.next, socket));
        }
    }
}

#[cfg(test)]
mod tests;
