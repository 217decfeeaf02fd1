//! The host memory of one zone: anonymous, a shared memfd, a file, huge pages.

#![expect(unsafe_code, reason = "advising the kernel about a mapping is an unsafe call")]

use std::{
    fs::{File, OpenOptions},
    io,
    path::PathBuf,
    sync::Arc,
};

use rustix::fs::{MemfdFlags, memfd_create};
use thiserror::Error;
use vm_memory::{FileOffset, MmapRegion, mmap::MmapRegionError};

use crate::config::MemoryZoneConfig;

/// The memory of a zone could not be had.
#[derive(Debug, Error)]
pub enum BackingError {
    /// The zone is larger than the host.
    #[error("memory zone {zone}: {size} bytes are more than the host's memory and swap ({host} bytes)")]
    TooLarge {
        /// Which zone.
        zone: String,
        /// What was asked for.
        size: u64,
        /// What there is.
        host: u64,
    },
    /// The file cannot be opened.
    #[error("memory zone {zone}: cannot open {}", .path.display())]
    Open {
        /// Which zone.
        zone: String,
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file or memfd cannot be made as long as the zone.
    #[error("memory zone {zone}: cannot provide {size} bytes")]
    Size {
        /// Which zone.
        zone: String,
        /// What was asked for.
        size: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The memory cannot be mapped.
    #[error("memory zone {zone}: cannot map {size} bytes")]
    Map {
        /// Which zone.
        zone: String,
        /// What was asked for.
        size: u64,
        /// Why.
        #[source]
        source: MmapRegionError,
    },
    /// The kernel does not take an advice about the mapping.
    #[error("memory zone {zone}: cannot {what}")]
    Advise {
        /// Which zone.
        zone: String,
        /// What the kernel was asked to do.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// How one zone is backed.
#[derive(Debug)]
pub struct Backing<'config> {
    zone: &'config MemoryZoneConfig,
}

impl<'config> Backing<'config> {
    /// The backing that a zone's configuration asks for.
    pub fn of(zone: &'config MemoryZoneConfig) -> Self {
        Self { zone }
    }

    /// Maps it.
    ///
    /// # Errors
    /// The host refuses.
    pub fn map(&self) -> Result<Arc<MmapRegion>, BackingError> {
        let zone = &self.zone.id;
        let size = self.zone.size;
        let host = crate::host::memory_and_swap();
        let length = usize::try_from(size).ok().filter(|_| size <= host);
        let Some(length) = length else {
            return Err(BackingError::TooLarge { zone: zone.clone(), size, host });
        };
        let file = self.file()?;
        let mut flags = match (&file, self.zone.shared) {
            (None, _) => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            (Some(_), true) => libc::MAP_SHARED,
            (Some(_), false) => libc::MAP_PRIVATE,
        };
        if !self.zone.reserve {
            flags |= libc::MAP_NORESERVE;
        }
        if self.zone.prefault {
            flags |= libc::MAP_POPULATE;
        }
        let offset = file.map(|file| FileOffset::new(file, 0));
        let mapping = MmapRegion::build(offset, length, libc::PROT_READ | libc::PROT_WRITE, flags)
            .map_err(|source| BackingError::Map { zone: zone.clone(), size, source })?;
        if self.zone.thp && self.zone.hugepage_size.is_none() {
            // Where the kernel has no transparent huge pages, small ones are what there is.
            let _ = advise(&mapping, rustix::mm::Advice::LinuxHugepage);
        }
        if self.zone.mergeable {
            advise(&mapping, rustix::mm::Advice::LinuxMergeable).map_err(|source| BackingError::Advise {
                zone: zone.clone(),
                what: "merge equal pages (KSM)",
                source,
            })?;
        }
        Ok(Arc::new(mapping))
    }

    /// The file to map, for the kinds of backing that have one.
    fn file(&self) -> Result<Option<File>, BackingError> {
        let MemoryZoneConfig { id, size, file, shared, hugepage_size, .. } = self.zone;
        let failed = |source: io::Error| BackingError::Size { zone: id.clone(), size: *size, source };
        if let Some(path) = file {
            return open(id, path, *size).map(Some);
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
        let file = File::from(memfd_create(id.as_str(), flags).map_err(|errno| failed(errno.into()))?);
        file.set_len(*size).map_err(failed)?;
        Ok(Some(file))
    }
}

/// Opens a zone's file, or a nameless one in a directory, and makes it long enough.
fn open(zone: &str, path: &PathBuf, size: u64) -> Result<File, BackingError> {
    let cannot_open = |source| BackingError::Open { zone: zone.to_owned(), path: path.clone(), source };
    let file = if path.is_dir() {
        let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        File::from(rustix::fs::open(path, flags, mode).map_err(|errno| cannot_open(errno.into()))?)
    } else {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.open(path).map_err(cannot_open)?
    };
    let too_short = |source| BackingError::Size { zone: zone.to_owned(), size, source };
    if file.metadata().map_err(too_short)?.len() < size {
        file.set_len(size).map_err(too_short)?;
    }
    Ok(file)
}

fn advise(mapping: &MmapRegion, advice: rustix::mm::Advice) -> io::Result<()> {
    // SAFETY: the range is exactly one mapping of ours, and neither advice that is given here
    // changes its content.
    unsafe { rustix::mm::madvise(mapping.as_ptr().cast(), mapping.size(), advice) }?;
    Ok(())
}
