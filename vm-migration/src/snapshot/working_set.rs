//! The recorded working set: which pages a restored VM touched first, kept beside its snapshot for the next restore.
//!
//! It is a hint, and no part of the snapshot: the manifest does not know of it, it names the manifest that it belongs
//! to, and whoever cannot read it does without.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{MemoryTable, SnapshotError, WORKING_SET, read};

/// Bytes of a page.
const PAGE_SIZE: u64 = 4096;

/// Longest file that is read, in bytes: [`RUNS_MAX`] runs take less.
const FILE_LIMIT: u64 = 4 << 20;

/// Runs of pages that one file has at most.
const RUNS_MAX: usize = 1 << 16;

/// Pages that follow one another: the number of the first, and how many they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PageRun(pub u64, pub u64);

impl PageRun {
    /// The number of the page after the last.
    pub fn end(self) -> u64 {
        self.0.saturating_add(self.1)
    }
}

/// What a VM touched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkingSet {
    /// Checksum of the manifest that it belongs to.
    pub root: u32,
    /// Milliseconds for which it was recorded.
    pub window_ms: u32,
    /// The zones in which something was touched.
    pub zones: Vec<ZonePages>,
}

/// What it touched of a zone. Runs are in order, and apart from one another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ZonePages {
    /// The zone.
    pub zone: String,
    /// Pages that were written.
    pub written: Vec<PageRun>,
    /// Pages that were only read.
    pub read: Vec<PageRun>,
}

/// The file: a working set, and the checksum of its text.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    crc32c: u32,
    working_set: Box<RawValue>,
}

impl WorkingSet {
    /// The text of the file.
    ///
    /// # Errors
    /// Never.
    pub fn to_text(&self) -> Result<String, serde_json::Error> {
        let working_set = serde_json::value::to_raw_value(self)?;
        let crc32c = crc32c::crc32c(working_set.get().as_bytes());
        serde_json::to_string(&Envelope { crc32c, working_set })
    }

    /// Reads it; `path` is for errors. It is the one of the snapshot whose manifest has the checksum `root`, and whose
    /// memory `table` describes.
    ///
    /// # Errors
    /// The text is damaged, belongs to another snapshot, or names pages that are none.
    pub fn from_text(
        text: &[u8],
        path: &Path,
        root: u32,
        table: &MemoryTable,
    ) -> Result<Self, SnapshotError> {
        let form = |source| SnapshotError::Form { path: path.to_owned(), source };
        let envelope: Envelope = serde_json::from_slice(text).map_err(form)?;
        let found = crc32c::crc32c(envelope.working_set.get().as_bytes());
        if found != envelope.crc32c {
            let (what, expected) = ("the working set".to_owned(), envelope.crc32c);
            return Err(SnapshotError::Damaged { path: path.to_owned(), what, found, expected });
        }
        let this: Self = serde_json::from_str(envelope.working_set.get()).map_err(form)?;
        this.check(root, table).map_err(|why| SnapshotError::Contradiction { path: path.to_owned(), why })?;
        Ok(this)
    }

    /// The one beside the snapshot in `directory`; none if nobody has recorded one.
    ///
    /// # Errors
    /// There is one that cannot be used.
    pub fn read(directory: &Path, root: u32, table: &MemoryTable) -> Result<Option<Self>, SnapshotError> {
        let path = directory.join(WORKING_SET);
        let text = match read::read_up_to(FILE_LIMIT, &path) {
            Err(SnapshotError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            text => text?,
        };
        Self::from_text(&text, &path, root, table).map(Some)
    }

    /// Puts it beside the snapshot in `directory`, in the place of another. One that is too long is made coarser.
    ///
    /// # Errors
    /// The directory cannot be written; what was there is there still.
    pub fn write(mut self, directory: &Path) -> Result<(), SnapshotError> {
        self.coarsen(RUNS_MAX);
        let path = directory.join(WORKING_SET);
        // Of this process, so that two that record at the same time each leave a whole one.
        let unfinished = directory.join(format!(".{WORKING_SET}.{}", std::process::id()));
        let text = self.to_text().map_err(|source| SnapshotError::Form { path: path.clone(), source })?;
        let written = write_new(&unfinished, text.as_bytes())
            .map_err(|(operation, source)| SnapshotError::File { operation, path: path.clone(), source })
            .and_then(|()| {
                fs::rename(&unfinished, &path).map_err(|source| SnapshotError::File {
                    operation: "rename",
                    path: path.clone(),
                    source,
                })
            });
        if written.is_err() {
            // It is not there, or is not of use to anybody.
            let _ = fs::remove_file(&unfinished);
        }
        written
    }

    /// Pages that were touched.
    pub fn pages(&self) -> u64 {
        let runs = self.zones.iter().flat_map(|zone| zone.written.iter().chain(&zone.read));
        runs.fold(0, |sum, run| sum.saturating_add(run.1))
    }

    /// What was touched of a zone.
    pub fn zone(&self, id: &str) -> Option<&ZonePages> {
        self.zones.iter().find(|pages| pages.zone == id)
    }

    fn lists(&mut self) -> impl Iterator<Item = &mut Vec<PageRun>> {
        self.zones.iter_mut().flat_map(|zone| [&mut zone.written, &mut zone.read])
    }

    /// Joins runs that are close to one another until they are `most` at most.
    fn coarsen(&mut self, most: usize) {
        let lists = self.lists().filter(|list| !list.is_empty()).count();
        let share = most / lists.max(1);
        for list in self.lists() {
            let mut gap = 1u64;
            while list.len() > share.max(1) {
                join(list, gap);
                gap = gap.saturating_mul(2);
            }
        }
    }

    /// Whether it is one that can be, and belongs there: it comes from a file, and is hostile.
    fn check(&self, root: u32, table: &MemoryTable) -> Result<(), String> {
        if self.root != root {
            return Err(format!(
                "belongs to another snapshot, of checksum {:#010x}; this one has {root:#010x}",
                self.root
            ));
        }
        let mut runs = 0usize;
        for (number, pages) in self.zones.iter().enumerate() {
            let ZonePages { zone, written, read } = pages;
            let known = table.zone(zone).filter(|content| content.offset.is_some());
            let Some(content) = known else { return Err(format!("the snapshot has no memory zone {zone}")) };
            if self.zones.iter().take(number).any(|earlier| earlier.zone == *zone) {
                return Err(format!("memory zone {zone} is there twice"));
            }
            for list in [written, read] {
                runs = runs.saturating_add(list.len());
                check_runs(list, content.size / PAGE_SIZE)
                    .map_err(|why| format!("memory zone {zone}: {why}"))?;
            }
        }
        if runs > RUNS_MAX {
            return Err(format!("{runs} runs of pages, {RUNS_MAX} at most"));
        }
        Ok(())
    }
}

/// Whether runs are in order, apart, and of a zone that has so many pages.
fn check_runs(runs: &[PageRun], pages: u64) -> Result<(), String> {
    let mut next = 0;
    for run in runs {
        let end = run.0.checked_add(run.1).filter(|end| *end <= pages);
        match end {
            Some(end) if run.1 > 0 && run.0 >= next => next = end,
            _ => return Err(format!("{} pages from {} on", run.1, run.0)),
        }
    }
    Ok(())
}

/// Joins runs between which there are no more than `gap` pages.
fn join(runs: &mut Vec<PageRun>, gap: u64) {
    let mut joined: Vec<PageRun> = Vec::with_capacity(runs.len());
    for run in runs.iter() {
        match joined.last_mut() {
            Some(last) if run.0.saturating_sub(last.end()) <= gap => {
                last.1 = run.end().saturating_sub(last.0);
            }
            _ => joined.push(*run),
        }
    }
    *runs = joined;
}

/// Writes a file that is not there; what an earlier process of this number left is removed.
fn write_new(path: &Path, content: &[u8]) -> Result<(), (&'static str, io::Error)> {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(("clear away", error));
    }
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    let mut file = file.map_err(|error| ("create", error))?;
    file.write_all(content).map_err(|error| ("write", error))?;
    file.sync_all().map_err(|error| ("sync", error))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use tempfile::TempDir;

    use super::*;

    const ROOT: u32 = 7;

    fn table() -> MemoryTable {
        MemoryTable::new([("a", 1 << 20, true), ("own", 1 << 20, false), ("b", 5 * PAGE_SIZE, true)]).unwrap()
    }

    fn working_set() -> WorkingSet {
        let runs = |runs: &[(u64, u64)]| runs.iter().map(|run| PageRun(run.0, run.1)).collect();
        let pages = |zone: &str, written, read| ZonePages {
            zone: zone.to_owned(),
            written: runs(written),
            read: runs(read),
        };
        let zones = vec![pages("a", &[(0, 2), (4, 252)], &[(2, 1)]), pages("b", &[(4, 1)], &[])];
        WorkingSet { root: ROOT, window_ms: 100, zones }
    }

    fn read(directory: &TempDir) -> Result<Option<WorkingSet>, SnapshotError> {
        WorkingSet::read(directory.path(), ROOT, &table())
    }

    #[test]
    fn what_was_written_is_read_and_replaced_by_the_next() {
        let directory = TempDir::new().unwrap();
        assert!(read(&directory).unwrap().is_none());
        // What a process that was killed left is no hindrance.
        let left = directory.path().join(format!(".{WORKING_SET}.{}", std::process::id()));
        fs::write(left, "half").unwrap();
        working_set().write(directory.path()).unwrap();
        assert_eq!(read(&directory).unwrap(), Some(working_set()));
        assert_eq!(working_set().pages(), 256);
        let other = WorkingSet { zones: Vec::new(), ..working_set() };
        other.clone().write(directory.path()).unwrap();
        assert_eq!(read(&directory).unwrap(), Some(other));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named_and_left_alone() {
        let directory = TempDir::new().unwrap();
        let missing = directory.path().join("missing");
        let error = working_set().write(&missing).unwrap_err();
        assert!(error.to_string().contains("cannot create"), "{error}");
        // Nor can a directory be replaced by a file.
        fs::create_dir_all(directory.path().join(WORKING_SET)).unwrap();
        let error = working_set().write(directory.path()).unwrap_err();
        assert!(error.to_string().contains("cannot rename"), "{error}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(read(&directory).is_err());
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        let good = working_set().to_text().unwrap().into_bytes();
        let refused = |text: &[u8]| {
            WorkingSet::from_text(text, Path::new(WORKING_SET), ROOT, &table()).expect_err("it is damaged")
        };
        for at in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[at / 8] ^= 1 << (at % 8);
            refused(&bad);
        }
        for length in 0..good.len() {
            refused(&good[..length]);
        }
    }

    #[test]
    fn what_cannot_be_or_belongs_elsewhere_is_refused_by_name() {
        let refused = |change: &dyn Fn(&mut WorkingSet)| {
            let mut changed = working_set();
            change(&mut changed);
            let text = changed.to_text().unwrap();
            let read = WorkingSet::from_text(text.as_bytes(), Path::new(WORKING_SET), ROOT, &table());
            read.expect_err("it cannot be").to_string()
        };
        assert!(refused(&|set| set.root = 8).contains("checksum 0x00000008; this one has 0x00000007"));
        assert!(refused(&|set| set.zones[0].zone = "c".into()).contains("no memory zone c"));
        assert!(refused(&|set| set.zones[0].zone = "own".into()).contains("no memory zone own"));
        assert!(refused(&|set| set.zones[0].zone = "b".into()).contains("252 pages from 4 on"));
        assert!(refused(&|set| set.zones[1].zone = "a".into()).contains("a is there twice"));
        for run in [PageRun(4, 253), PageRun(1, 1), PageRun(9, 0), PageRun(u64::MAX, 2), PageRun(3, u64::MAX)]
        {
            assert!(refused(&|set| set.zones[0].written[1] = run).contains("memory zone a: "), "{run:?}");
        }
    }

    #[test]
    fn files_that_are_too_long_are_not_read() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join(WORKING_SET);
        File::create(&path).unwrap().set_len(FILE_LIMIT + 1).unwrap();
        assert!(matches!(read(&directory), Err(SnapshotError::TooLong { .. })));
        // Neither is one that has more runs than it may have.
        let pages = RUNS_MAX as u64 * 2 + 2;
        let table = MemoryTable::new([("a", pages * PAGE_SIZE, true)]).unwrap();
        let scattered: Vec<PageRun> = (0..=RUNS_MAX as u64).map(|run| PageRun(run * 2, 1)).collect();
        let zone = ZonePages { zone: "a".into(), written: scattered, read: Vec::new() };
        let long = WorkingSet { zones: vec![zone], ..working_set() };
        fs::write(&path, long.to_text().unwrap()).unwrap();
        let error = WorkingSet::read(directory.path(), ROOT, &table).unwrap_err();
        assert!(error.to_string().contains("65537 runs of pages"), "{error}");
        // So none is written: what is scattered too far is joined.
        long.write(directory.path()).unwrap();
        let read = WorkingSet::read(directory.path(), ROOT, &table).unwrap().unwrap();
        assert_eq!(read.zones[0].written, [PageRun(0, pages - 1)]);
    }

    #[test]
    fn joining_begins_with_what_is_closest() {
        let mut set = working_set();
        set.zones = vec![ZonePages { zone: "a".into(), ..ZonePages::default() }];
        set.zones[0].written = vec![PageRun(0, 1), PageRun(2, 1), PageRun(100, 1), PageRun(200, 1)];
        set.coarsen(3);
        assert_eq!(set.zones[0].written, [PageRun(0, 3), PageRun(100, 1), PageRun(200, 1)]);
    }
}
