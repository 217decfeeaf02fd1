//! What the guest starts with: opens the images, has `arch` plan the boot, and copies the pieces
//! into guest memory.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use address_manager::GuestMemoryView;
use arch::x86_64::{
    boot::{self, BootError, BootPlan, BootRequest, Piece, PieceSource, ReadAt},
    layout::{self, Range},
    memory_map::{MemoryMap, MemoryMapEntry},
};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, mmap::MmapRegionError};

use crate::{config::Payload, layout::Layout, memory::content::Tally};

/// Images are read in pieces of so many bytes; between two of them it can be given up.
const PIECE: u64 = 16 << 20;

/// A payload that cannot be booted.
#[derive(Debug, Error)]
pub enum PayloadError {
    /// An image cannot be opened.
    #[error("{what}: cannot open {}", .path.display())]
    Open {
        /// Kernel, initramfs or firmware.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An image is no regular file, or an empty one.
    #[error("{what}: {} {why}", .path.display())]
    File {
        /// Kernel, initramfs or firmware.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The image cannot be booted.
    #[error("{what}: cannot boot {}", .path.display())]
    Boot {
        /// Kernel or firmware.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: BootError,
    },
    /// There is no memory for a copy of the firmware.
    #[error("firmware: no {size:#x} bytes of memory for it")]
    Room {
        /// Number of bytes.
        size: u64,
        /// Why.
        #[source]
        source: MmapRegionError,
    },
    /// Somebody asked for it to be given up.
    #[error("given up, as was asked for")]
    Cancelled,
    /// The guest's memory cannot be described to it.
    #[error("memory map")]
    Map(#[source] layout::LayoutError),
    /// An image cannot be read into guest memory.
    #[error("cannot load {size:#x} bytes at {at:#x}")]
    Load {
        /// Guest-physical address.
        at: u64,
        /// Number of bytes.
        size: u64,
        /// Why.
        #[source]
        source: GuestMemoryError,
    },
}

/// Images, opened and planned; nothing has been copied.
#[derive(Debug)]
pub struct OpenPayload {
    kernel: File,
    initramfs: Option<File>,
    /// Pieces and entry registers.
    pub plan: BootPlan,
}

/// A file as the planner reads it.
pub(super) struct Image<'file> {
    pub(super) file: &'file File,
    pub(super) size: u64,
}

impl ReadAt for Image<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

impl OpenPayload {
    /// Opens the images of `payload` and plans their boot into the memory of `layout`.
    ///
    /// # Errors
    /// An image is missing, empty, damaged, none that can be booted, or does not fit into memory.
    pub fn open(
        payload: &Payload,
        layout: &Layout,
        rsdp: u64,
        taken: &[MemoryMapEntry],
    ) -> Result<Self, PayloadError> {
        let (what, path, initramfs, cmdline) = match payload {
            Payload::Kernel { kernel, initramfs, cmdline } => {
                ("kernel", kernel, initramfs.as_deref(), cmdline.as_bytes())
            }
            Payload::Firmware { firmware } => ("firmware", firmware, None, &[][..]),
        };
        let memory = memory_map(layout, taken).map_err(PayloadError::Map)?;
        let (kernel, size) = open(what, path)?;
        let initramfs = initramfs.map(|path| open("initramfs", path)).transpose()?;
        let image = Image { file: &kernel, size };
        let request = BootRequest {
            kernel: &image,
            initramfs_size: initramfs.as_ref().map(|(_, size)| *size),
            cmdline,
            memory: &memory,
            rsdp,
        };
        let plan =
            boot::plan(&request).map_err(|source| PayloadError::Boot { what, path: path.clone(), source })?;
        Ok(Self { kernel, initramfs: initramfs.map(|(file, _)| file), plan })
    }

    /// Copies the pieces into fresh guest memory.
    ///
    /// # Errors
    /// A file cannot be read, or a piece does not lie in memory.
    pub fn load(&self, memory: &GuestMemoryView, tally: &dyn Tally) -> Result<(), PayloadError> {
        self.plan.pieces.iter().try_for_each(|piece| self.load_piece(piece, memory, tally))
    }

    fn load_piece(
        &self,
        piece: &Piece,
        memory: &GuestMemoryView,
        tally: &dyn Tally,
    ) -> Result<(), PayloadError> {
        match &piece.source {
            PieceSource::Kernel { offset, len } => {
                copy(&self.kernel, *offset, *len, piece.at, (memory, tally))
            }
            PieceSource::Initramfs { len } => match &self.initramfs {
                Some(file) => copy(file, 0, *len, piece.at, (memory, tally)),
                None => Ok(()),
            },
            PieceSource::Bytes(bytes) => write(bytes, piece.at, memory),
            // Guest memory that has just been mapped is zero.
            PieceSource::Zero { .. } => Ok(()),
        }
    }
}

/// Writes bytes into guest memory.
///
/// # Errors
/// They do not lie in memory.
pub fn write(bytes: &[u8], at: u64, memory: &GuestMemoryView) -> Result<(), PayloadError> {
    let size = bytes.len() as u64;
    memory.write_slice(bytes, GuestAddress(at)).map_err(|source| PayloadError::Load { at, size, source })
}

/// RAM as the guest is told of it.
///
/// # Errors
/// Too many ranges.
fn memory_map(layout: &Layout, taken: &[MemoryMapEntry]) -> Result<MemoryMap, layout::LayoutError> {
    let ram: Vec<Range> = layout.ram.iter().map(|part| Range { start: part.base, size: part.size }).collect();
    MemoryMap::new(&ram, taken)
}

/// Opens an image.
///
/// # Errors
/// It cannot be opened, is no regular file, or is empty.
pub(super) fn open(what: &'static str, path: &Path) -> Result<(File, u64), PayloadError> {
    let cannot_open = |source| PayloadError::Open { what, path: path.to_path_buf(), source };
    // A pipe would keep this thread waiting for somebody to write to it.
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path).map_err(cannot_open)?;
    let metadata = file.metadata().map_err(cannot_open)?;
    let bad = |why| Err(PayloadError::File { what, path: path.to_path_buf(), why });
    if !metadata.is_file() {
        return bad("is not a regular file");
    }
    if metadata.len() == 0 {
        return bad("is empty");
    }
    Ok((file, metadata.len()))
}

/// Reads a part of a file straight into guest memory, through however many ranges it covers.
fn copy(
    mut file: &File,
    offset: u64,
    len: u64,
    at: u64,
    (memory, tally): (&GuestMemoryView, &dyn Tally),
) -> Result<(), PayloadError> {
    let failed = |source| PayloadError::Load { at, size: len, source };
    file.seek(SeekFrom::Start(offset)).map_err(|error| failed(GuestMemoryError::IOError(error)))?;
    let mut done = 0;
    while done < len {
        if tally.is_cancelled() {
            return Err(PayloadError::Cancelled);
        }
        let count = (len - done).min(PIECE);
        // The plan was checked against the map of RAM: nothing of it is beyond the address space.
        let place = GuestAddress(at.saturating_add(done));
        let length = usize::try_from(count).unwrap_or(usize::MAX);
        memory.read_exact_volatile_from(place, &mut file, length).map_err(failed)?;
        done += count;
    }
    Ok(())
}
