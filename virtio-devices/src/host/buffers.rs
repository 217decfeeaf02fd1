//! Host memory for I/O that the kernel does by itself: a guest's buffers as vectors of host addresses, or a
//! buffer of our own between, where the guest's do not suit.
//!
//! A [`Buffers`] keeps what its addresses point to: the view of guest memory, or the buffer. Whoever hands
//! the addresses to the kernel keeps the `Buffers` until the kernel is done.
#![expect(unsafe_code, reason = "addresses of memory that is kept or borrowed here are given to the kernel")]

use std::{fs::File, io, marker::PhantomData, os::fd::AsRawFd, sync::Arc};

use address_manager::GuestMemoryView;
use vm_memory::bitmap::Bitmap;

use crate::queue::{Chain, QueueError};

/// Most vectors that one system call takes.
const MAX_VECTORS: usize = 1024;

/// Largest buffer of our own that is put between, in bytes: a guest must not have us allocate at will.
pub const MAX_BOUNCE: u32 = 64 << 20;

/// Which part of a chain, and so which direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What the device reads.
    Readable,
    /// What the device writes.
    Writable,
}

/// Memory for one request.
#[derive(Debug)]
pub struct Buffers {
    vectors: Vec<libc::iovec>,
    /// Vectors that are used up, from the front.
    done: usize,
    owner: Owner,
}

#[derive(Debug)]
enum Owner {
    Guest(Arc<GuestMemoryView>),
    Bounce { bytes: Vec<u8>, start: usize, len: usize },
}

// SAFETY: the addresses are those of guest memory that the view keeps mapped, which any thread may access as
// the guest itself does, or of the buffer that goes along.
unsafe impl Send for Buffers {}

impl Buffers {
    /// `len` bytes from `offset` of a part of `chain`. If `align` is not 1, addresses and lengths have to be
    /// multiples of it; where the guest's are not, or are too many pieces, a buffer is put between (and
    /// filled, if the device reads).
    ///
    /// # Errors
    /// The part is shorter than that, or a buffer between would be too large.
    pub fn new(
        chain: &Chain,
        part: Part,
        offset: u32,
        len: u32,
        memory: &Arc<GuestMemoryView>,
        align: usize,
    ) -> Result<Self, QueueError> {
        let mut vectors = Vec::new();
        let mut suits = true;
        let add = |base: *mut u8, len: usize| {
            suits &= (base as usize).is_multiple_of(align) && len.is_multiple_of(align);
            vectors.push(libc::iovec { iov_base: base.cast(), iov_len: len });
        };
        each_slice(chain, part, offset, len, memory, add)?;
        if suits && vectors.len() <= MAX_VECTORS {
            return Ok(Self { vectors, done: 0, owner: Owner::Guest(Arc::clone(memory)) });
        }
        let mut bounce = Self::bounce(len, align)?;
        if part == Part::Readable
            && let Some(bytes) = bounce.bounce_bytes_mut()
        {
            chain.read(&**memory, offset, bytes)?;
        }
        Ok(bounce)
    }

    fn bounce(len: u32, align: usize) -> Result<Self, QueueError> {
        if len > MAX_BOUNCE {
            return Err(QueueError::ChainBytes);
        }
        let len = usize::try_from(len).map_err(|_| QueueError::ChainBytes)?;
        let mut bytes = vec![0; len + align];
        let start = bytes.as_ptr().align_offset(align).min(align);
        let base = bytes.as_mut_ptr().wrapping_add(start);
        let vectors = vec![libc::iovec { iov_base: base.cast(), iov_len: len }];
        // The vector's heap memory stays where it is when the vector is moved.
        Ok(Self { vectors, done: 0, owner: Owner::Bounce { bytes, start, len } })
    }

    fn bounce_bytes_mut(&mut self) -> Option<&mut [u8]> {
        match &mut self.owner {
            Owner::Guest(_) => None,
            Owner::Bounce { bytes, start, len } => bytes.get_mut(*start..*start + *len),
        }
    }

    /// The vectors that are left.
    pub fn vectors(&self) -> &[libc::iovec] {
        self.vectors.get(self.done..).unwrap_or_default()
    }

    /// Bytes that are left.
    pub fn remaining(&self) -> usize {
        self.vectors().iter().map(|vector| vector.iov_len).sum()
    }

    /// Takes note that the first `count` of the remaining bytes are done.
    pub fn advance(&mut self, mut count: usize) {
        while let Some(vector) = self.vectors.get_mut(self.done) {
            if count < vector.iov_len {
                vector.iov_base = vector.iov_base.wrapping_byte_add(count);
                vector.iov_len -= count;
                return;
            }
            count -= vector.iov_len;
            self.done += 1;
        }
    }

    /// The device has written all of it: brings it to the guest, if it is not there, and marks it written.
    /// The arguments are those of [`new`](Self::new).
    ///
    /// # Errors
    /// The guest's buffer is no longer there.
    pub fn deliver(
        &self,
        chain: &Chain,
        offset: u32,
        len: u32,
        memory: &GuestMemoryView,
    ) -> Result<(), QueueError> {
        match &self.owner {
            Owner::Bounce { bytes, start, len } => {
                chain.write(memory, offset, bytes.get(*start..*start + *len).unwrap_or_default())
            }
            // The kernel wrote past vm-memory: what keeps track of written pages has not seen it.
            Owner::Guest(view) => chain.writable_slices(&**view, offset, len, |slice| {
                let written = slice.len();
                Bitmap::mark_dirty(slice.bitmap(), 0, written);
            }),
        }
    }
}

/// Vectors for one system call that is over when it returns: pieces of guest memory and of our own.
#[derive(Debug)]
pub struct Vectors<'m> {
    vectors: Vec<libc::iovec>,
    memory: PhantomData<&'m mut [u8]>,
}

impl<'m> Vectors<'m> {
    /// None yet.
    pub fn new() -> Self {
        Self { vectors: Vec::with_capacity(16), memory: PhantomData }
    }

    /// Adds the first `len` bytes of a part of a chain.
    ///
    /// # Errors
    /// The part is shorter.
    pub fn add_chain(
        &mut self,
        chain: &Chain,
        part: Part,
        len: u32,
        memory: &'m GuestMemoryView,
    ) -> Result<(), QueueError> {
        let vectors = &mut self.vectors;
        each_slice(chain, part, 0, len, memory, |base, len| {
            vectors.push(libc::iovec { iov_base: base.cast(), iov_len: len });
        })
    }

    /// Adds bytes of our own.
    pub fn add_bytes(&mut self, bytes: &'m mut [u8]) {
        self.vectors.push(libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() });
    }

    /// readv(2): one frame, where the descriptor deals in frames.
    ///
    /// # Errors
    /// The host's; `WouldBlock` if there is none now.
    pub fn receive(&mut self, file: &File) -> io::Result<usize> {
        let count = self.count()?;
        // SAFETY: each vector describes memory that is borrowed for 'm: guest memory, which anybody may
        // write, or a slice that is borrowed exclusively.
        let result = unsafe { libc::readv(file.as_raw_fd(), self.vectors.as_ptr(), count) };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    /// writev(2): likewise.
    ///
    /// # Errors
    /// The host's; `WouldBlock` if it cannot be taken now.
    pub fn send(&self, file: &File) -> io::Result<usize> {
        let count = self.count()?;
        // SAFETY: as for `receive`.
        let result = unsafe { libc::writev(file.as_raw_fd(), self.vectors.as_ptr(), count) };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    fn count(&self) -> io::Result<libc::c_int> {
        if self.vectors.len() > MAX_VECTORS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        libc::c_int::try_from(self.vectors.len()).map_err(|_| io::ErrorKind::InvalidInput.into())
    }
}

impl Default for Vectors<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// The kernel wrote the first `len` bytes of a chain's writable part: marks them written, which vm-memory has
/// not seen.
///
/// # Errors
/// The part is shorter, or its memory has gone.
pub fn mark_written(chain: &Chain, len: u32, memory: &GuestMemoryView) -> Result<(), QueueError> {
    chain.writable_slices(memory, 0, len, |slice| {
        let written = slice.len();
        Bitmap::mark_dirty(slice.bitmap(), 0, written);
    })
}

fn each_slice(
    chain: &Chain,
    part: Part,
    offset: u32,
    len: u32,
    memory: &GuestMemoryView,
    mut add: impl FnMut(*mut u8, usize),
) -> Result<(), QueueError> {
    let mut each = |slice: vm_memory::VolatileSlice<'_>| add(slice.ptr_guard_mut().as_ptr(), slice.len());
    match part {
        Part::Readable => chain.readable_slices(memory, offset, len, &mut each),
        Part::Writable => chain.writable_slices(memory, offset, len, &mut each),
    }
}
