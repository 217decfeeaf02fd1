//! Dirty pages, by bitmap and by ring.

use super::{HOLE, Machine, Ram, Seen, code, host, out, run, store_word};
use crate::{Hypervisor, MemorySlot, SlotFlags, VcpuExit, VmOptions};

/// Not a multiple of 64, so that the last word of the bitmap is not whole.
const PAGES: usize = 70;

/// Writes to pages 1 and 3 of the slot, tells so, writes to page 3 again, and halts.
fn check(host: &dyn Hypervisor, options: &VmOptions) {
    let guest =
        code(&[&store_word(0x9000, 1), &store_word(0xb000, 1), &out(0x10, 0), &store_word(0xb000, 2)]);
    let machine = Machine::with_options(host, options, None, &guest);
    let ram = Ram::new(PAGES);
    let plain = ram.slot(1, HOLE);
    let logged = MemorySlot { flags: SlotFlags::LOG_DIRTY, ..plain };
    machine.vm.wiring().set_slot(&logged).unwrap();
    let take = || machine.vm.take_dirty_log(1, plain.size);
    assert_eq!(take().unwrap(), [0, 0]);
    let mut vcpu = machine.vcpu(host);
    let mut seen = Seen::default();
    assert_eq!(vcpu.run(&mut seen).unwrap(), VcpuExit::Handled);
    assert_eq!(take().unwrap(), [0b1010, 0]);
    assert_eq!(take().unwrap(), [0, 0]);
    assert_eq!(run(&mut *vcpu, &mut seen), VcpuExit::Halted);
    assert_eq!(take().unwrap(), [0b1000, 0]);

    assert!(machine.vm.take_dirty_log(1, plain.size - 4096).is_err(), "another size");
    assert!(machine.vm.take_dirty_log(0, 0x8000).is_err(), "not tracked");
    assert!(machine.vm.take_dirty_log(9, 0x8000).is_err(), "no such slot");
    machine.vm.wiring().set_slot(&plain).unwrap();
    assert!(take().is_err(), "not tracked any more");
    machine.vm.wiring().remove_slot(&plain).unwrap();
}

#[test]
fn by_bitmap() {
    let Some(host) = host() else { return };
    check(&*host, &VmOptions::default());
}

#[test]
fn by_ring() {
    let Some(host) = host() else { return };
    match host.capabilities().dirty_ring_entries {
        0 => println!("SKIPPED: this host has no dirty ring"),
        most => check(&*host, &VmOptions { dirty_ring_entries: most.min(4096) }),
    }
}

#[test]
fn a_full_ring_is_emptied_and_nothing_is_lost() {
    let Some(host) = host() else { return };
    let most = host.capabilities().dirty_ring_entries;
    if most == 0 {
        println!("SKIPPED: this host has no dirty ring");
        return;
    }
    // More pages than the smallest ring has entries, in one unreal-mode segment: es has no limit.
    //   mov edi, HOLE; mov ecx, pages; again: mov es:[edi], al; out 0x10, al; add edi, 4096; dec ecx; jnz again
    // The port access makes KVM look at the ring, which a host that emulates might put off.
    let entries = 1024.min(most);
    let pages = 1500u32;
    let mut guest = vec![0x66, 0xbf];
    guest.extend(u32::try_from(HOLE).unwrap().to_le_bytes());
    guest.extend([0x66, 0xb9]);
    guest.extend(pages.to_le_bytes());
    guest.extend([0x26, 0x67, 0x88, 0x07]);
    guest.extend([0xe6, 0x10]);
    guest.extend([0x66, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00]);
    guest.extend([0x66, 0x49, 0x75, 0xef]);
    let options = VmOptions { dirty_ring_entries: entries };
    let machine = Machine::with_options(&*host, &options, None, &code(&[&guest]));
    let ram = Ram::new(pages as usize);
    let slot = MemorySlot { flags: SlotFlags::LOG_DIRTY, ..ram.slot(1, HOLE) };
    machine.vm.wiring().set_slot(&slot).unwrap();
    let mut vcpu = machine.vcpu(&*host);
    let mut ready = super::real_mode(super::CODE);
    ready.data.limit = u32::MAX;
    ready.data.granularity = true;
    vcpu.set_ready(&ready).unwrap();
    assert_eq!(run(&mut *vcpu, &mut Seen::default()), VcpuExit::Halted);
    let bitmap = machine.vm.take_dirty_log(1, slot.size).unwrap();
    assert_eq!(bitmap.iter().map(|word| word.count_ones()).sum::<u32>(), pages);
}
