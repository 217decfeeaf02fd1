//! The transaction: the only way to change wiring.
//!
//! It is a copy of the live wiring and windows that changes are staged on, and the right to put
//! that copy in the place of the live one. Staging is pure. Every method takes `&self`, so devices
//! that are restored on several threads stage into one transaction. Dropped without
//! [`commit`](Transaction::commit), it leaves nothing behind: nothing was applied, but for slots that were asked for
//! ahead ([`set_slots_ahead`](Transaction::set_slots_ahead)), and these go again.

mod ahead;
mod commit;

use std::{fmt, sync::Arc, time::Instant};

use hypervisor::IoSpace;
use parking_lot::Mutex;

use self::ahead::Held;
pub use self::commit::CommitError;
use crate::{
    listener::{ListenerId, WiringListener},
    manager::Turn,
    memory::{GuestMemoryView, view_of},
    report::CommitReport,
    slots,
    window::{Window, WindowError, Windows},
    wiring::{Conflict, Doorbell, HandlerRange, IrqEvent, Owner, Route, Slot, Wired, Wiring},
};

/// An open transaction. See the module's text.
pub struct Transaction<'m> {
    held: Held<'m>,
    live: Arc<Wiring>,
    staged: Mutex<Staged>,
    label: String,
    begun: Instant,
}

/// What takes effect at commit.
struct Staged {
    /// The live wiring, with what the kernel has of itself by then.
    base: Arc<Wiring>,
    wiring: Wiring,
    windows: Windows,
    listeners: Vec<(ListenerId, Arc<dyn WiringListener>)>,
    /// The view of the staged memory, from the first look on and until a slot changes.
    memory: Option<Arc<GuestMemoryView>>,
}

impl<'m> Transaction<'m> {
    pub(crate) fn open(turn: Turn<'m>, label: &str) -> Self {
        let state = turn.manager().state.lock();
        let live = Arc::clone(&state.wiring);
        let windows = state.windows.clone();
        drop(state);
        let staged = Staged {
            base: Arc::clone(&live),
            wiring: Wiring::clone(&live),
            windows,
            listeners: Vec::new(),
            memory: None,
        };
        let held = Held::new(turn);
        Self { held, live, staged: Mutex::new(staged), label: label.to_owned(), begun: Instant::now() }
    }

    fn change<R>(&self, change: impl FnOnce(&mut Wiring) -> R) -> R {
        change(&mut self.staged.lock().wiring)
    }

    /// The same for a change that may touch slots.
    fn change_memory<R>(&self, change: impl FnOnce(&mut Wiring) -> R) -> R {
        let mut staged = self.staged.lock();
        staged.memory = None;
        change(&mut staged.wiring)
    }

    /// The same for a change that touches slots only if `wired` has some.
    fn change_by<R>(&self, wired: [&Wired; 2], change: impl FnOnce(&mut Wiring) -> R) -> R {
        if wired.iter().all(|wired| wired.slots.is_empty()) {
            self.change(change)
        } else {
            self.change_memory(change)
        }
    }

    /// Stages all of `wired`.
    ///
    /// # Errors
    /// A piece is not accepted; nothing is staged then.
    pub fn add(&self, wired: &Wired) -> Result<(), Conflict> {
        self.change_by([wired, wired], |wiring| wiring.add(wired))
    }

    /// Takes all of `wired` away.
    ///
    /// # Errors
    /// A piece is not there; nothing is taken away then.
    pub fn remove(&self, wired: &Wired) -> Result<(), Conflict> {
        self.change_by([wired, wired], |wiring| wiring.remove(wired))
    }

    /// Puts `new` in the place of `old`, and hands `new` back.
    ///
    /// # Errors
    /// A piece of `old` is not there or one of `new` is not accepted; nothing is changed then.
    pub fn replace(&self, old: &Wired, new: Wired) -> Result<Wired, Conflict> {
        self.change_by([old, &new], |wiring| wiring.replace(old, &new)).map(|()| new)
    }

    /// Stages a slot.
    ///
    /// # Errors
    /// As [`Wiring::add_slot`].
    pub fn add_slot(&self, slot: Slot) -> Result<(), Conflict> {
        self.change_memory(|wiring| wiring.add_slot(slot))
    }

    /// Takes a slot away.
    ///
    /// # Errors
    /// As [`Wiring::remove_slot`].
    pub fn remove_slot(&self, slot: &Slot) -> Result<(), Conflict> {
        self.change_memory(|wiring| wiring.remove_slot(slot)).map(drop)
    }

    /// Stages a handler.
    ///
    /// # Errors
    /// As [`Wiring::add_handler`].
    pub fn add_handler(&self, range: HandlerRange) -> Result<(), Conflict> {
        self.change(|wiring| wiring.add_handler(range))
    }

    /// Takes a handler away.
    ///
    /// # Errors
    /// As [`Wiring::remove_handler`].
    pub fn remove_handler(&self, range: &HandlerRange) -> Result<(), Conflict> {
        self.change(|wiring| wiring.remove_handler(range)).map(drop)
    }

    /// Stages a doorbell.
    ///
    /// # Errors
    /// As [`Wiring::add_doorbell`].
    pub fn add_doorbell(&self, doorbell: Doorbell) -> Result<(), Conflict> {
        self.change(|wiring| wiring.add_doorbell(doorbell))
    }

    /// Takes a doorbell away.
    ///
    /// # Errors
    /// As [`Wiring::remove_doorbell`].
    pub fn remove_doorbell(&self, doorbell: &Doorbell) -> Result<(), Conflict> {
        self.change(|wiring| wiring.remove_doorbell(doorbell)).map(drop)
    }

    /// Stages a route of a GSI that has none.
    ///
    /// # Errors
    /// As [`Wiring::add_route`].
    pub fn add_route(&self, route: Route) -> Result<(), Conflict> {
        self.change(|wiring| wiring.add_route(route))
    }

    /// Takes over routes that the kernel has of itself when they are looked at: those that come with the interrupt
    /// controllers, which are made before the commit. From here on they are pieces like any other; if they stay as they are, no call is made for them.
    ///
    /// # Errors
    /// One of the GSIs leads elsewhere; none is taken over then.
    pub fn adopt_routes(&self, routes: Vec<Route>) -> Result<(), Conflict> {
        let adopted = Wired { routes, ..Wired::default() };
        let mut staged = self.staged.lock();
        let mut base = Wiring::clone(&staged.base);
        base.add(&adopted)?;
        staged.wiring.add(&adopted)?;
        staged.base = Arc::new(base);
        Ok(())
    }

    /// Leads a GSI somewhere else.
    ///
    /// # Errors
    /// As [`Wiring::set_route`].
    pub fn set_route(&self, route: Route) -> Result<(), Conflict> {
        self.change(|wiring| wiring.set_route(route))
    }

    /// Takes a route away.
    ///
    /// # Errors
    /// As [`Wiring::remove_route`].
    pub fn remove_route(&self, route: &Route) -> Result<(), Conflict> {
        self.change(|wiring| wiring.remove_route(route)).map(drop)
    }

    /// Stages an irqfd.
    ///
    /// # Errors
    /// As [`Wiring::add_irq_event`].
    pub fn add_irq_event(&self, event: IrqEvent) -> Result<(), Conflict> {
        self.change(|wiring| wiring.add_irq_event(event))
    }

    /// Takes an irqfd away.
    ///
    /// # Errors
    /// As [`Wiring::remove_irq_event`].
    pub fn remove_irq_event(&self, event: &IrqEvent) -> Result<(), Conflict> {
        self.change(|wiring| wiring.remove_irq_event(event)).map(drop)
    }

    /// Turns dirty tracking of main memory on or off, also for memory that is added later.
    pub fn track_dirty(&self, on: bool) {
        self.change_memory(|wiring| wiring.track_dirty(on));
    }

    /// Arms up to `limit` late doorbells; returns how many.
    pub fn arm_late(&self, limit: usize) -> usize {
        self.change(|wiring| wiring.arm_late(limit))
    }

    /// Gives out a range of a window.
    ///
    /// # Errors
    /// As [`Windows::allocate`].
    pub fn allocate(&self, window: Window, size: u64, align: u64, owner: &Owner) -> Result<u64, WindowError> {
        self.staged.lock().windows.allocate(window, size, align, owner)
    }

    /// Gives out a certain range of a window.
    ///
    /// # Errors
    /// As [`Windows::reserve`].
    pub fn reserve(&self, window: Window, base: u64, size: u64, owner: &Owner) -> Result<(), WindowError> {
        self.staged.lock().windows.reserve(window, base, size, owner)
    }

    /// Takes a range of a window back.
    ///
    /// # Errors
    /// As [`Windows::release`].
    pub fn release(&self, window: Window, base: u64, owner: &Owner) -> Result<(), WindowError> {
        self.staged.lock().windows.release(window, base, owner)
    }

    /// Adds a listener, which is told all of memory at commit. If the transaction does not take
    /// effect, it was never added.
    pub fn add_listener(&self, listener: Arc<dyn WiringListener>) -> ListenerId {
        let id = self.held.manager().new_listener_id();
        self.staged.lock().listeners.push((id, listener));
        id
    }

    /// The staged memory that devices may reach.
    pub fn memory(&self) -> Arc<GuestMemoryView> {
        let mut staged = self.staged.lock();
        let Staged { wiring, memory, .. } = &mut *staged;
        let made = memory.get_or_insert_with(|| {
            if Arc::ptr_eq(&wiring.slots, &self.live.slots) {
                self.held.manager().memory.latest()
            } else {
                Arc::new(view_of(wiring))
            }
        });
        Arc::clone(made)
    }

    /// The handler staged for an address.
    pub fn handler_at(&self, space: IoSpace, address: u64) -> Option<HandlerRange> {
        self.staged.lock().wiring.handler_at(space, address).cloned()
    }

    /// Address in this process of `len` bytes of staged guest-physical memory, if they are
    /// contiguous.
    pub fn host_address(&self, guest: u64, len: u64) -> Option<u64> {
        self.staged.lock().wiring.host_address(guest, len)
    }

    /// A copy of the staged wiring.
    pub fn wiring(&self) -> Wiring {
        self.staged.lock().wiring.clone()
    }

    /// Sets the slots that are staged so far, ahead of all else, so that whoever builds a machine can make its interrupt
    /// controllers and vCPUs while devices are still being staged. Each slot is set once all the same: the commit makes
    /// the calls that are left, and its report counts these as well. What is published stays as it is until then. If the
    /// transaction does not take effect, the slots go again.
    ///
    /// It is for guests that do not run: one that did would see memory of which its devices do not know yet.
    ///
    /// # Errors
    /// A call failed, or there are too many slots. The transaction is as before.
    pub fn set_slots_ahead(&self) -> Result<(), CommitError> {
        let wanted = slots::merge(self.staged.lock().wiring.slots());
        self.held.set_slots(&wanted)
    }

    /// Puts the staged wiring in the place of the live one: makes the calls that the difference
    /// needs, publishes, tells the listeners.
    ///
    /// # Errors
    /// A step failed. What was done is undone, and everything is as before `begin`.
    pub fn commit(self) -> Result<CommitReport, CommitError> {
        commit::commit(self)
    }
}

impl fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("label", &self.label).finish_non_exhaustive()
    }
}
