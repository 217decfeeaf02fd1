//! What the process inherits, and what of it is set right at the start.
#![expect(unsafe_code, reason = "the disposition of a signal is set by the C library")]

use rustix::fs::Mode;

/// Arenas of the C library's allocator.
const ARENAS: i32 = 4;

/// Files that are made are for the owner only, children that end leave nothing behind, and a file that may not grow is
/// an error of the write and not the end of the process.
pub fn prepare() {
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    // SAFETY: no handler is installed that could run: SIG_IGN only tells the kernel to drop the signal. It cannot fail
    // for a signal that exists.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    // SAFETY: as above.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    // A device's threads allocate little; an arena for each of hundreds costs four system calls and address space.
    // SAFETY: the call sets a number of the C library's allocator, before there is another thread.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
}
