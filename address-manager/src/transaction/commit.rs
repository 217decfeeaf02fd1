//! How a transaction takes effect, or does not.

use std::{sync::Arc, time::Instant};

use thiserror::Error;

use super::{Staged, Transaction, ahead::Ahead};
use crate::{
    apply::{Applied, ApplyError, Step, UndoFailure},
    diff::diff,
    dispatch::Dispatch,
    listener::{ListenerId, WiringChange, WiringListener},
    manager::AddressManager,
    memory::{GuestMemoryView, view_of},
    report::{CommitReport, nanoseconds},
    slots::{self, KernelSlots, SlotChanges, TooManySlots},
};

/// Why a commit did not take effect.
#[derive(Debug, Error)]
pub enum CommitError {
    /// More slots are needed than there can be. Nothing was applied.
    #[error(transparent)]
    Slots(#[from] TooManySlots),
    /// A step failed.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// An earlier commit failed and could not be undone: what the kernel has is not known any more,
    /// so nothing more is changed.
    #[error("the wiring is damaged: {damage}")]
    Damaged {
        /// The failure that did it.
        damage: String,
    },
}

impl CommitError {
    /// What could not be undone. After this, every commit is refused.
    pub fn undo_failures(&self) -> &[UndoFailure] {
        match self {
            Self::Apply(error) => &error.undo_failures,
            Self::Slots(_) | Self::Damaged { .. } => &[],
        }
    }

    /// Adds what could not be undone afterwards. Of an error that has no place for it, it is in the log.
    fn also(&mut self, failures: Vec<UndoFailure>) {
        match self {
            Self::Apply(error) => error.undo_failures.extend(failures),
            Self::Slots(_) | Self::Damaged { .. } => {}
        }
    }
}

pub(super) fn commit(transaction: Transaction<'_>) -> Result<CommitReport, CommitError> {
    let Transaction { held, live: _, staged, label, begun } = transaction;
    let manager = held.manager();
    let commit = Commit { manager, begun: Instant::now() };
    let staging_ns = nanoseconds(begun);
    let report = CommitReport { label, staging_ns, ..CommitReport::default() };
    let ahead = held.take();
    let result = commit.run(staged.into_inner(), report, ahead.as_ref());
    result.map_err(|mut error| {
        let failures = ahead.map_or_else(Vec::new, |ahead| ahead.undo(manager));
        manager.note_damage(&failures);
        error.also(failures);
        manager.note_damage(error.undo_failures());
        manager.state.lock().totals.failed += 1;
        error
    })
}

/// A commit under way. There is one at a time: its caller holds the turn.
struct Commit<'m> {
    manager: &'m AddressManager,
    begun: Instant,
}

/// The tables that vCPUs and workers read.
struct Tables {
    dispatch: Option<Arc<Dispatch>>,
    memory: Option<Arc<GuestMemoryView>>,
}

/// A listener that was started, and with what.
struct Told {
    listener: Arc<dyn WiringListener>,
    change: WiringChange,
}

impl Commit<'_> {
    fn run(
        &self,
        staged: Staged,
        mut report: CommitReport,
        ahead: Option<&Ahead>,
    ) -> Result<CommitReport, CommitError> {
        let manager = self.manager;
        let (kernel, damage) = {
            let state = manager.state.lock();
            (Arc::clone(&state.kernel), state.damage.clone())
        };
        if let Some(damage) = damage {
            return Err(CommitError::Damaged { damage });
        }
        let Staged { base, wiring, windows, listeners: fresh, memory } = staged;

        let since = Instant::now();
        let told;
        let mut plan = diff(&base, &wiring, &kernel, manager.limits)?;
        let kernel = match (ahead, plan.slots_after.take()) {
            (Some(ahead), _) => {
                // Listeners are told how it differs from what is live; the kernel has a part of that.
                let (rest, after) =
                    slots::changes(&ahead.kernel, &slots::merge(wiring.slots()), manager.limits)?;
                told = after.since(&kernel);
                plan.slots = rest;
                report.operations.absorb(&ahead.operations);
                Arc::new(after)
            }
            (None, after) => {
                told = plan.slots.clone();
                after.map_or(kernel, Arc::new)
            }
        };
        report.diff_ns = nanoseconds(since);
        report.doorbells_late = wiring.late_doorbells() as u64;
        report.dispatch_entries = wiring.handlers.len() as u64;
        let after = Tables {
            dispatch: plan.handlers.then(|| Arc::new(Dispatch::new(&wiring))),
            memory: plan.memory.then(|| memory.unwrap_or_else(|| Arc::new(view_of(&wiring)))),
        };

        let applied = plan.apply(manager.ops(), &mut report)?;
        let before = self.publish(&after, &mut report);

        let mut listeners = manager.listeners.lock();
        if let Err(mut error) = self.tell(&told, &kernel, &listeners, &fresh, &before, &mut report) {
            error.undo_failures = self.go_back(applied, &before);
            return Err(CommitError::Apply(error));
        }
        listeners.extend(fresh);
        drop(plan);

        let mut state = manager.state.lock();
        report.sequence = state.totals.commits + 1;
        report.total_ns = nanoseconds(self.begun).saturating_add(ahead.map_or(0, |ahead| ahead.ns));
        let old = std::mem::replace(&mut state.wiring, Arc::new(wiring));
        state.windows = windows;
        state.kernel = kernel;
        state.record(&report);
        drop(state);
        drop(listeners);
        // May unmap memory, which takes long: not under a lock.
        drop((old, before));
        log::debug!("{report}");
        Ok(report)
    }

    /// Publishes the tables that differ; hands out those that were in their place.
    fn publish(&self, after: &Tables, report: &mut CommitReport) -> Tables {
        let since = Instant::now();
        let Tables { dispatch, memory } = after;
        let before = Tables {
            dispatch: dispatch.is_some().then(|| self.manager.dispatch.latest()),
            memory: Some(self.manager.memory.latest()),
        };
        self.put(after);
        let count = usize::from(dispatch.is_some()) + usize::from(memory.is_some());
        if count != 0 {
            report.operations.published.add(count, since);
        }
        before
    }

    fn put(&self, tables: &Tables) {
        if let Some(dispatch) = &tables.dispatch {
            self.manager.dispatch.publish(Arc::clone(dispatch));
        }
        if let Some(memory) = &tables.memory {
            self.manager.memory.publish(Arc::clone(memory));
        }
    }

    /// Tells all listeners, those of this transaction from scratch. Starts all, then finishes all;
    /// when one fails, has those that were started go back.
    fn tell(
        &self,
        changes: &SlotChanges,
        kernel: &KernelSlots,
        known: &[(ListenerId, Arc<dyn WiringListener>)],
        fresh: &[(ListenerId, Arc<dyn WiringListener>)],
        before: &Tables,
        report: &mut CommitReport,
    ) -> Result<(), ApplyError> {
        let since = Instant::now();
        let memory = self.manager.memory.latest();
        let memory_before = before.memory.as_ref().unwrap_or(&memory);
        let change_of = |listener: &dyn WiringListener, is_known| {
            if is_known {
                WiringChange::of(changes, &memory, memory_before, listener.interest())
            } else {
                WiringChange::whole(kernel, &memory, listener.interest())
            }
        };
        let known = known.iter().map(|(_, listener)| (listener, true));
        let all = known.chain(fresh.iter().map(|(_, listener)| (listener, false)));

        let mut told: Vec<Told> = Vec::new();
        let mut failure = None;
        for (listener, is_known) in all {
            let change = change_of(&**listener, is_known);
            if change.is_empty() {
                continue;
            }
            if let Err(error) = listener.start(&change) {
                failure = Some((Step::StartListener(listener.name().to_owned()), error));
                break;
            }
            told.push(Told { listener: Arc::clone(listener), change });
        }
        for Told { listener, .. } in &told {
            if let Err(error) = listener.finish() {
                let step = Step::FinishListener(listener.name().to_owned());
                if failure.is_some() {
                    log::error!("undoing a commit: cannot {step}: {error}");
                }
                failure.get_or_insert((step, error));
            }
        }
        if let Some((step, error)) = failure {
            for Told { listener, change } in told.iter().rev() {
                listener.undo(change);
            }
            return Err(ApplyError { step, source: error.into(), undo_failures: Vec::new() });
        }
        if !told.is_empty() {
            report.operations.listeners.add(told.len(), since);
        }
        Ok(())
    }

    fn go_back(&self, applied: Applied<'_, '_>, before: &Tables) -> Vec<UndoFailure> {
        self.put(before);
        applied.undo()
    }
}
