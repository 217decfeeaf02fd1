//! A snapshot that is restored with other resources of the host: that they are the ones that are really used, what is
//! found out by only trying it, and that a restore that fails leaves them as they were.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::FileExt,
    },
    path::Path,
};

use api_client::{Answer, ClientError, Method};
use cumulet_tests::{
    api, cumulet,
    guest::{self, Console},
    monitor::{self, Monitor},
    saved::{self, FREE},
    tap,
};
use serde_json::{Value, json};

use crate::{Held, hosts, refused_alike, text};

fn put_with(
    monitor: &mut Monitor,
    endpoint: &str,
    body: &Value,
    descriptors: &[BorrowedFd<'_>],
) -> Result<Answer, ClientError> {
    monitor.api.request(Method::Put, endpoint, Some(body.to_string().as_bytes()), descriptors)
}

fn json_of(answer: &Answer) -> Value {
    answer.json().expect("the answer is JSON")
}

/// A request that is only tried.
fn only_tried(mut request: Value) -> Value {
    request["dry_run"] = json!(true);
    request
}

/// A name for a tap that nobody else has.
fn tap_name(suffix: &str) -> String {
    format!("cmh{}{suffix}", std::process::id() % 1_000_000)
}

fn interface(name: &str) -> std::path::PathBuf {
    Path::new("/sys/class/net").join(name)
}

fn configuration(monitor: &mut Monitor) -> Value {
    serde_json::to_value(monitor.api.info().expect("there is a VM").config).expect("it is JSON")
}

/// The address of the device of that type.
fn device(console: &mut Console, kind: u64) -> String {
    let all = saved::drive(console);
    all.into_iter().find(|(_, type_of)| *type_of == kind).expect("there is one").0
}

#[test]
fn a_tap_takes_the_place_of_descriptors_and_they_take_its_place() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let (Some(first), Some(second), Some(third)) = (tap::open(), tap::open(), tap::open()) else { return };
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let mut monitor = Monitor::start(place, &[] as &[&str]);
    monitor.put("vm.create", &monitor::configuration(place, &json!({}))).expect("it can be created");
    let net = json!({ "id": "uplink", "num_queues": 2, "fds": [7] });
    put_with(&mut monitor, "vm.add-net", &net, &[first.as_fd()]).expect("it can be added");
    monitor.put("vm.boot", &Value::Null).expect("it can be booted");
    let mut console = monitor::serial(place);
    console.ready();
    let bdf = device(&mut console, 1);
    let snapshot = saved::snapshot(&mut monitor, place);
    drop(console);
    monitor.quit();

    // Who cannot hand anything over learns what is to be.
    let ran =
        cumulet::run(api::remote(), &["snapshot", "can-restore", snapshot.to_str().expect("it is text")], "");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains("  uplink: 1 descriptors have to be handed over (net_fds)\n"), "{ran:?}");

    let mut monitor = Monitor::start(place, &[] as &[&str]);
    let held = Held::by(&mut monitor);
    let request = |said: &Value| monitor::restore_request(&snapshot, said);
    let net_fds = json!([{ "id": "uplink", "num_fds": 1 }]);
    let name = tap_name("");
    let overrides = json!([{ "id": "uplink", "tap": name }]);
    let null = File::open("/dev/null").expect("every host has it");
    for (said, descriptor, expected) in [
        (json!({}), None, "uplink had 1 descriptors, none is given, and no tap in their place"),
        (json!({ "net_fds": net_fds }), Some(null.as_fd()), "is no tap at all"),
        (
            json!({ "net_fds": net_fds, "overrides": overrides }),
            Some(second.as_fd()),
            "uplink is given descriptors, and overrides have a tap for it",
        ),
    ] {
        for request in [only_tried(request(&said)), request(&said)] {
            match put_with(&mut monitor, "vm.restore", &request, descriptor.as_slice()) {
                Err(ClientError::Refused(refusal)) => {
                    assert!(text(&refusal).contains(expected), "{request}: {}", text(&refusal));
                }
                other => panic!("{request}: {other:?}"),
            }
            held.is_all_of(&mut monitor);
        }
    }
    // The descriptors that are right are.
    let with_descriptors = request(&json!({ "net_fds": net_fds }));
    let tried =
        put_with(&mut monitor, "vm.restore", &only_tried(with_descriptors.clone()), &[second.as_fd()]);
    let tried = json_of(&tried.expect("nothing is missing"));
    assert_eq!((&tried["made_taps"], &tried["net_fds"]), (&json!([]), &json!([])), "{tried}");

    // A tap instead. It is not there: that is no error, but it is said.
    let with_tap = request(&json!({ "overrides": overrides }));
    let made = json!([{ "id": "uplink", "tap": name }]);
    let tried = json_of(&monitor.put("vm.restore", &only_tried(with_tap.clone())).expect("it can be made"));
    assert_eq!((&tried["made_taps"], &tried["overridden"]), (&made, &json!(["uplink.tap"])), "{tried}");
    assert!(!interface(&name).exists(), "it is only tried");
    let report = json_of(&monitor.put("vm.restore", &with_tap).expect("it can be restored"));
    assert_eq!(report["made_taps"], made, "{report}");
    assert_eq!(configuration(&mut monitor)["net"][0]["tap"], json!(name));
    assert_eq!(configuration(&mut monitor)["net"][0]["fds"], Value::Null);
    // It is the one that is used.
    let mut console = monitor::serial(place);
    let received = || {
        let count = fs::read_to_string(interface(&name).join("statistics/rx_packets")).expect("it is there");
        count.trim().parse::<u64>().expect("it is a number")
    };
    let before = received();
    let frame = format!("ffffffffffff2e00000000010800{}", "00".repeat(46));
    console.ok(&format!("vnet-tx {bdf} 0 {frame}"));
    monitor::until("the frame", || (received() > before).then_some(()));
    let again = place.join("again");
    fs::create_dir(&again).expect("there is room");
    let on_tap = saved::snapshot(&mut monitor, &again);
    drop(console);
    monitor.put("vmm.shutdown", &Value::Null).expect("it can be ended");
    let (status, said) = monitor.end();
    assert!(status.success() && said.contains(&format!("uplink: tap {name} was not there")), "{said}");
    assert!(!interface(&name).exists(), "it goes with the VM");

    // And descriptors instead of that tap.
    let mut monitor = Monitor::start(place, &[] as &[&str]);
    let request = monitor::restore_request(&on_tap, &json!({ "net_fds": net_fds }));
    let report = put_with(&mut monitor, "vm.restore", &request, &[third.as_fd()]);
    let report = json_of(&report.expect("it can be restored"));
    assert_eq!(report["made_taps"], json!([]), "{report}");
    assert!(!interface(&name).exists());
    assert_eq!(configuration(&mut monitor)["net"][0]["tap"], Value::Null);
    saved::check(&mut monitor::serial(place));
    monitor.quit();
}

/// A host CPU that this process may use, the last one.
fn last_cpu() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("it is there");
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("it is told");
    let last = list.trim().rsplit(['-', ',']).next().expect("there is one");
    last.parse().expect("it is a number")
}

#[test]
fn what_is_laid_over_is_what_is_used() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let mut first = Monitor::start(place, &[] as &[&str]);
    let said = json!({ "cpus": { "boot_vcpus": 2, "max_vcpus": 2 },
        "memory": { "size": 128 << 20, "shared": true } });
    let mut console = first.boot(place, &said);
    console.ok(&format!("fill {FREE:#x} 1M 7"));
    let snapshot = saved::snapshot(&mut first, place);
    drop(console);
    first.quit();

    // Memory that is shared, in a file; and each processor where it shall be.
    let (memory, cpu) = (place.join("memory"), last_cpu());
    File::create(&memory).expect("there is room");
    let overrides = json!([
        { "id": "mem0", "file": memory },
        { "id": "__cpus", "affinity": [{ "vcpu": 1, "host_cpus": [cpu] }] },
    ]);
    let mut second = Monitor::start(place, &[] as &[&str]);
    let report = second.restore(&snapshot, &json!({ "overrides": overrides }));
    assert_eq!(report["overridden"], json!(["mem0.file", "__cpus.affinity"]), "{report}");
    assert_eq!(report["memory"][0]["mode"], "copy", "{report}");
    let mut console = monitor::serial(place);
    assert_eq!(console.ok(&format!("verify {FREE:#x} 1M 7")), "same");
    console.ok(&format!("poke {FREE:#x} 8 0x1122334455667788"));
    let mut word = [0; 8];
    File::open(&memory).and_then(|file| file.read_exact_at(&mut word, FREE)).expect("it is all there");
    assert_eq!(u64::from_le_bytes(word), 0x1122_3344_5566_7788);
    let tasks = fs::read_dir(format!("/proc/{}/task", second.pid())).expect("it is alive");
    let allowed = tasks.filter_map(|task| {
        let status = fs::read_to_string(task.ok()?.path().join("status")).ok()?;
        status.starts_with("Name:\tvcpu1\n").then_some(())?;
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t")).map(str::to_owned)
    });
    assert_eq!(allowed.collect::<Vec<_>>(), [cpu.to_string()]);
    drop(console);
    second.quit();

    // Private memory, from a node.
    let config = snapshot.join("config.json");
    let edited =
        fs::read_to_string(&config).expect("it is there").replace("\"shared\":true", "\"shared\":false");
    fs::write(&config, edited).expect("it can be written");
    for said in [
        json!({ "overrides": [{ "id": "mem0", "host_numa_node": 0 }] }),
        json!({ "zone_updates": [{ "id": "mem0", "host_numa_node": 0 }] }),
    ] {
        let mut third = Monitor::start(place, &[] as &[&str]);
        third.restore(&snapshot, &said);
        let maps = fs::read_to_string(format!("/proc/{}/numa_maps", third.pid())).expect("it is alive");
        assert!(maps.lines().any(|line| line.contains(" bind:0 ")), "{said}: {maps}");
        assert_eq!(monitor::serial(place).ok(&format!("verify {FREE:#x} 1M 7")), "same");
        third.quit();
    }
}

#[test]
fn a_device_shows_the_address_that_it_is_given() {
    if !cumulet::kvm_is_usable() || !cumulet::may_make_taps() {
        return;
    }
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let mut first = Monitor::start(place, &[] as &[&str]);
    let name = tap_name("m");
    let mut console = first.boot(
        place,
        &json!({ "net": [{ "id": "uplink", "tap": name, "mac": "2e:00:00:00:00:01", "mtu": 1400 }] }),
    );
    let bdf = device(&mut console, 1);
    let shows = |console: &mut Console| {
        let said = console.ok(&format!("vconfig {bdf} 0 4"));
        guest::number(said.split_whitespace().next().expect("a number"))
    };
    assert_eq!(shows(&mut console), 0x2e);
    let snapshot = saved::snapshot(&mut first, place);
    drop(console);
    first.quit();

    let mut second = Monitor::start(place, &[] as &[&str]);
    let (mac, host_mac) = ("2e:11:22:33:44:55", "2e:66:77:88:99:aa");
    let overrides = json!([{ "id": "uplink", "mac": mac, "host_mac": host_mac }]);
    second.restore(&snapshot, &json!({ "overrides": overrides }));
    assert_eq!(shows(&mut monitor::serial(place)), 0x3322_112e);
    let told = |what: &str| fs::read_to_string(interface(&name).join(what)).expect("it is there");
    assert_eq!((told("address").trim(), told("mtu").trim()), (host_mac, "1400"));
    second.quit();
}

#[test]
fn the_serial_ports_file_is_appended_to() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    // The guest waits for a word over its console, and will tell it on its serial port.
    let orders = "vinit 00:01.0;vcon-write 00:01.0 waiting;vcon-read 00:01.0 100000000";
    let console = place.join("console");
    let mut first = Monitor::start(place, &[] as &[&str]);
    let said = json!({
        "payload": { "kernel": guest::path(), "cmdline": orders },
        "console": { "mode": "File", "file": console },
    });
    first.put("vm.create", &monitor::configuration(place, &said)).expect("it can be created");
    first.put("vm.boot", &Value::Null).expect("it can be booted");
    let has = |path: &Path, word: &str| {
        fs::read_to_string(path).is_ok_and(|said| said.contains(word)).then_some(())
    };
    monitor::until("the guest", || has(&console, "waiting"));
    let snapshot = saved::snapshot(&mut first, place);
    first.quit();

    let serial = place.join("serial-file");
    fs::write(&serial, "of another life\n").expect("there is room");
    let overrides = json!([
        { "id": "__serial", "mode": "File", "file": serial },
        { "id": "__console", "mode": "Pty" },
    ]);
    let mut second = Monitor::start(place, &[] as &[&str]);
    second.restore(&snapshot, &json!({ "overrides": overrides }));
    let pty = configuration(&mut second)["console"]["file"].as_str().expect("it is told").to_owned();
    let mut pty = OpenOptions::new().read(true).write(true).open(pty).expect("it is there");
    pty.write_all(b"hello\n").expect("it takes it");
    monitor::until("the word", || has(&serial, "hello"));
    let said = fs::read_to_string(&serial).expect("it is there");
    assert!(said.starts_with("of another life\n"), "{said}");
    second.quit();
}

#[test]
fn what_this_host_does_not_have_is_found_by_trying_it() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let (probed, read) = (place.join("probed"), place.join("read"));
    for image in [&probed, &read] {
        fs::write(image, vec![0; 1 << 20]).expect("there is room");
    }
    let mut said = saved::machine(place);
    let disks = said["disks"].as_array_mut().expect("a list");
    disks.push(json!({ "path": probed, "id": "probed" }));
    disks.push(json!({ "path": read, "id": "read", "readonly": true, "image_type": "Raw" }));
    said["memory"] = json!({ "size": 0, "zones": [{ "id": "own", "size": 64 << 20 }] });
    let mut monitor = Monitor::start(place, &[] as &[&str]);
    let mut console = monitor.boot(place, &said);
    console.ok("ping");
    let snapshot = saved::snapshot(&mut monitor, place);
    drop(console);
    monitor.quit();

    let mut monitor = Monitor::start(place, &[] as &[&str]);
    let held = Held::by(&mut monitor);
    let mut refused = |said: &Value, expected: &[&str]| {
        let request = monitor::restore_request(&snapshot, said);
        let said = refused_alike(&mut monitor, held, &request);
        assert!(expected.iter().all(|part| said.contains(part)), "{request}: {said}");
    };
    let laid_over = |value: Value| json!({ "overrides": [value] });
    let affinity = json!([{ "vcpu": 1, "host_cpus": [1020] }]);
    refused(&laid_over(json!({ "id": "__cpus", "affinity": affinity })), &["vCPU 1", "host CPU 1020"]);
    refused(&laid_over(json!({ "id": "own", "host_numa_node": 999 })), &["zone own", "host NUMA node 999"]);
    refused(&laid_over(json!({ "id": "read", "path": place })), &["device read"]);
    let image = File::options().write(true).open(&probed).expect("it is there");
    image.set_len((1 << 20) - 4096).expect("it can be cut");
    refused(&json!({}), &["probed", "had 2048 sectors, its image now has 2040"]);
    image.set_len(1 << 20).expect("it can grow");
    // The magic number and version of qcow2.
    image.write_all_at(b"QFI\xfb\0\0\0\x03", 0).expect("it can be written");
    refused(&json!({}), &["device probed", "qcow2"]);
    image.write_all_at(&[0; 8], 0).expect("it can be written");
    let config = snapshot.join("config.json");
    let before = fs::read_to_string(&config).expect("it is there");
    let mut edited: Value = serde_json::from_str(&before).expect("it is JSON");
    edited["disks"][0]["queue_affinity"] = json!([{ "queue_index": 1, "host_cpus": [1020] }]);
    fs::write(&config, edited.to_string()).expect("it can be written");
    refused(&json!({}), &["device _disk0", "queue 1", "host CPU 1020"]);
    fs::write(&config, before).expect("it can be written");
    monitor.restore(&snapshot, &json!({}));
    monitor::serial(place).ok("ping");
    monitor.quit();
}

#[test]
fn a_restore_that_fails_leaves_no_file_and_changes_no_tap() {
    if !cumulet::kvm_is_usable() || !hosts::tap_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let name = tap_name("f");
    let tap = hosts::Tap::make(&name);
    let mut monitor = Monitor::start(place, &[] as &[&str]);
    let mut said = saved::machine(place);
    said["net"] = json!([{ "id": "uplink", "tap": name }]);
    let mut console = monitor.boot(place, &said);
    console.ok("ping");
    let snapshot = saved::snapshot(&mut monitor, place);
    drop(console);
    monitor.quit();

    // Found out when all else has been opened.
    let image = File::options().write(true).open(place.join("disk")).expect("it is there");
    image.set_len((16 << 20) - 4096).expect("it can be cut");
    let address = || fs::read_to_string(interface(&name).join("address")).expect("it is there");
    let (serial, console, before) = (place.join("serial-file"), place.join("console-file"), address());
    let host_mac = "2e:66:77:88:99:aa";
    let overrides = json!([
        { "id": "__serial", "mode": "File", "file": serial },
        { "id": "__console", "mode": "File", "file": console },
        { "id": "uplink", "host_mac": host_mac },
    ]);
    let request = monitor::restore_request(&snapshot, &json!({ "overrides": overrides }));
    let mut monitor = Monitor::start(place, &[] as &[&str]);
    for _ in 0..2 {
        let said = text(&monitor.refused("vm.restore", &request));
        assert!(said.contains("its image now has"), "{said}");
        assert!(!serial.exists() && !console.exists(), "a file is left");
        assert_eq!(address(), before);
    }
    fs::write(&console, "of another life\n").expect("there is room");
    monitor.refused("vm.restore", &request);
    assert!(!serial.exists());
    assert_eq!(fs::read_to_string(&console).expect("it stays"), "of another life\n");
    image.set_len(16 << 20).expect("it can grow");
    let report = json_of(&monitor.put("vm.restore", &request).expect("nothing is missing any more"));
    let phases = report["phases"].as_array().expect("a list");
    let at = |name: &str| phases.iter().position(|phase| phase["name"] == name);
    assert!(at("taps") > at("commit") && at("taps") < at("run processors"), "{phases:?}");
    assert_eq!(report["made_taps"], json!([]), "{report}");
    assert!(serial.exists());
    assert_eq!(address().trim(), host_mac);
    monitor.quit();
    drop(tap);
}
