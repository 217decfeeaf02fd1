//! The files of a snapshot directory as somebody may have left them: a manifest, sections of state, and the recorded
//! working set beside them.
//!
//! Whatever is in them: the manifest is read or refused, what is read is the same when it is written and read again,
//! no checksum of memory and no page of a chain lies outside its file, no page comes from two, no section is taken for
//! one of another kind, and no page of a working set is outside its zone.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;
use vm_migration::{
    NoState, Section,
    snapshot::{CHAIN_LIMIT, Chain, Manifest, MemoryTable, PAGE_SIZE, PageRuns, WorkingSet},
};

fuzz_target!(|input: &[u8]| {
    manifest(input);
    working_set(input);
    // The same bytes as the manifest or the working set proper, so that what is behind the checksum is reached too.
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok(body) = serde_json::from_str::<&RawValue>(text)
    {
        let root = crc32c::crc32c(body.get().as_bytes());
        manifest(format!("{{\"root\":{root},\"manifest\":{}}}", body.get()).as_bytes());
        working_set(format!("{{\"crc32c\":{root},\"working_set\":{}}}", body.get()).as_bytes());
    }
    if let Ok(sections) = serde_json::from_slice::<Vec<Section>>(input) {
        for section in sections {
            let loaded = section.load::<NoState>();
            assert!(loaded.is_err() || section.kind == "none");
        }
    }
});

fn manifest(text: &[u8]) {
    let path = Path::new("manifest.json");
    let Ok(read) = Manifest::from_text(text, path) else { return };
    let memory = &read.memory;
    for (chunk, digest) in memory.chunks.iter().take(1000) {
        assert!(chunk * memory.chunk_size < memory.size);
        assert_eq!(memory.chunks.get(chunk), Some(digest));
    }
    for zone in &memory.zones {
        assert!(zone.offset.is_none_or(|offset| offset + zone.size <= memory.size));
    }
    if let Some(chain) = &read.chain {
        check(chain, memory.size);
    }
    let again = read.to_text().expect("what was read can be written");
    let again = Manifest::from_text(again.as_bytes(), path).expect("and read again");
    assert_eq!((again.memory, again.sections, again.chain), (read.memory, read.sections, read.chain));
}

/// Every page of a chain is in the file, and comes from one snapshot.
fn check(chain: &Chain, size: u64) {
    assert!(chain.length() <= CHAIN_LIMIT);
    let layers = chain.between.iter().map(|layer| &layer.pages).chain([&chain.own]);
    let mut all: Vec<_> = layers.flat_map(PageRuns::iter).collect();
    all.sort_by_key(|run| run.start);
    assert!(all.iter().all(|run| run.start < run.end && run.end * PAGE_SIZE <= size));
    assert!(all.windows(2).all(|pair| pair[0].end <= pair[1].start));
}

/// Zones of the snapshot that working sets are read for, and their sizes in bytes.
const ZONES: [(&str, u64, bool); 3] =
    [("mem0", 64 << 20, true), ("own", 1 << 20, false), ("b", 12_288, true)];

fn working_set(text: &[u8]) {
    let path = Path::new("working-set.json");
    let table = MemoryTable::new(ZONES).expect("it fits into a file");
    let Ok(read) = WorkingSet::from_text(text, path, 7, &table) else { return };
    assert_eq!(read.root, 7);
    for pages in &read.zones {
        let zone = table.zone(&pages.zone).expect("it is a zone of the snapshot");
        for list in [&pages.written, &pages.read] {
            assert!(list.iter().all(|run| run.1 > 0 && run.end() * 4096 <= zone.size));
            assert!(list.windows(2).all(|pair| pair[0].end() <= pair[1].0));
        }
    }
    let again = read.to_text().expect("what was read can be written");
    assert_eq!(WorkingSet::from_text(again.as_bytes(), path, 7, &table).expect("and read again"), read);
}
