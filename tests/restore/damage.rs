//! Damage, seen by a whole process: it answers, it has made nothing, and it restores the next snapshot as if nothing had
//! been. Each way to damage one is tried 15,000 times in `vmm`, without a process around it.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

use api_client::ClientError;
use cumulet_tests::monitor::Monitor;
use serde_json::{Value, json};

use crate::{Held, golden::usable, text};

const FILES: [&str; 4] = ["config.json", "manifest.json", "memory-ranges", "state.json"];
const ROUNDS: u64 = 200;
const SEED: u64 = 0x5eed_0001;

/// Numbers that look random (SplitMix64), the same in every run.
struct Choices(u64);

impl Choices {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % limit
    }
}

/// Damages a file; returns what was done, and how to undo it.
fn damage(path: &Path, choices: &mut Choices) -> (String, Box<dyn FnOnce()>) {
    let file = File::options().read(true).write(true).open(path).expect("it is there");
    let length = file.metadata().expect("it has a length").len();
    let path = path.to_owned();
    if choices.below(3) == 0 {
        let whole = path.with_extension("whole");
        let kept = choices.below(length);
        fs::rename(&path, &whole).expect("it can be moved");
        let mut start = vec![0; usize::try_from(kept).expect("it is in memory")];
        file.read_exact_at(&mut start, 0).expect("it can be read");
        fs::write(&path, start).expect("there is room");
        let what = format!("{kept} of {length} bytes of {}", path.display());
        return (what, Box::new(move || fs::rename(&whole, &path).expect("it can be moved")));
    }
    let (at, bit) = (choices.below(length), choices.below(8));
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("it can be read");
    file.write_all_at(&[byte[0] ^ 1 << bit], at).expect("it can be written");
    let what = format!("bit {bit} of byte {at} of {}", path.display());
    (what, Box::new(move || file.write_all_at(&byte, at).expect("it can be written")))
}

#[test]
fn a_process_survives_200_damaged_snapshots_and_restores_the_whole_one() {
    let directory = tempfile::tempdir().expect("there is room");
    let Some(golden) = usable(directory.path()) else { return };
    let mut monitor = Monitor::start(directory.path(), &[] as &[&str]);
    let before = Held::by(&mut monitor);
    let mut choices = Choices(SEED);
    let mut refused = 0;
    for round in 0..ROUNDS {
        let name = FILES[usize::try_from(choices.below(4)).expect("it is small")];
        let (what, undo) = damage(&golden.snapshot().join(name), &mut choices);
        let what = format!("seed {SEED:#x}, round {round}: {what}");
        let mode = ["Copy", "Cow", "OnDemand"][usize::try_from(round % 3).expect("it is small")];
        let request = golden.request(&json!({ "memory_restore_mode": mode, "verify": "full" }));
        match monitor.put("vm.restore", &request) {
            Err(ClientError::Refused(refusal)) => {
                refused += 1;
                let code = refusal.code.as_deref().unwrap_or_default();
                let unusable = code == "snapshot-unusable" && text(&refusal).contains(name);
                // An edit that cannot be is told as what it is.
                assert!(unusable || name == "config.json", "{what}: {refusal}");
            }
            Err(other) => panic!("{what}: {other}"),
            // It may be edited, as long as one learns of it.
            Ok(answer) => {
                assert_eq!(name, "config.json", "{what}");
                let report: Value = answer.json().expect("the answer is the report");
                let config = |name: &str, pointer: &str| {
                    let text = fs::read(golden.snapshot().join(name)).expect("it is there");
                    let whole: Value = serde_json::from_slice(&text).expect("it is JSON");
                    whole.pointer(pointer).expect("it is there").clone()
                };
                let edited = report["edited"].as_array().is_some_and(|edited| !edited.is_empty());
                let said = config(name, "");
                // A name that nobody knows leaves the member at its default, which it had.
                let same = said.as_object().map(serde_json::Map::len)
                    == config("manifest.json", "/manifest/config").as_object().map(serde_json::Map::len);
                assert!(edited || same, "{what}: {report}");
                golden.proves_itself();
                monitor.put("vm.delete", &Value::Null).expect("it can be deleted");
            }
        }
        assert!(monitor.api.info().is_err(), "{what}: there is a VM");
        undo();
    }
    assert!(refused > ROUNDS * 3 / 4, "{refused}");
    before.is_all_of(&mut monitor);
    monitor.put("vm.restore", &golden.request(&json!({ "verify": "full" }))).expect("it is whole");
    golden.proves_itself();
    monitor.quit();
}

#[test]
fn files_of_another_snapshot_of_the_same_guest_are_refused() {
    let directory = tempfile::tempdir().expect("there is room");
    let Some(golden) = usable(directory.path()) else { return };
    // Another one of the same guest, a little later: of the same size and the same form.
    let later = directory.path().join("later");
    fs::create_dir(&later).expect("there is room");
    let mut monitor = Monitor::start(directory.path(), &[] as &[&str]);
    monitor.put("vm.restore", &golden.request(&json!({}))).expect("it can be restored");
    golden.proves_itself().ok("fill 0x2004000 16K 8");
    monitor.put("vm.pause", &Value::Null).expect("it can be paused");
    let target = json!({ "destination_url": cumulet_tests::monitor::url(&later) });
    monitor.put("vm.snapshot", &target).expect("it can be saved");
    monitor.put("vm.delete", &Value::Null).expect("it can be deleted");
    let before = Held::by(&mut monitor);
    for name in ["manifest.json", "memory-ranges", "state.json"] {
        let (own, other) = (golden.snapshot().join(name), later.join(name));
        let kept = own.with_extension("own");
        fs::rename(&own, &kept).expect("it can be moved");
        fs::copy(&other, &own).expect("there is room");
        for mode in ["Copy", "Cow", "OnDemand"] {
            let said = json!({ "memory_restore_mode": mode, "verify": "full" });
            let refusal = monitor.refused("vm.restore", &golden.request(&said));
            assert_eq!(refusal.code.as_deref(), Some("snapshot-unusable"), "{name}, {mode}: {refusal}");
        }
        fs::rename(&kept, &own).expect("it can be moved");
    }
    before.is_all_of(&mut monitor);
    monitor.put("vm.restore", &golden.request(&json!({}))).expect("it is whole again");
    golden.proves_itself();
    monitor.quit();
}

/// The kernel itself touches a guest's clocks when its processors are set up, and waits for them where they are paged in.
#[test]
fn damage_that_a_processor_meets_as_it_is_set_up_is_refused() {
    const CLOCK: u64 = 0x4b56_4d01;
    let directory = tempfile::tempdir().expect("there is room");
    let Some(golden) = usable(directory.path()) else { return };
    let mut monitor = Monitor::start(directory.path(), &[] as &[&str]);
    monitor.put("vm.restore", &golden.request(&json!({}))).expect("it can be restored");
    let mut console = golden.proves_itself();
    let page = 0x214_0000;
    console.ok(&format!("fill {page} 16K 8"));
    console.ok(&format!("msr {CLOCK} {}", page | 1));
    drop(console);
    let saved = cumulet_tests::saved::snapshot(&mut monitor, &directory.path().join("snapshot"));
    monitor.put("vm.delete", &Value::Null).expect("it can be deleted");
    let before = Held::by(&mut monitor);
    let url = cumulet_tests::monitor::url(&saved);
    let request = golden.request(&json!({ "source_url": url, "memory_restore_mode": "OnDemand" }));
    let memory =
        File::options().read(true).write(true).open(saved.join("memory-ranges")).expect("it is there");
    let (at, mut byte) = (page + 8192, [0]);
    memory.read_exact_at(&mut byte, at).expect("it can be read");
    memory.write_all_at(&[byte[0] ^ 1], at).expect("it can be written");
    let refusal = monitor.refused("vm.restore", &request);
    assert_eq!(refusal.code.as_deref(), Some("snapshot-unusable"), "{refusal}");
    assert!(text(&refusal).contains("memory-ranges: memory at 0x2140000 is damaged"), "{refusal}");
    before.is_all_of(&mut monitor);
    memory.write_all_at(&byte, at).expect("it can be written");
    monitor.put("vm.restore", &request).expect("it is whole again");
    golden.proves_itself();
    monitor.quit();
}
