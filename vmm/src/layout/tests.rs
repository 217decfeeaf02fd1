//! Where things come to lie, and which saved layouts are taken over.

use std::collections::BTreeMap;

use api_client::wire;
use arch::x86_64::layout as map;
use serde_json::{Value, json};

use super::{HostCaps, HotplugLayout, Layout, LayoutError, RangeLayout};
use crate::config::{VmConfig, wire::IdCounter};

const CAPS: HostCaps = HostCaps { phys_bits: 46, max_vcpus: 64, max_apic_id: 4096 };
const GIB: u64 = 1 << 30;

fn config(said: Value) -> VmConfig {
    let mut said: wire::VmConfig = serde_json::from_value(said).unwrap();
    VmConfig::from_wire(&mut said, &mut IdCounter::default()).unwrap()
}

fn allocate(said: Value) -> Result<Layout, LayoutError> {
    Layout::allocate(&config(said), &CAPS, None, &BTreeMap::new())
}

fn zones() -> Value {
    json!({ "memory": { "size": 0, "hotplug_method": "VirtioMem", "zones": [
        { "id": "a", "size": 2 * GIB, "hotplug_size": 3 * GIB },
        { "id": "b", "size": 2 * GIB },
        { "id": "c", "size": 1 << 20, "hotplug_size": 1 << 21 },
    ] } })
}

#[test]
fn memory_to_be_added_is_above_all_that_is_there() {
    let layout = allocate(zones()).unwrap();
    let kept = |zone: &str, base, size| HotplugLayout { zone: zone.into(), base, size };
    assert_eq!(layout.hotplug, [kept("a", 6 * GIB, 3 * GIB), kept("c", 9 * GIB, 1 << 21)]);
    // Devices come after it.
    assert_eq!(layout.segments[0].mmio64.base, 10 * GIB);
    let one = allocate(json!({ "memory": { "size": GIB, "hotplug_size": GIB } })).unwrap();
    assert_eq!(one.hotplug, [kept("mem0", 4 * GIB, GIB)]);

    let error = allocate(json!({ "memory": { "size": GIB, "hotplug_size": 1u64 << 46 } })).unwrap_err();
    assert_eq!(error, LayoutError::Memory { size: GIB + (1 << 46), phys_bits: 46 });
    let error = allocate(json!({ "memory": { "size": GIB, "hotplug_size": !0xfffu64 } })).unwrap_err();
    assert!(matches!(error, LayoutError::Memory { .. }), "{error}");
}

#[test]
fn a_saved_layout_keeps_the_same_memory_for_the_same_zones() {
    let config = config(zones());
    let layout = Layout::allocate(&config, &CAPS, None, &BTreeMap::new()).unwrap();
    layout.check(&config, &CAPS).unwrap();
    let refused = |change: &dyn Fn(&mut Vec<HotplugLayout>)| {
        let mut other = layout.clone();
        change(&mut other.hotplug);
        assert!(other.check(&config, &CAPS).is_err(), "{:?}", other.hotplug);
    };
    refused(&|hotplug| hotplug.clear());
    refused(&|hotplug| hotplug[0].size += 4096);
    refused(&|hotplug| hotplug[0].base = 4 * GIB);
    refused(&|hotplug| hotplug[0].base += 4096);
    refused(&|hotplug| hotplug[1].base = 8 * GIB);
    refused(&|hotplug| hotplug[1].base = !0 << 30);
    refused(&|hotplug| hotplug[1].base = 1 << 46);
    refused(&|hotplug| hotplug[1].zone = "b".into());
}

#[test]
fn windows_are_shared_by_weight() {
    let weights = |first: u32, second: u32| {
        allocate(json!({
            "platform": { "num_pci_segments": 2 },
            "pci_segments": [
                { "pci_segment": 0, "mmio32_aperture_weight": first, "mmio64_aperture_weight": second },
                { "pci_segment": 1, "mmio32_aperture_weight": 1, "mmio64_aperture_weight": 1 },
            ],
        }))
    };
    let [one, two] = weights(1, 1).unwrap().segments.try_into().unwrap();
    assert_eq!((one.mmio32.size, two.mmio32.size), (256 << 20, 256 << 20));
    assert_eq!(one.mmio64.size, two.mmio64.size);
    let [one, two] = weights(7, 3).unwrap().segments.try_into().unwrap();
    assert_eq!((one.mmio32.size, two.mmio32.size), (448 << 20, 64 << 20));
    assert!(one.mmio64.size / two.mmio64.size == 3 && one.mmio64.size.is_multiple_of(1 << 32));
    let end = |range: RangeLayout| range.base + range.size;
    assert_eq!((one.mmio32.base, two.mmio32.base), (map::PCI32_START, end(one.mmio32)));
    assert_eq!(two.mmio64.base, end(one.mmio64));
    assert!(end(two.mmio64) <= 1 << 46);

    // A share of nothing is no window.
    let error = weights(u32::MAX, 1).unwrap_err();
    assert_eq!(error, LayoutError::Windows { segment: 1, segments: 2 });
    assert!(error.to_string().contains("segment 1") && error.to_string().contains("weights"), "{error}");
}

#[test]
fn the_generation_id_is_in_memory() {
    let said = json!({ "memory": { "size": GIB } });
    let mut layout = allocate(said.clone()).unwrap();
    assert_eq!(layout.generation_id, Some(map::GENERATION_ID_START));
    assert_eq!(layout.in_ram(map::GENERATION_ID_START, 16), Some(("mem0", map::GENERATION_ID_START)));
    let check =
        |layout: &Layout| layout.check(&config(said.clone()), &CAPS).map_err(|error| error.to_string());
    assert_eq!(check(&layout), Ok(()));
    for nowhere in [GIB, GIB - 8, map::HOLE_START, u64::MAX, u64::MAX - 15] {
        layout.generation_id = Some(nowhere);
        assert!(check(&layout).unwrap_err().contains("generation id"), "{nowhere:#x}");
    }
    // Layouts that were saved before there was one say nothing of it.
    let mut saved = serde_json::to_value(&layout).unwrap();
    saved.as_object_mut().unwrap().remove("generation_id");
    let old: Layout = serde_json::from_value(saved).unwrap();
    assert_eq!(old.generation_id, None);
    assert_eq!(check(&old), Ok(()));
}

#[test]
fn a_serial_port_is_there_or_not() {
    let with = |mode: &str| config(json!({ "memory": { "size": GIB }, "serial": { "mode": mode } }));
    for (saved, now, expected) in [
        ("Null", "Off", "saved layout: a serial port, configured no serial port"),
        ("Off", "Tty", "saved layout: no serial port, configured a serial port"),
    ] {
        let layout = Layout::allocate(&with(saved), &CAPS, None, &BTreeMap::new()).unwrap();
        layout.check(&with(saved), &CAPS).unwrap();
        assert_eq!(layout.check(&with(now), &CAPS).unwrap_err().to_string(), expected);
    }
}

#[test]
fn memory_that_devices_show_lies_behind_the_bars() {
    let said = json!({ "pmem": [{ "id": "a", "file": "/a" }, { "id": "b", "file": "/b", "size": 6 << 20 }] });
    let config = config(said);
    let sizes = |a: u64| BTreeMap::from([("a".to_owned(), a), ("b".to_owned(), 6 << 20)]);
    let layout = Layout::allocate(&config, &CAPS, None, &sizes(2 << 20)).unwrap();
    layout.check(&config, &CAPS).unwrap();
    let last_bar = layout.devices.iter().map(|device| device.bar).max().unwrap();
    let windows: Vec<RangeLayout> = layout.devices.iter().filter_map(|device| device.window).collect();
    let [a, b] = windows[..] else { panic!("{windows:?}") };
    assert!(a.base > last_bar && a.base.is_multiple_of(2 << 20));
    assert_eq!((a.size, b.size, b.base), (2 << 20, 6 << 20, a.base + a.size));
    // Without them the BARs are where they are with them.
    let bars = |layout: &Layout| layout.devices.iter().map(|device| device.bar).collect::<Vec<_>>();
    assert_eq!(bars(&Layout::allocate(&config, &CAPS, None, &BTreeMap::new()).unwrap()), bars(&layout));
    let full = Layout::allocate(&config, &CAPS, None, &sizes(1 << 46)).unwrap_err();
    assert!(full.to_string().starts_with("a: no place is left"), "{full}");

    let refused = |number: usize, window: Option<RangeLayout>| {
        let mut other = layout.clone();
        other.devices[number].window = window;
        other.check(&config, &CAPS).unwrap_err().to_string()
    };
    let number = layout.devices.iter().position(|device| device.id == "b").unwrap();
    assert_eq!(refused(number, None), "saved layout: b: its memory has no place");
    let said = refused(number, Some(RangeLayout { size: 4 << 20, ..b }));
    assert_eq!(said, "saved layout: b: 4194304 bytes of memory, configured 6291456");
    for base in [b.base + 4096, 0, 2 << 30, 1 << 46, !0 << 21] {
        let said = refused(number, Some(RangeLayout { base, ..b }));
        assert!(said.starts_with("saved layout: b: memory at"), "{said}");
    }
    for size in [0, 4096, !0 << 21] {
        let said = refused(number - 1, Some(RangeLayout { size, ..a }));
        assert!(said.starts_with("saved layout: a: memory at"), "{said}");
    }
    assert_eq!(refused(0, Some(a)), "saved layout: __console: memory that no device of its kind has");
}
