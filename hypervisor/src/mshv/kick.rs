//! Getting a vCPU's thread out of the hypervisor.
//!
//! The driver comes back from a run when a signal is pending, and has no flag that ends a run before
//! it begins. A signal that arrives between the look at the flag and the entry of the run would be
//! lost, so a kick also starts a timer that repeats the signal every millisecond, until the vCPU's
//! thread has noticed. In the common case it notices the first one and stops the timer.
//!
//! Kicks use the first real-time signal, as those of the KVM back end do; its handler does nothing.
#![expect(unsafe_code, reason = "sigaction, timers and tgkill")]

use std::{
    io,
    mem::MaybeUninit,
    ptr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use vmm_sys_util::signal::{SIGRTMIN, unblock_signal};

use crate::VcpuKicker;

/// How soon a signal that came too early is repeated.
const REPEAT_NS: i64 = 1_000_000;

/// The kicks of one vCPU. Shared by the vCPU and its kickers.
#[derive(Debug, Default)]
pub(super) struct Kicks {
    requested: AtomicBool,
    /// The thread that runs the vCPU, once it has taken a kicker. The lock is held for the two
    /// system calls of a kick at most.
    target: Mutex<Option<Target>>,
}

#[derive(Debug)]
struct Target {
    thread: libc::pid_t,
    timer: Timer,
}

impl Kicks {
    /// A handle for other threads. The calling thread is the one that kicks get out of a run.
    pub fn kicker(self: &Arc<Self>) -> io::Result<MshvKicker> {
        install_handler()?;
        unblock_signal(SIGRTMIN()).map_err(|error| io::Error::other(error.to_string()))?;
        // SAFETY: takes nothing and cannot fail.
        let thread = unsafe { libc::gettid() };
        let timer = Timer::for_thread(thread)?;
        *self.target.lock() = Some(Target { thread, timer });
        Ok(MshvKicker(Arc::clone(self)))
    }

    /// Whether there was a kick since the last call. To be called before a run and after one that a
    /// signal ended: it ends the repetition.
    pub fn take(&self) -> bool {
        let kicked = self.requested.swap(false, Ordering::AcqRel);
        if kicked {
            self.quiet();
        }
        kicked
    }

    /// Ends the repetition, of whichever kick.
    pub fn quiet(&self) {
        if let Some(target) = &*self.target.lock() {
            target.timer.set(0);
        }
    }
}

/// Kicks one vCPU. Outlives it without harm.
#[derive(Debug)]
pub(super) struct MshvKicker(Arc<Kicks>);

impl MshvKicker {
    /// A kicker that ends the next run, and not the current one; where no signal can be had.
    pub(super) fn without_signal(kicks: &Arc<Kicks>) -> Self {
        Self(Arc::clone(kicks))
    }
}

impl VcpuKicker for MshvKicker {
    fn kick(&self) {
        let target = self.0.target.lock();
        // Under the lock: the vCPU's thread sees flag and timer both set, or both not.
        self.0.requested.store(true, Ordering::Release);
        let Some(target) = &*target else { return };
        target.timer.set(REPEAT_NS);
        // SAFETY: takes nothing and cannot fail.
        let process = unsafe { libc::getpid() };
        // The thread may have ended, and its id may even name another one of this process, where the
        // signal does nothing. SAFETY: only sends a signal whose handler was installed before.
        unsafe { libc::tgkill(process, target.thread, SIGRTMIN()) };
    }
}

/// A timer that signals one thread.
#[derive(Debug)]
struct Timer(libc::timer_t);

// SAFETY: a timer id is a name for a kernel object, valid on every thread of the process; the
// functions it is passed to are thread-safe.
unsafe impl Send for Timer {}
// SAFETY: as above.
unsafe impl Sync for Timer {}

impl Timer {
    fn for_thread(thread: libc::pid_t) -> io::Result<Self> {
        let mut event = MaybeUninit::<libc::sigevent>::zeroed();
        // SAFETY: a structure of integers and optional pointers, for which zero is a value.
        let event = unsafe { event.assume_init_mut() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = SIGRTMIN();
        event.sigev_notify_thread_id = thread;
        let mut timer: libc::timer_t = ptr::null_mut();
        // SAFETY: both pointers are to whole structures of this frame.
        match unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, event, &raw mut timer) } {
            0 => Ok(Self(timer)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Signals every so many nanoseconds from now on; never again with 0.
    fn set(&self, nanoseconds: i64) {
        let each = libc::timespec { tv_sec: 0, tv_nsec: nanoseconds };
        let setting = libc::itimerspec { it_interval: each, it_value: each };
        // SAFETY: the timer lives as long as `self`, the setting is a whole structure. The call
        // cannot fail for a valid timer and setting.
        unsafe { libc::timer_settime(self.0, 0, &raw const setting, ptr::null_mut()) };
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: the timer was made by `for_thread` and is used no more.
        unsafe { libc::timer_delete(self.0) };
    }
}

fn install_handler() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| {
            let mut action = MaybeUninit::<libc::sigaction>::zeroed();
            // SAFETY: a structure of integers and optional pointers, for which zero is a value.
            let action = unsafe { action.assume_init_mut() };
            let handler: extern "C" fn(libc::c_int) = nothing;
            action.sa_sigaction = handler as usize;
            // A stray signal must not disturb a system call that a device makes on this thread; a
            // run comes back with EINTR all the same.
            action.sa_flags = libc::SA_RESTART;
            // SAFETY: `action` is a whole structure and its handler does nothing at all.
            match unsafe { libc::sigaction(SIGRTMIN(), action, ptr::null_mut()) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)),
            }
        })
        .map_err(io::Error::from_raw_os_error)
}

extern "C" fn nothing(_signal: libc::c_int) {}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    /// Waits until a signal interrupts it, as a run does.
    fn wait_for_signal() {
        // SAFETY: no descriptors, no time limit, no signal mask.
        let result = unsafe { libc::poll(ptr::null_mut(), 0, -1) };
        assert_eq!((result, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EINTR)));
    }

    #[test]
    fn a_kick_before_the_run_is_seen_once() {
        let kicks = Arc::new(Kicks::default());
        let kicker = kicks.kicker().unwrap();
        assert!(!kicks.take());
        kicker.kick();
        kicker.kick();
        assert!(kicks.take());
        assert!(!kicks.take());
    }

    #[test]
    fn a_kick_that_comes_between_the_look_and_the_run_is_repeated() {
        let kicks = Arc::new(Kicks::default());
        let kicker = kicks.kicker().unwrap();
        // The signal is delivered right here, before the wait begins; only the timer can end it.
        kicker.kick();
        wait_for_signal();
        assert!(kicks.take());
    }

    #[test]
    fn a_kick_from_another_thread_ends_the_run() {
        let kicks = Arc::new(Kicks::default());
        let (send, receive) = mpsc::channel();
        let shared = Arc::clone(&kicks);
        let runner = thread::spawn(move || {
            send.send(shared.kicker().unwrap()).unwrap();
            while !shared.take() {
                wait_for_signal();
            }
        });
        receive.recv().unwrap().kick();
        runner.join().unwrap();
        assert!(!kicks.take());
    }

    #[test]
    fn a_kicker_outlives_the_thread() {
        let kicks = Arc::new(Kicks::default());
        let shared = Arc::clone(&kicks);
        let kicker = thread::spawn(move || shared.kicker().unwrap()).join().unwrap();
        kicker.kick();
        assert!(kicks.take());
    }
}
