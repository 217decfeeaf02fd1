//! What is done for a restored machine's memory while its guest runs.
//!
//! Three things, each on a thread of its own that begins once the processors run, stands still while they do, and ends
//! by itself when there is nothing left: memory is filled ([`Fill`]), chunks of a mapped file that have come in are
//! checked (`check`), and the working set is recorded (`record`). None of them is needed for the guest to go on. What
//! cannot be filled or recorded is logged and told; whatever checks need is there before, or there is no machine.

mod check;
mod fill;
mod record;
mod switch;
#[cfg(test)]
mod tests;

use std::{
    fmt, io,
    num::NonZeroU64,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use parking_lot::Mutex;
use vm_memory::MmapRegion;
use vm_migration::snapshot::SavedMemory;

pub use self::record::Recording;
use self::{
    record::Recorder,
    switch::{State, Switch},
};
use super::{
    ahead::ReadAhead,
    content::{ContentError, Tally},
    demand::{Filler, OnFailure},
    pagemap::Pagemap,
};
use crate::{events::Events, jobs::Jobs};

/// What is brought in beside what the guest touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Nothing.
    None,
    /// What was recorded.
    WorkingSet,
    /// All of it.
    All {
        /// Bytes a second at most.
        rate: NonZeroU64,
    },
}

/// Who is told of what.
#[derive(Clone)]
pub struct Watch {
    /// Of content that cannot be used: the machine cannot go on.
    pub on_failure: OnFailure,
    /// How far a fill of all memory is.
    pub jobs: Jobs,
    /// What happens.
    pub events: Events,
}

/// A zone that is mapped from the snapshot, and which of its chunks are what was saved.
#[derive(Debug)]
pub(super) struct MappedZone {
    zone: String,
    mapping: Arc<MmapRegion>,
    /// The chunk of the snapshot's memory that it begins with.
    first: u64,
    /// The chunks that were looked at, or need not be.
    checked: Vec<AtomicBool>,
}

/// What the threads have in common.
pub(super) struct Ground {
    /// The snapshot's memory.
    pub(super) saved: Arc<SavedMemory>,
    /// Zones that are mapped.
    pub(super) mapped: Vec<MappedZone>,
    /// Brings in what is missing of the others; none if there are no such zones.
    pub(super) filler: Option<Filler>,
    /// Whether chunks are checked.
    pub(super) check: bool,
    /// Who is told.
    pub(super) watch: Watch,
    /// How far it is.
    pub(super) counters: Arc<Counters>,
}

/// How far it is.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes that were brought in beside what the guest touched, since it runs.
    pub filled: AtomicU64,
    /// Chunks of mapped zones that were checked since then.
    pub checked: AtomicU64,
}

/// The work, waiting for the guest to run, or under way. Dropped, it ends.
pub struct Background {
    ground: Arc<Ground>,
    switch: Arc<Switch>,
    fill: Mutex<Option<(Fill, ReadAhead)>>,
    recorder: Option<Arc<Recorder>>,
    /// What checks, from the start on: it waits for the guest.
    checker: Option<JoinHandle<()>>,
    /// The others, once the guest has run.
    threads: Mutex<Option<Vec<JoinHandle<()>>>>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("jobs", &self.jobs).finish_non_exhaustive()
    }
}

impl MappedZone {
    /// A zone of which nothing has been looked at but `known`, parts of it in bytes.
    pub(super) fn new(
        zone: String,
        mapping: Arc<MmapRegion>,
        saved: &SavedMemory,
        known: &[Range<u64>],
    ) -> Self {
        let (chunks, size) = (saved.chunks_of(&zone), saved.table().chunk_size);
        let number = chunks.end.saturating_sub(chunks.start);
        let is_known = |chunk: u64| known.iter().any(|part| part.contains(&(chunk * size)));
        let checked = (0..number).map(|chunk| AtomicBool::new(is_known(chunk))).collect();
        Self { zone, mapping, first: chunks.start, checked }
    }

    fn state(&self, chunk: u64) -> Option<&AtomicBool> {
        usize::try_from(chunk).ok().and_then(|chunk| self.checked.get(chunk))
    }

    fn is_checked(&self, chunk: u64) -> bool {
        self.state(chunk).is_none_or(|state| state.load(Ordering::Relaxed))
    }
}

impl Ground {
    /// Holds a chunk of a mapped zone against what was saved, unless that was done. `buffer` is as long as a chunk.
    fn check(&self, zone: &MappedZone, chunk: u64, buffer: &mut [u8]) -> Result<(), ContentError> {
        let Some(state) = zone.state(chunk).filter(|_| self.check && !zone.is_checked(chunk)) else {
            return Ok(());
        };
        self.saved.read_chunk(zone.first.saturating_add(chunk), buffer, true)?;
        self.counters.checked.fetch_add(1, Ordering::Relaxed);
        state.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn buffer(&self) -> Vec<u8> {
        vec![0; self.saved.chunk_length()]
    }
}

impl Background {
    /// Work for a machine that does not run yet.
    ///
    /// # Errors
    /// Chunks are to be checked, and there is no thread or descriptor for it.
    pub(super) fn new(
        ground: Ground,
        fill: Fill,
        ahead: ReadAhead,
        recording: Option<Recording>,
    ) -> io::Result<Self> {
        let ground = Arc::new(ground);
        let recorder = recording.map(|recording| Arc::new(Recorder::new(recording, Arc::clone(&ground))));
        let mut this = Self {
            ground,
            switch: Arc::new(Switch::new()),
            fill: Mutex::new(Some((fill, ahead))),
            recorder,
            checker: None,
            threads: Mutex::new(None),
        };
        this.switch.set(State::Paused);
        if this.ground.check && !this.ground.mapped.is_empty() {
            let pagemap = Pagemap::open()?;
            let work = move |ground: &Ground, switch: &Switch| check::run(ground, switch, &pagemap);
            this.checker = Some(this.start("check-memory", work)?);
        }
        Ok(this)
    }

    /// The guest runs: begins, or goes on.
    pub fn run(&self) {
        self.switch.set(State::Running);
        let mut threads = self.threads.lock();
        if threads.is_none() {
            *threads = Some(self.begin());
        }
    }

    /// The guest stands still: so does everything here once it has done its present step.
    pub fn pause(&self) {
        self.switch.set(State::Paused);
        if let Some(recorder) = &self.recorder {
            // What is touched from now on is touched by others.
            recorder.look();
        }
    }

    /// Checks what has come in of zones that are mapped, where chunks are checked at all and it has not been: before
    /// what differs from the snapshot is saved.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or somebody asked for it to be given up.
    pub fn check_touched(&self, tally: &dyn Tally) -> Result<(), ContentError> {
        check::touched(&self.ground, tally)
    }

    /// Checks what has not been of zones that are mapped, where chunks are checked at all: before all is saved again,
    /// with checksums of its own.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or somebody asked for it to be given up.
    pub fn check_rest(&self, tally: &dyn Tally) -> Result<(), ContentError> {
        check::rest(&self.ground, tally)
    }

    /// How far it is.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.ground.counters)
    }

    fn begin(&self) -> Vec<JoinHandle<()>> {
        let mut threads = Vec::new();
        if let Some(recorder) = &self.recorder {
            recorder.begin();
            let recorder = Arc::clone(recorder);
            threads.push(self.start("record-pages", move |_, switch| recorder.run(switch)));
        }
        match self.fill.lock().take() {
            Some((Fill::WorkingSet, ahead)) if !ahead.zones.is_empty() => {
                let work = move |ground: &Ground, switch: &Switch| fill::ahead(ground, switch, &ahead);
                threads.push(self.start("fill-memory", work));
            }
            Some((Fill::All { rate }, _)) => {
                let work = move |ground: &Ground, switch: &Switch| fill::all(ground, switch, rate);
                threads.push(self.start("fill-memory", work));
            }
            _ => {}
        }
        let started = threads.into_iter().filter_map(|thread| {
            thread
                .inspect_err(|error| log::warn!("memory is not filled or recorded: no thread: {error}"))
                .ok()
        });
        started.collect()
    }

    fn start(
        &self,
        name: &str,
        work: impl FnOnce(&Ground, &Switch) + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let (ground, switch) = (Arc::clone(&self.ground), Arc::clone(&self.switch));
        std::thread::Builder::new().name(name.to_owned()).spawn(move || work(&ground, &switch))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.switch.set(State::Stopped);
        let others = self.threads.get_mut().take().unwrap_or_default();
        for thread in self.checker.take().into_iter().chain(others) {
            // A panic aborts the process: there is nothing to learn from the result.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Background({:?})", self.ground.counters)
    }
}
