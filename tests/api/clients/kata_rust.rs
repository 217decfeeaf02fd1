//! Kata Containers' run time in Rust, by the library of the reference's client over one connection that stays:
//! rest-api.md, section 8.2.

use std::{
    fs::File,
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
};

use cumulet_tests::{
    api::{Vmm, guest_config, send},
    cumulet, tap,
};
use serde_json::{Value, json};

use super::{done, kata_net, not_there_yet, refusal, restore_and_read_once, send_with, url};

/// What it sends, of what it does not use too.
fn config(image: &Path) -> Value {
    guest_config(
        "",
        &json!({
            "memory": { "size": 64 << 20, "shared": true },
            "serial": { "mode": "Null", "file": null, "socket": null }, "net": null,
            "disks": [{ "path": image, "id": null, "image_type": "Raw", "rate_limiter_config": null }],
            "devices": null, "vsock": null, "fs": null, "balloon": null, "pmem": null,
        }),
    )
}

fn state(one: &mut UnixStream) -> Value {
    send(one, "GET", "vm.info", "").json()["state"].clone()
}

#[test]
fn kata_in_rust_over_one_connection() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let image = tempfile::NamedTempFile::new().expect("there is room");
    image.as_file().set_len(1 << 20).expect("there is room");
    let vmm = Vmm::start(&["-v", "--seccomp", "false"]);
    let mut one = vmm.connect();
    let features = send(&mut one, "GET", "vmm.ping", "").json()["features"].clone();
    let features = features.as_array().expect("it is a list");
    assert!(features.contains(&json!("kvm")) && !features.contains(&json!("tdx")), "{features:?}");
    done(&send(&mut one, "PUT", "vm.create", &config(image.path()).to_string()));
    let file = File::open("/dev/null").expect("there is one");
    done(&send_with(&mut one, "vm.add-net", &kata_net().to_string(), &[file.as_fd()]));
    done(&send(&mut one, "PUT", "vm.remove-device", r#"{"id":"net0"}"#));
    done(&send(&mut one, "PUT", "vm.boot", ""));
    done(&send(&mut one, "PUT", "vm.pause", ""));
    let snapshot = tempfile::tempdir().expect("there is room");
    let saved = json!({ "destination_url": url(snapshot.path()) }).to_string();
    done(&send(&mut one, "PUT", "vm.snapshot", &saved));
    assert!(snapshot.path().join("config.json").exists());
    done(&send(&mut one, "PUT", "vm.resume", ""));
    assert_eq!(state(&mut one), "Running");
    plug(&mut one);
    let resize = |vcpus: Value, ram: Value| {
        json!({ "desired_vcpus": vcpus, "desired_ram": ram, "desired_balloon": null }).to_string()
    };
    done(&send(&mut one, "PUT", "vm.resize", &resize(json!(1), Value::Null)));
    let more = send(&mut one, "PUT", "vm.resize", &resize(Value::Null, json!(256 << 20)));
    not_there_yet(&more, "hotplug");
    done(&send(&mut one, "PUT", "vmm.shutdown", ""));
    assert_eq!(vmm.end().0.code(), Some(0));

    // The VM from the snapshot, in another process.
    let vmm = Vmm::start::<&str>(&[]);
    let mut one = vmm.connect();
    let report = restore_and_read_once(&mut one, &json!({ "source_url": url(snapshot.path()) }), &[]);
    assert_eq!(report["memory"].as_object().map(serde_json::Map::len), Some(1), "{report}");
    assert_eq!(state(&mut one), "Paused");
    done(&send(&mut one, "PUT", "vm.resume", ""));
    done(&send(&mut one, "PUT", "vmm.shutdown", ""));
    assert_eq!(vmm.end().0.code(), Some(0));
}

/// Devices come and go, with members that are there and say nothing.
fn plug(one: &mut UnixStream) {
    let disk = json!({
        "path": "/dev/null", "id": null, "readonly": false, "direct": false, "num_queues": 1, "queue_size": 1024,
        "vhost_user": false, "vhost_socket": null, "rate_limiter_config": null, "serial": null,
    });
    let device = json!({ "path": "/sys/bus/pci/devices/0000:3b:00.0", "id": null, "iommu": false });
    let fs =
        json!({ "tag": "kataShared", "socket": "/run/fs", "num_queues": 1, "queue_size": 1024, "id": null });
    let vsock = json!({ "cid": 3, "socket": "/run/vsock", "iommu": false, "id": null });
    for (endpoint, body, what) in [
        ("vm.add-disk", disk, "hotplug"),
        ("vm.add-device", device, "VFIO"),
        ("vm.add-fs", fs, "virtio-fs"),
        ("vm.add-vsock", vsock, "hotplug"),
    ] {
        not_there_yet(&send(one, "PUT", endpoint, &body.to_string()), what);
    }
    // By either of the ids that it has.
    for id in ["_disk0", "_virtio-pci-_disk0"] {
        not_there_yet(&send(one, "PUT", "vm.remove-device", &json!({ "id": id }).to_string()), "hotplug");
    }
    let unknown = send(one, "PUT", "vm.remove-device", r#"{"id":"none"}"#);
    assert_eq!(refusal(&unknown), (404, "unknown-device"));
}

#[test]
fn kata_in_rust_saves_a_vm_on_a_tap_and_restores_it_on_another() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let (Some(first), Some(second)) = (tap::open(), tap::open()) else { return };
    let image = tempfile::NamedTempFile::new().expect("there is room");
    image.as_file().set_len(1 << 20).expect("there is room");
    let snapshot = tempfile::tempdir().expect("there is room");
    let vmm = Vmm::start(&["-v", "--seccomp", "false"]);
    let mut one = vmm.connect();
    done(&send(&mut one, "PUT", "vm.create", &config(image.path()).to_string()));
    done(&send_with(&mut one, "vm.add-net", &kata_net().to_string(), &[first.as_fd()]));
    done(&send(&mut one, "PUT", "vm.boot", ""));
    done(&send(&mut one, "PUT", "vm.pause", ""));
    done(&send(
        &mut one,
        "PUT",
        "vm.snapshot",
        &json!({ "destination_url": url(snapshot.path()) }).to_string(),
    ));
    done(&send(&mut one, "PUT", "vmm.shutdown", ""));
    assert_eq!(vmm.end().0.code(), Some(0));

    let vmm = Vmm::start(&["-v", "--seccomp", "false"]);
    let mut one = vmm.connect();
    let nets = json!([{ "id": "net0", "num_fds": 1 }]);
    let body = json!({ "source_url": url(snapshot.path()), "net_fds": nets, "vfio_fds": null }).to_string();
    done(&send_with(&mut one, "vm.restore", &body, &[second.as_fd()]));
    assert_eq!(state(&mut one), "Paused");
    done(&send(&mut one, "PUT", "vm.resume", ""));
    assert_eq!(state(&mut one), "Running");
    done(&send(&mut one, "PUT", "vmm.shutdown", ""));
    assert_eq!(vmm.end().0.code(), Some(0));
}
