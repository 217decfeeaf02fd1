//! Persistent memory: where it is, who may use its file, and that devices reach it.

use std::fs;

use address_manager::{SlotRole, WindowKind};
use hypervisor::fake::Call;
use serde_json::{Value, json};
use vm_memory::{Bytes, GuestAddress};

use super::{Bench, image, text};
use crate::{cpu::VcpuStart, machine::Commits, machine::processors::vcpu_plans};

const MIB2: u64 = 2 << 20;

fn pmem(path: &std::path::Path, discard_writes: bool) -> Value {
    json!({ "pmem": [{ "id": "store", "file": path, "discard_writes": discard_writes }] })
}

#[test]
fn devices_reach_it_and_it_is_no_ram() {
    let image = image(2 * MIB2);
    let machine = Bench::new().boot(pmem(image.path(), false)).unwrap();
    let device = machine.layout().devices.iter().find(|device| device.id == "store").unwrap();
    let window = device.window.unwrap();
    assert_eq!((window.size, window.base % MIB2), (2 * MIB2, 0));
    assert!(machine.layout().in_ram(window.base, 1).is_none());
    let live = machine.manager().live();
    let slot = live.slots().find(|slot| slot.base == window.base).unwrap();
    assert_eq!((slot.size, slot.role, slot.owner.as_str()), (2 * MIB2, SlotRole::Persistent, "store"));
    let view = machine.manager().memory().view();
    view.write_slice(b"by DMA", GuestAddress(window.base + MIB2)).unwrap();
    assert_eq!(&fs::read(image.path()).unwrap()[2 << 20..][..6], b"by DMA");
    // Its place is not given out again.
    let windows = machine.manager().windows();
    let place = address_manager::Window { kind: WindowKind::Mmio64, segment: 0 };
    assert!(windows.given_out(place).any(|(base, size, _)| (base, size) == (window.base, window.size)));
}

#[test]
fn its_slot_is_set_once_and_with_those_of_memory() {
    for commits in [Commits::Once, Commits::Each] {
        let image = image(MIB2);
        let bench = Bench::new();
        let said = pmem(image.path(), false);
        let saved = bench.saved(said.clone());
        let (config, supported) = (bench.config(said), bench.host.hypervisor.supported_cpuid().unwrap());
        let base = saved.ground.layout.devices.last().unwrap().window.unwrap().base;
        bench.hypervisor.recorder().take();
        saved.load();
        let layout = &saved.ground.layout;
        let plans = vcpu_plans(&config.cpus, layout, &supported, |_| VcpuStart::Waiting).unwrap();
        let machine = saved.commit(&bench.host, plans, commits);
        let calls = bench.hypervisor.recorder().calls();
        let at = |call: &Call| matches!(call, Call::SetSlot(slot) if slot.guest_address == base);
        assert_eq!(calls.iter().filter(|call| at(call)).count(), 1, "{commits:?}");
        let slot = calls.iter().position(at).unwrap();
        let controllers = calls.iter().position(|call| matches!(call, Call::CreateIrqchip { .. })).unwrap();
        assert!(slot < controllers, "{commits:?}: {calls:?}");
        drop(machine);
    }
}

#[test]
fn a_file_has_one_writer_or_any_number_of_readers() {
    let bench = Bench::new();
    let image = image(MIB2);
    let writer = bench.boot(pmem(image.path(), false)).unwrap();
    for discard in [false, true] {
        let said = bench.refusal(pmem(image.path(), discard));
        for expected in ["device store", text(image.path()), "in use", "write lock"] {
            assert!(said.contains(expected), "{said:?} has no {expected:?}");
        }
    }
    let said = bench.refusal(json!({ "disks": [{ "path": image.path() }] }));
    assert!(said.contains("_disk0") && said.contains("in use"), "{said}");
    // It can be handed over.
    writer.unlock_images().unwrap();
    let other = bench.boot(pmem(image.path(), false)).unwrap();
    assert_eq!(writer.lock_images().unwrap_err().id, "store");
    drop(other);
    writer.lock_images().unwrap();
    drop(writer);
    let readers = [(); 2].map(|()| bench.boot(pmem(image.path(), true)).unwrap());
    let said = bench.refusal(pmem(image.path(), false));
    assert!(said.contains("read lock"), "{said}");
    drop(readers);
    bench.boot(pmem(image.path(), false)).unwrap();
}

#[test]
fn what_cannot_be_is_refused_by_id_and_file() {
    let bench = Bench::new();
    let odd = image(MIB2 + 4096);
    let place = tempfile::tempdir().unwrap();
    let missing = place.path().join("missing");
    for (path, expected) in [
        (odd.path(), "a multiple of 2 MiB"),
        (missing.as_path(), "cannot open"),
        (place.path(), "a size is needed"),
    ] {
        let said = bench.refusal(pmem(path, false));
        for expected in [expected, "device store", text(path)] {
            assert!(said.contains(expected), "{said:?} has no {expected:?}");
        }
    }
    bench.boot(json!({ "pmem": [{ "file": place.path(), "size": MIB2 }] })).unwrap();
}
