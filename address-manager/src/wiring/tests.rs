//! Every small case of overlap and collision, against the naive model.

use std::sync::Arc;

use hypervisor::{DoorbellSpec, IoSpace, MsiMessage, RouteTarget, SlotFlags};

use super::{Arm, Conflict, Doorbell, HandlerRange, Owner, Route, SlotRole, Wired, Wiring};
use crate::testing::{Naive, Noted, PAGE, doorbell, event, handler, host, irqfd, msi, ram};

fn one_of(slots: &[super::Slot], handlers: &[HandlerRange]) -> Wired {
    Wired { slots: slots.to_vec(), handlers: handlers.to_vec(), ..Wired::default() }
}

/// All triples of ranges of 0 to 3 pages within 5 pages, each a slot, an MMIO or a port handler.
#[test]
fn every_small_case_of_overlap() {
    let mapping = host(8);
    let noted = Noted::new(1);
    let mut pieces = Vec::new();
    for base in 0..5 {
        for size in 0..4 {
            pieces.push(one_of(&[ram(base, size, &mapping, 0)], &[]));
            pieces.push(one_of(&[], &[handler(IoSpace::Mmio, base * PAGE, size * PAGE, &noted)]));
            pieces.push(one_of(&[], &[handler(IoSpace::Pio, base * PAGE, size * PAGE, &noted)]));
        }
    }
    let mut accepted = 0;
    for first in &pieces {
        let (mut wiring, mut naive) = (Wiring::default(), Naive::default());
        assert_eq!(wiring.add(first).is_ok(), naive.add(first), "{first:?}");
        for second in &pieces {
            let (mut wiring, mut naive) = (wiring.clone(), naive.clone());
            assert_eq!(wiring.add(second).is_ok(), naive.add(second), "{first:?} {second:?}");
            for third in &pieces {
                let (mut wiring, mut naive) = (wiring.clone(), naive.clone());
                let expected = naive.add(third);
                assert_eq!(wiring.add(third).is_ok(), expected, "{first:?} {second:?} {third:?}");
                accepted += u32::from(expected);
            }
        }
    }
    assert!(accepted > 10_000);
}

/// All triples of doorbells at one address in both spaces.
#[test]
fn every_small_case_of_collision() {
    let rung = event();
    let mut bells = Vec::new();
    for space in [IoSpace::Mmio, IoSpace::Pio] {
        for address in [0, 4] {
            for width in [0, 1, 2, 3, 4, 8] {
                for data_match in [None, Some(0), Some(1), Some(0x100)] {
                    let spec = DoorbellSpec { space, address, width, data_match };
                    bells.push(Doorbell { spec, ..doorbell(0, &rung) });
                }
            }
        }
    }
    let wired = |bell: &Doorbell| Wired { doorbells: vec![bell.clone()], ..Wired::default() };
    for first in &bells {
        let (mut wiring, mut naive) = (Wiring::default(), Naive::default());
        assert_eq!(wiring.add_doorbell(first.clone()).is_ok(), naive.add(&wired(first)), "{first:?}");
        for second in &bells {
            let (mut wiring, mut naive) = (wiring.clone(), naive.clone());
            let expected = naive.add(&wired(second));
            assert_eq!(wiring.add_doorbell(second.clone()).is_ok(), expected, "{first:?} {second:?}");
            for third in &bells {
                let (mut wiring, mut naive) = (wiring.clone(), naive.clone());
                let expected = naive.add(&wired(third));
                assert_eq!(wiring.add_doorbell(third.clone()).is_ok(), expected, "{first:?} {third:?}");
            }
        }
    }
}

#[test]
fn ranges_at_the_ends_of_their_spaces() {
    let noted = Noted::new(1);
    let mut wiring = Wiring::default();
    let last = |space, base, size| handler(space, base, size, &noted);
    assert!(wiring.add_handler(last(IoSpace::Mmio, u64::MAX - 1, 1)).is_ok());
    assert!(wiring.add_handler(last(IoSpace::Mmio, u64::MAX, 1)).is_err());
    assert!(wiring.add_handler(last(IoSpace::Mmio, 1 << 63, 1 << 63)).is_err());
    assert!(wiring.add_handler(last(IoSpace::Pio, 0xffff, 1)).is_ok());
    assert!(wiring.add_handler(last(IoSpace::Pio, 0xfffe, 3)).is_err());
    assert!(wiring.add_handler(last(IoSpace::Pio, 0x1_0000, 1)).is_err());
    // Next to a slot, and one byte into it.
    wiring.add_slot(ram(1, 1, &host(1), 0)).unwrap();
    assert!(wiring.add_handler(last(IoSpace::Mmio, 0x2000 - 1, 1)).is_err());
    assert!(wiring.add_handler(last(IoSpace::Mmio, 0x1000 - 1, 2)).is_err());
    assert!(wiring.add_handler(last(IoSpace::Mmio, 0x2000, 1)).is_ok());
    assert!(wiring.add_handler(last(IoSpace::Mmio, 0x1000 - 1, 1)).is_ok());
    let bell = |space, address, width| Doorbell {
        spec: DoorbellSpec { space, address, width, data_match: None },
        ..doorbell(0, &event())
    };
    assert!(wiring.add_doorbell(bell(IoSpace::Mmio, u64::MAX - 1, 2)).is_err());
    assert!(wiring.add_doorbell(bell(IoSpace::Mmio, u64::MAX, 0)).is_err());
    assert!(wiring.add_doorbell(bell(IoSpace::Pio, 0xfffe, 2)).is_ok());
    assert!(wiring.add_doorbell(bell(IoSpace::Pio, 0xffff, 2)).is_err());
    assert!(wiring.add_doorbell(bell(IoSpace::Pio, 0, 8)).is_err());
}

#[test]
fn slots_that_are_no_slots() {
    let mapping = host(4);
    let mut wiring = Wiring::default();
    let good = ram(1, 2, &mapping, 2);
    let bad = [
        super::Slot { base: good.base + 1, ..good.clone() },
        super::Slot { size: good.size + 1, ..good.clone() },
        super::Slot { size: 0, ..good.clone() },
        super::Slot { offset: good.offset + 1, ..good.clone() },
        super::Slot { offset: good.offset + PAGE, ..good.clone() },
        super::Slot { offset: u64::MAX - (PAGE - 1), ..good.clone() },
        super::Slot { base: u64::MAX - (PAGE - 1), ..good.clone() },
    ];
    for slot in bad {
        assert!(matches!(wiring.add_slot(slot.clone()), Err(Conflict::Range { .. })), "{slot:?}");
    }
    assert_eq!(wiring, Wiring::default());
    wiring.add_slot(good).unwrap();
}

#[test]
fn a_conflict_names_both() {
    let noted = Noted::new(1);
    let mut wiring = Wiring::default();
    let disk = HandlerRange { owner: Owner::from("disk0"), ..handler(IoSpace::Mmio, 0x1000, 0x1000, &noted) };
    wiring.add_handler(disk).unwrap();
    let net = HandlerRange { owner: Owner::from("net0"), ..handler(IoSpace::Mmio, 0x1800, 0x1000, &noted) };
    assert_eq!(
        wiring.add_handler(net).unwrap_err().to_string(),
        "handler 0x1800+0x1000 of net0 overlaps handler 0x1000+0x1000 of disk0"
    );
    let raised = event();
    wiring.add_irq_event(irqfd(5, &raised)).unwrap();
    assert_eq!(
        wiring.add_irq_event(irqfd(6, &raised)).unwrap_err().to_string(),
        "irqfd of GSI 6 (its eventfd raises GSI 5) of device is taken by device"
    );
}

fn pin(gsi: u32, chip: u32) -> Route {
    Route { gsi, target: RouteTarget::Irqchip { chip, pin: gsi }, owner: Owner::from("device") }
}

#[test]
fn a_gsi_leads_to_one_message_or_to_one_pin_of_each_controller() {
    let mut wiring = Wiring::default();
    wiring.add_route(pin(4, 0)).unwrap();
    wiring.add_route(pin(4, 2)).unwrap();
    assert!(wiring.add_route(pin(4, 2)).is_err());
    assert!(wiring.add_route(msi(4, 0)).is_err());
    wiring.add_route(msi(5, 0)).unwrap();
    assert!(wiring.add_route(pin(5, 0)).is_err());
    assert!(wiring.add_route(msi(5, 1)).is_err());

    // Leading it elsewhere: a message takes the place of all pins, a pin that of the message.
    wiring.set_route(msi(4, 7)).unwrap();
    assert_eq!(wiring.routes().cloned().collect::<Vec<_>>(), [msi(4, 7), msi(5, 0)]);
    wiring.set_route(pin(4, 0)).unwrap();
    wiring.set_route(pin(4, 2)).unwrap();
    assert_eq!(wiring.routes().count(), 3);
    let foreign = Route { owner: Owner::from("other"), ..msi(4, 1) };
    assert!(wiring.set_route(foreign.clone()).is_err());
    assert!(wiring.remove_route(&foreign).is_err());

    // Its owner removes it by the name it gave, wherever it leads by now.
    let moved = Route { target: RouteTarget::Msi(MsiMessage::default()), ..msi(5, 0) };
    wiring.set_route(moved.clone()).unwrap();
    assert_eq!(wiring.remove_route(&msi(5, 0)), Ok(moved));
}

#[test]
fn tracking_covers_memory_that_comes_later_and_no_device() {
    let mapping = host(4);
    let window = super::Slot { role: SlotRole::Device, ..ram(2, 1, &mapping, 2) };
    let mut wiring = Wiring::default();
    wiring.add_slot(ram(0, 1, &mapping, 0)).unwrap();
    wiring.track_dirty(true);
    wiring.add_slot(ram(1, 1, &mapping, 1)).unwrap();
    wiring.add_slot(window).unwrap();
    wiring.add_slot(super::Slot { role: SlotRole::Persistent, ..ram(3, 1, &mapping, 3) }).unwrap();
    let tracked = |wiring: &Wiring| {
        wiring.slots().map(|slot| slot.flags.contains(SlotFlags::LOG_DIRTY)).collect::<Vec<_>>()
    };
    assert_eq!(tracked(&wiring), [true, true, false, false]);
    // Whoever added a slot removes it by the name it gave.
    wiring.remove_slot(&ram(1, 1, &mapping, 1)).unwrap();
    wiring.track_dirty(false);
    assert_eq!(tracked(&wiring), [false; 3]);
}

#[test]
fn late_doorbells_are_armed_in_address_order() {
    let mut wiring = Wiring::default();
    for address in [0x30, 0x10, 0x20] {
        wiring.add_doorbell(Doorbell { arm: Arm::Late, ..doorbell(address, &event()) }).unwrap();
    }
    assert_eq!((wiring.arm_late(2), wiring.late_doorbells()), (2, 1));
    let late: Vec<_> = wiring.doorbells().filter(|bell| bell.arm == Arm::Late).collect();
    assert_eq!(late[0].spec.address, 0x30);
    assert_eq!((wiring.arm_late(2), wiring.arm_late(2)), (1, 0));
}

#[test]
fn what_was_not_touched_is_shared() {
    let mut live = Wiring::default();
    live.add(&Wired { routes: vec![msi(1, 1)], slots: vec![ram(0, 1, &host(1), 0)], ..Wired::default() })
        .unwrap();
    let mut staged = live.clone();
    staged.track_dirty(false);
    assert_eq!(staged.arm_late(5), 0);
    staged.set_route(msi(1, 1)).unwrap();
    assert!(Arc::ptr_eq(&live.slots, &staged.slots));
    assert!(Arc::ptr_eq(&live.doorbells, &staged.doorbells));
    assert!(Arc::ptr_eq(&live.routes, &staged.routes));
    staged.set_route(msi(1, 2)).unwrap();
    assert!(!Arc::ptr_eq(&live.routes, &staged.routes));
}

#[test]
fn host_addresses_across_slots() {
    let (a, b) = (host(8), host(8));
    let mut wiring = Wiring::default();
    for slot in [ram(0, 2, &a, 0), ram(2, 2, &a, 2), ram(4, 1, &b, 0), ram(6, 1, &b, 2)] {
        wiring.add_slot(slot).unwrap();
    }
    let start = a.as_ptr() as u64;
    assert_eq!(wiring.host_address(0x10, 4 * PAGE - 0x10), Some(start + 0x10));
    assert_eq!(wiring.host_address(3 * PAGE, PAGE + 1), None);
    assert_eq!(wiring.host_address(4 * PAGE, PAGE), Some(b.as_ptr() as u64));
    assert_eq!(wiring.host_address(5 * PAGE, 1), None);
    assert_eq!(wiring.host_address(4 * PAGE, 3 * PAGE), None);
    assert_eq!(wiring.host_address(u64::MAX, 2), None);
    assert_eq!(wiring.host_address(0, u64::MAX), None);
}

/// All sequences of three pieces of which the last is refused leave nothing behind.
#[test]
fn what_is_refused_is_taken_back_whole() {
    let mapping = host(4);
    let kinds = [
        Wired { slots: vec![ram(0, 1, &mapping, 0)], ..Wired::default() },
        one_of(&[], &[handler(IoSpace::Pio, 0, 4, &Noted::new(1))]),
        Wired { doorbells: vec![doorbell(0, &event())], ..Wired::default() },
        Wired { routes: vec![msi(1, 1)], ..Wired::default() },
        Wired { irq_events: vec![irqfd(1, &event())], ..Wired::default() },
    ];
    for taken in &kinds {
        let mut wiring = Wiring::default();
        wiring.add(taken).unwrap();
        let before = wiring.clone();
        // All kinds at once, of which one is there already.
        let mut all = Wired::default();
        for Wired { slots, handlers, doorbells, routes, irq_events } in kinds.iter().cloned() {
            all.slots.extend(slots);
            all.handlers.extend(handlers);
            all.doorbells.extend(doorbells);
            all.routes.extend(routes);
            all.irq_events.extend(irq_events);
        }
        assert!(wiring.add(&all).is_err());
        assert_eq!(wiring, before);
        assert!(wiring.remove(&all).is_err());
        assert_eq!(wiring, before);
        assert!(wiring.replace(taken, &Wired { routes: vec![msi(9, 1), msi(9, 1)], ..all.clone() }).is_err());
        assert_eq!(wiring, before);
        wiring.replace(taken, &all).unwrap();
        assert_eq!(wiring.pieces(), all);
    }
}
