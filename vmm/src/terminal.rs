//! The user's terminal: raw while a guest has it, as it was when the process ends, however it ends.

use std::{
    io::{self, IsTerminal},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Once,
};

use parking_lot::Mutex;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// The terminal that was made raw, and how it was before.
static ORIGINAL: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

/// A panic gives the terminal back; said once.
static HOOK: Once = Once::new();

/// Makes standard input's terminal raw; does nothing if it is none. From then on a panic restores it, and whoever
/// ends the process calls [`restore`].
///
/// # Errors
/// The terminal refuses.
pub fn make_raw(input: BorrowedFd<'_>) -> io::Result<()> {
    if !input.is_terminal() {
        return Ok(());
    }
    let mut settings = tcgetattr(input)?;
    let mut original = ORIGINAL.lock();
    if original.is_none() {
        *original = Some((input.try_clone_to_owned()?, settings.clone()));
    }
    drop(original);
    HOOK.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            previous(panic);
        }));
    });
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
    // A panic while the lock is held must not wait for itself.
    if let Some(mut original) = ORIGINAL.try_lock()
        && let Some((terminal, settings)) = original.take()
        && let Err(error) = tcsetattr(&terminal, OptionalActions::Now, &settings)
    {
        log::warn!("the terminal stays raw: {error}");
    }
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
    fn the_terminal_is_given_back_at_the_end_and_by_a_panic() {
        let (_user, terminal) = pty();
        let echoes = || tcgetattr(&terminal).unwrap().local_modes.contains(LocalModes::ECHO);
        let ends: [fn(); 2] = [restore, || {
            std::panic::catch_unwind(|| panic!("a test of the hook")).unwrap_err();
        }];
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
