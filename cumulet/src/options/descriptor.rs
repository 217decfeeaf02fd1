//! Descriptors that whoever started the program handed over, by their numbers.
#![expect(unsafe_code, reason = "the kernel names them by plain numbers, which carry no ownership")]

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
    sync::Arc,
};

use super::grammar::GrammarError;

/// Standard input, output and error are not for devices.
const FIRST: i32 = 3;

/// A duplicate of an inherited descriptor. The number itself stays open: it may be named twice, and may belong to
/// something else.
///
/// # Errors
/// It is a standard one, or not open; the error names `key`.
pub fn inherited(key: &str, number: i32) -> Result<Arc<OwnedFd>, GrammarError> {
    if number < FIRST {
        return Err(GrammarError::value(key, format!("{number} is one of the standard descriptors")));
    }
    // SAFETY: the call takes no pointer; a number that is not an open descriptor is answered by an error.
    let duplicate = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, FIRST) };
    if duplicate < 0 {
        let error = io::Error::last_os_error();
        return Err(GrammarError::value(key, format!("{number} cannot be used: {error}")));
    }
    // SAFETY: the kernel has just opened this number for the call above, so nothing else owns it.
    Ok(Arc::new(unsafe { OwnedFd::from_raw_fd(duplicate) }))
}
