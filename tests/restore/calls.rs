//! What a restore asks of the kernel, counted from outside: the report is checked, not trusted.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use cumulet_tests::{
    cumulet, guest,
    monitor::{self, Monitor},
    saved,
};
use serde_json::{Value, json};

const DISKS: usize = 12;
const QUEUES: usize = 4;

/// The calls that change a guest's wiring, and what the report counts them as.
const CALLS: [(&str, &[&str]); 4] = [
    ("KVM_SET_USER_MEMORY_REGION", &["slots_added", "slots_removed"]),
    ("KVM_IOEVENTFD", &["doorbells_added", "doorbells_removed"]),
    ("KVM_IRQFD", &["irqfds_added", "irqfds_removed"]),
    ("KVM_SET_GSI_ROUTING", &["routing_writes"]),
];

/// Whether calls can be counted here.
#[expect(clippy::print_stdout, reason = "the test report counts this line")]
fn strace_is_usable() -> bool {
    let tried = Command::new("strace")
        .args(["-f", "-e", "trace=ioctl", "true"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match tried {
        Ok(status) if status.success() => true,
        Ok(status) => {
            println!("SKIPPED: strace may not trace here: {status}");
            false
        }
        Err(error) => {
            println!("SKIPPED: strace cannot be started: {error}");
            false
        }
    }
}

/// A process whose calls are written to `log`.
fn traced(place: &Path, log: &Path) -> Monitor {
    let mut strace = Command::new("strace");
    // The tracer is the grandchild, so that whoever ends the child ends the program.
    strace.args(["-D", "-f", "-qq", "-e", "trace=ioctl", "-o"]).arg(log).arg(cumulet::path());
    Monitor::spawn(strace, place, &[] as &[&str])
}

/// How often each call was made.
fn counted(log: &Path) -> [u64; 4] {
    let text = fs::read_to_string(log).expect("there is a log");
    // A call that waits has two lines, of which one says what it is.
    CALLS.map(|(call, _)| {
        let begun = text.lines().filter(|line| line.contains("ioctl(") && line.contains(call));
        begun.count() as u64
    })
}

fn reported(report: &Value) -> [u64; 4] {
    CALLS.map(|(_, names)| {
        let of = |name: &&str| {
            let count = &report["totals"][*name]["count"];
            count.as_u64().unwrap_or_else(|| panic!("the report has no {name}: {report}"))
        };
        names.iter().map(of).sum()
    })
}

#[test]
fn the_report_counts_what_strace_counts() {
    if !cumulet::kvm_is_usable() || !strace_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let disks: Vec<Value> = (0..DISKS)
        .map(|disk| {
            let path = place.join(format!("disk{disk}"));
            fs::File::create(&path).and_then(|file| file.set_len(1 << 20)).expect("there is room");
            json!({ "path": path, "num_queues": QUEUES, "image_type": "Raw" })
        })
        .collect();
    let mut first = Monitor::start(place, &[] as &[&str]);
    let mut console =
        first.boot(place, &json!({ "cpus": { "boot_vcpus": QUEUES, "max_vcpus": QUEUES }, "disks": disks }));
    let listed = console.ok("virtio");
    for device in listed.split('[').skip(1) {
        console.ok(&format!("vinit {}", device.split_whitespace().next().expect("an address")));
    }
    let snapshot = place.join("snapshot");
    fs::create_dir(&snapshot).expect("there is room");
    first.put("vm.pause", &Value::Null).expect("it can be paused");
    first
        .put("vm.snapshot", &json!({ "destination_url": monitor::url(&snapshot) }))
        .expect("it can be saved");
    drop(console);
    first.quit();

    // Each disk, and the entropy source with its one queue.
    let queues = (DISKS * QUEUES + 1) as u64;
    for (commit, expected) in [("once", [1, 0, 0, 0]), ("each", [1, queues, 0, 0])] {
        let log = place.join(commit);
        let mut monitor = traced(place, &log);
        let report = monitor.restore(&snapshot, &json!({ "commit": commit, "resume": false }));
        let calls = counted(&log);
        assert_eq!(calls, reported(&report), "{commit}: {report}");
        assert_eq!(calls, expected, "{commit}");

        // What was left for later is registered while the guest runs, each once.
        monitor.put("vm.resume", &Value::Null).expect("it can go on");
        monitor::until("the doorbells", || (counted(&log)[1] >= queues).then_some(()));
        let mut console = monitor::serial(place);
        let said = console.ok("vcheck");
        assert_eq!(guest::field(&said, "asked"), guest::field(&said, "answered"), "{said}");
        assert_eq!(counted(&log), [1, queues, 0, 0], "{commit}");
        drop(console);
        monitor.quit();
    }
}

/// Calls after which a slot would wait for a grace period.
const REGISTRATIONS: [&str; 5] =
    ["KVM_CREATE_IRQCHIP", "KVM_CREATE_VCPU", "KVM_IOEVENTFD", "KVM_IRQFD", "KVM_SET_GSI_ROUTING"];

/// A call of the log.
#[derive(Debug)]
struct Call<'a> {
    descriptor: &'a str,
    name: &'a str,
    /// The lines in which it begins and ends; it has two if others called meanwhile.
    lines: (usize, usize),
}

/// Reads lines such as `PID ioctl(12, KVM_RUN, 0) = 0`, and their halves.
fn calls(log: &str) -> Vec<Call<'_>> {
    let mut calls: Vec<Call<'_>> = Vec::new();
    let mut waiting = BTreeMap::new();
    for (number, line) in log.lines().enumerate() {
        let Some((pid, text)) = line.split_once(' ') else { continue };
        let text = text.trim_start();
        if text.starts_with("<... ioctl resumed>") {
            let call: usize = waiting.remove(pid).expect("it has begun");
            calls[call].lines.1 = number;
        } else if let Some((descriptor, rest)) =
            text.strip_prefix("ioctl(").and_then(|text| text.split_once(", "))
        {
            let ended = if rest.contains("<unfinished ...>") {
                waiting.insert(pid, calls.len());
                usize::MAX
            } else {
                number
            };
            let name = rest.split([',', ' ', ')']).next().expect("there is a first part");
            calls.push(Call { descriptor, name, lines: (number, ended) });
        }
    }
    calls
}

#[test]
fn slots_are_set_before_all_that_they_would_wait_for_and_not_again() {
    if !cumulet::kvm_is_usable() || !strace_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let mut first = Monitor::start(place, &[] as &[&str]);
    let mut said = saved::machine(place);
    // On both sides of the hole below 4 GiB.
    said["memory"] = json!({ "size": 5_u64 << 30 });
    let mut console = first.boot(place, &said);
    saved::drive(&mut console);
    let snapshot = saved::snapshot(&mut first, place);
    drop(console);
    first.quit();

    for (commit, mode) in [("once", "Cow"), ("once", "OnDemand"), ("once", "Copy"), ("each", "Cow")] {
        let log = place.join(format!("{commit}-{mode}"));
        let mut monitor = traced(place, &log);
        let said = json!({ "commit": commit, "memory_restore_mode": mode });
        let report = monitor.restore(&snapshot, &said);
        let queues = guest::field(&monitor::serial(place).ok("vcheck"), "asked");
        monitor::until("the doorbells", || (counted(&log)[1] >= queues).then_some(()));
        monitor.quit();
        let text = fs::read_to_string(&log).expect("there is a log");
        let calls = calls(&text);
        let slots: Vec<&Call<'_>> =
            calls.iter().filter(|call| call.name == "KVM_SET_USER_MEMORY_REGION").collect();
        assert!(slots.len() >= 2, "{mode}: {slots:?}");
        assert_eq!(slots.len() as u64, reported(&report)[0], "{mode}: {report}");
        let vm = slots[0].descriptor;
        assert!(slots.iter().all(|slot| slot.descriptor == vm), "{mode}: {slots:?}");
        let registrations =
            || calls.iter().filter(|call| call.descriptor == vm && REGISTRATIONS.contains(&call.name));
        for needed in ["KVM_CREATE_IRQCHIP", "KVM_CREATE_VCPU", "KVM_IOEVENTFD"] {
            assert!(registrations().any(|call| call.name == needed), "{mode}: no {needed}");
        }
        let earliest = registrations().min_by_key(|call| call.lines.0).expect("there are some");
        let latest = slots.iter().max_by_key(|slot| slot.lines.1).expect("there are some");
        assert!(latest.lines.1 < earliest.lines.0, "{commit}, {mode}: {latest:?}, {earliest:?}");
    }
}
