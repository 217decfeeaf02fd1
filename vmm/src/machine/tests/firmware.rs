//! What firmware tables in guest memory say.

use arch::x86_64::layout::{ACPI_START, GENERATION_ID_START, RESET_VECTOR_START, SMBIOS_SIZE, SMBIOS_START};
use serde_json::{Value, json};

use super::{Bench, memory};
use crate::machine::Machine;

fn smbios(machine: &Machine) -> Vec<u8> {
    memory(machine, SMBIOS_START, usize::try_from(SMBIOS_SIZE).unwrap())
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn the_guest_finds_what_its_machine_is_called() {
    let names = json!({ "platform": {
        "system_manufacturer": "Kumo & Sons",
        "system_product_name": "nimbus",
        "system_version": "seven",
        "system_serial_number": "S-12345",
        "system_uuid": "00112233-4455-6677-8899-aabbccddeeff",
        "system_sku_number": "sku-9",
        "system_family": "clouds",
        "chassis_asset_tag": "tag-17",
        "oem_strings": ["io.systemd.credential:a=b", "second"],
    } });
    let bench = Bench::new();
    let bytes = smbios(&bench.boot(names).unwrap());
    assert!(bytes.starts_with(b"_SM3_"));
    let texts = ["Kumo & Sons", "nimbus", "seven", "S-12345", "sku-9", "clouds", "tag-17", "second"];
    for text in texts.into_iter().chain(["io.systemd.credential:a=b"]) {
        assert!(holds(&bytes, text.as_bytes()), "{text}");
    }
    // The first three fields of a UUID are stored in little endian.
    let uuid = [0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff];
    assert!(holds(&bytes, &uuid));

    let plain = smbios(&bench.boot(json!({})).unwrap());
    assert!(plain.starts_with(b"_SM3_") && holds(&plain, b"Cumulet"));
}

#[test]
fn a_jump_to_the_bios_resets_through_the_register_of_the_tables() {
    let machine = Bench::new().boot(json!({})).unwrap();
    let fadt = acpi_table(&machine, b"FACP").unwrap();
    let code = memory(&machine, RESET_VECTOR_START, 9);
    // ACPI 6.5, 5.2.9: RESET_REG is a generic address at 116, RESET_VALUE at 128.
    assert_eq!((u64::from(code[1]), number(&code, 3, 2)), (number(&fadt, 128, 1), number(&fadt, 120, 8)));
}

#[test]
fn names_that_cannot_be_written_down_are_refused() {
    let oem = |strings: Value| Bench::new().refusal(json!({ "platform": { "oem_strings": strings } }));
    assert!(oem(json!(["a\0b"])).contains("NUL"), "{}", oem(json!(["a\0b"])));
    assert!(oem(json!(["x".repeat(40_000)])).contains("40000"));
    let long = "x".repeat(30_000);
    assert!(oem(json!([long, long, long])).contains("SMBIOS table"));
}

pub(super) fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    bytes[at..at + width].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A table, as the guest finds it: the root pointer, the list of tables, the table.
pub(super) fn acpi_table(machine: &Machine, signature: &[u8; 4]) -> Option<Vec<u8>> {
    let read = |at| {
        let size = number(&memory(machine, at + 4, 4), 0, 4);
        memory(machine, at, usize::try_from(size).unwrap())
    };
    let list = read(number(&memory(machine, ACPI_START, 36), 24, 8));
    let tables = list[36..].chunks_exact(8).map(|address| read(number(address, 0, 8)));
    tables.into_iter().find(|table| table.starts_with(signature))
}

/// The structures of a table whose list of them begins at `at`: kind and bytes.
pub(super) fn structures(table: &[u8], mut at: usize) -> Vec<(u8, Vec<u8>)> {
    let mut found = Vec::new();
    while at < table.len() {
        let length = usize::from(table[at + 1]);
        found.push((table[at], table[at..at + length].to_vec()));
        at += length;
    }
    found
}

#[test]
fn the_guest_is_told_which_node_everything_is_in() {
    let gib: u64 = 1 << 30;
    let machine = Bench::new().boot(json!({
        "cpus": { "boot_vcpus": 2, "max_vcpus": 4 },
        "memory": { "size": 0, "hotplug_method": "VirtioMem", "zones": [
            { "id": "low", "size": 64 << 20 },
            { "id": "high", "size": 64 << 20, "hotplug_size": gib },
        ] },
        "platform": { "num_pci_segments": 2 },
        "numa": [
            { "guest_numa_id": 0, "cpus": [0, 2], "memory_zones": ["low"], "pci_segments": [0],
                "distances": [{ "destination": 1, "distance": 33 }] },
            { "guest_numa_id": 1, "cpus": [1, 3], "memory_zones": ["high"], "pci_segments": [1] },
        ],
    }));
    let machine = machine.unwrap();
    let srat = structures(&acpi_table(&machine, b"SRAT").unwrap(), 48);
    let processors: Vec<(u8, u8)> =
        srat.iter().filter(|(kind, _)| *kind == 0).map(|(_, bytes)| (bytes[3], bytes[2])).collect();
    assert_eq!(processors, [(0, 0), (2, 0), (1, 1), (3, 1)]);
    let ranges: Vec<(u64, u64, u64, u64)> = srat
        .iter()
        .filter(|(kind, _)| *kind == 1)
        .map(|(_, bytes)| {
            (number(bytes, 2, 4), number(bytes, 8, 8), number(bytes, 16, 8), number(bytes, 28, 4))
        })
        .collect();
    // Node, address, size; enabled, and whether it may be absent.
    assert_eq!(ranges, [(0, 0, 64 << 20, 1), (1, 64 << 20, 64 << 20, 1), (1, 4 * gib, gib, 3)]);
    let slit = acpi_table(&machine, b"SLIT").unwrap();
    assert_eq!(&slit[44..], [10, 33, 33, 10]);

    // A machine without nodes says nothing of them.
    let plain = Bench::new().boot(json!({})).unwrap();
    assert!(acpi_table(&plain, b"SRAT").is_none() && acpi_table(&plain, b"APIC").is_some());
}

#[test]
fn memory_in_no_node_is_refused() {
    let mut said: api_client::wire::VmConfig =
        serde_json::from_value(json!({ "numa": [{ "guest_numa_id": 0, "cpus": [0] }] })).unwrap();
    let error = crate::config::VmConfig::from_wire(&mut said, &mut Default::default()).unwrap_err();
    assert_eq!(error.to_string(), "numa: memory zone mem0 is in no node");
}

#[test]
fn every_machine_is_a_generation_of_its_own() {
    let bench = Bench::new();
    let id = |machine: &Machine| memory(machine, GENERATION_ID_START, 16);
    let (one, other) = (bench.boot(json!({})).unwrap(), bench.boot(json!({})).unwrap());
    assert_ne!(id(&one), id(&other));
    assert_ne!(id(&one), [0; 16]);
    // The page holds nothing else.
    assert!(holds(&memory(&one, GENERATION_ID_START + 16, 4080), &[0; 4080]));
    let fadt = acpi_table(&one, b"FACP").unwrap();
    let dsdt = memory(&one, number(&fadt, 140, 8), 0x4000);
    assert!(holds(&dsdt, b"VM_Gen_Counter"));
    assert!(holds(&dsdt, &u32::try_from(GENERATION_ID_START).unwrap().to_le_bytes()));
}
