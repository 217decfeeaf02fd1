//! A guest can be anywhere when it is saved: before its processors have started, with interrupts that nobody has taken.

use std::{fs, path::Path, thread, time::Duration};

use cumulet_tests::{
    cumulet, guest,
    monitor::{self, Monitor},
    saved::{check, drive, machine, snapshot},
};
use serde_json::{Value, json};

/// Free memory of the guest (docs/test-guest.md).
const FREE: u64 = 32 << 20;

/// `KVM_MP_STATE_UNINITIALIZED` of <linux/kvm.h>, as a section has it: a processor that waits for its start.
const NOT_STARTED: &str = "AQAAAA==";

/// How many processors of a snapshot have not been started.
fn not_started(snapshot: &Path) -> usize {
    fn count(value: &Value) -> usize {
        match value {
            Value::Array(values) => values.iter().map(count).sum(),
            Value::Object(members) if members.get("name") == Some(&json!("kvm.mp_state")) => {
                usize::from(members["bytes"] == NOT_STARTED)
            }
            Value::Object(members) => members.values().map(count).sum(),
            _ => 0,
        }
    }
    let state = fs::read(snapshot.join("state.json")).expect("it is there");
    count(&serde_json::from_slice(&state).expect("it is JSON"))
}

/// Milliseconds after the start of a guest at which it is saved, the last ones first.
const MOMENTS_MS: [u64; 10] = [32, 24, 16, 12, 8, 4, 2, 1, 0, 0];
/// How often a guest is saved at once, so that one is met whose second processor has not started.
const ATTEMPTS: usize = 50;

#[test]
fn a_guest_that_is_saved_while_it_boots_comes_up_all_the_same() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let (mut early, mut attempts) = (0, 0);
    let mut moments = MOMENTS_MS.to_vec();
    while let Some(after_ms) = moments.pop() {
        attempts += 1;
        let mut monitor = Monitor::start(place, &[] as &[&str]);
        let request = monitor::configuration(place, &machine(place));
        monitor.put("vm.create", &request).expect("it can be created");
        monitor.put("vm.boot", &Value::Null).expect("it can be booted");
        thread::sleep(Duration::from_millis(after_ms));
        let target = snapshot(&mut monitor, place);
        monitor.quit();
        early += usize::from(not_started(&target) > 0);
        let mut monitor = Monitor::start(place, &[] as &[&str]);
        monitor.restore(&target, &json!({}));
        let mut console = monitor::serial(place);
        // Answered when both processors run, and not before. Its first line came in the first life, or comes in
        // this, or a part of it.
        console.send("cpus 2");
        let said = loop {
            let line =
                console.line().unwrap_or_else(|| panic!("the guest has gone, saved after {after_ms} ms"));
            if ["ok ", "err "].iter().any(|answer| line.starts_with(answer)) {
                break line;
            }
        };
        assert!(said.starts_with("ok 2 "), "{after_ms} ms: {said}");
        drive(&mut console);
        check(&mut console);
        monitor.quit();
        fs::remove_dir_all(target).expect("it can be removed");
        if moments.is_empty() && early == 0 && attempts < ATTEMPTS {
            moments.push(0);
        }
    }
    if early == 0 {
        println!(
            "SKIPPED: this host starts a second processor sooner than it can be asked to save the guest"
        );
    }
}

#[test]
fn an_interrupt_that_waits_behind_a_mask_is_sent_when_that_is_lifted() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let mut monitor = Monitor::start(place, &[] as &[&str]);
    let mut console = monitor.boot(place, &machine(place));
    let devices = drive(&mut console);
    let (disk, _) = devices.iter().find(|(_, kind)| *kind == 2).expect("there is a disk");
    let interrupts = format!("vqueue-state {disk} 0");
    let before = guest::field(&console.ok(&interrupts), "interrupts");
    // Entry 0 is for changes of the configuration, entry 1 for the first queue.
    console.ok(&format!("vmask {disk} 1 1"));
    console.ok(&format!("vblk-submit {disk} 0 read 0 8 {FREE:#x}"));
    let said = console.ok(&format!("vblk-wait {disk} 0"));
    assert_eq!((guest::field(&said, "done"), guest::field(&said, "bad")), (1, 0), "{said}");
    for generation in 0..2 {
        let of_its_own = place.join(generation.to_string());
        fs::create_dir(&of_its_own).expect("there is room");
        let target = snapshot(&mut monitor, &of_its_own);
        drop(console);
        monitor.quit();
        monitor = Monitor::start(place, &[] as &[&str]);
        monitor.restore(&target, &json!({}));
        console = monitor::serial(place);
        assert_eq!(guest::field(&console.ok(&interrupts), "interrupts"), before);
    }
    console.ok(&format!("vmask {disk} 1 0"));
    monitor::until("the interrupt", || {
        (guest::field(&console.ok(&interrupts), "interrupts") > before).then_some(())
    });
    assert_eq!(guest::field(&console.ok(&interrupts), "interrupts"), before + 1);
    check(&mut console);
    monitor.quit();
}
