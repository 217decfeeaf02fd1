//! Firmware that is a flat image: where it is, what the first processor starts with, and what is no such image.

use std::{collections::BTreeMap, fs, io::Write, path::Path};

use address_manager::IoSpace;
use arch::x86_64::boot::registers;
use hypervisor::{
    Capabilities, IrqchipMode, SlotFlags,
    fake::{Call, VcpuCall},
};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress, VolatileMemory};
use vm_migration::Section;

use super::{super::sections, Bench, text};
use crate::{
    config::{Payload, VmConfig},
    layout::{Layout, RangeLayout},
    machine::flash::{Flash, SavedFlash},
};

const SIZE: u64 = 3 << 20 | 0x1000;
const BASE: u64 = (4 << 30) - SIZE;

/// Bytes that differ from page to page, with something at the reset vector.
fn content() -> Vec<u8> {
    (0..SIZE).map(|at| u8::try_from((at ^ at >> 12) & 0xff).unwrap()).collect()
}

fn file(content: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    file
}

fn firmware(path: &Path) -> Value {
    json!({ "payload": { "firmware": text(path) } })
}

#[test]
fn it_lies_below_4_gib_and_the_first_processor_begins_in_it() {
    let bench = Bench::new();
    let image = file(&content());
    let cpus = json!({ "boot_vcpus": 2, "max_vcpus": 2 });
    let machine = bench.boot(json!({ "payload": { "firmware": text(image.path()) }, "cpus": cpus })).unwrap();
    assert_eq!(machine.layout().flash, Some(RangeLayout { base: BASE, size: SIZE }));
    let calls = bench.hypervisor.recorder().calls();
    let slots =
        calls.iter().filter_map(|call| if let Call::SetSlot(slot) = call { Some(slot) } else { None });
    let read_only: Vec<_> = slots.filter(|slot| slot.flags.contains(SlotFlags::READ_ONLY)).collect();
    let [slot] = read_only[..] else { panic!("{read_only:?}") };
    assert_eq!((slot.guest_address, slot.size), (BASE, SIZE));
    let ready: Vec<_> = calls
        .iter()
        .filter_map(|call| match call {
            Call::Vcpu { index, call: VcpuCall::SetReady(registers) } => Some((*index, *registers)),
            _ => None,
        })
        .collect();
    let supported = bench.host.hypervisor.supported_cpuid().unwrap();
    let signature = supported.iter().find(|entry| entry.leaf == 1).map_or(0, |entry| entry.eax);
    assert_eq!(ready, [(0, registers::reset(signature))]);
}

#[test]
fn devices_do_not_reach_it_and_writes_lead_nowhere() {
    let image = file(&content());
    let machine = Bench::new().boot(firmware(image.path())).unwrap();
    let view = machine.manager().memory().view();
    for at in [BASE, BASE + SIZE - 16] {
        assert!(view.write_slice(&[1; 16], GuestAddress(at)).is_err());
        assert!(view.read_slice(&mut [0; 16], GuestAddress(at)).is_err());
        // What a guest's write comes to that the hypervisor hands out.
        assert!(!machine.manager().dispatcher().write(IoSpace::Mmio, at, &[1]));
    }
}

#[test]
fn it_is_a_copy_of_the_file() {
    let image = file(&content());
    let flash = Flash::of(&Payload::Firmware { firmware: image.path().into() }).unwrap().unwrap();
    // Whoever writes to the file later does not write to the guest.
    fs::write(image.path(), b"gone").unwrap();
    let slot = flash.slot();
    let mut bytes = vec![0; content().len()];
    slot.mapping.as_volatile_slice().read_slice(&mut bytes, 0).unwrap();
    assert!(bytes == content(), "the copy differs");
    assert_eq!(flash.saved(), SavedFlash { size: SIZE, crc32c: crc32c::crc32c(&content()) });
}

#[test]
fn what_is_no_such_image_is_refused_by_name() {
    let sizes = "expected a multiple of 4096 up to 0x1000000";
    let cases = [
        (vec![], "is empty".to_owned()),
        (vec![0x90; 100], format!("firmware image of 0x64 bytes: {sizes}")),
        (vec![0x90; (16 << 20) + 4096], format!("firmware image of 0x1001000 bytes: {sizes}")),
        (vec![0; 4096], "no firmware: neither an ELF file nor flash".to_owned()),
        (vec![0xff; 4096], "are all 0xff".to_owned()),
        ([&b"\x7fELF"[..], &[0; 4092]].concat(), "cannot boot".to_owned()),
    ];
    for (content, why) in cases {
        let image = file(&content);
        let said = Bench::new().refusal(firmware(image.path()));
        assert!(said.contains(text(image.path())) && said.contains(&why), "{why}: {said}");
    }
    let said = Bench::new().refusal(json!({ "payload": { "firmware": "/nowhere/flash" } }));
    assert!(said.contains("firmware: cannot open /nowhere/flash"), "{said}");
}

#[test]
fn a_host_without_read_only_memory_says_so() {
    let capable = Bench::new().host.hypervisor.capabilities().clone();
    let image = file(&content());
    let said =
        Bench::with(Capabilities { read_only_slots: false, ..capable }).refusal(firmware(image.path()));
    assert!(said.contains("read-only slots are not supported"), "{said}");
}

/// A layout, and the sections of a machine of it.
fn saved(bench: &Bench, said: Value) -> (Layout, BTreeMap<String, Section>) {
    let machine = bench.boot(said).unwrap();
    let (sections, _) = machine.save().unwrap();
    let sections = sections.into_iter().map(|section| (section.id.clone(), section)).collect();
    (machine.layout().clone(), sections)
}

#[test]
fn its_size_and_checksum_are_saved_and_needed() {
    let image = file(&content());
    let (layout, mut sections) = saved(&Bench::new(), firmware(image.path()));
    sections::check(&sections, &layout, IrqchipMode::Kernel).unwrap();
    let Section { kind, version, state, .. } = sections.remove("__flash").unwrap();
    // What is written once is read for ever.
    let sum = crc32c::crc32c(&content());
    let expected = format!(r#"{{"size":{SIZE},"crc32c":{sum}}}"#);
    assert_eq!((kind.as_str(), version, state.get()), ("firmware-flash", 1, expected.as_str()));
    let said = sections::check(&sections, &layout, IrqchipMode::Kernel).unwrap_err().to_string();
    assert_eq!(said, "__flash: its state is missing");
    // A machine without it says nothing of it, so that an older program can read what it saves.
    let (plain, sections) = saved(&Bench::new(), json!({}));
    assert!(!sections.contains_key("__flash"));
    assert!(!serde_json::to_string(&plain).unwrap().contains("flash"));
}

#[test]
fn a_saved_place_that_is_none_is_refused() {
    let bench = Bench::new();
    let image = file(&content());
    let (layout, _) = saved(&bench, firmware(image.path()));
    let config = bench.config(firmware(image.path()));
    let supported = bench.host.hypervisor.supported_cpuid().unwrap();
    let caps = super::super::processors::host_caps(&bench.host, &supported);
    layout.check(&config, &caps).unwrap();
    let places = [(BASE - 0x1000, SIZE), (BASE, SIZE - 0x1000), (BASE, 0), (0, SIZE), (u64::MAX, u64::MAX)];
    for (base, size) in places {
        let moved = Layout { flash: Some(RangeLayout { base, size }), ..layout.clone() };
        let said = crate::error::chain(&moved.check(&config, &caps).unwrap_err());
        assert!(said.contains(&format!("firmware at {base:#x}+{size:#x}")), "{said}");
    }
}

#[test]
fn only_the_same_image_comes_back() {
    let bench = Bench::new();
    let image = file(&content());
    let (layout, sections) = saved(&bench, firmware(image.path()));
    let again = |config: &VmConfig| Flash::again(config, &layout, &sections);
    let refusal = |config: &VmConfig| crate::error::chain(&again(config).unwrap_err());
    let flash = again(&bench.config(firmware(image.path()))).unwrap().unwrap();
    assert_eq!(flash.saved().size, SIZE);
    // The same bytes in another place are the same.
    let copy = file(&content());
    assert!(again(&bench.config(firmware(copy.path()))).unwrap().is_some());

    let mut other = content();
    other[0x1234] ^= 1;
    let kernel = super::kernel_image();
    for changed in [&other[..], &content()[0x1000..], &kernel] {
        let image = file(changed);
        let said = refusal(&bench.config(firmware(image.path())));
        assert!(
            said.contains(text(image.path())) && said.contains("not what the guest was started with"),
            "{said}"
        );
    }
    let said = refusal(&bench.config(json!({ "payload": { "firmware": "/nowhere/flash" } })));
    assert!(said.contains("firmware: cannot open /nowhere/flash"), "{said}");
    let said = refusal(&bench.config(json!({})));
    assert!(said.contains("the configuration names no file"), "{said}");
}
