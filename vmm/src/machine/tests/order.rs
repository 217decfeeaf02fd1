//! In which order a machine is made: on recent kernels a slot that is set after an interrupt controller, a processor, a
//! doorbell, a route or an irqfd waits for a grace period.

use std::sync::Arc;

use address_manager::{
    Arm, Doorbell, DoorbellSpec, IoSpace, IrqEvent, MsiMessage, Owner, Route, RouteTarget, Transaction,
};
use hypervisor::{IrqchipMode, fake::Call};
use serde_json::{Value, json};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Bench;
use crate::{
    cpu::VcpuStart,
    machine::{Commits, processors::vcpu_plans},
};

/// More memory than there is room for below 4 GiB.
const BOTH_SIDES_OF_THE_HOLE: u64 = 5 << 30;

/// Stages what a device of the kernel or of another process has: a doorbell, a route and an irqfd.
fn wire_a_vhost_device(transaction: &Transaction<'_>) {
    let event = || Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let owner = Owner::new("vhost");
    let target = RouteTarget::Msi(MsiMessage { address: 0xfee0_0000, data: 0x41, device_id: 0 });
    transaction.add_route(Route { gsi: 60, target, owner: owner.clone() }).unwrap();
    let irq = IrqEvent { gsi: 60, event: event(), resample: None, owner: owner.clone() };
    transaction.add_irq_event(irq).unwrap();
    let spec = DoorbellSpec { space: IoSpace::Mmio, address: 0xd000_0000, width: 2, data_match: None };
    transaction.add_doorbell(Doorbell { spec, event: event(), arm: Arm::Now, owner }).unwrap();
}

/// What a call is, of those whose order matters.
fn kind(call: &Call) -> Option<&'static str> {
    match call {
        Call::SetSlot(_) | Call::RemoveSlot(_) => Some("slot"),
        Call::CreateIrqchip { mode: IrqchipMode::Kernel, .. } => Some("interrupt controllers"),
        Call::CreateIrqchip { mode: IrqchipMode::Split, .. } => Some("local APICs"),
        Call::CreateVcpu { .. } => Some("vCPU"),
        Call::SetRoutes(_) => Some("routes"),
        Call::AddIrqfd { .. } => Some("irqfd"),
        Call::AddDoorbell { .. } => Some("doorbell"),
        _ => None,
    }
}

/// The slots come first, and none comes again; then the rest, all of it.
fn check(calls: &[Call], controllers: &'static str, what: &str) {
    let kinds: Vec<&str> = calls.iter().filter_map(kind).collect();
    let slots = kinds.iter().take_while(|kind| **kind == "slot").count();
    assert!(slots >= 2, "{what}: {kinds:?}");
    let later = &kinds[slots..];
    assert!(!later.contains(&"slot"), "{what}: {kinds:?}");
    let expected = [controllers, "vCPU", "vCPU", "routes", "irqfd", "doorbell"];
    assert_eq!(later, expected, "{what}");
}

#[test]
fn slots_are_set_before_all_that_they_would_wait_for_and_not_again() {
    let kernel = json!({ "boot_vcpus": 2, "max_vcpus": 2 });
    // APIC ids beyond those of the kernel's IOAPIC.
    let split = json!({ "boot_vcpus": 2, "max_vcpus": 162, "topology":
        { "threads_per_core": 1, "cores_per_die": 9, "dies_per_package": 9, "packages": 2 } });
    for (cpus, controllers) in [(kernel, "interrupt controllers"), (split, "local APICs")] {
        for commits in [Commits::Once, Commits::Each] {
            let bench = Bench::new();
            let said: Value = json!({ "cpus": cpus, "memory": { "size": BOTH_SIDES_OF_THE_HOLE } });
            let saved = bench.saved(said.clone());
            let (config, supported) = (bench.config(said), bench.host.hypervisor.supported_cpuid().unwrap());
            bench.hypervisor.recorder().take();
            wire_a_vhost_device(&saved.ground.transaction);
            saved.load();
            assert!(
                bench.hypervisor.recorder().wiring_calls().is_empty(),
                "nothing is set before the commit"
            );
            let layout = &saved.ground.layout;
            let plans = vcpu_plans(&config.cpus, layout, &supported, |_| VcpuStart::Waiting).unwrap();
            let machine = saved.commit(&bench.host, plans, commits);
            let calls = bench.hypervisor.recorder().calls();
            check(&calls, controllers, &format!("{controllers}, {commits:?}"));
            drop(machine);
        }
    }
}
