//! Persistent memory: what the guest writes there is in the file when it has flushed, devices reach it, and it is where it
//! was after a restore, in another file if that is asked for.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use cumulet_tests::{
    api, cumulet,
    guest::{self, Console},
    monitor::{self, Monitor},
    saved,
};
use serde_json::{Value, json};

use crate::{Held, text};

const SIZE: u64 = 4 << 20;

/// Type of the device (virtio 1.3 section 5).
const PMEM: u64 = 27;
const DISK: u64 = 2;

/// A file of that many bytes.
fn file(place: &Path, name: &str, size: u64) -> PathBuf {
    let path = place.join(name);
    File::create(&path).and_then(|file| file.set_len(size)).expect("there is room");
    path
}

/// A machine with persistent memory, as `said` of it has it.
fn machine(place: &Path, said: &Value) -> Value {
    let mut machine = saved::machine(place);
    machine["pmem"] = json!([said]);
    machine
}

/// A guest that has set everything up.
struct Guest {
    console: Console,
    bdf: String,
    disk: String,
    start: u64,
}

impl Guest {
    fn booted(monitor: &mut Monitor, place: &Path, said: &Value) -> Self {
        let mut console = monitor.boot(place, said);
        let devices = saved::drive(&mut console);
        let of = |kind: u64| devices.iter().find(|(_, is)| *is == kind).expect("there is one").0.clone();
        let (bdf, disk) = (of(PMEM), of(DISK));
        let told = console.ok(&format!("vpmem {bdf}"));
        let (start, size) = (guest::field(&told, "start"), guest::field(&told, "size"));
        assert_eq!((size, start % (2 << 20)), (SIZE, 0), "{told}");
        Self { console, bdf, disk, start }
    }

    /// The same after a restore.
    fn again(self, place: &Path) -> Self {
        Self { console: monitor::serial(place), ..self }
    }

    fn at(&self, offset: u64) -> u64 {
        self.start + offset
    }

    fn write(&mut self, offset: u64, word: u64) {
        let at = self.at(offset);
        self.console.ok(&format!("poke {at:#x} 8 {word:#x}"));
    }

    fn read(&mut self, offset: u64) -> u64 {
        let at = self.at(offset);
        guest::number(self.console.ok(&format!("peek {at:#x} 8")).trim())
    }

    fn flush(&mut self) {
        let bdf = &self.bdf;
        assert_eq!(self.console.ok(&format!("vpmem-flush {bdf}")), "ret=0x0");
    }

    fn order(&mut self, order: &str) -> String {
        self.console.ok(order)
    }
}

fn word_of(path: &Path, offset: u64) -> u64 {
    let mut word = [0; 8];
    File::open(path).and_then(|file| file.read_exact_at(&mut word, offset)).expect("it is all there");
    u64::from_le_bytes(word)
}

fn flushes(monitor: &mut Monitor, id: &str) -> u64 {
    let counters = monitor.api.counters().expect("there is a VM");
    let counters = serde_json::to_value(counters).expect("it is JSON");
    counters[id]["flush_ops"].as_u64().unwrap_or_else(|| panic!("{id} counts no flushes: {counters}"))
}

#[test]
fn it_is_where_it_was_in_every_memory_mode() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let stores = saved::quick_directory();
    let store = file(stores.path(), "store", SIZE);
    let mut first = Monitor::start(place, &[] as &[&str]);
    let said = machine(place, &json!({ "id": "store", "file": store }));
    let mut guest = Guest::booted(&mut first, place, &said);
    let start = guest.start;
    let map = guest.order("mem");
    assert!(!map.contains(&format!("{start:#x}")), "it is no RAM: {map}");

    let info = serde_json::to_value(first.api.info().expect("there is a VM")).expect("it is JSON");
    let resources = &info["device_tree"]["store"]["resources"];
    assert_eq!(*resources, json!([{ "MmioAddressRange": { "base": start, "size": SIZE } }]), "{info}");
    assert_eq!(info["memory_actual_size"], json!(128 << 20), "it is no RAM");

    guest.order(&format!("fill {start:#x} 1M 5"));
    guest.write(1 << 20, 0x1122_3344_5566_7788);
    guest.flush();
    assert_eq!(word_of(&store, 1 << 20), 0x1122_3344_5566_7788);
    assert_eq!(flushes(&mut first, "store"), 1);
    let (bdf, disk) = (guest.bdf.clone(), guest.disk.clone());
    assert_eq!(guest.order(&format!("vpmem-flush {bdf} 7")), "ret=0xffffffff", "that is no flush");

    // The disk writes what is in the window, and reads into it.
    let (from, to) = (guest.at(1 << 20), guest.at(2 << 20));
    assert!(guest.order(&format!("vblk-write {disk} 0 16 8 {from:#x}")).starts_with("status=0 "));
    assert_eq!(word_of(&place.join("disk"), 16 * 512), 0x1122_3344_5566_7788);
    assert!(guest.order(&format!("vblk-read {disk} 1 16 8 {to:#x}")).starts_with("status=0 "));
    assert_eq!(word_of(&store, 2 << 20), 0x1122_3344_5566_7788);

    let snapshot = saved::snapshot(&mut first, place);
    first.quit();
    for (number, mode) in (1..).zip(["Copy", "Cow", "OnDemand"]) {
        for commit in ["once", "each"] {
            let mut monitor = Monitor::start(place, &[] as &[&str]);
            let said = json!({ "memory_restore_mode": mode, "commit": commit });
            let report = monitor.restore(&snapshot, &said);
            // Main memory, and the window.
            assert_eq!(report["totals"]["slots_added"]["count"], 2, "{report}");
            assert_eq!(report["totals"]["slots_removed"]["count"], 0, "{report}");
            if commit == "once" {
                assert_eq!(report["totals"]["commits"], 1, "{report}");
            }
            guest = guest.again(place);
            assert_eq!(guest.order(&format!("verify {start:#x} 1M 5")), "same");
            guest.write(3 << 20, number);
            guest.flush();
            assert_eq!(word_of(&store, 3 << 20), number);
            assert!(guest.order(&format!("vblk-write {disk} 0 16 8 {from:#x}")).starts_with("status=0 "));
            saved::check(&mut guest.console);
            monitor.quit();
        }
    }
}

#[test]
fn another_file_takes_its_place_and_one_that_cannot_is_refused_by_its_id() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let stores = saved::quick_directory();
    let store = file(stores.path(), "store", SIZE);
    let mut first = Monitor::start(place, &[] as &[&str]);
    let said = machine(place, &json!({ "file": store }));
    let mut guest = Guest::booted(&mut first, place, &said);
    guest.write(0, 1);
    guest.flush();
    let snapshot = saved::snapshot(&mut first, place);

    let elsewhere = place.join("elsewhere");
    fs::create_dir(&elsewhere).expect("there is room");
    let mut monitor = Monitor::start(&elsewhere, &[] as &[&str]);
    let held = Held::by(&mut monitor);
    let serial = elsewhere.join("serial");
    let request = |path: Option<&Path>| {
        let mut overrides = vec![json!({ "id": "__serial", "mode": "Socket", "socket": serial })];
        overrides.extend(path.map(|path| json!({ "id": "_pmem1", "file": path })));
        monitor::restore_request(&snapshot, &json!({ "overrides": overrides }))
    };
    let refused = |monitor: &mut Monitor, request: &Value, tried: bool, code: &str, expected: &[&str]| {
        for dry_run in if tried { &[true, false][..] } else { &[false][..] } {
            let mut request = request.clone();
            request["dry_run"] = json!(dry_run);
            let refusal = monitor.refused("vm.restore", &request);
            let said = text(&refusal);
            assert_eq!(refusal.code.as_deref(), Some(code), "{said}");
            assert!(expected.iter().all(|part| said.contains(part)), "{request}: {said}");
            held.is_all_of(monitor);
        }
    };
    let missing = stores.path().join("missing");
    refused(&mut monitor, &request(Some(&missing)), true, "override-invalid", &["_pmem1: file: there is no"]);
    let short = file(stores.path(), "short", SIZE - 1);
    let expected = ["device _pmem1", "short", "has 4194303 bytes"];
    refused(&mut monitor, &request(Some(&short)), true, "restore-failed", &expected);
    let why = ["device _pmem1", "size is needed"];
    refused(&mut monitor, &request(Some(place)), true, "restore-failed", &why);
    // The disk is the first guest's too: it has to go before anything else can be had.
    first.put("vm.resume", &Value::Null).expect("it can go on");
    assert_eq!(guest.read(0), 1);
    first.put("vm.delete", &Value::Null).expect("it can be deleted");
    // Somebody else has the file.
    let mut reads = machine(place, &json!({ "file": store, "discard_writes": true }));
    reads["disks"] = json!([]);
    let holder = first.boot(place, &reads);
    let locked = ["device _pmem1", "cannot lock", "in use"];
    refused(&mut monitor, &request(None), false, "restore-failed", &locked);
    drop(holder);
    first.put("vm.delete", &Value::Null).expect("it can be deleted");

    // As an override, and as an edit; a file that has grown does too.
    let grown = file(stores.path(), "grown", SIZE + (1 << 20) + 3);
    let tried = {
        let mut tried = request(Some(&grown));
        tried["dry_run"] = json!(true);
        monitor.put("vm.restore", &tried).expect("it would do").json::<Value>().expect("it is JSON")
    };
    assert_eq!(tried["overridden"], json!(["__serial.mode", "__serial.socket", "_pmem1.file"]), "{tried}");
    monitor.put("vm.restore", &request(Some(&grown))).expect("nothing is missing any more");
    let mut guest = guest.again(&elsewhere);
    assert_eq!(guest.read(0), 0, "it is another file");
    guest.write(8, 2);
    guest.flush();
    assert_eq!((word_of(&grown, 8), word_of(&store, 8), word_of(&store, 0)), (2, 0, 1));
    saved::check(&mut guest.console);
    monitor.put("vm.delete", &Value::Null).expect("it can be deleted");

    let config = snapshot.join("config.json");
    let mut edited: Value =
        serde_json::from_str(&fs::read_to_string(&config).expect("it is there")).expect("it is JSON");
    edited["pmem"][0]["file"] = json!(grown);
    fs::write(&config, edited.to_string()).expect("it can be written");
    let report: Value =
        monitor.put("vm.restore", &request(None)).expect("it can be restored").json().expect("it is JSON");
    assert_eq!(report["edited"], json!(["pmem.0.file"]), "{report}");
    let mut guest = guest.again(&elsewhere);
    assert_eq!(guest.read(8), 2);
    monitor.quit();

    fs::remove_file(&grown).expect("it is there");
    let directory = snapshot.to_str().expect("it is text");
    let ran = cumulet::run(api::remote(), &["snapshot", "can-restore", directory], "");
    assert_ne!(ran.code, Some(0), "{ran:?}");
    let said = format!("{}{}", ran.stdout, ran.stderr);
    assert!(said.contains("_pmem1") && said.contains("grown"), "{said}");
    first.quit();
}

#[test]
fn what_would_be_lost_keeps_a_snapshot_from_being_taken() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let stores = saved::quick_directory();
    let store = file(stores.path(), "store", SIZE);
    let kept = File::options().write(true).open(&store).expect("it is there");
    kept.write_all_at(&7u64.to_le_bytes(), 4096).expect("there is room");
    let target = place.join("target");
    fs::create_dir(&target).expect("there is room");
    let request = json!({ "destination_url": monitor::url(&target) });

    let nameless = json!({ "id": "scratch", "file": place, "size": SIZE });
    for pmem in [json!({ "id": "scratch", "file": store, "discard_writes": true }), nameless] {
        let mut monitor = Monitor::start(place, &[] as &[&str]);
        let mut guest = Guest::booted(&mut monitor, place, &machine(place, &pmem));
        let before = if pmem["discard_writes"] == true { 7 } else { 0 };
        assert_eq!(guest.read(4096), before);
        guest.write(8192, 3);
        guest.flush();
        assert_eq!(guest.read(8192), 3);
        assert_eq!((word_of(&store, 8192), word_of(&store, 4096)), (0, 7), "the file is as it was");
        monitor.put("vm.pause", &Value::Null).expect("it can be paused");
        let refusal = monitor.refused("vm.snapshot", &request);
        let said = text(&refusal);
        assert_eq!(refusal.code.as_deref(), Some("snapshot-failed"), "{said}");
        assert!(said.contains("device scratch") && said.contains("would be missing"), "{said}");
        assert_eq!(fs::read_dir(&target).expect("it is there").count(), 0, "nothing is left");
        monitor.put("vm.resume", &Value::Null).expect("it can go on");
        assert_eq!(guest.read(8192), 3);
        saved::check(&mut guest.console);
        monitor.quit();
    }

    // Nothing was written: what is in the file is all there is.
    let mut monitor = Monitor::start(place, &[] as &[&str]);
    let said = machine(place, &json!({ "file": store, "discard_writes": true }));
    let mut guest = Guest::booted(&mut monitor, place, &said);
    assert_eq!(guest.read(4096), 7);
    let snapshot = saved::snapshot(&mut monitor, place);
    monitor.quit();
    let mut monitor = Monitor::start(place, &[] as &[&str]);
    monitor.restore(&snapshot, &json!({}));
    let mut guest = guest.again(place);
    assert_eq!(guest.read(4096), 7);
    guest.write(4096, 8);
    assert_eq!(guest.read(4096), 8);
    assert_eq!(word_of(&store, 4096), 7);
    saved::check(&mut guest.console);
    monitor.quit();
}

#[test]
fn it_is_added_before_boot_and_removed_again() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let stores = saved::quick_directory();
    let store = file(stores.path(), "store", SIZE);
    let mut monitor = Monitor::start(place, &[] as &[&str]);
    let said = saved::machine(place);
    monitor.put("vm.create", &monitor::configuration(place, &said)).expect("it can be created");
    let socket = place.join("api");
    let remote = |arguments: &[&str]| {
        let socket = socket.to_str().expect("it is text");
        cumulet::run(api::remote(), &[&["--api-socket", socket][..], arguments].concat(), "")
    };
    let store = store.to_str().expect("it is text");
    for id in ["one", "other"] {
        let keys = format!("id={id},file={store},discard_writes=on");
        let ran = remote(&["add-pmem", &keys]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
    let ran = remote(&["add-pmem", "file=/f,size=4K"]);
    assert_ne!(ran.code, Some(0), "{ran:?}");
    let ran = remote(&["remove-device", "one"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    monitor.put("vm.boot", &Value::Null).expect("it can be booted");
    let mut console = monitor::serial(place);
    console.ready();
    let devices = saved::drive(&mut console);
    assert_eq!(devices.iter().filter(|(_, kind)| *kind == PMEM).count(), 1);
    saved::check(&mut console);
    let config = serde_json::to_value(monitor.api.info().expect("there is a VM").config).expect("it is JSON");
    assert_eq!(config["pmem"].as_array().map(Vec::len), Some(1), "{config}");
    assert_eq!((&config["pmem"][0]["id"], &config["pmem"][0]["file"]), (&json!("other"), &json!(store)));
    // Hotplug is another matter, for all devices.
    for (endpoint, body) in
        [("vm.add-pmem", json!({ "file": store })), ("vm.remove-device", json!({ "id": "other" }))]
    {
        let refusal = monitor.refused(endpoint, &body);
        assert_eq!(refusal.code.as_deref(), Some("unsupported"), "{}", text(&refusal));
    }
    monitor.quit();
}
