//! The tables as a guest reads them, and as ACPICA's own tools do.

use std::process::Command;

use super::{
    reader::{Memory, structures, u16_at, u32_at, u64_at},
    *,
};

const GIB: u64 = 1 << 30;

/// A machine with everything the tables can describe.
fn full() -> AcpiConfig {
    AcpiConfig {
        topology: Topology::new(2, 2, 1, 2).unwrap(),
        boot_vcpus: 4,
        cpu_hotplug: Some(0xf000_1000),
        ioapic: IoApic { id: 0, address: 0xfec0_0000, gsi_base: 0 },
        overrides: vec![
            InterruptOverride { isa: 0, gsi: 2, level_low: false },
            InterruptOverride { isa: 5, gsi: 5, level_low: true },
        ],
        power: PowerPorts { sleep_control: 0x600, sleep_status: 0x601, reset: 0xcf9, reset_value: 6 },
        pm_timer_port: Some(0x608),
        events: EventDevice { address: 0xf000_0000, gsi: 9 },
        serial: Some(IsaDevice { port: 0x3f8, ports: 8, gsi: 4 }),
        rtc: Some(IsaDevice { port: 0x70, ports: 2, gsi: 8 }),
        pvpanic_port: Some(0x505),
        generation_id: Some(0xe_fff0),
        segments: vec![
            PciSegment {
                id: 0,
                ecam: layout::ecam(0).unwrap(),
                mmio32: Some(Range { start: 0xc000_0000, size: 0x1000_0000 }),
                mmio64: Some(Range { start: 8 * GIB, size: 8 * GIB }),
                ports: true,
                intx: Some([16, 17, 18, 19]),
                node: Some(0),
            },
            PciSegment {
                id: 1,
                ecam: layout::ecam(1).unwrap(),
                mmio32: None,
                mmio64: Some(Range { start: 16 * GIB, size: 8 * GIB }),
                ports: false,
                intx: None,
                node: Some(1),
            },
        ],
        nodes: vec![
            NumaNode {
                id: 0,
                vcpus: vec![0, 1, 2, 3],
                memory: vec![NumaMemory { range: Range { start: 0, size: 3 * GIB }, hotpluggable: false }],
                distances: vec![(1, 30)],
            },
            NumaNode {
                id: 1,
                vcpus: vec![4, 5, 6, 7],
                memory: vec![NumaMemory { range: Range { start: 4 * GIB, size: GIB }, hotpluggable: true }],
                distances: vec![],
            },
        ],
    }
}

/// A machine with as little as possible.
fn small() -> AcpiConfig {
    AcpiConfig {
        topology: Topology::flat(1).unwrap(),
        boot_vcpus: 1,
        cpu_hotplug: None,
        overrides: vec![],
        pm_timer_port: None,
        serial: None,
        rtc: None,
        pvpanic_port: None,
        generation_id: None,
        segments: vec![],
        nodes: vec![],
        ..full()
    }
}

fn placed(config: &AcpiConfig) -> PlacedTables {
    let tables = AcpiTables::build(config).unwrap();
    let (area, _) = AcpiArea::choose(tables.size(), GIB).unwrap();
    tables.place(&area).unwrap()
}

fn refused(change: impl FnOnce(&mut AcpiConfig)) -> String {
    let mut config = full();
    change(&mut config);
    AcpiTables::build(&config).unwrap_err().to_string()
}

#[test]
fn every_table_is_reached_from_the_root() {
    let tables = placed(&full());
    assert_eq!(tables.rsdp, 0xe_0000);
    let signatures: Vec<String> = Memory::new(&tables).tables().into_iter().map(|t| t.signature).collect();
    assert_eq!(signatures, ["FACP", "APIC", "MCFG", "SRAT", "SLIT", "DSDT"]);
    let tables = placed(&small());
    let signatures: Vec<String> = Memory::new(&tables).tables().into_iter().map(|t| t.signature).collect();
    assert_eq!(signatures, ["FACP", "APIC", "MCFG", "DSDT"]);
}

#[test]
fn pieces_lie_in_their_area_and_apart() {
    let built = AcpiTables::build(&full()).unwrap();
    let (area, _) = AcpiArea::choose(built.size(), GIB).unwrap();
    let tables = built.place(&area).unwrap();
    let mut ranges: Vec<Range> = tables
        .pieces
        .iter()
        .map(|(start, bytes)| Range { start: *start, size: bytes.len() as u64 })
        .collect();
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        assert!(!pair[0].overlaps(&pair[1]));
    }
    assert!(ranges.iter().all(|range| range.start == area.rsdp || area.tables.contains(range)));
}

#[test]
fn large_sets_go_to_the_end_of_low_ram() {
    let config = AcpiConfig {
        topology: Topology::flat(8192).unwrap(),
        boot_vcpus: 8192,
        cpu_hotplug: None,
        nodes: vec![],
        segments: vec![],
        ..full()
    };
    let built = AcpiTables::build(&config).unwrap();
    let (area, entry) = AcpiArea::choose(built.size(), 3 * GIB).unwrap();
    let entry = entry.unwrap();
    assert_eq!((entry.kind, entry.range), (MemoryKind::Acpi, area.tables));
    assert_eq!((area.tables.end(), area.tables.start % 4096), (3 * GIB, 0));
    let tables = built.place(&area).unwrap();
    let madt = Memory::new(&tables).find("APIC");
    let kinds = |kind: u8| structures(madt, 44).iter().filter(|s| s[0] == kind).count();
    assert_eq!((kinds(0), kinds(9), kinds(10)), (255, 8192 - 255, 1));
    let last = structures(madt, 44).into_iter().rfind(|s| s[0] == 9).unwrap();
    assert_eq!((u32_at(last, 4), u32_at(last, 8), u32_at(last, 12)), (8191, 1, 8191));

    let small = AcpiArea { rsdp: 0xe_0000, tables: Range { start: 0xe_0040, size: 0xffc0 } };
    assert!(matches!(built.place(&small), Err(AcpiError::NoRoom { .. })));
    assert!(AcpiArea::choose(built.size(), 0x10_0000).is_err());
    assert!(AcpiArea::choose(u64::MAX, 3 * GIB).is_err());
}

#[test]
fn fadt_of_a_hardware_reduced_machine() {
    let tables = placed(&full());
    let fadt = Memory::new(&tables).find("FACP");
    assert_eq!((fadt.len(), fadt[8]), (276, 6));
    let flags = u32_at(fadt, 112);
    for (bit, what) in [(20, "hardware-reduced"), (10, "reset register"), (8, "32-bit timer"), (4, "button")]
    {
        assert_ne!(flags & 1 << bit, 0, "{what}");
    }
    let register =
        |offset: usize| (fadt[offset], fadt[offset + 1], fadt[offset + 3], u64_at(fadt, offset + 4));
    assert_eq!(register(116), (1, 8, 1, 0xcf9));
    assert_eq!(fadt[128], 6);
    assert_eq!(register(208), (1, 32, 3, 0x608));
    assert_eq!(register(244), (1, 8, 1, 0x600));
    assert_eq!(register(256), (1, 8, 1, 0x601));
    assert_eq!((u32_at(fadt, 76), fadt[91]), (0x608, 4));
    assert_eq!(u16_at(fadt, 109), 0x14);
    assert_eq!(POWER_OFF, 0x34);

    let tables = placed(&small());
    let fadt = Memory::new(&tables).find("FACP");
    assert_eq!((u32_at(fadt, 112) & 1 << 8, fadt[91], u64_at(fadt, 212)), (0, 0, 0));
}

#[test]
fn madt_lists_vcpus_and_interrupts() {
    let tables = placed(&full());
    let madt = Memory::new(&tables).find("APIC");
    assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (0xfee0_0000, 0));
    let all = structures(madt, 44);
    let of = |kind: u8| all.iter().filter(move |s| s[0] == kind);
    let processors: Vec<(u8, u8, u32)> = of(0).map(|s| (s[2], s[3], u32_at(s, 4))).collect();
    assert_eq!(
        processors,
        [(0, 0, 1), (1, 1, 1), (2, 2, 1), (3, 3, 1), (4, 4, 2), (5, 5, 2), (6, 6, 2), (7, 7, 2)]
    );
    let ioapic = of(1).next().unwrap();
    assert_eq!((ioapic[1], ioapic[2], u32_at(ioapic, 4), u32_at(ioapic, 8)), (12, 0, 0xfec0_0000, 0));
    let moved: Vec<(u8, u32, u16)> = of(2).map(|s| (s[3], u32_at(s, 4), u16_at(s, 8))).collect();
    assert_eq!(moved, [(0, 2, 0), (5, 5, 15)]);
    assert_eq!(of(4).next().unwrap(), &[4, 6, 0xff, 0, 0, 1]);

    let tables = placed(&AcpiConfig { cpu_hotplug: None, ..full() });
    let madt = Memory::new(&tables).find("APIC");
    assert_eq!(structures(madt, 44).iter().filter(|s| s[0] == 0).count(), 4, "no hotplug, no absent vCPUs");
}

#[test]
fn mcfg_lists_segments() {
    let tables = placed(&full());
    let mcfg = Memory::new(&tables).find("MCFG");
    let entries: Vec<(u64, u16, u8, u8)> =
        mcfg[44..].chunks_exact(16).map(|e| (u64_at(e, 0), u16_at(e, 8), e[10], e[11])).collect();
    assert_eq!(entries, [(0xe000_0000, 0, 0, 0), (0xe010_0000, 1, 0, 0)]);
}

#[test]
fn srat_and_slit_describe_nodes() {
    let tables = placed(&full());
    let srat = Memory::new(&tables).find("SRAT");
    assert_eq!(u32_at(srat, 36), 1);
    let all = structures(srat, 48);
    let vcpus: Vec<(u8, u8)> = all.iter().filter(|s| s[0] == 0).map(|s| (s[3], s[2])).collect();
    assert_eq!(vcpus, [(0, 0), (1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 1), (7, 1)]);
    let memory: Vec<(u32, u64, u64, u32)> = all
        .iter()
        .filter(|s| s[0] == 1)
        .map(|s| (u32_at(s, 2), u64_at(s, 8), u64_at(s, 16), u32_at(s, 28)))
        .collect();
    assert_eq!(memory, [(0, 0, 3 * GIB, 1), (1, 4 * GIB, GIB, 3)]);
    let slit = Memory::new(&tables).find("SLIT");
    assert_eq!((u64_at(slit, 36), &slit[44..]), (2, &[10, 30, 30, 10][..]));
}

#[test]
fn contradictions_are_refused() {
    assert_eq!(refused(|c| c.boot_vcpus = 0), "0 vCPUs at boot of 8");
    assert_eq!(refused(|c| c.boot_vcpus = 9), "9 vCPUs at boot of 8");
    assert_eq!(refused(|c| c.segments[1].id = 0), "PCI segment 0 at position 1");
    assert_eq!(
        refused(|c| c.segments[0].mmio64 = Some(Range { start: 8 * GIB, size: 0 })),
        "PCI segment 0: 64-bit window at 0x200000000 of 0x0 bytes"
    );
    assert_eq!(
        refused(|c| c.segments[0].mmio32 = Some(Range { start: 0xf000_0000, size: GIB })),
        "PCI segment 0: 32-bit window at 0xf0000000 of 0x40000000 bytes"
    );
    assert_eq!(
        refused(|c| c.segments[1].node = Some(7)),
        "PCI segment 1 refers to NUMA node 7, which is not there"
    );
    assert_eq!(refused(|c| c.nodes[0].id = 1), "PCI segment 0 refers to NUMA node 0, which is not there");
    assert_eq!(refused(|c| c.nodes.push(NumaNode::default())), "NUMA node 0 is given twice");
    assert_eq!(refused(|c| c.nodes[1].vcpus.push(3)), "NUMA node 1: vCPU 3 is not there or is in two nodes");
    assert_eq!(refused(|c| c.nodes[1].vcpus.push(8)), "NUMA node 1: vCPU 8 is not there or is in two nodes");
    assert_eq!(
        refused(|c| c.nodes[0].distances = vec![(1, 9)]),
        "NUMA distance 9 from node 0 to node 1: expected 11 to 255, and 10 to itself"
    );
    assert_eq!(
        refused(|c| c.nodes[0].distances = vec![(0, 11)]),
        "NUMA distance 11 from node 0 to node 0: expected 11 to 255, and 10 to itself"
    );
    assert_eq!(
        refused(|c| c.nodes[0].distances = vec![(5, 20)]),
        "NUMA node 0 refers to NUMA node 5, which is not there"
    );
    assert_eq!(
        refused(|c| c.nodes.push(NumaNode { id: u32::MAX, ..Default::default() })),
        "4294967296 NUMA nodes: at most 256"
    );
    assert_eq!(
        refused(|c| c.serial = Some(IsaDevice { port: 0xffff, ports: 2, gsi: 4 })),
        "serial port at port 0xffff with 2 ports"
    );
}

/// Runs a tool of acpica-tools in a directory of its own on the given tables. `None`, and a line that
/// says so, where the tool is not installed.
fn acpica(tool: &str, name: &str, arguments: &[&str], tables: &[(&str, &[u8])]) -> Option<String> {
    let needed = if tool == "sh" { "iasl" } else { tool };
    if Command::new(needed).arg("-v").output().is_err() {
        println!("SKIPPED: {needed} (package acpica-tools) is not installed");
        return None;
    }
    let directory = std::env::temp_dir().join(format!("cumulet-acpi-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    for (file, bytes) in tables {
        std::fs::write(directory.join(file), bytes).unwrap();
    }
    let output = Command::new(tool).args(arguments).current_dir(&directory).output().unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
    let text = [output.stdout, output.stderr].concat();
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// Disassembled and compiled again, the AML shows no error. The generation id is left out: its
/// hardware id, which Linux looks for, is not of the form that the compiler insists on.
#[test]
fn acpica_compiles_what_it_disassembled() {
    for (name, config) in [("full", AcpiConfig { generation_id: None, ..full() }), ("small", small())] {
        let tables = placed(&config);
        let dsdt = Memory::new(&tables).find("DSDT");
        let script = "iasl -d dsdt.aml && iasl -ve dsdt.dsl";
        let Some(output) = acpica("iasl", name, &["-d", "dsdt.aml"], &[("dsdt.aml", dsdt)]) else { return };
        assert!(output.contains("ASL Output") && !output.to_lowercase().contains("error"), "{output}");
        let Some(output) = acpica("sh", name, &["-c", script], &[("dsdt.aml", dsdt)]) else { return };
        assert!(output.contains(" 0 Errors"), "{output}");
    }
}

/// The tables that are no AML are decoded to their last byte.
#[test]
fn acpica_decodes_the_data_tables() {
    let tables = placed(&full());
    for table in Memory::new(&tables).tables().iter().filter(|table| table.signature != "DSDT") {
        let file = format!("{}.aml", table.signature);
        let script = format!("iasl -d {file} && cat {}.dsl", table.signature);
        let Some(output) = acpica("sh", &table.signature, &["-c", &script], &[(&file, table.bytes)]) else {
            return;
        };
        let lower = output.to_lowercase();
        assert!(lower.contains("decoded") && lower.contains("oem table id"), "{output}");
        for complaint in ["error", "invalid", "unknown", "warning", "incorrect", "truncated"] {
            assert!(!lower.contains(complaint), "{complaint} in {output}");
        }
    }
}

/// ACPICA's interpreter, the one in Linux, runs the event method with registers that read as a given
/// value, and notifies the devices of the bits that are set.
#[test]
fn acpica_runs_the_event_method() {
    let tables = placed(&full());
    let dsdt = Memory::new(&tables).find("DSDT");
    let run = |value: u8, method: &str| {
        let value = format!("{value:#x}");
        let command = format!("execute {method}");
        let arguments = ["-dt", "-r", "-fv", &value, "-b", &command, "dsdt.aml"];
        acpica("acpiexec", &format!("run-{value}"), &arguments, &[("dsdt.aml", dsdt)])
    };
    let notified = |output: &str, device: &str| output.contains(&format!("Notify on [{device}]"));

    let Some(button) = run(event::POWER_BUTTON, "\\_SB.GED_._EVT 9") else { return };
    assert!(notified(&button, "PWRB") && !notified(&button, "VGEN"), "{button}");
    let Some(both) = run(event::POWER_BUTTON | event::GENERATION_ID, "\\_SB.GED_._EVT 9") else { return };
    assert!(notified(&both, "PWRB") && notified(&both, "VGEN"), "{both}");
    let Some(present) = run(1, "\\_SB.CPUS.C003._STA") else { return };
    assert!(present.contains("[Integer] = 000000000000000F"), "{present}");
    let Some(absent) = run(0, "\\_SB.CPUS.C003._STA") else { return };
    assert!(absent.contains("[Integer] = 0000000000000000"), "{absent}");
}
