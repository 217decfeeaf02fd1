//! The sections that a layout promises are those that a machine of it saves, and no other set is let through.

use std::collections::BTreeMap;

use hypervisor::IrqchipMode;
use serde_json::{json, value::RawValue};
use vm_migration::Section;

use super::{super::sections, Bench, image, text};
use crate::{layout::Layout, machine::Machine};

type Sections = BTreeMap<String, Section>;

fn saved(machine: &Machine) -> Sections {
    let (sections, _) = machine.save().unwrap();
    sections.into_iter().map(|section| (section.id.clone(), section)).collect()
}

/// The layout and the state of a machine with everything that needs no privileges.
fn everything() -> (Layout, Sections) {
    let disk = image(1 << 20);
    let directory = tempfile::tempdir().unwrap();
    let machine = Bench::new()
        .boot(json!({
            "cpus": { "boot_vcpus": 2, "max_vcpus": 3 },
            "disks": [{ "path": text(disk.path()), "image_type": "Raw" }],
            "vsock": { "cid": 3, "socket": directory.path().join("vsock") },
            "console": { "mode": "Null" },
            "pvpanic": true,
            "debug_exit": 0x501,
        }))
        .unwrap();
    (machine.layout().clone(), saved(&machine))
}

fn refusal(sections: &Sections, layout: &Layout) -> String {
    sections::check(sections, layout, IrqchipMode::Kernel).unwrap_err().to_string()
}

#[test]
fn a_machine_saves_what_its_layout_promises() {
    let (layout, state) = everything();
    sections::check(&state, &layout, IrqchipMode::Kernel).unwrap();
    // And so does one with next to nothing, and one whose IOAPIC is ours.
    let bare = Bench::new().boot(json!({ "serial": { "mode": "Off" } })).unwrap();
    sections::check(&saved(&bare), bare.layout(), IrqchipMode::Kernel).unwrap();
    let topology = json!({ "threads_per_core": 1, "cores_per_die": 9, "dies_per_package": 9, "packages": 2 });
    let cpus = json!({ "boot_vcpus": 2, "max_vcpus": 162, "topology": topology });
    let wide = Bench::new().boot(json!({ "cpus": cpus })).unwrap();
    sections::check(&saved(&wide), wide.layout(), IrqchipMode::Split).unwrap();
}

#[test]
fn each_section_is_needed_and_must_be_one_that_can_be_read() {
    let (layout, state) = everything();
    assert_eq!(state.len(), 2 + 2 + 8 + 3 + 4, "{:?}", state.keys());
    for (id, section) in &state {
        let mut without = state.clone();
        without.remove(id);
        assert_eq!(refusal(&without, &layout), format!("{id}: its state is missing"));

        let mut newer = state.clone();
        let next = section.version + 1;
        newer.insert(id.clone(), Section { version: next, ..section.clone() });
        let said = refusal(&newer, &layout);
        assert!(said.starts_with(&format!("{id}: {} state has version {next}", section.kind)), "{said}");

        let mut other = state.clone();
        other.insert(id.clone(), Section { kind: "other".into(), ..section.clone() });
        let said = refusal(&other, &layout);
        assert!(said.starts_with(&format!("{id}: state is of kind \"other\"")), "{said}");
    }
    let mut more = state.clone();
    more.insert("_disk7".into(), state["_disk0"].clone());
    assert_eq!(refusal(&more, &layout), "state of _disk7: the machine has nothing of that name");
}

#[test]
fn the_device_behind_a_function_is_looked_at_too() {
    let (layout, state) = everything();
    for (id, kind) in [
        ("_disk0", "virtio-block"),
        ("_vsock1", "virtio-vsock"),
        ("__console", "virtio-console"),
        ("__rng", "none"),
    ] {
        let device = format!("\"kind\":\"{kind}\",\"version\":1");
        let with = |by: &str| {
            let text = state[id].state.get();
            assert!(text.contains(&device), "{text}");
            let changed = RawValue::from_string(text.replacen(&device, by, 1)).unwrap().into();
            let mut sections = state.clone();
            sections.insert(id.into(), Section { state: changed, ..state[id].clone() });
            refusal(&sections, &layout)
        };
        let said = with(&format!("\"kind\":\"{kind}\",\"version\":2"));
        assert!(said.ends_with(&format!("{kind} state has version 2, this program reads up to 1")), "{said}");
        let said = with("\"kind\":\"probe\",\"version\":1");
        assert!(said.contains("state is of kind \"probe\""), "{said}");
    }
}
