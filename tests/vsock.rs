//! The socket device: programs of the host and of the guest that talk to each other, over pauses and restores too, and
//! what is refused. What the guest is told to do is in docs/test-guest.md.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    thread,
};

use api_client::{Refusal, wire::VmState};
use cumulet_tests::{
    api, cumulet,
    guest::{self, Console},
    monitor::{self, Monitor},
    saved,
};
use serde_json::{Value, json};

/// The port that the guest listens on.
const ECHO: u32 = 7;

/// Where a machine's programs connect to.
fn socket(directory: &Path) -> PathBuf {
    directory.join("vsock")
}

/// Where a program of the host's listens for guests that connect to that port.
fn listening(directory: &Path, port: u32) -> UnixListener {
    UnixListener::bind(directory.join(format!("vsock_{port}"))).expect("the name is free")
}

/// A machine with a socket device, beside what `saved::machine` has.
fn machine(directory: &Path) -> Value {
    let mut said = saved::machine(directory);
    said["vsock"] = json!({ "id": "talk", "cid": 3, "socket": socket(directory) });
    said
}

/// The socket device, in use.
fn serve(console: &mut Console, options: &str) -> String {
    let devices = saved::drive(console);
    let bdf = devices.into_iter().find(|(_, kind)| *kind == 19).expect("there is one").0;
    console.ok(&format!("vinit {bdf} {options}"));
    console.ok(&format!("vsock-serve {bdf} {ECHO}"));
    bdf
}

/// A field of what the guest's side says of itself.
fn state(console: &mut Console, field: &str) -> u64 {
    guest::field(&console.ok("vsock-state"), field)
}

/// Asks for a port of the guest's; what is told.
fn ask(directory: &Path, line: &str) -> (BufReader<UnixStream>, String) {
    let mut stream = UnixStream::connect(socket(directory)).expect("it is listened on");
    stream.write_all(line.as_bytes()).expect("it is taken");
    let mut reader = BufReader::new(stream);
    let mut told = String::new();
    // Whoever is cut off with something unread may see an error in place of the end.
    let _ = reader.read_line(&mut told);
    (reader, told)
}

/// A connection to the guest that sends back.
fn connect(directory: &Path) -> UnixStream {
    let (reader, told) = ask(directory, &format!("CONNECT {ECHO}\n"));
    let port = told.strip_prefix("OK ").and_then(|port| port.strip_suffix('\n')).expect(&told);
    assert!(port.parse::<u32>().expect("a number") >= 1 << 30, "{told}");
    reader.into_inner()
}

/// A connection of the guest's to a program that listens on that port.
fn called(console: &mut Console, listener: &UnixListener, port: u32) -> UnixStream {
    let said = console.ok(&format!("vsock-connect {port}"));
    assert!(guest::field(&said, "guest") >= 5000, "{said}");
    listener.accept().expect("it has connected").0
}

fn sends_back(stream: &mut UnixStream, bytes: &[u8]) {
    stream.write_all(bytes).expect("the guest takes it");
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).expect("it comes back");
    assert!(back == bytes);
}

/// More than any buffer on the way has room for: written and read at the same time, to the end of both directions.
fn sends_back_all(mut stream: UnixStream, len: usize) {
    let pattern = |index: usize| (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[7];
    let bytes: Vec<u8> = (0..len).map(pattern).collect();
    let mut writer = stream.try_clone().expect("there are descriptors left");
    let sent = bytes.clone();
    let writes = thread::spawn(move || {
        writer.write_all(&sent).expect("the guest takes it");
        writer.shutdown(Shutdown::Write).expect("it is open");
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).expect("it comes back");
    writes.join().expect("all was written");
    assert_eq!(back.len(), len);
    assert!(back == bytes);
}

fn has_ended(stream: &mut UnixStream) {
    // What was sent last and not read makes it an error.
    match stream.read(&mut [0; 64]) {
        Ok(0) | Err(_) => {}
        Ok(count) => panic!("{count} bytes more"),
    }
}

fn text(refusal: &Refusal) -> String {
    refusal.messages.as_ref().expect("it says why").join(": ")
}

#[test]
fn programs_of_host_and_guest_talk() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let mut monitor = Monitor::start(place, &[] as &[&str]);
    let mut console = monitor.boot(place, &machine(place));
    for options in ["", "packed event-idx", "event-idx indirect", "packed size 8"] {
        serve(&mut console, options);
        assert_eq!(state(&mut console, "cid"), 3);
        sends_back_all(connect(place), 4 << 20);
        let listener = listening(place, 52);
        sends_back_all(called(&mut console, &listener, 52), 1 << 20);
        // Ports where nobody is, on both sides.
        let (mut refused, told) = ask(place, "CONNECT 8\n");
        assert_eq!(told, "");
        has_ended(refused.get_mut());
        let said = console.order("vsock-connect 53").expect_err("nobody listens");
        assert!(said.contains("the host refuses"), "{said}");
        for line in ["HELLO 7\n", "CONNECT seven\n", "CONNECT 7 7\n"] {
            assert_eq!(ask(place, line).1, "", "{line}");
        }
        // The guest ends what is open.
        let mut open = [connect(place), called(&mut console, &listener, 52)];
        open.iter_mut().for_each(|stream| sends_back(stream, b"hello"));
        assert_eq!(state(&mut console, "connections"), 2);
        console.ok("vsock-close");
        open.iter_mut().for_each(has_ended);
        drop(listener);
        fs::remove_file(place.join("vsock_52")).expect("it is the test's");
        // A driver that begins anew ends it too.
        let mut last = connect(place);
        sends_back(&mut last, b"hello");
        serve(&mut console, options);
        has_ended(&mut last);
    }
    let counters: Value = serde_json::to_value(monitor.api.counters().expect("it runs")).expect("it is JSON");
    assert!(counters["talk"]["tx_bytes"].as_u64() >= Some(20 << 20), "{counters}");
    assert!(counters["talk"]["rx_bytes"].as_u64() >= Some(20 << 20), "{counters}");
    assert_eq!(counters["talk"]["connections"].as_u64(), Some(4 * 5), "{counters}");
    assert!(socket(place).exists());
    drop(console);
    monitor.quit();
    assert!(!socket(place).exists());
}

#[test]
fn one_that_does_not_read_keeps_nobody_from_talking() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let mut monitor = Monitor::start(place, &[] as &[&str]);
    let mut console = monitor.boot(place, &machine(place));
    serve(&mut console, "");
    // It says more than there is room for on the whole way, there and back.
    let mut slow = connect(place);
    let len = 2 << 20;
    let mut writer = slow.try_clone().expect("there are descriptors left");
    let writes = thread::spawn(move || writer.write_all(&vec![5; len]).expect("the guest takes it"));
    let many: Vec<UnixStream> = (0..50).map(|_| connect(place)).collect();
    assert_eq!(state(&mut console, "connections"), 51);
    let talks: Vec<_> = many
        .into_iter()
        .zip(0u8..)
        .map(|(mut stream, number)| {
            thread::spawn(move || {
                for _ in 0..10 {
                    sends_back(&mut stream, &vec![number; 10_000]);
                }
            })
        })
        .collect();
    talks.into_iter().for_each(|talk| talk.join().expect("it comes back"));
    let mut back = vec![0; len];
    slow.read_exact(&mut back).expect("all of it comes back");
    assert!(back.iter().all(|byte| *byte == 5));
    writes.join().expect("all was written");
    // Those that have gone are gone for the guest as well.
    monitor::until("the guest", || (state(&mut console, "connections") == 1).then_some(()));
    drop(console);
    monitor.quit();
}

#[test]
fn connections_live_over_a_pause_and_end_with_a_restore() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let mut first = Monitor::start(place, &[] as &[&str]);
    let mut console = first.boot(place, &machine(place));
    serve(&mut console, "packed");
    let listener = listening(place, 52);
    let mut open = [connect(place), called(&mut console, &listener, 52)];
    let snapshot = saved::snapshot(&mut first, place);
    open.iter_mut().for_each(|stream| stream.write_all(b"said meanwhile").expect("it is kept"));
    first.put("vm.resume", &Value::Null).expect("it can be resumed");
    for stream in &mut open {
        let mut back = [0; 14];
        stream.read_exact(&mut back).expect("it comes back");
        assert_eq!(&back, b"said meanwhile");
    }
    assert_eq!((state(&mut console, "connections"), state(&mut console, "events")), (2, 0));

    // Two others of the same snapshot, each with a socket and a context id of its own, while the first lives on.
    let homes = [44, 45].map(|cid| (cid, tempfile::tempdir().expect("there is room")));
    let mut clones: Vec<(Monitor, Console)> = homes
        .iter()
        .map(|(cid, home)| {
            let home = home.path();
            let mut clone = Monitor::start(home, &[] as &[&str]);
            let disk = home.join("disk");
            fs::copy(place.join("disk"), &disk).expect("there is room");
            let overrides = json!([
                { "id": "talk", "socket": socket(home), "cid": cid },
                { "id": "_disk0", "path": disk },
                { "id": "__serial", "mode": "Socket", "socket": home.join("serial") },
            ]);
            let report = clone.restore(&snapshot, &json!({ "overrides": overrides }));
            let overridden = report["overridden"].as_array().expect("a list");
            assert!(overridden.contains(&json!("talk.socket")) && overridden.contains(&json!("talk.cid")));
            let console = monitor::serial(home);
            (clone, console)
        })
        .collect();
    for ((cid, home), (clone, console)) in homes.iter().zip(&mut clones) {
        let home = home.path();
        monitor::until("the guest to be told", || (state(console, "events") == 1).then_some(()));
        assert_eq!((state(console, "cid"), state(console, "connections")), (*cid, 0));
        let listener = listening(home, 52);
        sends_back_all(connect(home), 1 << 20);
        sends_back(&mut called(console, &listener, 52), b"hello");
        let config =
            serde_json::to_value(clone.api.info().expect("there is a VM").config).expect("it is JSON");
        assert_eq!(config["vsock"]["cid"], json!(cid));
        assert_eq!(config["vsock"]["socket"], json!(socket(home)));
    }
    for (clone, console) in clones {
        drop(console);
        clone.quit();
    }
    assert!(homes.iter().all(|(_, home)| !socket(home.path()).exists()));
    // The first knows nothing of them.
    open.iter_mut().for_each(|stream| sends_back(stream, b"still here"));
    assert_eq!((state(&mut console, "cid"), state(&mut console, "events")), (3, 0));
    drop(console);
    first.quit();
    open.iter_mut().for_each(has_ended);

    // Edited, as orchestrators do it, and saved again before the guest could hear of the event.
    let home = tempfile::tempdir().expect("there is room");
    let home = home.path();
    let path = snapshot.join("config.json");
    let mut config: Value =
        serde_json::from_slice(&fs::read(&path).expect("it is there")).expect("it is JSON");
    config["vsock"]["socket"] = json!(socket(home));
    config["vsock"]["cid"] = json!(46);
    fs::write(&path, config.to_string()).expect("it can be written");
    let mut edited = Monitor::start(place, &[] as &[&str]);
    let report = edited.restore(&snapshot, &json!({ "resume": false }));
    assert_eq!(report["edited"], json!(["vsock.cid", "vsock.socket"]), "{report}");
    assert_eq!(edited.state(), VmState::Paused);
    let again = place.join("again");
    fs::create_dir(&again).expect("there is room");
    let request = json!({ "destination_url": monitor::url(&again) });
    edited.put("vm.snapshot", &request).expect("it can be saved");
    edited.quit();
    let mut last = Monitor::start(place, &[] as &[&str]);
    last.restore(&again, &json!({}));
    let mut console = monitor::serial(place);
    monitor::until("the guest to be told", || (state(&mut console, "events") == 1).then_some(()));
    assert_eq!((state(&mut console, "cid"), state(&mut console, "connections")), (46, 0));
    sends_back(&mut connect(home), b"hello");
    drop(console);
    last.quit();
}

#[test]
fn a_socket_that_cannot_be_is_refused_by_name() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let mut monitor = Monitor::start(place, &[] as &[&str]);
    let with = |socket: &Path, cid: u32| {
        let mut said = machine(place);
        said["vsock"] = json!({ "cid": cid, "socket": socket });
        monitor::configuration(place, &said)
    };
    let taken = place.join("taken");
    fs::write(&taken, "another's").expect("there is room");
    let missing = place.join("missing").join("vsock");
    let long = place.join("x".repeat(110));
    for (socket, cid, expected) in [
        (&taken, 3, format!("cannot open {}: Address already in use", taken.display())),
        (&missing, 3, format!("cannot open {}: No such file", missing.display())),
        (&long, 3, "at most 107".to_owned()),
        (&socket(place), 2, "cid 2: it is reserved".to_owned()),
    ] {
        monitor.put("vm.create", &with(socket, cid)).expect("it can be created");
        let said = text(&monitor.refused("vm.boot", &Value::Null));
        assert!(said.contains(&expected) && said.contains("_vsock"), "{expected}: {said}");
        monitor.put("vm.delete", &Value::Null).expect("it can be deleted");
        assert_eq!(fs::read_to_string(&taken).expect("it stays"), "another's");
    }
    // Added before the boot, once; removed, and added again. It comes back with a reboot.
    let mut said = machine(place);
    said["vsock"] = Value::Null;
    monitor.put("vm.create", &monitor::configuration(place, &said)).expect("it can be created");
    let vsock = json!({ "id": "talk", "cid": 3, "socket": socket(place) });
    monitor.put("vm.add-vsock", &vsock).expect("it can be added");
    let said = text(&monitor.refused("vm.add-vsock", &json!({ "cid": 4, "socket": "/s" })));
    assert!(said.contains("Too many virtio-vsock devices"), "{said}");
    monitor.put("vm.remove-device", &json!({ "id": "talk" })).expect("it can be removed");
    monitor.put("vm.add-vsock", &vsock).expect("it can be added");
    monitor.put("vm.boot", &Value::Null).expect("it can be booted");
    let said = text(&monitor.refused("vm.remove-device", &json!({ "id": "talk" })));
    assert!(said.contains("hotplug"), "{said}");
    for _ in 0..2 {
        let mut console = monitor::serial(place);
        console.ready();
        serve(&mut console, "");
        sends_back(&mut connect(place), b"hello");
        drop(console);
        monitor.put("vm.reboot", &Value::Null).expect("it can be rebooted");
    }
    monitor.put("vm.delete", &Value::Null).expect("it can be deleted");
    assert!(!socket(place).exists());
    monitor.quit();
}

#[test]
fn a_restore_that_fails_leaves_no_socket() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let mut first = Monitor::start(place, &[] as &[&str]);
    let mut console = first.boot(place, &machine(place));
    serve(&mut console, "");
    let snapshot = saved::snapshot(&mut first, place);
    drop(console);
    first.quit();

    let mut monitor = Monitor::start(place, &[] as &[&str]);
    let taken = place.join("taken");
    fs::write(&taken, "another's").expect("there is room");
    let laid_over = |value: Value| {
        let mut value = value;
        value["id"] = json!("talk");
        json!({ "overrides": [value] })
    };
    for (said, expected) in [
        (json!({ "socket": taken }), "/taken: "),
        (json!({ "socket": place.join("missing/vsock") }), "talk: socket: there is no "),
        (json!({ "socket": "x".repeat(120) }), "talk: socket "),
        (json!({ "cid": 1 }), "talk: cid 1: it is reserved"),
        (json!({ "path": "/" }), "path is nothing that a socket device has"),
    ] {
        for dry_run in [true, false] {
            let mut request = monitor::restore_request(&snapshot, &laid_over(said.clone()));
            request["dry_run"] = json!(dry_run);
            let said = text(&monitor.refused("vm.restore", &request));
            assert!(said.contains(expected) && said.contains("talk"), "{request}: {said}");
        }
    }
    assert_eq!(fs::read_to_string(&taken).expect("it stays"), "another's");
    // By the tool as well.
    fs::write(socket(place), "another's").expect("there is room");
    let arguments = ["snapshot", "can-restore", snapshot.to_str().expect("it is text")];
    let ran = cumulet::run(api::remote(), &arguments, "");
    assert!(ran.code != Some(0) && format!("{ran:?}").contains("/vsock"), "{ran:?}");
    fs::remove_file(socket(place)).expect("it is the test's");
    let ran = cumulet::run(api::remote(), &arguments, "");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    // Found out when all else has been opened.
    let image = File::options().write(true).open(place.join("disk")).expect("it is there");
    image.set_len((16 << 20) - 4096).expect("it can be cut");
    let request = monitor::restore_request(&snapshot, &json!({}));
    for _ in 0..2 {
        let said = text(&monitor.refused("vm.restore", &request));
        assert!(said.contains("its image now has"), "{said}");
        assert!(!socket(place).exists());
    }
    image.set_len(16 << 20).expect("it can grow");
    monitor.put("vm.restore", &request).expect("nothing is missing any more");
    let mut console = monitor::serial(place);
    sends_back(&mut connect(place), b"hello");
    assert_eq!(state(&mut console, "events"), 1);
    drop(console);
    monitor.quit();
}
