//! System calls on files that the standard library has no form of.
#![expect(unsafe_code, reason = "vectored I/O at an offset, and fallocate")]

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
};

/// preadv(2), once.
pub(super) fn read(file: &File, vectors: &[libc::iovec], offset: u64) -> io::Result<usize> {
    let (count, offset) = arguments(vectors, offset)?;
    retry(|| {
        // SAFETY: the vectors come from `Buffers`, which keeps the memory that they describe; the guest may
        // change that memory at any time, which the kernel does not mind.
        unsafe { libc::preadv(file.as_raw_fd(), vectors.as_ptr(), count, offset) }
    })
}

/// pwritev(2), once.
pub(super) fn write(file: &File, vectors: &[libc::iovec], offset: u64) -> io::Result<usize> {
    let (count, offset) = arguments(vectors, offset)?;
    retry(|| {
        // SAFETY: as for `read`.
        unsafe { libc::pwritev(file.as_raw_fd(), vectors.as_ptr(), count, offset) }
    })
}

/// Gives a range back to the host. It reads as zeros after that.
pub(super) fn discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    allocate(file, DISCARD_MODE, offset, len)
}

/// Lets a range read as zeros.
pub(super) fn write_zeroes(file: &File, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
    match allocate(file, zero_mode(unmap), offset, len) {
        Err(error) if is_unsupported(&error) => fill(file, offset, len),
        other => other,
    }
}

/// Whether the file system cannot do that at all.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS))
}

/// Mode of fallocate(2) for a discard.
pub(super) const DISCARD_MODE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// Mode of fallocate(2) for zeros.
pub(super) fn zero_mode(unmap: bool) -> i32 {
    let mode = if unmap { libc::FALLOC_FL_PUNCH_HOLE } else { libc::FALLOC_FL_ZERO_RANGE };
    mode | libc::FALLOC_FL_KEEP_SIZE
}

/// A page of zeros, aligned for direct I/O.
#[repr(align(4096))]
struct Zeros([u8; 65536]);

static ZEROS: Zeros = Zeros([0; 65536]);

fn fill(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let count = usize::try_from(len - done).unwrap_or(ZEROS.0.len()).min(ZEROS.0.len());
        file.write_all_at(ZEROS.0.get(..count).unwrap_or_default(), offset + done)?;
        done += count as u64;
    }
    Ok(())
}

fn allocate(file: &File, mode: i32, offset: u64, len: u64) -> io::Result<()> {
    let (offset, len) = (signed(offset)?, signed(len)?);
    retry(|| {
        // SAFETY: the descriptor is open; nothing else is passed but numbers.
        unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) as isize }
    })
    .map(|_| ())
}

fn arguments(vectors: &[libc::iovec], offset: u64) -> io::Result<(libc::c_int, i64)> {
    let count = libc::c_int::try_from(vectors.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok((count, signed(offset)?))
}

fn signed(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
