//! The client program on directories of snapshots, and on the report of a restore.

use std::{fs, path::Path};

use cumulet_tests::{
    api,
    cumulet::{self, Ran},
    monitor::{self, Monitor},
};
use serde_json::{Value, json};

use crate::golden::usable;

fn remote(arguments: &[&str]) -> Ran {
    cumulet::run(api::remote(), arguments, "")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ours is text")
}

/// What it says, when it succeeds.
fn said(arguments: &[&str]) -> String {
    let ran = remote(arguments);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{arguments:?}: {ran:?}");
    ran.stdout
}

/// What it complains of.
fn complaint(arguments: &[&str]) -> String {
    let ran = remote(arguments);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{arguments:?}: {ran:?}");
    ran.stderr
}

#[test]
fn a_chain_is_inspected_verified_and_held_against_this_host() {
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let Some(golden) = usable(place) else { return };
    // A guest of the golden snapshot goes on, and is saved on top of it.
    let top = place.join("top");
    fs::create_dir(&top).expect("there is room");
    let mut monitor = Monitor::start(place, &[] as &[&str]);
    monitor.put("vm.restore", &golden.request(&json!({}))).expect("it can be restored");
    golden.proves_itself().ok("fill 0x2004000 16K 8");
    monitor.put("vm.pause", &Value::Null).expect("it can be paused");
    let request =
        json!({ "destination_url": monitor::url(&top), "parent": monitor::url(&golden.snapshot()) });
    monitor.put("vm.snapshot", &request).expect("it can be saved");
    monitor.quit();

    let told = said(&["snapshot", "inspect", text(&top)]);
    assert!(told.contains("\nformat      2, ") && told.contains("snapshot, checksum 0x"), "{told}");
    let told: Value =
        serde_json::from_str(&said(&["snapshot", "inspect", "--json", text(&top)])).expect("it is JSON");
    let chain = &told["result"]["chain"];
    assert_eq!((chain.as_array().map(Vec::len), &chain[0]["pages"]), (Some(1), &Value::Null), "{told}");
    let below = said(&["snapshot", "inspect", text(&golden.snapshot()), "--json"]);
    assert!(below.contains(chain[0]["root"].as_str().expect("it is text")), "{below}");
    assert!(said(&["snapshot", "verify", text(&top)]).contains("is whole"));

    // As its own configuration has them, disk and serial port are where they were.
    let told = said(&["snapshot", "can-restore", text(&top), "--verify", "full"]);
    assert!(told.contains("can be restored here") && told.contains("_disk0"), "{told}");
    let moved = place.join("moved");
    fs::rename(golden.disk(), &moved).expect("it can be moved");
    let told = complaint(&["snapshot", "can-restore", text(&top)]);
    assert!(told.contains("device _disk0") && told.contains(text(&golden.disk())), "{told}");
    fs::rename(&moved, golden.disk()).expect("it can be moved back");

    // Damage below is damage, and it is said where.
    let memory = golden.snapshot().join("memory-ranges");
    let mut bytes = fs::read(&memory).expect("it is there");
    bytes[0x8_0000 + 0x4_0000 + 5] ^= 1;
    fs::write(&memory, &bytes).expect("it can be written");
    let told = complaint(&["snapshot", "verify", text(&top)]);
    assert!(told.contains("snapshot/memory-ranges: memory at 0xc0000 is damaged"), "{told}");
    // One that is gone is missed.
    fs::remove_dir_all(golden.snapshot()).expect("it can be removed");
    for command in ["inspect", "verify", "can-restore"] {
        let told = complaint(&["snapshot", command, text(&top)]);
        assert!(told.contains("snapshot") && told.contains("No such file"), "{command}: {told}");
    }
}

#[test]
fn a_restore_tells_its_report_as_it_is_asked_to() {
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let Some(golden) = usable(place) else { return };
    let config = golden.snapshot().join("config.json");
    let before = fs::read_to_string(&config).expect("it is there");
    let edited = before.replace("/golden/", &format!("{}/", place.display()));
    fs::write(&config, edited).expect("it can be written");
    let mut monitor = Monitor::start(place, &[] as &[&str]);
    let picture = place.join("report.svg");
    let socket = place.join("api");
    let restore = format!("source_url={},resume=on,tsc=host", monitor::url(&golden.snapshot()));
    let svg = format!("--report=svg:{}", picture.display());
    for (shape, expected) in [("--report", "phase"), ("--report=json", "\"total_ns\":"), (&svg, "")] {
        let told = said(&["--api-socket", text(&socket), "restore", &restore, shape]);
        assert!(told.contains(expected) && (told.is_empty() == expected.is_empty()), "{shape}: {told}");
        if shape == "--report" {
            assert!(
                told.starts_with("restored ") && told.contains("  commits                             1"),
                "{told}"
            );
        }
        golden.proves_itself();
        monitor.put("vm.delete", &Value::Null).expect("it can be deleted");
    }
    let drawn = fs::read_to_string(&picture).expect("it is there");
    assert!(drawn.starts_with("<svg ") && drawn.contains("run processors"), "{drawn}");
    // A picture that cannot be kept is no reason to have no VM, and is told.
    let nowhere = format!("--report=svg:{}/nowhere/a.svg", place.display());
    let told = complaint(&["--api-socket", text(&socket), "restore", &restore, &nowhere]);
    assert!(told.contains("the VM is restored, but its report cannot be written to"), "{told}");
    golden.proves_itself();
    monitor.quit();
}
