//! Carrying a [`Plan`] out on the hypervisor, step by step, and back again.
//!
//! The order:
//!
//! 1. slots that go, slots that come, slots whose flags change;
//! 2. irqfds that go, doorbells that go;
//! 3. the routing table, once, if it differs;
//! 4. irqfds that come (their GSIs lead somewhere now), doorbells that come.
//!
//! The first step, or a part of it, may have been done ahead of the rest ([`SlotCalls`]): a machine that is being built makes
//! its interrupt controllers and vCPUs after it, since a slot call that follows such a registration waits for a grace period.
//!
//! If a step fails, those before it are undone in reverse. Publication and listeners follow when
//! all of this is done; they are [`commit`](crate::transaction)'s.

use std::{fmt, time::Instant};

use hypervisor::{DoorbellSpec, HypervisorError, Irqfd, MemorySlot, Route, WiringOps, borrow_event};
use thiserror::Error;

use crate::{
    diff::Plan,
    listener::ListenerError,
    report::{CommitReport, OperationCount, Operations},
    slots::SlotChanges,
    wiring::{Doorbell, IrqEvent},
};

/// A step of a commit, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A slot is removed.
    RemoveSlot(MemorySlot),
    /// A slot is added.
    AddSlot(MemorySlot),
    /// A slot's flags are changed to these.
    SetSlotFlags(MemorySlot),
    /// An irqfd is disconnected.
    RemoveIrqfd {
        /// From this GSI.
        gsi: u32,
    },
    /// A doorbell is taken away.
    RemoveDoorbell(DoorbellSpec),
    /// The routing table is written.
    SetRoutes {
        /// With this many entries.
        entries: usize,
    },
    /// An irqfd is connected.
    AddIrqfd {
        /// To this GSI.
        gsi: u32,
    },
    /// A doorbell is registered.
    AddDoorbell(DoorbellSpec),
    /// A listener begins to take the change over.
    StartListener(String),
    /// A listener has taken the change over.
    FinishListener(String),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slot = |f: &mut fmt::Formatter<'_>, verb: &str, slot: &MemorySlot| {
            let MemorySlot { slot, guest_address, size, .. } = slot;
            write!(f, "{verb} slot {slot} ({guest_address:#x}+{size:#x})")
        };
        let doorbell = |f: &mut fmt::Formatter<'_>, verb: &str, spec: &DoorbellSpec| {
            write!(f, "{verb} doorbell {:#x} ({:?}, {} bytes)", spec.address, spec.space, spec.width)
        };
        match self {
            Self::RemoveSlot(memory) => slot(f, "remove", memory),
            Self::AddSlot(memory) => slot(f, "add", memory),
            Self::SetSlotFlags(memory) => slot(f, "change the flags of", memory),
            Self::RemoveIrqfd { gsi } => write!(f, "disconnect the irqfd of GSI {gsi}"),
            Self::RemoveDoorbell(spec) => doorbell(f, "remove", spec),
            Self::SetRoutes { entries } => write!(f, "write the routing table of {entries} entries"),
            Self::AddIrqfd { gsi } => write!(f, "connect the irqfd of GSI {gsi}"),
            Self::AddDoorbell(spec) => doorbell(f, "add", spec),
            Self::StartListener(name) => write!(f, "tell {name} of the change"),
            Self::FinishListener(name) => write!(f, "have {name} finish the change"),
        }
    }
}

/// A step that failed. What was done before it has been undone, but for `undo_failures`.
#[derive(Debug, Error)]
#[error("cannot {step}{}", remains(undo_failures))]
pub struct ApplyError {
    /// The step.
    pub step: Step,
    /// Why.
    #[source]
    pub source: StepError,
    /// What could not be undone.
    pub undo_failures: Vec<UndoFailure>,
}

/// Why a step failed.
#[derive(Debug, Error)]
pub enum StepError {
    /// The hypervisor refused.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// A listener refused.
    #[error(transparent)]
    Listener(#[from] ListenerError),
}

/// A step back that failed: the kernel keeps what the step before had done.
#[derive(Debug, Error)]
#[error("cannot {step} again")]
pub struct UndoFailure {
    /// The step back.
    pub step: Step,
    /// Why.
    #[source]
    pub source: HypervisorError,
}

/// The end of a message about a failure after which something remained.
pub(crate) fn remains(failures: &[UndoFailure]) -> String {
    match failures {
        [] => String::new(),
        [one] => format!(" (and then, going back, cannot {}: {})", one.step, one.source),
        [one, rest @ ..] => {
            let more = rest.len();
            format!(" (and then, going back, cannot {}: {}; and {more} more)", one.step, one.source)
        }
    }
}

/// A single call, and what it takes to go back.
#[derive(Clone, Copy, Debug)]
enum Action<'p> {
    RemoveSlot(MemorySlot),
    AddSlot(MemorySlot),
    SetSlotFlags { before: MemorySlot, after: MemorySlot },
    RemoveIrqfd(&'p IrqEvent),
    RemoveDoorbell(&'p Doorbell),
    SetRoutes { before: &'p [Route], after: &'p [Route] },
    AddIrqfd(&'p IrqEvent),
    AddDoorbell(&'p Doorbell),
}

impl Action<'_> {
    fn step(&self) -> Step {
        match *self {
            Self::RemoveSlot(slot) => Step::RemoveSlot(slot),
            Self::AddSlot(slot) => Step::AddSlot(slot),
            Self::SetSlotFlags { after, .. } => Step::SetSlotFlags(after),
            Self::RemoveIrqfd(event) => Step::RemoveIrqfd { gsi: event.gsi },
            Self::RemoveDoorbell(doorbell) => Step::RemoveDoorbell(doorbell.spec),
            Self::SetRoutes { after, .. } => Step::SetRoutes { entries: after.len() },
            Self::AddIrqfd(event) => Step::AddIrqfd { gsi: event.gsi },
            Self::AddDoorbell(doorbell) => Step::AddDoorbell(doorbell.spec),
        }
    }

    fn inverse(self) -> Self {
        match self {
            Self::RemoveSlot(slot) => Self::AddSlot(slot),
            Self::AddSlot(slot) => Self::RemoveSlot(slot),
            Self::SetSlotFlags { before, after } => Self::SetSlotFlags { before: after, after: before },
            Self::RemoveIrqfd(event) => Self::AddIrqfd(event),
            Self::RemoveDoorbell(doorbell) => Self::AddDoorbell(doorbell),
            Self::SetRoutes { before, after } => Self::SetRoutes { before: after, after: before },
            Self::AddIrqfd(event) => Self::RemoveIrqfd(event),
            Self::AddDoorbell(doorbell) => Self::RemoveDoorbell(doorbell),
        }
    }

    fn call(&self, ops: &dyn WiringOps) -> Result<(), HypervisorError> {
        match self {
            Self::RemoveSlot(slot) => ops.remove_slot(slot),
            Self::AddSlot(slot) => ops.set_slot(slot),
            Self::SetSlotFlags { after, .. } => ops.set_slot(after),
            Self::RemoveIrqfd(event) => ops.remove_irqfd(&irqfd(event)),
            Self::RemoveDoorbell(doorbell) => {
                ops.remove_doorbell(&doorbell.spec, borrow_event(&doorbell.event))
            }
            Self::SetRoutes { after, .. } => ops.set_routes(after),
            Self::AddIrqfd(event) => ops.add_irqfd(&irqfd(event)),
            Self::AddDoorbell(doorbell) => ops.add_doorbell(&doorbell.spec, borrow_event(&doorbell.event)),
        }
    }
}

fn irqfd(event: &IrqEvent) -> Irqfd<'_> {
    let resample = event.resample.as_deref().map(borrow_event);
    Irqfd { gsi: event.gsi, event: borrow_event(&event.event), resample }
}

impl<'w> Plan<'w> {
    /// Makes the calls, in the order of the module's text, and counts them in `report`.
    ///
    /// # Errors
    /// A step failed. What was done is undone.
    pub fn apply<'p>(
        &'p self,
        ops: &'p dyn WiringOps,
        report: &mut CommitReport,
    ) -> Result<Applied<'p, 'p>, ApplyError> {
        let mut applied = Applied { ops, done: Vec::with_capacity(self.calls()) };
        let done = applied
            .run_slots(&self.slots, &mut report.operations)
            .and_then(|()| self.apply_signals(&mut applied, report));
        match done {
            Ok(()) => Ok(applied),
            Err(mut error) => {
                error.undo_failures = applied.undo();
                Err(error)
            }
        }
    }

    fn apply_signals<'p>(
        &'p self,
        applied: &mut Applied<'_, 'p>,
        report: &mut CommitReport,
    ) -> Result<(), ApplyError> {
        let counts = &mut report.operations;
        let gone = self.irqfds_removed.iter().map(|event| Action::RemoveIrqfd(event));
        applied.run(&mut counts.irqfds_removed, gone)?;
        let gone = self.doorbells_removed.iter().map(|doorbell| Action::RemoveDoorbell(doorbell));
        applied.run(&mut counts.doorbells_removed, gone)?;
        let table = self.routes.iter().map(|routes| Action::SetRoutes {
            before: routes.before.as_slice(),
            after: routes.after.as_slice(),
        });
        applied.run(&mut counts.routing_writes, table)?;
        report.routing_entries = self.routes.as_ref().map_or(0, |routes| routes.after.len() as u64);
        let come = self.irqfds_added.iter().map(|event| Action::AddIrqfd(event));
        applied.run(&mut counts.irqfds_added, come)?;
        let come = self.doorbells_added.iter().map(|doorbell| Action::AddDoorbell(doorbell));
        applied.run(&mut counts.doorbells_added, come)
    }
}

/// The calls that were made, so that they can be undone.
#[must_use = "a later step may fail, and then this has to be undone"]
pub struct Applied<'o, 'p> {
    ops: &'o dyn WiringOps,
    done: Vec<Action<'p>>,
}

impl<'p> Applied<'_, 'p> {
    /// Makes the calls that change slots.
    fn run_slots(&mut self, changes: &SlotChanges, counts: &mut Operations) -> Result<(), ApplyError> {
        let removed = changes.removed.iter().map(|slot| Action::RemoveSlot(slot.memory_slot()));
        self.run(&mut counts.slots_removed, removed)?;
        let added = changes.added.iter().map(|slot| Action::AddSlot(slot.memory_slot()));
        self.run(&mut counts.slots_added, added)?;
        let reflagged = changes.reflagged.iter().map(|(before, after)| Action::SetSlotFlags {
            before: before.memory_slot(),
            after: after.memory_slot(),
        });
        self.run(&mut counts.slot_flags, reflagged)
    }

    /// Makes calls of one kind.
    fn run(
        &mut self,
        count: &mut OperationCount,
        actions: impl ExactSizeIterator<Item = Action<'p>>,
    ) -> Result<(), ApplyError> {
        let calls = actions.len();
        if calls == 0 {
            return Ok(());
        }
        let since = Instant::now();
        for action in actions {
            if let Err(source) = action.call(self.ops) {
                let source = source.into();
                return Err(ApplyError { step: action.step(), source, undo_failures: Vec::new() });
            }
            self.done.push(action);
        }
        count.add(calls, since);
        Ok(())
    }

    /// Undoes the calls in reverse. Goes on after a failure, so that as little as possible remains;
    /// hands out what did.
    pub fn undo(self) -> Vec<UndoFailure> {
        let mut failures = Vec::new();
        for action in self.done.into_iter().rev() {
            let back = action.inverse();
            if let Err(source) = back.call(self.ops) {
                log::error!("undoing a commit: cannot {}: {source}", back.step());
                failures.push(UndoFailure { step: back.step(), source });
            }
        }
        failures
    }
}

/// Calls that changed slots and can be undone, without what they were made on.
#[derive(Debug, Default)]
pub struct SlotCalls {
    done: Vec<Action<'static>>,
}

impl SlotCalls {
    /// Makes those that `changes` needs, after the ones that were made before, and counts them.
    ///
    /// # Errors
    /// One failed. Those of `changes` are undone, and the others stay.
    pub fn make(
        &mut self,
        changes: &SlotChanges,
        ops: &dyn WiringOps,
        counts: &mut Operations,
    ) -> Result<(), ApplyError> {
        let mut applied = Applied { ops, done: Vec::new() };
        let before = *counts;
        match applied.run_slots(changes, counts) {
            Ok(()) => {
                self.done.append(&mut applied.done);
                Ok(())
            }
            Err(mut error) => {
                *counts = before;
                error.undo_failures = applied.undo();
                Err(error)
            }
        }
    }

    /// Undoes all of them in reverse; hands out what could not be undone.
    pub fn undo(self, ops: &dyn WiringOps) -> Vec<UndoFailure> {
        Applied { ops, done: self.done }.undo()
    }
}

impl fmt::Debug for Applied<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Applied").field("done", &self.done).finish_non_exhaustive()
    }
}
