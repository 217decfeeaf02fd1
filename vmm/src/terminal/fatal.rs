//! Signals that end the process: the terminal is given back before they do.
#![expect(unsafe_code, reason = "sigaction; no library hands out faults such as SIGSEGV")]

use std::{
    mem::MaybeUninit,
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

/// The signals that do not end a process, or that no process can handle.
const OTHERS: [i32; 9] = [
    libc::SIGKILL,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGCONT,
    libc::SIGCHLD,
    libc::SIGURG,
    libc::SIGWINCH,
];

/// Faults for which the standard library has a handler of its own, which tells of a stack that is full.
const FAULTS: [i32; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// What was done about each of them before. Written once, before our handler is in place; never freed.
static BEFORE: [AtomicPtr<libc::sigaction>; 2] = [const { AtomicPtr::new(ptr::null_mut()) }; 2];

/// `si_code` of a memory error that was found before anybody needed the memory.
const MEMORY_ERROR_AHEAD: i32 = 5;

/// Handles every signal that would end the process. One that is ignored stays so (SIGHUP under `nohup`), and one that
/// somebody else handles stays with it.
pub(super) fn install() {
    for signal in 1..=libc::SIGRTMAX() {
        if OTHERS.contains(&signal) {
            continue;
        }
        // Fails for the signals that the C library keeps for itself.
        let Some(before) = exchange(signal, None) else { continue };
        let fault = FAULTS.iter().position(|fault| *fault == signal);
        match fault.and_then(|index| BEFORE.get(index)) {
            Some(_) if before.sa_sigaction == libc::SIG_IGN => continue,
            Some(place) => place.store(Box::into_raw(Box::new(before)), Ordering::SeqCst),
            None if before.sa_sigaction == libc::SIG_DFL => {}
            None => continue,
        }
        let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = ended;
        // On the stack that each thread has for that: its own may be full.
        let action = action(handler as usize, libc::SA_SIGINFO | libc::SA_ONSTACK);
        if exchange(signal, Some(&action)).is_none() {
            log::warn!("signal {signal} will leave the terminal raw: {}", std::io::Error::last_os_error());
        }
    }
}

fn action(handler: usize, flags: i32) -> libc::sigaction {
    // SAFETY: all zeroes is an action: the default one, no flags, no signal blocked.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    action
}

/// Sets what is done about a signal, if anything is given; returns what was done before. `None` if the kernel refuses.
fn exchange(signal: i32, new: Option<&libc::sigaction>) -> Option<libc::sigaction> {
    let mut before = action(libc::SIG_DFL, 0);
    // SAFETY: both point to actions that live for the call. The only handlers that are ever set are `ended`, which calls
    // nothing but what a handler may call, and those that were there before.
    let result = unsafe { libc::sigaction(signal, new.map_or(ptr::null(), ptr::from_ref), &raw mut before) };
    (result == 0).then_some(before)
}

/// Gives the terminal back and lets the signal do what it would have done. Makes system calls only, and takes no lock.
extern "C" fn ended(signal: i32, information: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // There is nobody to tell of an error.
    let _ = super::give_back();
    // SAFETY: the kernel hands a pointer to what it tells of the signal, which lives as long as the handler runs.
    let code = unsafe { (*information).si_code };
    let fault = FAULTS.iter().position(|fault| *fault == signal);
    if let Some(place) = fault.and_then(|index| BEFORE.get(index))
        && code > 0
        && code != MEMORY_ERROR_AHEAD
    {
        let before = place.load(Ordering::SeqCst);
        // SAFETY: it was written before this handler was in place, and is never freed or written again.
        if let Some(before) = unsafe { before.as_ref() } {
            exchange(signal, Some(before));
            // The instruction faults again.
            return;
        }
    }
    exchange(signal, Some(&action(libc::SIG_DFL, 0)));
    // It waits until this handler returns.
    // SAFETY: the call takes a number and may be made by a handler.
    unsafe { libc::raise(signal) };
}

#[cfg(test)]
pub(super) mod tests {
    /// Ends a copy of this process by `end`; returns the signal that it ended by. `end` must be fit for a signal
    /// handler: the copy has one of this process's threads, and whatever locks the others held.
    fn signal_of_a_copy(end: fn()) -> i32 {
        // SAFETY: the child makes system calls only until it ends, by the contract of this function.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            // A dump of the tests' memory is of no use to anybody.
            let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
            let _ = rustix::process::setrlimit(rustix::process::Resource::Core, none);
            end();
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: the status is ours; the child is ours.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert!(libc::WIFSIGNALED(status), "{status:#x}");
        libc::WTERMSIG(status)
    }

    fn fault() {
        // SAFETY: nothing is there to be spoilt: the processor refuses the write, which is what is wanted.
        unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(1) };
    }

    /// A copy of this process ends by a fault.
    pub(in super::super) fn end_by_a_fault() {
        assert_eq!(signal_of_a_copy(fault), libc::SIGSEGV);
    }

    /// A copy of this process aborts.
    pub(in super::super) fn end_by_abort() {
        assert_eq!(signal_of_a_copy(|| std::process::abort()), libc::SIGABRT);
    }
}
