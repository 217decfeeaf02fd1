//! The VM generation id: 16 bytes in guest memory that are others whenever the guest goes on from a copy of
//! itself, so that it can have its random numbers and its unique names made anew.

use std::io;

use arch::x86_64::acpi::event;
use rustix::rand::{GetRandomFlags, getrandom};

use super::Machine;

/// A generation id that nobody has had.
///
/// # Errors
/// The host gives no random numbers.
pub fn fresh() -> io::Result<[u8; 16]> {
    let mut id = [0; 16];
    // So few bytes come all at once.
    getrandom(&mut id, GetRandomFlags::empty())?;
    Ok(id)
}

impl Machine {
    /// Tells the guest that its generation id has changed. What the guest makes of it is its own business.
    pub fn tell_new_generation(&self) {
        self.platform.events.lock().raise(event::GENERATION_ID);
    }
}
