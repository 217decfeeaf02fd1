//! Keeps the table of one back end up to date.
//!
//! ```text
//!           start: another table is due             finish: taken
//!   at rest ------------------------------> sent -------------------> at rest, with the new table
//!                                            |
//!                                            | refused, or not in time
//!                                            v
//!                                 at rest, its table unknown --undo: the old one is sent--> at rest
//! ```

use std::{
    error::Error,
    fmt,
    sync::{
        Arc,
        mpsc::{self, Receiver},
    },
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{MemoryTable, MemoryTableBackend, MemoryTableError};
use crate::listener::{ListenerError, WiringChange, WiringListener};

/// Sends a back end the table of guest memory when a commit has changed that, and only then.
pub struct MemoryTableListener {
    backend: Arc<dyn MemoryTableBackend>,
    timeout: Duration,
    state: Mutex<State>,
}

struct State {
    /// What the back end has; none if that is not known.
    known: Option<MemoryTable>,
    sent: Option<Sent>,
    /// The thread of the last table that was sent: one that was late may still be at it.
    thread: Option<JoinHandle<()>>,
}

/// A table on its way.
struct Sent {
    table: MemoryTable,
    answer: Receiver<Result<(), Box<dyn Error + Send + Sync>>>,
    deadline: Instant,
}

impl MemoryTableListener {
    /// For a back end that has no memory yet. It must have taken a table over `timeout` after that was sent.
    pub fn new(backend: Arc<dyn MemoryTableBackend>, timeout: Duration) -> Arc<Self> {
        let state = State { known: Some(MemoryTable::default()), sent: None, thread: None };
        Arc::new(Self { backend, timeout, state: Mutex::new(state) })
    }

    /// Begins to send a table, unless it is the one that the back end has.
    fn send(&self, table: MemoryTable) -> Result<(), MemoryTableError> {
        self.check(&table)?;
        let mut state = self.state.lock();
        if state.known.as_ref() == Some(&table) {
            return Ok(());
        }
        let deadline = Instant::now() + self.timeout;
        let (tell, answer) = mpsc::channel();
        let (backend, sent, before) = (Arc::clone(&self.backend), table.clone(), state.thread.take());
        let thread = Builder::new().name("memory-table".into()).spawn(move || {
            // Of two tables, the back end has the later one in the end.
            if let Some(before) = before {
                let _ = before.join();
            }
            // Nobody listens any more if it is late.
            let _ = tell.send(backend.set_memory_table(&sent, deadline));
        });
        state.thread = Some(thread.map_err(MemoryTableError::Thread)?);
        state.known = None;
        state.sent = Some(Sent { table, answer, deadline });
        Ok(())
    }

    /// Waits for the table that was sent, if one was.
    fn wait(&self) -> Result<(), MemoryTableError> {
        let Some(Sent { table, answer, deadline }) = self.state.lock().sent.take() else { return Ok(()) };
        let left = deadline.saturating_duration_since(Instant::now());
        match answer.recv_timeout(left) {
            Ok(Ok(())) => {
                self.state.lock().known = Some(table);
                Ok(())
            }
            Ok(Err(source)) => Err(MemoryTableError::Refused(source)),
            Err(_) => Err(MemoryTableError::Late(self.timeout)),
        }
    }

    fn check(&self, table: &MemoryTable) -> Result<(), MemoryTableError> {
        let (regions, max) = (table.regions().len(), self.backend.max_regions());
        if regions > max {
            return Err(MemoryTableError::TooManyRegions { regions, max });
        }
        let own = table.regions().iter().find(|region| region.file.is_none());
        match own.filter(|_| self.backend.takes_files()) {
            Some(region) => Err(MemoryTableError::NotShared { guest_address: region.guest_address }),
            None => Ok(()),
        }
    }
}

impl WiringListener for MemoryTableListener {
    fn name(&self) -> &str {
        self.backend.name()
    }

    fn start(&self, change: &WiringChange) -> Result<(), ListenerError> {
        self.send(MemoryTable::of(&change.memory)).map_err(ListenerError::new)
    }

    fn finish(&self) -> Result<(), ListenerError> {
        self.wait().map_err(ListenerError::new)
    }

    fn undo(&self, change: &WiringChange) {
        let gone_back = self.send(MemoryTable::of(&change.memory_before)).and_then(|()| self.wait());
        if let Err(error) = gone_back {
            // What it has is not known, so the next commit that changes memory sends it the whole again.
            log::error!("{}: the old memory table: {error}", self.backend.name());
        }
    }
}

impl fmt::Debug for MemoryTableListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { backend, timeout, state: _ } = self;
        f.debug_struct("MemoryTableListener")
            .field("backend", &backend.name())
            .field("timeout", timeout)
            .finish_non_exhaustive()
    }
}
