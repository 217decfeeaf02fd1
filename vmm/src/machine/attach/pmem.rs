//! Virtio persistent memory: opens the file, and builds the device in front of a window that was mapped before.

use std::{
    fs::{File, Metadata, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{Mode, OFlags};
use thiserror::Error;
use virtio_devices::{
    host::lock::{self, Granularity},
    pmem::{self, Pmem, PmemState},
    worker::PlainThreads,
};
use vm_memory::mmap::MmapRegionError;

use super::{AttachError, Attached, Context, Control, ImageLocks, virtio};
use crate::{
    config::{PMEM_ALIGNMENT, PmemConfig},
    layout::{DeviceLayout, RangeLayout},
    memory::{Keeping, PersistentMemory},
};

/// A file cannot be persistent memory.
#[derive(Debug, Error)]
pub enum PmemError {
    /// It is a pipe or a device.
    #[error("it is neither a file nor a directory")]
    Kind,
    /// A directory is a place for a file whose length nobody knows.
    #[error("it is a directory: a size is needed for the nameless file in it")]
    NoSize,
    /// A file that is made has nothing that could stay as it is.
    #[error("it is a directory: discard_writes is for a file that is there")]
    NothingToKeep,
    /// Its length is no window's.
    #[error("it has {0} bytes: a multiple of 2 MiB above 0 is needed, where no size is given")]
    Length(u64),
    /// The window is larger.
    #[error("it has {found} bytes, and the device has {wanted}")]
    Short {
        /// Bytes of the file.
        found: u64,
        /// Bytes of the window.
        wanted: u64,
    },
    /// It cannot be asked for its length, or not be made as long as the window.
    #[error("its length")]
    Ask(#[source] io::Error),
    /// It cannot be mapped.
    #[error("cannot map {size} bytes of it")]
    Map {
        /// Bytes of the window.
        size: u64,
        /// Why.
        #[source]
        source: MmapRegionError,
    },
    /// Nothing was mapped for the device.
    #[error("it has no window")]
    NoWindow,
}

/// A file that was looked at and can be persistent memory.
#[derive(Debug)]
pub struct PmemFile {
    path: PathBuf,
    /// None if it is only looked at.
    file: Option<File>,
    keeping: Keeping,
    /// Bytes of the window.
    size: u64,
}

impl PmemFile {
    /// Opens the file of a device; a nameless one in a directory. Nothing of one that is there is changed. `known` is the
    /// length of the window that a saved guest knows: the file may have grown since.
    ///
    /// # Errors
    /// It cannot be opened, or not fill the window.
    pub fn open(config: &PmemConfig, known: Option<u64>) -> Result<Self, AttachError> {
        Self::find(config, known, true)
    }

    fn find(config: &PmemConfig, known: Option<u64>, make: bool) -> Result<Self, AttachError> {
        let PmemConfig { id: _, place: _, file: path, size, discard_writes } = config;
        let wrong = |error| unusable(path, error);
        if path.is_dir() {
            let size = size.ok_or_else(|| wrong(PmemError::NoSize))?;
            if *discard_writes {
                return Err(wrong(PmemError::NothingToKeep));
            }
            let file = if make { Some(nameless(path, size)?) } else { None };
            return Ok(Self { path: path.clone(), file, keeping: Keeping::Nameless, size });
        }
        // A pipe would keep this thread waiting.
        let mut options = OpenOptions::new();
        options.read(true).write(!discard_writes).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let file = options.open(path).map_err(|source| AttachError::Open { path: path.clone(), source })?;
        let found = file.metadata().map_err(|error| wrong(PmemError::Ask(error)))?;
        let window = window_size(&found, known.or(*size)).map_err(wrong)?;
        if size.is_none() && window < found.len() {
            log::warn!("{}: {} bytes, of which the guest knows {window}", path.display(), found.len());
        }
        let keeping = if *discard_writes { Keeping::Discarded } else { Keeping::File };
        Ok(Self { path: path.clone(), file: Some(file), keeping, size: window })
    }

    /// Bytes of the window.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Maps as much of it as the window has.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn map(self) -> Result<PersistentMemory, AttachError> {
        let Self { path, file, keeping, size } = self;
        let file = file.ok_or_else(|| unusable(&path, PmemError::NoWindow))?;
        PersistentMemory::map(file, size, keeping)
            .map_err(|source| unusable(&path, PmemError::Map { size, source }))
    }
}

/// Bytes of the window that shows a file.
fn window_size(found: &Metadata, asked: Option<u64>) -> Result<u64, PmemError> {
    let length = found.len();
    if !found.is_file() {
        return Err(PmemError::Kind);
    }
    match asked {
        Some(wanted) if wanted > length => Err(PmemError::Short { found: length, wanted }),
        Some(wanted) => Ok(wanted),
        None if length == 0 || !length.is_multiple_of(PMEM_ALIGNMENT) => Err(PmemError::Length(length)),
        None => Ok(length),
    }
}

/// A file in a directory that nobody else can find.
fn nameless(path: &Path, size: u64) -> Result<File, AttachError> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR);
    let file = file.map_err(|errno| AttachError::Open { path: path.to_path_buf(), source: errno.into() })?;
    let file = File::from(file);
    file.set_len(size).map_err(|error| unusable(path, PmemError::Ask(error)))?;
    Ok(file)
}

fn unusable(path: &Path, error: PmemError) -> AttachError {
    AttachError::Image { path: path.to_path_buf(), source: Box::new(error) }
}

/// The persistent memory of a machine: its file, and whether what is written is lost.
#[derive(Clone, Debug)]
pub struct Window {
    path: PathBuf,
    memory: Arc<PersistentMemory>,
    size: u64,
}

impl Window {
    /// Makes sure that nobody else uses the file against our use of it. Does nothing if it is locked already.
    ///
    /// # Errors
    /// Somebody does.
    pub fn lock(&self) -> Result<(), AttachError> {
        let Some(read_only) = is_read_only(self.memory.keeping()) else { return Ok(()) };
        lock::lock(self.memory.file(), Granularity::ByteRange, read_only, self.size)
            .map_err(|source| AttachError::Locked { path: self.path.clone(), source })
    }

    /// Lets others use the file, for a machine that is handed over.
    ///
    /// # Errors
    /// The host refuses.
    pub fn unlock(&self) -> Result<(), AttachError> {
        lock::unlock(self.memory.file())
            .map_err(|source| AttachError::Locked { path: self.path.clone(), source })
    }

    /// Its memory.
    pub fn memory(&self) -> &PersistentMemory {
        &self.memory
    }
}

/// Whether a file is locked for reading alone; none that nobody else can open is.
fn is_read_only(keeping: Keeping) -> Option<bool> {
    match keeping {
        Keeping::Nameless => None,
        Keeping::File => Some(false),
        Keeping::Discarded => Some(true),
    }
}

/// Locks the file and builds the device; the file was opened and mapped before.
///
/// # Errors
/// The file is in use, or the host has no descriptor left.
pub fn attach(
    config: &PmemConfig,
    layout: &DeviceLayout,
    context: &Context<'_>,
) -> Result<Attached, AttachError> {
    let path = &config.file;
    let no_window = || unusable(path, PmemError::NoWindow);
    let memory = context.persistent.get(&config.id).ok_or_else(no_window)?;
    let RangeLayout { base, size } = layout.window.ok_or_else(no_window)?;
    let window = Window { path: path.clone(), memory: Arc::clone(memory), size };
    if context.image_locks == ImageLocks::Now {
        window.lock()?;
    }
    log::info!("{}: {} at {base:#x}, {size} bytes", config.id, path.display());
    let parts = pmem::PmemConfig { id: config.id.clone(), start: base, size };
    let device = Pmem::new(parts, memory.store(), Arc::new(PlainThreads));
    let device = virtio::function(Box::new(device), layout, context, true).map_err(AttachError::Function)?;
    Ok(Attached { device, control: Control::Pmem(window) })
}

/// Whether the file is there, can fill the window that the guest knows, and is nobody else's.
///
/// # Errors
/// It is not, or cannot.
pub fn probe(config: &PmemConfig, saved: &PmemState) -> Result<(), AttachError> {
    let PmemFile { path, file, keeping, size } = PmemFile::find(config, Some(saved.size), false)?;
    let (Some(file), Some(read_only)) = (file, is_read_only(keeping)) else { return Ok(()) };
    lock::check(&file, Granularity::ByteRange, read_only, size)
        .map_err(|source| AttachError::Locked { path, source })
}

#[cfg(test)]
mod tests {
    use tempfile::NamedTempFile;

    use super::*;
    use crate::config::PciPlace;

    const MIB2: u64 = 2 << 20;

    fn of(path: &Path, size: Option<u64>, discard_writes: bool) -> PmemConfig {
        let place = PciPlace::default();
        PmemConfig { id: "p".into(), place, file: path.into(), size, discard_writes }
    }

    fn refusal(config: &PmemConfig) -> String {
        let said = crate::error::chain(&PmemFile::open(config, None).unwrap_err());
        assert_eq!(crate::error::chain(&PmemFile::find(config, None, false).unwrap_err()), said);
        assert!(said.contains(config.file.to_str().unwrap()), "{said}");
        said
    }

    #[test]
    fn a_window_is_as_large_as_the_file_or_as_is_said() {
        let named = NamedTempFile::new().unwrap();
        for (length, asked, expected) in [
            (MIB2, None, Ok(MIB2)),
            (3 * MIB2, None, Ok(3 * MIB2)),
            (3 * MIB2 + 1, Some(2 * MIB2), Ok(2 * MIB2)),
            (0, None, Err("it has 0 bytes: a multiple of 2 MiB")),
            (MIB2 + 4096, None, Err("it has 2101248 bytes: a multiple of 2 MiB")),
            (MIB2, Some(2 * MIB2), Err("it has 2097152 bytes, and the device has 4194304")),
        ] {
            named.as_file().set_len(length).unwrap();
            for discard in [false, true] {
                let config = of(named.path(), asked, discard);
                match expected {
                    Ok(size) => {
                        let found = PmemFile::open(&config, None).unwrap();
                        assert_eq!(found.size(), size);
                        found.map().unwrap();
                    }
                    Err(why) => assert!(refusal(&config).contains(why), "{}", refusal(&config)),
                }
            }
            assert_eq!(named.as_file().metadata().unwrap().len(), length, "the file is as it was");
        }
    }

    #[test]
    fn the_window_that_the_guest_knows_fits_a_file_that_has_grown() {
        let named = NamedTempFile::new().unwrap();
        let mut config = of(named.path(), None, false);
        let state = PmemState { start: 0, size: 2 * MIB2 };
        for length in [2 * MIB2, 2 * MIB2 + 7, 3 * MIB2] {
            named.as_file().set_len(length).unwrap();
            probe(&config, &state).unwrap();
            let found = PmemFile::open(&config, Some(state.size)).unwrap();
            assert_eq!(found.size(), 2 * MIB2);
            found.map().unwrap();
        }
        named.as_file().set_len(2 * MIB2 - 1).unwrap();
        let said = crate::error::chain(&probe(&config, &state).unwrap_err());
        assert!(said.contains("it has 4194303 bytes, and the device has 4194304"), "{said}");
        config.file = named.path().with_extension("missing");
        assert!(refusal(&config).contains("cannot open"));
    }

    #[test]
    fn a_look_finds_that_a_file_is_in_use_and_keeps_nobody_from_it() {
        let named = NamedTempFile::new().unwrap();
        named.as_file().set_len(MIB2).unwrap();
        let state = PmemState { start: 0, size: MIB2 };
        let look = |discard| probe(&of(named.path(), None, discard), &state);
        let lock = |read_only| lock::lock(named.as_file(), Granularity::ByteRange, read_only, MIB2);
        lock(true).unwrap();
        look(true).unwrap();
        let said = crate::error::chain(&look(false).unwrap_err());
        assert!(said.contains("cannot lock") && said.contains("holds a read lock"), "{said}");
        lock(false).unwrap();
        for discard in [false, true] {
            let said = crate::error::chain(&look(discard).unwrap_err());
            assert!(said.contains("holds a write lock"), "{said}");
        }
        lock::unlock(named.as_file()).unwrap();
        look(false).unwrap();
        lock(false).unwrap();
    }

    #[test]
    fn what_is_no_file_is_refused_and_keeps_nobody_waiting() {
        use rustix::fs::{CWD, FileType, mknodat};
        let place = tempfile::tempdir().unwrap();
        let pipe = place.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(refusal(&of(&pipe, None, true)).contains("neither a file nor a directory"));
        assert!(refusal(&of(Path::new("/dev/null"), None, false)).contains("neither a file nor a directory"));
    }

    #[test]
    fn a_directory_is_a_place_for_a_nameless_file() {
        let place = tempfile::tempdir().unwrap();
        assert!(refusal(&of(place.path(), None, false)).contains("a size is needed"));
        assert!(refusal(&of(place.path(), Some(MIB2), true)).contains("discard_writes"));
        let config = of(place.path(), Some(MIB2), false);
        let memory = PmemFile::open(&config, None).unwrap().map().unwrap();
        assert_eq!(memory.keeping(), Keeping::Nameless);
        assert_eq!(place.path().read_dir().unwrap().count(), 0);
        // A look makes nothing that could be mapped.
        assert!(PmemFile::find(&config, None, false).unwrap().map().is_err());
    }
}
