//! What firmware tables in guest memory say.

use arch::x86_64::layout::{SMBIOS_SIZE, SMBIOS_START};
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
fn names_that_cannot_be_written_down_are_refused() {
    let oem = |strings: Value| Bench::new().refusal(json!({ "platform": { "oem_strings": strings } }));
    assert!(oem(json!(["a\0b"])).contains("NUL"), "{}", oem(json!(["a\0b"])));
    assert!(oem(json!(["x".repeat(40_000)])).contains("40000"));
    let long = "x".repeat(30_000);
    assert!(oem(json!([long, long, long])).contains("SMBIOS table"));
}
