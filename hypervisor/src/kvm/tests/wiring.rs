//! Slots and doorbells, as the guest sees them.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Access, HOLE, Machine, PAGE, Ram, Seen, code, host, out, run, store_word};
use crate::{DoorbellSpec, IoSpace, MemorySlot, SlotFlags, VcpuExit};

/// An eventfd that can be borrowed.
pub(super) struct Event(EventFd, OwnedFd);

impl Event {
    pub(super) fn new() -> Self {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let copy: OwnedFd = owned(event.try_clone().unwrap());
        Self(event, copy)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.1.as_fd()
    }

    pub(super) fn signal(&self) {
        self.0.write(1).unwrap();
    }

    /// How often it was signalled since the last call.
    pub(super) fn count(&self) -> u64 {
        self.0.read().unwrap_or(0)
    }
}

#[expect(unsafe_code, reason = "EventFd gives its descriptor away as a number only")]
fn owned(event: EventFd) -> OwnedFd {
    // SAFETY: `into_raw_fd` has just given up an open descriptor.
    unsafe { OwnedFd::from_raw_fd(event.into_raw_fd()) }
}

/// mov ax, [address]; out 0x10, ax
fn show_word(address: u16) -> [u8; 5] {
    let [low, high] = address.to_le_bytes();
    [0xa1, low, high, 0xe7, 0x10]
}

#[test]
fn a_slot_appears_and_disappears() {
    let Some(host) = host() else { return };
    let guest = code(&[&show_word(0x8000), &show_word(0x8000), &show_word(0x8000)]);
    let machine = Machine::new(&*host, None, &guest);
    let more = Ram::new(1);
    more.write(0, &[0xcd, 0xab]);
    let slot = more.slot(1, HOLE);
    let mut vcpu = machine.vcpu(&*host);
    let mut seen = Seen::default();
    let mut next = |count: usize| {
        for _ in 0..count {
            assert_eq!(vcpu.run(&mut seen).unwrap(), VcpuExit::Handled);
        }
        std::mem::take(&mut seen.accesses)
    };
    assert_eq!(next(2), [Access::Read(HOLE, 2), Access::Out(0x10, vec![1, 2])]);
    machine.vm.wiring().set_slot(&slot).unwrap();
    assert_eq!(next(1), [Access::Out(0x10, vec![0xcd, 0xab])]);
    machine.vm.wiring().remove_slot(&slot).unwrap();
    assert_eq!(next(2), [Access::Read(HOLE, 2), Access::Out(0x10, vec![3, 4])]);
}

#[test]
fn what_kvm_refuses_names_the_slot() {
    let Some(host) = host() else { return };
    let machine = Machine::new(&*host, None, &[]);
    let more = Ram::new(1);
    let good = more.slot(1, HOLE);
    for bad in [
        MemorySlot { guest_address: 0x1000, ..good },
        MemorySlot { guest_address: 0x8001, ..good },
        MemorySlot { size: 0, ..good },
        MemorySlot { size: 100, ..good },
        MemorySlot { slot: host.capabilities().max_slots, ..good },
        MemorySlot { slot: u32::MAX, ..good },
    ] {
        let error = machine.vm.wiring().set_slot(&bad).unwrap_err();
        assert!(error.to_string().contains(&bad.slot.to_string()), "{error}");
    }
    assert!(machine.vm.wiring().remove_slot(&good).is_err(), "never set");
    machine.vm.wiring().set_slot(&good).unwrap();
    let moved = MemorySlot { guest_address: good.guest_address + 0x1000, ..good };
    assert!(machine.vm.wiring().set_slot(&moved).is_err(), "a slot does not move");
    machine.vm.wiring().remove_slot(&good).unwrap();
}

#[test]
fn writes_to_a_read_only_slot_exit() {
    let Some(host) = host() else { return };
    if !host.capabilities().read_only_slots {
        println!("SKIPPED: this host has no read-only slots");
        return;
    }
    let machine = Machine::new(&*host, None, &code(&[&show_word(0x8000), &store_word(0x8002, 0x1234)]));
    let rom = Ram::new(1);
    rom.write(0, &[0x55, 0xaa]);
    let slot = MemorySlot { flags: SlotFlags::READ_ONLY, ..rom.slot(1, HOLE) };
    machine.vm.wiring().set_slot(&slot).unwrap();
    let mut seen = Seen::default();
    assert_eq!(run(&mut *machine.vcpu(&*host), &mut seen), VcpuExit::Halted);
    assert_eq!(seen.accesses, [Access::Out(0x10, vec![0x55, 0xaa]), Access::Write(0x8002, vec![0x34, 0x12])]);
    assert_eq!(rom.read(2, 2), [0, 0]);
    machine.vm.wiring().remove_slot(&slot).unwrap();
}

fn bell(space: IoSpace, address: u64, width: u8, data_match: Option<u64>) -> DoorbellSpec {
    DoorbellSpec { space, address, width, data_match }
}

#[test]
fn doorbells_ring_in_the_place_of_exits() {
    let Some(host) = host() else { return };
    let guest = code(&[
        &out(0x30, 7),
        &store_word(0x9000, 1),
        &store_word(0x9000, 2),
        &store_word(0x9000, 2),
        &store_word(0x9000, 3),
        &store_word(0x9100, 9),
    ]);
    let machine = Machine::new(&*host, None, &guest);
    let wiring = machine.vm.wiring();
    let [port, one, two, any] = [(); 4].map(|()| Event::new());
    let mut bells = vec![
        (bell(IoSpace::Pio, 0x30, 1, None), &port),
        (bell(IoSpace::Mmio, 0x9000, 2, Some(1)), &one),
        (bell(IoSpace::Mmio, 0x9000, 2, Some(2)), &two),
    ];
    if host.capabilities().doorbell_any_width {
        bells.push((bell(IoSpace::Mmio, 0x9100, 0, None), &any));
    }
    for (bell, event) in &bells {
        wiring.add_doorbell(bell, event.fd()).unwrap();
        let error = wiring.add_doorbell(bell, event.fd()).unwrap_err();
        assert!(error.to_string().contains(&format!("{:x}", bell.address)), "{error}");
    }
    let mut seen = Seen::default();
    assert_eq!(run(&mut *machine.vcpu(&*host), &mut seen), VcpuExit::Halted);
    assert_eq!((port.count(), one.count(), two.count()), (1, 1, 2));
    assert_eq!(any.count() + u64::from(bells.len() == 3), 1);
    assert_eq!(seen.accesses[0], Access::Write(0x9000, vec![3, 0]));
    for (bell, event) in &bells {
        wiring.remove_doorbell(bell, event.fd()).unwrap();
        assert!(wiring.remove_doorbell(bell, event.fd()).is_err(), "gone already");
    }
}

#[test]
fn every_width_can_be_a_doorbell_and_no_other() {
    let Some(host) = host() else { return };
    let machine = Machine::new(&*host, None, &[]);
    let event = Event::new();
    for width in [1, 2, 4, 8] {
        for data_match in [None, Some(u64::from(width))] {
            let bell = bell(IoSpace::Mmio, 0x9000 + u64::from(width) * 16, width, data_match);
            machine.vm.wiring().add_doorbell(&bell, event.fd()).unwrap();
            machine.vm.wiring().remove_doorbell(&bell, event.fd()).unwrap();
        }
    }
    for width in [3, 5, 9, 255] {
        assert!(
            machine.vm.wiring().add_doorbell(&bell(IoSpace::Mmio, 0x9000, width, None), event.fd()).is_err()
        );
    }
    let matched = bell(IoSpace::Mmio, 0x9000, 0, Some(1));
    assert!(machine.vm.wiring().add_doorbell(&matched, event.fd()).is_err());
}

#[test]
fn a_removed_doorbell_exits_again() {
    let Some(host) = host() else { return };
    let machine = Machine::new(&*host, None, &code(&[&out(0x30, 1), &out(0x31, 0), &out(0x30, 2)]));
    let event = Event::new();
    let doorbell = bell(IoSpace::Pio, 0x30, 1, None);
    machine.vm.wiring().add_doorbell(&doorbell, event.fd()).unwrap();
    let mut vcpu = machine.vcpu(&*host);
    let mut seen = Seen::default();
    assert_eq!(vcpu.run(&mut seen).unwrap(), VcpuExit::Handled);
    machine.vm.wiring().remove_doorbell(&doorbell, event.fd()).unwrap();
    assert_eq!(run(&mut *vcpu, &mut seen), VcpuExit::Halted);
    assert_eq!(seen.accesses, [Access::Out(0x31, vec![0]), Access::Out(0x30, vec![2])]);
    assert_eq!(event.count(), 1);
}

#[test]
fn slots_take_whole_pages_of_this_process() {
    // The test memory itself must be what a slot wants.
    let slot = Ram::new(3).slot(0, 0);
    assert_eq!((slot.host_address % PAGE as u64, slot.size), (0, 3 * PAGE as u64));
}
