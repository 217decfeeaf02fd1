//! One request: a chain of buffers that the driver made available together.

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice, bitmap::BS};

use super::{F_WRITE, QueueError, check_range};

/// A buffer: a range of guest memory that was checked to exist when the chain was popped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes; not zero.
    pub len: u32,
}

/// How the driver will recognise the chain when it comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Index of the first descriptor, or the packed format's buffer id.
    pub(super) id: u16,
    /// Slots of the packed ring that the chain takes; 1 in the split format.
    pub(super) descriptors: u16,
}

/// A popped chain: first the buffers that the device reads, then those that it writes. Hand it back with
/// [`Queue::add_used`](super::Queue::add_used).
#[derive(Debug)]
#[must_use = "a chain that is not handed back is lost to the driver"]
pub struct Chain {
    head: Head,
    segments: Vec<Segment>,
    readable: usize,
    readable_len: u32,
    writable_len: u32,
}

impl Chain {
    /// The driver's name for the chain: head descriptor, or buffer id.
    pub fn id(&self) -> u16 {
        self.head.id
    }

    /// The buffers that the device reads.
    pub fn readable(&self) -> &[Segment] {
        self.segments.get(..self.readable).unwrap_or_default()
    }

    /// The buffers that the device writes.
    pub fn writable(&self) -> &[Segment] {
        self.segments.get(self.readable..).unwrap_or_default()
    }

    /// Bytes in [`readable`](Self::readable).
    pub fn readable_len(&self) -> u32 {
        self.readable_len
    }

    /// Bytes in [`writable`](Self::writable).
    pub fn writable_len(&self) -> u32 {
        self.writable_len
    }

    /// Copies from byte `offset` of the readable part.
    ///
    /// # Errors
    /// It ends before the last byte, or its memory has gone.
    pub fn read<M: GuestMemoryBackend>(
        &self,
        memory: &M,
        offset: u32,
        data: &mut [u8],
    ) -> Result<(), QueueError> {
        let mut rest = data;
        for piece in pieces(self.readable(), offset, rest.len())? {
            let (part, tail) = rest.split_at_mut(piece.len as usize);
            memory
                .read_slice(part, GuestAddress(piece.address))
                .map_err(QueueError::access(piece.address))?;
            rest = tail;
        }
        Ok(())
    }

    /// Copies to byte `offset` of the writable part.
    ///
    /// # Errors
    /// It ends before the last byte, or its memory has gone.
    pub fn write<M: GuestMemoryBackend>(
        &self,
        memory: &M,
        offset: u32,
        data: &[u8],
    ) -> Result<(), QueueError> {
        let mut rest = data;
        for piece in pieces(self.writable(), offset, rest.len())? {
            let (part, tail) = rest.split_at(piece.len as usize);
            memory
                .write_slice(part, GuestAddress(piece.address))
                .map_err(QueueError::access(piece.address))?;
            rest = tail;
        }
        Ok(())
    }

    /// Reads `N` bytes from byte `offset` of the readable part.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn read_array<const N: usize, M: GuestMemoryBackend>(
        &self,
        memory: &M,
        offset: u32,
    ) -> Result<[u8; N], QueueError> {
        let mut data = [0; N];
        self.read(memory, offset, &mut data)?;
        Ok(data)
    }

    /// Host memory behind `len` bytes from `offset` of the readable part, piece by piece.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn readable_slices<'m, M: GuestMemoryBackend>(
        &self,
        memory: &'m M,
        offset: u32,
        len: u32,
        each: impl FnMut(VolatileSlice<'m, BS<'m, <M::R as vm_memory::GuestMemoryRegion>::B>>),
    ) -> Result<(), QueueError> {
        slices(self.readable(), memory, offset, len, each)
    }

    /// Host memory behind `len` bytes from `offset` of the writable part, piece by piece.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub fn writable_slices<'m, M: GuestMemoryBackend>(
        &self,
        memory: &'m M,
        offset: u32,
        len: u32,
        each: impl FnMut(VolatileSlice<'m, BS<'m, <M::R as vm_memory::GuestMemoryRegion>::B>>),
    ) -> Result<(), QueueError> {
        slices(self.writable(), memory, offset, len, each)
    }

    pub(super) fn head(&self) -> Head {
        self.head
    }

    pub(super) fn into_segments(self) -> Vec<Segment> {
        self.segments
    }
}

/// The parts of `segments` that hold bytes `offset..offset + len`.
fn pieces(
    segments: &[Segment],
    offset: u32,
    len: usize,
) -> Result<impl Iterator<Item = Segment> + '_, QueueError> {
    let total: u64 = segments.iter().map(|segment| u64::from(segment.len)).sum();
    let end = u64::from(offset).saturating_add(len as u64);
    if end > total {
        return Err(QueueError::Short { end });
    }
    let mut skip = offset;
    // Fits: it is no more than `total`, which a chain bounds to 32 bits.
    let mut left = u32::try_from(len).unwrap_or(u32::MAX);
    Ok(segments.iter().filter_map(move |segment| {
        if skip >= segment.len {
            skip -= segment.len;
            return None;
        }
        let take = left.min(segment.len - skip);
        let piece = Segment { address: segment.address.wrapping_add(u64::from(skip)), len: take };
        skip = 0;
        left -= take;
        (take > 0).then_some(piece)
    }))
}

fn slices<'m, M: GuestMemoryBackend>(
    segments: &[Segment],
    memory: &'m M,
    offset: u32,
    len: u32,
    mut each: impl FnMut(VolatileSlice<'m, BS<'m, <M::R as vm_memory::GuestMemoryRegion>::B>>),
) -> Result<(), QueueError> {
    for piece in pieces(segments, offset, len as usize)? {
        for slice in memory.get_slices(GuestAddress(piece.address), piece.len as usize) {
            each(slice.map_err(QueueError::access(piece.address))?);
        }
    }
    Ok(())
}

/// Collects the buffers of one chain and checks them.
pub(super) struct Builder {
    segments: Vec<Segment>,
    readable: usize,
    readable_len: u32,
    writable_len: u32,
}

impl Builder {
    /// Fills `segments`, an empty list.
    pub(super) fn new(segments: Vec<Segment>) -> Self {
        Self { segments, readable: 0, readable_len: 0, writable_len: 0 }
    }

    pub(super) fn push<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
        address: u64,
        len: u32,
        flags: u16,
    ) -> Result<(), QueueError> {
        let writable = flags & F_WRITE != 0;
        if !writable && self.segments.len() > self.readable {
            return Err(QueueError::Order);
        }
        let other = if writable { self.readable_len } else { self.writable_len };
        let bytes = if writable { &mut self.writable_len } else { &mut self.readable_len };
        *bytes = bytes.checked_add(len).ok_or(QueueError::ChainBytes)?;
        bytes.checked_add(other).ok_or(QueueError::ChainBytes)?;
        if len == 0 {
            return Ok(());
        }
        check_range(memory, "buffer", address, u64::from(len))?;
        self.segments.push(Segment { address, len });
        if !writable {
            self.readable = self.segments.len();
        }
        Ok(())
    }

    pub(super) fn finish(self, head: Head) -> Chain {
        let Self { segments, readable, readable_len, writable_len } = self;
        Chain { head, segments, readable, readable_len, writable_len }
    }

    pub(super) fn discard(self) -> Vec<Segment> {
        self.segments
    }
}
