//! What a VM touches first after a restore is recorded, and read ahead by the next; memory is filled and checked while it
//! runs; and nothing of that is ever in its way.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use api_client::wire::{JobInfo, JobKind, JobState, VmState};
use cumulet_tests::{
    cumulet,
    guest::Console,
    monitor::{self, Monitor},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// First address that is the tests' own (docs/test-guest.md).
const FREE: u64 = 32 << 20;
const FILE: &str = "working-set.json";
/// Bytes of which a restored guest has none before it is asked for them: an eighth of a block.
const LITTLE: u64 = 256 << 10;

/// A snapshot of a guest that has written 24 MiB.
struct Saved {
    directory: TempDir,
    snapshot: PathBuf,
    nonce: String,
}

fn saved() -> Saved {
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let mut first = Monitor::start(place, &[] as &[&str]);
    let mut console = first.boot(place, &json!({}));
    console.ok(&format!("fill {FREE:#x} 24M 7"));
    let nonce = console.ok("nonce");
    let snapshot = save(&mut first, place, "snapshot");
    first.quit();
    Saved { directory, snapshot, nonce }
}

/// Pauses and saves.
fn save(monitor: &mut Monitor, place: &Path, name: &str) -> PathBuf {
    let target = place.join(name);
    fs::create_dir(&target).expect("it can be made");
    monitor.put("vm.pause", &Value::Null).expect("it can be paused");
    let request = json!({ "destination_url": monitor::url(&target) });
    monitor.put("vm.snapshot", &request).expect("it can be saved");
    target
}

impl Saved {
    fn place(&self) -> &Path {
        self.directory.path()
    }

    fn file(&self) -> PathBuf {
        self.snapshot.join(FILE)
    }

    fn events(&self) -> String {
        fs::read_to_string(self.place().join("events")).expect("there are events")
    }

    /// A process whose events are kept.
    fn monitor(&self) -> Monitor {
        let events = self.place().join("events");
        Monitor::start(self.place(), &["--event-monitor", &format!("path={}", events.display())])
    }

    /// The guest is the one that was saved.
    fn console(&self) -> Console {
        let mut console = monitor::serial(self.place());
        assert_eq!(console.ok("nonce"), self.nonce);
        console
    }

    /// Restores in `mode`, has the guest write the second half of what is its own and read a little of the first, which is
    /// too little to be put into place before a VM runs, and waits for the record.
    fn record(&self, mode: &str) {
        let mut monitor = self.monitor();
        let said = json!({ "memory_restore_mode": mode, "record_working_set_ms": 1500 });
        let report = monitor.restore(&self.snapshot, &said);
        assert_eq!(report["fill"]["record_working_set_ms"], 1500, "{report}");
        assert_eq!(report["fill"]["background_fill"], "none", "{report}");
        let mut console = self.console();
        console.ok(&format!("fill {:#x} 12M 8", FREE + (12 << 20)));
        assert_eq!(console.ok(&format!("verify {FREE:#x} {LITTLE} 7")), "same");
        monitor::until("the event", || self.events().contains("working-set-recorded").then_some(()));
        monitor.quit();
    }

    /// Changes a byte of the memory file.
    fn damage(&self, at: u64) {
        let file = File::options().read(true).write(true).open(self.snapshot.join("memory-ranges"));
        let file = file.expect("it is there");
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("it can be read");
        file.write_all_at(&[byte[0] ^ 1], at).expect("it can be written");
    }
}

fn metric(monitor: &mut Monitor, name: &str) -> u64 {
    let text = monitor.api.metrics().expect("there are metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name}: {text}")).parse().expect("a number")
}

fn fill_job(monitor: &mut Monitor) -> Option<JobInfo> {
    let jobs = monitor.api.jobs().expect("there are jobs");
    jobs.into_iter().find(|job| job.kind == JobKind::Fill)
}

#[test]
fn what_was_recorded_is_read_ahead_and_is_what_was_saved() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let saved = saved();
    for recorded_in in ["Cow", "OnDemand"] {
        saved.record(recorded_in);
        for mode in ["Cow", "OnDemand", "Copy"] {
            let mut monitor = saved.monitor();
            let report = monitor.restore(&saved.snapshot, &json!({ "memory_restore_mode": mode }));
            let fill = &report["fill"];
            if mode == "Copy" {
                assert_eq!((&fill["background_fill"], &fill["read_ahead"]), (&json!("none"), &json!([])));
            } else {
                assert_eq!(fill["background_fill"], "workingset", "{report}");
                assert_eq!(fill["working_set_ignored"], Value::Null, "{report}");
                let zone = &fill["read_ahead"][0];
                let before = zone["before_bytes"].as_u64().expect("a number");
                assert!((12 << 20..20 << 20).contains(&before), "{report}");
                assert_eq!(report["memory_bytes"], before, "{report}");
                assert!(zone["background_bytes"].as_u64().expect("a number") >= LITTLE, "{report}");
                // Of the rest the guest brings in what it needs itself, and whatever it is faster with.
                monitor::until("the rest", || {
                    (metric(&mut monitor, "cumulet_memory_filled_bytes_total") >= LITTLE).then_some(())
                });
            }
            let mut console = saved.console();
            assert_eq!(console.ok(&format!("verify {FREE:#x} 24M 7")), "same", "{recorded_in} {mode}");
            // A machine that was read ahead can be saved again.
            let name = format!("again-{recorded_in}-{mode}");
            console.ok(&format!("fill {:#x} 1M 9", FREE + (24 << 20)));
            let again = save(&mut monitor, saved.place(), &name);
            drop(console);
            monitor.quit();
            let mut monitor = saved.monitor();
            monitor.restore(&again, &json!({ "verify": "full" }));
            let mut console = saved.console();
            assert_eq!(console.ok(&format!("verify {:#x} 1M 9", FREE + (24 << 20))), "same");
            assert_eq!(console.ok(&format!("verify {FREE:#x} 24M 7")), "same");
            monitor.quit();
        }
        // Nothing is read ahead where that is not wanted.
        let mut monitor = saved.monitor();
        let report = monitor.restore(&saved.snapshot, &json!({ "background_fill": "none" }));
        assert_eq!(report["fill"]["read_ahead"], json!([]), "{report}");
        saved.console();
        monitor.quit();
    }
}

#[test]
fn what_was_recorded_of_a_chain_is_read_ahead_from_all_of_it() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let mut saved = saved();
    // On top: every second MiB of what the guest will touch first is another.
    let mut monitor = saved.monitor();
    monitor.restore(&saved.snapshot, &json!({}));
    let mut console = saved.console();
    let changed = (12..24).step_by(2).map(|mib| FREE + (mib << 20));
    for at in changed.clone() {
        console.ok(&format!("fill {at:#x} 1M 5"));
    }
    let sum = format!("sum {:#x} 12M", FREE + (12 << 20));
    let first = console.ok(&sum);
    let target = saved.place().join("on-top");
    fs::create_dir(&target).expect("it can be made");
    monitor.put("vm.pause", &Value::Null).expect("it can be paused");
    let request =
        json!({ "destination_url": monitor::url(&target), "parent": monitor::url(&saved.snapshot) });
    monitor.put("vm.snapshot", &request).expect("it can be saved");
    drop(console);
    monitor.quit();
    let base = std::mem::replace(&mut saved.snapshot, target);

    saved.record("Cow");
    assert!(!base.join(FILE).exists(), "the record is of the snapshot that was restored");
    for mode in ["Cow", "OnDemand"] {
        let mut monitor = saved.monitor();
        let report = monitor.restore(&saved.snapshot, &json!({ "memory_restore_mode": mode }));
        assert_eq!(report["fill"]["working_set_ignored"], Value::Null, "{report}");
        let before = report["fill"]["read_ahead"][0]["before_bytes"].as_u64().expect("a number");
        assert!((12 << 20..20 << 20).contains(&before), "{report}");
        let mut console = saved.console();
        assert_eq!(console.ok(&sum), first, "{mode}");
        for at in changed.clone() {
            assert_eq!(console.ok(&format!("verify {at:#x} 1M 5")), "same", "{mode}");
        }
        assert_eq!(console.ok(&format!("verify {FREE:#x} 12M 7")), "same", "{mode}");
        monitor.quit();
    }
}

#[test]
fn a_record_that_cannot_be_used_or_written_is_no_hindrance() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let saved = saved();
    saved.record("Cow");
    let good = fs::read(saved.file()).expect("it is there");
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    let other = self::saved();
    other.record("Cow");
    let foreign = fs::read(other.file()).expect("it is there");
    for (content, expected) in [
        (bad, ""),
        (foreign, "belongs to another snapshot"),
        (vec![b' '; 5 << 20], "at most 4194304"),
        (Vec::new(), ""),
    ] {
        fs::write(saved.file(), content).expect("it can be written");
        let mut monitor = saved.monitor();
        let report = monitor.restore(&saved.snapshot, &json!({}));
        let ignored = report["fill"]["working_set_ignored"].as_str().expect("it says why");
        assert!(ignored.contains(FILE) && ignored.contains(expected), "{ignored}");
        assert_eq!(report["fill"]["background_fill"], "none");
        let mut console = saved.console();
        assert_eq!(console.ok(&format!("verify {FREE:#x} 24M 7")), "same");
        monitor.put("vmm.shutdown", &Value::Null).expect("it can be ended");
        let (_, said) = monitor.end();
        assert!(said.contains("nothing is read ahead"), "{said}");
    }
    // What cannot be written costs the record alone. (Whoever is root writes into every directory.)
    fs::remove_file(saved.file()).expect("it is there");
    fs::create_dir(saved.file()).expect("there is room");
    let mut monitor = saved.monitor();
    monitor.restore(&saved.snapshot, &json!({ "record_working_set_ms": 20, "background_fill": "none" }));
    monitor::until("the event", || saved.events().contains("working-set-failed").then_some(()));
    saved.console();
    assert_eq!(monitor.state(), VmState::Running);
    // Where there is nothing to record, it is refused.
    monitor.put("vm.delete", &Value::Null).expect("it can be deleted");
    let said = json!({ "memory_restore_mode": "Copy", "record_working_set_ms": 20 });
    let refusal = monitor.refused("vm.restore", &monitor::restore_request(&saved.snapshot, &said));
    assert!(refusal.messages.expect("it says why").concat().contains("cannot be recorded"));
    monitor.quit();
}

#[test]
fn damage_that_is_used_stops_a_mapped_machine_and_other_damage_does_not() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let saved = saved();
    saved.damage(50 << 20);
    let mut monitor = saved.monitor();
    let report = monitor.restore(&saved.snapshot, &json!({ "memory_restore_mode": "Cow" }));
    assert_eq!((&report["lazily_checked"], &report["verified"]), (&json!(true), &json!("state")), "{report}");
    let mut console = saved.console();
    assert_eq!(console.ok(&format!("verify {FREE:#x} 16M 7")), "same");
    monitor::until("checks", || {
        (metric(&mut monitor, "cumulet_memory_checked_chunks_total") >= 64).then_some(())
    });
    // Longer than it ever waits before it looks again.
    thread::sleep(Duration::from_millis(1300));
    assert_eq!(monitor.state(), VmState::Running);
    assert!(!saved.events().contains("memory-failed"));
    console.send(&format!("verify {FREE:#x} 24M 7"));
    let (status, said) = monitor.end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("memory at 0x3200000 is damaged"), "{said}");
    assert!(saved.events().contains("memory-failed"), "{}", saved.events());
    // It was asked for, so it is had.
    let mut monitor = saved.monitor();
    let report = monitor.restore(&saved.snapshot, &json!({ "memory_restore_mode": "Cow", "verify": "off" }));
    assert_eq!(report["lazily_checked"], false);
    let mut console = monitor::serial(saved.place());
    assert!(console.ok(&format!("verify {FREE:#x} 24M 7")).starts_with("mismatch"));
    assert_eq!(metric(&mut monitor, "cumulet_memory_checked_chunks_total"), 0);
    monitor.quit();
}

#[test]
fn damage_in_what_is_read_ahead_is_found_before_the_machine_runs() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let saved = saved();
    saved.record("Cow");
    saved.damage(50 << 20);
    for mode in ["Cow", "OnDemand"] {
        let mut monitor = saved.monitor();
        let said = json!({ "memory_restore_mode": mode });
        let refusal = monitor.refused("vm.restore", &monitor::restore_request(&saved.snapshot, &said));
        assert_eq!(refusal.code.as_deref(), Some("snapshot-unusable"));
        assert!(refusal.messages.expect("it says why").concat().contains("memory at 0x3200000 is damaged"));
        // Beside it everything is well.
        monitor.restore(&saved.snapshot, &json!({ "memory_restore_mode": mode, "background_fill": "none" }));
        saved.console();
        monitor.quit();
    }
}

#[test]
fn memory_is_filled_no_faster_than_asked_for_and_can_be_saved_meanwhile() {
    const RATE: u64 = 16 << 20;
    if !cumulet::kvm_is_usable() {
        return;
    }
    let saved = saved();
    for mode in ["Cow", "OnDemand"] {
        let said = |rate: u64| json!({ "memory_restore_mode": mode, "background_fill": "all", "fill_bytes_per_second": rate });
        let mut monitor = saved.monitor();
        let begun = Instant::now();
        let report = monitor.restore(&saved.snapshot, &said(RATE));
        assert_eq!(report["fill"]["bytes_per_second"], RATE, "{report}");
        let job = monitor::until("the end of it", || {
            fill_job(&mut monitor).filter(|job| job.state != JobState::Running)
        });
        let took = begun.elapsed();
        assert_eq!((job.state, job.bytes_total), (JobState::Done, Some(job.bytes_done)), "{job:?}");
        assert!(job.bytes_done >= 24 << 20, "{job:?}");
        // The first piece waits for nothing.
        let least = Duration::from_millis((job.bytes_done - (256 << 10)) * 1000 / RATE);
        assert!(
            took >= least && Duration::from_millis(job.elapsed_ms) + Duration::from_millis(5) >= least,
            "{took:?} {job:?}"
        );
        let mut console = saved.console();
        assert_eq!(console.ok(&format!("verify {FREE:#x} 24M 7")), "same");
        drop(console);
        monitor.quit();

        let mut monitor = saved.monitor();
        monitor.restore(&saved.snapshot, &said(1 << 20));
        let done = |monitor: &mut Monitor| fill_job(monitor).map_or(0, |job| job.bytes_done);
        monitor::until("a part of it", || (done(&mut monitor) > 0).then_some(()));
        let again = save(&mut monitor, saved.place(), &format!("again-{mode}"));
        // It stood still.
        let before = done(&mut monitor);
        thread::sleep(Duration::from_millis(600));
        assert_eq!(done(&mut monitor), before);
        monitor.put("vm.resume", &Value::Null).expect("it can go on");
        monitor::until("more of it", || (done(&mut monitor) > before).then_some(()));
        // What takes half a minute ends at once with the machine.
        let ending = Instant::now();
        monitor.put("vm.delete", &Value::Null).expect("it can be deleted");
        assert!(ending.elapsed() < Duration::from_secs(5));
        assert_eq!(fill_job(&mut monitor).map(|job| job.state), Some(JobState::Failed));
        monitor.restore(&again, &json!({ "verify": "full", "memory_restore_mode": mode }));
        let mut console = saved.console();
        assert_eq!(console.ok(&format!("verify {FREE:#x} 24M 7")), "same");
        monitor.quit();
    }
}
