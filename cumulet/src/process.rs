//! What the process inherits, and what of it is set right at the start.
#![expect(unsafe_code, reason = "the disposition of a signal is set by the C library")]

use std::os::fd::AsFd;

use rustix::{
    fs::Mode,
    io::fcntl_dupfd_cloexec,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

/// Arenas of the C library's allocator.
const ARENAS: i32 = 4;

/// Bytes from which on a piece of memory is the kernel's, and goes back to it at once.
const LARGE: i32 = 1 << 20;

/// Descriptors for which there is room in the kernel's table of this process from the start: a queue needs three, and 24
/// devices of many queues need several hundred.
const DESCRIPTORS: u64 = 4096;

/// Files that are made are for the owner only, children that end leave nothing behind, and limits are errors.
pub fn prepare() {
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    make_room_for_descriptors();
    // SAFETY: no handler is installed that could run: SIG_IGN only tells the kernel to drop the signal. It cannot fail
    // for a signal that exists.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    outlive_size_limits();
    // A device's threads allocate little; an arena for each of hundreds costs four system calls and address space.
    // SAFETY: the call sets a number of the C library's allocator, before there is another thread.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
    // Left alone, the allocator raises this limit with everything large that is let go of, and keeps as much from then
    // on: a long request of a client, say, in each arena.
    // SAFETY: as above.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
}

/// A file that may not grow is an error of the write and not the end of the process.
pub fn outlive_size_limits() {
    // SAFETY: no handler is installed that could run: SIG_IGN only tells the kernel to drop the signal. It cannot fail
    // for a signal that exists.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Has as many descriptors as the host allows, and room for them.
///
/// The kernel doubles the table of descriptors as it fills. Where threads share it, each time waits for a grace period, of
/// milliseconds; a process that has one thread does not wait.
fn make_room_for_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    // Who may not raise it has what there was, and the error of whatever does not fit says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let most = getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS).min(DESCRIPTORS);
    let Some(last) = most.checked_sub(1).and_then(|last| i32::try_from(last).ok()) else { return };
    // It is closed at once; the table stays as long. Where that fails, the table grows as it must.
    let _ = fcntl_dupfd_cloexec(rustix::stdio::stderr().as_fd(), last);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_may_not_grow_ends_nothing() {
        outlive_size_limits();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
        let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
        assert_ne!(ignored & 1 << (libc::SIGXFSZ - 1), 0, "{ignored:#x}");
    }

    #[test]
    fn there_is_room_for_many_descriptors() {
        // A user who has not asked for more has 1024.
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(256), maximum: limit.maximum }).unwrap();
        // Not the whole of it: other tests of this process wait for children.
        make_room_for_descriptors();
        assert_eq!(getrlimit(Resource::Nofile).current, limit.maximum);
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let room = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
        assert!(room.trim().parse::<u64>().unwrap() >= limit.maximum.unwrap_or(DESCRIPTORS).min(DESCRIPTORS));
    }
}
