//! Slots that are set while the rest of a transaction is still being staged.

use std::{sync::Arc, time::Instant};

use parking_lot::Mutex;

use super::CommitError;
use crate::{
    apply::{SlotCalls, UndoFailure},
    manager::{AddressManager, Turn},
    report::{Operations, nanoseconds},
    slots::{self, KernelSlots, MemoryRange},
};

/// The right to change the wiring, and what has been changed of it already. Dropped, it goes back to what was before.
pub(super) struct Held<'m> {
    turn: Turn<'m>,
    ahead: Mutex<Option<Ahead>>,
}

/// What was done ahead of the commit.
pub(super) struct Ahead {
    /// The slots that the kernel has now. Their memory stays mapped as long as it has them.
    pub(super) kernel: Arc<KernelSlots>,
    /// How often, and how long it took.
    pub(super) operations: Operations,
    /// The time of all of it, in nanoseconds.
    pub(super) ns: u64,
    calls: SlotCalls,
}

impl Ahead {
    /// Goes back; hands out what could not be undone.
    pub(super) fn undo(self, manager: &AddressManager) -> Vec<UndoFailure> {
        self.calls.undo(manager.ops())
    }
}

impl<'m> Held<'m> {
    pub(super) fn new(turn: Turn<'m>) -> Self {
        Self { turn, ahead: Mutex::default() }
    }

    pub(super) fn manager(&self) -> &AddressManager {
        self.turn.manager()
    }

    /// What was done ahead; whoever takes it answers for it.
    pub(super) fn take(&self) -> Option<Ahead> {
        self.ahead.lock().take()
    }

    /// Gives the kernel the slots that show `wanted`.
    pub(super) fn set_slots(&self, wanted: &[MemoryRange]) -> Result<(), CommitError> {
        let since = Instant::now();
        let manager = self.manager();
        let (kernel, damage) = {
            let state = manager.state.lock();
            (Arc::clone(&state.kernel), state.damage.clone())
        };
        if let Some(damage) = damage {
            return Err(CommitError::Damaged { damage });
        }
        let mut held = self.ahead.lock();
        let kernel = held.as_ref().map_or(kernel, |ahead| Arc::clone(&ahead.kernel));
        let (changes, after) = slots::changes(&kernel, wanted, manager.limits)?;
        let (mut calls, mut operations, before) = match held.take() {
            Some(Ahead { calls, operations, ns, .. }) => (calls, operations, ns),
            None => (SlotCalls::default(), Operations::default(), 0),
        };
        let made = calls.make(&changes, manager.ops(), &mut operations);
        let ns = before.saturating_add(nanoseconds(since));
        // What this call did is undone if it failed; what an earlier one did stays.
        let kernel = if made.is_ok() { Arc::new(after) } else { kernel };
        *held = Some(Ahead { kernel, operations, ns, calls });
        drop(held);
        made.map_err(|error| {
            let error = CommitError::Apply(error);
            manager.note_damage(error.undo_failures());
            error
        })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(ahead) = self.ahead.get_mut().take() {
            let failures = ahead.undo(self.turn.manager());
            self.turn.manager().note_damage(&failures);
        }
    }
}
