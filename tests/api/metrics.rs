//! What `metrics` tells, held against what the guest and its clients have done.

use api_client::Client;
use cumulet_tests::{
    cumulet,
    monitor::{Monitor, serial, until},
    saved::{drive, machine, snapshot},
};
use serde_json::json;

/// All metrics at one moment.
struct Metrics(String);

impl Metrics {
    fn read(api: &mut Client) -> Self {
        Self(api.metrics().expect("it tells them"))
    }

    /// A metric with that name and those labels, in the order in which they are told.
    fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<u64> {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let begin = format!("cumulet_{name}{labels} ");
        let value = self.0.lines().find_map(|line| line.strip_prefix(&begin))?;
        Some(value.parse().expect("it is a number"))
    }

    fn value(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.get(name, labels).unwrap_or_else(|| panic!("no {name} {labels:?} in {}", self.0))
    }

    fn queue(&self, what: &str, queue: &str) -> u64 {
        self.value(&format!("queue_{what}_total"), &[("device", "_disk0"), ("queue", queue)])
    }

    fn disk(&self, counter: &str) -> u64 {
        self.value(&format!("device_{counter}_total"), &[("device", "_disk0")])
    }

    fn resident(&self) -> u64 {
        ["anonymous", "file", "shared"]
            .iter()
            .map(|kind| self.value("resident_bytes", &[("kind", kind)]))
            .sum()
    }
}

#[test]
fn queues_count_what_the_guest_moves() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let mut monitor = Monitor::start(place, &[] as &[&str]);
    let mut console = monitor.boot(place, &machine(place));
    let devices = drive(&mut console);
    let (disk, _) = devices.iter().find(|(_, kind)| *kind == 2).unwrap();
    let before = Metrics::read(&mut monitor.api);
    assert_eq!((before.queue("requests", "0"), before.queue("requests", "1")), (0, 0));
    for round in 0..3 {
        console.ok(&format!("vblk-write {disk} 0 {} 128 0x2000000", 128 * round));
    }
    console.ok(&format!("vblk-read {disk} 1 0 8 0x2800000"));
    let after = Metrics::read(&mut monitor.api);
    assert_eq!((after.queue("requests", "0"), after.queue("requests", "1")), (3, 1));
    // Data, and for each request a header of 16 bytes and a status of one.
    assert_eq!(after.queue("bytes", "0"), 3 * (128 * 512 + 17));
    assert_eq!(after.queue("bytes", "1"), 8 * 512 + 17);
    assert_eq!((after.disk("write_ops"), after.disk("write_bytes")), (3, 3 * 128 * 512));
    assert_eq!((after.disk("read_ops"), after.disk("read_bytes")), (1, 8 * 512));
    // Each character that the guest has written by then is an exit to this process.
    let labels = [("vcpu", "0"), ("kind", "port_write")];
    let exits = |metrics: &Metrics| metrics.value("vcpu_exits_total", &labels);
    assert!(exits(&after) > exits(&before), "{}", after.0);
    assert_eq!(after.value("commits_total", &[("result", "undone")]), 0);
    assert!(after.value("commit_operations_total", &[("kind", "slots added")]) > 0, "{}", after.0);
}

#[test]
fn a_restore_leaves_its_phases_and_what_it_filled() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let mut first = Monitor::start(place, &[] as &[&str]);
    let mut console = first.boot(place, &machine(place));
    let devices = drive(&mut console);
    console.ok("fill 0x2000000 24M 7");
    assert_eq!(Metrics::read(&mut first.api).get("restore_phase_nanoseconds", &[("phase", "all")]), None);
    let target = snapshot(&mut first, place);
    first.quit();

    let mut second = Monitor::start(place, &[] as &[&str]);
    let said = json!({ "memory_restore_mode": "OnDemand", "background_fill": "all", "fill_bytes_per_second": 1u64 << 30 });
    let report = second.restore(&target, &said);
    let metrics = Metrics::read(&mut second.api);
    let phases = report["phases"].as_array().unwrap();
    assert!(phases.len() > 3, "{report}");
    for phase in phases {
        let told = metrics.value("restore_phase_nanoseconds", &[("phase", phase["name"].as_str().unwrap())]);
        assert_eq!(Some(told), phase["ns"].as_u64(), "{phase}");
    }
    let all = metrics.value("restore_phase_nanoseconds", &[("phase", "all")]);
    assert_eq!(Some(all), report["total_ns"].as_u64());
    let filled = until("the memory", || {
        let filled = Metrics::read(&mut second.api).value("memory_filled_bytes_total", &[]);
        (filled >= 24 << 20).then_some(filled)
    });
    assert!(filled <= 128 << 20, "{filled}");
    // Counters begin anew, and go on.
    let mut console = serial(place);
    let (disk, _) = devices.iter().find(|(_, kind)| *kind == 2).unwrap();
    let before = Metrics::read(&mut second.api).queue("requests", "0");
    console.ok(&format!("vblk-read {disk} 0 0 8 0x2800000"));
    assert_eq!(Metrics::read(&mut second.api).queue("requests", "0"), before + 1);
}

#[test]
fn memory_is_told_as_configured_and_as_resident() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    const SIZE: u64 = 128 << 20;
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let mut monitor = Monitor::start(place, &[] as &[&str]);
    let none = Metrics::read(&mut monitor.api);
    assert_eq!(none.get("memory_bytes", &[]), None);
    // Private or shared memory: both are resident, of different kinds.
    for (shared, kind) in [(false, "anonymous"), (true, "shared")] {
        let memory = json!({ "memory": { "size": SIZE, "prefault": true, "shared": shared } });
        let console = monitor.boot(place, &memory);
        let full = Metrics::read(&mut monitor.api);
        assert_eq!(full.value("memory_bytes", &[]), SIZE);
        assert!(full.value("resident_bytes", &[("kind", kind)]) >= SIZE, "{}", full.0);
        drop(console);
        monitor.api.delete().unwrap();
        let gone = Metrics::read(&mut monitor.api);
        assert_eq!(gone.get("memory_bytes", &[]), None);
        assert!(gone.resident() < none.resident() + (SIZE >> 3), "{}", gone.0);
    }
}
