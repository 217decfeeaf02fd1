//! The calls of userfaultfd (Linux, admin-guide/mm/userfaultfd.rst) that on-demand paging needs.

#![expect(unsafe_code, reason = "userfaultfd is a set of ioctls that name memory by its address")]

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use crate::config::PAGE_SIZE;

const IO: libc::c_ulong = 0xaa << 8;

const fn ioctl(direction: libc::c_ulong, number: libc::c_ulong, size: usize) -> libc::c_ulong {
    direction << 30 | (size as libc::c_ulong) << 16 | IO | number
}

/// `USERFAULTFD_IOC_NEW` of `/dev/userfaultfd`.
const NEW: libc::c_ulong = IO;
const API: libc::c_ulong = ioctl(3, 0x3f, size_of::<ApiArguments>());
const REGISTER: libc::c_ulong = ioctl(3, 0, size_of::<RegisterArguments>());
const UNREGISTER: libc::c_ulong = ioctl(2, 1, size_of::<Range>());
const WAKE: libc::c_ulong = ioctl(2, 2, size_of::<Range>());
const COPY: libc::c_ulong = ioctl(3, 3, size_of::<CopyArguments>());
const ZEROPAGE: libc::c_ulong = ioctl(3, 4, size_of::<ZeropageArguments>());

const API_VERSION: u64 = 0xaa;
const REGISTER_MISSING: u64 = 1;
const REGISTER_PROTECTED: u64 = 1 << 1;
/// `UFFD_FEATURE_PAGEFAULT_FLAG_WP` and `UFFD_FEATURE_WP_ASYNC`: the kernel notes who writes, and nobody waits.
const FEATURES_TO_TRACK: u64 = 1 | 1 << 15;
/// `UFFD_USER_MODE_ONLY`, which needs no privilege.
const USER_MODE_ONLY: libc::c_int = 1;
const EVENT_PAGEFAULT: u8 = 0x12;
const FLAG_WRITE: u64 = 1;

#[repr(C)]
#[derive(Clone, Copy)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct ApiArguments {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct RegisterArguments {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct CopyArguments {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
struct ZeropageArguments {
    range: Range,
    mode: u64,
    zeroed: i64,
}

/// `struct uffd_msg`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    rest: u64,
}

/// A touch of a missing page, whose owner waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub address: u64,
    /// Whether it would write.
    pub written: bool,
}

/// A userfaultfd. While it is open, whoever touches a missing page of what is registered waits.
#[derive(Debug)]
pub struct Userfaultfd(OwnedFd);

impl Userfaultfd {
    /// Opens one that sees faults of the kernel too, as KVM's are: by the device, or else by the system call.
    ///
    /// # Errors
    /// The host has neither, or does not allow it.
    pub fn open() -> io::Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        let fd = match File::options().read(true).write(true).open("/dev/userfaultfd") {
            // SAFETY: the ioctl takes flags and returns a descriptor.
            Ok(device) => unsafe { libc::ioctl(device.as_raw_fd(), NEW, flags) },
            Err(_) => {
                // SAFETY: the call takes flags and returns a descriptor.
                let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
                i32::try_from(fd).unwrap_or(-1)
            }
        };
        Self::begin(fd, 0)
    }

    /// Opens one that sees no faults: with it the kernel notes which pages are written
    /// ([`Pagemap::take_written`](crate::memory::pagemap::Pagemap::take_written)).
    ///
    /// # Errors
    /// The kernel is older than Linux 6.7, or does not allow it.
    pub fn open_to_track() -> io::Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
        // SAFETY: the call takes flags and returns a descriptor.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        Self::begin(i32::try_from(fd).unwrap_or(-1), FEATURES_TO_TRACK)
    }

    /// What is read as if it were one.
    #[cfg(test)]
    pub fn of(fd: OwnedFd) -> Self {
        Self(fd)
    }

    fn begin(fd: libc::c_int, features: u64) -> io::Result<Self> {
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let this = Self(fd);
        let mut arguments = ApiArguments { api: API_VERSION, features, ioctls: 0 };
        // SAFETY: the argument has the layout that the kernel expects.
        let result = unsafe { libc::ioctl(this.0.as_raw_fd(), API, &raw mut arguments) };
        checked(result)?;
        Ok(this)
    }

    /// From now on, faults on missing pages of a range are for this descriptor to resolve.
    ///
    /// # Errors
    /// The range is no mapping that can be registered.
    pub fn register(&self, start: u64, len: u64) -> io::Result<()> {
        self.register_as(start, len, REGISTER_MISSING)
    }

    /// From now on, writes to a range can be tracked.
    ///
    /// # Errors
    /// The range is no mapping that can be registered, or another userfaultfd has it.
    pub fn register_to_track(&self, start: u64, len: u64) -> io::Result<()> {
        self.register_as(start, len, REGISTER_PROTECTED)
    }

    fn register_as(&self, start: u64, len: u64, mode: u64) -> io::Result<()> {
        let range = Range { start, len };
        let mut arguments = RegisterArguments { range, mode, ioctls: 0 };
        // SAFETY: the argument has the layout that the kernel expects; registering changes nothing of the
        // memory itself.
        checked(unsafe { libc::ioctl(self.0.as_raw_fd(), REGISTER, &raw mut arguments) })
    }

    /// From now on, missing pages of a range are as in memory that is not registered. Whoever waits for one goes on.
    ///
    /// # Errors
    /// The range is no mapping that can be registered.
    pub fn unregister(&self, start: u64, len: u64) -> io::Result<()> {
        let mut range = Range { start, len };
        // SAFETY: the argument has the layout that the kernel expects; no memory that is there is changed.
        checked(unsafe { libc::ioctl(self.0.as_raw_fd(), UNREGISTER, &raw mut range) })
    }

    /// The next fault that waits; `None` if there is none.
    ///
    /// # Errors
    /// The descriptor cannot be read.
    pub fn next_fault(&self) -> io::Result<Option<Fault>> {
        let mut message = Message { event: 0, reserved: [0; 7], flags: 0, address: 0, rest: 0 };
        let size = size_of::<Message>();
        // SAFETY: the buffer is a message of that size, of which every pattern is one.
        let read = unsafe { libc::read(self.0.as_raw_fd(), (&raw mut message).cast(), size) };
        if read < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        }
        let fault = Fault { address: message.address, written: message.flags & FLAG_WRITE != 0 };
        Ok((message.event == EVENT_PAGEFAULT).then_some(fault))
    }

    /// Puts `content` at `to`, and wakes whoever waits for it. Pages that are there already stay as they are: an earlier
    /// call put them there that did not come to its end, and they may have been written since.
    ///
    /// # Errors
    /// There is no memory for it, or the range is not registered. Some of the pages may be there.
    pub fn copy(&self, to: u64, content: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = content.get(done..).filter(|rest| !rest.is_empty()) {
            let (from, len) = (rest.as_ptr() as u64, rest.len() as u64);
            let mut arguments = CopyArguments { to: to + done as u64, from, len, mode: 0, copied: 0 };
            // SAFETY: the kernel reads `len` bytes that are borrowed here, and fills only pages of a registered
            // range that are missing, whose waiting readers see them whole.
            let result = checked(unsafe { libc::ioctl(self.0.as_raw_fd(), COPY, &raw mut arguments) });
            done += progress(result, arguments.copied, len)?;
        }
        Ok(())
    }

    /// Puts zeros there, likewise.
    ///
    /// # Errors
    /// As for [`copy`](Self::copy).
    pub fn zero(&self, to: u64, len: u64) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let range = Range { start: to + done, len: len - done };
            let mut arguments = ZeropageArguments { range, mode: 0, zeroed: 0 };
            // SAFETY: as above, with zeros.
            let result = checked(unsafe { libc::ioctl(self.0.as_raw_fd(), ZEROPAGE, &raw mut arguments) });
            done += progress(result, arguments.zeroed, len - done)? as u64;
        }
        Ok(())
    }

    /// Wakes whoever waits for a page of a range, to look again.
    ///
    /// # Errors
    /// The range is not registered.
    pub fn wake(&self, start: u64, len: u64) -> io::Result<()> {
        let mut range = Range { start, len };
        // SAFETY: the argument has the layout that the kernel expects, and no memory is changed.
        checked(unsafe { libc::ioctl(self.0.as_raw_fd(), WAKE, &raw mut range) })
    }
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How far a call for `len` bytes came: when mappings change meanwhile, or there is less memory than it takes, it stops
/// early, and is to be made again. Where there is a page already it does nothing, and that page is done.
fn progress(result: io::Result<()>, done: i64, len: u64) -> io::Result<usize> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
            Ok(usize::try_from(PAGE_SIZE.min(len)).unwrap_or(0))
        }
        Err(error) if error.raw_os_error() != Some(libc::EAGAIN) => Err(error),
        _ => Ok(usize::try_from(done).unwrap_or(0)),
    }
}
