//! The fake back end must refuse what KVM refuses, or tests built on it prove nothing.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    thread,
};

use super::*;
use crate::{
    DoorbellSpec, ExitBus, IoSpace, IrqchipMode, Irqfd, MemorySlot, MsiMessage, Route, RouteTarget,
    SlotFlags, VcpuExit, WiringOps,
    x86_64::{ReadyRegisters, StatePart},
};

const PAGE: u64 = 4096;

fn event() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

fn slot(number: u32, first_page: u64, pages: u64) -> MemorySlot {
    MemorySlot {
        slot: number,
        guest_address: first_page * PAGE,
        size: pages * PAGE,
        host_address: 0x7000_0000 + first_page * PAGE,
        flags: SlotFlags::empty(),
    }
}

fn bell(address: u64, width: u8, data_match: Option<u64>) -> DoorbellSpec {
    DoorbellSpec { space: IoSpace::Mmio, address, width, data_match }
}

fn msi(gsi: u32) -> Route {
    Route { gsi, target: RouteTarget::Msi(MsiMessage { address: 0xfee0_0000, data: gsi, device_id: 0 }) }
}

#[derive(Default)]
struct Seen(Vec<String>);

impl ExitBus for Seen {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        data.fill(0x5a);
        self.0.push(format!("in {port:#x} {}", data.len()));
    }
    fn port_write(&mut self, port: u16, data: &[u8]) {
        self.0.push(format!("out {port:#x} {data:?}"));
    }
    fn mmio_read(&mut self, address: u64, data: &mut [u8]) {
        data.fill(0xa5);
        self.0.push(format!("read {address:#x} {}", data.len()));
    }
    fn mmio_write(&mut self, address: u64, data: &[u8]) {
        self.0.push(format!("write {address:#x} {data:?}"));
    }
}

#[test]
fn slots_may_touch_but_not_overlap() {
    let vm = FakeVm::new();
    vm.set_slot(&slot(0, 0, 16)).unwrap();
    vm.set_slot(&slot(1, 16, 16)).unwrap();
    let before = vm.wiring_state();
    assert!(vm.set_slot(&slot(2, 31, 1)).is_err());
    assert!(vm.set_slot(&slot(2, 15, 2)).is_err());
    assert!(vm.set_slot(&slot(0, 0, 8)).is_err(), "a slot cannot be resized");
    assert!(vm.remove_slot(&slot(2, 31, 1)).is_err(), "no such slot");
    assert!(vm.remove_slot(&slot(1, 16, 15)).is_err(), "not the value it was set with");
    assert_eq!(vm.wiring_state(), before);
    vm.remove_slot(&slot(0, 0, 16)).unwrap();
    vm.set_slot(&slot(2, 0, 16)).unwrap();
}

#[test]
fn slot_flags_change_in_place_except_read_only() {
    let vm = FakeVm::new();
    let plain = slot(0, 0, 16);
    vm.set_slot(&plain).unwrap();
    let logged = MemorySlot { flags: SlotFlags::LOG_DIRTY, ..plain };
    vm.set_slot(&logged).unwrap();
    assert_eq!(vm.wiring_state().slots[&0], logged);
    assert!(vm.set_slot(&MemorySlot { flags: SlotFlags::READ_ONLY, ..plain }).is_err());
}

#[test]
fn malformed_slots_are_refused() {
    let vm = FakeVm::new();
    let good = slot(0, 1, 1);
    for bad in [
        MemorySlot { size: 0, ..good },
        MemorySlot { size: 100, ..good },
        MemorySlot { guest_address: 1, ..good },
        MemorySlot { host_address: 1, ..good },
        MemorySlot { guest_address: u64::MAX - PAGE + 1, size: 2 * PAGE, ..good },
        MemorySlot { host_address: u64::MAX - PAGE + 1, size: 2 * PAGE, ..good },
        MemorySlot { size: 1 << 43, ..good },
        MemorySlot { slot: capable().max_slots, ..good },
    ] {
        assert!(vm.set_slot(&bad).is_err(), "{bad:x?}");
    }
    assert_eq!(vm.wiring_state(), FakeWiring::default());
}

#[test]
fn doorbells_collide_as_in_kvm() {
    let vm = FakeVm::new();
    let (a, b) = (event(), event());
    vm.add_doorbell(&bell(0x1000, 2, Some(1)), a.as_fd()).unwrap();
    vm.add_doorbell(&bell(0x1000, 2, Some(2)), a.as_fd()).unwrap();
    vm.add_doorbell(&bell(0x1000, 4, None), b.as_fd()).unwrap();
    let pio = DoorbellSpec { space: IoSpace::Pio, ..bell(0x1000, 2, None) };
    vm.add_doorbell(&pio, b.as_fd()).unwrap();
    for taken in [bell(0x1000, 2, Some(1)), bell(0x1000, 2, None), bell(0x1000, 0, None)] {
        assert!(vm.add_doorbell(&taken, b.as_fd()).is_err(), "{taken:x?}");
    }
    for malformed in [bell(0x2000, 3, None), bell(0x2000, 0, Some(1)), bell(u64::MAX, 2, None)] {
        assert!(vm.add_doorbell(&malformed, b.as_fd()).is_err(), "{malformed:x?}");
    }
    let wiring = vm.wiring_state();
    assert_eq!(wiring.rung_by(IoSpace::Mmio, 0x1000, &[2, 0]), Some(a.as_raw_fd()));
    assert_eq!(wiring.rung_by(IoSpace::Mmio, 0x1000, &[3, 0]), None);
    assert_eq!(wiring.rung_by(IoSpace::Mmio, 0x1000, &[3, 0, 0, 0]), Some(b.as_raw_fd()));
    assert!(vm.remove_doorbell(&bell(0x1000, 2, Some(1)), b.as_fd()).is_err(), "another eventfd");
    vm.remove_doorbell(&bell(0x1000, 2, Some(1)), a.as_fd()).unwrap();
    assert!(vm.remove_doorbell(&bell(0x1000, 2, Some(1)), a.as_fd()).is_err(), "gone already");
}

#[test]
fn routes_and_irqfds_lead_somewhere() {
    let vm = FakeVm::new();
    let (a, b) = (event(), event());
    vm.set_routes(&[msi(40), msi(41)]).unwrap();
    vm.add_irqfd(&Irqfd { gsi: 41, event: a.as_fd(), resample: None }).unwrap();
    assert_eq!(vm.wiring_state().raised_by(a.as_raw_fd()), [msi(41).target]);
    let limit = capable().max_gsis;
    assert!(vm.set_routes(&[msi(limit)]).is_err());
    assert!(vm.set_routes(&[msi(40), msi(40)]).is_err());
    assert!(vm.add_irqfd(&Irqfd { gsi: 40, event: a.as_fd(), resample: None }).is_err());
    assert!(vm.add_irqfd(&Irqfd { gsi: limit, event: b.as_fd(), resample: None }).is_err());
    assert!(vm.remove_irqfd(&Irqfd { gsi: 40, event: a.as_fd(), resample: None }).is_err());
    vm.remove_irqfd(&Irqfd { gsi: 41, event: a.as_fd(), resample: None }).unwrap();
    assert_eq!(vm.wiring_state().raised_by(a.as_raw_fd()), []);
}

#[test]
fn a_pin_may_share_its_gsi_with_another_chip() {
    let vm = FakeVm::new();
    let pin = |chip, pin| Route { gsi: 4, target: RouteTarget::Irqchip { chip, pin } };
    vm.set_routes(&[pin(0, 4), pin(2, 4)]).unwrap();
    assert!(vm.set_routes(&[pin(2, 4), pin(2, 5)]).is_err());
    assert!(vm.set_routes(&[pin(2, 24)]).is_err());
    assert!(vm.set_routes(&[pin(3, 0)]).is_err());
}

#[test]
fn without_an_irqchip_no_interrupt_wiring() {
    let host = FakeHypervisor::new();
    let vm = host.create_vm(&VmOptions::default()).unwrap();
    let a = event();
    assert!(vm.wiring().set_routes(&[msi(40)]).is_err());
    assert!(vm.wiring().add_irqfd(&Irqfd { gsi: 40, event: a.as_fd(), resample: None }).is_err());
    vm.create_irqchip(IrqchipMode::Split, false).unwrap();
    vm.wiring().set_routes(&[msi(40)]).unwrap();
    let resampled = Irqfd { gsi: 40, event: a.as_fd(), resample: Some(a.as_fd()) };
    assert!(vm.wiring().add_irqfd(&resampled).is_err());
}

#[test]
fn the_kth_call_fails_and_has_no_effect() {
    let vm = FakeVm::new();
    for k in 0..3 {
        let before = vm.wiring_state();
        vm.inject(Fault::Wiring(k));
        let results = [0, 1, 2].map(|n| vm.set_slot(&slot(n, u64::from(n) * 16, 16)).is_ok());
        assert_eq!(results, [k != 0, k != 1, k != 2]);
        for n in [0, 1, 2].into_iter().filter(|n| *n as usize != k) {
            vm.remove_slot(&slot(n, u64::from(n) * 16, 16)).unwrap();
        }
        assert_eq!(vm.wiring_state(), before);
    }
    vm.inject(Fault::WiringFrom(1));
    vm.set_routes(&[]).unwrap();
    assert!(vm.set_routes(&[]).is_err());
    assert!(vm.set_routes(&[]).is_err());
    vm.recorder().clear_fault();
    vm.set_routes(&[]).unwrap();
}

#[test]
fn any_call_can_fail_and_all_are_logged_in_order() {
    let host = FakeHypervisor::new();
    host.recorder().inject(Fault::Any(1));
    let vm = host.create_vm(&VmOptions::default()).unwrap();
    assert!(vm.create_irqchip(IrqchipMode::Kernel, true).is_err());
    vm.create_irqchip(IrqchipMode::Kernel, true).unwrap();
    let chip = Call::CreateIrqchip { mode: IrqchipMode::Kernel, pit: true };
    assert_eq!(
        host.recorder().take(),
        [
            Entry { call: Call::CreateVm { dirty_ring_entries: 0 }, injected: false },
            Entry { call: chip.clone(), injected: true },
            Entry { call: chip, injected: false },
        ]
    );
    assert!(host.recorder().is_empty());
}

#[test]
fn a_script_is_played_and_goes_on_after_a_restore() {
    let script = vec![
        Step::PortWrite { port: 0x3f8, data: vec![7] },
        Step::MmioRead { address: 0xd000_0000, width: 4 },
        Step::MmioWrite { address: 0x1000, data: vec![1, 0] },
        Step::Exit(VcpuExit::Shutdown),
    ];
    let vm = FakeVm::new();
    let a = event();
    vm.add_doorbell(&bell(0x1000, 2, None), a.as_fd()).unwrap();
    vm.script(0, script.clone());
    let mut vcpu = vm.create_vcpu(0, 0).unwrap();
    vcpu.set_ready(&ReadyRegisters { rip: 0x10_0000, ..ReadyRegisters::default() }).unwrap();
    let mut seen = Seen::default();
    for _ in 0..2 {
        assert_eq!(vcpu.run(&mut seen).unwrap(), VcpuExit::Handled);
    }
    assert_eq!(seen.0, ["out 0x3f8 [7]", "read 0xd0000000 4"]);
    let saved = vcpu.save().unwrap();

    let other = FakeVm::new();
    other.add_doorbell(&bell(0x1000, 2, None), a.as_fd()).unwrap();
    other.script(0, script);
    let mut restored = other.create_vcpu(0, 0).unwrap();
    restored.load(&saved).unwrap();
    assert_eq!(restored.save().unwrap(), saved);
    let mut seen = Seen::default();
    assert_eq!(restored.run(&mut seen).unwrap(), VcpuExit::Handled);
    assert!(seen.0.is_empty(), "the doorbell swallowed the write");
    let rang = Call::Vcpu { index: 0, call: VcpuCall::Rang(a.as_raw_fd()) };
    assert!(other.recorder().calls().contains(&rang));
    assert_eq!(restored.run(&mut seen).unwrap(), VcpuExit::Shutdown);
}

#[test]
fn a_kick_ends_the_current_or_the_next_run() {
    let vm = FakeVm::new();
    let mut vcpu = vm.create_vcpu(0, 0).unwrap();
    let kicker = vcpu.kicker();
    kicker.kick();
    kicker.kick();
    assert_eq!(vcpu.run(&mut Seen::default()).unwrap(), VcpuExit::Interrupted);
    thread::scope(|scope| {
        let run = scope.spawn(|| vcpu.run(&mut Seen::default()).unwrap());
        kicker.kick();
        assert_eq!(run.join().unwrap(), VcpuExit::Interrupted);
    });
}

#[test]
fn damaged_state_is_refused() {
    let vm = FakeVm::new();
    let mut vcpu = vm.create_vcpu(0, 0).unwrap();
    let good = vcpu.save().unwrap();
    for index in 0..good.parts.len() {
        let mut missing = good.clone();
        missing.parts.remove(index);
        assert!(vcpu.load(&missing).is_err());
        let mut renamed = good.clone();
        renamed.parts[index].name.push('x');
        assert!(vcpu.load(&renamed).is_err());
        let mut long = good.clone();
        long.parts[index].bytes.extend([0; 9]);
        assert!(vcpu.load(&long).is_err());
    }
    let chip = vm.save_irqchip().unwrap();
    vm.load_irqchip(&chip).unwrap();
    let mut twice = chip.clone();
    twice.parts.push(StatePart { name: "fake.lines".to_owned(), bytes: vec![0; 24] });
    assert!(vm.load_irqchip(&twice).is_err());
}

#[test]
fn dirty_pages_are_taken_once() {
    let vm = FakeVm::new();
    vm.set_slot(&slot(0, 0, 70)).unwrap();
    assert!(vm.take_dirty_log(0, 70 * PAGE).is_err(), "not tracked");
    vm.set_slot(&MemorySlot { flags: SlotFlags::LOG_DIRTY, ..slot(0, 0, 70) }).unwrap();
    vm.dirty_page(0, 69);
    vm.dirty_page(0, 70);
    assert_eq!(vm.take_dirty_log(0, 70 * PAGE).unwrap(), [0, 1 << 5]);
    assert_eq!(vm.take_dirty_log(0, 70 * PAGE).unwrap(), [0, 0]);
    assert!(vm.take_dirty_log(0, 64 * PAGE).is_err(), "another size");
}
