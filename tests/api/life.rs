//! The life of a process that serves an API.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use api_client::wire::VmState;
use cumulet_tests::{
    api::{Reply, Vmm, guest_config},
    cumulet, guest,
};
use serde_json::{Value, json};

#[test]
fn a_vm_lives_and_the_process_ends_when_asked() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let vmm = Vmm::start::<&str>(&[]);
    assert_eq!(fs::metadata(vmm.socket()).unwrap().permissions().mode() & 0o777, 0o700);
    let mut client = vmm.client();
    assert_eq!(client.ping().unwrap().pid, i64::from(vmm.pid()));
    let config = guest_config("", &json!({ "cpus": { "boot_vcpus": 2, "max_vcpus": 2 } }));
    client.create(&serde_json::from_value(config).unwrap()).unwrap();
    assert_eq!(client.info().unwrap().state, VmState::Created);
    client.boot().unwrap();
    let info = client.info().unwrap();
    assert_eq!((info.state, info.memory_actual_size), (VmState::Running, 64 << 20));
    assert_eq!(info.device_tree.unwrap()["_virtio-pci-__rng"].pci_bdf.as_deref(), Some("0000:00:01.0"));
    let threads = vmm.threads();
    for name in ["vcpu0", "vcpu1", "http-server"] {
        assert!(threads.contains(&name.to_owned()), "{threads:?}");
    }
    client.pause().unwrap();
    client.resume().unwrap();
    client.reboot().unwrap();
    client.shutdown().unwrap();
    assert_eq!(client.info().unwrap().state, VmState::Created);
    client.boot().unwrap();
    client.delete().unwrap();
    assert!(client.info().is_err());
    assert!(client.metrics().unwrap().contains("cumulet_vm_state{state=\"none\"} 1"));
    client.shutdown_vmm().unwrap();
    let (status, socket) = vmm.end();
    assert_eq!((status.code(), socket), (Some(0), false));
}

#[test]
fn a_vm_of_the_command_line_has_an_api_too() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let kernel = guest::path().to_str().unwrap();
    let vmm = Vmm::start(&["--kernel", kernel, "--console", "off", "--cmdline", "", "--memory", "size=64M"]);
    let mut client = vmm.client();
    let deadline = Instant::now() + Duration::from_secs(20);
    while client.info().map(|info| info.state).ok() != Some(VmState::Running) {
        assert!(Instant::now() < deadline, "it does not boot");
        std::thread::sleep(Duration::from_millis(10));
    }
    let metrics = client.metrics().unwrap();
    assert!(metrics.contains("cumulet_vcpu_exits_total{vcpu=\"0\""));
    assert!(metrics.contains("cumulet_queue_requests_total{device=\"__rng\",queue=\"0\"} 0"), "{metrics}");
    vmm.signal("TERM");
    let (status, socket) = vmm.end();
    assert_eq!((status.code(), socket), (Some(0), false));
}

#[test]
fn a_guest_that_powers_off_leaves_a_process_that_shall_stay() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let vmm = Vmm::start(&["--no-shutdown"]);
    let mut client = vmm.client();
    // The sleep control register: sleep type 5, enable.
    let config = guest_config("out 0x600 1 0x34", &json!({}));
    client.create(&serde_json::from_value(config).unwrap()).unwrap();
    for _ in 0..2 {
        client.boot().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while client.info().unwrap().state != VmState::Created {
            assert!(Instant::now() < deadline, "it does not power off");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_live_owner_of_a_path_is_never_displaced_and_a_killed_one_always() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let first = Vmm::start::<&str>(&[]);
    let socket = first.socket();
    let path = socket.to_str().unwrap();
    let (code, said) = cumulet::refusal(&["--api-socket", path]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("another process serves it"), "{said}");
    first.client().ping().unwrap();
    first.signal("KILL");
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::os::unix::net::UnixStream::connect(&socket).is_ok() {
        assert!(Instant::now() < deadline);
    }
    let mut second =
        Command::new(cumulet::path()).args(["--api-socket", path]).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while api_client::Client::connect(&socket).and_then(|mut client| client.ping()).is_err() {
        assert!(Instant::now() < deadline, "the path of a dead owner is not taken over");
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = second.kill();
    let _ = second.wait();
}

#[test]
fn lives_leave_nothing_behind() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let vmm = Vmm::start::<&str>(&[]);
    let mut client = vmm.client();
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let config = guest_config(
        "",
        &json!({
            "cpus": { "boot_vcpus": 2, "max_vcpus": 2 },
            "disks": [{ "path": image.path() }],
            "serial": { "mode": "Pty" },
        }),
    );
    let config = serde_json::from_value(config).unwrap();
    let mut life = || {
        client.create(&config).unwrap();
        client.boot().unwrap();
        client.delete().unwrap();
    };
    // After some, all code has run, and the allocator has what it keeps.
    for _ in 0..20 {
        life();
    }
    let count = || (vmm.count("fd"), vmm.count("task"));
    // A thread that was waited for may be listed a moment longer, here and below.
    std::thread::sleep(Duration::from_millis(100));
    let (held, resident) = (count(), vmm.resident_kib());
    for round in 0..100 {
        life();
        let deadline = Instant::now() + Duration::from_secs(5);
        while count() != held {
            assert!(Instant::now() < deadline, "round {round}: {:?}, not {held:?}", count());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    // 10 KiB a life would be more. `cargo xtask bench cycles` looks closer, at 10,000 of them.
    let grown = vmm.resident_kib().saturating_sub(resident);
    assert!(grown < 1024, "{resident} KiB, and then {grown} KiB more");
}

#[test]
fn whoever_asks_is_answered_at_once_while_vms_come_and_go() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let vmm = Vmm::start::<&str>(&[]);
    let config = guest_config("", &json!({ "memory": { "size": 256 << 20, "prefault": true } }));
    let config = serde_json::from_value(config).unwrap();
    let mut works = vmm.client();
    let questions = ["vmm.ping", "vm.info", "vm.counters", "vm.jobs", "metrics"];
    let ((), answers) = vmm.answers_while(&questions, || {
        for _ in 0..5 {
            works.create(&config).unwrap();
            works.boot().unwrap();
            works.delete().unwrap();
        }
    });
    assert!(answers.len() > 100, "{} answers", answers.len());
}

#[test]
fn whoever_asks_is_answered_at_once_during_a_snapshot_and_a_restore() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    const SIZE: u64 = 512 << 20;
    // Everything but what the guest itself lives in has content that must be written and read.
    let (first, length) = (64u64 << 20, SIZE - (80 << 20));
    let place = tempfile::tempdir().unwrap();
    let serial = place.path().join("serial");
    let config = guest_config(
        &format!("fill {first:#x} {length:#x} 7; nonce"),
        &json!({ "memory": { "size": SIZE }, "serial": { "mode": "File", "file": serial } }),
    );
    let questions = ["vmm.ping", "vm.info", "vm.counters", "vm.jobs", "metrics"];
    let seen = |answers: &[(&str, Reply)], kind: &str| {
        let running = |job: &Value| job["kind"] == kind && job["state"] == "running";
        let lists =
            answers.iter().filter(|(question, _)| *question == "vm.jobs").map(|(_, reply)| reply.json());
        lists.filter(|jobs| jobs.as_array().is_some_and(|jobs| jobs.iter().any(running))).count()
    };

    let source = Vmm::start::<&str>(&[]);
    let mut client = source.client();
    client.create(&serde_json::from_value(config).unwrap()).unwrap();
    client.boot().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while fs::read_to_string(&serial)
        .map_or(0, |said| said.lines().filter(|line| line.starts_with("ok")).count())
        < 2
    {
        assert!(Instant::now() < deadline, "{:?}", fs::read_to_string(&serial));
        std::thread::sleep(Duration::from_millis(10));
    }
    client.pause().unwrap();
    let mut number = 0;
    let (snapshot, answers) = source.answers_while(&questions, || {
        number += 1;
        let directory = place.path().join(format!("snapshot-{number}"));
        fs::create_dir(&directory).unwrap();
        let url = json!({ "destination_url": format!("file://{}", directory.display()) }).to_string();
        assert_eq!(source.ask("PUT", "vm.snapshot", &url).status, 204);
        directory
    });
    assert!(seen(&answers, "snapshot") >= 5, "{} answers", answers.len());
    drop(source);

    let destination = Vmm::start::<&str>(&[]);
    let url = format!("file://{}", snapshot.display());
    let restore = json!({ "source_url": url, "memory_restore_mode": "Copy", "verify": "full" }).to_string();
    let ((), answers) = destination.answers_while(&questions, || {
        assert_eq!(destination.ask("PUT", "vm.delete", "").status, 204);
        let reply = destination.ask("PUT", "vm.restore", &restore);
        assert_eq!(reply.status, 204, "{reply:?}");
    });
    assert!(seen(&answers, "restore") >= 5, "{} answers", answers.len());
    assert_eq!(destination.client().info().unwrap().state, VmState::Paused);
}
