//! Save in one VM, load in another, and go on there.

use super::{Access, CODE, DATA, Machine, Seen, code, host, out, real_mode, run};
use crate::{
    IrqchipMode, Vcpu, VcpuExit,
    x86_64::{CpuidEntry, ReadyRegisters, VcpuState, VmClock},
};

const TSC: u32 = 0x10;

/// A state without what goes on by itself.
fn still(mut state: VcpuState) -> VcpuState {
    state.msrs.retain(|msr| msr.index != TSC);
    state
}

fn restored(
    host: &dyn crate::Hypervisor,
    from: &Machine,
    mode: Option<IrqchipMode>,
) -> (Machine, Box<dyn Vcpu>) {
    let machine = Machine::new(host, mode, &[]);
    machine.ram.copy_from(&from.ram);
    let vcpu = machine.vm.create_vcpu(0, 0).unwrap();
    (machine, vcpu)
}

#[test]
fn save_load_save_is_equal_and_the_guest_goes_on() {
    let Some(host) = host() else { return };
    // out 0x10, 1; mov bx, 0x1234; in al, 0x11; out 0x12, al; mov ax, bx; out 0x13, ax
    let guest =
        code(&[&out(0x10, 1), &[0xbb, 0x34, 0x12], &[0xe4, 0x11, 0xe6, 0x12], &[0x89, 0xd8, 0xe7, 0x13]]);
    for mode in [None, Some(IrqchipMode::Kernel)] {
        let machine = Machine::new(&*host, mode, &guest);
        let mut vcpu = machine.vcpu(&*host);
        let mut seen = Seen::default();
        for _ in 0..2 {
            assert_eq!(vcpu.run(&mut seen).unwrap(), VcpuExit::Handled);
        }
        vcpu.settle(&mut seen).unwrap();
        let state = vcpu.save().unwrap();
        let irqchip = machine.vm.save_irqchip().unwrap();

        let (other, mut next) = restored(&*host, &machine, mode);
        next.load(&state).unwrap();
        other.vm.load_irqchip(&irqchip).unwrap();
        assert_eq!(still(next.save().unwrap()), still(state.clone()));
        let loaded = other.vm.save_irqchip().unwrap();
        let without_timer = |parts: &[crate::x86_64::StatePart]| {
            parts.iter().filter(|part| part.name != "kvm.pit2").cloned().collect::<Vec<_>>()
        };
        assert_eq!(without_timer(&loaded.parts), without_timer(&irqchip.parts));
        assert_eq!(loaded.parts.len(), irqchip.parts.len());
        let mut seen = Seen::default();
        for _ in 0..2 {
            assert_eq!(next.run(&mut seen).unwrap(), VcpuExit::Handled);
        }
        assert_eq!(seen.accesses, [Access::Out(0x12, vec![1]), Access::Out(0x13, vec![0x34, 0x12])]);
    }
}

#[test]
fn a_string_instruction_survives_a_save_in_its_middle() {
    let Some(host) = host() else { return };
    // cld; mov di, DATA; mov dx, 0x20; mov cx, 3000; rep insb
    let guest = code(&[&[0xfc, 0xbf, 0x00, 0x20, 0xba, 0x20, 0x00, 0xb9, 0xb8, 0x0b, 0xf3, 0x6c]]);
    let machine = Machine::new(&*host, None, &guest);
    let mut vcpu = machine.vcpu(&*host);
    let mut seen = Seen::default();
    assert_eq!(vcpu.run(&mut seen).unwrap(), VcpuExit::Handled);
    vcpu.settle(&mut seen).unwrap();
    let state = vcpu.save().unwrap();
    let (other, mut next) = restored(&*host, &machine, None);
    next.load(&state).unwrap();
    assert_eq!(run(&mut *next, &mut seen), VcpuExit::Halted);
    assert_eq!(seen.accesses, vec![Access::In(0x20, 1); 3000]);
    let expected: Vec<u8> = (0..3000u32).map(|n| (n + 1).to_le_bytes()[0]).collect();
    assert_eq!(other.ram.read(DATA, 3000), expected);
}

#[test]
fn every_vcpu_saves_and_loads() {
    let Some(host) = host() else { return };
    let mode = Some(IrqchipMode::Kernel);
    let machine = Machine::new(&*host, mode, &[]);
    let other = Machine::new(&*host, mode, &[]);
    let cpuid = host.supported_cpuid().unwrap();
    for index in 0..4 {
        let mut vcpu = machine.vm.create_vcpu(index, index * 2).unwrap();
        vcpu.set_cpuid(&cpuid).unwrap();
        let state = vcpu.save().unwrap();
        let mut next = other.vm.create_vcpu(index, index * 2).unwrap();
        assert_eq!(next.index(), index);
        next.load(&state).unwrap();
        assert_eq!(still(next.save().unwrap()), still(state));
    }
}

#[test]
fn a_vcpu_with_few_features_saves_and_loads() {
    let Some(host) = host() else { return };
    let all = host.supported_cpuid().unwrap();
    let few: Vec<_> = all
        .iter()
        .filter(|entry| [0, 1].contains(&entry.leaf))
        .map(|entry| match entry.leaf {
            0 => CpuidEntry { eax: 1, ..*entry },
            // FPU, TSC, MSR, PAE, CX8, APIC, FXSR, SSE, SSE2: no XSAVE, no MTRR, no machine checks.
            _ => CpuidEntry { ecx: 0, edx: 0x0700_0371, ..*entry },
        })
        .collect();
    for cpuid in [&few[..], &[]] {
        let [machine, other] = [(); 2].map(|()| Machine::new(&*host, Some(IrqchipMode::Kernel), &[]));
        let mut vcpu = machine.vm.create_vcpu(0, 0).unwrap();
        if !cpuid.is_empty() {
            vcpu.set_cpuid(cpuid).unwrap();
        }
        let state = vcpu.save().unwrap();
        let mut next = other.vm.create_vcpu(0, 0).unwrap();
        next.load(&state).unwrap();
        assert_eq!(still(next.save().unwrap()), still(state));
    }
}

#[test]
fn the_tsc_goes_on_from_where_it_was() {
    let Some(host) = host() else { return };
    let machine = Machine::new(&*host, None, &[]);
    let mut vcpu = machine.vcpu(&*host);
    let mut state = vcpu.save().unwrap();
    let tsc = |state: &VcpuState| state.msrs.iter().find(|msr| msr.index == TSC).unwrap().value;
    // A new vCPU's TSC begins at 0, unless the host cannot offset it.
    if host_tsc().abs_diff(tsc(&state)) < 1 << 34 {
        println!("SKIPPED: guests of this host read the host's own TSC");
        return;
    }
    let far = tsc(&state) + (1 << 50);
    state.msrs.iter_mut().find(|msr| msr.index == TSC).unwrap().value = far;
    vcpu.load(&state).unwrap();
    let now = tsc(&vcpu.save().unwrap());
    assert!((far..far + (1 << 49)).contains(&now), "{far:#x}, then {now:#x}");
}

#[expect(unsafe_code, reason = "RDTSC")]
fn host_tsc() -> u64 {
    // SAFETY: every x86_64 processor has the instruction, and Linux lets every process use it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[test]
fn ready_registers_are_what_was_asked_for() {
    let Some(host) = host() else { return };
    let machine = Machine::new(&*host, None, &[]);
    let mut vcpu = machine.vcpu(&*host);
    // As after a reset, with what a kernel finds, and as after a reset again.
    for mtrr_default in [0, 0x806, 0] {
        let ready = ReadyRegisters { rdx: 0x000a_0f11, mtrr_default, ..real_mode(CODE) };
        vcpu.set_ready(&ready).unwrap();
        let state = vcpu.save().unwrap();
        let regs = &state.parts.iter().find(|part| part.name == "kvm.regs").unwrap().bytes;
        assert_eq!((&regs[24..32], &regs[128..136]), (&ready.rdx.to_le_bytes()[..], &CODE.to_le_bytes()[..]));
        let msr = |index| state.msrs.iter().find(|msr| msr.index == index).unwrap().value;
        assert_eq!(msr(0x2ff), mtrr_default);
        assert_eq!(msr(0x1a0) & 1, 1);
    }
}

#[test]
fn the_clock_can_be_set() {
    let Some(host) = host() else { return };
    let machine = Machine::new(&*host, None, &[]);
    let _vcpu = machine.vcpu(&*host);
    let day = 86_400_000_000_000;
    let clock = VmClock { guest_ns: 1000 * day, realtime_ns: None, host_tsc: None };
    machine.vm.set_clock(&clock).unwrap();
    let now = machine.vm.clock().unwrap();
    assert!((1000 * day..1001 * day).contains(&now.guest_ns), "{now:?}");
    if host.capabilities().realtime_clock {
        // The time that has passed since is added.
        let realtime = now.realtime_ns.unwrap();
        let clock = VmClock { guest_ns: 2000 * day, realtime_ns: Some(realtime - day), host_tsc: None };
        machine.vm.set_clock(&clock).unwrap();
        let now = machine.vm.clock().unwrap();
        assert!((2001 * day..2002 * day).contains(&now.guest_ns), "{now:?}");
    }
}

#[test]
fn telling_a_pause_harms_nobody() {
    let Some(host) = host() else { return };
    let machine = Machine::new(&*host, None, &[]);
    machine.vcpu(&*host).notify_pause();
}
