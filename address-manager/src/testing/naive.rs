//! The wiring once more, as simple as can be: lists that are looked through from end to end.
//!
//! Shares no code with [`Wiring`](crate::Wiring) but the pieces, so that a mistake in one is not a
//! mistake in both.

use std::{collections::BTreeMap, sync::Arc};

use hypervisor::{DoorbellSpec, IoSpace, RouteTarget, SlotFlags};

use crate::{Arm, Doorbell, HandlerRange, IrqEvent, Route, Slot, SlotRole, Wired};

/// Lists of pieces, and whether memory is tracked.
#[derive(Clone, Debug, Default)]
pub struct Naive {
    /// All pieces, in the order in which they came.
    pub pieces: Wired,
    /// Whether main memory is tracked.
    pub tracking: bool,
}

impl Naive {
    /// Adds all pieces and says so, or none.
    pub fn add(&mut self, wired: &Wired) -> bool {
        let before = self.clone();
        let ok = wired.slots.iter().all(|slot| self.add_slot(slot))
            && wired.handlers.iter().all(|range| self.add_handler(range))
            && wired.doorbells.iter().all(|doorbell| self.add_doorbell(doorbell))
            && wired.routes.iter().all(|route| self.add_route(route))
            && wired.irq_events.iter().all(|event| self.add_irq_event(event));
        if !ok {
            *self = before;
        }
        ok
    }

    /// Removes all pieces and says so, or none.
    pub fn remove(&mut self, wired: &Wired) -> bool {
        let before = self.clone();
        let ok = wired.slots.iter().all(|named| take(&mut self.pieces.slots, |there| slot_is(there, named)))
            && wired.handlers.iter().all(|named| take(&mut self.pieces.handlers, |there| there == named))
            && wired.doorbells.iter().all(|named| {
                take(&mut self.pieces.doorbells, |there| {
                    there.spec == named.spec && Arc::ptr_eq(&there.event, &named.event)
                })
            })
            && wired.routes.iter().all(|named| self.remove_route(named))
            && wired.irq_events.iter().all(|named| take(&mut self.pieces.irq_events, |there| there == named));
        if !ok {
            *self = before;
        }
        ok
    }

    /// Replaces all pieces and says so, or none.
    pub fn replace(&mut self, old: &Wired, new: &Wired) -> bool {
        let before = self.clone();
        let ok = self.remove(old) && self.add(new);
        if !ok {
            *self = before;
        }
        ok
    }

    /// Switches tracking.
    pub fn track_dirty(&mut self, on: bool) {
        self.tracking = on;
        for slot in self.pieces.slots.iter_mut().filter(|slot| slot.role == SlotRole::Ram) {
            slot.flags.set(SlotFlags::LOG_DIRTY, on);
        }
    }

    /// Arms late doorbells, those with the lowest addresses.
    pub fn arm_late(&mut self, limit: usize) -> usize {
        self.pieces.doorbells.sort_by_key(|doorbell| doorbell.spec);
        let late = self.pieces.doorbells.iter_mut().filter(|doorbell| doorbell.arm == Arm::Late);
        late.take(limit).map(|doorbell| doorbell.arm = Arm::Now).count()
    }

    /// Leads a GSI elsewhere.
    pub fn set_route(&mut self, route: &Route) -> bool {
        if self.pieces.routes.iter().any(|there| there.gsi == route.gsi && there.owner != route.owner) {
            return false;
        }
        self.pieces.routes.retain(|there| {
            let both_stay = match (chip(there), chip(route)) {
                (Some(a), Some(b)) => a != b,
                _ => false,
            };
            there.gsi != route.gsi || both_stay
        });
        self.pieces.routes.push(route.clone());
        true
    }

    fn add_slot(&mut self, slot: &Slot) -> bool {
        let whole = [slot.base, slot.size, slot.offset].iter().all(|value| value % 4096 == 0);
        let end = slot.base.checked_add(slot.size);
        let backed = slot.offset.checked_add(slot.size).is_some_and(|end| end <= slot.mapping.size() as u64);
        let Some(end) = end.filter(|_| whole && backed && slot.size != 0) else { return false };
        let free = |base: u64, size: u64| base >= end || base + size <= slot.base;
        let ok = self.pieces.slots.iter().all(|there| free(there.base, there.size))
            && self.handlers(IoSpace::Mmio).all(|there| free(there.base, there.size));
        if ok {
            let mut slot = slot.clone();
            if self.tracking && slot.role == SlotRole::Ram {
                slot.flags |= SlotFlags::LOG_DIRTY;
            }
            self.pieces.slots.push(slot);
        }
        ok
    }

    fn add_handler(&mut self, range: &HandlerRange) -> bool {
        let Some(end) = range.base.checked_add(range.size).filter(|_| range.size != 0) else { return false };
        if range.space == IoSpace::Pio && end > 0x1_0000 {
            return false;
        }
        let free = |base: u64, size: u64| base >= end || base + size <= range.base;
        let ok = self.handlers(range.space).all(|there| free(there.base, there.size))
            && (range.space == IoSpace::Pio
                || self.pieces.slots.iter().all(|there| free(there.base, there.size)));
        if ok {
            self.pieces.handlers.push(range.clone());
        }
        ok
    }

    fn add_doorbell(&mut self, doorbell: &Doorbell) -> bool {
        let DoorbellSpec { space, address, width, data_match } = doorbell.spec;
        let bits = 8 * u32::from(width);
        let data_fits = data_match.is_none_or(|data| width != 0 && (bits >= 64 || data < 1 << bits));
        let last = address.checked_add(u64::from(width.max(1)));
        let on_bus = match space {
            IoSpace::Mmio => last.is_some(),
            IoSpace::Pio => last.is_some_and(|last| last <= 0x1_0000) && width != 8,
        };
        let ok = [0, 1, 2, 4, 8].contains(&width)
            && data_fits
            && on_bus
            && !self.pieces.doorbells.iter().any(|there| rings_with(&there.spec, &doorbell.spec));
        if ok {
            self.pieces.doorbells.push(doorbell.clone());
        }
        ok
    }

    fn add_route(&mut self, route: &Route) -> bool {
        let ok = self.pieces.routes.iter().filter(|there| there.gsi == route.gsi).all(|there| {
            match (chip(there), chip(route)) {
                (Some(a), Some(b)) => a != b,
                _ => false,
            }
        });
        if ok {
            self.pieces.routes.push(route.clone());
        }
        ok
    }

    /// The entry for that controller; if there is none, but the GSI leads to one place only, and
    /// that is a message or a message is named, then this entry.
    fn remove_route(&mut self, named: &Route) -> bool {
        let of_gsi: Vec<&Route> = self.pieces.routes.iter().filter(|there| there.gsi == named.gsi).collect();
        let exact = of_gsi.iter().find(|there| chip(there) == chip(named));
        let only = match of_gsi.as_slice() {
            [only] if chip(only).is_none() || chip(named).is_none() => Some(only),
            _ => None,
        };
        let Some(found) = exact.or(only).filter(|there| there.owner == named.owner) else { return false };
        let found = Route::clone(found);
        take(&mut self.pieces.routes, |there| *there == found)
    }

    fn add_irq_event(&mut self, event: &IrqEvent) -> bool {
        let ok = !self.pieces.irq_events.iter().any(|there| Arc::ptr_eq(&there.event, &event.event));
        if ok {
            self.pieces.irq_events.push(event.clone());
        }
        ok
    }

    fn handlers(&self, space: IoSpace) -> impl Iterator<Item = &HandlerRange> {
        self.pieces.handlers.iter().filter(move |range| range.space == space)
    }

    /// The handler that has all of an access.
    pub fn answers(&self, space: IoSpace, address: u64, len: u64) -> Option<&HandlerRange> {
        let end = address.checked_add(len)?;
        self.handlers(space).find(|range| range.base <= address && end <= range.base + range.size)
    }

    /// What the guest sees at each page: host address and flags.
    pub fn pages(&self) -> BTreeMap<u64, (u64, SlotFlags)> {
        let pages = |slot: &Slot| {
            let (base, host, flags) = (slot.base, slot.host_address(), slot.flags);
            (0..slot.size / 4096).map(move |page| (base + page * 4096, (host + page * 4096, flags)))
        };
        self.pieces.slots.iter().flat_map(pages).collect()
    }
}

/// Whether one write can ring both: KVM's rule.
fn rings_with(a: &DoorbellSpec, b: &DoorbellSpec) -> bool {
    a.space == b.space
        && a.address == b.address
        && (a.width == 0
            || b.width == 0
            || a.width == b.width
                && (a.data_match.is_none() || b.data_match.is_none() || a.data_match == b.data_match))
}

fn chip(route: &Route) -> Option<u32> {
    match route.target {
        RouteTarget::Msi(_) => None,
        RouteTarget::Irqchip { chip, .. } => Some(chip),
    }
}

fn slot_is(there: &Slot, named: &Slot) -> bool {
    there.base == named.base
        && there.size == named.size
        && Arc::ptr_eq(&there.mapping, &named.mapping)
        && there.offset == named.offset
        && there.flags - SlotFlags::LOG_DIRTY == named.flags - SlotFlags::LOG_DIRTY
        && there.role == named.role
        && there.owner == named.owner
}

/// Takes the first element that is meant out of a list, if there is one.
fn take<T>(list: &mut Vec<T>, is_meant: impl Fn(&T) -> bool) -> bool {
    match list.iter().position(is_meant) {
        Some(at) => {
            list.remove(at);
            true
        }
        None => false,
    }
}
