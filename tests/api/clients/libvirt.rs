//! libvirt's `ch` driver: rest-api.md, section 8.3.

use std::{
    fs::{self, File},
    io::Read,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::net::{UnixListener, UnixStream},
    },
    process::Command,
    sync::mpsc::{self, Receiver, Sender},
    time::Duration,
};

use cumulet_tests::{
    api::{Vmm, reply, send},
    cumulet, guest, tap,
};
use serde_json::{Value, json};

use super::{
    ONE_READ, done, not_there_yet, refusal, restore_and_read_once, send_and_read_once, send_with, timed, url,
    write,
};

/// How long it waits for the answer to `vm.add-net`.
const NET: Duration = Duration::from_millis(500);

/// Reads a stream of JSON objects by counting braces, as it does; passes on `source:event`.
fn read_events(mut stream: File, to: &Sender<String>) {
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

/// A process as it starts it: a socket that listens already, and a FIFO for events.
struct Domain {
    vmm: Vmm,
    events: Receiver<String>,
}

impl Domain {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("there is room");
        let fifo = directory.path().join("events");
        let made = Command::new("mkfifo").arg(&fifo).status().expect("there is the program");
        assert!(made.success());
        let listener = UnixListener::bind(directory.path().join("api")).expect("the path is free");
        rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).expect("it is open");
        let (sender, events) = mpsc::channel();
        let path = fifo.clone();
        std::thread::spawn(move || read_events(File::open(path).expect("it is there"), &sender));
        let mut command = Command::new(cumulet::path());
        command.args(["--api-socket", &format!("fd={}", listener.as_raw_fd())]);
        command.args(["--event-monitor", &format!("path={}", fifo.display())]);
        let domain = Self { vmm: Vmm::spawn(command, directory), events };
        domain.happens(&["vmm:starting"]);
        domain
    }

    /// These events come next, and no others.
    fn happens(&self, expected: &[&str]) {
        for event in expected {
            assert_eq!(self.events.recv_timeout(Duration::from_secs(60)).as_deref(), Ok(*event));
        }
    }

    /// An upload of unknown size with nothing to upload, as older versions make it.
    fn empty(&self, endpoint: &str) {
        let mut stream = self.vmm.connect();
        let head = format!(
            "PUT /api/v1/{endpoint} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nTransfer-Encoding: chunked\r\n\
             Expect: 100-continue\r\n\r\n"
        );
        write(&mut stream, &head);
        let answer = reply(&mut stream);
        write(&mut stream, "0\r\n\r\n");
        done(&answer);
        assert_eq!(send(&mut stream, "GET", "vmm.ping", "").status, 200);
    }

    /// Adds a network device on a connection of its own.
    fn add_net(&self, net: &Value, fds: &[BorrowedFd<'_>]) {
        let mut stream = self.vmm.connect();
        let (took, answer) = timed(|| send_and_read_once(&mut stream, "vm.add-net", &net.to_string(), fds));
        assert!([200, 204].contains(&answer.status) && took < NET, "{answer:?} after {took:?}");
    }

    fn put(&self, endpoint: &str, body: &Value) {
        done(&self.vmm.ask("PUT", endpoint, &body.to_string()));
    }

    fn info(&self) -> Value {
        self.vmm.ask("GET", "vm.info", "").json()
    }

    fn end(self, last: &[&str]) {
        assert_eq!(self.vmm.ask("PUT", "vmm.shutdown", "").status, 200);
        self.happens(last);
        assert_eq!(self.vmm.end().0.code(), Some(0));
    }
}

/// What it sends of a domain. The console is not mentioned, so it is the terminal.
fn config(more: &Value) -> Value {
    let mut config = json!({
        "cpus": { "boot_vcpus": 1, "max_vcpus": 1 }, "memory": { "size": 64 << 20 },
        "payload": { "kernel": guest::path(), "cmdline": "" }, "rng": { "src": "/dev/urandom" },
        "serial": { "mode": "Pty" },
    });
    for (key, value) in more.as_object().expect("an object") {
        config[key] = value.clone();
    }
    config
}

#[test]
fn libvirt() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let domain = Domain::start();
    let vmm = &domain.vmm;
    let image = tempfile::NamedTempFile::new().expect("there is room");
    image.as_file().set_len(1 << 20).expect("there is room");
    let disk = json!({ "path": image.path(), "readonly": false, "id": "virtio-disk0" });
    domain.put("vm.create", &config(&json!({ "disks": [disk] })));
    let files =
        [File::open("/dev/null").expect("it is there"), File::open("/dev/null").expect("it is there")];
    let fds = files.each_ref().map(AsFd::as_fd);
    let net = json!({ "id": "net_0", "mac": "52:54:00:00:00:01", "num_queues": 2, "queue_size": 256 });
    let answer = send_and_read_once(&mut vmm.connect(), "vm.add-net", &net.to_string(), &fds);
    assert_eq!(refusal(&answer), (400, "config-invalid"), "two descriptors need four queues: {answer:?}");
    domain.add_net(&json!({ "id": "net_0", "num_queues": 2, "queue_size": 256, "mtu": 1500 }), &fds[..1]);
    domain.put("vm.remove-device", &json!({ "id": "net_0" }));
    domain.empty("vm.boot");
    domain.happens(&["vm:booting", "vm:booted"]);
    let pty = domain.info()["config"]["serial"]["file"].as_str().expect("it is told").to_owned();
    assert!(pty.starts_with("/dev/pts/"), "{pty}");
    assert!(fs::metadata(&pty).is_ok());
    assert!(vmm.threads().iter().any(|name| name.starts_with("vcpu0")));
    domain.empty("vm.pause");
    domain.empty("vm.resume");
    domain.happens(&["vm:pausing", "vm:paused", "vm:resuming", "vm:resumed"]);
    domain.empty("vm.reboot");
    domain.happens(&["vm:rebooting", "vm:rebooted"]);
    // Disks come and go; forks ask for more.
    let more = json!({ "path": image.path(), "readonly": true, "id": "virtio-disk1" }).to_string();
    not_there_yet(&vmm.ask("PUT", "vm.add-disk", &more), "hotplug");
    not_there_yet(&vmm.ask("PUT", "vm.remove-device", r#"{"id":"virtio-disk0"}"#), "hotplug");
    domain.put("vm.resize-disk", &json!({ "id": "virtio-disk0", "desired_size": 2 << 20 }));
    let to = json!({ "destination_url": "unix:/run/there" }).to_string();
    not_there_yet(&vmm.ask("PUT", "vm.send-migration", &to), "migration");
    assert_eq!(refusal(&vmm.ask("GET", "vm.migration-progress", "")), (404, "not-found"));
    domain.empty("vm.shutdown");
    domain.happens(&["vm:shutdown"]);
    let from = json!({ "receiver_url": "unix:/run/here" }).to_string();
    not_there_yet(&vmm.ask("PUT", "vm.receive-migration", &from), "migration");
    assert_eq!(domain.info()["state"], "Created");
    assert_eq!(refusal(&vmm.ask("PUT", "vm.pause", "")), (500, "vm-not-running"));
    domain.happens(&["vm:pausing"]);
    domain.empty("vm.boot");
    domain.happens(&["vm:booting", "vm:booted"]);
    domain.end(&["vm:shutdown", "vm:deleted", "vmm:shutdown"]);
}

#[test]
fn libvirt_with_a_serial_port_on_a_socket() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let domain = Domain::start();
    let directory = tempfile::tempdir().expect("there is room");
    let socket = directory.path().join("serial");
    let serial = json!({ "mode": "Socket", "socket": socket });
    domain.put("vm.create", &config(&json!({ "serial": serial, "console": { "mode": "Pty" } })));
    domain.empty("vm.boot");
    domain.happens(&["vm:booting", "vm:booted"]);
    let info = domain.info();
    assert!(UnixStream::connect(&socket).is_ok(), "somebody listens");
    let console = info["config"]["console"]["file"].as_str().expect("it is told").to_owned();
    assert!(console.starts_with("/dev/pts/"), "{console}");
    domain.end(&["vm:shutdown", "vm:deleted", "vmm:shutdown"]);
}

#[test]
fn libvirt_with_what_is_not_there_yet() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let domain = Domain::start();
    for (more, what) in [
        (json!({ "devices": [{ "path": "/sys/bus/pci/devices/0000:3b:00.0/" }] }), "VFIO"),
        (json!({ "payload": { "igvm": "/x.igvm" }, "platform": { "sev_snp": true } }), "IGVM"),
        (json!({ "platform": { "sev_snp": true } }), "confidential guests"),
    ] {
        domain.put("vm.create", &config(&more));
        not_there_yet(&domain.vmm.ask("PUT", "vm.boot", ""), what);
        domain.happens(&["vm:booting"]);
        domain.empty("vm.delete");
        domain.happens(&["vm:deleted"]);
    }
    domain.end(&["vmm:shutdown"]);
}

#[test]
fn libvirt_saves_a_domain_and_restores_it_on_new_taps() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let (Some(first), Some(second)) = (tap::open(), tap::open()) else { return };
    let saved = tempfile::tempdir().expect("there is room");
    let domain = Domain::start();
    domain.put("vm.create", &config(&json!({})));
    let net = json!({
        "id": "net_0", "ip": "192.0.2.1", "mask": "255.255.255.0", "mac": "52:54:00:00:00:01", "iommu": false,
        "num_queues": 2, "queue_size": 256, "mtu": 1500,
    });
    domain.add_net(&net, &[first.as_fd()]);
    domain.empty("vm.boot");
    domain.empty("vm.pause");
    domain.happens(&["vm:booting", "vm:booted", "vm:pausing", "vm:paused"]);
    domain.put("vm.snapshot", &json!({ "destination_url": url(saved.path()) }));
    domain.happens(&["vm:snapshotting", "vm:snapshotted"]);
    domain.end(&["vm:shutdown", "vm:deleted", "vmm:shutdown"]);
    drop(first);

    let domain = Domain::start();
    let body = json!({ "source_url": url(saved.path()), "net_fds": [{ "id": "net_0", "num_fds": 1 }] });
    let two = [second.as_fd(), second.as_fd()];
    for fds in [&two[..0], &two] {
        let answer = send_and_read_once(&mut domain.vmm.connect(), "vm.restore", &body.to_string(), fds);
        assert_eq!(
            (refusal(&answer), answer.body.as_str()),
            ((400, "descriptor-count"), r#"["Bad Request"]"#)
        );
    }
    // None is given to a device that had one: it would be there without its network.
    let without = json!({ "source_url": url(saved.path()) }).to_string();
    let answer = send_with(&mut domain.vmm.connect(), "vm.restore", &without, &[]);
    assert_eq!(refusal(&answer), (400, "request-invalid"), "{answer:?}");
    domain.happens(&["vm:restoring"]);
    let mut stream = domain.vmm.connect();
    restore_and_read_once(&mut stream, &body, &two[..1]);
    domain.happens(&["vm:restoring", "vm:restored"]);
    let info = domain.info();
    assert_eq!((&info["state"], &info["config"]["net"][0]["mac"]), (&json!("Paused"), &net["mac"]));
    domain.empty("vm.resume");
    domain.happens(&["vm:resuming", "vm:resumed"]);
    assert_eq!(domain.info()["state"], "Running");
    domain.end(&["vm:shutdown", "vm:deleted", "vmm:shutdown"]);
}

#[test]
fn libvirt_reads_every_answer_of_these_at_once() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let domain = Domain::start();
    let missing = "/nowhere/".repeat(ONE_READ);
    let file = File::open("/dev/null").expect("it is there");
    let refused = |endpoint: &str, body: &Value| {
        let answer = send_and_read_once(&mut domain.vmm.connect(), endpoint, &body.to_string(), &[]);
        assert!([400, 500].contains(&answer.status), "{answer:?}");
        let said: Vec<String> = serde_json::from_str(&answer.body).expect("an error is an array of texts");
        assert!(said.iter().any(|one| one.ends_with("...")), "{said:?}");
    };
    refused("vm.restore", &json!({ "source_url": format!("file://{missing}") }));
    domain.happens(&["vm:restoring"]);
    domain.put("vm.create", &config(&json!({})));
    refused("vm.add-net", &json!({ "id": "net_0", "tap": missing, "num_queues": 2 }));
    refused("vm.add-net", &json!({ "id": "net_0", "vhost_mode": missing }));
    domain.add_net(&json!({ "id": "n".repeat(200), "num_queues": 2 }), &[file.as_fd()]);
    domain.end(&["vm:deleted", "vmm:shutdown"]);
}
