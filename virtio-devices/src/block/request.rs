//! What a driver asks for (virtio 1.3 section 5.2.6), read out of a chain and checked against the disk.

use address_manager::GuestMemoryView;

use crate::{
    host::disk::SECTOR,
    queue::{Chain, QueueError},
};

const HEADER: u32 = 16;
/// One discard or write-zeroes segment.
const SEGMENT: u32 = 16;
/// Length of the identification string.
pub(super) const ID_LENGTH: u32 = 20;

/// Status of a request: done.
pub(super) const OK: u8 = 0;
/// Status of a request: failed.
pub(super) const IOERR: u8 = 1;
/// Status of a request: not known here.
pub(super) const UNSUPP: u8 = 2;

/// Most sectors of one discard.
pub(super) const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// Most sectors of one write-zeroes: a file system that cannot do it has them written.
pub(super) const MAX_ZEROES_SECTORS: u32 = 1 << 15;

/// What a request is checked against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) capacity_sectors: u64,
    pub(super) block_size: u32,
    pub(super) read_only: bool,
    pub(super) protect_first_sector: bool,
    pub(super) can_discard: bool,
}

/// A request that makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Fill `len` bytes from byte 0 of the writable part.
    Read {
        offset: u64,
        len: u32,
    },
    /// Write `len` bytes from byte 16 of the readable part.
    Write {
        offset: u64,
        len: u32,
    },
    Flush,
    GetId {
        len: u32,
    },
    Discard {
        offset: u64,
        len: u64,
    },
    WriteZeroes {
        offset: u64,
        len: u64,
        unmap: bool,
    },
    /// To be answered with this status at once.
    Refused(u8),
}

/// Where in the readable part the data of a write begins.
pub(super) const WRITE_DATA: u32 = HEADER;

impl Kind {
    /// Reads the header of a chain.
    ///
    /// # Errors
    /// The chain has no header or no room for a status: the driver cannot even be told.
    pub(super) fn parse(chain: &Chain, memory: &GuestMemoryView, limits: Limits) -> Result<Self, QueueError> {
        let header: [u8; HEADER as usize] = chain.read_array(memory, 0)?;
        let [k0, k1, k2, k3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = header;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        // The status byte comes last.
        let data_in = chain.writable_len().checked_sub(1).ok_or(QueueError::Short { end: 1 })?;
        let data_out = chain.readable_len() - HEADER;
        Ok(match u32::from_le_bytes([k0, k1, k2, k3]) {
            0 => match limits.range(sector, u64::from(data_in)) {
                Some(offset) => Self::Read { offset, len: data_in },
                None => Self::Refused(IOERR),
            },
            1 => match limits.range(sector, u64::from(data_out)) {
                Some(offset) if limits.may_write(offset) => Self::Write { offset, len: data_out },
                _ => Self::Refused(IOERR),
            },
            4 => Self::Flush,
            8 => Self::GetId { len: data_in.min(ID_LENGTH) },
            11 => Self::range_request(chain, memory, limits, data_out, true)?,
            13 => Self::range_request(chain, memory, limits, data_out, false)?,
            _ => Self::Refused(UNSUPP),
        })
    }

    /// Discard and write-zeroes: one segment, as the configuration space says.
    fn range_request(
        chain: &Chain,
        memory: &GuestMemoryView,
        limits: Limits,
        len: u32,
        discard: bool,
    ) -> Result<Self, QueueError> {
        if discard && !limits.can_discard {
            return Ok(Self::Refused(UNSUPP));
        }
        if len != SEGMENT {
            return Ok(Self::Refused(IOERR));
        }
        let segment: [u8; SEGMENT as usize] = chain.read_array(memory, HEADER)?;
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = segment;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        let most = if discard { MAX_DISCARD_SECTORS } else { MAX_ZEROES_SECTORS };
        let unmap = flags & 1 != 0;
        // Reserved flags, and "unmap" of a discard (virtio 1.3 section 5.2.6.2).
        if flags & !1 != 0 || (discard && unmap) {
            return Ok(Self::Refused(UNSUPP));
        }
        let len = u64::from(sectors) * SECTOR;
        Ok(match limits.range(sector, len) {
            Some(offset) if limits.may_write(offset) && sectors <= most => {
                if discard {
                    Self::Discard { offset, len }
                } else {
                    Self::WriteZeroes { offset, len, unmap: unmap && limits.can_discard }
                }
            }
            _ => Self::Refused(IOERR),
        })
    }

    /// Bytes that count against a rate limit.
    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::Read { len, .. } | Self::Write { len, .. } => u64::from(len),
            _ => 0,
        }
    }
}

impl Limits {
    /// The byte offset of `len` bytes from `sector` on, if they are blocks of the disk.
    fn range(self, sector: u64, len: u64) -> Option<u64> {
        let block = u64::from(self.block_size);
        let offset = sector.checked_mul(SECTOR)?;
        let end = offset.checked_add(len)?;
        let whole = len != 0 && len.is_multiple_of(block) && offset.is_multiple_of(block);
        (whole && end <= self.capacity_sectors.checked_mul(SECTOR)?).then_some(offset)
    }

    fn may_write(self, offset: u64) -> bool {
        !(self.read_only || (self.protect_first_sector && offset < SECTOR))
    }
}
