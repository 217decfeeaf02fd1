use std::sync::atomic::{AtomicBool, AtomicU32};

use super::*;

const BETWEEN_ALARMS: Duration = Duration::from_millis(5);

/// Counts what happens to it; tells a channel of each look.
struct Counter {
    event: Arc<EventFd>,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    looks: AtomicU32,
    readies: AtomicU32,
    alarms: AtomicU32,
    /// Every alarm sets the next one.
    alarmed: AtomicBool,
    /// Its source stays ready.
    restless: AtomicBool,
    in_flight: AtomicBool,
    failed: AtomicBool,
    moved: Mutex<()>,
    more: Condvar,
}

impl Seen {
    fn note(&self, counter: &AtomicU32) {
        counter.fetch_add(1, Ordering::SeqCst);
        drop(self.moved.lock());
        self.more.notify_all();
    }

    /// Waits until `what` holds.
    fn until(&self, what: impl Fn(&Self) -> bool) {
        let mut moved = self.moved.lock();
        while !what(self) {
            self.more.wait(&mut moved);
        }
    }
}

impl Job for Counter {
    fn start(&mut self, poller: &Poller) -> io::Result<()> {
        poller.add(&*self.event, 7)
    }

    fn look(&mut self, poller: &Poller) {
        if self.seen.alarmed.load(Ordering::SeqCst) {
            poller.set_alarm(Some(Instant::now() + BETWEEN_ALARMS));
        }
        self.seen.note(&self.seen.looks);
    }

    fn alarm(&mut self, poller: &Poller) {
        self.seen.note(&self.seen.alarms);
        self.look(poller);
    }

    fn ready(&mut self, source: u32, _poller: &Poller) {
        assert_eq!(source, 7);
        if !self.seen.restless.load(Ordering::SeqCst) {
            consume(&self.event);
        }
        self.seen.in_flight.store(false, Ordering::SeqCst);
        self.seen.note(&self.seen.readies);
    }

    fn quiesce(&mut self) -> bool {
        !self.seen.in_flight.load(Ordering::SeqCst)
    }

    fn fail(&mut self, _why: &io::Error) {
        self.seen.failed.store(true, Ordering::SeqCst);
    }
}

fn worker() -> (Worker<Counter>, Arc<EventFd>, Arc<Seen>) {
    let event = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let seen = Arc::new(Seen::default());
    let job = Counter { event: Arc::clone(&event), seen: Arc::clone(&seen) };
    let spawn: Arc<dyn Spawn> = Arc::new(PlainThreads);
    (Worker::new("_disk0_q3", job, &spawn).unwrap(), event, seen)
}

#[test]
fn nothing_is_served_before_resume_and_all_is_looked_at_then() {
    let (mut worker, event, seen) = worker();
    signal(&event);
    worker.pause().unwrap();
    assert_eq!(seen.looks.load(Ordering::SeqCst), 0);
    worker.resume();
    seen.until(|seen| seen.looks.load(Ordering::SeqCst) >= 1 && seen.readies.load(Ordering::SeqCst) == 1);
    worker.stop().unwrap();
    worker.stop().unwrap();
}

#[test]
fn a_pause_waits_for_what_is_in_flight() {
    let (mut worker, event, seen) = worker();
    worker.resume();
    seen.until(|seen| seen.looks.load(Ordering::SeqCst) == 1);
    seen.in_flight.store(true, Ordering::SeqCst);
    worker.ask_to_pause();
    let late = worker.wait_paused_for(Duration::ZERO).unwrap_err();
    assert!(late.to_string().starts_with("thread _disk0_q3 did not stop: requests in flight"), "{late}");
    // The request ends: the pause that was asked for happens.
    signal(&event);
    worker.wait_paused().unwrap();
    assert_eq!(seen.looks.load(Ordering::SeqCst), 1);
}

#[test]
fn a_pause_that_is_taken_back_ends_in_a_look() {
    let (mut worker, event, seen) = worker();
    worker.resume();
    seen.until(|seen| seen.looks.load(Ordering::SeqCst) == 1);
    seen.in_flight.store(true, Ordering::SeqCst);
    worker.ask_to_pause();
    assert!(worker.wait_paused_for(Duration::ZERO).is_err());
    // Kicks have been passed over since; nobody else tells the thread of them.
    worker.resume();
    seen.until(|seen| seen.looks.load(Ordering::SeqCst) >= 2);
    signal(&event);
    seen.until(|seen| seen.readies.load(Ordering::SeqCst) == 1);
}

#[test]
fn the_time_for_a_pause_begins_when_it_is_asked_for_first() {
    let (mut worker, event, seen) = worker();
    worker.resume();
    seen.until(|seen| seen.looks.load(Ordering::SeqCst) == 1);
    seen.in_flight.store(true, Ordering::SeqCst);
    worker.ask_to_pause();
    let deadline = worker.deadline(PAUSE_LIMIT);
    std::thread::sleep(Duration::from_millis(2));
    worker.ask_to_pause();
    assert_eq!(worker.deadline(PAUSE_LIMIT), deadline);
    // One that was too slow gets another chance, and so does one that went on.
    assert!(worker.wait_paused_for(Duration::ZERO).is_err());
    worker.ask_to_pause();
    let later = worker.deadline(PAUSE_LIMIT);
    assert!(later > deadline);
    worker.resume();
    std::thread::sleep(Duration::from_millis(2));
    worker.ask_to_pause();
    assert!(worker.deadline(PAUSE_LIMIT) > later);
    signal(&event);
    worker.wait_paused().unwrap();
}

#[test]
fn pausing_and_resuming_in_haste_loses_nothing() {
    let (mut worker, event, seen) = worker();
    for round in 0..2000u32 {
        worker.resume();
        signal(&event);
        if round % 3 == 0 {
            worker.ask_to_pause();
        }
        if round % 7 == 0 {
            worker.pause().unwrap();
            let looks = seen.looks.load(Ordering::SeqCst);
            worker.resume();
            seen.until(|seen| seen.looks.load(Ordering::SeqCst) > looks);
        }
    }
    worker.resume();
    let before = seen.readies.load(Ordering::SeqCst);
    signal(&event);
    seen.until(|seen| seen.readies.load(Ordering::SeqCst) > before);
}

#[test]
fn an_alarm_is_heard_in_time_and_not_in_a_pause() {
    let (mut worker, _event, seen) = worker();
    seen.alarmed.store(true, Ordering::SeqCst);
    let begun = Instant::now();
    worker.resume();
    seen.until(|seen| seen.alarms.load(Ordering::SeqCst) >= 2);
    assert!(begun.elapsed() >= 2 * BETWEEN_ALARMS);
    worker.pause().unwrap();
    let heard = seen.alarms.load(Ordering::SeqCst);
    std::thread::sleep(4 * BETWEEN_ALARMS);
    assert_eq!(seen.alarms.load(Ordering::SeqCst), heard);
    worker.resume();
    seen.until(|seen| seen.alarms.load(Ordering::SeqCst) > heard);
}

#[test]
fn an_alarm_is_heard_once_though_there_is_always_something_ready() {
    let (mut worker, event, seen) = worker();
    seen.alarmed.store(true, Ordering::SeqCst);
    seen.restless.store(true, Ordering::SeqCst);
    signal(&event);
    worker.resume();
    seen.until(|seen| seen.alarms.load(Ordering::SeqCst) >= 2);
    // The last alarm sets another one, which is the last.
    seen.alarmed.store(false, Ordering::SeqCst);
    let heard = seen.alarms.load(Ordering::SeqCst);
    std::thread::sleep(4 * BETWEEN_ALARMS);
    assert!(seen.alarms.load(Ordering::SeqCst) <= heard + 1);
}

#[test]
fn milliseconds_are_rounded_up_and_bounded() {
    let now = Instant::now();
    assert_eq!(ms_until(now), 0);
    assert!((3_599_000..=3_600_000).contains(&ms_until(now + Duration::from_secs(3600))));
    assert_eq!(ms_until(now + Duration::from_secs(1 << 32)), i32::MAX);
    assert!(ms_until(Instant::now() + Duration::from_millis(50)) <= 50);
}

#[derive(Debug)]
struct NoThreads;

impl Spawn for NoThreads {
    fn spawn(&self, _name: &str, _body: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

#[test]
fn a_thread_that_cannot_be_made_is_told_to_the_job() {
    let (mut worker, _event, seen) = worker();
    worker.spawn = Arc::new(NoThreads);
    worker.resume();
    assert!(seen.failed.load(Ordering::SeqCst));
    worker.stop().unwrap();
}

#[test]
fn a_stopped_worker_can_begin_again() {
    let (mut worker, event, seen) = worker();
    worker.resume();
    seen.until(|seen| seen.looks.load(Ordering::SeqCst) == 1);
    worker.stop().unwrap();
    signal(&event);
    worker.resume();
    seen.until(|seen| seen.looks.load(Ordering::SeqCst) >= 2 && seen.readies.load(Ordering::SeqCst) == 1);
}
