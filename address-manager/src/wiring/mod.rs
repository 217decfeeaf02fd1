//! The wiring as plain data: what is wired where, and to whom it belongs.
//!
//! A [`Wiring`] is a value. Changing it checks for overlap and touches nothing else: no system
//! call, no lock, no clock. [`Transaction`](crate::Transaction) stages changes on a copy of the
//! live one, and [`diff`](crate::diff) compares two of them.

mod check;
mod conflict;
mod piece;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
};

use hypervisor::{DoorbellSpec, IoSpace, RouteTarget, SlotFlags};

use self::conflict::{absent, taken};
pub use self::{
    conflict::Conflict,
    piece::{Arm, Doorbell, HandlerRange, IrqEvent, Owner, PAGE_SIZE, Route, Slot, SlotRole, Wired},
};

/// Where every address, doorbell and interrupt of the guest leads. Ordered and comparable.
///
/// Each kind of piece is a map behind an `Arc`: a clone costs a few counters, the first change of a
/// kind copies its map, and a kind that was not touched is known to be equal without a look inside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wiring {
    pub(crate) slots: Arc<BTreeMap<u64, Slot>>,
    pub(crate) handlers: Arc<BTreeMap<(IoSpace, u64), HandlerRange>>,
    pub(crate) doorbells: Arc<BTreeMap<DoorbellSpec, Doorbell>>,
    pub(crate) routes: Arc<BTreeMap<RouteKey, Route>>,
    pub(crate) irq_events: Arc<BTreeMap<IrqEventKey, IrqEvent>>,
    /// GSI of each irqfd, by descriptor: an eventfd raises one GSI.
    irq_gsis: Arc<BTreeMap<RawFd, u32>>,
    /// Whether main memory is tracked, so that memory added later is too.
    tracking: bool,
}

/// GSI, and the controller it leads to: a GSI leads to one message, or to one pin of each
/// in-kernel controller (on x86, GSI 0 to 15 lead to the 8259s and to the IOAPIC).
pub(crate) type RouteKey = (u32, u32);

/// GSI and descriptor. The descriptor is a number that stays as long as the eventfd is wired, and
/// so an order that does not depend on where things lie in memory.
pub(crate) type IrqEventKey = (u32, RawFd);

fn route_key(route: &Route) -> RouteKey {
    match route.target {
        RouteTarget::Msi(_) => (route.gsi, 0),
        RouteTarget::Irqchip { chip, .. } => (route.gsi, chip.saturating_add(1)),
    }
}

fn routes_of(gsi: u32) -> RangeInclusive<RouteKey> {
    (gsi, 0)..=(gsi, u32::MAX)
}

fn irq_key(event: &IrqEvent) -> IrqEventKey {
    (event.gsi, event.event.as_raw_fd())
}

/// Tracking is switched for all of main memory at once, behind the back of whoever added a slot.
fn same_but_tracking(there: &Slot, named: &Slot) -> bool {
    let flags = (there.flags - SlotFlags::LOG_DIRTY) | (named.flags & SlotFlags::LOG_DIRTY);
    *named == Slot { flags, ..there.clone() }
}

impl Wiring {
    /// Slots by guest-physical address.
    pub fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.values()
    }

    /// Handlers by space and address.
    pub fn handlers(&self) -> impl Iterator<Item = &HandlerRange> {
        self.handlers.values()
    }

    /// Doorbells by space and address.
    pub fn doorbells(&self) -> impl Iterator<Item = &Doorbell> {
        self.doorbells.values()
    }

    /// Routes by GSI.
    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.values()
    }

    /// Irqfds by GSI.
    pub fn irq_events(&self) -> impl Iterator<Item = &IrqEvent> {
        self.irq_events.values()
    }

    /// All pieces in one value.
    pub fn pieces(&self) -> Wired {
        Wired {
            slots: self.slots().cloned().collect(),
            handlers: self.handlers().cloned().collect(),
            doorbells: self.doorbells().cloned().collect(),
            routes: self.routes().cloned().collect(),
            irq_events: self.irq_events().cloned().collect(),
        }
    }

    /// The handler whose range holds an address.
    pub fn handler_at(&self, space: IoSpace, address: u64) -> Option<&HandlerRange> {
        let below = self.handlers.range((space, 0)..=(space, address)).next_back();
        below.map(|(_, range)| range).filter(|range| address < range.end())
    }

    /// Address in this process of `len` bytes of guest-physical memory, if they lie in slots that
    /// show one stretch of host memory.
    pub fn host_address(&self, guest: u64, len: u64) -> Option<u64> {
        let end = guest.checked_add(len)?;
        let (_, first) = self.slots.range(..=guest).next_back()?;
        if guest >= first.end() {
            return None;
        }
        let host = first.host_address().checked_add(guest - first.base)?;
        let mut covered = first.end();
        while covered < end {
            let next = self.slots.get(&covered)?;
            if next.host_address() != host.checked_add(covered - guest)? {
                return None;
            }
            covered = next.end();
        }
        Some(host)
    }

    /// Adds a slot. One of main memory is tracked if the others are.
    ///
    /// # Errors
    /// It is misaligned, empty, beyond its mapping, or overlaps a slot or an MMIO handler.
    pub fn add_slot(&mut self, mut slot: Slot) -> Result<(), Conflict> {
        self.check_slot(&slot)?;
        if self.tracking && slot.role == SlotRole::Ram {
            slot.flags |= SlotFlags::LOG_DIRTY;
        }
        Arc::make_mut(&mut self.slots).insert(slot.base, slot);
        Ok(())
    }

    /// Removes a slot equal to `slot` in everything but its tracking flag, and hands it out.
    ///
    /// # Errors
    /// There is none.
    pub fn remove_slot(&mut self, slot: &Slot) -> Result<Slot, Conflict> {
        let there = self.slots.get(&slot.base).is_some_and(|there| same_but_tracking(there, slot));
        let taken = if there { Arc::make_mut(&mut self.slots).remove(&slot.base) } else { None };
        taken.ok_or_else(|| absent(format!("slot {:#x}+{:#x}", slot.base, slot.size), &slot.owner))
    }

    /// Turns dirty tracking of main memory on or off, for the slots there are and those to come.
    pub fn track_dirty(&mut self, on: bool) {
        self.tracking = on;
        let differs =
            |slot: &Slot| slot.role == SlotRole::Ram && slot.flags.contains(SlotFlags::LOG_DIRTY) != on;
        if self.slots.values().any(differs) {
            for slot in Arc::make_mut(&mut self.slots).values_mut().filter(|slot| differs(slot)) {
                slot.flags.set(SlotFlags::LOG_DIRTY, on);
            }
        }
    }

    /// Adds a handler.
    ///
    /// # Errors
    /// It is empty, beyond its address space, or overlaps a handler or a slot.
    pub fn add_handler(&mut self, range: HandlerRange) -> Result<(), Conflict> {
        self.check_handler(&range)?;
        Arc::make_mut(&mut self.handlers).insert((range.space, range.base), range);
        Ok(())
    }

    /// Removes a handler equal to `range`, and hands it out.
    ///
    /// # Errors
    /// There is none.
    pub fn remove_handler(&mut self, range: &HandlerRange) -> Result<HandlerRange, Conflict> {
        let key = (range.space, range.base);
        let there = self.handlers.get(&key) == Some(range);
        let taken = if there { Arc::make_mut(&mut self.handlers).remove(&key) } else { None };
        taken.ok_or_else(|| absent(format!("handler {:#x}+{:#x}", range.base, range.size), &range.owner))
    }

    /// Adds a doorbell.
    ///
    /// # Errors
    /// It is of a width that no write has, or a write would ring two doorbells.
    pub fn add_doorbell(&mut self, doorbell: Doorbell) -> Result<(), Conflict> {
        self.check_doorbell(&doorbell)?;
        Arc::make_mut(&mut self.doorbells).insert(doorbell.spec, doorbell);
        Ok(())
    }

    /// Removes a doorbell with the write and the eventfd of `doorbell`, armed or not, and hands it
    /// out.
    ///
    /// # Errors
    /// There is none.
    pub fn remove_doorbell(&mut self, doorbell: &Doorbell) -> Result<Doorbell, Conflict> {
        let spec = &doorbell.spec;
        let there = self.doorbells.get(spec).is_some_and(|there| Arc::ptr_eq(&there.event, &doorbell.event));
        let taken = if there { Arc::make_mut(&mut self.doorbells).remove(spec) } else { None };
        taken.ok_or_else(|| absent(format!("doorbell {:#x}", spec.address), &doorbell.owner))
    }

    /// Arms up to `limit` late doorbells, in address order; returns how many it armed.
    pub fn arm_late(&mut self, limit: usize) -> usize {
        if limit == 0 || self.late_doorbells() == 0 {
            return 0;
        }
        let late =
            Arc::make_mut(&mut self.doorbells).values_mut().filter(|doorbell| doorbell.arm == Arm::Late);
        late.take(limit).map(|doorbell| doorbell.arm = Arm::Now).count()
    }

    /// Number of doorbells that are not registered with the kernel.
    pub fn late_doorbells(&self) -> usize {
        self.doorbells.values().filter(|doorbell| doorbell.arm == Arm::Late).count()
    }

    /// Adds a route: a message for a GSI that leads nowhere, or a pin of a controller to which the
    /// GSI does not lead.
    ///
    /// # Errors
    /// The GSI leads elsewhere.
    pub fn add_route(&mut self, route: Route) -> Result<(), Conflict> {
        let key = route_key(&route);
        let collides = |there: &&RouteKey| there.1 == 0 || key.1 == 0 || **there == key;
        let there = self.routes.range(routes_of(route.gsi)).find(|(there, _)| collides(there));
        if let Some((_, there)) = there {
            return Err(taken(format!("route of GSI {}", route.gsi), &route.owner, &there.owner));
        }
        Arc::make_mut(&mut self.routes).insert(key, route);
        Ok(())
    }

    /// Leads a GSI somewhere else, or somewhere at all. Only its owner may. A message takes the
    /// place of all that the GSI led to; a pin takes the place of a message, or of another pin of
    /// its controller.
    ///
    /// # Errors
    /// The GSI belongs to another owner.
    pub fn set_route(&mut self, route: Route) -> Result<(), Conflict> {
        let key = route_key(&route);
        let there = || self.routes.range(routes_of(route.gsi));
        if let Some((_, other)) = there().find(|(_, there)| there.owner != route.owner) {
            return Err(taken(format!("route of GSI {}", route.gsi), &route.owner, &other.owner));
        }
        if self.routes.get(&key) == Some(&route) {
            return Ok(());
        }
        let replaced = |there: &RouteKey| *there != key && (there.1 == 0 || key.1 == 0);
        let gone: Vec<RouteKey> = there().map(|(there, _)| *there).filter(replaced).collect();
        let routes = Arc::make_mut(&mut self.routes);
        for there in &gone {
            routes.remove(there);
        }
        routes.insert(key, route);
        Ok(())
    }

    /// Removes the route of `route.gsi` to the controller of `route`, wherever it leads by now, if
    /// it belongs to `route.owner`, and hands it out.
    ///
    /// # Errors
    /// The GSI has no such route of that owner.
    pub fn remove_route(&mut self, route: &Route) -> Result<Route, Conflict> {
        let key = self.route_now(route);
        let there = self.routes.get(&key).is_some_and(|there| there.owner == route.owner);
        let taken = if there { Arc::make_mut(&mut self.routes).remove(&key) } else { None };
        taken.ok_or_else(|| absent(format!("route of GSI {}", route.gsi), &route.owner))
    }

    /// The key that a route has now, when [`set_route`](Self::set_route) may have made a message of
    /// a pin or a pin of a message.
    fn route_now(&self, route: &Route) -> RouteKey {
        let key = route_key(route);
        let mut there = self.routes.range(routes_of(route.gsi)).map(|(key, _)| *key);
        match (self.routes.contains_key(&key), there.next(), there.next()) {
            (false, Some(only), None) if only.1 == 0 || key.1 == 0 => only,
            _ => key,
        }
    }

    /// Adds an irqfd.
    ///
    /// # Errors
    /// That eventfd raises a GSI already.
    pub fn add_irq_event(&mut self, event: IrqEvent) -> Result<(), Conflict> {
        self.check_irq_event(&event)?;
        self.put_irq_event(event);
        Ok(())
    }

    /// Removes an irqfd equal to `event`, and hands it out.
    ///
    /// # Errors
    /// There is none.
    pub fn remove_irq_event(&mut self, event: &IrqEvent) -> Result<IrqEvent, Conflict> {
        let key = irq_key(event);
        let taken = if self.irq_events.get(&key) == Some(event) {
            Arc::make_mut(&mut self.irq_gsis).remove(&key.1);
            Arc::make_mut(&mut self.irq_events).remove(&key)
        } else {
            None
        };
        taken.ok_or_else(|| absent(format!("irqfd of GSI {}", event.gsi), &event.owner))
    }

    fn put_irq_event(&mut self, event: IrqEvent) {
        let key = irq_key(&event);
        Arc::make_mut(&mut self.irq_gsis).insert(key.1, key.0);
        Arc::make_mut(&mut self.irq_events).insert(key, event);
    }

    /// Adds all of `wired`, or nothing.
    ///
    /// # Errors
    /// The first piece that is not accepted.
    pub fn add(&mut self, wired: &Wired) -> Result<(), Conflict> {
        let mut added = 0;
        let result = self.add_each(wired, &mut added);
        if result.is_err() {
            self.take_away(wired, added);
        }
        result
    }

    /// Removes all of `wired`, or nothing.
    ///
    /// # Errors
    /// The first piece that is not there.
    pub fn remove(&mut self, wired: &Wired) -> Result<(), Conflict> {
        let mut removed = Wired::default();
        let result = self.remove_each(wired, &mut removed);
        if result.is_err() {
            self.put_back(removed);
        }
        result
    }

    /// Puts `new` in the place of `old`, or changes nothing.
    ///
    /// # Errors
    /// A piece of `old` is not there, or one of `new` is not accepted.
    pub fn replace(&mut self, old: &Wired, new: &Wired) -> Result<(), Conflict> {
        let mut removed = Wired::default();
        let result = self.remove_each(old, &mut removed).and_then(|()| self.add(new));
        if result.is_err() {
            self.put_back(removed);
        }
        result
    }

    /// Adds piece by piece and counts what it added, up to the first that is refused.
    fn add_each(&mut self, wired: &Wired, added: &mut usize) -> Result<(), Conflict> {
        let Wired { slots, handlers, doorbells, routes, irq_events } = wired;
        let mut count = |result: Result<(), Conflict>| result.map(|()| *added += 1);
        slots.iter().try_for_each(|slot| count(self.add_slot(slot.clone())))?;
        handlers.iter().try_for_each(|range| count(self.add_handler(range.clone())))?;
        doorbells.iter().try_for_each(|doorbell| count(self.add_doorbell(doorbell.clone())))?;
        routes.iter().try_for_each(|route| count(self.add_route(route.clone())))?;
        irq_events.iter().try_for_each(|event| count(self.add_irq_event(event.clone())))
    }

    /// Removes piece by piece and keeps what it removed, up to the first that is absent.
    fn remove_each(&mut self, wired: &Wired, removed: &mut Wired) -> Result<(), Conflict> {
        let Wired { slots, handlers, doorbells, routes, irq_events } = wired;
        for slot in slots {
            removed.slots.push(self.remove_slot(slot)?);
        }
        for range in handlers {
            removed.handlers.push(self.remove_handler(range)?);
        }
        for doorbell in doorbells {
            removed.doorbells.push(self.remove_doorbell(doorbell)?);
        }
        for route in routes {
            removed.routes.push(self.remove_route(route)?);
        }
        for event in irq_events {
            removed.irq_events.push(self.remove_irq_event(event)?);
        }
        Ok(())
    }

    /// Takes away the first `count` pieces, which [`add_each`](Self::add_each) added a moment ago.
    fn take_away(&mut self, wired: &Wired, mut count: usize) {
        let Wired { slots, handlers, doorbells, routes, irq_events } = wired;
        let mut of = |len: usize| {
            let these = len.min(count);
            count -= these;
            these
        };
        // They are there, so none is refused.
        let gone = slots.iter().take(of(slots.len())).all(|slot| self.remove_slot(slot).is_ok())
            && handlers.iter().take(of(handlers.len())).all(|range| self.remove_handler(range).is_ok())
            && doorbells.iter().take(of(doorbells.len())).all(|bell| self.remove_doorbell(bell).is_ok())
            && routes.iter().take(of(routes.len())).all(|route| self.remove_route(route).is_ok())
            && irq_events.iter().take(of(irq_events.len())).all(|event| self.remove_irq_event(event).is_ok());
        assert!(gone, "a piece of wiring that was added a moment ago is not there");
    }

    /// Puts back what was removed a moment ago, exactly as it was: it had its place.
    fn put_back(&mut self, removed: Wired) {
        let Wired { slots, handlers, doorbells, routes, irq_events } = removed;
        if !slots.is_empty() {
            Arc::make_mut(&mut self.slots).extend(slots.into_iter().map(|slot| (slot.base, slot)));
        }
        if !handlers.is_empty() {
            let keyed = handlers.into_iter().map(|range| ((range.space, range.base), range));
            Arc::make_mut(&mut self.handlers).extend(keyed);
        }
        if !doorbells.is_empty() {
            let keyed = doorbells.into_iter().map(|doorbell| (doorbell.spec, doorbell));
            Arc::make_mut(&mut self.doorbells).extend(keyed);
        }
        if !routes.is_empty() {
            let keyed = routes.into_iter().map(|route| (route_key(&route), route));
            Arc::make_mut(&mut self.routes).extend(keyed);
        }
        for event in irq_events {
            self.put_irq_event(event);
        }
    }
}
