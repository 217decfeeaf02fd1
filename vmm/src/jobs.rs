//! Long work: what is going on, how far it is, and that somebody wants it given up.
//!
//! Whoever does the work holds a [`Job`] and reports into it; any thread may read the table at any time
//! without waiting for the work. Giving up is a wish: the work looks at it between two steps.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use api_client::wire::{JobInfo, JobKind, JobState};
use parking_lot::Mutex;
use thiserror::Error;

use crate::events::Events;

/// Jobs that have ended and are still told of.
const REMEMBERED: usize = 16;

/// How often a job's progress is told as an event.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// A job cannot be given up.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CancelError {
    /// There is no such job, or it was long ago.
    #[error("job {0} is not known")]
    Unknown(u64),
    /// It is over.
    #[error("job {0} has ended")]
    Ended(u64),
}

/// The jobs of a process. Copies are the same table.
#[derive(Clone, Debug)]
pub struct Jobs {
    table: Arc<Mutex<Table>>,
    ending: Arc<AtomicBool>,
    events: Events,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    // Oldest first.
    jobs: VecDeque<Arc<Progress>>,
}

impl Jobs {
    /// None yet; their progress is told to `events`.
    pub fn new(events: Events) -> Self {
        Self { table: Arc::default(), ending: Arc::default(), events }
    }

    /// Begins a job, in the phase `phase`.
    pub fn begin(&self, kind: JobKind, phase: &'static str) -> Job {
        let mut table = self.table.lock();
        while table.jobs.len() >= REMEMBERED {
            let Some(ended) = table.jobs.iter().position(|job| job.state().is_over()) else { break };
            table.jobs.remove(ended);
        }
        table.next += 1;
        let progress = Arc::new(Progress::new(table.next, kind, phase, self));
        table.jobs.push_back(Arc::clone(&progress));
        drop(table);
        progress.tell("started");
        Job { progress }
    }

    /// All that are known, the oldest first.
    pub fn list(&self) -> Vec<JobInfo> {
        let jobs: Vec<Arc<Progress>> = self.table.lock().jobs.iter().cloned().collect();
        jobs.iter().map(|job| job.info()).collect()
    }

    /// Asks for a job to be given up. It may succeed all the same.
    ///
    /// # Errors
    /// There is no such job, or it has ended.
    pub fn cancel(&self, id: u64) -> Result<(), CancelError> {
        let job = self.table.lock().jobs.iter().find(|job| job.id == id).cloned();
        let job = job.ok_or(CancelError::Unknown(id))?;
        let inner = job.inner.lock();
        if inner.state.is_over() {
            return Err(CancelError::Ended(id));
        }
        job.cancelled.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Raised, this asks for everything to be given up, and for whatever begins from then on: the process
    /// shall end. Signals raise it.
    pub fn ending(&self) -> &Arc<AtomicBool> {
        &self.ending
    }
}

/// A job, in the hands of whoever does it. One that is dropped has failed.
#[derive(Debug)]
pub struct Job {
    progress: Arc<Progress>,
}

impl Job {
    /// Where the threads that help report to.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// It is over: well, or with the messages of an error, the outermost first.
    pub fn end(self, result: Result<(), Vec<String>>) {
        self.progress.end(result);
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.progress.end(Err(vec!["the work was broken off".to_owned()]));
    }
}

/// How far a job is. Reported to by the threads that do it, read by anybody.
pub struct Progress {
    id: u64,
    kind: JobKind,
    begun: Instant,
    cancelled: AtomicBool,
    ending: Arc<AtomicBool>,
    bytes_done: AtomicU64,
    inner: Mutex<Inner>,
    events: Events,
}

struct Inner {
    state: State,
    phase: &'static str,
    phase_begun: Instant,
    bytes_total: Option<u64>,
    told: Instant,
}

enum State {
    Running,
    Done { after: Duration },
    Failed { after: Duration, cancelled: bool, error: Vec<String> },
}

impl State {
    fn is_over(&self) -> bool {
        !matches!(self, Self::Running)
    }
}

impl Progress {
    fn new(id: u64, kind: JobKind, phase: &'static str, jobs: &Jobs) -> Self {
        let begun = Instant::now();
        Self {
            id,
            kind,
            begun,
            cancelled: AtomicBool::new(false),
            ending: Arc::clone(&jobs.ending),
            bytes_done: AtomicU64::new(0),
            inner: Mutex::new(Inner {
                state: State::Running,
                phase,
                phase_begun: begun,
                bytes_total: None,
                told: begun,
            }),
            events: jobs.events.clone(),
        }
    }

    /// Goes on to the next phase, which has `bytes_total` bytes to work through, if that is known.
    pub fn phase(&self, phase: &'static str, bytes_total: Option<u64>) {
        let mut inner = self.inner.lock();
        inner.phase = phase;
        inner.phase_begun = Instant::now();
        inner.told = inner.phase_begun;
        inner.bytes_total = bytes_total;
        self.bytes_done.store(0, Ordering::Relaxed);
        drop(inner);
        self.tell("phase");
    }

    /// So many bytes more of this phase are done.
    pub fn add(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
        // Whoever finds the lock taken leaves the telling to the next.
        let Some(mut inner) = self.inner.try_lock() else { return };
        if inner.told.elapsed() >= TELL_EVERY {
            inner.told = Instant::now();
            drop(inner);
            self.tell("progress");
        }
    }

    /// Whether somebody wants it given up. Asked between two steps.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.ending.load(Ordering::Relaxed)
    }

    fn end(&self, result: Result<(), Vec<String>>) {
        let mut inner = self.inner.lock();
        if inner.state.is_over() {
            return;
        }
        let after = self.begun.elapsed();
        let (state, event) = match result {
            Ok(()) => (State::Done { after }, "finished"),
            Err(error) if self.is_cancelled() => {
                (State::Failed { after, cancelled: true, error }, "cancelled")
            }
            Err(error) => (State::Failed { after, cancelled: false, error }, "failed"),
        };
        inner.state = state;
        drop(inner);
        self.tell(event);
    }

    fn state(&self) -> parking_lot::MappedMutexGuard<'_, State> {
        parking_lot::MutexGuard::map(self.inner.lock(), |inner| &mut inner.state)
    }

    /// How far it is.
    pub fn info(&self) -> JobInfo {
        let inner = self.inner.lock();
        let bytes_done = self.bytes_done.load(Ordering::Relaxed);
        let (state, elapsed, error) = match &inner.state {
            State::Running if self.is_cancelled() => (JobState::Cancelling, self.begun.elapsed(), None),
            State::Running => (JobState::Running, self.begun.elapsed(), None),
            State::Done { after } => (JobState::Done, *after, None),
            State::Failed { after, cancelled, error } => {
                let state = if *cancelled { JobState::Cancelled } else { JobState::Failed };
                (state, *after, Some(error.clone()))
            }
        };
        let end = self.begun + elapsed;
        let phase_ms = millis(end.saturating_duration_since(inner.phase_begun));
        let remaining_ms =
            inner.bytes_total.filter(|_| !inner.state.is_over() && bytes_done > 0).map(|total| {
                let left = u128::from(total.saturating_sub(bytes_done)) * u128::from(phase_ms)
                    / u128::from(bytes_done);
                u64::try_from(left).unwrap_or(u64::MAX)
            });
        let rate = u128::from(bytes_done) * 1000 / u128::from(phase_ms.max(1));
        JobInfo {
            id: self.id,
            kind: self.kind,
            state,
            phase: inner.phase.to_owned(),
            bytes_done,
            bytes_total: inner.bytes_total,
            bytes_per_second: u64::try_from(rate).unwrap_or(u64::MAX),
            remaining_ms,
            elapsed_ms: millis(elapsed),
            error,
        }
    }

    fn tell(&self, event: &str) {
        let info = self.info();
        let (id, done) = (info.id.to_string(), info.bytes_done.to_string());
        let total = info.bytes_total.map(|total| total.to_string());
        let mut properties = vec![
            ("id", id.as_str()),
            ("kind", info.kind.name()),
            ("phase", info.phase.as_str()),
            ("bytes_done", &done),
        ];
        properties.extend(total.as_deref().map(|total| ("bytes_total", total)));
        self.events.tell_with("job", event, &properties);
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Progress({} {})", self.kind.name(), self.id)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs() -> Jobs {
        Jobs::new(Events::default())
    }

    #[test]
    fn a_job_says_how_far_it_is() {
        let jobs = jobs();
        let job = jobs.begin(JobKind::Snapshot, "prepare");
        job.progress().phase("memory", Some(1000));
        std::thread::sleep(Duration::from_millis(5));
        job.progress().add(250);
        let info = jobs.list().pop().unwrap();
        assert_eq!((info.state, info.phase.as_str()), (JobState::Running, "memory"));
        assert_eq!((info.bytes_done, info.bytes_total), (250, Some(1000)));
        assert!(info.bytes_per_second > 0 && info.remaining_ms.unwrap() >= 15);
        job.end(Ok(()));
        let info = jobs.list().pop().unwrap();
        assert_eq!((info.state, info.remaining_ms, info.error), (JobState::Done, None, None));
    }

    #[test]
    fn a_wish_to_give_up_is_seen_and_told() {
        let jobs = jobs();
        let job = jobs.begin(JobKind::Restore, "memory");
        assert!(!job.progress().is_cancelled());
        assert_eq!(jobs.cancel(7), Err(CancelError::Unknown(7)));
        jobs.cancel(1).unwrap();
        assert!(job.progress().is_cancelled());
        assert_eq!(jobs.list()[0].state, JobState::Cancelling);
        job.end(Err(vec!["given up".into()]));
        assert_eq!(jobs.list()[0].state, JobState::Cancelled);
        assert_eq!(jobs.cancel(1), Err(CancelError::Ended(1)));
    }

    #[test]
    fn dropped_work_has_failed_and_old_work_is_forgotten() {
        let jobs = jobs();
        let running = jobs.begin(JobKind::SendMigration, "connect");
        for _ in 0..40 {
            drop(jobs.begin(JobKind::Boot, "build"));
        }
        let list = jobs.list();
        assert_eq!(list.len(), REMEMBERED);
        assert_eq!((list[0].id, list[0].state), (1, JobState::Running));
        assert_eq!((list[15].id, list[15].state), (41, JobState::Failed));
        drop(running);
    }

    #[test]
    fn the_end_of_the_process_gives_everything_up() {
        let jobs = jobs();
        let job = jobs.begin(JobKind::Snapshot, "memory");
        jobs.ending().store(true, Ordering::Relaxed);
        assert!(job.progress().is_cancelled());
        assert!(jobs.begin(JobKind::Restore, "memory").progress().is_cancelled());
    }

    #[test]
    fn numbers_of_any_size_are_survived() {
        let jobs = jobs();
        let job = jobs.begin(JobKind::Coredump, "memory");
        job.progress().phase("memory", Some(u64::MAX));
        job.progress().add(1);
        assert!(jobs.list()[0].remaining_ms.is_some());
        job.progress().add(u64::MAX - 1);
        assert!(jobs.list()[0].bytes_done == u64::MAX);
    }
}
