//! Getting a vCPU's thread out of the guest.
//!
//! A kick writes `immediate_exit`, which ends the run that is about to begin, and then sends a
//! signal, which ends the one that is under way; with that order no moment is left in which a kick
//! gets lost. The signal's handler does nothing: that it is delivered is what makes KVM come back.
#![expect(unsafe_code, reason = "sigaction, gettid and tgkill")]

use std::{
    io,
    mem::MaybeUninit,
    ptr,
    sync::{LazyLock, OnceLock},
};

use vmm_sys_util::signal::{SIGRTMIN, unblock_signal};

use super::run_page::{ExitRequest, KICKED};
use crate::VcpuKicker;

/// The signal that kicks use: the first real-time signal. Taken in the whole process from the first
/// vCPU on, and must not be blocked by a vCPU's thread.
pub fn kick_signal() -> i32 {
    static SIGNAL: LazyLock<i32> = LazyLock::new(SIGRTMIN);
    *SIGNAL
}

/// Installs the handler, the first time it is called.
pub(super) fn install_handler() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| {
            let mut action = MaybeUninit::<libc::sigaction>::zeroed();
            // SAFETY: a structure of integers and optional pointers, for which zero is a value.
            let action = unsafe { action.assume_init_mut() };
            let handler: extern "C" fn(libc::c_int) = nothing;
            action.sa_sigaction = handler as usize;
            // A stray kick must not disturb a system call that a device makes on this thread;
            // KVM_RUN comes back with EINTR all the same.
            action.sa_flags = libc::SA_RESTART;
            // SAFETY: `action` is a whole structure and its handler does nothing at all.
            let result = unsafe { libc::sigaction(kick_signal(), action, ptr::null_mut()) };
            match result {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)),
            }
        })
        .map_err(io::Error::from_raw_os_error)
}

extern "C" fn nothing(_signal: libc::c_int) {}

/// Kicks one vCPU. Outlives it without harm.
#[derive(Debug)]
pub(super) struct KvmKicker {
    exit: ExitRequest,
    thread: libc::pid_t,
}

impl KvmKicker {
    /// A kicker for the vCPU with that run page, which the calling thread runs.
    pub(super) fn for_this_thread(exit: ExitRequest) -> Self {
        if let Err(error) = unblock_signal(kick_signal()) {
            log::error!("cannot unblock signal {} on a vCPU thread: {error}", kick_signal());
        }
        // SAFETY: takes nothing and cannot fail.
        let thread = unsafe { libc::gettid() };
        Self { exit, thread }
    }
}

impl VcpuKicker for KvmKicker {
    fn kick(&self) {
        if !self.exit.request(KICKED) {
            return;
        }
        // SAFETY: takes nothing and cannot fail.
        let process = unsafe { libc::getpid() };
        // The thread may have ended and handed its vCPU on, and then even its id may name another
        // thread of this process, where the signal does nothing. SAFETY: only sends a signal, to a
        // thread of this process, whose handler was installed before the vCPU existed.
        unsafe { libc::tgkill(process, self.thread, kick_signal()) };
    }
}
