//! Transactions of the address manager on the recording back end, made of random pieces of wiring, committed,
//! dropped, or failed by the back end at any call.
//!
//! After a commit the back end holds what the live wiring says, and nothing else. After a transaction that was
//! dropped or failed, the live wiring, the windows and the back end are what they were.

#![no_main]

use std::{
    os::fd::{AsRawFd, RawFd},
    sync::{Arc, LazyLock},
};

use address_manager::{
    AddressManager, Arm, Doorbell, DoorbellSpec, Handler, HandlerRange, IoSpace, IrqEvent, MsiMessage, Owner,
    PAGE_SIZE, Route, RouteTarget, Slot, SlotFlags, SlotRole, Transaction, Window, WindowKind, Windows,
    Wiring,
};
use cumulet_fuzz::Bytes;
use hypervisor::fake::{FakeVm, FakeWiring, Fault};
use libfuzzer_sys::fuzz_target;
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::EventFd;

const MAX_SLOTS: u32 = 12;
const MAPPING_PAGES: u64 = 16;
const WINDOW: Window = Window::new(WindowKind::Mmio32, 0);
const WINDOW_BASE: u64 = 0x10_0000;
const WINDOW_SIZE: u64 = 0x1_0000;

/// More would only repeat.
const MAX_OPERATIONS: usize = 96;

/// What pieces are made of; made once, for a run must be quick.
struct Stock {
    mappings: [Arc<MmapRegion>; 2],
    events: Vec<Arc<EventFd>>,
    handler: Arc<dyn Handler>,
    owners: [Owner; 2],
}

struct Silent;

impl Handler for Silent {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}
    fn write(&self, _offset: u64, _data: &[u8]) {}
}

static STOCK: LazyLock<Stock> = LazyLock::new(|| {
    let mapping = || Arc::new(MmapRegion::new(64 << 10).expect("64 KiB can be mapped"));
    let event = |_| Arc::new(EventFd::new(0).expect("an eventfd can be made"));
    Stock {
        mappings: [mapping(), mapping()],
        events: (0..6).map(event).collect(),
        handler: Arc::new(Silent),
        owners: [Owner::new("left"), Owner::new("right")],
    }
});

fuzz_target!(|input: &[u8]| {
    let vm = FakeVm::new();
    let windows = Windows::new().with(WINDOW, WINDOW_BASE, WINDOW_SIZE);
    let manager = AddressManager::new(vm.clone(), MAX_SLOTS, windows);
    let mut input = Bytes::new(input);
    let mut left = MAX_OPERATIONS;
    while transaction(&manager, &vm, &mut input, &mut left).is_some() {}
});

/// Stages some operations and ends the transaction in one of its ways. `None` when the input is used up.
fn transaction(manager: &AddressManager, vm: &FakeVm, input: &mut Bytes<'_>, left: &mut usize) -> Option<()> {
    let before = (manager.live(), manager.windows(), vm.wiring_state());
    let end = input.byte()?;
    let transaction = manager.begin();
    for _ in 0..end >> 4 {
        *left = left.checked_sub(1)?;
        stage(&transaction, input)?;
    }
    let staged = transaction.wiring();
    let committed = match end % 4 {
        0 => {
            drop(transaction);
            false
        }
        1 => {
            vm.inject(Fault::Wiring(usize::from(end >> 2 & 3) * 2));
            let committed = commit(transaction);
            vm.recorder().clear_fault();
            committed?
        }
        _ => commit(transaction)?,
    };
    if committed {
        assert!(*manager.live() == staged, "what was staged is live");
        check_kernel(&staged, &vm.wiring_state());
    } else {
        assert!(*manager.live() == *before.0, "the live wiring is as it was");
        assert_eq!(manager.windows(), before.1);
        assert_eq!(vm.wiring_state(), before.2);
    }
    Some(())
}

/// Whether the commit was made. `None` when the back end refused one call and then, since one was to fail, the
/// undoing of another: what it holds then is reported and not known.
fn commit(transaction: Transaction<'_>) -> Option<bool> {
    match transaction.commit() {
        Ok(_) => Some(true),
        Err(error) => error.undo_failures().is_empty().then_some(false),
    }
}

/// Stages one change; a conflict is an answer like any other.
fn stage(transaction: &Transaction<'_>, input: &mut Bytes<'_>) -> Option<()> {
    let operation = input.byte()?;
    let staged = transaction.wiring();
    let pick = usize::from(operation >> 4);
    match operation % 16 {
        0 | 1 => drop(transaction.add_slot(slot(input)?)),
        2 => {
            let chosen = staged.slots().nth(pick).map(|slot| transaction.remove_slot(slot));
            assert!(chosen.is_none_or(|removed| removed.is_ok()), "a slot that is there can be removed");
        }
        3 => drop(transaction.add_handler(handler(input)?)),
        4 => {
            let chosen = staged.handlers().nth(pick).map(|range| transaction.remove_handler(range));
            assert!(chosen.is_none_or(|removed| removed.is_ok()), "a handler that is there can be removed");
        }
        5 | 6 => drop(transaction.add_doorbell(doorbell(input)?)),
        7 => {
            let chosen = staged.doorbells().nth(pick).map(|doorbell| transaction.remove_doorbell(doorbell));
            assert!(chosen.is_none_or(|removed| removed.is_ok()), "a doorbell that is there can be removed");
        }
        8 => drop(transaction.add_route(route(input)?)),
        9 => drop(transaction.set_route(route(input)?)),
        10 => {
            // A route that an irqfd is on may be refused.
            let _ = staged.routes().nth(pick).map(|route| transaction.remove_route(route));
        }
        11 => drop(transaction.add_irq_event(irq_event(input)?)),
        12 => {
            let chosen = staged.irq_events().nth(pick).map(|event| transaction.remove_irq_event(event));
            assert!(chosen.is_none_or(|removed| removed.is_ok()), "an irqfd that is there can be removed");
        }
        13 => transaction.track_dirty(operation & 16 != 0),
        14 => drop(transaction.arm_late(pick)),
        _ => windows(transaction, input)?,
    }
    Some(())
}

fn owner(byte: u8) -> Owner {
    STOCK.owners[usize::from(byte & 1)].clone()
}

fn event(byte: u8) -> Arc<EventFd> {
    STOCK.events[usize::from(byte) % STOCK.events.len()].clone()
}

fn slot(input: &mut Bytes<'_>) -> Option<Slot> {
    let (base, place, kind) = (input.byte()?, input.byte()?, input.byte()?);
    Some(Slot {
        base: u64::from(base % 64) * PAGE_SIZE,
        size: u64::from(place % 8) * PAGE_SIZE,
        mapping: STOCK.mappings[usize::from(kind & 1)].clone(),
        offset: u64::from(place >> 3) % MAPPING_PAGES * PAGE_SIZE,
        flags: if kind & 2 != 0 { SlotFlags::READ_ONLY } else { SlotFlags::empty() },
        role: if kind & 4 != 0 { SlotRole::Device } else { SlotRole::Ram },
        owner: owner(kind >> 3),
    })
}

fn space(byte: u8) -> IoSpace {
    if byte & 128 != 0 { IoSpace::Pio } else { IoSpace::Mmio }
}

fn handler(input: &mut Bytes<'_>) -> Option<HandlerRange> {
    let (base, kind) = (input.half()?, input.byte()?);
    Some(HandlerRange {
        space: space(kind),
        base: u64::from(base) * 64,
        size: u64::from(kind & 63) * 64,
        handler: STOCK.handler.clone(),
        owner: owner(kind >> 6),
    })
}

fn doorbell(input: &mut Bytes<'_>) -> Option<Doorbell> {
    let (address, kind) = (input.half()?, input.byte()?);
    let spec = DoorbellSpec {
        space: space(kind),
        address: u64::from(address),
        width: [0, 1, 2, 4, 8, 3, 2, 2][usize::from(kind & 7)],
        data_match: (kind & 8 != 0).then_some(u64::from(kind >> 4 & 1)),
    };
    let arm = if kind & 32 != 0 { Arm::Late } else { Arm::Now };
    Some(Doorbell { spec, event: event(kind >> 4), arm, owner: owner(kind) })
}

fn route(input: &mut Bytes<'_>) -> Option<Route> {
    let (gsi, kind) = (input.byte()?, input.byte()?);
    let target = if kind & 1 != 0 {
        RouteTarget::Irqchip { chip: u32::from(kind >> 1 & 3), pin: u32::from(kind >> 3) }
    } else {
        RouteTarget::Msi(MsiMessage { address: 0xfee0_0000, data: u32::from(kind), device_id: 0 })
    };
    Some(Route { gsi: u32::from(gsi % 32), target, owner: owner(kind >> 1) })
}

fn irq_event(input: &mut Bytes<'_>) -> Option<IrqEvent> {
    let (gsi, kind) = (input.byte()?, input.byte()?);
    let resample = (kind & 64 != 0).then(|| event(kind >> 3));
    Some(IrqEvent { gsi: u32::from(gsi % 32), event: event(kind), resample, owner: owner(kind >> 7) })
}

fn windows(transaction: &Transaction<'_>, input: &mut Bytes<'_>) -> Option<()> {
    let (place, kind) = (input.half()?, input.byte()?);
    let base = WINDOW_BASE + u64::from(place);
    let size = u64::from(kind >> 3) << 6;
    match kind % 3 {
        0 => {
            let align = 1 << (place % 17);
            if let Ok(base) = transaction.allocate(WINDOW, size, align, &owner(kind)) {
                assert!(base % align == 0 && base >= WINDOW_BASE && base + size <= WINDOW_BASE + WINDOW_SIZE);
            }
        }
        1 => drop(transaction.reserve(WINDOW, base, size, &owner(kind))),
        _ => drop(transaction.release(WINDOW, base, &owner(kind))),
    }
    Some(())
}

/// The back end holds exactly what `live` says.
fn check_kernel(live: &Wiring, kernel: &FakeWiring) {
    let pages = |size: u64| 0..size / PAGE_SIZE;
    let mut wanted: Vec<(u64, u64, SlotFlags)> = live
        .slots()
        .flat_map(|slot| {
            let host = slot.host_address();
            pages(slot.size)
                .map(move |page| (slot.base + page * PAGE_SIZE, host + page * PAGE_SIZE, slot.flags))
        })
        .collect();
    let mut held: Vec<(u64, u64, SlotFlags)> = kernel
        .slots
        .values()
        .flat_map(|slot| {
            pages(slot.size).map(move |page| {
                (slot.guest_address + page * PAGE_SIZE, slot.host_address + page * PAGE_SIZE, slot.flags)
            })
        })
        .collect();
    wanted.sort_unstable();
    held.sort_unstable();
    assert_eq!(wanted, held);

    let mut wanted: Vec<(DoorbellSpec, RawFd)> = live
        .doorbells()
        .filter(|doorbell| doorbell.arm == Arm::Now)
        .map(|doorbell| (doorbell.spec, doorbell.event.as_raw_fd()))
        .collect();
    wanted.sort_unstable();
    let held: Vec<(DoorbellSpec, RawFd)> =
        kernel.doorbells.iter().map(|doorbell| (doorbell.doorbell, doorbell.event)).collect();
    assert_eq!(wanted, held);

    let mut wanted: Vec<(u32, RouteTarget)> = live.routes().map(|route| (route.gsi, route.target)).collect();
    let mut held: Vec<(u32, RouteTarget)> =
        kernel.routes.iter().map(|route| (route.gsi, route.target)).collect();
    wanted.sort_unstable();
    held.sort_unstable();
    assert_eq!(wanted, held);

    let wanted: Vec<(RawFd, u32)> =
        live.irq_events().map(|event| (event.event.as_raw_fd(), event.gsi)).collect();
    assert_eq!(wanted.len(), kernel.irqfds.len());
    for (event, gsi) in wanted {
        assert_eq!(kernel.irqfds.get(&event).map(|irqfd| irqfd.gsi), Some(gsi));
    }
}
