//! What a restore asks of the kernel, counted from outside: the report is checked, not trusted.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use cumulet_tests::{
    cumulet, guest,
    monitor::{self, Monitor},
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
