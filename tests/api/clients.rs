//! What Kata Containers and libvirt send, in their order and their form, and what they expect to come back.

use std::{
    fs::{self, File},
    io::{IoSlice, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::net::{UnixListener, UnixStream},
    },
    process::Command,
    sync::mpsc,
    time::Duration,
};

use cumulet_tests::{
    api::{Reply, Vmm, guest_config, reply, send},
    cumulet, guest,
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

/// Sends a request in one message, with descriptors.
fn send_with(stream: &mut UnixStream, endpoint: &str, body: &str, fds: &[BorrowedFd<'_>]) -> Reply {
    let request = format!(
        "PUT /api/v1/{endpoint} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    assert!(beside.push(SendAncillaryMessage::ScmRights(fds)));
    let sent = sendmsg(&mut *stream, &[IoSlice::new(request.as_bytes())], &mut beside, SendFlags::empty());
    assert_eq!(sent, Ok(request.len()));
    reply(stream)
}

fn done(reply: &Reply) {
    assert!([200, 204].contains(&reply.status), "{reply:?}");
}

/// A network device as Kata's generated client describes it: with addresses that it never meant.
fn kata_net() -> Value {
    json!({
        "id": "net0", "ip": "192.168.249.1", "mask": "255.255.255.0", "mac": "2e:89:a8:e4:92:00",
        "num_queues": 2, "queue_size": 256, "vhost_user": false, "vhost_mode": "Client", "iommu": false,
        "offload_tso": true, "offload_ufo": true, "offload_csum": true,
        "rate_limiter_config": { "bandwidth": { "size": 1000, "one_time_burst": 0, "refill_time": 100 } },
    })
}

#[test]
fn kata_in_go() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let vmm = Vmm::start(&["--seccomp", "false"]);
    assert_eq!(vmm.ask("GET", "vmm.ping", "").status, 200);
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    // Without what this version has no machinery for: the socket device and the shared file system.
    let config = guest_config(
        "",
        &json!({
            "platform": { "num_pci_segments": 2 },
            "cpus": {
                "boot_vcpus": 1, "max_vcpus": 2,
                "topology": { "threads_per_core": 1, "cores_per_die": 2, "dies_per_package": 1, "packages": 1 },
            },
            "memory": { "size": 128 << 20, "shared": true, "hotplug_size": 1 << 30 },
            "disks": [{ "path": image.path(), "readonly": true, "image_type": "Raw", "id": null }],
            "rng": { "src": "/dev/urandom" },
            "serial": { "mode": "Off", "iommu": false },
            "console": { "mode": "Off", "iommu": false },
        }),
    );
    let reply = vmm.ask("PUT", "vm.create", &config.to_string());
    assert_eq!(reply.status, 204, "{reply:?}");
    assert!(reply.head.contains("X-Cumulet-Unknown-Fields: serial.iommu"), "{}", reply.head);
    assert_eq!(vmm.ask("GET", "vm.info", "").json()["state"], "Created");

    let tap = tempfile::NamedTempFile::new().unwrap();
    let file = File::open(tap.path()).unwrap();
    let held = || {
        let open = std::fs::read_dir(format!("/proc/{}/fd", vmm.pid())).unwrap();
        open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok()).any(|path| path == tap.path())
    };
    assert!(!held());
    let mut raw = vmm.connect();
    let reply = send_with(&mut raw, "vm.add-net", &kata_net().to_string(), &[file.as_fd()]);
    assert!(reply.status == 204 && reply.body.is_empty(), "{reply:?}");
    drop(raw);
    let net = &vmm.ask("GET", "vm.info", "").json()["config"]["net"][0];
    assert_eq!(net["fds"].as_array().map(Vec::len), Some(1), "{net}");
    // Kept as long as the device is configured. (No tap can be made here: the lab boots with one.)
    assert!(held());
    assert_eq!(vmm.ask("PUT", "vm.remove-device", r#"{"id":"net0"}"#).status, 204);
    assert!(!held());

    assert_eq!(vmm.ask("PUT", "vm.boot", "").status, 204);
    let info = vmm.ask("GET", "vm.info", "").json();
    assert_eq!(info["state"], "Running");
    let config = &info["config"];
    assert_eq!(
        (&config["memory"]["hotplug_size"], &config["cpus"]["max_vcpus"]),
        (&json!(1 << 30), &json!(2))
    );
    assert_eq!(info["memory_actual_size"], 128 << 20);
    for node in info["device_tree"].as_object().unwrap().values() {
        assert!(node["resources"].as_array().unwrap().iter().all(Value::is_object), "{node}");
    }
    assert!(vmm.threads().contains(&"vcpu0".to_owned()));
    let counters = vmm.ask("GET", "vm.counters", "").json();
    assert_eq!(counters["_disk0"]["write_latency_min"], json!(u64::MAX));
    assert_eq!(vmm.ask("PUT", "vmm.shutdown", "").status, 200);
    assert_eq!(vmm.end().0.code(), Some(0));
}

/// Restores a VM and reads the answer as libvirt does: what one read of 1023 bytes brings is all of it.
fn restored_at_once(stream: &mut UnixStream, body: &str) -> Reply {
    let length = body.len();
    let request = format!("PUT /api/v1/vm.restore HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).expect("the server reads");
    let mut bytes = [0; 1023];
    let length = stream.read(&mut bytes).expect("an answer comes");
    let text = String::from_utf8(bytes[..length].to_vec()).expect("an answer is text");
    let (head, body) = text.split_once("\r\n\r\n").expect("its head is whole");
    let report = head.lines().find_map(|line| line.strip_prefix("X-Cumulet-Report: "));
    let report: Value = serde_json::from_str(report.expect("it is told in brief")).expect("it is JSON");
    assert!(report["total_ns"].as_u64().is_some_and(|ns| ns > 0), "{report}");
    assert_eq!(report["memory"].as_object().map(serde_json::Map::len), Some(1), "{report}");
    // Nothing is left of it: what comes next is the next answer.
    assert_eq!(send(stream, "GET", "vmm.ping", "").status, 200);
    let status = head.get(9..12).and_then(|code| code.parse().ok()).expect("it has a status");
    Reply { status, head: head.to_owned(), body: body.to_owned() }
}

#[test]
fn kata_in_rust_over_one_connection() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let vmm = Vmm::start(&["-v", "--seccomp", "false"]);
    let mut one = vmm.connect();
    let features = send(&mut one, "GET", "vmm.ping", "").json()["features"].clone();
    assert!(features.as_array().unwrap().contains(&json!("kvm")), "{features}");
    let config = guest_config(
        "",
        &json!({
            "serial": { "mode": "Null", "file": null, "socket": null }, "disks": null, "net": null,
            "devices": null, "vsock": null, "fs": null, "balloon": null, "pmem": null,
        }),
    );
    done(&send(&mut one, "PUT", "vm.create", &config.to_string()));
    let file = File::open("/dev/null").unwrap();
    done(&send_with(&mut one, "vm.add-net", &kata_net().to_string(), &[file.as_fd()]));
    done(&send(&mut one, "PUT", "vm.remove-device", r#"{"id":"net0"}"#));
    done(&send(&mut one, "PUT", "vm.boot", ""));
    done(&send(&mut one, "PUT", "vm.pause", ""));
    let snapshot = tempfile::tempdir().unwrap();
    let url = json!({ "destination_url": format!("file://{}", snapshot.path().display()) }).to_string();
    done(&send(&mut one, "PUT", "vm.snapshot", &url));
    assert!(snapshot.path().join("config.json").exists());
    done(&send(&mut one, "PUT", "vm.resume", ""));
    assert_eq!(send(&mut one, "GET", "vm.info", "").json()["state"], "Running");
    let same = json!({ "desired_vcpus": 1, "desired_ram": null, "desired_balloon": null });
    done(&send(&mut one, "PUT", "vm.resize", &same.to_string()));
    let missing = send(&mut one, "PUT", "vm.remove-device", r#"{"id":"none"}"#);
    assert_eq!(missing.status, 404);
    done(&send(&mut one, "PUT", "vmm.shutdown", ""));
    assert_eq!(vmm.end().0.code(), Some(0));

    // The VM from the snapshot, in another process.
    let vmm = Vmm::start::<&str>(&[]);
    let mut one = vmm.connect();
    let url = json!({ "source_url": format!("file://{}", snapshot.path().display()) }).to_string();
    done(&restored_at_once(&mut one, &url));
    assert_eq!(send(&mut one, "GET", "vm.info", "").json()["state"], "Paused");
    done(&send(&mut one, "PUT", "vm.resume", ""));
    done(&send(&mut one, "PUT", "vmm.shutdown", ""));
}

/// Reads a stream of JSON objects by counting braces, as libvirt does; passes on `source:event`.
fn read_events(mut stream: File, to: &mpsc::Sender<String>) {
    let (mut depth, mut object) = (0, Vec::new());
    let mut byte = [0];
    while stream.read(&mut byte).is_ok_and(|length| length == 1) {
        match byte[0] {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        object.push(byte[0]);
        if depth == 0 && byte[0] == b'}' {
            let event: Value = serde_json::from_slice(&object).expect("a whole object");
            object.clear();
            let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            if text("source") != "job" && to.send(format!("{}:{}", text("source"), text("event"))).is_err() {
                return;
            }
        }
    }
}

#[test]
fn libvirt() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("events");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let listener = UnixListener::bind(directory.path().join("api")).unwrap();
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
    let (sender, events) = mpsc::channel();
    let path = fifo.clone();
    std::thread::spawn(move || read_events(File::open(path).unwrap(), &sender));

    let mut command = Command::new(cumulet::path());
    command.args(["--api-socket", &format!("fd={}", listener.as_raw_fd())]);
    command.args(["--event-monitor", &format!("path={}", fifo.display())]);
    let vmm = Vmm::spawn(command, directory);
    drop(listener);
    let happens = |expected: &[&str]| {
        for event in expected {
            assert_eq!(events.recv_timeout(Duration::from_secs(20)).as_deref(), Ok(*event));
        }
    };
    happens(&["vmm:starting"]);
    // An upload of unknown size with nothing to upload, as older versions make it.
    let empty = |endpoint: &str| {
        let mut stream = vmm.connect();
        let head = format!(
            "PUT /api/v1/{endpoint} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nTransfer-Encoding: chunked\r\n\
             Expect: 100-continue\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let answer = reply(&mut stream);
        stream.write_all(b"0\r\n\r\n").unwrap();
        done(&answer);
        assert_eq!(send(&mut stream, "GET", "vmm.ping", "").status, 200);
    };
    // The console is not mentioned, so it is the terminal.
    let config = json!({
        "cpus": { "boot_vcpus": 1, "max_vcpus": 1 }, "memory": { "size": 64 << 20 },
        "payload": { "kernel": guest::path(), "cmdline": "" }, "rng": { "src": "/dev/urandom" },
        "serial": { "mode": "Pty" },
    });
    done(&vmm.ask("PUT", "vm.create", &config.to_string()));
    let files = [File::open("/dev/null").unwrap(), File::open("/dev/null").unwrap()];
    let fds = files.each_ref().map(AsFd::as_fd);
    let net = json!({ "id": "net_0", "mac": "52:54:00:00:00:01", "num_queues": 2, "queue_size": 256 });
    let answer = send_with(&mut vmm.connect(), "vm.add-net", &net.to_string(), &fds);
    assert_eq!(answer.status, 400, "two descriptors need four queues: {answer:?}");
    assert!(answer.head.len() + answer.body.len() < 1023, "{answer:?}");
    let net = json!({ "id": "net_0", "num_queues": 2, "queue_size": 256, "mtu": 1500 });
    done(&send_with(&mut vmm.connect(), "vm.add-net", &net.to_string(), &fds[..1]));
    done(&vmm.ask("PUT", "vm.remove-device", r#"{"id":"net_0"}"#));
    empty("vm.boot");
    happens(&["vm:booting", "vm:booted"]);
    let info = vmm.ask("GET", "vm.info", "").json();
    let pty = info["config"]["serial"]["file"].as_str().unwrap().to_owned();
    assert!(pty.starts_with("/dev/pts/"), "{pty}");
    assert!(fs::metadata(&pty).is_ok());
    assert!(vmm.threads().iter().any(|name| name.starts_with("vcpu0")));
    empty("vm.pause");
    empty("vm.resume");
    happens(&["vm:pausing", "vm:paused", "vm:resuming", "vm:resumed"]);
    empty("vm.reboot");
    happens(&["vm:rebooting", "vm:rebooted"]);
    empty("vm.shutdown");
    happens(&["vm:shutdown"]);
    assert_eq!(vmm.ask("GET", "vm.info", "").json()["state"], "Created");
    assert_eq!(vmm.ask("PUT", "vm.pause", "").status, 500);
    happens(&["vm:pausing"]);
    empty("vm.boot");
    happens(&["vm:booting", "vm:booted"]);
    assert_eq!(vmm.ask("PUT", "vmm.shutdown", "").status, 200);
    happens(&["vm:shutdown", "vm:deleted", "vmm:shutdown"]);
    assert_eq!(vmm.end().0.code(), Some(0));
}
