//! Requests that nobody should send: each has a clear answer or loses its connection, nothing grows, and others are
//! served meanwhile.

use std::{
    fs::File,
    io::{Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use api_client::{Client, Method};
use cumulet_tests::{
    api::{AT_ONCE, Vmm, reply, send},
    cumulet,
};

/// Checks that the VMM answers at once, ten times in a row.
fn is_well(vmm: &Vmm) {
    vmm.answers_while(&["vmm.ping"; 10], || ());
}

/// KiB by which a process may grow that was asked for much: what the allocator keeps between pieces that are in
/// use, in each of its arenas. A body of four MiB that was kept would be as much, and what is made of one more.
const SLACK_KIB: u64 = 4 << 10;

/// A VMM that has done before whatever it does: the code and the tables for it are in memory.
fn used() -> Vmm {
    let vmm = Vmm::start::<&str>(&[]);
    for _ in 0..2 {
        assert_eq!(vmm.ask("PUT", "vm.create", "{}").status, 204);
        assert_eq!(vmm.ask("PUT", "vm.delete", "").status, 204);
    }
    // The server closes its ends of those connections meanwhile: they are not counted.
    std::thread::sleep(Duration::from_millis(200));
    vmm
}

/// Runs `test` before a VMM, which must not grow by that.
fn nothing_grows(test: impl Fn(&Vmm)) {
    let vmm = used();
    let (fds, threads, resident) = (vmm.count("fd"), vmm.count("task"), vmm.resident_kib());
    test(&vmm);
    assert_eq!(vmm.ask("PUT", "vm.delete", "").status, 204);
    // Connections that the test has closed are closed at the other end too, soon.
    let deadline = Instant::now() + Duration::from_secs(5);
    while vmm.count("fd") > fds && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let (fds_now, threads_now) = (vmm.count("fd"), vmm.count("task"));
    assert!(
        fds_now <= fds && threads_now == threads,
        "{fds} and {threads}, then {fds_now} and {threads_now}"
    );
    let now = vmm.resident_kib();
    assert!(now <= resident + SLACK_KIB, "{resident} KiB of memory, then {now}");
}

/// Everything that comes back until the connection is closed, or nothing more comes.
fn rest(mut stream: UnixStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(2))).expect("2 is not 0");
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut piece) {
        bytes.extend_from_slice(&piece[..length]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn what_is_no_request_is_told_so() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    nothing_grows(|vmm| {
        let long = "a".repeat(3000);
        let many = "A: b\r\n".repeat(5000);
        let cases: [(&[u8], &str); 11] = [
            (b"\0\0\0\0\r\n\r\n", "Invalid request."),
            (b"GET\r\n\r\n", "Invalid request."),
            (b"BREW /api/v1/vmm.ping HTTP/1.1\r\n\r\n", "Unsupported HTTP method."),
            (b"POST /api/v1/vmm.ping HTTP/1.1\r\n\r\n", "Unsupported HTTP method."),
            (b"GET /api/v1/vmm.ping HTTP/3.0\r\n\r\n", "Unsupported HTTP version."),
            (b"GET /\xff\xfe HTTP/1.1\r\n\r\n", "UTF-8"),
            (b"PUT /a HTTP/1.1\r\nContent-Length: 9223372036854775808\r\n\r\n", "Invalid value"),
            (b"PUT /a HTTP/1.1\r\nContent-Length: 104857600\r\n\r\n", "larger than the limit"),
            (b"PUT /a HTTP/1.1\r\nno header\r\n\r\n", "incorrectly formatted"),
            (long.as_bytes(), "Invalid request."),
            (&[b"GET / HTTP/1.1\r\n", many.as_bytes()].concat(), "Invalid header"),
        ];
        for (bytes, expected) in cases {
            let mut stream = vmm.connect();
            // The server may have had enough of it.
            let _ = stream.write_all(bytes);
            let said = rest(stream);
            assert!(said.starts_with("HTTP/1.1 400 \r\nServer: Firecracker API\r\n"), "{said}");
            assert!(said.contains(expected), "{said:?} has no {expected:?}");
            is_well(vmm);
        }
    });
}

#[test]
fn bodies_of_any_content_are_answered() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    nothing_grows(|vmm| {
        let deep = format!("{{\"payload\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        let cases = [
            (deep.as_str(), 400),
            ("{\"iommu\":NaN}", 400),
            ("{\"cpus\":{\"boot_vcpus\":-1,\"max_vcpus\":1}}", 400),
            ("{\"memory\":{\"size\":18446744073709551616}}", 400),
            ("\u{feff}{}", 400),
            ("{\"serial\":{\"mode\":\"File\",\"file\":\"/tmp/a\\u0000b\"}}", 500),
        ];
        for (body, status) in cases {
            let reply = vmm.ask("PUT", "vm.create", body);
            assert_eq!(reply.status, status, "{body:.80}: {reply:?}");
            assert_eq!(vmm.ask("PUT", "vm.delete", "").status, 204);
            is_well(vmm);
        }
        for url in ["file:///tmp/a\\u0000b", "file://", "http://x", ""] {
            let body = format!("{{\"source_url\":\"{url}\"}}");
            assert!([400, 500].contains(&vmm.ask("PUT", "vm.restore", &body).status), "{url}");
        }
        // 100 MB, although the server has said that it does not want them.
        let mut stream = vmm.connect();
        stream.write_all(b"PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 104857600\r\n\r\n").unwrap();
        let piece = vec![b' '; 1 << 20];
        let _ = (0..100).try_for_each(|_| stream.write_all(&piece));
        assert!(rest(stream).starts_with("HTTP/1.1 400 "));
        is_well(vmm);
    });
}

/// A list of so many of the same item.
fn list(item: &str, count: usize) -> String {
    format!("[{}]", vec![item; count].join(","))
}

#[test]
fn bodies_that_unfold_cost_no_more_than_their_length() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    const MOST: usize = 4096;
    let string = |byte: &str| format!("\"{}\"", byte.repeat((1 << 20) / byte.len()));
    let disk = format!("{{\"path\":\"{}\"}}", "p".repeat(1000));
    let unknown: Vec<String> = (0..130_000).map(|number| format!("\"unknown_{number:015}\":0")).collect();
    let affinity = format!("{{\"vcpu\":0,\"host_cpus\":{}}}", list("1", 500));
    let payload = |string: &str| {
        format!("{{\"payload\":{{\"kernel\":{string},\"cmdline\":{string},\"initramfs\":{string}}}}}")
    };
    let bodies = [
        // As many as a list may have of what is large in memory; and more.
        (format!("{{\"disks\":{0},\"net\":{0},\"pmem\":[]}}", list("{}", MOST)), 204),
        (format!("{{\"disks\":{}}}", list("{}", MOST + 1)), 400),
        (format!("{{\"disks\":{}}}", list("{}", 1_390_000)), 400),
        (format!("{{\"x\":{}}}", list(&list("{}", 1000), 1000)), 400),
        (format!("{{\"disks\":{}}}", list(&disk, 4000)), 204),
        (format!("{{{}}}", unknown.join(",")), 204),
        (format!("{{{}}}", list("\"a\":0", 690_000).trim_matches(['[', ']'])), 400),
        (
            format!(
                "{{\"cpus\":{{\"boot_vcpus\":1,\"max_vcpus\":1,\"affinity\":{}}}}}",
                list(&affinity, 250)
            ),
            204,
        ),
        (payload(&string("k")), 204),
        (payload(&string("\\u0001")), 204),
        (payload(&format!("\"{}\"", "k".repeat((1 << 20) + 1))), 400),
        (format!("{{{}}}", " ".repeat(4_000_000)), 204),
        ("[".repeat(4_000_000), 400),
        (format!("{{\"x\":{}}}", "1".repeat(4_000_000)), 204),
    ];
    nothing_grows(|vmm| {
        let before = vmm.resident_kib();
        for (body, status) in &bodies {
            let (peak, _) = vmm.answers_while(&["vmm.ping"], || {
                let reply = vmm.ask("PUT", "vm.create", body);
                assert_eq!(reply.status, *status, "{body:.60}: {reply:?}");
                if *status == 400 {
                    assert!(reply.head.contains("X-Cumulet-Error: body-too-large"), "{reply:?}");
                    return vmm.resident_kib();
                }
                assert_eq!(reply.body, "", "{body:.60}");
                vmm.client().info().unwrap();
                let peak = vmm.resident_kib();
                assert_eq!(vmm.ask("PUT", "vm.delete", "").status, 204);
                peak
            });
            assert!(peak < before + (40 << 10), "{body:.60}: {before} KiB of memory, then {peak}");
        }
        // The same over and over: what one leaves behind would come to more than what is tolerated.
        for _ in 0..20 {
            for (body, _) in bodies.iter().filter(|(_, status)| *status == 204).take(2) {
                assert_eq!(vmm.ask("PUT", "vm.create", body).status, 204);
                assert_eq!(vmm.ask("PUT", "vm.delete", "").status, 204);
            }
        }
    });
}

#[test]
fn a_configuration_cannot_be_made_to_grow_for_ever() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    nothing_grows(|vmm| {
        let kernel = r#"{"payload":{"kernel":"/nowhere"}}"#;
        assert_eq!(vmm.ask("PUT", "vm.create", kernel).status, 204);
        let disk = format!("{{\"path\":\"/{}\"}}", "p".repeat(1_000_000));
        let added = (0..20).take_while(|_| vmm.ask("PUT", "vm.add-disk", &disk).status == 204).count();
        assert_eq!(added, 8);
        let refused = vmm.ask("PUT", "vm.add-disk", &disk);
        assert!(refused.status == 400 && refused.body.contains("8388608 at most"), "{refused:?}");
        is_well(vmm);
    });
}

#[test]
fn clients_that_come_and_say_nothing_keep_nobody_out() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let vmm = used();
    is_well(&vmm);
    let resident = vmm.resident_kib();
    let mut known = vmm.connect();
    assert_eq!(send(&mut known, "GET", "vmm.ping", "").status, 200);
    let (fds, threads) = (vmm.count("fd"), vmm.count("task"));
    let silent: Vec<UnixStream> = (0..1000).filter_map(|_| UnixStream::connect(vmm.socket()).ok()).collect();
    let slowest = |known: &mut UnixStream| {
        let times = (0..10).map(|_| {
            let begun = Instant::now();
            assert_eq!(send(known, "GET", "vmm.ping", "").status, 200);
            begun.elapsed()
        });
        times.max().unwrap_or_default()
    };
    // Again if other tests were in the way.
    assert!(
        (0..4).any(|_| slowest(&mut known) < AT_ONCE),
        "an answer took more than {AT_ONCE:?}, four times"
    );
    assert!(vmm.count("fd") <= fds + 10 && vmm.count("task") == threads);
    let deadline = Instant::now() + Duration::from_secs(13);
    let served = || {
        let mut client = Client::connect(&vmm.socket()).ok()?;
        client.ping().ok()
    };
    while served().is_none() {
        assert!(Instant::now() < deadline, "silent clients keep everybody out");
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(silent);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(send(&mut known, "GET", "vmm.ping", "").status, 200);
    assert!(vmm.count("fd") <= fds, "{fds}, then {}", vmm.count("fd"));
    assert!(vmm.resident_kib() <= resident + SLACK_KIB, "{resident}, then {}", vmm.resident_kib());
}

#[test]
fn descriptors_that_nobody_wants_are_closed() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    nothing_grows(|vmm| {
        let mut client = vmm.client();
        client.ping().unwrap();
        let before = vmm.count("fd");
        let files: Vec<File> = (0..200).map(|_| File::open("/dev/null").unwrap()).collect();
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        for _ in 0..20 {
            client.request(Method::Get, "vmm.ping", None, &fds).unwrap();
            client.request(Method::Put, "vm.add-net", Some(b"{}"), &fds).unwrap_err();
            client.request(Method::Put, "vm.restore", Some(b"{\"source_url\":\"\"}"), &fds).unwrap_err();
        }
        assert!(vmm.count("fd") <= before, "{before}, then {}", vmm.count("fd"));
    });
}

#[test]
fn requests_in_a_row_are_answered_in_a_row() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    nothing_grows(|vmm| {
        let mut stream = vmm.connect();
        let one = "GET /api/v1/vmm.ping HTTP/1.1\r\n\r\nPUT /api/v1/vm.pause HTTP/1.1\r\n\r\n";
        stream.write_all(one.repeat(500).as_bytes()).unwrap();
        let said = rest(stream);
        assert_eq!(
            (said.matches("HTTP/1.1 200 ").count(), said.matches("HTTP/1.1 500 ").count()),
            (500, 500)
        );
        is_well(vmm);
    });
}

#[test]
fn requests_that_race_with_the_end_are_answered_or_cut_off() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let vmm = Vmm::start::<&str>(&[]);
    let mut racers: Vec<UnixStream> = (0..8).map(|_| vmm.connect()).collect();
    for racer in &mut racers {
        racer.write_all(b"PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 2\r\n\r\n").unwrap();
    }
    let mut ends = vmm.connect();
    ends.write_all(b"PUT /api/v1/vmm.shutdown HTTP/1.1\r\n\r\n").unwrap();
    for racer in &mut racers {
        // The process may be gone.
        let _ = racer.write_all(b"{}");
    }
    assert_eq!(reply(&mut ends).status, 200);
    for racer in racers {
        let said = rest(racer);
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 "), "{said}");
    }
    let (status, socket) = vmm.end();
    assert_eq!((status.code(), socket), (Some(0), false));
}

#[test]
fn strictness_refuses_what_nobody_knows() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let vmm = Vmm::start(&["--strict-api"]);
    let reply = vmm.ask("PUT", "vm.create", r#"{"memory":{"size":67108864,"sizee":1}}"#);
    assert_eq!(reply.status, 400);
    assert!(reply.body.contains("memory.sizee"), "{reply:?}");
    assert!(reply.head.contains("X-Cumulet-Error: unknown-field"), "{reply:?}");
}
