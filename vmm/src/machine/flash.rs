//! Firmware that is a flat image: a copy of its file in read-only memory that ends at 4 GiB, where a processor begins
//! after a reset.
//!
//! It is no part of RAM: devices do not reach it, and a snapshot has only its size and checksum. What the guest writes
//! there leads to no device, and is dropped as every such write is.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc};

use address_manager::{Owner, Slot, SlotFlags, SlotRole};
use arch::x86_64::{
    boot::{
        BootError, ReadAt,
        firmware::{self, FirmwareKind},
    },
    layout::Range,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_memory::{Bytes, MmapRegion, VolatileMemory};
use vm_migration::{LoadError, Section, State};

use super::payload::{Image, PayloadError, open};
use crate::{
    config::{Payload, VmConfig},
    layout::{Layout, RangeLayout},
};

/// Name of its slot, and of its section in a saved state.
pub(super) const ID: &str = "__flash";

/// The image is read in pieces of so many bytes.
const PIECE: usize = 1 << 20;

/// What is saved of an image: enough to know it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedFlash {
    /// Length in bytes.
    pub size: u64,
    /// CRC-32C of all of it.
    pub crc32c: u32,
}

impl fmt::Display for SavedFlash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} bytes with CRC-32C {:#010x}", self.size, self.crc32c)
    }
}

impl State for SavedFlash {
    const KIND: &'static str = "firmware-flash";
    const VERSION: u32 = 1;
}

/// The firmware of a saved machine cannot be had again.
#[derive(Debug, Error)]
pub enum FlashError {
    /// Nothing says where it is.
    #[error(
        "firmware: the guest has {size:#x} bytes of it in flash, and the configuration names no file with them"
    )]
    Unnamed {
        /// Length in bytes.
        size: u64,
    },
    /// It is not what it was.
    #[error(
        "firmware: {} is not what the guest was started with: {} now, {} then",
        .path.display(), .now.map_or_else(|| "an ELF file".to_owned(), |now| now.to_string()), .then
    )]
    Differs {
        /// Path of the image.
        path: PathBuf,
        /// What it is; `None` if it is no flash image at all.
        now: Option<SavedFlash>,
        /// What it was.
        then: SavedFlash,
    },
    /// The image cannot be read.
    #[error(transparent)]
    Image(#[from] PayloadError),
    /// What is saved of it cannot be read.
    #[error(transparent)]
    Saved(#[from] LoadError),
}

/// A flat image in memory.
#[derive(Debug)]
pub struct Flash {
    range: Range,
    mapping: Arc<MmapRegion>,
    saved: SavedFlash,
}

impl Flash {
    /// Reads the image of `payload`; `None` if that is none which has to be in flash.
    ///
    /// # Errors
    /// It is missing or no firmware, or there is no memory for it.
    pub fn of(payload: &Payload) -> Result<Option<Self>, PayloadError> {
        let Payload::Firmware { firmware: path } = payload else { return Ok(None) };
        let (file, size) = open("firmware", path)?;
        let image = Image { file: &file, size };
        let bad = |source| PayloadError::Boot { what: "firmware", path: path.clone(), source };
        let FirmwareKind::Flash(range) = firmware::kind(&image).map_err(bad)? else { return Ok(None) };
        // At most 16 MiB, so it fits.
        let length = usize::try_from(range.size).unwrap_or(usize::MAX);
        let mapping =
            MmapRegion::new(length).map_err(|source| PayloadError::Room { size: range.size, source })?;
        let (mut at, mut crc32c) = (0, 0);
        let mut buffer = vec![0; length.min(PIECE)];
        while at < length {
            let piece = buffer.len().min(length - at);
            let (piece, offset) = (buffer.get_mut(..piece).unwrap_or_default(), at as u64);
            let len = piece.len() as u64;
            image
                .read_exact_at(piece, offset)
                .map_err(|source| bad(BootError::Read { offset, len, source }))?;
            crc32c = crc32c::crc32c_append(crc32c, piece);
            mapping.as_volatile_slice().write_slice(piece, at).map_err(|source| PayloadError::Load {
                at: range.start.saturating_add(offset),
                size: len,
                source: source.into(),
            })?;
            at += piece.len();
        }
        let saved = SavedFlash { size: range.size, crc32c };
        Ok(Some(Self { range, mapping: Arc::new(mapping), saved }))
    }

    /// Reads the image again that a saved machine has in its flash, from where `config` has it now; `None` if it has
    /// none there.
    ///
    /// # Errors
    /// It cannot be read, or is another one.
    pub fn again(
        config: &VmConfig,
        layout: &Layout,
        saved: &BTreeMap<String, Section>,
    ) -> Result<Option<Self>, FlashError> {
        let Some(RangeLayout { size, .. }) = layout.flash else { return Ok(None) };
        let section = saved.get(ID).ok_or_else(|| LoadError::Missing { id: ID.to_owned() })?;
        let then: SavedFlash = section.load()?;
        let Some(payload @ Payload::Firmware { firmware: path }) = &config.payload else {
            return Err(FlashError::Unnamed { size });
        };
        let flash = Self::of(payload)?;
        let now = flash.as_ref().map(Self::saved);
        if now != Some(then) || then.size != size {
            return Err(FlashError::Differs { path: path.clone(), now, then });
        }
        Ok(flash)
    }

    /// Where it lies in the guest.
    pub fn range(&self) -> Range {
        self.range
    }

    /// What is saved of it.
    pub fn saved(&self) -> SavedFlash {
        self.saved
    }

    /// The slot that shows it. Not of RAM: what devices reach does not include it.
    pub fn slot(&self) -> Slot {
        Slot {
            base: self.range.start,
            size: self.range.size,
            mapping: Arc::clone(&self.mapping),
            offset: 0,
            flags: SlotFlags::READ_ONLY,
            role: SlotRole::Device,
            owner: Owner::new(ID),
        }
    }
}
