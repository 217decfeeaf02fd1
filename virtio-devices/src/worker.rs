//! The thread loop that serves queues: one for all devices.
//!
//! A [`Worker`] is a named thread with a [`Job`]. The job is what differs between devices; waiting, pausing,
//! resuming and stopping are here. The job is behind a lock that the thread holds while it works, so that
//! the device can look at a job whose thread is paused, or put a queue into one that runs.
//!
//! Pausing is a handshake, bounded in time: the job takes no new request ([`Job::quiesce`]), the thread
//! waits until nothing is in flight, and then says that it is paused. At every resume the job first looks at
//! everything it has ([`Job::look`]), so a kick that came while it was paused is not lost, nor is one that
//! came before the machine was saved.

mod timer;

use std::{
    cell::Cell,
    fmt, io,
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use devices::PauseError;
use log::error;
use parking_lot::{Condvar, Mutex, MutexGuard};
use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::{EFD_NONBLOCK, EventFd},
};

use crate::{device::ActiveQueue, queue::QueueState};

pub use self::timer::LimitTimer;

/// How long a thread has to come to a halt, from when it is asked first.
pub const PAUSE_LIMIT: Duration = Duration::from_secs(5);

/// What a worker does.
pub trait Job: Send + 'static {
    /// Called on the thread before anything else: says what to wait for.
    ///
    /// # Errors
    /// Something cannot be waited for.
    fn start(&mut self, poller: &Poller) -> io::Result<()>;

    /// Looks at every queue and back end once. Called after [`start`](Self::start), after every resume, and
    /// when somebody [woke](Worker::wake) the worker.
    fn look(&mut self, poller: &Poller);

    /// A source is ready.
    fn ready(&mut self, source: u32, poller: &Poller);

    /// The time has come that the job [wanted to hear of](Poller::set_alarm). It has to set the next one itself.
    fn alarm(&mut self, _poller: &Poller) {}

    /// Takes no new request until [`look`](Self::look) is called, and says whether none is in flight. Called
    /// again after each [`ready`](Self::ready) until it is so.
    fn quiesce(&mut self) -> bool {
        true
    }

    /// The thread cannot go on: it could not be made, or its sources could not be waited for.
    fn fail(&mut self, why: &io::Error);
}

/// What a thread waits for.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
    alarm: Cell<Option<Instant>>,
}

/// Source number of the worker's own wake-up.
const WAKE: u64 = u64::MAX;

impl Poller {
    fn new(wake: &EventFd) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.ctl(ControlOperation::Add, wake.as_raw_fd(), EpollEvent::new(EventSet::IN, WAKE))?;
        Ok(Self { epoll, alarm: Cell::new(None) })
    }

    /// Waits for `fd` to become readable.
    ///
    /// # Errors
    /// It is waited for already, or cannot be.
    pub fn add(&self, fd: &impl AsRawFd, source: u32) -> io::Result<()> {
        self.add_for(fd, source, EventSet::IN)
    }

    /// Waits for `fd` in another way.
    ///
    /// # Errors
    /// It is waited for already, or cannot be.
    pub fn add_for(&self, fd: &impl AsRawFd, source: u32, events: EventSet) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), EpollEvent::new(events, u64::from(source)))
    }

    /// Waits for `fd`, which is waited for, in another way.
    ///
    /// # Errors
    /// It is not waited for.
    pub fn modify(&self, fd: &impl AsRawFd, source: u32, events: EventSet) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Modify, fd.as_raw_fd(), EpollEvent::new(events, u64::from(source)))
    }

    /// Waits for `fd` no longer. Without effect if it is not waited for.
    pub fn remove(&self, fd: &impl AsRawFd) {
        let gone = self.epoll.ctl(ControlOperation::Delete, fd.as_raw_fd(), EpollEvent::default());
        if let Err(problem) = gone {
            log::debug!("epoll: {problem}");
        }
    }

    /// The job hears of it when it is so late ([`Job::alarm`]), once, or not at all with `None`. There is one alarm: this
    /// takes the place of the last. It costs neither a descriptor nor a system call, and is not heard by a thread that
    /// is paused or about to be; one whose time passes meanwhile is heard after the look that follows.
    pub fn set_alarm(&self, at: Option<Instant>) {
        self.alarm.set(at);
    }

    /// Whether it is time; then the alarm is not set any more.
    fn take_alarm(&self) -> bool {
        // Without an alarm, as most of the time, nobody asks for the time.
        let rings = self.alarm.get().is_some_and(|at| at <= Instant::now());
        if rings {
            self.alarm.set(None);
        }
        rings
    }

    /// Waits until something is ready, or it is `until`.
    fn wait(&self, until: Option<Instant>, events: &mut [EpollEvent]) -> io::Result<usize> {
        loop {
            match self.epoll.wait(until.map_or(-1, ms_until), events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

/// Milliseconds until then: not less, so that nobody who waits for them is early and has to wait again.
fn ms_until(at: Instant) -> i32 {
    let left = at.saturating_duration_since(Instant::now());
    i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
}

/// The place of one queue in a job: the queue may be stopped and started alone.
#[derive(Debug)]
pub struct QueueSlot {
    source: u32,
    queue: Option<ActiveQueue>,
    /// The eventfd that is waited for. It is the queue's for ever, whether or not it is served.
    watched: Option<Arc<EventFd>>,
}

impl QueueSlot {
    /// A place whose kicks come from `source`.
    pub fn new(source: u32, queue: Option<ActiveQueue>) -> Self {
        Self { source, queue, watched: None }
    }

    /// Puts a queue in.
    pub fn start(&mut self, queue: ActiveQueue) {
        self.queue = Some(queue);
    }

    /// Takes queue `index` out, if it is there.
    pub fn stop(&mut self, index: u16) -> Option<QueueState> {
        self.queue.take_if(|queue| queue.index == index).map(|queue| queue.queue.state())
    }

    /// Number and progress of the queue.
    pub fn state(&self) -> Option<(u16, QueueState)> {
        self.queue.as_ref().map(|queue| (queue.index, queue.queue.state()))
    }

    /// The queue, if there is one and the driver has not broken it.
    pub fn working(&mut self) -> Option<&mut ActiveQueue> {
        self.queue.as_mut().filter(|queue| !queue.queue.is_broken())
    }

    /// The queue, if there is one.
    pub fn working_or_broken(&mut self) -> Option<&mut ActiveQueue> {
        self.queue.as_mut()
    }

    /// The thread begins: nothing is waited for yet.
    pub fn begin(&mut self) {
        self.watched = None;
    }

    /// Waits for kicks, from the first time on that there is a queue.
    ///
    /// # Errors
    /// The eventfd cannot be waited for.
    pub fn watch(&mut self, poller: &Poller) -> io::Result<()> {
        if let (Some(queue), None) = (&self.queue, &self.watched) {
            poller.add(&*queue.kick, self.source)?;
            self.watched = Some(Arc::clone(&queue.kick));
        }
        Ok(())
    }

    /// Takes the signal of a kick. What it was for is found by looking.
    pub fn consume_kick(&self) {
        if let Some(kick) = &self.watched {
            consume(kick);
        }
    }
}

/// Who makes threads. The machine may want to make them elsewhere than where they are asked for (a thread
/// inherits the seccomp filter of the one that makes it).
pub trait Spawn: Send + Sync + fmt::Debug {
    /// Runs `body` on a new thread of that name.
    ///
    /// # Errors
    /// The thread cannot be made.
    fn spawn(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>>;
}

/// Makes threads where they are asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlainThreads;

/// Stack of a worker: the loop is flat, and jobs keep their buffers elsewhere.
const STACK_SIZE: usize = 256 << 10;

impl Spawn for PlainThreads {
    fn spawn(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name(name.to_owned()).stack_size(STACK_SIZE).spawn(body)
    }
}

/// What a worker is to do.
const RUN: u8 = 0;
const PAUSE: u8 = 1;
const STOP: u8 = 2;

struct Shared<J> {
    job: Mutex<J>,
    wanted: AtomicU8,
    /// Whether the thread is at rest: not begun, paused, or ended.
    resting: Mutex<bool>,
    changed: Condvar,
    wake: EventFd,
    /// When it was asked to pause, until it goes on or has failed to.
    asked: Mutex<Option<Instant>>,
}

/// A thread and its job.
pub struct Worker<J: Job> {
    name: String,
    shared: Arc<Shared<J>>,
    spawn: Arc<dyn Spawn>,
    thread: Option<JoinHandle<()>>,
}

impl<J: Job> Worker<J> {
    /// A paused worker. Its thread is made at the first [`resume`](Self::resume).
    ///
    /// # Errors
    /// No eventfd can be made.
    pub fn new(name: impl Into<String>, job: J, spawn: &Arc<dyn Spawn>) -> io::Result<Self> {
        let shared = Shared {
            job: Mutex::new(job),
            wanted: AtomicU8::new(PAUSE),
            resting: Mutex::new(true),
            changed: Condvar::new(),
            wake: EventFd::new(EFD_NONBLOCK)?,
            asked: Mutex::new(None),
        };
        Ok(Self { name: name.into(), shared: Arc::new(shared), spawn: Arc::clone(spawn), thread: None })
    }

    /// The thread's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The job, once the thread lets go of it: at once if it is paused, after its current piece of work
    /// otherwise. [`wake`](Self::wake) it after a change.
    pub fn job(&self) -> MutexGuard<'_, J> {
        self.shared.job.lock()
    }

    /// Lets the job look at everything.
    pub fn wake(&self) {
        signal(&self.shared.wake);
    }

    /// Goes on, or begins. A thread that cannot be made is told to the job.
    pub fn resume(&mut self) {
        *self.shared.asked.lock() = None;
        self.shared.wanted.store(RUN, Ordering::SeqCst);
        if self.thread.is_some() {
            if !std::mem::replace(&mut *self.shared.resting.lock(), false) {
                // It runs, or was asked to pause and waits for what is in flight: then it has passed over kicks.
                self.wake();
            }
            self.shared.changed.notify_all();
            return;
        }
        *self.shared.resting.lock() = false;
        let shared = Arc::clone(&self.shared);
        match self.spawn.spawn(&self.name, Box::new(move || shared.run())) {
            Ok(thread) => self.thread = Some(thread),
            Err(problem) => {
                error!("{}: cannot make the thread: {problem}", self.name);
                self.shared.wanted.store(PAUSE, Ordering::SeqCst);
                self.shared.rest();
                self.job().fail(&problem);
            }
        }
    }

    /// Lets a thread that runs look at everything, and one that has not begun begin.
    pub fn wake_or_resume(&mut self) {
        if self.thread.is_some() {
            self.wake();
        } else {
            self.resume();
        }
    }

    /// Asks the thread to come to a halt, and returns at once; several workers come to a halt at the same
    /// time that way. Its time begins when it is asked first.
    pub fn ask_to_pause(&self) {
        self.shared.asked.lock().get_or_insert_with(Instant::now);
        self.shared.wanted.store(PAUSE, Ordering::SeqCst);
        self.wake();
    }

    /// Waits for a thread that was asked to pause.
    ///
    /// # Errors
    /// It did not do so in time. It goes on trying, and has as much time again when it is asked the next time.
    pub fn wait_paused(&self) -> Result<(), PauseError> {
        self.wait_paused_for(PAUSE_LIMIT)
    }

    fn wait_paused_for(&self, limit: Duration) -> Result<(), PauseError> {
        let deadline = self.deadline(limit);
        let mut resting = self.shared.resting.lock();
        while !*resting {
            if self.shared.changed.wait_until(&mut resting, deadline).timed_out() && !*resting {
                *self.shared.asked.lock() = None;
                let why = format!("requests in flight after {} s", limit.as_secs());
                return Err(PauseError { who: format!("thread {}", self.name), why });
            }
        }
        Ok(())
    }

    fn deadline(&self, limit: Duration) -> Instant {
        self.shared.asked.lock().unwrap_or_else(Instant::now) + limit
    }

    /// Brings the thread to a halt.
    ///
    /// # Errors
    /// It did not do so in time.
    pub fn pause(&self) -> Result<(), PauseError> {
        self.ask_to_pause();
        self.wait_paused()
    }

    /// Ends the thread. Idempotent.
    ///
    /// # Errors
    /// It did not come to a halt in time, and goes on trying.
    pub fn stop(&mut self) -> Result<(), PauseError> {
        self.pause()?;
        self.end();
        Ok(())
    }

    fn end(&mut self) {
        self.shared.want_stop();
        self.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("{}: the thread panicked", self.name);
        }
        self.shared.wanted.store(PAUSE, Ordering::SeqCst);
    }
}

impl<J: Job> Drop for Worker<J> {
    fn drop(&mut self) {
        // A thread that does not come to a halt keeps what it needs; it ends when its requests are done.
        if self.pause().is_ok() {
            self.end();
        } else {
            self.shared.want_stop();
            self.wake();
        }
    }
}

impl<J: Job> fmt::Debug for Worker<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Worker({})", self.name)
    }
}

/// Pauses several workers at the same time.
///
/// # Errors
/// The first that did not come to a halt in time; all were asked.
pub fn pause_all<'w, J: Job>(workers: impl Iterator<Item = &'w Worker<J>> + Clone) -> Result<(), PauseError> {
    workers.clone().for_each(Worker::ask_to_pause);
    workers.into_iter().try_for_each(Worker::wait_paused)
}

/// Signals an eventfd. Its counter is full only if it is signalled already.
pub fn signal(event: &EventFd) {
    if let Err(problem) = event.write(1) {
        log::debug!("eventfd: {problem}");
    }
}

/// Takes an eventfd's signal. That there was none is no matter.
pub fn consume(event: &EventFd) {
    if let Err(problem) = event.read()
        && problem.kind() != io::ErrorKind::WouldBlock
    {
        log::debug!("eventfd: {problem}");
    }
}

impl<J: Job> Shared<J> {
    /// The thread.
    fn run(&self) {
        let begun = Poller::new(&self.wake).and_then(|poller| {
            self.job.lock().start(&poller)?;
            Ok(poller)
        });
        match begun {
            Ok(poller) => self.serve(&poller),
            Err(problem) => self.job.lock().fail(&problem),
        }
        self.rest();
    }

    fn serve(&self, poller: &Poller) {
        let mut events = [EpollEvent::default(); 16];
        // The first look is that of a resume.
        let mut quiet = true;
        loop {
            let wanted = self.wanted.load(Ordering::SeqCst);
            if wanted == RUN {
                if std::mem::take(&mut quiet) {
                    self.job.lock().look(poller);
                }
            } else {
                quiet = true;
                if self.job.lock().quiesce() {
                    if wanted == STOP || !self.park() {
                        return;
                    }
                    continue;
                }
            }
            let until = poller.alarm.get().filter(|_| !quiet);
            let count = match poller.wait(until, &mut events) {
                Ok(count) => count,
                Err(problem) => return self.job.lock().fail(&problem),
            };
            for event in events.iter().take(count) {
                if event.data() == WAKE {
                    consume(&self.wake);
                    if !quiet && self.wanted.load(Ordering::SeqCst) == RUN {
                        self.job.lock().look(poller);
                    }
                } else if let Ok(source) = u32::try_from(event.data()) {
                    self.job.lock().ready(source, poller);
                }
            }
            if !quiet && poller.take_alarm() {
                self.job.lock().alarm(poller);
            }
        }
    }

    /// Rests until resumed, or until the thread is to end: then the answer is `false`.
    fn park(&self) -> bool {
        let mut resting = self.resting.lock();
        loop {
            match self.wanted.load(Ordering::SeqCst) {
                STOP => return false,
                RUN => {
                    *resting = false;
                    return true;
                }
                _ => {
                    *resting = true;
                    self.changed.notify_all();
                    self.changed.wait(&mut resting);
                }
            }
        }
    }

    /// Under the lock: a thread that is about to rest either sees it or is waiting for the notice.
    fn want_stop(&self) {
        let resting = self.resting.lock();
        self.wanted.store(STOP, Ordering::SeqCst);
        drop(resting);
        self.changed.notify_all();
    }

    fn rest(&self) {
        *self.resting.lock() = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;
