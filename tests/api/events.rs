//! What those see who started a process and watch it: the events, over a descriptor that they handed over, and the names
//! of its threads.

use std::{fs, process::Command, thread};

use cumulet_tests::{
    cumulet,
    monitor::{Monitor, until},
    saved::{drive, machine, snapshot},
};
use serde_json::{Value, json};

/// The events of a stream. It is read as libvirt does: an object ends where as many braces are closed as are open
/// (rest-api.md, section 8.3).
fn objects(stream: &str) -> Vec<Value> {
    let (mut events, mut open, mut begin) = (Vec::new(), 0, 0);
    for (at, brace) in stream.match_indices(['{', '}']) {
        match brace {
            "{" if open == 0 => {
                begin = at;
                open = 1;
            }
            "{" => open += 1,
            _ => open -= 1,
        }
        if open == 0 {
            let event: Value = serde_json::from_str(&stream[begin..=at]).expect("an event is JSON");
            assert!(event["timestamp"]["nanos"].is_u64(), "{event}");
            events.push(event);
        }
    }
    events
}

/// The events of a stream, each as its source, its name and the id among its properties.
fn read(stream: &str) -> Vec<(String, String, Option<String>)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    objects(stream)
        .iter()
        .map(|event| {
            let source = text(&event["source"]).expect("it has a source");
            let name = text(&event["event"]).expect("it has a name");
            (source, name, text(&event["properties"]["id"]))
        })
        .collect()
}

#[test]
fn devices_and_the_vm_are_told_over_a_descriptor_that_was_handed_over() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let fifo = place.join("events");
    assert!(Command::new("mkfifo").arg(&fifo).status().is_ok_and(|status| status.success()));
    let reader = {
        let fifo = fifo.clone();
        thread::spawn(move || fs::read_to_string(fifo))
    };
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" \"$@\" 7>\"$EVENTS\""]).arg(cumulet::path()).env("EVENTS", &fifo);
    let mut monitor = Monitor::spawn(command, place, &["--event-monitor", "fd=7"]);
    let mut console = monitor.boot(place, &machine(place));
    let devices = drive(&mut console);
    let (disk, _) = devices.iter().find(|(_, kind)| *kind == 2).unwrap();
    console.ok(&format!("vreset {disk}"));
    monitor.api.pause().unwrap();
    monitor.api.resume().unwrap();
    // Whoever asks for what is not possible now begins it all the same.
    monitor.api.boot().unwrap_err();
    monitor.quit();
    let events = read(&reader.join().unwrap().unwrap());
    let of = |wanted: &str| -> Vec<(&str, Option<&str>)> {
        let events = events.iter().filter(|(source, ..)| source == wanted);
        events.map(|(_, event, id)| (event.as_str(), id.as_deref())).collect()
    };
    assert_eq!(of("vmm"), [("starting", None), ("shutdown", None)]);
    let vm =
        ["booting", "booted", "pausing", "paused", "resuming", "resumed", "booting", "shutdown", "deleted"];
    assert_eq!(of("vm"), vm.map(|event| (event, None)));
    // In the order in which the guest has set them up.
    let told = of("virtio-device");
    let activated: Vec<_> =
        told.iter().filter(|(event, _)| *event == "activated").map(|(_, id)| *id).collect();
    assert_eq!(activated.len(), devices.len(), "{told:?}");
    assert!(activated.contains(&Some("_disk0")) && activated.contains(&Some("__rng")), "{told:?}");
    assert_eq!(told.last(), Some(&("reset", Some("_disk0"))), "{told:?}");
    let last = events.last().map(|(source, event, _)| (source.as_str(), event.as_str()));
    assert_eq!(last, Some(("vmm", "shutdown")));
}

#[test]
fn a_restore_tells_its_whole_report() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let mut monitor = Monitor::start(place, &[] as &[&str]);
    let mut console = monitor.boot(place, &machine(place));
    drive(&mut console);
    let saved = snapshot(&mut monitor, place);
    drop(console);
    monitor.quit();

    let stream = place.join("events");
    let path = stream.to_str().expect("it is text");
    let mut monitor = Monitor::start(place, &["--event-monitor", &format!("path={path}")]);
    let answered = monitor.restore(&saved, &json!({ "resume": true, "memory_restore_mode": "OnDemand" }));
    monitor.quit();
    let events = objects(&fs::read_to_string(&stream).unwrap());
    let restored: Vec<&Value> = events.iter().filter(|event| event["event"] == "restored").collect();
    let [restored] = restored[..] else { panic!("{events:?}") };
    let properties = &restored["properties"];
    let told: Value = serde_json::from_str(properties["report"].as_str().expect("it has a report"))
        .expect("the report is JSON");
    assert_eq!(told, answered);
    assert_eq!(told["memory"][0]["mode"], "ondemand");
    assert_eq!(told["commit"]["slots_added"]["count"], 1);
    // What is short is told by itself as well.
    let same =
        |property: &str, told: &Value| assert_eq!(properties[property], told.to_string(), "{property}");
    same("total_ns", &told["total_ns"]);
    same("commits", &told["totals"]["commits"]);
    same("commit_ns", &told["commit"]["total_ns"]);
    same("doorbells_late", &told["commit"]["doorbells_late"]);
    let phases = told["phases"].as_array().expect("there are phases");
    assert!(phases.iter().any(|phase| phase["name"] == "run processors"), "{phases:?}");
    for phase in phases {
        let name = phase["name"].as_str().expect("it has a name").replace(' ', "_");
        same(&format!("phase_{name}_ns"), &phase["ns"]);
    }
}

/// Whether taps are to be made here. A host where they cannot be has to say so.
#[expect(clippy::print_stdout, reason = "the test report counts this line")]
fn may_make_taps() -> bool {
    if std::env::var_os("CUMULET_WITHOUT_TAP").is_some_and(|value| value == "1") {
        println!("SKIPPED: CUMULET_WITHOUT_TAP is set");
        return false;
    }
    true
}

#[test]
fn threads_have_the_names_that_clients_sort_them_by() {
    if !cumulet::kvm_is_usable() || !may_make_taps() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let mut monitor = Monitor::start(place, &[] as &[&str]);
    let mut said = machine(place);
    said["net"] = json!([{ "num_queues": 4 }]);
    let mut console = monitor.boot(place, &said);
    drive(&mut console);
    let tasks = format!("/proc/{}/task", monitor.pid());
    let names = || -> Vec<String> {
        let tasks = fs::read_dir(&tasks).unwrap().flatten();
        // One that has ended meanwhile has no name any more.
        let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
        names.map(|name| name.trim_end().to_owned()).collect()
    };
    // Kata counts `vcpu` and a number; libvirt takes what begins with `_disk` and `_net` for I/O threads, and a queue of
    // its own each (rest-api.md, sections 8.1 and 8.3).
    let expected = ["vcpu0", "vcpu1", "_disk0_q0", "_disk0_q1", "_net1_qp0", "_net1_qp1"];
    until("the threads", || {
        let names = names();
        expected.iter().all(|name| names.iter().filter(|known| known == name).count() == 1).then_some(())
    });
    let vcpus = names().iter().filter(|name| name.starts_with("vcpu")).count();
    assert_eq!(vcpus, 2, "{:?}", names());
    monitor.quit();
}
