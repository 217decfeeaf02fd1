//! Where the threads of processors and queues run, and how interrupts find processors.

use address_manager::IoSpace;
use arch::x86_64::layout::IOAPIC_START;
use hypervisor::{
    Capabilities, IrqchipMode, VmOptions,
    fake::{Call, capable},
};
use serde_json::{Value, json};

use super::{
    Bench,
    firmware::{acpi_table, number, structures},
    image,
};
use crate::{
    machine::{
        Beside, ClockPolicy, Commits, Machine, MachineState, Restored, TscFrequency, platform::EVENTS_GSI,
    },
    memory::GuestMemory,
    phases::Phases,
};

#[test]
fn threads_run_where_they_shall() {
    let bench = Bench::new();
    // Host CPU 1023 is on no machine that this is tested on.
    let pinned = |cpus: &[usize]| json!({ "cpus": { "boot_vcpus": 2, "max_vcpus": 2, "affinity": [{ "vcpu": 1, "host_cpus": cpus }] } });
    let usable = rustix::thread::sched_getaffinity(None).unwrap();
    let cpu = (0..1024).find(|cpu| usable.is_set(*cpu)).unwrap();
    let machine = bench.boot(pinned(&[cpu])).unwrap();
    drop(machine);
    let said = bench.refusal(pinned(&[cpu, 1023]));
    assert!(said.contains("vCPU 1: affinity: host CPU 1023 is not there"), "{said}");

    let image = image(1 << 20);
    let said = bench.refusal(json!({ "disks": [{
        "path": image.path(), "num_queues": 1, "queue_affinity": [{ "queue_index": 0, "host_cpus": [1023] }],
    }] }));
    assert!(said.contains("_disk0: queue 0: affinity: host CPU 1023"), "{said}");
}

/// Two vCPUs of 162; each package of 81 takes 256 APIC ids.
fn wide() -> Value {
    json!({ "cpus": { "boot_vcpus": 2, "max_vcpus": 162, "topology":
        { "threads_per_core": 1, "cores_per_die": 9, "dies_per_package": 9, "packages": 2 } } })
}

fn irqchips(bench: &Bench) -> Vec<IrqchipMode> {
    let calls = bench.hypervisor.recorder().calls().into_iter();
    calls
        .filter_map(|call| if let Call::CreateIrqchip { mode, .. } = call { Some(mode) } else { None })
        .collect()
}

#[test]
fn the_kernels_interrupt_controllers_are_used_where_they_reach_every_processor() {
    let bench = Bench::new();
    let machine = bench.boot(json!({})).unwrap();
    assert_eq!(irqchips(&bench), [IrqchipMode::Kernel]);
    // Their lines are the manager's, which has no call to make for them.
    assert_eq!(machine.manager().live().routes().count(), 40);
    assert_eq!(machine.manager().totals().operations.routing_writes.count, 0);
    drop(machine);

    let bench = Bench::new();
    let machine = bench.boot(wide()).unwrap();
    assert_eq!(irqchips(&bench), [IrqchipMode::Split]);
    assert_eq!(machine.manager().live().routes().count(), 0);

    // The event device's line goes through the IOAPIC's pin to the processor that the guest chose: APIC id 256.
    let mut bus = machine.manager().dispatcher();
    let mut set = |register: u8, value: u32| {
        assert!(bus.write(IoSpace::Mmio, IOAPIC_START, &u32::from(register).to_le_bytes()));
        assert!(bus.write(IoSpace::Mmio, IOAPIC_START + 0x10, &value.to_le_bytes()));
    };
    let pin = u8::try_from(EVENTS_GSI).unwrap();
    set(0x11 + 2 * pin, 1 << 17);
    set(0x10 + 2 * pin, 0x61);
    let pressed = |machine: &Machine| {
        machine.press_power_button();
        let [message] = bench.hypervisor.vms().pop().unwrap().messages().try_into().unwrap();
        assert_eq!((message.address, message.data), (0xfee0_0000 | 1 << 5, 0x61));
    };
    pressed(&machine);

    // A machine out of its state has such controllers too, and the guest's choice.
    let (sections, cpu) = machine.save().unwrap();
    let layout = machine.layout().clone();
    drop(machine);
    let config = bench.config(wide());
    let state = sections.into_iter().map(|section| (section.id.clone(), section)).collect();
    let supported = bench.host.hypervisor.supported_cpuid().unwrap();
    Machine::check_restore(&config, &bench.host, &layout, &cpu, &supported, &state).unwrap();
    let restored = Restored {
        layout,
        memory: GuestMemory::map(&config.memory, &()).unwrap(),
        flash: None,
        state: MachineState::new(state),
        supported,
        commits: Commits::Once,
        clock: ClockPolicy::Wall,
        tsc: TscFrequency::Saved,
        vm: bench.host.hypervisor.create_vm(&VmOptions::default()).unwrap(),
        beside: Beside::nobody(),
    };
    let machine = Machine::restore(&config, &bench.host, restored, &mut Phases::begin()).unwrap();
    assert_eq!(irqchips(&bench), [IrqchipMode::Split; 2]);
    pressed(&machine);
}

#[test]
fn processors_with_wide_ids_are_listed() {
    let every = json!({ "cpus": { "boot_vcpus": 90, "max_vcpus": 162, "topology":
        { "threads_per_core": 1, "cores_per_die": 9, "dies_per_package": 9, "packages": 2 } } });
    let machine = Bench::new().boot(every).unwrap();
    let madt = structures(&acpi_table(&machine, b"APIC").unwrap(), 44);
    let of = |wanted: u8| madt.iter().filter(move |(kind, _)| *kind == wanted).map(|(_, bytes)| bytes);
    assert_eq!(of(0).count(), 81);
    let wide: Vec<(u64, u64)> = of(9).map(|bytes| (number(bytes, 12, 4), number(bytes, 4, 4))).collect();
    // vCPU and APIC id.
    let expected: Vec<(u64, u64)> = (81..90).map(|vcpu| (vcpu, 256 + vcpu - 81)).collect();
    assert_eq!(wide, expected);
    assert_eq!(of(10).count(), 1);
}

#[test]
fn a_host_without_wide_ids_says_so() {
    for capabilities in [
        Capabilities { x2apic_ids: false, ..capable() },
        Capabilities { split_irqchip: false, ..capable() },
        Capabilities { signal_msi: false, ..capable() },
    ] {
        let said = Bench::with(capabilities).refusal(wide());
        assert!(said.contains("vCPU 81 has APIC id 256") && said.contains("limit is 255"), "{said}");
    }
}
