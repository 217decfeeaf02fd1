//! The difference of two wirings, as a [`Plan`] of kernel operations.
//!
//! Pure: values in, a value out. What is equal is not touched, whoever owns it by now: a change of
//! owner costs no call. [`apply`](crate::apply) says in which order a plan is carried out.

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

use hypervisor::Route as KernelRoute;

use crate::{
    slots::{self, KernelSlots, SlotChanges, SlotLimits, TooManySlots},
    wiring::{Arm, Doorbell, IrqEvent, Wiring},
};

/// The routing table, before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteChange {
    /// What the kernel has.
    pub before: Vec<KernelRoute>,
    /// What it should have.
    pub after: Vec<KernelRoute>,
}

/// What must be done to make the live wiring the staged one, and nothing more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan<'w> {
    /// Slots that go, come, or change their flags.
    pub slots: SlotChanges,
    /// The slots that the kernel has afterwards; `None` if they stay as they are.
    pub slots_after: Option<KernelSlots>,
    /// Irqfds that go.
    pub irqfds_removed: Vec<&'w IrqEvent>,
    /// Doorbells that go.
    pub doorbells_removed: Vec<&'w Doorbell>,
    /// The routing table, if its content differs.
    pub routes: Option<RouteChange>,
    /// Irqfds that come.
    pub irqfds_added: Vec<&'w IrqEvent>,
    /// Doorbells that come.
    pub doorbells_added: Vec<&'w Doorbell>,
    /// Whether the dispatch table differs.
    pub handlers: bool,
    /// Whether the memory that devices may reach differs, in what it shows and not in how it is tracked.
    pub memory: bool,
}

impl Plan<'_> {
    /// Whether the kernel need not be called.
    pub fn is_empty(&self) -> bool {
        self.calls() == 0
    }

    /// Number of kernel calls.
    pub fn calls(&self) -> usize {
        let SlotChanges { removed, added, reflagged } = &self.slots;
        removed.len()
            + added.len()
            + reflagged.len()
            + self.irqfds_removed.len()
            + self.doorbells_removed.len()
            + usize::from(self.routes.is_some())
            + self.irqfds_added.len()
            + self.doorbells_added.len()
    }
}

/// Compares the wiring that is live with the one that is staged. `kernel` is the slots that the
/// kernel has for the live one.
///
/// # Errors
/// The staged wiring needs more slots than there can be.
pub fn diff<'w>(
    live: &'w Wiring,
    staged: &'w Wiring,
    kernel: &KernelSlots,
    limits: SlotLimits,
) -> Result<Plan<'w>, TooManySlots> {
    let mut plan = Plan::default();

    if !Arc::ptr_eq(&live.slots, &staged.slots) {
        let (changes, after) = slots::changes(kernel, &slots::merge(staged.slots()), limits)?;
        plan.memory = !same_memory(live, staged);
        plan.slots = changes;
        plan.slots_after = Some(after);
    }

    if !Arc::ptr_eq(&live.irq_events, &staged.irq_events) {
        let same = |a: &IrqEvent, b: &IrqEvent| {
            let resample_same = match (&a.resample, &b.resample) {
                (None, None) => true,
                (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                _ => false,
            };
            Arc::ptr_eq(&a.event, &b.event) && resample_same
        };
        let all = |_: &IrqEvent| true;
        (plan.irqfds_removed, plan.irqfds_added) = compare(&live.irq_events, &staged.irq_events, all, same);
    }

    if !Arc::ptr_eq(&live.doorbells, &staged.doorbells) {
        let registered = |doorbell: &Doorbell| doorbell.arm == Arm::Now;
        let same = |a: &Doorbell, b: &Doorbell| Arc::ptr_eq(&a.event, &b.event);
        (plan.doorbells_removed, plan.doorbells_added) =
            compare(&live.doorbells, &staged.doorbells, registered, same);
    }

    if !Arc::ptr_eq(&live.routes, &staged.routes) {
        let targets = |wiring: &'w Wiring| wiring.routes().map(|route| (route.gsi, route.target));
        if !targets(live).eq(targets(staged)) {
            let table = |wiring: &'w Wiring| {
                targets(wiring).map(|(gsi, target)| KernelRoute { gsi, target }).collect()
            };
            plan.routes = Some(RouteChange { before: table(live), after: table(staged) });
        }
    }

    plan.handlers = !Arc::ptr_eq(&live.handlers, &staged.handlers) && !same_dispatch(live, staged);
    Ok(plan)
}

/// Whether every access is answered by the same handler in both.
fn same_dispatch(live: &Wiring, staged: &Wiring) -> bool {
    live.handlers.len() == staged.handlers.len()
        && live.handlers().zip(staged.handlers()).all(|(a, b)| {
            (a.space, a.base, a.size) == (b.space, b.base, b.size) && Arc::ptr_eq(&a.handler, &b.handler)
        })
}

/// Whether devices see the same memory in both.
fn same_memory(live: &Wiring, staged: &Wiring) -> bool {
    let (before, after) = (slots::merge_reachable(live.slots()), slots::merge_reachable(staged.slots()));
    before.len() == after.len() && before.iter().zip(&after).all(|(a, b)| a.same_backing(b))
}

/// Walks two maps side by side: what only `live` has or has otherwise, and what only `staged` has
/// or has otherwise. Pieces that are not `counted` are as if they were absent.
fn compare<'w, K: Ord, V>(
    live: &'w BTreeMap<K, V>,
    staged: &'w BTreeMap<K, V>,
    counted: impl Fn(&V) -> bool,
    same: impl Fn(&V, &V) -> bool,
) -> (Vec<&'w V>, Vec<&'w V>) {
    let (mut removed, mut added) = (Vec::new(), Vec::new());
    let mut live = live.iter().filter(|(_, value)| counted(value)).peekable();
    let mut staged = staged.iter().filter(|(_, value)| counted(value)).peekable();
    loop {
        let order = match (live.peek(), staged.peek()) {
            (None, None) => return (removed, added),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        let gone = if order.is_le() { live.next() } else { None };
        let come = if order.is_ge() { staged.next() } else { None };
        match (gone, come) {
            (Some((_, a)), Some((_, b))) if same(a, b) => {}
            (gone, come) => {
                removed.extend(gone.map(|(_, value)| value));
                added.extend(come.map(|(_, value)| value));
            }
        }
    }
}
