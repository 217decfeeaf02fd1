//! The address manager: who holds the live wiring, and hands out the transaction that changes it.

use std::{
    collections::VecDeque,
    fmt,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use hypervisor::{Vm, WiringOps};
use parking_lot::{Condvar, Mutex};

use crate::{
    apply::UndoFailure,
    dispatch::{Dispatch, Dispatcher},
    listener::{ListenerError, ListenerId, WiringChange, WiringListener},
    memory::{GuestMemoryView, MemoryHandle},
    publish::Publication,
    report::{CommitReport, CommitTotals},
    slots::{KernelSlots, SlotLimits},
    transaction::Transaction,
    window::Windows,
    wiring::Wiring,
};

/// Reports that are kept.
const REPORTS_KEPT: usize = 64;

/// Owns the wiring of one VM. See the [crate's text](crate).
pub struct AddressManager {
    vm: Arc<dyn Vm>,
    pub(crate) limits: SlotLimits,
    pub(crate) dispatch: Arc<Publication<Dispatch>>,
    pub(crate) memory: Arc<Publication<GuestMemoryView>>,
    /// Held by a commit while it tells the listeners and until the new wiring is live, so that a
    /// listener that is added meanwhile is told exactly what it has not seen.
    pub(crate) listeners: Mutex<Vec<(ListenerId, Arc<dyn WiringListener>)>>,
    next_listener: AtomicU64,
    pub(crate) state: Mutex<State>,
    gate: Gate,
}

/// What a commit replaces. Locked for moments only.
pub(crate) struct State {
    pub(crate) wiring: Arc<Wiring>,
    pub(crate) windows: Windows,
    pub(crate) kernel: Arc<KernelSlots>,
    reports: VecDeque<CommitReport>,
    pub(crate) totals: CommitTotals,
    /// Set when a commit could not be undone: the kernel no longer has what `wiring` says.
    pub(crate) damage: Option<String>,
}

impl State {
    pub(crate) fn record(&mut self, report: &CommitReport) {
        self.totals.absorb(report);
        if self.reports.len() == REPORTS_KEPT {
            self.reports.pop_front();
        }
        self.reports.push_back(report.clone());
    }
}

impl AddressManager {
    /// The manager of a VM that has no wiring yet. `max_slots` is the hypervisor's limit; `windows`
    /// is what ranges are given out of.
    pub fn new(vm: Arc<dyn Vm>, max_slots: u32, windows: Windows) -> Arc<Self> {
        Arc::new(Self {
            vm,
            limits: SlotLimits::kvm(max_slots),
            dispatch: Publication::new(Dispatch::default()),
            memory: Publication::new(GuestMemoryView::default()),
            listeners: Mutex::default(),
            next_listener: AtomicU64::new(0),
            state: Mutex::new(State {
                wiring: Arc::default(),
                windows,
                kernel: Arc::default(),
                reports: VecDeque::new(),
                totals: CommitTotals::default(),
                damage: None,
            }),
            gate: Gate::default(),
        })
    }

    /// Opens a transaction. There is one at a time: waits until the one that is open was committed
    /// or dropped. A thread that has one open must not open another.
    pub fn begin(&self) -> Transaction<'_> {
        self.begin_labelled("wiring")
    }

    /// The same, with a word for the report on what it is for.
    pub fn begin_labelled(&self, label: &str) -> Transaction<'_> {
        Transaction::open(Turn::take(ManagerRef::Borrowed(self)), label)
    }

    /// The same, for those who keep the transaction for long: a machine that is being prepared
    /// while its state is still on the way.
    pub fn begin_owned(self: &Arc<Self>, label: &str) -> Transaction<'static> {
        Transaction::open(Turn::take(ManagerRef::Owned(Arc::clone(self))), label)
    }

    /// A vCPU's view of the live handlers.
    pub fn dispatcher(&self) -> Dispatcher {
        Dispatcher::new(&self.dispatch)
    }

    /// The live memory that devices may reach.
    pub fn memory(&self) -> MemoryHandle {
        MemoryHandle::new(Arc::clone(&self.memory))
    }

    /// The live wiring.
    pub fn live(&self) -> Arc<Wiring> {
        Arc::clone(&self.state.lock().wiring)
    }

    /// The live windows.
    pub fn windows(&self) -> Windows {
        self.state.lock().windows.clone()
    }

    /// The memory slots that the kernel has: number, first guest-physical address, length.
    pub fn slot_numbers(&self) -> Vec<(u32, u64, u64)> {
        let kernel = Arc::clone(&self.state.lock().kernel);
        kernel.iter().map(|slot| (slot.number, slot.range.base, slot.range.size)).collect()
    }

    /// Adds a listener, and tells it all of the live memory at once. A device whose memory is staged
    /// uses [`Transaction::add_listener`]. Not to be called by a listener.
    ///
    /// # Errors
    /// The listener could not take it over; it is not added.
    pub fn add_listener(&self, listener: Arc<dyn WiringListener>) -> Result<ListenerId, ListenerError> {
        let mut listeners = self.listeners.lock();
        let kernel = Arc::clone(&self.state.lock().kernel);
        let change = WiringChange::whole(&kernel, &self.memory.latest(), listener.interest());
        if !change.is_empty() {
            listener.start(&change)?;
            if let Err(error) = listener.finish() {
                listener.undo(&change);
                return Err(error);
            }
        }
        let id = self.new_listener_id();
        listeners.push((id, listener));
        Ok(id)
    }

    /// Removes a listener. It is told nothing. Not to be called by a listener.
    pub fn remove_listener(&self, id: ListenerId) {
        self.listeners.lock().retain(|(there, _)| *there != id);
    }

    /// Reports of the last commits, oldest first: at most 64.
    pub fn reports(&self) -> Vec<CommitReport> {
        self.state.lock().reports.iter().cloned().collect()
    }

    /// What all commits did together.
    pub fn totals(&self) -> CommitTotals {
        self.state.lock().totals.clone()
    }

    /// Remembers that something could not be undone, if so.
    pub(crate) fn note_damage(&self, failures: &[UndoFailure]) {
        if let Some(first) = failures.first() {
            let damage = format!("an earlier commit cannot {} while going back", first.step);
            self.state.lock().damage = Some(damage);
        }
    }

    pub(crate) fn ops(&self) -> &dyn WiringOps {
        self.vm.wiring()
    }

    pub(crate) fn new_listener_id(&self) -> ListenerId {
        ListenerId(self.next_listener.fetch_add(1, Ordering::Relaxed))
    }
}

impl fmt::Debug for AddressManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressManager").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// Lets one transaction through at a time. Unlike a lock's guard, a [`Turn`] can go from one thread
/// to another together with its transaction.
#[derive(Default)]
struct Gate {
    taken: Mutex<bool>,
    left: Condvar,
}

/// How a transaction holds its manager.
pub(crate) enum ManagerRef<'m> {
    Borrowed(&'m AddressManager),
    Owned(Arc<AddressManager>),
}

impl Deref for ManagerRef<'_> {
    type Target = AddressManager;

    fn deref(&self) -> &AddressManager {
        match self {
            Self::Borrowed(manager) => manager,
            Self::Owned(manager) => manager,
        }
    }
}

/// The right to change the wiring, until dropped.
pub(crate) struct Turn<'m> {
    manager: ManagerRef<'m>,
}

impl<'m> Turn<'m> {
    fn take(manager: ManagerRef<'m>) -> Self {
        let mut taken = manager.gate.taken.lock();
        while *taken {
            manager.gate.left.wait(&mut taken);
        }
        *taken = true;
        drop(taken);
        Self { manager }
    }

    pub(crate) fn manager(&self) -> &AddressManager {
        &self.manager
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.manager.gate.taken.lock() = false;
        self.manager.gate.left.notify_one();
    }
}
