//! Those who keep a table of guest memory of their own: vhost and vhost-user back ends, VFIO and
//! vDPA DMA maps.
//!
//! A listener is told once a commit, with the whole difference, and only if something it cares for
//! differs. All listeners are started before the first is finished, so that back ends in other
//! processes work side by side.
//!
//! ```text
//!   start(change) --ok--> finish() --ok--> told
//!        |                   |
//!        | error: not told   | error       (or a later step of the commit fails)
//!        v                   v
//!      nothing to undo     undo(change)
//! ```

use std::{error::Error, sync::Arc};

use thiserror::Error;

use crate::{
    memory::GuestMemoryView,
    slots::{KernelSlots, MemoryRange, SlotChanges},
};

/// Is told what a commit changed. Must not call the address manager: a commit is under way.
pub trait WiringListener: Send + Sync {
    /// Who it is, for reports and errors.
    fn name(&self) -> &str;

    /// What it wants to be told, besides main memory and persistent memory.
    fn interest(&self) -> Interest {
        Interest::default()
    }

    /// Begins to take a change over, and does not wait for an answer that comes from elsewhere.
    ///
    /// # Errors
    /// It cannot. It then is as it was before.
    fn start(&self, change: &WiringChange) -> Result<(), ListenerError>;

    /// Waits until the change that was started is in effect. Every listener that was started is
    /// finished, even if another failed.
    ///
    /// # Errors
    /// It did not take effect.
    fn finish(&self) -> Result<(), ListenerError>;

    /// Goes back to how things were before `change`, which was started and finished, with whatever
    /// result.
    fn undo(&self, change: &WiringChange);
}

/// What a listener wants to be told. Main memory and persistent memory it is always told of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// Windows of devices, as a passed-through device's DMA may reach them.
    pub device_slots: bool,
    /// Slots whose dirty tracking is switched.
    pub tracking: bool,
}

/// Why a listener could not take a change over.
#[derive(Debug, Error)]
#[error(transparent)]
pub struct ListenerError(Box<dyn Error + Send + Sync>);

impl ListenerError {
    /// An error with this cause, or this text.
    pub fn new(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(cause.into())
    }
}

/// How guest memory differs. Ranges that are removed come before ranges that are added, which may
/// lie where they were.
#[derive(Clone, Debug)]
pub struct WiringChange {
    /// Ranges that are gone.
    pub removed: Vec<MemoryRange>,
    /// Ranges that are new.
    pub added: Vec<MemoryRange>,
    /// Ranges whose tracking was switched, with their new flags.
    pub reflagged: Vec<MemoryRange>,
    /// All memory that devices may reach, as it is now.
    pub memory: Arc<GuestMemoryView>,
    /// The same as it was.
    pub memory_before: Arc<GuestMemoryView>,
}

impl WiringChange {
    /// What a listener that has been told of all before is told.
    pub(crate) fn of(
        changes: &SlotChanges,
        memory: &Arc<GuestMemoryView>,
        memory_before: &Arc<GuestMemoryView>,
        interest: Interest,
    ) -> Self {
        let wanted = |range: &&MemoryRange| range.role.is_reachable() || interest.device_slots;
        let SlotChanges { removed, added, reflagged } = changes;
        let reflagged = reflagged.iter().filter(|_| interest.tracking).map(|(_, after)| &after.range);
        Self {
            removed: removed.iter().map(|slot| &slot.range).filter(wanted).cloned().collect(),
            added: added.iter().map(|slot| &slot.range).filter(wanted).cloned().collect(),
            reflagged: reflagged.filter(wanted).cloned().collect(),
            memory: Arc::clone(memory),
            memory_before: Arc::clone(memory_before),
        }
    }

    /// What a listener that has been told of nothing is told.
    pub(crate) fn whole(slots: &KernelSlots, memory: &Arc<GuestMemoryView>, interest: Interest) -> Self {
        let changes = SlotChanges { added: slots.iter().cloned().collect(), ..SlotChanges::default() };
        Self::of(&changes, memory, &Arc::default(), interest)
    }

    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty() && self.reflagged.is_empty()
    }
}

/// Names a listener that was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(pub(crate) u64);
