//! Bits that flip, files that end early, and files of another snapshot: 10,000 of the first and 5,000 of the second,
//! over all files of a real snapshot, and fewer over those of a snapshot of differences and the one that it builds on.
//! Each is refused; for `config.json`, which may be edited, the promise is another one: it is refused, or it says the same
//! machine as before, or the edit is reported. What no restore reads, pages that another snapshot of the chain supplies,
//! may be anything.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
};

use rustix::fs::{FallocateFlags, fallocate};
use vm_migration::snapshot::{CONFIG, MANIFEST, MEMORY, STATE, Snapshot};

use super::{super::Verify, golden::Golden};
use crate::error::chain;

/// What all choices come from. Another one finds other damage.
const SEED: u64 = 0x00c0_ffee_5eed;

/// For each of the four files.
const FLIPS: usize = 10_000 / 4;
const TRUNCATIONS: usize = 5_000 / 4;

/// For each kind of damage to each file of a chain.
const FLIPS_OF_CHAIN: usize = 250;
const TRUNCATIONS_OF_CHAIN: usize = 125;

const PAGE: u64 = 4096;

/// Numbers that look random (SplitMix64), the same in every run.
struct Choices(u64);

impl Choices {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// What a restore of a damaged snapshot came to.
enum Outcome {
    Refused(String),
    /// The configuration says the same machine as the one that was saved.
    Equal,
    /// It says another one, and the report says so.
    Reported,
    /// It says another one, and nobody would know.
    Unnoticed,
}

fn outcome(golden: &Golden, verify: Verify) -> Outcome {
    match golden.rehearse(verify) {
        Err(error) => Outcome::Refused(chain(&error)),
        Ok(rehearsal) if !rehearsal.edited.is_empty() => Outcome::Reported,
        Ok(_) => {
            let snapshot = Snapshot::open(&golden.snapshot(), true).unwrap();
            let config = |text: &str| serde_json::from_str::<api_client::wire::VmConfig>(text).unwrap();
            match config(&snapshot.config) == config(snapshot.manifest.config.get()) {
                true => Outcome::Equal,
                false => Outcome::Unnoticed,
            }
        }
    }
}

fn must_be_refused(golden: &Golden, name: &str, what: &str) {
    match outcome(golden, Verify::Full) {
        // A refusal that does not name the file helps nobody.
        Outcome::Refused(said) => assert!(said.contains(name), "{what}: {said}"),
        Outcome::Equal | Outcome::Reported | Outcome::Unnoticed => panic!("{what}: it is restored"),
    }
}

/// Which bits are flipped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bits {
    All,
    /// Those of pages that are not zero: most of memory is a hole.
    Written,
}

/// Flips bits of a file, one at a time, and sees to it that all is as before afterwards. `judge` is told of each, and in
/// which page of the file it is.
fn flip(golden: &Golden, name: &str, bits: Bits, count: usize, mut judge: impl FnMut(&str, u64)) {
    let file = File::options().read(true).write(true).open(golden.file(name)).unwrap();
    let length = file.metadata().unwrap().len();
    let written = written(&file, length);
    let mut choices = Choices(SEED);
    for round in 0..count {
        let at = match bits {
            Bits::All => choices.below(length),
            Bits::Written => {
                let page = written[usize::try_from(choices.below(written.len() as u64)).unwrap()];
                (page * PAGE + choices.below(PAGE)).min(length - 1)
            }
        };
        let bit = choices.below(8);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
        let page = at / PAGE;
        judge(&format!("seed {SEED:#x}, round {round}: bit {bit} of byte {at} of {name}"), page);
        file.write_all_at(&byte, at).unwrap();
        if written.binary_search(&page).is_err() {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&file, punch, page * PAGE, PAGE).unwrap();
        }
    }
    golden.rehearse(Verify::Full).expect("all is as before");
}

/// The pages of a file that are not zero.
fn written(file: &File, length: u64) -> Vec<u64> {
    let mut bytes = [0; 4096];
    let mut is_written = |page: &u64| {
        let read = file.read_at(&mut bytes, page * PAGE).unwrap();
        bytes[..read].iter().any(|byte| *byte != 0)
    };
    (0..length.div_ceil(PAGE)).filter(|page| is_written(page)).collect()
}

/// Cuts a file off, shorter each time.
fn truncate(golden: &Golden, name: &str, count: usize) {
    let path = golden.file(name);
    let file = File::options().write(true).open(&path).unwrap();
    let length = file.metadata().unwrap().len();
    let mut choices = Choices(!SEED);
    let mut lengths: Vec<u64> = (0..count).map(|_| choices.below(length)).collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    for kept in lengths {
        file.set_len(kept).unwrap();
        must_be_refused(golden, name, &format!("seed {:#x}: {kept} of {length} bytes of {name}", !SEED));
    }
}

fn flips_and_truncations_are_refused(name: &str) {
    let golden = Golden::unpacked();
    flip(&golden, name, Bits::All, FLIPS, |what, _| must_be_refused(&golden, name, what));
    truncate(&golden, name, TRUNCATIONS);
}

#[test]
fn damage_to_the_manifest_is_refused() {
    flips_and_truncations_are_refused(MANIFEST);
}

#[test]
fn damage_to_the_state_is_refused() {
    flips_and_truncations_are_refused(STATE);
}

fn flips_of_memory_are_refused(bits: Bits) {
    let golden = Golden::unpacked();
    flip(&golden, MEMORY, bits, FLIPS / 2, |what, _| must_be_refused(&golden, MEMORY, what));
}

#[test]
fn damage_to_what_is_in_memory_is_refused() {
    flips_of_memory_are_refused(Bits::Written);
}

#[test]
fn damage_to_memory_that_is_mostly_holes_is_refused() {
    flips_of_memory_are_refused(Bits::All);
}

#[test]
fn memory_that_ends_early_is_refused() {
    truncate(&Golden::unpacked(), MEMORY, TRUNCATIONS);
}

fn damage_to_the_configuration(golden: &Golden, flips: usize, truncations: usize) {
    let (mut refused, mut equal, mut reported) = (0, 0, 0);
    flip(golden, CONFIG, Bits::All, flips, |what, _| match outcome(golden, Verify::State) {
        Outcome::Refused(said) => {
            assert!(!said.is_empty(), "{what}");
            refused += 1;
        }
        Outcome::Equal => equal += 1,
        Outcome::Reported => reported += 1,
        Outcome::Unnoticed => panic!("{what}: it is restored, and another machine"),
    });
    // All three happen; a test in which one does not has lost its way.
    assert!(refused > flips / 2 && equal > 0 && reported > 0, "{refused}, {equal}, {reported}");
    truncate(golden, CONFIG, truncations);
}

#[test]
fn damage_to_the_configuration_is_refused_or_comes_to_nothing_or_is_reported() {
    damage_to_the_configuration(&Golden::unpacked(), FLIPS, TRUNCATIONS);
}

#[test]
fn memory_of_another_snapshot_is_refused() {
    let (golden, other) = (Golden::unpacked(), Golden::unpacked());
    let copy = golden.file("copy");
    fs::rename(golden.file(MEMORY), &copy).unwrap();
    // One that was never written, as long as it should be.
    let empty = File::create(golden.file(MEMORY)).unwrap();
    empty.set_len(fs::metadata(&copy).unwrap().len()).unwrap();
    must_be_refused(&golden, MEMORY, "a memory file without anything in it");
    // One in which two chunks have changed places: every byte is there, and every chunk is one of the snapshot's.
    let manifest = Snapshot::open(&golden.snapshot(), true).unwrap().manifest;
    let chunks: Vec<u64> = manifest.memory.chunks.iter().map(|(chunk, _)| chunk).collect();
    let size = manifest.memory.chunk_size;
    let mut content = fs::read(&copy).unwrap();
    let place = |chunk: u64| usize::try_from(chunk * size).unwrap();
    let (first, last) = (place(chunks[0]), place(chunks[chunks.len() - 1]));
    let (low, high) = content.split_at_mut(last);
    let size = usize::try_from(size).unwrap();
    low[first..first + size].swap_with_slice(&mut high[..size]);
    fs::write(golden.file(MEMORY), content).unwrap();
    must_be_refused(&golden, MEMORY, "two chunks that have changed places");
    fs::rename(other.file(MEMORY), golden.file(MEMORY)).unwrap();
    golden.rehearse(Verify::Full).expect("its own is as good as ever");
}

/// A file of the snapshot below, as the one on top calls it.
fn below(name: &str) -> String {
    format!("../snapshot/{name}")
}

#[test]
fn damage_to_what_describes_a_chain_is_refused_by_the_name_of_the_file() {
    let golden = Golden::chain();
    for name in [MANIFEST, STATE, &below(MANIFEST)] {
        let good = fs::read(golden.file(name)).unwrap();
        flip(&golden, name, Bits::All, FLIPS_OF_CHAIN, |what, _| must_be_refused(&golden, name, what));
        truncate(&golden, name, TRUNCATIONS_OF_CHAIN);
        fs::write(golden.file(name), good).unwrap();
    }
    damage_to_the_configuration(&golden, FLIPS_OF_CHAIN, TRUNCATIONS_OF_CHAIN);
}

#[test]
fn damage_to_the_memory_of_a_chain_is_refused_where_it_is_read() {
    let golden = Golden::chain();
    let chain = Snapshot::open(&golden.snapshot(), true).unwrap().manifest.chain.unwrap();
    let is_own = |page: u64| chain.own.iter().any(|run| run.contains(&page));
    // What the one on top supplies is read from its file, and the rest from the other one's.
    for (name, of_the_top) in [(MEMORY, true), (&*below(MEMORY), false)] {
        let (mut refused, mut harmless) = (0, 0);
        for bits in [Bits::All, Bits::Written] {
            flip(&golden, name, bits, FLIPS_OF_CHAIN / 2, |what, page| {
                if is_own(page) == of_the_top {
                    must_be_refused(&golden, name, what);
                    refused += 1;
                } else {
                    let came_to = outcome(&golden, Verify::Full);
                    assert!(matches!(came_to, Outcome::Equal), "{what}: nobody reads it");
                    harmless += 1;
                }
            });
        }
        // Both happen; a test in which one does not has lost its way.
        assert!(refused >= FLIPS_OF_CHAIN / 4 && harmless > 0, "{name}: {refused}, {harmless}");
        let copy = golden.file("copy");
        fs::copy(golden.file(name), &copy).unwrap();
        truncate(&golden, name, TRUNCATIONS_OF_CHAIN);
        fs::rename(copy, golden.file(name)).unwrap();
    }
    golden.rehearse(Verify::Full).expect("all is as before");
}

#[test]
fn the_state_and_the_configuration_of_the_snapshot_below_are_not_needed() {
    let golden = Golden::chain();
    for name in [CONFIG, STATE] {
        let good = fs::read(golden.file(&below(name))).unwrap();
        fs::write(golden.file(&below(name)), &good[..good.len() / 2]).unwrap();
        assert!(matches!(outcome(&golden, Verify::Full), Outcome::Equal), "{name}");
        fs::remove_file(golden.file(&below(name))).unwrap();
        assert!(matches!(outcome(&golden, Verify::Full), Outcome::Equal), "{name}");
    }
}

#[test]
fn files_of_a_chain_that_have_changed_places_are_refused() {
    let golden = Golden::chain();
    for name in [MANIFEST, MEMORY] {
        let (top, bottom, aside) = (golden.file(name), golden.file(&below(name)), golden.file("aside"));
        let swap = || {
            fs::rename(&top, &aside).unwrap();
            fs::rename(&bottom, &top).unwrap();
            fs::rename(&aside, &bottom).unwrap();
        };
        swap();
        match outcome(&golden, Verify::Full) {
            Outcome::Refused(said) => assert!(said.contains(&*golden.snapshot().to_string_lossy()), "{said}"),
            _ => panic!("{name}: it is restored"),
        }
        swap();
        golden.rehearse(Verify::Full).expect("all is as before");
    }
}
