//! What each command does in each state.

use super::{
    super::{Addition, Restore},
    *,
};

const NOT_FOUND: FailureClass = FailureClass::NotFound;
const FAILED: FailureClass = FailureClass::Failed;

/// One command of each kind that takes a VM that is not there for granted.
fn all() -> Vec<(&'static str, Command)> {
    let url = || "file:///nowhere".to_owned();
    let restore = || Restore {
        said: wire::RestoreConfig { source_url: url(), ..Default::default() },
        descriptors: vec![],
    };
    vec![
        ("boot", Command::Boot),
        ("shutdown", Command::Shutdown),
        ("reboot", Command::Reboot),
        ("resume", Command::Resume),
        ("pause", Command::Pause),
        ("power-button", Command::PowerButton),
        ("nmi", Command::Nmi),
        ("snapshot", Command::Snapshot(wire::VmSnapshotConfig::to(url()))),
        ("restore", Command::Restore(Box::new(restore()))),
        ("coredump", Command::Coredump(wire::VmCoredumpData { destination_url: url() })),
        ("resize", Command::Resize(wire::VmResize { desired_vcpus: Some(3), ..Default::default() })),
        ("resize-disk", Command::ResizeDisk(wire::VmResizeDisk { id: "none".into(), desired_size: 1 })),
        ("resize-zone", Command::ResizeZone(wire::VmResizeZone { id: "none".into(), desired_ram: 1 })),
        ("remove", Command::Remove(wire::VmRemoveDevice { id: "none".into() })),
        ("send", Command::SendMigration(Box::new(wire::SendMigrationData::to("unix:/nowhere")))),
    ]
}

fn check_all(bench: &Bench, expected: &[(&str, Option<(FailureClass, &str)>)]) {
    for (name, command) in all() {
        let Some((_, expected)) = expected.iter().find(|(of, _)| *of == name) else { continue };
        match (bench.handle.call(command), expected) {
            (Ok(_), None) => {}
            (Err(error), Some((class, words))) => {
                let said = crate::error::chain(&error);
                assert_eq!(error.class(), *class, "{name}: {said}");
                assert!(said.contains(words), "{name}: {said:?} has no {words:?}");
            }
            (result, expected) => panic!("{name}: {result:?}, not {expected:?}"),
        }
    }
}

#[test]
fn without_a_vm() {
    let bench = Bench::new();
    check_all(
        &bench,
        &[
            ("boot", Some((NOT_FOUND, "VM config is missing"))),
            ("shutdown", Some((FAILED, "VM is not running"))),
            ("reboot", Some((NOT_FOUND, "VM is not created"))),
            ("pause", Some((FAILED, "VM is not running"))),
            ("resume", Some((FAILED, "VM is not running"))),
            ("power-button", Some((FAILED, "VM is not running"))),
            ("nmi", Some((FAILED, "VM is not running"))),
            ("snapshot", Some((FAILED, "VM is not running"))),
            ("restore", Some((FAILED, "/nowhere is no directory that can be used"))),
            ("coredump", Some((FAILED, "VM is not running"))),
            ("resize", Some((NOT_FOUND, "VM is not created"))),
            ("resize-disk", Some((NOT_FOUND, "VM is not created"))),
            ("resize-zone", Some((NOT_FOUND, "VM is not created"))),
            ("remove", Some((NOT_FOUND, "VM is not created"))),
            ("send", Some((FAILED, "VM is not running"))),
        ],
    );
    assert_eq!(bench.handle.call(Command::Delete).unwrap(), Answer::Done);
    assert!(matches!(bench.board.info(), Err(CommandError::NotCreated)));
    assert!(matches!(bench.board.counters(), Err(CommandError::NotRunning)));
}

#[test]
fn created() {
    let bench = Bench::new();
    bench.create(&json!({})).unwrap();
    check_all(
        &bench,
        &[
            ("shutdown", Some((FAILED, "VM is not running"))),
            ("reboot", Some((NOT_FOUND, "VM is not created"))),
            ("pause", Some((FAILED, "VM is not running"))),
            ("resume", Some((FAILED, "VM is not running"))),
            ("power-button", Some((FAILED, "VM is not running"))),
            ("nmi", Some((FAILED, "VM is not running"))),
            ("snapshot", Some((FAILED, "VM is not running"))),
            ("restore", Some((FAILED, "VM is already created"))),
            ("resize-disk", Some((FAILED, "VM is not running"))),
            ("resize-zone", Some((FAILED, "zone none is not known"))),
            ("remove", Some((NOT_FOUND, "Device none is not known"))),
        ],
    );
    assert_eq!(refusal(bench.create(&json!({}))), (FAILED, "VM is already created".into()));
    let info = bench.board.info().unwrap();
    assert_eq!((info.state, info.memory_actual_size), (VmState::Created, 64 << 20));
    assert!(info.device_tree.is_none());
    assert!(matches!(bench.board.counters(), Err(CommandError::NotRunning)));
}

#[test]
fn running_and_paused() {
    let bench = Bench::new();
    bench.create(&json!({ "pvpanic": true })).unwrap();
    bench.handle.call(Command::Boot).unwrap();
    assert_eq!(bench.state(), Some(VmState::Running));
    let url = "file:///nowhere".to_owned();
    let snapshot = Command::Snapshot(wire::VmSnapshotConfig::to(url));
    assert_eq!(refusal(bench.handle.call(snapshot)).1, "Trying to snapshot while VM is running");
    check_all(
        &bench,
        &[
            ("boot", Some((FAILED, "VM is already created"))),
            ("resume", Some((FAILED, "state transition from Running"))),
            ("power-button", None),
            ("nmi", None),
            ("restore", Some((FAILED, "VM is already created"))),
            ("resize", Some((FAILED, "3 vCPUs"))),
            ("resize-disk", Some((NOT_FOUND, "Disk none is not known"))),
            ("remove", Some((NOT_FOUND, "Device none is not known"))),
            ("reboot", None),
            ("pause", None),
        ],
    );
    assert_eq!(bench.state(), Some(VmState::Paused));
    assert_eq!(refusal(bench.handle.call(Command::Pause)).0, FAILED);
    check_all(&bench, &[("snapshot", Some((FAILED, "/nowhere is no directory that can be used")))]);
    let tree = bench.board.info().unwrap().device_tree.unwrap();
    assert_eq!(tree["_virtio-pci-__rng"].pci_bdf.as_deref(), Some("0000:00:01.0"));
    assert_eq!(tree["__rng"].parent.as_deref(), Some("_virtio-pci-__rng"));
    assert!(tree["__pvpanic"].children.is_empty() && !tree.contains_key("__console"));
    assert!(bench.board.counters().unwrap().is_empty());
    assert_eq!(bench.board.exits().len(), 1);
    bench.handle.call(Command::Resume).unwrap();
    bench.handle.call(Command::Shutdown).unwrap();
    assert_eq!(bench.state(), Some(VmState::Created));
    bench.handle.call(Command::Boot).unwrap();
    bench.handle.call(Command::Delete).unwrap();
    assert_eq!(bench.state(), None);
}

#[test]
fn what_cannot_be_is_found_out_at_boot_and_can_be_mended() {
    let bench = Bench::new();
    let class = |said: Value| {
        bench.create(&said).unwrap();
        let class = refusal(bench.handle.call(Command::Boot)).0;
        assert_eq!(bench.state(), Some(VmState::Created));
        bench.handle.call(Command::Delete).unwrap();
        class
    };
    assert_eq!(class(json!({ "payload": null })), FailureClass::Invalid);
    assert_eq!(class(json!({ "cpus": { "boot_vcpus": 2, "max_vcpus": 1 } })), FailureClass::Invalid);
    let twice = json!([{ "path": "/a", "id": "a" }, { "path": "/b", "id": "a" }]);
    assert_eq!(class(json!({ "disks": twice })), FailureClass::Conflict);
    assert_eq!(class(json!({ "memory": { "size": 0 } })), FAILED);
    assert_eq!(class(json!({ "disks": [{ "path": "/nowhere/disk" }] })), FAILED);
    assert_eq!(class(json!({ "payload": { "kernel": "/a\0b" } })), FAILED);

    bench.create(&json!({ "cpus": { "boot_vcpus": 0, "max_vcpus": 1 } })).unwrap();
    bench.handle.call(Command::Boot).unwrap_err();
    let one = wire::VmResize { desired_vcpus: Some(1), ..Default::default() };
    bench.handle.call(Command::Resize(one)).unwrap();
    bench.handle.call(Command::Boot).unwrap();
}

#[test]
fn devices_come_and_go_before_boot() {
    let bench = Bench::new();
    let disk = |id: &str| {
        let disk =
            wire::DiskConfig { id: Some(id.into()), path: Some("/nowhere".into()), ..Default::default() };
        bench.handle.call(Command::Add(Box::new(Addition::Disk(disk))))
    };
    assert_eq!(refusal(disk("a")).0, NOT_FOUND);
    bench.create(&json!({})).unwrap();
    assert_eq!(disk("a").unwrap(), Answer::Done);
    assert_eq!(refusal(disk("a")).0, FailureClass::Conflict);
    assert_eq!(refusal(disk("__a")).0, FailureClass::Invalid);
    disk("b").unwrap();
    let ids = || {
        let config = bench.board.info().unwrap().config;
        config.disks.unwrap().into_iter().filter_map(|disk| disk.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(), ["a", "b"]);
    let remove = |id: &str| bench.handle.call(Command::Remove(wire::VmRemoveDevice { id: id.into() }));
    remove("_virtio-pci-a").unwrap();
    assert_eq!(ids(), ["b"]);
    remove("b").unwrap();
    bench.handle.call(Command::Boot).unwrap();
    assert_eq!(
        refusal(disk("c")),
        (FAILED, "This version has no hotplug: devices can be added before boot".into())
    );
    assert_eq!(refusal(disk("__c")).0, FailureClass::Invalid);
    assert!(refusal(remove("__rng")).1.contains("cannot be removed"));
}

#[test]
fn a_disk_is_resized_while_it_is_in_use() {
    let bench = Bench::new();
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    bench.create(&json!({ "disks": [{ "path": image.path(), "image_type": "Raw" }] })).unwrap();
    bench.handle.call(Command::Boot).unwrap();
    let resize = |id: &str, desired_size| {
        let said = wire::VmResizeDisk { id: id.into(), desired_size };
        bench.handle.call(Command::ResizeDisk(said))
    };
    resize("_disk0", 2 << 20).unwrap();
    assert_eq!(image.as_file().metadata().unwrap().len(), 2 << 20);
    assert_eq!(refusal(resize("_disk0", 1000)).0, FAILED);
    assert_eq!(refusal(resize("__rng", 1 << 20)).0, NOT_FOUND);
    let counters = bench.board.counters().unwrap();
    assert_eq!((counters["_disk0"]["read_ops"], counters["_disk0"]["read_latency_min"]), (0, u64::MAX));
    assert_eq!(counters["_disk0"]["read_latency_avg"], 1_844_674_407_370_955);
}

#[test]
fn memory_that_shrinks_does_so_at_the_next_boot() {
    let bench = Bench::with(false, Some(json!({})));
    bench.reaches(Some(VmState::Running));
    let ram = |bytes| {
        bench.handle.call(Command::Resize(wire::VmResize { desired_ram: Some(bytes), ..Default::default() }))
    };
    ram(32 << 20).unwrap();
    assert_eq!(bench.board.info().unwrap().memory_actual_size, 32 << 20);
    assert_eq!(refusal(ram(128 << 20)).0, FAILED);
    // What is there all the time can be had back; a page more would be new.
    for bytes in [48 << 20, 64 << 20, 16 << 20, 64 << 20] {
        ram(bytes).unwrap();
        assert_eq!(bench.board.info().unwrap().memory_actual_size, bytes);
    }
    assert_eq!(refusal(ram((64 << 20) + 4096)).0, FAILED);
    ram(32 << 20).unwrap();
    bench.handle.call(Command::Reboot).unwrap();
    // Now it is gone.
    assert_eq!(refusal(ram(64 << 20)).0, FAILED);
    let none = wire::VmResize { desired_balloon: Some(0), ..Default::default() };
    assert!(refusal(bench.handle.call(Command::Resize(none))).1.contains("no balloon"));
}

#[test]
fn consoles_are_opened_when_the_vm_is_created() {
    let bench = Bench::new();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("serial");
    bench
        .create(&json!({ "serial": { "mode": "Socket", "socket": socket }, "console": { "mode": "Pty" } }))
        .unwrap();
    assert!(socket.exists());
    let pty = || bench.board.info().unwrap().config.console.file.unwrap();
    let first = pty();
    assert!(first.starts_with("/dev/pts"), "{first:?}");
    bench.handle.call(Command::Boot).unwrap();
    assert_eq!(pty(), first);
    bench.handle.call(Command::Reboot).unwrap();
    assert!(pty().exists() && socket.exists());
    bench.handle.call(Command::Delete).unwrap();
    assert!(!socket.exists());

    let refused = json!({ "console": { "mode": "Socket", "socket": socket } });
    assert_eq!(refusal(bench.create(&refused)).0, FAILED);
    assert_eq!(refusal(bench.create(&json!({}))).1, "VM is already created");
    bench.handle.call(Command::Delete).unwrap();
    let refused = json!({ "serial": { "mode": "File", "file": directory.path() } });
    assert_eq!(refusal(bench.create(&refused)).0, FAILED);
}
