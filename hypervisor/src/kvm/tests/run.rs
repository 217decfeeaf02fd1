//! Entering the guest: accesses, kicks, and the ends of a run.

use std::{sync::mpsc, thread};

use super::{Access, CODE, DATA, HLT, Machine, Seen, accesses_of, code, host, out, real_mode, run};
use crate::{Vcpu, VcpuExit};

/// `jmp $`.
const SPIN: [u8; 2] = [0xeb, 0xfe];

#[test]
fn port_accesses_of_one_byte() {
    // in al, 0x11; out 0x12, al
    let Some(seen) = accesses_of(&code(&[&out(0x10, 0x42), &[0xe4, 0x11, 0xe6, 0x12]])) else { return };
    assert_eq!(seen, [Access::Out(0x10, vec![0x42]), Access::In(0x11, 1), Access::Out(0x12, vec![1])]);
}

#[test]
fn port_accesses_of_two_and_four_bytes() {
    // mov dx, 0xcf8; in ax, dx; out dx, ax; in eax, dx; out dx, eax
    let guest = code(&[&[0xba, 0xf8, 0x0c], &[0xed, 0xef], &[0x66, 0xed, 0x66, 0xef]]);
    let Some(seen) = accesses_of(&guest) else { return };
    assert_eq!(
        seen,
        [
            Access::In(0xcf8, 2),
            Access::Out(0xcf8, vec![1, 2]),
            Access::In(0xcf8, 4),
            Access::Out(0xcf8, vec![3, 4, 5, 6]),
        ]
    );
}

#[test]
fn memory_accesses() {
    // mov al, [0x9000]; mov [0x9001], al; mov ax, [0x9002]; mov [0x9004], ax; mov eax, [0x9008]; mov [0x900c], eax
    let guest = code(&[
        &[0xa0, 0x00, 0x90, 0xa2, 0x01, 0x90],
        &[0xa1, 0x02, 0x90, 0xa3, 0x04, 0x90],
        &[0x66, 0xa1, 0x08, 0x90, 0x66, 0xa3, 0x0c, 0x90],
    ]);
    let Some(seen) = accesses_of(&guest) else { return };
    assert_eq!(
        seen,
        [
            Access::Read(0x9000, 1),
            Access::Write(0x9001, vec![1]),
            Access::Read(0x9002, 2),
            Access::Write(0x9004, vec![2, 3]),
            Access::Read(0x9008, 4),
            Access::Write(0x900c, vec![4, 5, 6, 7]),
        ]
    );
}

/// cld; mov si, DATA; mov di, DATA + 0x100; mov dx, 0x20; mov cx, count; then the instruction.
fn string_guest(count: u8, instruction: &[u8]) -> Vec<u8> {
    code(&[&[0xfc, 0xbe, 0x00, 0x20, 0xbf, 0x00, 0x21, 0xba, 0x20, 0x00, 0xb9, count, 0x00], instruction])
}

#[test]
fn string_output_is_one_access_an_element() {
    let Some(host) = host() else { return };
    for (instruction, width) in [(&[0xf3, 0x6e][..], 1), (&[0xf3, 0x6f], 2), (&[0x66, 0xf3, 0x6f], 4)] {
        let machine = Machine::new(&*host, None, &string_guest(5, instruction));
        let data: Vec<u8> = (0..20).collect();
        machine.ram.write(DATA, &data);
        let mut seen = Seen::default();
        assert_eq!(run(&mut *machine.vcpu(&*host), &mut seen), VcpuExit::Halted);
        let expected: Vec<_> =
            data[..5 * width].chunks(width).map(|chunk| Access::Out(0x20, chunk.to_vec())).collect();
        assert_eq!(seen.accesses, expected);
    }
}

#[test]
fn string_input_is_one_access_an_element() {
    let Some(host) = host() else { return };
    for (instruction, width) in [(&[0xf3, 0x6c][..], 1), (&[0xf3, 0x6d], 2), (&[0x66, 0xf3, 0x6d], 4)] {
        let machine = Machine::new(&*host, None, &string_guest(5, instruction));
        let mut seen = Seen::default();
        assert_eq!(run(&mut *machine.vcpu(&*host), &mut seen), VcpuExit::Halted);
        assert_eq!(seen.accesses, vec![Access::In(0x20, width); 5]);
        let given: Vec<u8> = (1..).take(5 * width).collect();
        assert_eq!(machine.ram.read(DATA + 0x100, 5 * width), given);
    }
}

#[test]
fn a_triple_fault_is_a_reset() {
    let Some(host) = host() else { return };
    // ud2 in protected mode, without a table to find a handler in, nor one for the faults that follow.
    let machine = Machine::new(&*host, None, &[0x0f, 0x0b]);
    let mut vcpu = machine.vcpu(&*host);
    let mut ready = real_mode(CODE);
    ready.cr0 |= 1;
    ready.cs.big = true;
    vcpu.set_ready(&ready).unwrap();
    assert_eq!(run(&mut *vcpu, &mut Seen::default()), VcpuExit::Reset);
}

#[test]
fn running_where_nothing_is_fails_with_the_place() {
    let Some(host) = host() else { return };
    // jmp 0x9000, where no memory is: KVM cannot fetch an instruction to emulate.
    let machine = Machine::new(&*host, None, &[0xe9, 0xfd, 0x7f]);
    let mut vcpu = machine.vcpu(&*host);
    match run(&mut *vcpu, &mut Seen::default()) {
        VcpuExit::Failed(text) => {
            assert!(text.starts_with("vCPU 0 at rip 0x9000: "), "{text}");
        }
        exit => panic!("{exit:?}"),
    }
}

#[test]
fn a_kick_before_a_run_ends_it_once() {
    let Some(host) = host() else { return };
    let machine = Machine::new(&*host, None, &code(&[&out(0x10, 1)]));
    let mut vcpu = machine.vcpu(&*host);
    let kicker = vcpu.kicker();
    kicker.kick();
    kicker.kick();
    let mut seen = Seen::default();
    assert_eq!(vcpu.run(&mut seen).unwrap(), VcpuExit::Interrupted);
    assert_eq!(vcpu.run(&mut seen).unwrap(), VcpuExit::Handled);
    assert_eq!(seen.accesses, [Access::Out(0x10, vec![1])]);
}

#[test]
fn a_kick_ends_a_run_under_way() {
    let Some(host) = host() else { return };
    let machine = Machine::new(&*host, None, &SPIN);
    let (kickers, kicker) = mpsc::channel();
    let (turns, turn) = mpsc::channel();
    thread::scope(|scope| {
        let vcpu = machine.vcpu(&*host);
        scope.spawn(move || {
            let mut vcpu = vcpu;
            kickers.send(vcpu.kicker()).unwrap();
            while turns.send(vcpu.run(&mut Seen::default()).unwrap()).is_ok() {}
        });
        let kicker = kicker.recv().unwrap();
        // Whatever the vCPU's thread is doing at the time, no kick may be lost: each must end a run.
        for _ in 0..2000 {
            kicker.kick();
            assert_eq!(turn.recv().unwrap(), VcpuExit::Interrupted);
            while turn.try_recv().is_ok() {}
        }
        drop(turn);
        kicker.kick();
    });
}

#[test]
fn a_kicker_outlives_its_thread_and_its_vcpu() {
    let Some(host) = host() else { return };
    let machine = Machine::new(&*host, None, &[HLT]);
    let mut vcpu = machine.vcpu(&*host);
    let (mut vcpu, kicker) = thread::spawn(move || {
        let kicker = vcpu.kicker();
        (vcpu, kicker)
    })
    .join()
    .unwrap();
    kicker.kick();
    assert_eq!(vcpu.run(&mut Seen::default()).unwrap(), VcpuExit::Interrupted);
    drop(vcpu);
    kicker.kick();
    drop(machine);
    kicker.kick();
}

#[test]
fn settling_delivers_the_answer_and_runs_nothing_more() {
    let Some(host) = host() else { return };
    // in al, 0x11; out 0x12, al
    let machine = Machine::new(&*host, None, &code(&[&[0xe4, 0x11, 0xe6, 0x12]]));
    let mut vcpu = machine.vcpu(&*host);
    let mut seen = Seen::default();
    assert_eq!(vcpu.run(&mut seen).unwrap(), VcpuExit::Handled);
    vcpu.settle(&mut seen).unwrap();
    assert_eq!(seen.accesses, [Access::In(0x11, 1)]);
    let state = vcpu.save().unwrap();
    let regs = &state.parts.iter().find(|part| part.name == "kvm.regs").unwrap().bytes;
    let word = |at: usize| u64::from_le_bytes(regs[at * 8..at * 8 + 8].try_into().unwrap());
    assert_eq!(word(0) & 0xff, 1, "AL has what the port gave");
    assert_eq!(word(16), CODE + 2, "RIP is behind the instruction");
    assert_eq!(vcpu.run(&mut seen).unwrap(), VcpuExit::Handled);
    assert_eq!(seen.accesses, [Access::In(0x11, 1), Access::Out(0x12, vec![1])]);
}

#[test]
fn settling_keeps_a_kick() {
    let Some(host) = host() else { return };
    let machine = Machine::new(&*host, None, &[HLT]);
    let mut vcpu: Box<dyn Vcpu> = machine.vcpu(&*host);
    let kicker = vcpu.kicker();
    let mut seen = Seen::default();
    kicker.kick();
    vcpu.settle(&mut seen).unwrap();
    assert_eq!(vcpu.run(&mut seen).unwrap(), VcpuExit::Interrupted);
    assert_eq!(vcpu.run(&mut seen).unwrap(), VcpuExit::Halted);
}
