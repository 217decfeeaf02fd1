//! Hosts that lack something for a restore: the refusal names it, nothing is left behind, and when it is there the same
//! process takes the same request.

use std::{
    fs::{self, File},
    os::unix::net::UnixListener,
    process::Command,
};

use cumulet_tests::{
    golden::Golden,
    monitor::{self, Monitor},
};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::{Value, json};

use crate::{Held, golden::usable, refused_alike, text};

/// Limits a process that runs; returns the limit that it had.
fn limit(monitor: &Monitor, resource: Resource, to: u64) -> Rlimit {
    let pid = i32::try_from(monitor.pid()).expect("a pid is small");
    let pid = Pid::from_raw(pid).expect("no pid is 0");
    let maximum = getrlimit(resource).maximum;
    prlimit(Some(pid), resource, Rlimit { current: Some(to), maximum }).expect("it can be limited")
}

fn lift(monitor: &Monitor, resource: Resource, before: &Rlimit) {
    limit(monitor, resource, before.current.unwrap_or(u64::MAX));
}

/// Restores it for once, shows that it is the guest, and deletes it.
fn works(monitor: &mut Monitor, golden: &Golden, said: &Value) {
    monitor.put("vm.restore", &golden.request(said)).expect("nothing is missing any more");
    golden.proves_itself();
    monitor.put("vm.delete", &Value::Null).expect("it can be deleted");
}

#[test]
fn too_few_descriptors_are_an_error_at_every_number_of_them() {
    let directory = tempfile::tempdir().expect("there is room");
    let Some(golden) = usable(directory.path()) else { return };
    let mut monitor = Monitor::start(directory.path(), &[] as &[&str]);
    // What the first restore makes for good is made.
    works(&mut monitor, &golden, &json!({}));
    let held = Held::by(&mut monitor);
    let open = held.descriptors as u64;
    let mut refused = 0;
    for more in 0..200 {
        let mode = ["Copy", "Cow", "OnDemand"][usize::try_from(more % 3).expect("it is small")];
        let request = golden.request(&json!({ "memory_restore_mode": mode }));
        let before = limit(&monitor, Resource::Nofile, open + more);
        let answer = monitor.put("vm.restore", &request);
        lift(&monitor, Resource::Nofile, &before);
        match answer {
            Ok(_) => break,
            Err(error) => {
                let said = error.to_string();
                assert!(said.contains("Too many open files"), "{more} more: {said}");
                refused += 1;
            }
        }
        assert!(monitor.api.info().is_err(), "{more} more: there is a VM");
        held.is_all_of(&mut monitor);
        assert!(!directory.path().join("serial").exists(), "{more} more: its socket is there");
    }
    assert!((10..199).contains(&refused), "{refused} were too few");
    golden.proves_itself();
    monitor.put("vm.delete", &Value::Null).expect("it can be deleted");
    works(&mut monitor, &golden, &json!({}));
    monitor.quit();
}

/// Bytes of address space that a process has.
fn address_space(monitor: &Monitor) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/statm", monitor.pid())).expect("it is alive");
    let pages = status.split_whitespace().next().expect("it has a size");
    pages.parse::<u64>().expect("it is a number") * 4096
}

#[test]
fn too_little_memory_is_an_error_that_says_so() {
    let directory = tempfile::tempdir().expect("there is room");
    let Some(golden) = usable(directory.path()) else { return };
    let mut monitor = Monitor::start(directory.path(), &[] as &[&str]);
    works(&mut monitor, &golden, &json!({}));
    let held = Held::by(&mut monitor);
    for mode in ["Copy", "Cow", "OnDemand"] {
        // Less than the 36 MiB of the guest, and more than what reading a snapshot takes.
        let limited = address_space(&monitor) + (24 << 20);
        let before = limit(&monitor, Resource::As, limited);
        let said = json!({ "memory_restore_mode": mode });
        let refusal = monitor.refused("vm.restore", &golden.request(&said));
        lift(&monitor, Resource::As, &before);
        let said = text(&refusal);
        assert_eq!(refusal.code.as_deref(), Some("restore-failed"), "{said}");
        assert!(said.contains("guest memory") && said.contains("mem0"), "{said}");
        assert!(said.contains("Cannot allocate memory"), "{said}");
        held.is_all_of(&mut monitor);
    }
    works(&mut monitor, &golden, &json!({}));
    monitor.quit();
}

#[test]
fn a_disk_that_is_missing_has_shrunk_or_is_locked_is_refused_by_its_id() {
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let Some(golden) = usable(place) else { return };
    let mut monitor = Monitor::start(place, &[] as &[&str]);
    let held = Held::by(&mut monitor);
    let refused = |monitor: &mut Monitor, expected: &[&str]| {
        // The image is looked for where the configuration has it, as a client has edited it.
        let serial = golden.overrides()[1].clone();
        let said = refused_alike(monitor, held, &golden.request(&json!({ "overrides": [serial] })));
        assert!(expected.iter().all(|part| said.contains(part)), "{said}");
        assert!(!place.join("serial").exists(), "the serial port's socket is left");
    };
    let config = golden.snapshot().join("config.json");
    let text = fs::read_to_string(&config).expect("it is there");
    let disk = golden.disk().display().to_string();
    fs::write(&config, text.replace("/golden/disk", &disk)).expect("it can be written");

    let moved = place.join("moved");
    fs::rename(golden.disk(), &moved).expect("it can be moved");
    refused(&mut monitor, &["device _disk0", &disk, "No such file"]);
    fs::create_dir(golden.disk()).expect("it can be made");
    refused(&mut monitor, &["device _disk0", &disk]);
    fs::remove_dir(golden.disk()).expect("it is empty");
    fs::rename(&moved, golden.disk()).expect("it can be moved back");

    let image = File::options().write(true).open(golden.disk()).expect("it is there");
    image.set_len((16 << 20) - 4096).expect("it can be cut");
    refused(&mut monitor, &["_disk0", "had 32768 sectors, its image now has 32760"]);
    image.set_len(16 << 20).expect("it can grow");

    // Somebody else has it: another guest that lives from the same snapshot.
    let elsewhere = place.join("elsewhere");
    fs::create_dir(&elsewhere).expect("there is room");
    let mut other = Monitor::start(&elsewhere, &[] as &[&str]);
    let socket = elsewhere.join("serial");
    let serial = json!({ "id": "__serial", "mode": "Socket", "socket": socket });
    other.put("vm.restore", &golden.request(&json!({ "overrides": [serial] }))).expect("it is free");
    refused(&mut monitor, &["device _disk0", "cannot lock", &disk, "it is in use"]);
    // Others are not kept from it by its being looked at.
    other.put("vm.delete", &Value::Null).expect("it can be deleted");
    let mut only_tried = golden.request(&json!({}));
    only_tried["dry_run"] = json!(true);
    monitor.put("vm.restore", &only_tried).expect("nothing is missing");
    other.put("vm.restore", &golden.request(&json!({ "overrides": [serial] }))).expect("it is free");
    other.quit();
    works(&mut monitor, &golden, &json!({}));
    monitor.quit();
}

#[test]
fn a_socket_that_cannot_be_is_refused_by_its_path() {
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let Some(golden) = usable(place) else { return };
    let mut monitor = Monitor::start(place, &[] as &[&str]);
    let held = Held::by(&mut monitor);
    // Where the snapshot has it there is not even a directory.
    let disk = golden.overrides()[0].clone();
    let said = refused_alike(&mut monitor, held, &golden.request(&json!({ "overrides": [disk] })));
    assert!(said.contains("/golden/serial"), "{said}");
    // Where it shall be somebody listens.
    let socket = place.join("serial");
    let listener = UnixListener::bind(&socket).expect("it is free");
    let said = refused_alike(&mut monitor, held, &golden.request(&json!({})));
    assert!(said.contains(&*socket.to_string_lossy()) && said.contains("in use"), "{said}");
    assert!(socket.exists(), "what is another's is left alone");
    drop(listener);
    fs::remove_file(&socket).expect("it is there");
    works(&mut monitor, &golden, &json!({}));
    monitor.quit();
}

#[test]
fn a_tap_that_cannot_be_had_is_refused_by_its_name() {
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    if !tap_is_usable() || usable(place).is_none() {
        return;
    }
    // A network device on a tap of its own: the golden snapshot has none.
    let name = format!("cml{}", std::process::id() % 1_000_000);
    let place = place.join("net");
    fs::create_dir(&place).expect("there is room");
    let mut monitor = Monitor::start(&place, &[] as &[&str]);
    let mut console = monitor.boot(&place, &json!({ "net": [{ "id": "uplink", "tap": name }] }));
    console.ok("ping");
    let snapshot = place.join("snapshot");
    fs::create_dir(&snapshot).expect("there is room");
    monitor.put("vm.pause", &Value::Null).expect("it can be paused");
    let target = json!({ "destination_url": monitor::url(&snapshot) });
    monitor.put("vm.snapshot", &target).expect("it can be saved");
    // The first guest still has the tap.
    let elsewhere = place.join("elsewhere");
    fs::create_dir(&elsewhere).expect("there is room");
    let mut second = Monitor::start(&elsewhere, &[] as &[&str]);
    let held = Held::by(&mut second);
    let serial = json!({ "id": "__serial", "mode": "Socket", "socket": elsewhere.join("serial") });
    let request = |tap: &str| {
        let overrides = json!([serial, { "id": "uplink", "tap": tap }]);
        monitor::restore_request(&snapshot, &json!({ "overrides": overrides }))
    };
    // What is no tap, and what is another's.
    for (tap, expected) in [("lo", "lo"), (name.as_str(), name.as_str())] {
        let said = refused_alike(&mut second, held, &request(tap));
        assert!(said.contains("uplink") && said.contains(expected), "{said}");
    }
    drop(console);
    monitor.quit();
    second.put("vm.restore", &request(&name)).expect("it is free now");
    monitor::serial(&elsewhere).ok("ping");
    second.quit();
}

/// A tap that is there without anybody having opened it; gone when dropped.
pub struct Tap(String);

impl Tap {
    pub fn make(name: &str) -> Self {
        let made = Command::new("ip").args(["tuntap", "add", name, "mode", "tap", "vnet_hdr"]).output();
        assert!(made.is_ok_and(|made| made.status.success()), "{name} cannot be made");
        Self(name.to_owned())
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // Nothing more can be done in a test that fails.
        let _ = Command::new("ip").args(["link", "del", &self.0]).output();
    }
}

/// Whether taps can be made here.
#[expect(clippy::print_stdout, reason = "the test report counts this line")]
pub fn tap_is_usable() -> bool {
    let name = format!("cmp{}", std::process::id() % 1_000_000);
    let ip = |what: &str| Command::new("ip").args(["tuntap", what, &name, "mode", "tap"]).output();
    let usable = ip("add").is_ok_and(|made| made.status.success());
    if usable {
        assert!(ip("del").is_ok_and(|gone| gone.status.success()), "{name} stays");
    } else {
        println!("SKIPPED: no tap can be made here");
    }
    usable
}
