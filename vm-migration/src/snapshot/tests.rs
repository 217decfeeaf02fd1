//! A snapshot directory is whole or none, and damage is refused by name.

mod chain;
mod files;
mod target;

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use serde_json::value::RawValue;
use tempfile::TempDir;

use super::*;
use crate::{
    Section,
    state::{LoadError, NoState},
};

fn raw(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).unwrap()
}

fn section(id: &str) -> Section {
    Section::save(id, &NoState {}).unwrap()
}

fn table() -> MemoryTable {
    let mut table = MemoryTable::new([("mem0", 5 * CHUNK_SIZE - 4096, true), ("file", 4096, false)]).unwrap();
    table.chunks = ChunkDigests::from_sorted([(0, 1), (1, 2), (4, 0xffff_0003)]);
    table
}

fn write(target: &Path, sections: &[Section]) -> Result<Manifest, SnapshotError> {
    finish(SnapshotWriter::create(target)?, sections)
}

fn finish(writer: SnapshotWriter, sections: &[Section]) -> Result<Manifest, SnapshotError> {
    finish_syncing(writer, sections, File::sync_all)
}

fn finish_syncing(
    writer: SnapshotWriter,
    sections: &[Section],
    sync: impl Fn(&File) -> io::Result<()>,
) -> Result<Manifest, SnapshotError> {
    finish_asking(writer, sections, &|| false, sync)
}

fn finish_asking(
    writer: SnapshotWriter,
    sections: &[Section],
    is_cancelled: &dyn Fn() -> bool,
    sync: impl Fn(&File) -> io::Result<()>,
) -> Result<Manifest, SnapshotError> {
    writer.memory().set_len(table().size).unwrap();
    let describe = |state, digests| Manifest {
        format: FORMAT,
        program: "test 1".into(),
        cpu: raw("[]"),
        layout: raw("{}"),
        config: raw("{}"),
        state,
        sections: digests,
        memory: table(),
        chain: None,
    };
    writer.finish_syncing("{}", sections, describe, is_cancelled, sync)
}

fn written() -> TempDir {
    let target = TempDir::new().unwrap();
    write(target.path(), &[section("a"), section("b")]).unwrap();
    target
}

fn refusal(target: &Path) -> String {
    let error = Snapshot::open(target, true).expect_err("the snapshot is damaged");
    let mut text = error.to_string();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Rewrites the manifest with a change and a root that fits.
fn forge(target: &Path, from: &str, to: &str) {
    let path = target.join(MANIFEST);
    let text = fs::read_to_string(&path).unwrap();
    let (_, manifest) = text.split_once("\"manifest\":").unwrap();
    let manifest = manifest.strip_suffix('}').unwrap();
    assert!(manifest.contains(from), "{from} is not in {manifest}");
    let manifest = manifest.replacen(from, to, 1);
    let root = crc32c::crc32c(manifest.as_bytes());
    fs::write(path, format!("{{\"root\":{root},\"manifest\":{manifest}}}")).unwrap();
}

#[test]
fn what_was_written_is_read() {
    let target = written();
    let snapshot = Snapshot::open(target.path(), true).unwrap();
    assert_eq!(snapshot.ids().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(snapshot.section("b").unwrap().kind, "none");
    assert!(matches!(snapshot.section("c"), Err(LoadError::Missing { .. })));
    assert_eq!(snapshot.manifest.memory, table());
    assert_eq!(snapshot.open_memory().unwrap().base().file.metadata().unwrap().len(), 5 * CHUNK_SIZE);
    let names: Vec<_> =
        fs::read_dir(target.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
}

#[test]
fn chunks_have_their_checksums() {
    let chunks = table().chunks;
    assert_eq!(chunks.get(0), Some(1));
    assert_eq!(chunks.get(1), Some(2));
    assert_eq!(chunks.get(2), None);
    assert_eq!(chunks.get(4), Some(0xffff_0003));
    assert_eq!(chunks.get(5), None);
    assert_eq!(chunks.count(), 3);
    assert_eq!(chunks.iter().map(|(chunk, _)| chunk).collect::<Vec<_>>(), [0, 1, 4]);
    let text = serde_json::to_string(&chunks).unwrap();
    assert!(text.contains("0000000100000002"), "{text}");
    assert_eq!(serde_json::from_str::<ChunkDigests>(&text).unwrap(), chunks);
    for bad in ["0000000", "0000000g", "é000000"] {
        let text = text.replace("0000000100000002", bad);
        assert!(serde_json::from_str::<ChunkDigests>(&text).is_err(), "{bad}");
    }
}

#[test]
fn every_flipped_bit_and_every_truncation_is_refused() {
    for name in [MANIFEST, STATE] {
        let target = written();
        let path = target.path().join(name);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[at / 8] ^= 1 << (at % 8);
            fs::write(&path, bad).unwrap();
            refusal(target.path());
        }
        for length in 0..good.len() {
            fs::write(&path, &good[..length]).unwrap();
            refusal(target.path());
        }
    }
}

#[test]
fn refusals_name_what_is_wrong() {
    let target = written();
    let state = target.path().join(STATE);
    let text = fs::read_to_string(&state).unwrap();
    let damaged = text.replacen("\"state\":{}", "\"state\":[]", 1);
    fs::write(&state, &damaged).unwrap();
    assert!(refusal(target.path()).contains("the state of a is damaged"));
    fs::write(&state, text).unwrap();

    let memory = target.path().join(MEMORY);
    fs::OpenOptions::new().write(true).open(&memory).unwrap().set_len(4096).unwrap();
    let snapshot = Snapshot::open(target.path(), true).unwrap();
    assert!(snapshot.open_memory().unwrap_err().to_string().contains("4096 bytes, expected"));

    forge(target.path(), "\"format\":1", "\"format\":3");
    assert!(refusal(target.path()).contains("format 3 (written by test 1)"));
}

#[test]
fn manifests_that_contradict_themselves_are_refused() {
    let cases = [
        ("\"chunk_size\":262144", "\"chunk_size\":0", "chunks of 0 bytes"),
        ("\"chunk_size\":262144", "\"chunk_size\":1000", "chunks of 1000 bytes"),
        ("\"size\":1310720", "\"size\":1310721", "1310721 bytes"),
        ("\"size\":1310720", "\"size\":0", "reaches beyond"),
        ("\"offset\":0", "\"offset\":4096", "at 0x1000"),
        ("\"first\":4", "\"first\":5", "beyond the end"),
        ("\"first\":4", "\"first\":1", "overlap"),
        ("\"first\":4", "\"first\":18446744073709551615", "beyond the end"),
        ("\"id\":\"b\"", "\"id\":\"c\"", "c: its state is missing"),
        ("\"kind\":\"none\"", "\"kind\":\"some\"", "does not list it so"),
        ("\"format\"", "\"form\"", "missing field"),
    ];
    for (from, to, expected) in cases {
        let target = written();
        forge(target.path(), from, to);
        let said = refusal(target.path());
        assert!(said.contains(expected), "{from} -> {to}: {said:?} has no {expected:?}");
    }
}

#[test]
fn a_manifest_in_a_list_is_refused() {
    let target = written();
    let path = target.path().join(MANIFEST);
    let text = fs::read_to_string(&path).unwrap();
    let (root, manifest) = text.strip_prefix("{\"root\":").unwrap().split_once(",\"manifest\":").unwrap();
    fs::write(&path, format!(" [{root},{}]", manifest.strip_suffix('}').unwrap())).unwrap();
    let said = refusal(target.path());
    assert!(said.contains(MANIFEST) && said.contains("an object is expected"), "{said}");
}

#[test]
fn a_section_that_is_there_twice_is_refused() {
    let target = TempDir::new().unwrap();
    write(target.path(), &[section("a"), section("b"), section("a")]).unwrap();
    assert!(refusal(target.path()).contains("state of a: it is there twice"));
}
