//! Files that memory zones name, where a machine is restored: opened and looked at before anything is mapped.
//!
//! A zone that was left in its file must find it there, whole. One whose content comes out of the snapshot into a file
//! that is shared must find nothing in it: what is there is another machine's or was forgotten, and would show
//! wherever the snapshot is zero. No file is made, and none is made longer before it is mapped; if there is no machine
//! in the end, those that were written are empty again. A zone that is private and in the snapshot does not need its
//! file, and it is left alone.
//!
//! A file that is used is locked ([`lock()`]), at a boot as at a restore: for one machine alone where its memory is
//! shared, so that what a guest writes is in the file; against such a one where it is private, as that of many machines
//! from one template is. The lock goes with the memory.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{FallocateFlags, fallocate};
use virtio_devices::host::lock::{self, Granularity};
use vm_memory::FileOffset;

use super::{
    BackingError,
    content::{self, MemoryMode, RestorePlan, Tally},
};
use crate::config::MemoryZoneConfig;

/// Bytes that are looked at in one go; in between it can be given up.
const PIECE: usize = 1 << 20;

/// Whether the lock on a file is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locking {
    /// It is.
    Take,
    /// It is only found out whether it could be.
    Ask,
}

/// Locks the file of a zone: for itself alone if its memory is shared, and else against those whose is.
///
/// # Errors
/// Somebody else uses it against that.
pub(super) fn lock(
    zone: &MemoryZoneConfig,
    path: &Path,
    file: &File,
    locking: Locking,
) -> Result<(), BackingError> {
    let (granularity, read_only) = (Granularity::Full, !zone.shared);
    let locked = match locking {
        Locking::Take => lock::lock(file, granularity, read_only, 0),
        Locking::Ask => lock::check(file, granularity, read_only, 0),
    };
    locked.map_err(|source| BackingError::Locked { zone: zone.id.clone(), path: path.to_owned(), source })
}

/// The files of those zones that use one, by zone id. Dropped before they are [kept](Self::keep), what was written into
/// those that were empty is gone from them.
#[derive(Debug, Default)]
pub struct OwnFiles {
    files: BTreeMap<String, OwnFile>,
}

#[derive(Debug)]
struct OwnFile {
    file: Arc<File>,
    path: PathBuf,
    /// Bytes of the zone.
    size: u64,
    /// Bytes that it had when it was opened.
    length: u64,
    /// Whether it was empty.
    blank: bool,
    /// Whether it is to be empty again if nothing comes of the machine.
    written: bool,
}

impl OwnFiles {
    /// Opens and, if `locking` says so, locks the files that `plan` uses, and sees to it that they can be used; none is
    /// changed. `tally` is told of a phase `examine` for each that has to be read.
    ///
    /// # Errors
    /// One is missing, too short, in use, or has content where none may be; or it was given up.
    pub fn open(
        zones: &[MemoryZoneConfig],
        plan: &RestorePlan,
        locking: Locking,
        tally: &dyn Tally,
    ) -> Result<Self, BackingError> {
        let mut files = BTreeMap::new();
        let mut seen: BTreeMap<(u64, u64), &MemoryZoneConfig> = BTreeMap::new();
        for (zone, path, mode) in used(zones, plan) {
            // What cannot be found is told below.
            if let Ok(found) = path.metadata()
                && let Some(other) = seen.insert((found.dev(), found.ino()), zone)
                // Any number may be mapped privately from one.
                && (zone.shared || other.shared)
            {
                let (zone, other) = (zone.id.clone(), other.id.clone());
                return Err(BackingError::Twice { zone, path: path.to_owned(), other });
            }
            files.insert(zone.id.clone(), OwnFile::open(zone, path, mode, locking, tally)?);
        }
        Ok(Self { files })
    }

    /// All that keeps files from being used.
    pub fn obstacles(zones: &[MemoryZoneConfig], plan: &RestorePlan) -> Vec<BackingError> {
        let opened =
            used(zones, plan).map(|(zone, path, mode)| OwnFile::open(zone, path, mode, Locking::Ask, &()));
        opened.filter_map(Result::err).collect()
    }

    /// The file of a zone, as long as the zone at least; none for one that uses none.
    ///
    /// # Errors
    /// There is no room for it.
    pub(super) fn provide(&mut self, zone: &str) -> Result<Option<FileOffset>, BackingError> {
        let Some(own) = self.files.get_mut(zone) else { return Ok(None) };
        own.written = own.blank;
        if own.length < own.size {
            own.file.set_len(own.size).map_err(|source| BackingError::Length {
                zone: zone.to_owned(),
                path: own.path.clone(),
                size: own.size,
                source,
            })?;
        }
        Ok(Some(FileOffset::from_arc(Arc::clone(&own.file), 0)))
    }

    /// There is a machine: what is in them is its own from now on.
    pub fn keep(mut self) {
        self.files.values_mut().for_each(|own| own.written = false);
    }
}

/// The zones that use a file with a name, their files and modes.
fn used<'config>(
    zones: &'config [MemoryZoneConfig],
    plan: &RestorePlan,
) -> impl Iterator<Item = (&'config MemoryZoneConfig, &'config Path, MemoryMode)> {
    zones.iter().filter_map(|zone| {
        let (path, mode) = (zone.file.as_deref()?, plan.mode(&zone.id)?);
        let kept = mode == MemoryMode::Kept;
        (kept || zone.shared && !path.is_dir()).then_some((zone, path, mode))
    })
}

fn cannot_read(zone: &MemoryZoneConfig, path: &Path) -> impl Fn(io::Error) -> BackingError {
    move |source| BackingError::Read { zone: zone.id.clone(), path: path.to_owned(), source }
}

impl OwnFile {
    fn open(
        zone: &MemoryZoneConfig,
        path: &Path,
        mode: MemoryMode,
        locking: Locking,
        tally: &dyn Tally,
    ) -> Result<Self, BackingError> {
        let (id, size) = (zone.id.clone(), zone.size);
        // A template that is mapped privately is never written. A pipe would keep this thread waiting.
        let mut options = OpenOptions::new();
        options.read(true).write(zone.shared).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let cannot_open = |source| BackingError::Open { zone: id.clone(), path: path.into(), source };
        let file = options.open(path).map_err(cannot_open)?;
        let found = file.metadata().map_err(cannot_read(zone, path))?;
        if !found.is_file() {
            return Err(BackingError::NotFile { zone: id, path: path.into() });
        }
        lock(zone, path, &file, locking)?;
        let length = found.len();
        let kept = mode == MemoryMode::Kept;
        if kept && length < size {
            return Err(BackingError::Short { zone: id, path: path.into(), found: length, size });
        }
        if !kept && let Some(offset) = first_content(&file, zone, path, tally)? {
            return Err(BackingError::InUse { zone: id, path: path.into(), offset });
        }
        Ok(Self { file: Arc::new(file), path: path.into(), size, length, blank: !kept, written: false })
    }

    /// Throws away what was written, and makes it as long as it was.
    fn empty(&self) -> io::Result<()> {
        fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, self.size)?;
        if self.length < self.size { self.file.set_len(self.length) } else { Ok(()) }
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        if self.written
            && let Err(error) = self.empty()
        {
            log::warn!("{} keeps what was read into it: {error}", self.path.display());
        }
    }
}

/// Where a zone's file first has something else than zeros, if it has in what the zone would take of it.
fn first_content(
    file: &File,
    zone: &MemoryZoneConfig,
    path: &Path,
    tally: &dyn Tally,
) -> Result<Option<u64>, BackingError> {
    let failed = cannot_read(zone, path);
    let parts = content::data(file, 0, zone.size).map_err(&failed)?;
    if parts.is_empty() {
        return Ok(None);
    }
    tally.phase("examine", Some(parts.iter().fold(0, |sum: u64, part| sum + (part.end - part.start))));
    let mut buffer = vec![0; PIECE];
    for part in parts {
        let mut at = part.start;
        while at < part.end {
            if tally.is_cancelled() {
                return Err(BackingError::Cancelled);
            }
            let left = usize::try_from(part.end - at).unwrap_or(usize::MAX).min(PIECE);
            let read = file.read_at(buffer.get_mut(..left).unwrap_or_default(), at).map_err(&failed)?;
            let content = buffer.get(..read).unwrap_or_default();
            if !content::is_zero(content) {
                let zeros = content.iter().take_while(|byte| **byte == 0).count();
                return Ok(Some(at + zeros as u64));
            }
            if read == 0 {
                break;
            }
            tally.add(read as u64);
            at += read as u64;
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use vm_memory::VolatileMemory;
    use vm_migration::snapshot::{CHUNK_SIZE, MemoryTable};

    use super::*;
    use crate::memory::{Backing, content::tests::zone};

    const SIZE: u64 = 2 * CHUNK_SIZE;

    /// A zone in a file of that content, and a plan by which it comes back.
    struct Case {
        place: tempfile::TempDir,
        zones: Vec<MemoryZoneConfig>,
        plan: RestorePlan,
    }

    fn case(shared: bool, kept: bool, content: Option<&[u8]>) -> Case {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("zone");
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let zones = vec![MemoryZoneConfig { shared, file: Some(path), ..zone("a", SIZE) }];
        let table = MemoryTable::new([("a", SIZE, !kept)]).unwrap();
        let plan = RestorePlan::new(&zones, &table, None).unwrap();
        assert_eq!(plan.zones[0].mode == MemoryMode::Kept, kept);
        Case { place, zones, plan }
    }

    impl Case {
        fn path(&self) -> PathBuf {
            self.place.path().join("zone")
        }

        fn open(&self) -> Result<OwnFiles, BackingError> {
            OwnFiles::open(&self.zones, &self.plan, Locking::Take, &())
        }

        /// What it is refused with, whoever asks. The file is as it was, or not there.
        fn refused(&self) -> String {
            let before = std::fs::read(self.path()).ok();
            let error = self.open().unwrap_err().to_string();
            let told = OwnFiles::open(&self.zones, &self.plan, Locking::Ask, &()).unwrap_err().to_string();
            assert_eq!(told, error);
            let obstacles = OwnFiles::obstacles(&self.zones, &self.plan);
            assert_eq!(obstacles.len(), 1, "{error}");
            assert_eq!(obstacles[0].to_string(), error);
            assert!(std::fs::read(self.path()).ok() == before, "{error}");
            assert!(
                error.contains("memory zone a") && error.contains(self.path().to_str().unwrap()),
                "{error}"
            );
            error
        }

        /// Maps it, and writes something into it.
        fn write(&self, files: &mut OwnFiles) {
            let own = files.provide("a").unwrap();
            let mapping = Backing::of(&self.zones[0], &()).map_again(own).unwrap();
            mapping.get_slice(4096, 4).unwrap().copy_from(&[7u8; 4]);
        }
    }

    #[test]
    fn content_comes_into_nothing_but_an_empty_file() {
        let length = usize::try_from(SIZE).unwrap();
        let mut late = vec![0; length];
        late[length - 5] = 1;
        for (content, at) in [(vec![0xff; length], "at 0x0:"), (late, "at 0x7fffb:"), (vec![1], "at 0x0:")] {
            let said = case(true, false, Some(&content)).refused();
            assert!(said.contains(at) && said.contains("must be empty or zero"), "{said}");
        }
        let said = case(true, false, None).refused();
        assert!(said.contains("cannot open"), "{said}");
        // What is behind the zone's is nobody's business.
        let longer = [vec![0; length], vec![9; 100]].concat();
        for content in [Vec::new(), vec![0; 5000], vec![0; length], longer] {
            let case = case(true, false, Some(&content));
            // Nothing comes of it.
            drop(case.open().unwrap());
            let mut files = case.open().unwrap();
            case.write(&mut files);
            assert_eq!(std::fs::read(case.path()).unwrap()[4096..4100], [7; 4]);
            drop(files);
            assert!(std::fs::read(case.path()).unwrap() == content, "it is as it was");
            // The same works again.
            let mut files = case.open().unwrap();
            case.write(&mut files);
            files.keep();
            assert_eq!(std::fs::read(case.path()).unwrap()[4096..4100], [7; 4]);
            case.refused();
        }
    }

    #[test]
    fn what_was_left_in_a_file_must_be_there_whole() {
        for shared in [false, true] {
            let said = case(shared, true, None).refused();
            assert!(said.contains("cannot open"), "{said}");
            let said = case(shared, true, Some(&[1; 4096])).refused();
            assert!(said.contains("has 4096 bytes of 524288"), "{said}");
            let case = case(shared, true, Some(&vec![3; usize::try_from(SIZE).unwrap()]));
            let mut files = case.open().unwrap();
            case.write(&mut files);
            drop(files);
            let expected = if shared { 7 } else { 3 };
            assert_eq!(std::fs::read(case.path()).unwrap()[4096], expected, "it is the guest's");
        }
    }

    #[test]
    fn what_is_no_file_is_refused_and_keeps_nobody_waiting() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        for (shared, kept) in [(false, true), (true, true), (true, false)] {
            let case = case(shared, kept, None);
            mknodat(CWD, case.path(), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
            let error = case.open().unwrap_err().to_string();
            assert!(error.contains("memory zone a") && error.ends_with("is no regular file"), "{error}");
        }
    }

    #[test]
    fn files_that_a_restore_does_not_use_may_be_missing() {
        let case = case(false, false, None);
        let mut files = case.open().unwrap();
        case.write(&mut files);
        assert!(!case.path().exists());
    }

    #[test]
    fn two_zones_do_not_come_back_into_one_file() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("zone");
        std::fs::write(&path, []).unwrap();
        let zones = ["a", "b"].map(|id| MemoryZoneConfig {
            shared: true,
            file: Some(path.clone()),
            ..zone(id, SIZE)
        });
        let table = MemoryTable::new([("a", SIZE, true), ("b", SIZE, true)]).unwrap();
        let plan = RestorePlan::new(&zones, &table, None).unwrap();
        let error = OwnFiles::open(&zones, &plan, Locking::Take, &()).unwrap_err().to_string();
        assert!(error.contains("memory zone b") && error.contains("file of memory zone a, too"), "{error}");
    }

    #[test]
    fn a_file_is_shared_memory_of_one_machine_alone() {
        let content = vec![3; usize::try_from(SIZE).unwrap()];
        let case = case(true, true, Some(&content));
        let private = [MemoryZoneConfig { shared: false, ..case.zones[0].clone() }];
        let clone = || OwnFiles::open(&private, &case.plan, Locking::Take, &());
        let boot = |zones: &[MemoryZoneConfig]| Backing::of(&zones[0], &()).map();
        let in_use = |error: BackingError| {
            let said = crate::error::chain(&error);
            let path = case.path();
            assert!(said.starts_with(&format!("memory zone a: cannot lock {}", path.display())), "{said}");
            said
        };
        // By its mapping alone, and whether it was booted or restored.
        for restored in [false, true] {
            let own = || if restored { case.open().unwrap().provide("a").unwrap() } else { None };
            let memory = |zones: &[MemoryZoneConfig]| match own() {
                Some(own) => Backing::of(&zones[0], &()).map_again(Some(own)).unwrap(),
                None => boot(zones).unwrap(),
            };
            let running = memory(&case.zones);
            assert!(case.refused().starts_with("memory zone a: cannot lock"));
            for error in [clone().unwrap_err(), boot(&case.zones).unwrap_err(), boot(&private).unwrap_err()] {
                assert!(in_use(error).contains("holds a write lock"));
            }
            drop(running);
            // A template: nobody writes to it for as long as it is one.
            let (first, second, third) = (clone().unwrap(), clone().unwrap(), boot(&private).unwrap());
            assert!(in_use(case.open().unwrap_err()).contains("holds a read lock"));
            drop((first, second, third));
            // Only asked, nobody is kept from it.
            let asked = OwnFiles::open(&case.zones, &case.plan, Locking::Ask, &()).unwrap();
            drop((case.open().unwrap(), asked));
        }
    }
}
