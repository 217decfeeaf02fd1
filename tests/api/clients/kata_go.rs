//! Kata Containers' run time in Go (`clh.go`), by its generated client: rest-api.md, section 8.1.

use std::{
    fs::{self, File},
    os::fd::AsFd,
    path::Path,
    time::Duration,
};

use cumulet_tests::{
    api::{Reply, Vmm, guest_config},
    cumulet,
    monitor::until,
    tap,
};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::{done, kata_net, not_there_yet, send_with, timed, url};

/// The time that is given to a call, and to create and boot a VM.
const CALL: Duration = Duration::from_secs(1);
const LAUNCH: Duration = Duration::from_secs(10);
/// The time that the process has to vanish.
const END: Duration = Duration::from_secs(3);

/// The root disk's image.
fn image() -> NamedTempFile {
    let image = NamedTempFile::new().expect("there is room");
    image.as_file().set_len(1 << 20).expect("there is room");
    image
}

/// The configuration that it sends, without what this version has no machinery for; `more` is laid over it.
fn config(image: &Path, more: &Value) -> Value {
    let mut config = guest_config(
        "",
        &json!({
            "platform": { "num_pci_segments": 2 },
            "cpus": {
                "boot_vcpus": 1, "max_vcpus": 2, "nested": false,
                "topology": { "threads_per_core": 1, "cores_per_die": 2, "dies_per_package": 1, "packages": 1 },
            },
            "memory": { "size": 128 << 20, "shared": true, "hotplug_size": 1 << 30 },
            "disks": [{ "path": image, "readonly": true, "image_type": "Raw", "id": null }],
            "rng": { "src": "/dev/urandom" },
            "serial": { "mode": "Off", "iommu": false },
            "console": { "mode": "Off", "iommu": false },
        }),
    );
    for (key, value) in more.as_object().expect("an object") {
        config[key] = value.clone();
    }
    config
}

/// Starts the process as it does, and asks until it answers.
fn launch() -> Vmm {
    let vmm = Vmm::start(&["-v", "--seccomp", "false"]);
    let (took, answer) = timed(|| until("an answer", || Some(vmm.ask("GET", "vmm.ping", ""))));
    assert!(answer.status == 200 && took < CALL, "{answer:?} after {took:?}");
    vmm
}

fn state(vmm: &Vmm) -> Value {
    vmm.ask("GET", "vm.info", "").json()["state"].clone()
}

fn create(vmm: &Vmm, config: &Value) -> Reply {
    let reply = vmm.ask("PUT", "vm.create", &config.to_string());
    assert_eq!(reply.status, 204, "{reply:?}");
    assert_eq!(state(vmm), "Created");
    reply
}

/// Ends it, and waits until the process has vanished.
fn stop(vmm: Vmm) {
    assert_eq!(vmm.ask("PUT", "vmm.shutdown", "").status, 200);
    let (took, (status, _)) = timed(|| vmm.end());
    assert!(status.success() && took < END, "{status} after {took:?}");
}

#[test]
fn kata_in_go() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let vmm = launch();
    let image = image();
    let reply = create(&vmm, &config(image.path(), &json!({})));
    assert!(reply.head.contains("X-Cumulet-Unknown-Fields: serial.iommu"), "{}", reply.head);

    let handed_over = NamedTempFile::new().expect("there is room");
    let file = File::open(handed_over.path()).expect("it is there");
    let held = || {
        let open = fs::read_dir(format!("/proc/{}/fd", vmm.pid())).expect("the process is there");
        open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).any(|path| path == handed_over.path())
    };
    assert!(!held());
    let mut raw = vmm.connect();
    let reply = send_with(&mut raw, "vm.add-net", &kata_net().to_string(), &[file.as_fd()]);
    assert!(reply.status == 204 && reply.body.is_empty(), "{reply:?}");
    drop(raw);
    let net = &vmm.ask("GET", "vm.info", "").json()["config"]["net"][0];
    assert_eq!(net["fds"].as_array().map(Vec::len), Some(1), "{net}");
    // Kept as long as the device is configured. (It is no tap: those boot in the test below.)
    assert!(held());
    assert_eq!(vmm.ask("PUT", "vm.remove-device", r#"{"id":"net0"}"#).status, 204);
    assert!(!held());

    assert_eq!(vmm.ask("PUT", "vm.boot", "").status, 204);
    let info = vmm.ask("GET", "vm.info", "").json();
    assert_eq!(info["state"], "Running");
    assert_eq!(info["memory_actual_size"], 128 << 20);
    for node in info["device_tree"].as_object().expect("it is booted").values() {
        assert!(node["resources"].as_array().expect("there are some").iter().all(Value::is_object), "{node}");
    }
    assert!(vmm.threads().contains(&"vcpu0".to_owned()));
    let counters = vmm.ask("GET", "vm.counters", "").json();
    assert_eq!(counters["_disk0"]["write_latency_min"], json!(u64::MAX));
    plug(&vmm, image.path());
    resize(&vmm, &info["config"]);
    stop(vmm);
}

/// Devices come and go.
fn plug(vmm: &Vmm, image: &Path) {
    let disk =
        json!({ "path": image, "readonly": false, "image_type": "Raw", "num_queues": 1, "queue_size": 1024 });
    let (took, reply) = timed(|| vmm.ask("PUT", "vm.add-disk", &disk.to_string()));
    not_there_yet(&reply, "hotplug");
    assert!(took < CALL, "{took:?}");
    let device = json!({ "path": "/sys/bus/pci/devices/0000:3b:00.0", "id": "vfio0", "iommu": false });
    not_there_yet(&vmm.ask("PUT", "vm.add-device", &device.to_string()), "VFIO");
    not_there_yet(&vmm.ask("PUT", "vm.remove-device", r#"{"id":"_disk0"}"#), "hotplug");
    let unknown = vmm.ask("PUT", "vm.remove-device", r#"{"id":"_disk7"}"#);
    assert_eq!(super::refusal(&unknown), (404, "unknown-device"));
}

/// It reads what there is, and asks for more or for less.
fn resize(vmm: &Vmm, config: &Value) {
    let number = |pointer: &str| config.pointer(pointer).and_then(Value::as_u64).expect("it is told");
    assert_eq!(number("/memory/hotplug_size"), 1 << 30);
    let (size, vcpus) = (number("/memory/size"), number("/cpus/boot_vcpus"));
    assert_eq!((size, vcpus, number("/cpus/max_vcpus")), (128 << 20, 1, 2));
    let ask = |what: &str, value: u64| vmm.ask("PUT", "vm.resize", &json!({ what: value }).to_string());
    done(&ask("desired_ram", size));
    not_there_yet(&ask("desired_ram", size + (128 << 20)), "hotplug");
    done(&ask("desired_vcpus", vcpus));
    not_there_yet(&ask("desired_vcpus", 2), "hotplug");
    assert_eq!(super::refusal(&ask("desired_vcpus", 3)), (500, "size-invalid"));
}

#[test]
fn kata_in_go_on_a_tap_that_it_opened() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let Some(opened) = tap::open() else { return };
    let vmm = launch();
    let image = image();
    let (took, ()) = timed(|| {
        create(&vmm, &config(image.path(), &json!({})));
        let reply = send_with(&mut vmm.connect(), "vm.add-net", &kata_net().to_string(), &[opened.as_fd()]);
        assert!(reply.status == 204 && reply.body.is_empty(), "{reply:?}");
        done(&vmm.ask("PUT", "vm.boot", ""));
        assert_eq!(state(&vmm), "Running");
    });
    assert!(took < LAUNCH, "{took:?}");
    let info = vmm.ask("GET", "vm.info", "").json();
    assert_eq!(info["config"]["net"][0]["fds"].as_array().map(Vec::len), Some(1), "{info}");
    // Segment 0, bus 0, function 0: it reads the slot and no more.
    let bdf =
        info["device_tree"]["_virtio-pci-net0"]["pci_bdf"].as_str().expect("it has an address").to_owned();
    assert!(bdf.starts_with("0000:00:") && bdf.ends_with(".0") && bdf.len() == 12, "{bdf}");
    assert_eq!(vmm.ask("GET", "vm.counters", "").json()["net0"]["rx_frames"], json!(0));
    // The descriptors survive a reboot.
    done(&vmm.ask("PUT", "vm.reboot", ""));
    assert_eq!(state(&vmm), "Running");
    stop(vmm);
}

#[test]
fn kata_in_go_with_what_is_not_there_yet() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let vmm = launch();
    let image = image();
    let behind = |value: Value| {
        let mut value = value;
        value["iommu"] = json!(true);
        value
    };
    let wishes = [
        (json!({ "balloon": { "size": 0, "free_page_reporting": true } }), "memory balloon"),
        (
            json!({ "fs": [{ "tag": "kataShared", "socket": "/run/fs", "num_queues": 1, "queue_size": 1024,
                "pci_segment": 1 }] }),
            "virtio-fs",
        ),
        (json!({ "devices": [{ "path": "/sys/bus/pci/devices/0000:3b:00.0", "id": "vfio0" }] }), "VFIO"),
        (
            json!({
                "platform": { "num_pci_segments": 2, "iommu_segments": [0] },
                "disks": [behind(json!({ "path": image.path(), "readonly": true, "image_type": "Raw" }))],
                "rng": behind(json!({ "src": "/dev/urandom" })),
            }),
            "virtual IOMMU",
        ),
    ];
    for (wish, what) in &wishes {
        create(&vmm, &config(image.path(), wish));
        not_there_yet(&vmm.ask("PUT", "vm.boot", ""), what);
        // It can be edited, and tried again.
        assert_eq!(state(&vmm), "Created");
        done(&vmm.ask("PUT", "vm.delete", ""));
    }
    stop(vmm);
}

/// The VM whose memory is a file is saved once, and its clones map that file, each for itself.
#[test]
fn kata_in_go_makes_vms_out_of_a_template() {
    const SIZE: u64 = 64 << 20;
    if !cumulet::kvm_is_usable() {
        return;
    }
    let place = tempfile::tempdir().expect("there is room");
    let (memory, template) = (place.path().join("memory"), place.path().join("template"));
    fs::create_dir(&template).expect("there is room");
    let image = image();
    let zone = json!({ "id": "mem0", "size": SIZE, "file": memory, "shared": true });
    let more = json!({ "memory": { "size": 0, "shared": true, "zones": [zone] } });
    File::create(&memory).and_then(|file| file.set_len(SIZE)).expect("there is room");
    let vmm = launch();
    create(&vmm, &config(image.path(), &more));
    done(&vmm.ask("PUT", "vm.boot", ""));
    done(&vmm.ask("PUT", "vm.pause", ""));
    done(&vmm.ask("PUT", "vm.snapshot", &json!({ "destination_url": url(&template) }).to_string()));
    stop(vmm);
    let held = fs::read(&memory).expect("it is there");
    assert!(held.iter().any(|byte| *byte != 0), "the memory is in the zone's own file");
    let stored: u64 = fs::read_dir(&template)
        .expect("it is there")
        .map(|entry| {
            std::os::unix::fs::MetadataExt::blocks(
                &entry.expect("it is there").metadata().expect("it is there"),
            ) * 512
        })
        .sum();
    assert!(stored < 1 << 20, "{stored} bytes: and not in the snapshot too");

    let config_file = template.join("config.json");
    let mut edited: Value =
        serde_json::from_slice(&fs::read(&config_file).expect("it is there")).expect("it is JSON");
    assert!(template.join("state.json").exists());
    edited["memory"]["shared"] = json!(false);
    edited["memory"]["zones"][0]["shared"] = json!(false);
    fs::write(&config_file, edited.to_string()).expect("there is room");
    let clones: Vec<Vmm> = (0..2)
        .map(|_| {
            let vmm = launch();
            done(&vmm.ask("PUT", "vm.restore", &json!({ "source_url": url(&template) }).to_string()));
            assert_eq!(state(&vmm), "Paused");
            done(&vmm.ask("PUT", "vm.resume", ""));
            vmm
        })
        .collect();
    for vmm in clones {
        let info = vmm.ask("GET", "vm.info", "").json();
        assert_eq!((&info["state"], &info["memory_actual_size"]), (&json!("Running"), &json!(SIZE)));
        assert_eq!(info["config"]["memory"]["zones"][0]["shared"], false);
        stop(vmm);
    }
    assert!(fs::read(&memory).expect("it is there") == held, "what a clone writes is its own");
}
