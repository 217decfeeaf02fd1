//! The files of a snapshot directory as somebody may have left them: a manifest, and sections of state.
//!
//! Whatever is in them: the manifest is read or refused, what is read is the same when it is written and read again,
//! no checksum of memory lies outside its file, and no section is taken for one of another kind.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;
use vm_migration::{NoState, Section, snapshot::Manifest};

fuzz_target!(|input: &[u8]| {
    manifest(input);
    // The same bytes as the manifest proper, so that what is behind its checksum is reached too.
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok(body) = serde_json::from_str::<&RawValue>(text)
    {
        let root = crc32c::crc32c(body.get().as_bytes());
        manifest(format!("{{\"root\":{root},\"manifest\":{}}}", body.get()).as_bytes());
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
    let again = read.to_text().expect("what was read can be written");
    let again = Manifest::from_text(again.as_bytes(), path).expect("and read again");
    assert_eq!((again.memory, again.sections), (read.memory, read.sections));
}
