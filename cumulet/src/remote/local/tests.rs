//! The commands on the golden snapshot, and on what has been made of it.

use std::{fs, path::PathBuf, process::Command};

use tempfile::TempDir;

use super::{
    super::{RemoteError, output::Form, table},
    *,
};

/// A copy of the golden snapshot of format 1.
fn golden() -> (TempDir, PathBuf) {
    unpacked("format-1")
}

/// The same for this host's processors, if there is one.
fn golden_of_this_host() -> (TempDir, PathBuf) {
    let host = fs::read_to_string("/proc/cpuinfo").unwrap();
    let intel = host.lines().any(|line| line.starts_with("vendor_id") && line.ends_with("GenuineIntel"));
    unpacked(if intel { "format-1/intel" } else { "format-1" })
}

fn unpacked(kept: &str) -> (TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let packed =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(kept).join("snapshot.tar.gz");
    let tar = Command::new("tar").arg("-xzf").arg(packed).arg("-C").arg(place.path()).status().unwrap();
    assert!(tar.success());
    let snapshot = place.path().join("snapshot");
    (place, snapshot)
}

fn told(words: &[&str]) -> Result<Told, LocalError> {
    let line = ["r", "snapshot"].into_iter().chain(words.iter().copied());
    let matches = table::command("r").try_get_matches_from(line).unwrap();
    let (name, arguments) = matches.subcommand().unwrap();
    run(name, arguments).expect("it is one of these")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_snapshot_is_inspected() {
    let (place, snapshot) = golden();
    fs::write(snapshot.join("notes"), "a note").unwrap();
    for directory in [text(&snapshot).to_owned(), format!("file://{}", snapshot.display())] {
        let Told { text, value } = told(&["inspect", &directory]).unwrap();
        for line in [
            "format      1, written by cumulet 0.1.0",
            "VM paused   2026-11-29T15:39:",
            "processors  2 of 2, AuthenticAMD, 39 physical address bits",
            "memory      36 MiB, of which 1.5 MiB are stored, in chunks of 256 KiB",
            "            mem0             36 MiB",
            "devices     __console        console  0000:00:01.0, 2 queues",
            "            _disk0           block    0000:00:02.0, 2 queues",
            "sections    __vcpu0          vcpu 1, ",
            "            __rng            virtio-pci 1, ",
            "            memory-ranges    37748736 bytes, ",
            "            notes            6 bytes, 4 KiB on the disk, not a part of it",
        ] {
            assert!(text.contains(&format!("\n{line}")), "{line:?} is not in\n{text}");
        }
        assert!(!text.contains("edited"), "{text}");
        assert_eq!(value["sections"].as_array().map(Vec::len), Some(17));
        assert_eq!(value["processors"]["features"][0], "fpu");
        assert_eq!(value["memory"]["content"], 6 * 262_144);
    }
    drop(place);
}

#[test]
fn a_whole_snapshot_is_verified_and_damage_is_named_with_its_place() {
    let (_place, snapshot) = golden();
    let Told { text: said, value } = told(&["verify", text(&snapshot)]).unwrap();
    assert!(
        said.contains("is whole") && said.contains("17 sections of state, 1572864 bytes of memory"),
        "{said}"
    );
    assert_eq!((&value["sections"], &value["edited"]), (&json!(17), &json!([])));

    let refused = || told(&["verify", text(&snapshot)]).unwrap_err().messages().join(": ");
    let memory = snapshot.join("memory-ranges");
    let whole = fs::read(&memory).unwrap();
    // In a chunk that has a checksum, and in a hole.
    for (at, named) in [(0x8_0000 + 0x4_0000 + 5, 0xc_0000), (0x100_0000 + 77, 0x100_0000)] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(&memory, damaged).unwrap();
        let said = refused();
        assert!(said.contains(&format!("{}: memory at {named:#x} is damaged", memory.display())), "{said}");
    }
    fs::write(&memory, &whole).unwrap();
    let state = snapshot.join("state.json");
    let good = fs::read_to_string(&state).unwrap();
    fs::write(&state, good.replacen("__rng", "__rnf", 1)).unwrap();
    let said = refused();
    assert!(said.contains("state.json"), "{said}");
    fs::write(&state, good).unwrap();
    fs::remove_file(snapshot.join("manifest.json")).unwrap();
    let code = told(&["verify", text(&snapshot)]).unwrap_err().code();
    assert_eq!(code, Some("snapshot-unusable"));
    assert!(refused().contains("has no manifest.json"));
}

/// Skips where there is no hypervisor, as tests of it do.
fn kvm_is_usable() -> bool {
    let opened = fs::File::options().read(true).write(true).open("/dev/kvm");
    match opened {
        Ok(_) => true,
        Err(error) if std::env::var_os("CUMULET_WITHOUT_KVM").is_some_and(|value| value == "1") => {
            println!("SKIPPED: /dev/kvm cannot be opened: {error}");
            false
        }
        Err(error) => panic!("/dev/kvm cannot be opened: {error}"),
    }
}

#[test]
fn what_this_host_lacks_is_told_all_at_once() {
    if !kvm_is_usable() {
        return;
    }
    let (place, snapshot) = golden_of_this_host();
    let said = told(&["can-restore", text(&snapshot)]).unwrap_err().messages();
    if let Some(said) = said.iter().find(|said| said.contains("CPU vendor")) {
        println!("SKIPPED: the golden snapshot is of another maker's processors: {said}");
        return;
    }
    if let Some(said) = said.iter().find(|said| said.contains("cannot be scaled")) {
        println!("SKIPPED: the golden snapshot is of a host whose counters have another frequency: {said}");
        return;
    }
    let error = RemoteError::Local(told(&["can-restore", text(&snapshot)]).unwrap_err());
    let (line, _) = Form::Plain.error(&error);
    assert!(
        line.starts_with("cumulet-remote: this host cannot restore it: machine: device __serial: "),
        "{line}"
    );
    assert!(line.contains("; machine: device _disk0: ") && line.lines().count() == 1, "{line}");
    assert!(Form::Json.error(&error).0.contains("\"code\":\"restore-failed\""));
    assert_eq!(said[0], "this host cannot restore it");
    assert!(said[1].contains("device __serial") && said[1].contains("/golden/serial"), "{said:?}");
    assert!(said[2].contains("device _disk0") && said[2].contains("/golden/disk"), "{said:?}");
    assert_eq!(said.len(), 3, "{said:?}");

    let file = place.path().join("overrides");
    let (disk, serial) = (place.path().join("disk"), place.path().join("serial"));
    let overrides = json!([
        { "id": "_disk0", "path": disk },
        { "id": "__serial", "mode": "Socket", "socket": serial },
    ]);
    fs::write(&file, overrides.to_string()).unwrap();
    let words = ["can-restore", text(&snapshot), "--overrides", text(&file), "--verify", "full"];
    let Told { text: said, value } = told(&words).unwrap();
    assert!(said.contains("can be restored here") && said.contains("memory zone mem0: cow"), "{said}");
    assert!(said.contains("overridden: _disk0.path, __serial.mode, __serial.socket"), "{said}");
    assert_eq!((&value["verified"], &value["vcpus"]), (&json!("full"), &json!(2)));
    assert!(!serial.exists(), "it is only looked at");

    fs::write(&file, "{}").unwrap();
    assert!(told(&words).unwrap_err().messages()[0].starts_with("--overrides: a list"));
    fs::write(&file, r#"[["_disk0","/elsewhere"]]"#).unwrap();
    let said = told(&words).unwrap_err().messages().join(": ");
    assert!(said.contains("0: a list, where an object is expected"), "{said}");
    fs::remove_file(&file).unwrap();
    assert!(told(&words).unwrap_err().messages()[0].starts_with("--overrides: cannot read"));
}

#[test]
fn taking_a_snapshot_is_what_it_was() {
    let words = ["r", "snapshot", "file:///var/snapshots/inspect"];
    let matches = table::command("r").try_get_matches_from(words).unwrap();
    let (name, arguments) = matches.subcommand().unwrap();
    assert!(run(name, arguments).is_none());
    for wrong in
        [&["r", "snapshot"] as &[&str], &["r", "snapshot", "inspect"], &["r", "snapshot", "verify", "a", "b"]]
    {
        assert!(table::command("r").try_get_matches_from(wrong).is_err(), "{wrong:?}");
    }
    for (words, json) in [(&["inspect", "--json", "d"] as &[&str], true), (&["inspect", "d"], false)] {
        let line = ["r", "snapshot"].into_iter().chain(words.iter().copied());
        let matches = table::command("r").try_get_matches_from(line).unwrap();
        assert_eq!(wants_json(&matches), json);
    }
}
