//! What a [`Wiring`] refuses, and why. Each check looks at the neighbours of the new piece only.

use std::{collections::BTreeMap, os::fd::AsRawFd};

use hypervisor::{DoorbellSpec, IoSpace};

use super::{Conflict, Doorbell, HandlerRange, IrqEvent, Owner, PAGE_SIZE, Slot, Wiring, conflict::taken};

/// First address after the I/O ports of x86.
const PORTS_END: u64 = 0x1_0000;

impl Wiring {
    pub(super) fn check_slot(&self, slot: &Slot) -> Result<(), Conflict> {
        let refuse = |why| {
            let Slot { base, size, .. } = *slot;
            Err(Conflict::Range { what: "slot", base, size, owner: slot.owner.clone(), why })
        };
        if slot.size == 0 {
            return refuse("is empty");
        }
        if [slot.base, slot.size, slot.offset].iter().any(|value| value % PAGE_SIZE != 0) {
            return refuse("is not made of whole pages");
        }
        let Some(end) = slot.base.checked_add(slot.size) else {
            return refuse("ends beyond 64 bits");
        };
        if slot.offset.checked_add(slot.size).is_none_or(|end| end > slot.mapping.size() as u64) {
            return refuse("is larger than its host memory");
        }
        let this = ("slot", slot.base, slot.size, &slot.owner);
        if let Some(there) = slot_in(&self.slots, slot.base, end) {
            return Err(overlap(this, ("slot", there.base, there.size, &there.owner)));
        }
        if let Some(there) = handler_in(&self.handlers, IoSpace::Mmio, slot.base, end) {
            return Err(overlap(this, ("handler", there.base, there.size, &there.owner)));
        }
        Ok(())
    }

    pub(super) fn check_handler(&self, range: &HandlerRange) -> Result<(), Conflict> {
        let HandlerRange { space, base, size, .. } = *range;
        let refuse =
            |why| Err(Conflict::Range { what: "handler", base, size, owner: range.owner.clone(), why });
        if size == 0 {
            return refuse("is empty");
        }
        let Some(end) = base.checked_add(size) else {
            return refuse("ends beyond 64 bits");
        };
        if space == IoSpace::Pio && end > PORTS_END {
            return refuse("ends beyond port 0xffff");
        }
        let this = ("handler", base, size, &range.owner);
        if let Some(there) = handler_in(&self.handlers, space, base, end) {
            return Err(overlap(this, ("handler", there.base, there.size, &there.owner)));
        }
        if space == IoSpace::Mmio
            && let Some(there) = slot_in(&self.slots, base, end)
        {
            return Err(overlap(this, ("slot", there.base, there.size, &there.owner)));
        }
        Ok(())
    }

    /// KVM's rule for what collides (`KVM_IOEVENTFD`, KVM API 4.59): two doorbells at one address
    /// go together only if no write rings both, which a width of 0 (any) never allows.
    pub(super) fn check_doorbell(&self, doorbell: &Doorbell) -> Result<(), Conflict> {
        let DoorbellSpec { space, address, width, data_match } = doorbell.spec;
        let refuse = |why| {
            let size = u64::from(width);
            let owner = doorbell.owner.clone();
            Err(Conflict::Range { what: "doorbell", base: address, size, owner, why })
        };
        if !matches!(width, 0 | 1 | 2 | 4 | 8) {
            return refuse("its width is none of 0, 1, 2, 4, 8");
        }
        match data_match {
            Some(_) if width == 0 => return refuse("it matches data of no width"),
            Some(value) if width < 8 && value >> (8 * u32::from(width)) != 0 => {
                return refuse("the data it matches is wider than the write");
            }
            _ => {}
        }
        // A write of any width is one byte at least.
        let Some(end) = address.checked_add(u64::from(width.max(1))) else {
            return refuse("ends beyond 64 bits");
        };
        if space == IoSpace::Pio && (end > PORTS_END || width == 8) {
            return refuse("no port write is there");
        }
        match self.collision(&doorbell.spec) {
            Some(there) => {
                let what = format!("doorbell {address:#x} of {width} bytes");
                Err(taken(what, &doorbell.owner, &there.owner))
            }
            None => Ok(()),
        }
    }

    fn collision(&self, spec: &DoorbellSpec) -> Option<&Doorbell> {
        let DoorbellSpec { space, address, width, data_match } = *spec;
        let first = |width, data_match| DoorbellSpec { space, address, width, data_match };
        // Doorbells of one address are sorted by width, then by data, none first.
        let lowest = self.doorbells.range(first(0, None)..).map(|(_, there)| there).next();
        let lowest = lowest.filter(|there| (there.spec.space, there.spec.address) == (space, address))?;
        if width == 0 || lowest.spec.width == 0 {
            return Some(lowest);
        }
        match data_match {
            None => {
                let same_width = first(width, None)..=first(width, Some(u64::MAX));
                self.doorbells.range(same_width).map(|(_, there)| there).next()
            }
            Some(_) => self.doorbells.get(&first(width, None)).or_else(|| self.doorbells.get(spec)),
        }
    }

    pub(super) fn check_irq_event(&self, event: &IrqEvent) -> Result<(), Conflict> {
        let descriptor = event.event.as_raw_fd();
        let Some(gsi) = self.irq_gsis.get(&descriptor) else { return Ok(()) };
        let there = self.irq_events.get(&(*gsi, descriptor));
        let other = there.map_or(&event.owner, |there| &there.owner);
        let what = format!("irqfd of GSI {} (its eventfd raises GSI {gsi})", event.gsi);
        Err(taken(what, &event.owner, other))
    }
}

/// What a piece is, its first address, its length, its owner.
type Named<'a> = (&'static str, u64, u64, &'a Owner);

fn overlap(this: Named<'_>, there: Named<'_>) -> Conflict {
    let (what, base, size, owner) = this;
    let (other_what, other_base, other_size, other) = there;
    let (owner, other) = (owner.clone(), other.clone());
    Conflict::Overlap { what, base, size, owner, other_what, other_base, other_size, other }
}

/// A slot with an address in `base..end`.
fn slot_in(slots: &BTreeMap<u64, Slot>, base: u64, end: u64) -> Option<&Slot> {
    slots.range(..end).next_back().map(|(_, there)| there).filter(|there| there.end() > base)
}

/// A handler with an address in `base..end`.
fn handler_in(
    handlers: &BTreeMap<(IoSpace, u64), HandlerRange>,
    space: IoSpace,
    base: u64,
    end: u64,
) -> Option<&HandlerRange> {
    let below = handlers.range((space, 0)..(space, end)).next_back();
    below.map(|(_, there)| there).filter(|there| there.end() > base)
}
