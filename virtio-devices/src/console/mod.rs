//! The console device (virtio 1.3 section 5.3): one port, in front of a [`Terminal`](devices::terminal).
//!
//! What the guest writes never waits for a reader; what is typed waits for the guest. Several ports and the
//! emergency write are absent.

mod device;
mod queue;
mod state;
#[cfg(test)]
mod tests;

pub use device::{Console, ConsoleControl};
pub use state::ConsoleState;

/// The size of the terminal is given (virtio 1.3 section 5.3.3).
pub const FEATURE_SIZE: u64 = 1 << 0;
