//! Memory zones with files of their own: what was left in one must be there, and what comes out of a snapshot comes into
//! nothing that has content.

use std::fs::{self, File};

use cumulet_tests::{
    cumulet,
    monitor::{self, Monitor},
    saved::{self, Saved},
};
use serde_json::{Value, json};

use crate::{Held, refused_alike};

const SIZE: u64 = 128 << 20;

/// A guest whose memory is one zone, shared if that is asked for, with a file if there is one.
fn saved(shared: bool, file: Option<&str>) -> Saved {
    Saved::of(|place| {
        let file = file.map(|name| place.join(name));
        let zone = json!({ "id": "low", "size": SIZE, "shared": shared, "file": file });
        let mut machine = saved::machine(place);
        machine["memory"] = json!({ "size": 0, "zones": [zone] });
        machine
    })
}

/// It is refused, tried or meant, and nothing is left of it.
fn refused(saved: &Saved, monitor: &mut Monitor, said: &Value, expected: &[&str]) {
    let held = Held::by(monitor);
    let said = refused_alike(monitor, held, &monitor::restore_request(&saved.snapshot, said));
    assert!(expected.iter().all(|part| said.contains(part)), "{said}");
}

#[test]
fn memory_that_was_left_in_a_file_must_be_there_whole() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let saved = saved(true, Some("memory"));
    let (file, moved) = (saved.place().join("memory"), saved.place().join("moved"));
    let name = file.display().to_string();
    let mut monitor = Monitor::start(saved.place(), &[] as &[&str]);
    fs::rename(&file, &moved).expect("it can be moved");
    refused(&saved, &mut monitor, &json!({}), &["memory zone low", &name, "No such file"]);
    assert!(!file.exists(), "it was made");
    File::create(&file).and_then(|file| file.set_len(SIZE - 4096)).expect("there is room");
    refused(&saved, &mut monitor, &json!({}), &["memory zone low", &name, "134213632 bytes of 134217728"]);
    assert_eq!(fs::metadata(&file).expect("it is there").len(), SIZE - 4096);
    fs::rename(&moved, &file).expect("it can be moved back");
    let report = monitor.restore(&saved.snapshot, &json!({ "verify": "full" }));
    assert_eq!(report["memory"][0]["mode"], "kept", "{report}");
    let why = report["memory"][0]["why"].as_str().expect("it says why");
    assert_eq!(why, "was left in its own file, of which there is no checksum");
    saved.proves_itself();
    monitor.quit();
}

#[test]
fn a_file_that_is_the_memory_of_a_vm_is_refused_to_others() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let file = place.join("memory");
    let said = json!({
        "memory": { "size": 0, "zones": [{ "id": "low", "size": SIZE, "shared": true, "file": file }] },
    });
    let mut first = Monitor::start(place, &[] as &[&str]);
    let mut console = first.boot(place, &said);
    let nonce = console.ok("nonce");
    let snapshot = saved::snapshot(&mut first, place);
    drop(console);

    // It stands still; but it can go on.
    let elsewhere = place.join("elsewhere");
    fs::create_dir(&elsewhere).expect("there is room");
    let mut second = Monitor::start(&elsewhere, &[] as &[&str]);
    let held = Held::by(&mut second);
    let serial = json!({ "id": "__serial", "mode": "Socket", "socket": elsewhere.join("serial") });
    let request = monitor::restore_request(&snapshot, &json!({ "overrides": [serial] }));
    let in_use = format!("memory zone low: cannot lock {}: it is in use: ", file.display());
    let refused = refused_alike(&mut second, held, &request);
    assert!(refused.contains(&in_use), "{refused}");
    second.put("vm.create", &monitor::configuration(&elsewhere, &said)).expect("it can be created");
    let refused = second.put("vm.boot", &Value::Null).expect_err("the file is in use").to_string();
    assert!(refused.contains("memory zone low: cannot lock"), "{refused}");
    second.put("vm.delete", &Value::Null).expect("it can be deleted");
    first.put("vm.delete", &Value::Null).expect("it can be deleted");
    let report = second.restore(&snapshot, &json!({ "overrides": [serial] }));
    assert_eq!(report["memory"][0]["mode"], "kept", "{report}");
    let mut console = monitor::serial(&elsewhere);
    assert_eq!(console.ok("nonce"), nonce);
    // It is the same VM that boots again.
    drop(console);
    second.put("vm.reboot", &Value::Null).expect("it can boot again");
    monitor::serial(&elsewhere).ready();
    first.quit();
    second.quit();
}

#[test]
fn memory_does_not_come_into_a_file_that_has_content() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let saved = saved(true, None);
    let file = saved.place().join("memory");
    let name = file.display().to_string();
    let said = json!({ "verify": "full", "overrides": [{ "id": "low", "file": file }] });
    let mut monitor = Monitor::start(saved.place(), &[] as &[&str]);
    fs::write(&file, vec![0xff; 64 << 20]).expect("there is room");
    refused(&saved, &mut monitor, &said, &["memory zone low", &name, "at 0x0: it must be empty or zero"]);
    let left = fs::read(&file).expect("it is there");
    assert!(left.len() == 64 << 20 && left.iter().all(|byte| *byte == 0xff), "it was changed");
    // What fails after memory was read leaves it empty, so that the same request works then.
    fs::write(&file, []).expect("it can be emptied");
    let (disk, moved) = (saved.place().join("disk"), saved.place().join("moved"));
    fs::rename(&disk, &moved).expect("it can be moved");
    refused(&saved, &mut monitor, &said, &["device _disk0"]);
    assert_eq!(fs::metadata(&file).expect("it is there").len(), 0);
    fs::rename(&moved, &disk).expect("it can be moved back");
    let report = monitor.restore(&saved.snapshot, &said);
    let memory = &report["memory"][0];
    assert_eq!(memory["mode"], "copy", "{report}");
    let why = "is shared, and what other processes touch cannot be brought in";
    assert_eq!(memory["why"], why, "{report}");
    saved.proves_itself();
    monitor.quit();
}

#[test]
fn a_mode_that_cannot_be_is_refused_or_replaced_and_the_report_says_why() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let saved = saved(false, None);
    let why = "is backed by a file in a directory of its own";
    let mut monitor = Monitor::start(saved.place(), &[] as &[&str]);
    let elsewhere = json!([{ "id": "low", "file": saved.place() }]);
    for mode in ["Cow", "OnDemand"] {
        let said = json!({ "memory_restore_mode": mode, "overrides": elsewhere });
        let expected = format!("memory mode {}: memory zone low {why}", mode.to_lowercase());
        refused(&saved, &mut monitor, &said, &[&expected]);
    }
    let said = json!({ "overrides": elsewhere });
    let mut request = monitor::restore_request(&saved.snapshot, &said);
    request["dry_run"] = json!(true);
    let tried: Value = monitor.put("vm.restore", &request).expect("it can be").json().expect("it is JSON");
    let report = monitor.restore(&saved.snapshot, &said);
    for told in [tried, report] {
        assert_eq!(told["memory"][0]["mode"], "copy", "{told}");
        assert_eq!(told["memory"][0]["why"], why, "{told}");
    }
    saved.proves_itself();
    monitor.quit();
}
