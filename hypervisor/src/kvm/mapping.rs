//! A shared mapping of a KVM descriptor: the run page and the dirty ring of a vCPU.
#![expect(unsafe_code, reason = "mmap and munmap")]

use std::{
    io,
    os::fd::AsRawFd,
    ptr::{self, NonNull},
};

/// Memory shared with KVM. Holds the descriptor's file open for as long as it lives.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory belongs to the mapping, not to a thread; how it is accessed is up to the
// types that own a mapping, which say so at each access.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared reference hands out addresses only.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes from `offset` of a vCPU's descriptor.
    pub(super) fn new(fd: &impl AsRawFd, offset: i64, len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        match NonNull::new(start.cast()) {
            Some(start) => Ok(Self { start, len }),
            None => Err(io::Error::from_raw_os_error(libc::ENOMEM)),
        }
    }

    /// First byte; page-aligned and valid for [`len`](Self::len) bytes while `self` lives.
    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new`, and whoever used it did so through `self`.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert_eq!(result, 0, "unmapping our own mapping");
    }
}
