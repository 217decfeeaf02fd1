//! One transaction from end to end, through the public interface.

use std::sync::Arc;

use address_manager::{
    AddressManager, Arm, CommitError, CommitReport, Conflict, IoSpace, Owner, Step, Window, WindowKind,
    Windows, Wired,
    testing::{Noted, PAGE, doorbell, event, handler, host, irqfd, manager, msi, ram},
};
use hypervisor::{
    Vm,
    fake::{Call, Fault},
};
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

#[test]
fn what_cannot_be_undone_is_named_and_ends_all_changes() {
    let (manager, vm) = manager();
    // The third call fails, and so does every call of the way back.
    vm.inject(Fault::WiringFrom(2));
    let tx = manager.begin();
    tx.add(&device()).unwrap();
    let error = tx.commit().unwrap_err();
    vm.recorder().clear_fault();
    let CommitError::Apply(apply) = &error else { panic!("{error}") };
    assert_eq!(apply.step, Step::AddIrqfd { gsi: 24 });
    let steps: Vec<String> = apply.undo_failures.iter().map(|failure| failure.step.to_string()).collect();
    assert_eq!(steps, ["write the routing table of 0 entries", "remove slot 0 (0x0+0x8000)"]);
    assert!(error.to_string().starts_with(
        "cannot connect the irqfd of GSI 24 (and then, going back, cannot write the routing table of 0 entries: "
    ));
    assert!(error.to_string().ends_with("; and 1 more)"));

    let error = manager.begin().commit().unwrap_err();
    assert_eq!(
        error.to_string(),
        "the wiring is damaged: an earlier commit cannot write the routing table of 0 entries while going back"
    );
}

#[test]
fn more_slots_than_there_are_is_seen_before_anything_is_done() {
    let vm = hypervisor::fake::FakeVm::new();
    let manager = AddressManager::new(Arc::clone(&vm) as Arc<dyn hypervisor::Vm>, 2, Windows::new());
    let tx = manager.begin();
    for page in [0, 2, 4] {
        tx.add_slot(ram(page, 1, &host(1), 0)).unwrap();
    }
    assert!(matches!(tx.commit().unwrap_err(), CommitError::Slots(_)));
    assert!(vm.recorder().is_empty());
    // Nothing is damaged.
    let tx = manager.begin();
    tx.add_slot(ram(0, 1, &host(1), 0)).unwrap();
    tx.commit().unwrap();
}

#[test]
fn a_failed_move_leaves_the_allocator_as_it_was() {
    let (manager, vm) = manager();
    let (window, owner) = (Window::new(WindowKind::Mmio32, 0), Owner::from("disk0"));
    let notify = event();
    let bar = |base: u64| Wired { doorbells: vec![doorbell(base, &notify)], ..Wired::default() };
    let tx = manager.begin();
    let base = tx.allocate(window, 0x4000, 0x4000, &owner).unwrap();
    tx.add(&bar(base)).unwrap();
    tx.commit().unwrap();
    let before = manager.windows();

    let move_it = || {
        let tx = manager.begin();
        tx.release(window, base, &owner).unwrap();
        tx.reserve(window, base + 0x1_0000, 0x4000, &owner).unwrap();
        tx.replace(&bar(base), bar(base + 0x1_0000)).unwrap();
        tx
    };
    vm.inject(Fault::Wiring(1));
    assert!(move_it().commit().is_err());
    vm.recorder().clear_fault();
    assert_eq!(manager.windows(), before);
    assert_eq!(vm.wiring_state().doorbells[0].doorbell.address, base);
    drop(move_it());
    assert_eq!(manager.windows(), before);
    move_it().commit().unwrap();
    assert_ne!(manager.windows(), before);
}

#[test]
fn late_doorbells_are_armed_bit_by_bit() {
    let (manager, vm) = manager();
    let tx = manager.begin();
    for queue in 0..5 {
        let late = address_manager::Doorbell { arm: Arm::Late, ..doorbell(queue * 4, &event()) };
        tx.add_doorbell(late).unwrap();
    }
    assert_eq!(tx.commit().unwrap().doorbells_late, 5);
    let mut armed = Vec::new();
    while manager.live().late_doorbells() != 0 {
        let tx = manager.begin();
        armed.push(tx.arm_late(2));
        tx.commit().unwrap();
    }
    assert_eq!(armed, [2, 2, 1]);
    assert_eq!(vm.wiring_state().doorbells.len(), 5);
    assert_eq!(manager.totals().operations.kernel_calls(), 5);
}

/// What a report looks like to the API: one flat object.
#[test]
fn a_report_is_plain_data() {
    let (manager, _vm) = manager();
    let tx = manager.begin_labelled("restore");
    tx.add(&device()).unwrap();
    let report = tx.commit().unwrap();
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["label"], "restore");
    assert_eq!(json["slots_added"]["count"], 1);
    assert_eq!(json["routing_entries"], 1);
    assert_eq!(serde_json::from_value::<CommitReport>(json).unwrap(), report);
}

#[test]
fn routes_that_the_kernel_has_are_taken_over_all_or_none() {
    let (manager, vm) = manager();
    // What the kernel came with.
    let lines = [msi(3, 1), msi(4, 2)];
    vm.wiring()
        .set_routes(&lines.each_ref().map(|line| hypervisor::Route { gsi: line.gsi, target: line.target }))
        .unwrap();
    let before = vm.wiring_state();

    let tx = manager.begin();
    tx.add_route(msi(4, 9)).unwrap();
    let conflict = tx.adopt_routes(lines.to_vec()).unwrap_err();
    assert!(conflict.to_string().contains("GSI 4"), "{conflict}");
    tx.remove_route(&msi(4, 9)).unwrap();
    assert_eq!(tx.wiring().routes().count(), 0);
    // With one of them changed at once, and a call after the table that fails: the table goes back.
    tx.adopt_routes(lines.to_vec()).unwrap();
    tx.set_route(msi(3, 7)).unwrap();
    tx.add_irq_event(irqfd(3, &event())).unwrap();
    vm.inject(Fault::Wiring(1));
    assert!(matches!(tx.commit(), Err(CommitError::Apply(_))));
    assert_eq!(vm.wiring_state(), before);
    assert_eq!(manager.live().routes().count(), 0);

    let tx = manager.begin();
    tx.adopt_routes(lines.to_vec()).unwrap();
    tx.set_route(msi(3, 7)).unwrap();
    assert_eq!(tx.commit().unwrap().routing_entries, 2);
    // Taken over once.
    assert!(manager.begin().adopt_routes(lines.to_vec()).is_err());
}

#[test]
fn slots_can_be_set_ahead_of_the_commit_and_are_set_once() {
    let (manager, vm) = manager();
    let mut memory = manager.memory().reader();
    let tx = manager.begin_labelled("restore");
    let whole = device();
    tx.add(&Wired { slots: whole.slots.clone(), ..Wired::default() }).unwrap();
    tx.set_slots_ahead().unwrap();
    let calls = vm.recorder().wiring_calls();
    assert!(matches!(calls.as_slice(), [Call::SetSlot(slot)] if slot.size == 8 * PAGE), "{calls:?}");
    // Nobody else knows of them yet, and asking once more is no call.
    assert!(memory.get().write_slice(&[1], GuestAddress(0)).is_err());
    tx.set_slots_ahead().unwrap();
    tx.add(&Wired { slots: Vec::new(), ..whole }).unwrap();
    let report = tx.commit().unwrap();
    let calls = vm.recorder().wiring_calls();
    assert!(
        matches!(
            calls.as_slice(),
            [Call::SetSlot(_), Call::SetRoutes(_), Call::AddIrqfd { .. }, Call::AddDoorbell { .. }]
        ),
        "{calls:?}"
    );
    memory.get().write_slice(&[1], GuestAddress(0)).unwrap();
    assert_eq!((report.operations.slots_added.count, report.operations.kernel_calls()), (1, 4));
    assert_eq!(manager.totals().commits, 1);
    let shown = report.to_string();
    assert!(shown.contains("slots added") && shown.contains("doorbells added"), "{shown}");
}

#[test]
fn slots_that_were_set_ahead_go_with_their_transaction() {
    let (manager, vm) = manager();
    let kernel = vm.wiring_state();
    let tx = manager.begin();
    tx.add(&device()).unwrap();
    tx.set_slots_ahead().unwrap();
    drop(tx);
    assert_eq!(vm.wiring_state(), kernel);
    // The next one is not kept waiting; it fails at its first doorbell, and takes its slots with it.
    let tx = manager.begin();
    tx.add(&device()).unwrap();
    tx.set_slots_ahead().unwrap();
    vm.inject(Fault::Wiring(2));
    let error = tx.commit().unwrap_err();
    assert_eq!(error.to_string(), "cannot add doorbell 0xc0000000 (Mmio, 2 bytes)");
    assert_eq!(vm.wiring_state(), kernel);
}

#[test]
fn a_slot_that_cannot_be_set_ahead_leaves_the_transaction_as_it_was() {
    let (manager, vm) = manager();
    let tx = manager.begin();
    tx.add(&device()).unwrap();
    vm.inject(Fault::Wiring(0));
    let error = tx.set_slots_ahead().unwrap_err();
    vm.recorder().clear_fault();
    assert_eq!(error.to_string(), "cannot add slot 0 (0x0+0x8000)");
    assert!(vm.wiring_state().slots.is_empty());
    tx.commit().unwrap();
    assert_eq!(vm.wiring_state().slots.len(), 1);
}

#[test]
fn slots_that_cannot_be_taken_back_end_all_changes() {
    let (manager, vm) = manager();
    let tx = manager.begin();
    tx.add(&device()).unwrap();
    tx.set_slots_ahead().unwrap();
    vm.inject(Fault::WiringFrom(0));
    drop(tx);
    vm.recorder().clear_fault();
    let error = manager.begin().commit().unwrap_err();
    assert!(matches!(&error, CommitError::Damaged { damage } if damage.contains("remove slot 0")), "{error}");
}
