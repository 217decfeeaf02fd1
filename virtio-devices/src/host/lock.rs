//! Locks on files that two virtual machines must not use against one another, such as images: open file description locks, which a second opening of the same file conflicts with,
//! also in the same process (fcntl(2), `F_OFD_SETLK`).
#![expect(unsafe_code, reason = "fcntl has no safe form")]

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd},
};

use thiserror::Error;

/// What of a file is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    /// So many bytes from its beginning: those that a disk has.
    ByteRange,
    /// The whole file, however long it becomes.
    Full,
}

/// A file could not be locked or unlocked.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another opening of the file has a lock.
    #[error("it is in use: {} holds a {} lock", holder(*pid), if *exclusive { "write" } else { "read" })]
    Taken {
        /// Process, if the kernel says which.
        pid: Option<u32>,
        /// Whether the other lock excludes readers.
        exclusive: bool,
    },
    /// The host refuses.
    #[error("the host does not lock it")]
    Host(#[source] io::Error),
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another device, virtual machine or program".into(), |pid| format!("process {pid}"))
}

/// Locks `file`, for reading alone if `read_only`; `size` is the length of a byte range. The lock is there for as long as
/// this opening of the file, or a mapping of it.
///
/// # Errors
/// Another opening has a lock that conflicts, or the host refuses.
pub fn lock(file: &File, granularity: Granularity, read_only: bool, size: u64) -> Result<(), LockError> {
    let mut range = range(kind(read_only), granularity, size);
    match control(file, libc::F_OFD_SETLK, &mut range) {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            control(file, libc::F_OFD_GETLK, &mut range).map_err(LockError::Host)?;
            Err(taken(&range))
        }
        Err(error) => Err(LockError::Host(error)),
    }
}

/// Whether [`lock`] would lock `file`. Nothing is locked, not for a moment either: nobody else's lock can fail by it.
///
/// # Errors
/// Those that `lock` would have.
pub fn check(file: &File, granularity: Granularity, read_only: bool, size: u64) -> Result<(), LockError> {
    let mut range = range(kind(read_only), granularity, size);
    control(file, libc::F_OFD_GETLK, &mut range).map_err(LockError::Host)?;
    if i32::from(range.l_type) == libc::F_UNLCK { Ok(()) } else { Err(taken(&range)) }
}

/// Takes the lock back.
///
/// # Errors
/// The host refuses.
pub fn unlock(file: &File) -> Result<(), LockError> {
    let mut range = range(libc::F_UNLCK, Granularity::Full, 0);
    control(file, libc::F_OFD_SETLK, &mut range).map_err(LockError::Host)
}

fn kind(read_only: bool) -> libc::c_int {
    if read_only { libc::F_RDLCK } else { libc::F_WRLCK }
}

/// The lock in the way, as `F_OFD_GETLK` tells it.
fn taken(range: &libc::flock) -> LockError {
    let exclusive = i32::from(range.l_type) == libc::F_WRLCK;
    // A lock of the same kind as ours has no process: its pid reads as -1.
    LockError::Taken { pid: u32::try_from(range.l_pid).ok().filter(|pid| *pid != 0), exclusive }
}

fn range(kind: libc::c_int, granularity: Granularity, size: u64) -> libc::flock {
    let len = match granularity {
        // A length of 0 is to the end, however far that moves.
        Granularity::Full => 0,
        Granularity::ByteRange => i64::try_from(size).unwrap_or(0),
    };
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: len,
        l_pid: 0,
    }
}

fn control(file: &File, command: libc::c_int, range: &mut libc::flock) -> io::Result<()> {
    // SAFETY: the descriptor is open and the structure is one that these commands read and write.
    let result = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, std::ptr::from_mut(range)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_opening_conflicts() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(path.path()).unwrap();
        let (first, second) = (open(), open());
        for granularity in [Granularity::ByteRange, Granularity::Full] {
            lock(&first, granularity, false, 4096).unwrap();
            lock(&first, granularity, false, 4096).unwrap();
            check(&first, granularity, false, 4096).unwrap();
            for read_only in [false, true] {
                let told = check(&second, granularity, read_only, 4096).unwrap_err();
                let error = lock(&second, granularity, read_only, 4096).unwrap_err();
                assert!(matches!(error, LockError::Taken { exclusive: true, .. }), "{error}");
                assert!(error.to_string().contains("in use"), "{error}");
                assert_eq!(told.to_string(), error.to_string());
            }
            unlock(&first).unwrap();
            for read_only in [false, true] {
                check(&second, granularity, read_only, 4096).unwrap();
            }
            lock(&second, granularity, true, 4096).unwrap();
            check(&first, granularity, true, 4096).unwrap();
            lock(&first, granularity, true, 4096).unwrap();
            let told = check(&first, granularity, false, 4096).unwrap_err();
            assert!(matches!(told, LockError::Taken { exclusive: false, .. }), "{told}");
            assert!(matches!(
                lock(&first, granularity, false, 4096),
                Err(LockError::Taken { exclusive: false, .. })
            ));
            unlock(&first).unwrap();
            unlock(&second).unwrap();
        }
    }

    #[test]
    fn a_closed_file_is_not_locked() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(path.path()).unwrap();
        let first = open();
        lock(&first, Granularity::Full, false, 0).unwrap();
        drop(first);
        lock(&open(), Granularity::Full, false, 0).unwrap();
    }
}
