//! Raw images: a file or a block device whose bytes are the disk's.
#![expect(unsafe_code, reason = "ioctls of block devices")]

use std::{
    fs::File,
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, FileTypeExt},
    },
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use log::{info, warn};
use thiserror::Error;

use super::{
    DiskImage, Geometry, SECTOR,
    engine::{Engine, EngineKind},
};
use crate::host::lock::{self, Granularity, LockError};

/// An image cannot be used.
#[derive(Debug, Error)]
pub enum RawError {
    /// The file is no regular file and no block device.
    #[error("the image is neither a file nor a block device")]
    Kind,
    /// The file has no room for a sector.
    #[error("the image has {0} bytes, less than a sector")]
    Empty(u64),
    /// Something about the file cannot be found out.
    #[error("cannot find out the image's {what}")]
    Ask {
        /// What.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Direct I/O was asked for and does not work.
    #[error("the image's file system does not do direct I/O")]
    Direct,
}

impl RawError {
    fn ask(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Ask { what, source }
    }
}

/// How an image is used.
#[derive(Clone, Copy, Debug)]
pub struct RawOptions {
    /// The file was opened for reading alone.
    pub read_only: bool,
    /// The file was opened with `O_DIRECT`.
    pub direct: bool,
    /// Space that the guest does not need is given back.
    pub sparse: bool,
    /// What is locked.
    pub lock: Granularity,
    /// io_uring may be used.
    pub io_uring: bool,
    /// Linux AIO may be used.
    pub aio: bool,
}

/// A raw image.
#[derive(Debug)]
pub struct RawImage {
    file: Arc<File>,
    options: RawOptions,
    size: AtomicU64,
    block_device: bool,
    geometry: Geometry,
    alignment: usize,
    engine: EngineKind,
}

impl RawImage {
    /// The image in an opened file.
    ///
    /// # Errors
    /// The file is nothing that a disk can be in.
    pub fn new(file: File, options: RawOptions) -> Result<Self, RawError> {
        let metadata = file.metadata().map_err(RawError::ask("kind"))?;
        let kind = metadata.file_type();
        let block_device = kind.is_block_device();
        if !block_device && !kind.is_file() {
            return Err(RawError::Kind);
        }
        let size = if block_device {
            device::number(&file, device::Number::Size).map_err(RawError::ask("size"))?
        } else {
            metadata.len()
        };
        if size < SECTOR {
            return Err(RawError::Empty(size));
        }
        if !size.is_multiple_of(SECTOR) {
            warn!("the image's last {} bytes are no whole sector and are left out", size % SECTOR);
        }
        let alignment = if options.direct { direct_alignment(&file)? } else { 1 };
        let geometry = if block_device {
            device_geometry(&file)
        } else {
            let logical_block = u32::try_from(alignment).unwrap_or(0).max(512);
            let physical_block = logical_block.max(4096);
            Geometry { logical_block, physical_block, minimum_io: physical_block, optimal_io: 0 }
        };
        let engine = choose(options);
        info!("image of {size} bytes, engine {engine}, alignment {alignment}");
        let file = Arc::new(file);
        Ok(Self { file, options, size: AtomicU64::new(size), block_device, geometry, alignment, engine })
    }
}

/// The best engine that is allowed.
fn choose(options: RawOptions) -> EngineKind {
    let allowed = |kind: &EngineKind| match kind {
        EngineKind::IoUring => options.io_uring,
        EngineKind::Aio => options.aio,
        EngineKind::Synchronous => true,
    };
    let best = EngineKind::ALL.into_iter().find(|kind| allowed(kind) && kind.is_available());
    best.unwrap_or(EngineKind::Synchronous)
}

/// What direct I/O on this file wants offsets, lengths and addresses to be multiples of: found by trying.
fn direct_alignment(file: &File) -> Result<usize, RawError> {
    let mut memory = vec![0; 3 * 4096];
    let base = memory.as_ptr().align_offset(4096);
    for align in [512, 1024, 2048, 4096] {
        // An address that is a multiple of `align` and of nothing larger.
        let start = base + align % 4096;
        let Some(part) = memory.get_mut(start..start + align) else { continue };
        match file.read_at(part, 0) {
            Ok(_) => return Ok(align),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(source) => return Err(RawError::Ask { what: "alignment", source }),
        }
    }
    Err(RawError::Direct)
}

fn device_geometry(file: &File) -> Geometry {
    let number = |which, default| {
        device::number(file, which).ok().and_then(|value| u32::try_from(value).ok()).unwrap_or(default)
    };
    let power = |value: u32, default| if value >= 512 && value.is_power_of_two() { value } else { default };
    let logical_block = power(number(device::Number::LogicalBlock, 512), 512);
    let physical_block = power(number(device::Number::PhysicalBlock, logical_block), logical_block);
    Geometry {
        logical_block,
        physical_block: physical_block.max(logical_block),
        minimum_io: number(device::Number::MinimumIo, physical_block),
        optimal_io: number(device::Number::OptimalIo, 0),
    }
}

impl DiskImage for RawImage {
    fn size_bytes(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn memory_alignment(&self) -> usize {
        self.alignment
    }

    fn can_discard(&self) -> bool {
        self.options.sparse && !self.options.read_only
    }

    fn engine_name(&self) -> &'static str {
        self.engine.name()
    }

    fn new_engine(&self, depth: u16) -> io::Result<Box<dyn Engine>> {
        match self.engine.create(&self.file, depth) {
            Err(error) if self.engine != EngineKind::Synchronous => {
                warn!("engine {}: {error}; this queue is served synchronously", self.engine);
                EngineKind::Synchronous.create(&self.file, depth)
            }
            other => other,
        }
    }

    fn lock(&self) -> Result<(), LockError> {
        lock::lock(&self.file, self.options.lock, self.options.read_only, self.size_bytes())
    }

    fn check_lock(&self) -> Result<(), LockError> {
        lock::check(&self.file, self.options.lock, self.options.read_only, self.size_bytes())
    }

    fn unlock(&self) -> Result<(), LockError> {
        lock::unlock(&self.file)
    }

    fn resize(&self, size_bytes: u64) -> io::Result<()> {
        let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why);
        if self.options.read_only {
            return Err(invalid("the disk is read-only"));
        }
        if size_bytes < SECTOR || !size_bytes.is_multiple_of(u64::from(self.geometry.logical_block)) {
            return Err(invalid("the size is no multiple of the disk's block size"));
        }
        if self.block_device {
            // The device was resized by other means; the disk may be any part of it.
            if size_bytes > device::number(&self.file, device::Number::Size)? {
                return Err(invalid("the block device is smaller than that"));
            }
        } else {
            self.file.set_len(size_bytes)?;
        }
        self.size.store(size_bytes, Ordering::Release);
        Ok(())
    }
}

mod device {
    use super::{AsRawFd, File, io};

    /// What a block device can be asked.
    #[derive(Clone, Copy)]
    pub(super) enum Number {
        Size,
        LogicalBlock,
        PhysicalBlock,
        MinimumIo,
        OptimalIo,
    }

    /// Asks a block device.
    pub(super) fn number(file: &File, which: Number) -> io::Result<u64> {
        // <linux/fs.h>
        const BLKSSZGET: libc::c_ulong = 0x1268;
        const BLKIOMIN: libc::c_ulong = 0x1278;
        const BLKIOOPT: libc::c_ulong = 0x1279;
        const BLKPBSZGET: libc::c_ulong = 0x127b;
        const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
        let request = match which {
            Number::Size => BLKGETSIZE64,
            Number::LogicalBlock => BLKSSZGET,
            Number::PhysicalBlock => BLKPBSZGET,
            Number::MinimumIo => BLKIOMIN,
            Number::OptimalIo => BLKIOOPT,
        };
        // The size is a 64-bit number, the others are 32-bit ones: the low half of this one.
        let mut value = 0u64;
        // SAFETY: the descriptor is open, and each of these requests writes 4 or 8 bytes to the address.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut value) };
        if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
    }
}
