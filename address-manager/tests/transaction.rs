//! One transaction from end to end, through the public interface.

mod support;

use std::sync::Arc;

use address_manager::{Arm, Conflict, IoSpace, Wired};
use hypervisor::fake::{Call, Fault};
use support::{Noted, PAGE, doorbell, event, handler, host, irqfd, manager, msi, ram};
use vm_memory::{Bytes, GuestAddress};

/// Two pieces of memory that are one, a device with two doorbells of which one is late, and an
/// interrupt.
fn device() -> Wired {
    let memory = host(8);
    let irq = event();
    Wired {
        slots: vec![ram(0, 4, &memory, 0), ram(4, 4, &memory, 4)],
        handlers: vec![handler(IoSpace::Mmio, 0xc000_0000, 0x1000, &Noted::new(7))],
        doorbells: vec![
            doorbell(0xc000_0000, &event()),
            address_manager::Doorbell { arm: Arm::Late, ..doorbell(0xc000_0004, &event()) },
        ],
        routes: vec![msi(24, 1)],
        irq_events: vec![irqfd(24, &irq)],
    }
}

#[test]
fn a_commit_makes_the_difference_and_publishes_it() {
    let (manager, vm) = manager();
    let mut vcpu = manager.dispatcher();
    let mut memory = manager.memory().reader();
    let mut data = [0; 4];

    let tx = manager.begin_labelled("build");
    tx.add(&device()).unwrap();
    assert!(vm.recorder().is_empty(), "staging calls nobody");
    assert!(!vcpu.read(IoSpace::Mmio, 0xc000_0000, &mut data), "staging publishes nothing");
    let report = tx.commit().unwrap();

    let calls = vm.recorder().wiring_calls();
    assert!(
        matches!(
            calls.as_slice(),
            [Call::SetSlot(slot), Call::SetRoutes(routes), Call::AddIrqfd { gsi: 24, .. }, Call::AddDoorbell { .. }]
            if slot.size == 8 * PAGE && routes.len() == 1
        ),
        "{calls:?}"
    );
    assert!(vcpu.read(IoSpace::Mmio, 0xc000_0000, &mut data));
    assert_eq!(data, [7; 4]);
    memory.get().write_slice(&[1; 0x2000], GuestAddress(3 * PAGE)).unwrap();
    assert_eq!(report.operations.kernel_calls(), 4);
    assert_eq!((report.sequence, report.doorbells_late, report.routing_entries), (1, 1, 1));
    assert_eq!(report.label, "build");
    assert_eq!(manager.reports(), [report]);
}

#[test]
fn a_dropped_transaction_leaves_nothing() {
    let (manager, vm) = manager();
    let before = manager.live();
    let tx = manager.begin();
    tx.add(&device()).unwrap();
    drop(tx);
    assert!(Arc::ptr_eq(&before, &manager.live()));
    assert!(vm.recorder().is_empty());
    // And the next one is not kept waiting.
    manager.begin().commit().unwrap();
    assert!(vm.recorder().is_empty());
}

#[test]
fn what_is_refused_leaves_the_staged_wiring_as_it_was() {
    let (manager, _vm) = manager();
    let tx = manager.begin();
    let first = device();
    tx.add(&first).unwrap();
    let before = tx.wiring();
    // Everything fits but the last piece.
    let mut second = Wired { slots: vec![ram(100, 1, &host(1), 0)], ..Wired::default() };
    second.routes = vec![msi(25, 1), msi(24, 1)];
    assert!(matches!(tx.add(&second), Err(Conflict::Taken { .. })));
    assert_eq!(tx.wiring(), before);
    assert!(tx.replace(&first, Wired { routes: vec![msi(30, 0), msi(30, 0)], ..Wired::default() }).is_err());
    assert_eq!(tx.wiring(), before);
}

#[test]
fn a_failing_step_is_named_and_undone() {
    let (manager, vm) = manager();
    let (live, kernel) = (manager.live(), vm.wiring_state());
    vm.inject(Fault::Wiring(3));
    let tx = manager.begin();
    tx.add(&device()).unwrap();
    let error = tx.commit().unwrap_err();
    assert_eq!(error.to_string(), "cannot add doorbell 0xc0000000 (Mmio, 2 bytes)");
    assert!(Arc::ptr_eq(&live, &manager.live()));
    assert_eq!(vm.wiring_state(), kernel);
    assert_eq!(manager.totals().failed, 1);
}
