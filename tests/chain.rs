//! Snapshots of differences: small, restored like full ones in every mode, refused by the name of whoever is not what
//! was built on, and merged into one that stands alone.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use cumulet_tests::{
    api, cumulet,
    guest::{self, Console},
    monitor::{self, Monitor},
};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::{Value, json};
use tempfile::TempDir;

/// First address that is the tests' own (docs/test-guest.md).
const FREE: u64 = 32 << 20;
/// Each generation writes 64 KiB, in a MiB of its own.
const STEP: u64 = 1 << 20;
/// A page of which one word is not zero in every second generation.
const ALONE: u64 = FREE + (40 << 20);
const MODES: [&str; 3] = ["Copy", "Cow", "OnDemand"];
/// What a snapshot of differences may have at most, where 24 MiB are in the memory: 64 KiB, and what the guest and its
/// devices write of themselves.
const SMALL: u64 = 1 << 20;

/// A guest in a process of its own, and what it is to know.
struct Vm {
    monitor: Monitor,
    console: Console,
    nonce: String,
    /// How many times it has written.
    generation: u64,
}

impl Vm {
    /// A guest that has filled 24 MiB, and one page besides.
    fn boot(place: &Path, said: &Value) -> Self {
        let mut monitor = Monitor::start(place, &[] as &[&str]);
        let mut console = monitor.boot(place, said);
        console.ok(&format!("fill {FREE:#x} 24M 7"));
        console.ok(&format!("poke {ALONE:#x} 8 5"));
        let nonce = console.ok("nonce");
        Self { monitor, console, nonce, generation: 0 }
    }

    /// The guest of a snapshot, which is to be the one of that nonce and generation; and the report.
    fn restore(snapshot: &Path, mode: &str, nonce: &str, generation: u64) -> (Self, Value) {
        let place = snapshot.parent().expect("it is in a directory");
        let mut monitor = Monitor::start(place, &[] as &[&str]);
        let report = monitor.restore(snapshot, &json!({ "memory_restore_mode": mode }));
        let console = monitor::serial(place);
        (Self { monitor, console, nonce: nonce.to_owned(), generation }, report)
    }

    /// The guest writes what the next snapshot is to have.
    fn write(&mut self) {
        self.generation += 1;
        let at = FREE + self.generation * STEP;
        self.console.ok(&format!("fill {at:#x} 64K {}", self.generation));
        self.console.ok(&format!("poke {ALONE:#x} 8 {}", self.alone()));
    }

    fn alone(&self) -> u64 {
        if self.generation.is_multiple_of(2) { 5 } else { 0 }
    }

    /// The guest has what it had at its generation, and nothing of a later one.
    fn prove(&mut self) {
        assert_eq!(self.console.ok("nonce"), self.nonce);
        assert_eq!(self.console.ok(&format!("verify {FREE:#x} 1M 7")), "same");
        for generation in 1..=self.generation {
            let at = FREE + generation * STEP;
            assert_eq!(self.console.ok(&format!("verify {at:#x} 64K {generation}")), "same");
        }
        let later = FREE + (self.generation + 1) * STEP;
        let next = self.generation + 1;
        assert!(self.console.ok(&format!("verify {later:#x} 64K {next}")).starts_with("mismatch"));
        assert_eq!(guest::number(&self.console.ok(&format!("peek {ALONE:#x} 8"))), self.alone());
    }

    /// Takes a snapshot, on top of another one or not, and lets the guest go on; returns the report.
    fn take(&mut self, target: &Path, parent: Option<&Path>, track: Option<bool>) -> Value {
        fs::create_dir(target).expect("there is room");
        self.monitor.put("vm.pause", &Value::Null).expect("it can be paused");
        let request = request(target, parent, track);
        let answer =
            self.monitor.put("vm.snapshot", &request).unwrap_or_else(|error| panic!("{request}: {error:?}"));
        let report = answer.json().expect("the answer is the report");
        self.monitor.put("vm.resume", &Value::Null).expect("it can go on");
        report
    }

    /// Why no snapshot can be taken.
    fn refused(&mut self, target: &Path, parent: Option<&Path>, track: Option<bool>) -> (String, String) {
        fs::create_dir_all(target).expect("there is room");
        self.monitor.put("vm.pause", &Value::Null).expect("it can be paused");
        let refusal = self.monitor.refused("vm.snapshot", &request(target, parent, track));
        self.monitor.put("vm.resume", &Value::Null).expect("it can go on");
        assert_eq!(fs::read_dir(target).expect("it is there").count(), 0, "nothing is left of it");
        (refusal.code.expect("there is one"), refusal.messages.expect("it says why").join(": "))
    }

    fn quit(self) {
        self.monitor.quit();
    }
}

fn request(target: &Path, parent: Option<&Path>, track: Option<bool>) -> Value {
    let mut request = json!({ "destination_url": monitor::url(target) });
    if let Some(parent) = parent {
        request["parent"] = json!(monitor::url(parent));
    }
    if let Some(track) = track {
        request["track_changes"] = json!(track);
    }
    request
}

/// It is small, and was found in that way.
fn check(report: &Value, way: &str) {
    assert_eq!(report["difference"]["ways"][0]["way"], way, "{report}");
    let bytes = report["memory_bytes"].as_u64().expect("it says how many");
    assert!((64 << 10..SMALL).contains(&bytes), "{report}");
    let changed = report["difference"]["changed_bytes"].as_u64().expect("it says how many");
    assert!((bytes..SMALL).contains(&changed), "{report}");
}

/// A chain of three: `a`, `b`, `c`, each with the generation 0, 1 or 2.
struct Chain {
    directory: TempDir,
    nonce: String,
}

impl Chain {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("there is room");
        let place = directory.path();
        let mut vm = Vm::boot(place, &json!({}));
        let [a, b, c] = ["a", "b", "c"].map(|name| place.join(name));
        let whole = vm.take(&a, None, None);
        assert!(
            whole["memory_bytes"].as_u64() > Some(24 << 20) && whole.get("difference").is_none(),
            "{whole}"
        );
        vm.write();
        check(&vm.take(&b, Some(&a), None), "compared");
        vm.write();
        check(&vm.take(&c, Some(&b), None), "compared");
        vm.prove();
        let nonce = vm.nonce.clone();
        vm.quit();
        Self { directory, nonce }
    }

    fn place(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn restore(&self, name: &str, mode: &str, generation: u64) -> (Vm, Value) {
        Vm::restore(&self.place(name), mode, &self.nonce, generation)
    }
}

#[test]
fn every_snapshot_of_a_chain_lives_again_in_every_mode() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let chain = Chain::new();
    for (name, generation) in [("a", 0), ("b", 1), ("c", 2)] {
        for mode in MODES {
            let (mut vm, report) = chain.restore(name, mode, generation);
            assert_eq!(report["memory"][0]["mode"], mode.to_lowercase(), "{report}");
            vm.prove();
            vm.quit();
        }
    }
    // As a whole they can be elsewhere.
    let elsewhere = tempfile::tempdir().expect("there is room");
    for name in ["a", "b", "c"] {
        fs::rename(chain.place(name), elsewhere.path().join(name)).expect("it can be moved");
    }
    let mut monitor = Monitor::start(elsewhere.path(), &[] as &[&str]);
    monitor.restore(&elsewhere.path().join("c"), &json!({}));
    // The serial port's socket is where it was.
    let console = monitor::serial(chain.directory.path());
    let mut vm = Vm { monitor, console, nonce: chain.nonce.clone(), generation: 2 };
    vm.prove();
    vm.quit();
}

#[test]
fn what_came_out_of_a_chain_goes_on_with_it() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let chain = Chain::new();
    let mut parent = "c".to_owned();
    for (generation, (mode, way)) in
        [("Cow", "mapped"), ("OnDemand", "paged"), ("Copy", "compared"), ("OnDemand", "paged")]
            .into_iter()
            .enumerate()
    {
        let generation = generation as u64 + 2;
        let (mut vm, _) = chain.restore(&parent, mode, generation);
        vm.write();
        let name = format!("d{generation}");
        let report = vm.take(&chain.place(&name), Some(&chain.place(&parent)), None);
        check(&report, way);
        if mode == "OnDemand" {
            // What is missing stays missing, for the guest and for the snapshot.
            let phases = report["phases"].as_array().expect("there are some");
            assert!(phases.iter().all(|phase| phase["name"] != "fill"), "{report}");
        }
        vm.prove();
        vm.quit();
        parent = name;
    }
    for mode in MODES {
        let (mut vm, _) = chain.restore(&parent, mode, 6);
        vm.prove();
        // A full one of it has all that the chain has.
        let target = chain.place(&format!("full{mode}"));
        let report = vm.take(&target, None, None);
        assert!(report["memory_bytes"].as_u64() > Some(24 << 20), "{report}");
        vm.quit();
        let (mut vm, _) = chain.restore(&format!("full{mode}"), "Copy", 6);
        vm.prove();
        vm.quit();
    }
}

#[test]
fn writes_of_the_guest_and_of_its_devices_are_tracked() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let disk = place.join("disk");
    let sectors = (0..32 << 10).flat_map(|sector: u32| [u8::try_from(sector % 251).expect("it fits"); 512]);
    fs::write(&disk, sectors.collect::<Vec<_>>()).expect("there is room");
    let mut vm =
        Vm::boot(place, &json!({ "disks": [{ "path": disk, "image_type": "Raw", "readonly": true }] }));
    let listed = vm.console.ok("virtio");
    let bdf =
        listed.split('[').skip(1).find(|device| guest::field(device, "type") == 2).expect("there is a disk");
    let bdf = bdf.split_whitespace().next().expect("an address").to_owned();
    vm.console.ok(&format!("vinit {bdf}"));
    let mut below = place.join("0");
    let report = vm.take(&below, None, Some(true));
    assert_eq!(report["tracking"], true);
    let mut sums = Vec::new();
    for generation in 1..4u64 {
        vm.write();
        // The device writes what it reads.
        let at = FREE + (24 << 20) + generation * STEP;
        let said = vm.console.ok(&format!("vblk-read {bdf} 0 {} 8 {at:#x}", generation * 100));
        assert_eq!(guest::field(&said, "status"), 0, "{said}");
        sums.push((at, vm.console.ok(&format!("sum {at:#x} 4096"))));
        let target = place.join(generation.to_string());
        let report = vm.take(&target, Some(&below), Some(true));
        check(&report, "tracked");
        below = target;
    }
    // From here on they are not.
    vm.write();
    let last = place.join("last");
    check(&vm.take(&last, Some(&below), Some(false)), "tracked");
    vm.write();
    let untracked = place.join("untracked");
    check(&vm.take(&untracked, Some(&last), None), "compared");
    let nonce = vm.nonce.clone();
    vm.quit();
    for mode in MODES {
        let (mut vm, _) = Vm::restore(&untracked, mode, &nonce, 5);
        vm.prove();
        for (at, sum) in &sums {
            assert_eq!(vm.console.ok(&format!("sum {at:#x} 4096")), *sum);
        }
        vm.quit();
    }
    // What was mapped or paged in is tracked, too.
    for mode in ["Cow", "OnDemand"] {
        let (mut vm, _) = Vm::restore(&untracked, mode, &nonce, 5);
        vm.write();
        let [first, second] = ["first", "second"].map(|name| place.join(format!("{mode}-{name}")));
        vm.take(&first, Some(&untracked), Some(true));
        vm.write();
        check(&vm.take(&second, Some(&first), None), "tracked");
        vm.quit();
        let (mut vm, _) = Vm::restore(&second, "Copy", &nonce, 7);
        vm.prove();
        vm.quit();
    }
}

#[test]
fn shared_memory_is_compared_and_not_tracked() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().expect("there is room");
    let [a, b] = ["a", "b"].map(|name| directory.path().join(name));
    let mut vm = Vm::boot(directory.path(), &json!({ "memory": { "size": 128 << 20, "shared": true } }));
    let (code, said) = vm.refused(&a, None, Some(true));
    assert_eq!(code, "snapshot-failed");
    assert!(said.contains("memory zone mem0 cannot be tracked: it is shared"), "{said}");
    fs::remove_dir(&a).expect("it is empty");
    vm.take(&a, None, None);
    vm.write();
    check(&vm.take(&b, Some(&a), None), "compared");
    let nonce = vm.nonce.clone();
    vm.quit();
    let (mut vm, _) = Vm::restore(&b, "Copy", &nonce, 1);
    vm.prove();
    vm.quit();
}

/// Changes one byte of a file, or changes it back.
fn damage(file: &Path, at: usize) {
    let mut bytes = fs::read(file).expect("it is there");
    bytes[at] ^= 1;
    fs::write(file, bytes).expect("it can be written");
}

#[test]
fn an_ancestor_that_is_not_what_was_built_on_is_refused_by_name() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let chain = Chain::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| chain.place(name));
    // Another process makes other machines meanwhile.
    let aside = chain.place("aside");
    fs::create_dir(&aside).expect("there is room");
    let mut monitor = Monitor::start(&aside, &[] as &[&str]);
    let mut refused = |said: Value| {
        let refusal = monitor.refused("vm.restore", &monitor::restore_request(&c, &said));
        let said = refusal.messages.expect("it says why").join(": ");
        assert_eq!(refusal.code.as_deref(), Some("snapshot-unusable"), "{said}");
        said
    };
    // Memory of the one at the bottom, and of the one between.
    let of = |name: &str| format!("{name}/memory-ranges");
    for (file, at) in [(a.join("memory-ranges"), 50 << 20), (b.join("memory-ranges"), 33 << 20)] {
        damage(&file, at);
        for said in [json!({ "verify": "full" }), json!({ "memory_restore_mode": "Copy" })] {
            let said = refused(said);
            assert!(said.contains(&file.display().to_string()) || said.contains(&of("../a")), "{said}");
        }
        damage(&file, at);
    }
    // Gone; another in its place; damaged.
    let kept = chain.place("kept");
    fs::rename(&a, &kept).expect("it can be moved");
    let said = refused(json!({}));
    assert!(said.contains("c builds on") && said.contains("../a, which cannot be used"), "{said}");
    let mut vm = Vm::boot(chain.directory.path(), &json!({}));
    vm.take(&a, None, None);
    let said = refused(json!({}));
    assert!(said.contains("../a is not the snapshot that was built on"), "{said}");
    // Nor is it built on by another machine, or when it is damaged.
    let target = chain.place("target");
    vm.write();
    damage(&a.join("memory-ranges"), 50 << 20);
    let (code, said) = vm.refused(&target, Some(&a), None);
    assert_eq!(code, "parent-unusable", "{said}");
    assert!(said.contains("a/memory-ranges: memory at") && said.contains("is damaged"), "{said}");
    damage(&a.join("memory-ranges"), 50 << 20);
    let (code, said) = vm.refused(&target, Some(&chain.place("nowhere")), None);
    assert!(code == "parent-unusable" && said.contains("nowhere is no directory"), "{code}: {said}");
    vm.quit();
    let larger = json!({ "memory": { "size": 256 << 20 } });
    let mut vm = Vm::boot(chain.directory.path(), &larger);
    let (code, said) = vm.refused(&target, Some(&a), None);
    assert!(
        code == "parent-unusable" && said.contains("parent") && said.contains("memory"),
        "{code}: {said}"
    );
    vm.quit();
    fs::remove_dir_all(&a).expect("it can be removed");
    fs::rename(&kept, &a).expect("it can be moved back");
    monitor.quit();
    let (mut vm, _) = chain.restore("c", "Copy", 2);
    vm.prove();
    vm.quit();
}

#[test]
fn a_target_that_takes_no_more_leaves_nothing_and_the_next_attempt_works() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().expect("there is room");
    let [a, b, c] = ["a", "b", "c"].map(|name| directory.path().join(name));
    let mut vm = Vm::boot(directory.path(), &json!({}));
    vm.take(&a, None, Some(true));
    let pid = Pid::from_raw(i32::try_from(vm.monitor.pid()).expect("it is a number")).expect("it is one");
    for limit in [0, 1 << 20, (128 << 20) - 1] {
        vm.write();
        let limited = Rlimit { current: Some(limit), maximum: getrlimit(Resource::Fsize).maximum };
        let before = prlimit(Some(pid), Resource::Fsize, limited).expect("it can be limited");
        let (code, said) = vm.refused(&b, Some(&a), Some(true));
        prlimit(Some(pid), Resource::Fsize, before).expect("it can be lifted");
        assert!(code == "snapshot-failed" && said.contains("File too large"), "{code}: {said}");
        fs::remove_dir(&b).expect("it is empty");
    }
    // What was written before the attempts is not forgotten.
    check(&vm.take(&b, Some(&a), Some(true)), "tracked");
    vm.write();
    check(&vm.take(&c, Some(&b), None), "tracked");
    let nonce = vm.nonce.clone();
    vm.quit();
    let (mut vm, _) = Vm::restore(&c, "Cow", &nonce, 4);
    vm.prove();
    vm.quit();
}

#[test]
fn a_chain_is_merged_into_one_that_stands_alone() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let chain = Chain::new();
    let [from, to] = ["c", "whole"].map(|name| chain.place(name));
    fs::create_dir(&to).expect("there is room");
    let merge = |options: &[&str]| {
        let directories = [&from, &to].map(|path| path.to_str().expect("a path of ours is text"));
        cumulet::run(api::remote(), &[options, &["snapshot", "merge"], &directories].concat(), "")
    };
    // A damaged one is not made a good one.
    let bottom = chain.place("a").join("memory-ranges");
    damage(&bottom, 50 << 20);
    let refused = merge(&[]);
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.stderr.contains("cannot merge") && refused.stderr.contains("is damaged"),
        "{}",
        refused.stderr
    );
    assert_eq!(fs::read_dir(&to).expect("it is there").count(), 0);
    damage(&bottom, 50 << 20);
    // Nor is another writer disturbed.
    let other = fs::File::open(&to).expect("it is there");
    other.lock().expect("it can be locked");
    let refused = merge(&[]);
    assert!(refused.stderr.contains("another snapshot is being written to"), "{}", refused.stderr);
    drop(other);

    let merged = merge(&["--json"]);
    let report: Value = serde_json::from_str(&merged.stdout).expect("the report is JSON");
    assert_eq!((merged.code, &report["result"]["snapshots"]), (Some(0), &json!(3)), "{merged:?}");
    let manifest = |of: &Path| {
        let text = fs::read(of.join("manifest.json")).expect("it is there");
        serde_json::from_slice::<Value>(&text).expect("it is JSON")["manifest"].clone()
    };
    let (one, other) = (manifest(&from), manifest(&to));
    assert_eq!((&one["format"], &other["format"], other.get("chain")), (&json!(2), &json!(1), None));
    assert_eq!(
        (&one["memory"], &one["layout"], &one["cpu"]),
        (&other["memory"], &other["layout"], &other["cpu"])
    );
    assert_eq!(merge(&[]).code, Some(1), "there is one already");
    for name in ["a", "b", "c"] {
        fs::remove_dir_all(chain.place(name)).expect("it can be removed");
    }
    for mode in MODES {
        let (mut vm, _) = chain.restore("whole", mode, 2);
        vm.prove();
        vm.quit();
    }
}

#[test]
fn a_process_that_is_killed_on_top_of_another_snapshot_leaves_a_whole_one_or_none() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().expect("there is room");
    let mut whole = 0;
    for round in 0..8u64 {
        let place = directory.path().join(round.to_string());
        fs::create_dir(&place).expect("there is room");
        let [a, b] = ["a", "b"].map(|name| place.join(name));
        let mut vm = Vm::boot(&place, &json!({}));
        vm.take(&a, None, Some(round.is_multiple_of(2)));
        vm.write();
        vm.console.ok(&format!("fill {:#x} 32M {round}", ALONE + STEP));
        vm.monitor.put("vm.pause", &Value::Null).expect("it can be paused");
        fs::create_dir(&b).expect("there is room");
        let pid = vm.monitor.pid().to_string();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(round * 8));
                Command::new("kill").args(["-KILL", &pid]).status().expect("it can be killed");
            });
            // It may be done before, or never.
            let _ = vm.monitor.put("vm.snapshot", &request(&b, Some(&a), None));
        });
        vm.monitor.kill();
        fs::remove_file(place.join("serial")).expect("a process that was killed leaves its socket");
        if b.join("manifest.json").exists() {
            whole += 1;
            let (mut vm, _) = Vm::restore(&b, "Copy", &vm.nonce, 1);
            vm.prove();
            assert_eq!(vm.console.ok(&format!("verify {:#x} 32M {round}", ALONE + STEP)), "same");
            vm.quit();
        } else {
            // The parent is as it was, and the target takes the next.
            let (mut vm, _) = Vm::restore(&a, "Cow", &vm.nonce, 0);
            vm.prove();
            vm.monitor.put("vm.pause", &Value::Null).expect("it can be paused");
            vm.monitor.put("vm.snapshot", &request(&b, Some(&a), None)).expect("it can be saved");
            vm.quit();
        }
    }
    assert!(whole < 8, "none was killed in time");
}
