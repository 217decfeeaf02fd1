//! Saved state that is damaged, by accident or on purpose: an error that names the part, never a
//! panic. Values are tried against KVM one by one; shapes are tried at random.

use std::cell::RefCell;

use proptest::{collection::vec, prelude::*, test_runner::Config};

use super::{Machine, host};
use crate::{
    HypervisorError, IrqchipMode, Vcpu,
    kvm::{parse_irqchip, parse_vcpu},
    x86_64::{CpuidEntry, IrqchipState, Msr, StatePart, VcpuState},
};

fn fresh(mode: IrqchipMode) -> Option<(Machine, Box<dyn Vcpu>)> {
    let host = host()?;
    let machine = Machine::new(&*host, Some(mode), &[]);
    let vcpu = machine.vcpu(&*host);
    Some((machine, vcpu))
}

#[test]
fn a_damaged_part_is_named() {
    let Some((machine, mut vcpu)) = fresh(IrqchipMode::Kernel) else { return };
    let good = vcpu.save().unwrap();
    for index in 0..good.parts.len() {
        let name = good.parts[index].name.clone();
        let mut refused = |damage: &dyn Fn(&mut Vec<StatePart>)| {
            let mut bad = good.clone();
            damage(&mut bad.parts);
            let error = vcpu.load(&bad).unwrap_err().to_string();
            assert!(error.contains(&name), "{name}: {error}");
        };
        refused(&|parts| {
            parts[index].bytes.pop();
        });
        refused(&|parts| parts[index].bytes.clear());
        refused(&|parts| parts.push(parts[index].clone()));
        refused(&|parts| parts[index].name.push('x'));
        if name != "kvm.xcrs" && name != "kvm.nested" {
            refused(&|parts| drop(parts.remove(index)));
        }
        if name != "kvm.xsave" && name != "kvm.nested" {
            refused(&|parts| parts[index].bytes.push(0));
        }
    }
    vcpu.load(&good).unwrap();

    let good = machine.vm.save_irqchip().unwrap();
    for index in 0..good.parts.len() {
        let name = good.parts[index].name.clone();
        let refused = |damage: &dyn Fn(&mut Vec<StatePart>)| {
            let mut bad = good.clone();
            damage(&mut bad.parts);
            let error = machine.vm.load_irqchip(&bad).unwrap_err().to_string();
            assert!(error.contains(&name), "{name}: {error}");
        };
        refused(&|parts| parts[index].bytes.push(0));
        refused(&|parts| parts[index].bytes.clear());
        refused(&|parts| parts.push(parts[index].clone()));
        refused(&|parts| parts[index].name.push('x'));
        if name != "kvm.pit2" {
            refused(&|parts| drop(parts.remove(index)));
        }
    }
    assert!(machine.vm.load_irqchip(&IrqchipState::default()).is_err());
    machine.vm.load_irqchip(&good).unwrap();
}

#[test]
fn state_of_another_machine_is_refused() {
    let Some(host) = host() else { return };
    let with = Machine::new(&*host, Some(IrqchipMode::Kernel), &[]);
    let without = Machine::new(&*host, None, &[]);
    let (mut with_lapic, mut without_lapic) = (with.vcpu(&*host), without.vcpu(&*host));
    let error = without_lapic.load(&with_lapic.save().unwrap()).unwrap_err();
    assert!(error.to_string().contains("kvm.lapic"), "{error}");
    let error = with_lapic.load(&without_lapic.save().unwrap()).unwrap_err();
    assert!(error.to_string().contains("kvm.lapic"), "{error}");
    assert!(without.vm.load_irqchip(&with.vm.save_irqchip().unwrap()).is_err());
}

#[test]
fn a_register_that_does_not_exist_is_named() {
    let Some((_machine, mut vcpu)) = fresh(IrqchipMode::Kernel) else { return };
    let good = vcpu.save().unwrap();
    let mut bad = good.clone();
    bad.msrs.insert(3, Msr { index: 0x1234_5678, value: 7 });
    match vcpu.load(&bad).unwrap_err() {
        HypervisorError::Partial { done: 3, asked, refused, .. } => {
            assert_eq!(asked, bad.msrs.len());
            assert!(refused.contains("0x12345678") && refused.contains("0x7"), "{refused}");
        }
        error => panic!("{error}"),
    }
    let mut twice = good.clone();
    twice.msrs.push(good.msrs[0]);
    assert!(vcpu.load(&twice).unwrap_err().to_string().contains("comes twice"));
    let mut many = good.clone();
    many.msrs = (0..2000).map(|index| Msr { index, value: 0 }).collect();
    assert!(vcpu.load(&many).unwrap_err().to_string().contains("2000"));
    let mut table = good;
    table.cpuid = vec![CpuidEntry::default(); 300];
    assert!(vcpu.load(&table).unwrap_err().to_string().contains("300"));
}

#[test]
fn values_that_no_processor_has_are_refused_by_name() {
    let Some((_machine, mut vcpu)) = fresh(IrqchipMode::Kernel) else { return };
    let good = vcpu.save().unwrap();
    let cr4 = std::mem::offset_of!(kvm_bindings::kvm_sregs, cr4);
    let flags = std::mem::offset_of!(kvm_bindings::kvm_vcpu_events, flags);
    let damage: [(&str, usize, &[u8]); 5] = [
        ("kvm.mp_state", 0, &[99]),
        ("kvm.sregs", cr4 + 7, &[0xff]),
        ("kvm.vcpu_events", flags + 3, &[0xff]),
        // The header's reserved words (Intel SDM volume 1, 13.4.2).
        ("kvm.xsave", 512 + 24, &[1]),
        ("kvm.xcrs", std::mem::offset_of!(kvm_bindings::kvm_xcrs, flags), &[1]),
    ];
    for (name, at, bytes) in damage {
        let mut bad = good.clone();
        let Some(part) = bad.parts.iter_mut().find(|part| part.name == name) else {
            println!("SKIPPED: this host has no {name}");
            continue;
        };
        part.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        let error = vcpu.load(&bad).unwrap_err().to_string();
        assert!(error.contains(name), "{name}: {error}");
    }
    vcpu.load(&good).unwrap();
}

#[test]
fn another_frequency_needs_a_host_that_scales() {
    let Some(host) = host() else { return };
    let machine = Machine::new(&*host, None, &[]);
    let mut vcpu = machine.vcpu(&*host);
    let mut state = vcpu.save().unwrap();
    let Some(khz) = state.tsc_khz else {
        println!("SKIPPED: this host does not tell its TSC frequency");
        return;
    };
    state.tsc_khz = Some(khz + khz / 10_000);
    vcpu.load(&state).unwrap();
    host.check_tsc_khz(khz + khz / 10_000).unwrap();
    state.tsc_khz = Some(khz / 2);
    let result = vcpu.load(&state);
    assert_eq!(result.is_ok(), host.check_tsc_khz(khz / 2).is_ok(), "known beforehand");
    if host.capabilities().tsc_control {
        result.unwrap();
        assert_eq!(vcpu.save().unwrap().tsc_khz, Some(khz / 2));
    } else {
        assert!(result.unwrap_err().to_string().contains("TSC"));
    }
    state.tsc_khz = Some(0);
    assert!(vcpu.load(&state).is_err());
}

fn any_part() -> impl Strategy<Value = StatePart> {
    let names = [
        "kvm.mp_state",
        "kvm.regs",
        "kvm.sregs",
        "kvm.xcrs",
        "kvm.debugregs",
        "kvm.vcpu_events",
        "kvm.lapic",
        "kvm.xsave",
        "kvm.fpu",
        "kvm.nested",
        "kvm.pic_master",
        "kvm.pic_slave",
        "kvm.ioapic",
        "kvm.pit2",
        "",
    ];
    let lengths = prop_oneof![
        Just(4),
        Just(16),
        Just(64),
        Just(112),
        Just(128),
        Just(144),
        Just(216),
        Just(312),
        Just(392),
        Just(416),
        Just(1024),
        Just(4096),
        Just(8320),
        0..10_000usize,
    ];
    (proptest::sample::select(names.to_vec()), lengths, any::<u8>())
        .prop_map(|(name, len, byte)| StatePart { name: name.to_owned(), bytes: vec![byte; len] })
}

proptest! {
    #![proptest_config(Config { failure_persistence: None, ..Config::with_cases(500) })]

    #[test]
    fn any_parts_are_parsed_or_refused(parts in vec(any_part(), 0..16), msrs in vec(any::<(u32, u64)>(), 0..8)) {
        let msrs = msrs.into_iter().map(|(index, value)| Msr { index, value }).collect();
        let state = VcpuState { parts: parts.clone(), msrs, ..VcpuState::default() };
        let parsed = parse_vcpu(&state);
        if parsed.is_ok() {
            for name in ["kvm.regs", "kvm.sregs", "kvm.mp_state", "kvm.debugregs", "kvm.vcpu_events"] {
                prop_assert_eq!(parts.iter().filter(|part| part.name == name).count(), 1);
            }
        }
        if parse_irqchip(&IrqchipState { parts: parts.clone() }).is_ok() {
            prop_assert!(parts.is_empty() || parts.iter().any(|part| part.name == "kvm.ioapic"));
        }
    }
}

#[test]
fn random_damage_to_the_shape_is_refused_on_a_real_vcpu() {
    let Some((_machine, vcpu)) = fresh(IrqchipMode::Kernel) else { return };
    let good = vcpu.save().unwrap();
    let vcpu = RefCell::new(vcpu);
    let count = good.parts.len();
    let strategy = (0..count, 0..count, 0..10_000usize, 0..4u8);
    let mut runner = proptest::test_runner::TestRunner::new(Config {
        failure_persistence: None,
        ..Config::with_cases(200)
    });
    runner
        .run(&strategy, |(one, two, len, kind)| {
            let mut bad = good.clone();
            match kind {
                0 => bad.parts[one].bytes.resize(len, 0xa5),
                1 => bad.parts[one].name = good.parts[two].name.clone(),
                2 => bad.parts.swap(one, two),
                _ => bad.parts[one] = good.parts[two].clone(),
            }
            let same_shape = {
                let shape = |state: &VcpuState| {
                    let mut shape: Vec<_> =
                        state.parts.iter().map(|part| (part.name.clone(), part.bytes.len())).collect();
                    shape.sort();
                    shape
                };
                shape(&bad) == shape(&good)
            };
            prop_assert_eq!(vcpu.borrow_mut().load(&bad).is_ok(), same_shape);
            Ok(())
        })
        .unwrap();
}
