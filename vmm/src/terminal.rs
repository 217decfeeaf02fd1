//! The user's terminal: raw while a guest has it, as it was when the process ends, however it ends.

mod fatal;

use std::{
    io::{self, IsTerminal},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Once, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::{
    process::getpgrp,
    termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr},
};

/// The terminal that was made raw first, and how it was before. Written once, so that a signal handler may read it.
static ORIGINAL: OnceLock<(OwnedFd, Termios)> = OnceLock::new();

/// Whether it is to be given back.
static RAW: AtomicBool = AtomicBool::new(false);

/// A panic and a signal give the terminal back; said once.
static ENDS: Once = Once::new();

/// Makes standard input's terminal raw; does nothing if it is none. From then on a panic restores it, and so does a
/// signal that ends the process and that nobody else handles; whoever ends the process otherwise calls [`restore`].
///
/// # Errors
/// The terminal or the host refuses.
pub fn make_raw(input: BorrowedFd<'_>) -> io::Result<()> {
    if !input.is_terminal() {
        return Ok(());
    }
    let mut settings = tcgetattr(input)?;
    if ORIGINAL.get().is_none() {
        // Set already only if two do this at once, and both see the same terminal.
        let _ = ORIGINAL.set((input.try_clone_to_owned()?, settings.clone()));
    }
    ENDS.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            previous(panic);
        }));
        fatal::install();
    });
    RAW.store(true, Ordering::SeqCst);
    settings.make_raw();
    tcsetattr(input, OptionalActions::Now, &settings)?;
    Ok(())
}

/// Makes the guest's side of a pseudo-terminal of ours raw.
///
/// # Errors
/// It refuses.
pub fn make_pty_raw(subordinate: &impl AsFd) -> io::Result<()> {
    let mut settings = tcgetattr(subordinate)?;
    settings.make_raw();
    tcsetattr(subordinate, OptionalActions::Now, &settings)?;
    Ok(())
}

/// Gives the terminal back as it was. Does nothing if it was never changed.
pub fn restore() {
    if let Err(error) = give_back() {
        log::warn!("the terminal stays raw: {error}");
    }
    RAW.store(false, Ordering::SeqCst);
}

/// The same, of system calls alone: a signal handler may call it. Twice is no harm: two threads may be at their end.
fn give_back() -> rustix::io::Result<()> {
    let Some((terminal, settings)) = ORIGINAL.get() else { return Ok(()) };
    if !RAW.load(Ordering::SeqCst) {
        return Ok(());
    }
    // In the background the terminal is another program's, and the kernel would stop who touches it.
    if tcgetpgrp(terminal).is_ok_and(|foreground| foreground != getpgrp()) {
        return Ok(());
    }
    tcsetattr(terminal, OptionalActions::Now, settings)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs::File;

    use rustix::{
        pty::{OpenptFlags, openpt, ptsname, unlockpt},
        termios::LocalModes,
    };

    use super::*;

    /// A pseudo-terminal that plays the user's: the user's side, and ours.
    pub(crate) fn pty() -> (File, File) {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap().into_string().unwrap();
        (user.into(), File::options().read(true).write(true).open(name).unwrap())
    }

    #[test]
    fn the_terminal_is_given_back_however_the_process_ends() {
        let (_user, terminal) = pty();
        let echoes = || tcgetattr(&terminal).unwrap().local_modes.contains(LocalModes::ECHO);
        let panics = || {
            std::panic::catch_unwind(|| panic!("a test of the hook")).unwrap_err();
        };
        let ends: [fn(); 4] = [restore, panics, fatal::tests::end_by_a_fault, fatal::tests::end_by_abort];
        for end in ends {
            assert!(echoes());
            make_raw(terminal.as_fd()).unwrap();
            assert!(!echoes());
            // A machine that boots again finds the terminal raw, and that is not how it was.
            make_raw(terminal.as_fd()).unwrap();
            end();
            assert!(echoes());
            restore();
        }
        make_raw(tempfile::tempfile().unwrap().as_fd()).unwrap();
    }
}
