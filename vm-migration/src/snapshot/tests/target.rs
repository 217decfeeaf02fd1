//! Whom a target belongs to: writers keep one another out, what one that was killed has left goes, and what is
//! somebody else's stays.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    os::unix::fs::symlink,
};

use super::*;

const UNFINISHED: &str = ".snapshot.unfinished";

/// The files of a snapshot in the order in which they are moved.
const MOVES: [&str; 4] = [CONFIG, STATE, MEMORY, MANIFEST];

/// What is in a directory and those inside it: the content of each file by its name.
fn tree(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_symlink() {
            found.insert(name, fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes());
        } else if path.is_dir() {
            found
                .extend(tree(&path).into_iter().map(|(below, content)| (format!("{name}/{below}"), content)));
            found.insert(name, Vec::new());
        } else {
            found.insert(name, fs::read(&path).unwrap());
        }
    }
    found
}

/// Leaves what a process leaves that is killed while it writes memory.
fn leave_unfinished(target: &Path) {
    let writer = SnapshotWriter::create(target).unwrap();
    writer.memory().set_len(4096).unwrap();
    let (unfinished, aside) = (target.join(UNFINISHED), target.join("aside"));
    // Out of the writer's reach, which a process that is killed never asks to clear away.
    fs::rename(&unfinished, &aside).unwrap();
    drop(writer);
    fs::rename(&aside, &unfinished).unwrap();
}

/// Leaves what a process leaves that is killed after so many moves.
fn leave_after(target: &Path, moves: usize) {
    write(target, &[section("old")]).unwrap();
    let unfinished = target.join(UNFINISHED);
    fs::create_dir(&unfinished).unwrap();
    for name in &MOVES[moves..] {
        fs::rename(target.join(name), unfinished.join(name)).unwrap();
    }
}

/// Whether a new snapshot can be written there, and is all that there is.
fn works(target: &Path) {
    write(target, &[section("new")]).unwrap();
    assert_eq!(Snapshot::open(target, true).unwrap().ids().collect::<Vec<_>>(), ["new"]);
    let names: Vec<_> = tree(target).into_keys().collect();
    assert_eq!(names, [CONFIG, MANIFEST, MEMORY, STATE]);
}

/// Refuses to write there, by that name, and touches nothing.
fn is_in_the_way(target: &Path, name: &str) {
    let before = tree(target);
    for _ in 0..2 {
        let error = write(target, &[]).unwrap_err();
        assert!(matches!(&error, SnapshotError::InTheWay { path } if *path == target.join(name)), "{error}");
        assert!(error.to_string().contains(&format!("{name} is in the way")), "{error}");
        assert_eq!(tree(target), before, "{name}");
    }
}

#[test]
fn an_unfinished_snapshot_is_none_and_is_cleared_away() {
    let target = TempDir::new().unwrap();
    fs::write(target.path().join("other"), "kept").unwrap();
    drop(SnapshotWriter::create(target.path()).unwrap());
    assert_eq!(tree(target.path()).len(), 1);
    leave_unfinished(target.path());
    assert_eq!(tree(target.path()).len(), 3);
    assert!(refusal(target.path()).contains("has no manifest.json"));
    write(target.path(), &[]).unwrap();
    assert_eq!(tree(target.path()).len(), 5);
    assert!(Snapshot::open(target.path(), true).is_ok());
}

#[test]
fn a_second_writer_is_refused_and_does_the_first_no_harm() {
    let target = TempDir::new().unwrap();
    // The first one has leftovers to clear away, the second one none.
    leave_unfinished(target.path());
    let first = SnapshotWriter::create(target.path()).unwrap();
    for _ in 0..2 {
        let second = SnapshotWriter::create(target.path()).unwrap_err();
        assert!(matches!(second, SnapshotError::Busy { .. }), "{second}");
        let said = second.to_string();
        assert!(
            said.contains("being written to") && said.contains(target.path().to_str().unwrap()),
            "{said}"
        );
    }
    finish(first, &[section("a")]).unwrap();
    Snapshot::open(target.path(), true).unwrap();
    assert_eq!(tree(target.path()).len(), 4);
    // Nor does one that ends without a snapshot keep the next one out.
    let target = TempDir::new().unwrap();
    drop(SnapshotWriter::create(target.path()).unwrap());
    works(target.path());
}

#[test]
fn what_a_killed_one_has_moved_is_cleared_away() {
    for moves in 0..MOVES.len() {
        let target = TempDir::new().unwrap();
        leave_after(target.path(), moves);
        assert!(refusal(target.path()).contains("has no manifest.json"), "{moves} moves");
        works(target.path());
        // Likewise when nothing comes of the next attempt either.
        let target = TempDir::new().unwrap();
        leave_after(target.path(), moves);
        drop(SnapshotWriter::create(target.path()).unwrap());
        assert_eq!(tree(target.path()), BTreeMap::new(), "{moves} moves");
    }
}

#[test]
fn what_is_left_while_leftovers_are_cleared_away_is_cleared_away() {
    for moves in 0..MOVES.len() {
        // What was moved goes first, the last one before the others; then the manifest; then the rest.
        for removed in 0..=moves + 2 {
            let target = TempDir::new().unwrap();
            leave_after(target.path(), moves);
            for name in MOVES[..moves].iter().rev().take(removed) {
                fs::remove_file(target.path().join(name)).unwrap();
            }
            if removed > moves {
                fs::remove_file(target.path().join(UNFINISHED).join(MANIFEST)).unwrap();
            }
            if removed > moves + 1 {
                fs::remove_dir_all(target.path().join(UNFINISHED)).unwrap();
            }
            works(target.path());
        }
    }
}

#[test]
fn a_snapshot_of_another_program_is_refused_by_name_and_left_alone() {
    for (name, others) in [(CONFIG, &[STATE, MEMORY][..]), (STATE, &[MEMORY]), (MEMORY, &[])] {
        let target = TempDir::new().unwrap();
        for name in [name].iter().chain(others) {
            fs::write(target.path().join(name), format!("{name} of another program")).unwrap();
        }
        is_in_the_way(target.path(), name);
        // Nor is it ours because there is something unfinished beside it.
        let aside = TempDir::new().unwrap();
        leave_unfinished(aside.path());
        fs::rename(aside.path().join(UNFINISHED), target.path().join(UNFINISHED)).unwrap();
        is_in_the_way(target.path(), name);
    }
    // One that came after a move was cut off: the first name that is not ours is told.
    for moves in 0..MOVES.len() - 1 {
        let target = TempDir::new().unwrap();
        leave_after(target.path(), moves);
        for name in &MOVES[moves..3] {
            fs::write(target.path().join(name), "of another program").unwrap();
        }
        is_in_the_way(target.path(), MOVES[moves]);
    }
}

#[test]
fn directories_and_links_in_the_place_of_files_are_refused_by_name_and_left_alone() {
    for name in [CONFIG, STATE, MEMORY] {
        let target = TempDir::new().unwrap();
        fs::create_dir(target.path().join(name)).unwrap();
        is_in_the_way(target.path(), name);
        fs::write(target.path().join(name).join("file"), "kept").unwrap();
        is_in_the_way(target.path(), name);
        // Also where a file of ours would have been moved.
        let target = TempDir::new().unwrap();
        leave_after(target.path(), 3);
        fs::remove_file(target.path().join(name)).unwrap();
        symlink("nowhere", target.path().join(name)).unwrap();
        is_in_the_way(target.path(), name);
    }
    let target = TempDir::new().unwrap();
    symlink("nowhere", target.path().join(MANIFEST)).unwrap();
    assert!(matches!(SnapshotWriter::create(target.path()), Err(SnapshotError::Occupied { .. })));
    // The hidden directory of somebody else is not to be cleared away through a link.
    let (target, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    leave_after(other.path(), 2);
    symlink(other.path().join(UNFINISHED), target.path().join(UNFINISHED)).unwrap();
    is_in_the_way(target.path(), UNFINISHED);
    assert_eq!(tree(other.path()).len(), 5);
}

#[test]
fn a_move_that_fails_takes_back_those_before_it() {
    for name in MOVES {
        for is_directory in [false, true] {
            let target = TempDir::new().unwrap();
            let writer = SnapshotWriter::create(target.path()).unwrap();
            // Whoever does this does not ask for the lock.
            let path = target.path().join(name);
            if is_directory { fs::create_dir(&path) } else { fs::write(&path, "of another") }.unwrap();
            let before = tree(target.path()).remove(name);
            let error = finish(writer, &[section("a")]).unwrap_err();
            assert!(matches!(&error, SnapshotError::InTheWay { path: found } if *found == path), "{error}");
            let after = tree(target.path());
            assert_eq!((after.len(), after.get(name)), (1, before.as_ref()), "{name}");
            if is_directory { fs::remove_dir(&path) } else { fs::remove_file(&path) }.unwrap();
            works(target.path());
        }
    }
}

#[test]
fn a_target_that_cannot_be_used_is_refused_and_left_alone() {
    let target = written();
    assert!(matches!(SnapshotWriter::create(target.path()), Err(SnapshotError::Occupied { .. })));
    Snapshot::open(target.path(), true).unwrap();
    let missing = target.path().join("missing");
    assert!(matches!(SnapshotWriter::create(&missing), Err(SnapshotError::Directory { .. })));
    assert!(matches!(Snapshot::open(&missing, true), Err(SnapshotError::Directory { .. })));
    let file = target.path().join(CONFIG);
    assert!(matches!(SnapshotWriter::create(&file), Err(SnapshotError::Directory { .. })));
}

/// Finishes a snapshot in `target`. `sync` is asked to sync it with the number of times that it was asked before.
fn finish_with(target: &Path, sync: impl Fn(usize) -> io::Result<()>) -> Result<Manifest, SnapshotError> {
    let asked = Cell::new(0);
    let counted = |_: &File| sync(asked.replace(asked.get() + 1));
    finish_syncing(SnapshotWriter::create(target)?, &[section("a")], counted)
}

#[test]
fn the_target_is_synced_before_there_is_a_manifest_and_again_with_it() {
    let target = TempDir::new().unwrap();
    let seen = RefCell::new(Vec::new());
    finish_with(target.path(), |_| {
        seen.borrow_mut().push(MOVES.map(|name| target.path().join(name).is_file()));
        Ok(())
    })
    .unwrap();
    assert_eq!(seen.into_inner(), [[true, true, true, false], [true; 4]]);
}

#[test]
fn a_target_that_cannot_be_synced_holds_no_snapshot_and_does_for_the_next() {
    for failing in 0..2 {
        let target = TempDir::new().unwrap();
        let broken = |asked| if asked == failing { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) };
        let error = finish_with(target.path(), broken).unwrap_err();
        let SnapshotError::File { operation: "sync", path, .. } = &error else { panic!("{error}") };
        assert_eq!(*path, target.path());
        assert_eq!(tree(target.path()), BTreeMap::new(), "sync {failing}");
        works(target.path());
    }
}

#[test]
fn one_that_is_given_up_leaves_the_target_as_it_was_and_works_again() {
    let (mut at, mut moves) = (0, BTreeMap::new());
    loop {
        let target = TempDir::new().unwrap();
        fs::write(target.path().join("other"), "kept").unwrap();
        let before = tree(target.path());
        let (asked, there) = (Cell::new(0), Cell::new(0));
        let is_cancelled = || {
            there.set(MOVES.iter().filter(|name| target.path().join(name).exists()).count());
            asked.replace(asked.get() + 1) == at
        };
        let writer = SnapshotWriter::create(target.path()).unwrap();
        match finish_asking(writer, &[section("a")], &is_cancelled, File::sync_all) {
            Ok(_) => break,
            Err(error) => assert!(matches!(error, SnapshotError::Cancelled), "{error}"),
        }
        assert_eq!(
            (asked.get(), tree(target.path())),
            (at + 1, before),
            "given up when asked the {at}th time"
        );
        *moves.entry(there.get()).or_insert(0) += 1;
        write(target.path(), &[section("new")]).unwrap();
        Snapshot::open(target.path(), true).unwrap();
        at += 1;
    }
    // With none of the files in their places, and with each number of them but all.
    assert_eq!(moves.keys().copied().collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(moves[&0], 2, "once before memory is synced, once after");
}

#[test]
fn a_snapshot_that_can_neither_be_synced_nor_taken_back_is_said_to_be_there() {
    let target = TempDir::new().unwrap();
    let (manifest, aside) = (target.path().join(MANIFEST), target.path().join("aside"));
    let error = finish_with(target.path(), |asked| {
        if asked == 0 {
            return Ok(());
        }
        // What is not there cannot be taken back.
        fs::rename(&manifest, &aside)?;
        Err(io::ErrorKind::StorageFull.into())
    })
    .unwrap_err();
    assert!(matches!(error, SnapshotError::Unsynced { .. }), "{error}");
    fs::rename(&aside, &manifest).unwrap();
    assert_eq!(tree(target.path()).len(), 4);
    assert_eq!(Snapshot::open(target.path(), true).unwrap().ids().collect::<Vec<_>>(), ["a"]);
}
