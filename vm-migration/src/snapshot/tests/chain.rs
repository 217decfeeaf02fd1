//! Chains of snapshots: opened as one, refused by the name of whoever is not what was built on.

use std::os::unix::fs::FileExt;

use super::*;

const PAGES: u64 = 5 * CHUNK_SIZE / PAGE_SIZE;

/// Runs of pages, by the first and the one after the last.
fn runs(ranges: &[(u64, u64)]) -> PageRuns {
    PageRuns::from_ranges(ranges.iter().map(|(start, end)| *start..*end))
}

/// Writes a snapshot in which each page of `own` begins with `value`; without a parent these are all there are.
fn take(target: &Path, parent: Option<&Path>, own: &[(u64, u64)], value: u8) -> Result<(), SnapshotError> {
    fs::create_dir_all(target).unwrap();
    let writer = SnapshotWriter::create(target)?;
    let mut memory = table();
    writer.memory().set_len(memory.size).unwrap();
    for page in runs(own).iter().flatten() {
        writer.memory().write_all_at(&[value], page * PAGE_SIZE).unwrap();
    }
    memory.chunks = ChunkDigests::default();
    let parent = parent.map(|parent| Snapshot::open(parent, true)).transpose()?;
    let chain = parent.map(|parent| Chain::over(&parent, runs(own), target)).transpose()?;
    let describe = |state, sections| Manifest {
        format: if chain.is_some() { FORMAT_CHAIN } else { FORMAT },
        program: "test 1".into(),
        cpu: raw("[]"),
        layout: raw("{}"),
        config: raw("{}"),
        state,
        sections,
        memory,
        chain,
    };
    writer.finish("{}", &[section("a")], describe, &|| false)?;
    Ok(())
}

/// Three snapshots on top of one another, side by side.
pub(super) fn three() -> TempDir {
    let all = TempDir::new().unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| all.path().join(name));
    take(&a, None, &[(0, 10)], 1).unwrap();
    take(&b, Some(&a), &[(2, 4), (70, 72)], 2).unwrap();
    take(&c, Some(&b), &[(3, 5), (319, 320)], 3).unwrap();
    all
}

/// First bytes of pages that are not zero, by page.
fn pages(snapshot: &Path) -> Vec<(u64, u8)> {
    let memory = Snapshot::open(snapshot, true).unwrap().open_memory().unwrap();
    let mut buffer = vec![0; memory.chunk_length()];
    let mut found = Vec::new();
    for chunk in 0..5 {
        memory.read_chunk(chunk, &mut buffer, false).unwrap();
        let first =
            (chunk * CHUNK_SIZE / PAGE_SIZE..).zip(buffer.chunks(4096)).map(|(page, all)| (page, all[0]));
        found.extend(first.filter(|(_, value)| *value != 0));
    }
    found
}

#[test]
fn each_page_comes_from_the_last_that_has_it() {
    let all = three();
    let expected = [
        (0, 1),
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 3),
        (5, 1),
        (6, 1),
        (7, 1),
        (8, 1),
        (9, 1),
        (70, 2),
        (71, 2),
        (319, 3),
    ];
    assert_eq!(pages(&all.path().join("c")), expected);
    // As a whole they can be anywhere.
    let elsewhere = TempDir::new().unwrap();
    fs::rename(all.path(), elsewhere.path().join("moved")).unwrap();
    assert_eq!(pages(&elsewhere.path().join("moved/c")), expected);
    let manifest = Snapshot::open(&elsewhere.path().join("moved/c"), true).unwrap().manifest;
    let chain = manifest.chain.unwrap();
    assert_eq!((manifest.format, chain.length()), (2, 3));
    assert_eq!(
        chain.ancestors().map(|below| below.directory.to_str().unwrap()).collect::<Vec<_>>(),
        ["../a", "../b"]
    );
    assert_eq!(chain.between[0].pages, runs(&[(2, 3), (70, 72)]));
}

#[test]
fn who_supplies_nothing_any_more_is_not_needed() {
    let all = three();
    let d = all.path().join("deeper/d");
    take(&d, Some(&all.path().join("c")), &[(2, 3), (70, 72)], 4).unwrap();
    fs::remove_dir_all(all.path().join("b")).unwrap();
    assert_eq!(
        pages(&d)[2..],
        [(2, 4), (3, 3), (4, 3), (5, 1), (6, 1), (7, 1), (8, 1), (9, 1), (70, 4), (71, 4), (319, 3)]
    );
    // From elsewhere the others are named in full.
    let chain = Snapshot::open(&d, true).unwrap().manifest.chain.unwrap();
    let base = fs::canonicalize(all.path().join("a")).unwrap();
    assert_eq!((chain.base.directory, chain.between.len()), (base, 1));
}

#[test]
fn an_ancestor_that_is_not_what_was_built_on_is_refused_by_name() {
    let all = three();
    let [a, b, c] = ["a", "b", "c"].map(|name| all.path().join(name));
    let check = |expected: &[&str]| {
        let said = refusal(&c);
        assert!(said.contains(&format!("{} builds on {}", c.display(), c.join("../a").display())), "{said}");
        expected.iter().for_each(|expected| assert!(said.contains(expected), "{said:?} has no {expected:?}"));
    };
    // Another one in its place; its manifest damaged; its memory cut; no manifest; nothing.
    let kept = all.path().join("kept");
    fs::rename(&a, &kept).unwrap();
    take(&a, None, &[(0, 9)], 1).unwrap();
    fs::write(a.join(STATE), "[ ]").unwrap();
    forge(&a, "\"program\":\"test 1\"", "\"program\":\"test 2\"");
    check(&["is not the snapshot that was built on", "expected"]);
    let text = fs::read_to_string(a.join(MANIFEST)).unwrap();
    fs::write(a.join(MANIFEST), text.replacen("test 2", "test 3", 1)).unwrap();
    check(&["the manifest is damaged"]);
    fs::remove_dir_all(&a).unwrap();
    check(&["is no directory that can be used"]);
    fs::rename(&kept, &a).unwrap();
    Snapshot::open(&c, true).unwrap();
    fs::OpenOptions::new().write(true).open(a.join(MEMORY)).unwrap().set_len(4096).unwrap();
    check(&["4096 bytes, expected 1310720"]);
    fs::remove_file(a.join(MANIFEST)).unwrap();
    check(&["has no manifest.json"]);
    assert!(refusal(&b).contains("has no manifest.json"));
}

#[test]
fn a_snapshot_that_builds_on_itself_or_twice_on_another_is_refused() {
    let all = three();
    let [b, c] = ["b", "c"].map(|name| all.path().join(name));
    let root = |of: &Path| Manifest::root_of(&fs::read(of.join(MANIFEST)).unwrap(), of).unwrap();
    let (first, second) = (root(&all.path().join("a")), root(&b));
    let layer = |name: &str, root: u32| format!("{{\"directory\":\"../{name}\",\"root\":{root}}}");
    forge(&c, &layer("a", first), &layer("b", second));
    assert!(refusal(&c).contains("there twice, or builds on itself"));
    // A link leads to the same place.
    std::os::unix::fs::symlink(&c, all.path().join("link")).unwrap();
    forge(&c, &layer("b", second), &layer("link", 7));
    let said = refusal(&c);
    assert!(said.contains("link") && said.contains("is not the snapshot that was built on"), "{said}");
}

#[test]
fn chains_do_not_grow_without_end() {
    let all = TempDir::new().unwrap();
    let place = |number: u64| all.path().join(number.to_string());
    take(&place(0), None, &[(0, 1)], 1).unwrap();
    for number in 1..u64::try_from(CHAIN_LIMIT).unwrap() {
        take(&place(number), Some(&place(number - 1)), &[(number, number + 1)], 1).unwrap();
    }
    let last = u64::try_from(CHAIN_LIMIT).unwrap();
    let error = take(&place(last), Some(&place(last - 1)), &[(last, last + 1)], 1).unwrap_err();
    assert!(error.to_string().ends_with("a chain of 65 snapshots, 64 at most: merge it, or take a full one"));
    assert!(matches!(Snapshot::open(&place(last), true), Err(SnapshotError::None { .. })));
    // One that takes over all of another's pages takes its place.
    take(&place(99), Some(&place(last - 1)), &[(1, 2)], 1).unwrap();
    assert_eq!(pages(&place(99)).len(), CHAIN_LIMIT);
}

#[test]
fn chains_that_contradict_themselves_are_refused() {
    let cases = [
        ("\"format\":2", "\"format\":1", "format 1, and what it has is of format 2"),
        ("\"own\":[[3,2],[319,1]]", "\"own\":[[3,2],[320,1]]", "1 pages from 320 on, of 320"),
        ("\"own\":[[3,2],[319,1]]", "\"own\":[[3,2],[4,1]]", "1 pages from 4 on, out of order"),
        ("\"own\":[[3,2],[319,1]]", "\"own\":[[319,1],[3,2]]", "2 pages from 3 on, out of order"),
        ("\"own\":[[3,2],[319,1]]", "\"own\":[[3,0]]", "0 pages from 3 on"),
        (
            "\"own\":[[3,2],[319,1]]",
            "\"own\":[[18446744073709551615,2]]",
            "2 pages from 18446744073709551615 on",
        ),
        (
            "\"own\":[[3,2],[319,1]]",
            "\"own\":[[1,18446744073709551615]]",
            "18446744073709551615 pages from 1 on",
        ),
        ("\"own\":[[3,2],[319,1]]", "\"own\":[[2,1]]", "page 2 is supplied by two snapshots"),
        ("\"pages\":[[2,1],[70,2]]", "\"pages\":[[0,4]]", "page 3 is supplied by two snapshots"),
        ("\"between\":[", "\"between\":[{}", "cannot be understood"),
        ("\"base\":", "\"bottom\":", "cannot be understood"),
    ];
    for (from, to, expected) in cases {
        let all = three();
        let c = all.path().join("c");
        forge(&c, from, to);
        let said = refusal(&c);
        assert!(said.contains(expected), "{from} -> {to}: {said:?} has no {expected:?}");
    }
    let all = three();
    let text = fs::read_to_string(all.path().join("c").join(MANIFEST)).unwrap();
    let layer = "{\"snapshot\":{\"directory\":\"../x\",\"root\":1},\"pages\":[]},";
    forge(&all.path().join("c"), "\"between\":[", &format!("\"between\":[{}", layer.repeat(62)));
    assert!(refusal(&all.path().join("c")).contains("a chain of 65 snapshots, 64 at most"), "{text}");
    // A full one that says to be none.
    forge(&all.path().join("a"), "\"format\":1", "\"format\":2");
    assert!(refusal(&all.path().join("a")).contains("format 2, and what it has is of format 1"));
}

#[test]
fn sets_of_pages_are_what_they_say() {
    // Against a plain list, for many sets.
    let mut seed = 1u64;
    let mut random = |most: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % most
    };
    for _ in 0..2000 {
        let mut set = || {
            let ranges = (0..random(6)).map(|_| {
                let first = random(40);
                first..first + random(8)
            });
            PageRuns::from_ranges(ranges.collect::<Vec<_>>())
        };
        let (one, other) = (set(), set());
        let has = |runs: &PageRuns, page: u64| runs.iter().any(|run| run.contains(&page));
        let without = one.without(&other);
        for page in 0..50 {
            assert_eq!(
                has(&without, page),
                has(&one, page) && !has(&other, page),
                "{one:?} {other:?} {page}"
            );
        }
        without.check(50).unwrap();
        assert_eq!(without.pages(), (0..50).filter(|page| has(&without, *page)).count() as u64);
        assert_eq!(without.is_empty(), without.pages() == 0);
    }
    assert!(runs(&[(0, PAGES)]).check(PAGES).is_ok());
}
