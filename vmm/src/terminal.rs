//! The user's terminal: raw while a guest has it, as it was when the process ends, however it ends.

use std::{
    io::{self, IsTerminal},
    os::fd::{AsFd, BorrowedFd},
};

use parking_lot::Mutex;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// How the terminal was before it was made raw.
static ORIGINAL: Mutex<Option<Termios>> = Mutex::new(None);

/// Makes standard input's terminal raw; does nothing if it is none. The first call also has a panic
/// restore it.
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
        *original = Some(settings.clone());
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            previous(panic);
        }));
    }
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

/// Columns and rows of standard output's terminal; 80 by 25 where that is none.
pub fn size() -> (u16, u16) {
    match tcgetwinsize(rustix::stdio::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
        _ => (80, 25),
    }
}

/// Gives the terminal back as it was. Does nothing if it was never changed.
pub fn restore() {
    // A panic while the lock is held must not wait for itself.
    if let Some(mut original) = ORIGINAL.try_lock()
        && let Some(settings) = original.take()
        && let Err(error) = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &settings)
    {
        log::warn!("the terminal stays raw: {error}");
    }
}
