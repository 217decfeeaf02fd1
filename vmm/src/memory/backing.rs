//! The host memory of one zone: anonymous, a shared memfd, a file, huge pages.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io,
    path::Path,
    sync::Arc,
};

use rustix::{
    fs::{MemfdFlags, memfd_create},
    mm::Advice,
};
use vm_memory::{FileOffset, MmapRegion, mmap::MmapRegionError};

use super::{
    BackingError, HUGE_PAGE,
    content::Tally,
    mapping,
    overlays::Overlays,
    own_files::{Locking, lock},
};
use crate::config::{MemoryZoneConfig, PAGE_SIZE};

/// How one zone is backed.
pub struct Backing<'config> {
    zone: &'config MemoryZoneConfig,
    /// Told of what is populated.
    tally: &'config dyn Tally,
    /// Whether mappings begin where a huge page could.
    in_blocks: bool,
}

impl fmt::Debug for Backing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backing")
            .field("zone", self.zone)
            .field("in_blocks", &self.in_blocks)
            .finish_non_exhaustive()
    }
}

impl<'config> Backing<'config> {
    /// The backing that a zone's configuration asks for. `tally` is told of bytes that are populated.
    pub fn of(zone: &'config MemoryZoneConfig, tally: &'config dyn Tally) -> Self {
        Self { zone, tally, in_blocks: false }
    }

    /// The same, mapped from where a huge page could begin, so that parts of the size of huge pages can be replaced
    /// by some. The kernel sees to that by itself for some kinds of memory only.
    #[must_use]
    pub fn in_blocks(self, in_blocks: bool) -> Self {
        Self { in_blocks, ..self }
    }

    /// Whether the host has the node that the zone is to come from, asked without having any of it.
    ///
    /// # Errors
    /// It has not, or this process may not have its memory.
    pub fn check_node(&self) -> Result<(), BackingError> {
        let zone = &self.zone.id;
        let Some(node) = self.zone.host_numa_node else { return Ok(()) };
        // The kernel says so of any memory: a page will do.
        let page = mapping::page().map_err(|source| BackingError::Map {
            zone: zone.clone(),
            size: PAGE_SIZE,
            source,
        })?;
        mapping::bind(&page, node).map_err(|source| BackingError::Node { zone: zone.clone(), node, source })
    }

    /// Maps it.
    ///
    /// # Errors
    /// The host refuses, or it was given up.
    pub fn map(&self) -> Result<Arc<MmapRegion>, BackingError> {
        let file = self.file()?;
        self.map_file(file.map(|file| FileOffset::new(file, 0)))
    }

    /// Maps memory of a restored machine: its `own` file, if it uses it ([`OwnFiles`](super::OwnFiles)), or else
    /// memory that is zero. What is in a named file otherwise is another machine's, or a snapshot's.
    ///
    /// # Errors
    /// The host refuses, or it was given up.
    pub fn map_again(&self, own: Option<FileOffset>) -> Result<Arc<MmapRegion>, BackingError> {
        let named = self.zone.file.as_ref().is_some_and(|path| !path.is_dir());
        if own.is_some() || named { self.map_file(own) } else { self.map() }
    }

    /// Maps the content of another file, and that of others over it; all stay as they are.
    ///
    /// # Errors
    /// The host refuses.
    pub fn map_over(
        &self,
        content: FileOffset,
        overlays: &Overlays<'_>,
    ) -> Result<Arc<MmapRegion>, BackingError> {
        self.map_showing(Some(content), overlays)
    }

    fn map_file(&self, file: Option<FileOffset>) -> Result<Arc<MmapRegion>, BackingError> {
        self.map_showing(file, &Overlays::default())
    }

    fn map_showing(
        &self,
        file: Option<FileOffset>,
        overlays: &Overlays<'_>,
    ) -> Result<Arc<MmapRegion>, BackingError> {
        let zone = &self.zone.id;
        let size = self.zone.size;
        let host = crate::host::memory_and_swap();
        let length = usize::try_from(size).ok().filter(|_| size <= host);
        let Some(length) = length else {
            return Err(BackingError::TooLarge { zone: zone.clone(), size, host });
        };
        let huge = file.as_ref().and_then(|file| huge_page(file.file()));
        let mut flags = match (&file, self.zone.shared) {
            (None, _) => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            (Some(_), true) => libc::MAP_SHARED,
            (Some(_), false) => libc::MAP_PRIVATE,
        };
        // Huge pages are always reserved: a guest that finds none when it writes would be killed for it.
        if !self.zone.reserve && huge.is_none() {
            flags |= libc::MAP_NORESERVE;
        }
        // Without, huge pages are small ones.
        let gap = self.in_blocks.then(|| mapping::Gap::make(length, HUGE_PAGE).ok());
        let mapping = MmapRegion::build(file, length, libc::PROT_READ | libc::PROT_WRITE, flags);
        drop(gap);
        let mapping = mapping.map_err(|source| match (huge, source) {
            (Some(page), MmapRegionError::Mmap(source)) => {
                BackingError::HugePages { zone: zone.clone(), size, page, source }
            }
            (_, source) => BackingError::Map { zone: zone.clone(), size, source },
        })?;
        overlays.show(zone, &mapping)?;
        self.settle(&mapping, huge)?;
        Ok(Arc::new(mapping))
    }

    /// Where the pages of a fresh mapping come from, of which kind they are, and whether they are there at once.
    fn settle(&self, mapping: &MmapRegion, huge: Option<u64>) -> Result<(), BackingError> {
        let MemoryZoneConfig { id: zone, host_numa_node, thp, mergeable, prefault, .. } = self.zone;
        if let Some(node) = *host_numa_node {
            let bound = mapping::bind(mapping, node);
            bound.map_err(|source| BackingError::Node { zone: zone.clone(), node, source })?;
        }
        if huge.is_none() {
            let advice = if *thp { Advice::LinuxHugepage } else { Advice::LinuxNoHugepage };
            // A kernel without transparent huge pages refuses both: small ones are what there is.
            let _ = mapping::advise(mapping, advice);
        }
        let failed = |what| move |source| BackingError::Advise { zone: zone.clone(), what, source };
        if *mergeable {
            let advised = mapping::advise(mapping, Advice::LinuxMergeable);
            advised.map_err(failed("merge equal pages (KSM)"))?;
        }
        if *prefault {
            let populated = mapping::populate(mapping, huge, self.tally);
            if !populated.map_err(failed("populate all of it"))? {
                return Err(BackingError::Cancelled);
            }
        }
        Ok(())
    }

    /// The file to map, for the kinds of backing that have one.
    fn file(&self) -> Result<Option<File>, BackingError> {
        let MemoryZoneConfig { id, size, file, shared, hugepage_size, .. } = self.zone;
        let failed = |source: io::Error| BackingError::Size { zone: id.clone(), size: *size, source };
        if let Some(path) = file {
            return open(self.zone, path).map(Some);
        }
        if !shared && hugepage_size.is_none() {
            return Ok(None);
        }
        let mut flags = MemfdFlags::CLOEXEC;
        if let Some(page) = hugepage_size {
            flags |= MemfdFlags::HUGETLB;
            // The page size travels as its logarithm in the upper bits (memfd_create(2)).
            flags |= MemfdFlags::from_bits_retain(page.trailing_zeros() << 26);
        }
        let file = memfd_create(id.as_str(), flags).map_err(|errno| match hugepage_size {
            Some(page) => {
                BackingError::HugePages { zone: id.clone(), size: *size, page: *page, source: errno.into() }
            }
            None => failed(errno.into()),
        })?;
        let file = File::from(file);
        file.set_len(*size).map_err(failed)?;
        Ok(Some(file))
    }
}

/// Opens a zone's file, which is locked, or a nameless one in a directory, and makes it long enough.
fn open(zone: &MemoryZoneConfig, path: &Path) -> Result<File, BackingError> {
    let (id, size) = (&zone.id, zone.size);
    let cannot_open = |source| BackingError::Open { zone: id.clone(), path: path.to_owned(), source };
    let file = if path.is_dir() {
        let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        File::from(rustix::fs::open(path, flags, mode).map_err(|errno| cannot_open(errno.into()))?)
    } else {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path).map_err(cannot_open)?;
        lock(zone, path, &file, Locking::Take)?;
        file
    };
    let too_short = |source| BackingError::Length { zone: id.clone(), path: path.to_owned(), size, source };
    if file.metadata().map_err(too_short)?.len() < size {
        file.set_len(size).map_err(too_short)?;
    }
    Ok(file)
}

/// Size of the huge pages that a file consists of; `None` if they are of the usual size.
fn huge_page(file: &File) -> Option<u64> {
    // HUGETLBFS_MAGIC of <linux/magic.h>.
    const HUGETLBFS: i64 = 0x9584_58f6;
    let system = rustix::fs::fstatfs(file).ok().filter(|system| system.f_type == HUGETLBFS)?;
    u64::try_from(system.f_bsize).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn zone() -> MemoryZoneConfig {
        MemoryZoneConfig {
            id: "z".into(),
            size: 4 << 20,
            file: None,
            shared: false,
            hugepage_size: None,
            host_numa_node: None,
            prefault: false,
            reserve: false,
            mergeable: false,
            thp: true,
            hotplug_size: 0,
        }
    }

    fn map(change: impl FnOnce(&mut MemoryZoneConfig)) -> Result<Arc<MmapRegion>, BackingError> {
        let mut zone = zone();
        change(&mut zone);
        Backing::of(&zone, &()).map()
    }

    /// What the kernel says of a mapping, by name.
    fn said(mapping: &MmapRegion, name: &str) -> String {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut found = false;
        for line in maps.lines() {
            if line.contains('-')
                && line.split('-').next().is_some_and(|word| u64::from_str_radix(word, 16).is_ok())
            {
                let (start, rest) = line.split_once('-').unwrap();
                let (end, _) = rest.split_once(' ').unwrap();
                let at = mapping.as_ptr() as u64;
                let [start, end] = [start, end].map(|word| u64::from_str_radix(word, 16).unwrap());
                found = (start..end).contains(&at);
            } else if found && let Some(value) = line.strip_prefix(name) {
                return value.trim_start_matches(':').trim().to_owned();
            }
        }
        panic!("smaps has no {name} of the mapping");
    }

    fn has_flag(mapping: &MmapRegion, flag: &str) -> bool {
        said(mapping, "VmFlags").split(' ').any(|word| word == flag)
    }

    #[test]
    fn every_option_reaches_the_kernel() {
        let plain = map(|_| ()).unwrap();
        assert!(has_flag(&plain, "nr") && has_flag(&plain, "hg") && !has_flag(&plain, "sh"));
        assert_eq!(said(&plain, "Rss"), "0 kB");
        assert!(!has_flag(&map(|zone| zone.reserve = true).unwrap(), "nr"));
        assert!(has_flag(&map(|zone| zone.thp = false).unwrap(), "nh"));
        assert!(has_flag(&map(|zone| zone.shared = true).unwrap(), "sh"));
        assert!(has_flag(&map(|zone| zone.mergeable = true).unwrap(), "mg"));
        for shared in [false, true] {
            let there = map(|zone| (zone.prefault, zone.shared) = (true, shared)).unwrap();
            assert_eq!(said(&there, "Rss"), "4096 kB");
        }
    }

    /// Wants it given up after so many bytes.
    struct Until(u64, AtomicU64);

    impl Tally for Until {
        fn add(&self, bytes: u64) {
            self.1.fetch_add(bytes, Ordering::Relaxed);
        }

        fn is_cancelled(&self) -> bool {
            self.1.load(Ordering::Relaxed) >= self.0
        }
    }

    #[test]
    fn populating_tells_how_far_it_is_and_can_be_given_up() {
        let mut zone = zone();
        // The kernel would have private memory be one mapping with that of another test.
        (zone.prefault, zone.shared, zone.size) = (true, true, (200 << 20) + 4096);
        let tally = Until(u64::MAX, AtomicU64::new(0));
        drop(Backing::of(&zone, &tally).map().unwrap());
        assert_eq!(tally.1.into_inner(), zone.size);
        let tally = Until(1, AtomicU64::new(0));
        let error = Backing::of(&zone, &tally).map().unwrap_err();
        assert!(matches!(error, BackingError::Cancelled), "{error}");
        // Each thread may have been at a piece when the first was done.
        let done = tally.1.into_inner();
        assert!((16 << 20..zone.size).contains(&done), "{done}");
        // Nobody looks where nothing is populated.
        zone.prefault = false;
        drop(Backing::of(&zone, &Until(0, AtomicU64::new(0))).map().unwrap());
    }

    #[test]
    fn memory_comes_from_the_node_that_is_asked_for() {
        let bound = map(|zone| (zone.host_numa_node, zone.prefault) = (Some(0), true)).unwrap();
        let at = format!("{:x} ", bound.as_ptr() as u64);
        let maps = std::fs::read_to_string("/proc/self/numa_maps").unwrap();
        let line = maps.lines().find(|line| line.starts_with(&at)).unwrap();
        assert!(line.contains("bind:0"), "{line}");
        let ask = |node| {
            let mut zone = zone();
            zone.host_numa_node = node;
            Backing::of(&zone, &()).check_node().map_err(|error| error.to_string())
        };
        assert_eq!((ask(None), ask(Some(0))), (Ok(()), Ok(())));
        for node in [999, 1 << 20] {
            assert!(ask(Some(node)).unwrap_err().contains(&format!("host NUMA node {node}")));
            let error = map(|zone| zone.host_numa_node = Some(node)).unwrap_err();
            assert!(error.to_string().contains(&format!("host NUMA node {node}")), "{error}");
        }
    }

    #[test]
    fn huge_pages_that_are_not_there_are_an_error() {
        // No host has so many, and none has pages of 8 KiB.
        for (page, size) in [(1 << 30, 1 << 46), (8192, 4 << 20)] {
            let refused = map(|zone| (zone.hugepage_size, zone.size) = (Some(page), size));
            let Err(error) = refused else { panic!("{page}") };
            let said = error.to_string();
            assert!(said.contains("memory zone z") && said.contains(&size.to_string()), "{said}");
        }
        // What the host has free is had, and reserved.
        let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
        let free: u64 = free.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let error =
            map(|zone| (zone.hugepage_size, zone.size) = (Some(2 << 20), (free + 1) << 21)).unwrap_err();
        assert!(error.to_string().contains("huge pages of 2097152 bytes"), "{error}");
    }

    #[test]
    fn a_file_keeps_what_is_written_to_shared_memory() {
        use vm_memory::{Bytes, VolatileMemory};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memory");
        for (shared, kept) in [(false, 0), (true, 7)] {
            let mapping = map(|zone| (zone.file, zone.shared) = (Some(path.clone()), shared)).unwrap();
            mapping.as_volatile_slice().write_obj(7u8, 0).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!((bytes.len(), bytes[0]), (4 << 20, kept));
        }
        // A directory is a place for a file without a name.
        map(|zone| zone.file = Some(directory.path().into())).unwrap();
        assert_eq!(directory.path().read_dir().unwrap().count(), 1);
    }
}
