//! Interrupts: messages, routes, irqfds and lines, seen in the local APIC's request register.

use super::{Machine, host, wiring::Event};
use crate::{
    Hypervisor, IrqchipMode, Irqfd, MsiMessage, Route, RouteTarget, Vcpu,
    x86_64::{IrqchipState, VcpuState},
};

const VECTOR: u8 = 0x41;
/// Software enable, with the reset value's vector (Intel SDM volume 3, 11.9).
const SPURIOUS_ENABLED: u32 = 0x1ff;

fn part<'state>(state: &'state mut VcpuState, name: &str) -> &'state mut Vec<u8> {
    &mut state.parts.iter_mut().find(|part| part.name == name).unwrap().bytes
}

fn lapic_register(vcpu: &dyn Vcpu, offset: usize) -> u32 {
    let mut state = vcpu.save().unwrap();
    u32::from_le_bytes(part(&mut state, "kvm.lapic")[offset..offset + 4].try_into().unwrap())
}

/// Whether the vector waits in the interrupt request register.
fn requested(vcpu: &dyn Vcpu, vector: u8) -> bool {
    let vector = u32::from(vector);
    lapic_register(vcpu, 0x200 + (vector / 32) as usize * 16) & 1 << (vector % 32) != 0
}

/// Switches the local APIC on, as a guest would.
fn enable_lapic(vcpu: &mut dyn Vcpu) {
    let mut state = vcpu.save().unwrap();
    part(&mut state, "kvm.lapic")[0xf0..0xf4].copy_from_slice(&SPURIOUS_ENABLED.to_le_bytes());
    vcpu.load(&state).unwrap();
}

fn message(apic_id: u32, vector: u8) -> MsiMessage {
    let address = 0xfee0_0000 | u64::from(apic_id & 0xff) << 12 | u64::from(apic_id & !0xff) << 32;
    MsiMessage { address, data: vector.into(), device_id: 0 }
}

fn machine(host: &dyn Hypervisor, mode: IrqchipMode) -> (Machine, Box<dyn Vcpu>) {
    let machine = Machine::new(host, Some(mode), &[]);
    let mut vcpu = machine.vcpu(host);
    enable_lapic(&mut *vcpu);
    (machine, vcpu)
}

fn modes(host: &dyn Hypervisor) -> Vec<IrqchipMode> {
    let mut modes = vec![IrqchipMode::Kernel];
    if host.capabilities().split_irqchip {
        modes.push(IrqchipMode::Split);
    } else {
        println!("SKIPPED: this host has no split interrupt controller");
    }
    modes
}

#[test]
fn a_message_reaches_the_local_apic() {
    let Some(host) = host() else { return };
    for mode in modes(&*host) {
        let (machine, vcpu) = machine(&*host, mode);
        assert!(!requested(&*vcpu, VECTOR));
        machine.vm.signal_msi(&message(0, VECTOR)).unwrap();
        assert!(requested(&*vcpu, VECTOR));
    }
}

#[test]
fn an_irqfd_follows_its_route() {
    let Some(host) = host() else { return };
    for mode in modes(&*host) {
        let (machine, vcpu) = machine(&*host, mode);
        let wiring = machine.vm.wiring();
        let event = Event::new();
        let irqfd = Irqfd { gsi: 40, event: event.fd(), resample: None };
        let route = |vector| Route { gsi: 40, target: RouteTarget::Msi(message(0, vector)) };
        wiring.set_routes(&[route(VECTOR)]).unwrap();
        wiring.add_irqfd(&irqfd).unwrap();
        let error = wiring.add_irqfd(&irqfd).unwrap_err();
        assert!(error.to_string().contains("GSI 40"), "{error}");
        event.signal();
        // The kernel may deliver from a worker; a hang here is a lost interrupt.
        while !requested(&*vcpu, VECTOR) {
            std::thread::yield_now();
        }
        wiring.set_routes(&[route(VECTOR + 1)]).unwrap();
        event.signal();
        while !requested(&*vcpu, VECTOR + 1) {
            std::thread::yield_now();
        }
        wiring.remove_irqfd(&irqfd).unwrap();
        event.signal();
        assert_eq!(event.count(), 1, "nobody takes the signal any more");
    }
}

#[test]
fn the_high_half_of_a_message_selects_the_apic() {
    let Some(host) = host() else { return };
    let id = 300;
    if !host.capabilities().x2apic_ids || host.capabilities().max_vcpu_id <= id {
        println!("SKIPPED: this host has no APIC ids above 254");
        return;
    }
    let machine = Machine::new(&*host, Some(IrqchipMode::Kernel), &[]);
    let mut vcpu = machine.vm.create_vcpu(1, id).unwrap();
    vcpu.set_cpuid(&host.supported_cpuid().unwrap()).unwrap();
    let mut state = vcpu.save().unwrap();
    // x2APIC mode (IA32_APIC_BASE bits 10 and 11), in which an id has 32 bits.
    let sregs = part(&mut state, "kvm.sregs");
    let base = std::mem::offset_of!(kvm_bindings::kvm_sregs, apic_base);
    sregs[base + 1] |= 0xc;
    part(&mut state, "kvm.lapic")[0xf0..0xf4].copy_from_slice(&SPURIOUS_ENABLED.to_le_bytes());
    part(&mut state, "kvm.lapic")[0x20..0x24].copy_from_slice(&id.to_le_bytes());
    vcpu.load(&state).unwrap();
    machine.vm.signal_msi(&message(id, VECTOR)).unwrap();
    assert!(requested(&*vcpu, VECTOR));
    let event = Event::new();
    let route = Route { gsi: 40, target: RouteTarget::Msi(message(id, VECTOR + 1)) };
    machine.vm.wiring().set_routes(&[route]).unwrap();
    machine.vm.wiring().add_irqfd(&Irqfd { gsi: 40, event: event.fd(), resample: None }).unwrap();
    event.signal();
    while !requested(&*vcpu, VECTOR + 1) {
        std::thread::yield_now();
    }
}

#[test]
fn a_line_reaches_the_controllers() {
    let Some(host) = host() else { return };
    let (machine, _vcpu) = machine(&*host, IrqchipMode::Kernel);
    let pic_requests = || {
        let state = machine.vm.save_irqchip().unwrap();
        state.parts.iter().find(|part| part.name == "kvm.pic_master").unwrap().bytes[1]
    };
    assert_eq!(pic_requests() & 1 << 4, 0);
    machine.vm.set_irq_line(4, true).unwrap();
    assert_eq!(pic_requests() & 1 << 4, 1 << 4);
    // A table with the lines in it changes nothing for them; one without them cuts them off.
    let message = Route { gsi: 40, target: RouteTarget::Msi(message(0, VECTOR)) };
    let mut routes = IrqchipMode::Kernel.first_routes();
    assert_eq!(routes.len(), 40);
    routes.push(message);
    machine.vm.wiring().set_routes(&routes).unwrap();
    machine.vm.set_irq_line(3, true).unwrap();
    assert_eq!(pic_requests() & 1 << 3, 1 << 3);
    machine.vm.wiring().set_routes(&[message]).unwrap();
    machine.vm.set_irq_line(5, true).unwrap();
    assert_eq!(pic_requests() & 1 << 5, 0);
}

#[test]
fn a_line_that_waits_behind_a_mask_is_saved_and_sent_when_that_is_lifted() {
    const PIN: u32 = 10;
    const LEVEL: u64 = 1 << 15;
    const MASKED: u64 = 1 << 16;
    let Some(host) = host() else { return };
    // `struct kvm_ioapic_state` of <asm/kvm.h>.
    let entry = |state: &mut IrqchipState, entry: u64| {
        let at = 24 + 8 * PIN as usize;
        let part = state.parts.iter_mut().find(|part| part.name == "kvm.ioapic").unwrap();
        part.bytes[at..at + 8].copy_from_slice(&entry.to_le_bytes());
    };
    let pending = |machine: &Machine| {
        let state = machine.vm.save_irqchip().unwrap();
        let part = state.parts.into_iter().find(|part| part.name == "kvm.ioapic").unwrap();
        u32::from_le_bytes(part.bytes[16..20].try_into().unwrap()) & 1 << PIN != 0
    };
    let (first, vcpu) = machine(&*host, IrqchipMode::Kernel);
    let mut state = first.vm.save_irqchip().unwrap();
    entry(&mut state, u64::from(VECTOR) | LEVEL | MASKED);
    first.vm.load_irqchip(&state).unwrap();
    first.vm.set_irq_line(PIN, true).unwrap();
    assert!(pending(&first) && !requested(&*vcpu, VECTOR));

    let mut state = first.vm.save_irqchip().unwrap();
    for masked in [true, true, false] {
        let (next, vcpu) = machine(&*host, IrqchipMode::Kernel);
        if !masked {
            entry(&mut state, u64::from(VECTOR) | LEVEL);
        }
        next.vm.load_irqchip(&state).unwrap();
        assert!(pending(&next), "masked: {masked}");
        assert_eq!(requested(&*vcpu, VECTOR), !masked);
        state = next.vm.save_irqchip().unwrap();
    }
}

#[test]
fn a_resampling_irqfd_needs_the_kernels_ioapic() {
    let Some(host) = host() else { return };
    for mode in modes(&*host) {
        let (machine, _vcpu) = machine(&*host, mode);
        let (event, resample) = (Event::new(), Event::new());
        let irqfd = Irqfd { gsi: 5, event: event.fd(), resample: Some(resample.fd()) };
        let result = machine.vm.wiring().add_irqfd(&irqfd);
        assert_eq!(result.is_ok(), mode == IrqchipMode::Kernel, "{result:?}");
        if result.is_ok() {
            machine.vm.wiring().remove_irqfd(&irqfd).unwrap();
            machine.vm.wiring().add_irqfd(&irqfd).unwrap();
        }
    }
}

#[test]
fn what_is_beyond_the_limits_is_refused() {
    let Some(host) = host() else { return };
    let (machine, _vcpu) = machine(&*host, IrqchipMode::Kernel);
    let limit = host.capabilities().max_gsis;
    let event = Event::new();
    let wiring = machine.vm.wiring();
    let target = RouteTarget::Msi(message(0, VECTOR));
    let error = wiring.set_routes(&[Route { gsi: limit, target }]).unwrap_err();
    assert_eq!(error.to_string(), format!("invalid GSI: {limit}, the limit is {limit}"));
    let too_many: Vec<_> = (0..limit).chain(0..1).map(|gsi| Route { gsi, target }).collect();
    assert!(wiring.set_routes(&too_many).is_err());
    assert!(wiring.add_irqfd(&Irqfd { gsi: limit, event: event.fd(), resample: None }).is_err());
    assert!(machine.vm.create_vcpu(1, host.capabilities().max_vcpu_id).is_err());
    assert!(machine.vm.create_vcpu(1, u32::MAX).is_err());
    assert!(machine.vm.create_vcpu(1, 0).is_err(), "the id is taken");
    assert!(machine.vm.create_irqchip(IrqchipMode::Kernel, false).is_err(), "made already");
}

#[test]
fn whatever_a_guest_writes_into_an_msix_table_can_be_routed() {
    let Some(host) = host() else { return };
    let (machine, _vcpu) = machine(&*host, IrqchipMode::Kernel);
    let message = |address| MsiMessage { address, data: u32::MAX, device_id: 0 };
    let addresses = [0, 1, 0xff_ffff_ffff, 0xfee0_0000 | 1 << 32, 1 << 63, u64::MAX];
    let routes: Vec<_> = addresses
        .iter()
        .zip(24..)
        .map(|(&address, gsi)| Route { gsi, target: RouteTarget::Msi(message(address)) })
        .collect();
    machine.vm.wiring().set_routes(&routes).unwrap();
    for address in addresses {
        machine.vm.signal_msi(&message(address)).unwrap();
    }
}

#[test]
fn without_controllers_interrupts_are_refused() {
    let Some(host) = host() else { return };
    let machine = Machine::new(&*host, None, &[]);
    let event = Event::new();
    assert!(machine.vm.signal_msi(&message(0, VECTOR)).is_err());
    assert!(machine.vm.set_irq_line(4, true).is_err());
    assert!(machine.vm.wiring().set_routes(&[]).is_err());
    assert!(machine.vm.wiring().add_irqfd(&Irqfd { gsi: 4, event: event.fd(), resample: None }).is_err());
    assert_eq!(machine.vm.save_irqchip().unwrap().parts, []);
}

#[test]
fn a_timer_goes_with_the_kernels_pic_only() {
    let Some(host) = host() else { return };
    let machine = Machine::new(&*host, None, &[]);
    let error = machine.vm.create_irqchip(IrqchipMode::Split, true).unwrap_err();
    assert!(error.to_string().contains("timer"), "{error}");
}

#[test]
fn an_nmi_is_pending_once_injected() {
    let Some(host) = host() else { return };
    let (_machine, vcpu) = machine(&*host, IrqchipMode::Kernel);
    let nmi = || {
        let mut state = vcpu.save().unwrap();
        let at = std::mem::offset_of!(kvm_bindings::kvm_vcpu_events, nmi);
        part(&mut state, "kvm.vcpu_events")[at..at + 2].to_vec()
    };
    assert_eq!(nmi(), [0, 0]);
    vcpu.inject_nmi().unwrap();
    assert!(nmi().contains(&1));
}
