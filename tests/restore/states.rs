//! A guest can be anywhere when it is saved: before its processors have started, with interrupts that nobody has taken.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use cumulet_tests::{
    cumulet,
    guest::{self, Console},
    monitor::{self, Monitor},
    saved::{check, drive, machine, snapshot},
};
use serde_json::{Value, json};

/// Free memory of the guest (docs/test-guest.md).
const FREE: u64 = 32 << 20;

/// Registers of the I/O APIC, and the lower half of the entry of the serial port's pin.
const IO_APIC_SELECT: u64 = 0xfec0_0000;
const IO_APIC_WINDOW: u64 = 0xfec0_0010;
const SERIAL_ENTRY: u8 = 0x18;
const SERIAL_VECTOR: u32 = 0x30;
const MASKED: u32 = 1 << 16;

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

/// What a section of a snapshot's state says.
fn section(snapshot: &Path, id: &str) -> Value {
    let state = fs::read(snapshot.join("state.json")).expect("it is there");
    let state: Value = serde_json::from_slice(&state).expect("it is JSON");
    let sections = state.as_array().expect("it is a list");
    let section = sections.iter().find(|section| section["id"] == id).expect("there is such a section");
    section["state"].clone()
}

/// How often the serial port's interrupt has come.
fn serial_interrupts(console: &mut Console) -> u64 {
    guest::field(&console.ok("interrupts"), &format!("{SERIAL_VECTOR:#x}"))
}

/// Masks the serial port's pin, or lifts the mask.
fn mask_serial(console: &mut Console, masked: bool) {
    let entry = SERIAL_VECTOR | if masked { MASKED } else { 0 };
    console.ok(&format!("poke {IO_APIC_SELECT:#x} 4 {SERIAL_ENTRY:#x}"));
    console.ok(&format!("poke {IO_APIC_WINDOW:#x} 4 {entry:#x}"));
}

/// Saves the machine into a new directory, lets it end, and restores it with `said`.
fn another_life(monitor: Monitor, place: &Path, generation: &str, said: &Value) -> (Monitor, PathBuf) {
    let of_its_own = place.join(generation);
    fs::create_dir(&of_its_own).expect("there is room");
    let mut monitor = monitor;
    let target = snapshot(&mut monitor, &of_its_own);
    monitor.quit();
    let mut monitor = Monitor::start(place, &[] as &[&str]);
    monitor.restore(&target, said);
    (monitor, target)
}

/// A guest that has interrupts off, one pending in its local APIC, and input at a serial port whose pin is masked or not,
/// lives twice more so. Then it lets interrupts in.
fn held(pin_masked: bool) {
    const VECTOR: u8 = 0x31;
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let mut monitor = Monitor::start(place, &[] as &[&str]);
    let mut console = monitor.boot(place, &machine(place));
    // Where the generation id is: a restore may write another one, and by that the guest goes on.
    let first = place.join("first");
    fs::create_dir(&first).expect("there is room");
    let manifest = fs::read(snapshot(&mut monitor, &first).join("manifest.json")).expect("it is there");
    let manifest: Value = serde_json::from_slice(&manifest).expect("it is JSON");
    let generation = manifest["manifest"]["layout"]["generation_id"].as_u64().expect("there is one");
    monitor.put("vm.resume", &Value::Null).expect("it can go on");

    mask_serial(&mut console, pin_masked);
    let before = serial_interrupts(&mut console);
    console.send(&format!("hold {VECTOR:#x} {generation:#x}"));
    let said = console.line().expect("it says so");
    assert_eq!(said.trim_end(), "held requested=1 count=0");
    // It is read after all that, and then the counts are told.
    console.send("interrupts");

    let keep = json!({ "generation_id": "keep" });
    let mut target = PathBuf::new();
    for generation in ["second", "third"] {
        // Input that has not arrived when the machine is paused stays with the sender, who goes.
        monitor::until("the input", || {
            let tried = place.join("tried");
            fs::create_dir(&tried).expect("there is room");
            let tried_into = snapshot(&mut monitor, &tried);
            let received = section(&tried_into, "__serial")["received"].as_array().map_or(0, Vec::len);
            fs::remove_dir_all(tried).expect("it can be removed");
            monitor.put("vm.resume", &Value::Null).expect("it can go on");
            (received == "interrupts\n".len()).then_some(())
        });
        drop(console);
        (monitor, target) = another_life(monitor, place, generation, &keep);
        console = monitor::serial(place);
    }
    // Nothing of it was let in so far: the count would tell.
    monitor.put("vm.delete", &Value::Null).expect("it can be deleted");
    drop(console);
    monitor.restore(&target, &json!({}));
    let mut console = monitor::serial(place);
    let said = console.reply().expect("it is let in");
    let field = |name| guest::field(&said, name);
    assert_eq!((field("requested"), field("held"), field("count")), (1, 0, 1), "{said}");
    let said = console.reply().expect("they are told");
    assert_eq!(guest::field(&said, &format!("{VECTOR:#x}")), 1, "{said}");
    let since = guest::field(&said, &format!("{SERIAL_VECTOR:#x}")) - before;
    if pin_masked {
        assert_eq!(since, 0, "a masked pin sends nothing: {said}");
        mask_serial(&mut console, false);
        assert_eq!(console.ok("ping"), "");
        assert!(serial_interrupts(&mut console) > before);
    } else {
        // The one for what had arrived waited as well.
        assert!(since >= 1, "{said}");
    }
    let devices = drive(&mut console);
    assert!(devices.len() >= 3, "{devices:?}");
    check(&mut console);
    monitor.quit();
}

#[test]
fn an_interrupt_that_waits_for_the_guest_to_let_it_in_is_taken_in_a_later_life() {
    if cumulet::kvm_is_usable() {
        held(false);
    }
}

#[test]
fn input_behind_a_masked_pin_is_read_in_a_later_life_and_the_pin_works_when_the_mask_is_lifted() {
    if cumulet::kvm_is_usable() {
        held(true);
    }
}
