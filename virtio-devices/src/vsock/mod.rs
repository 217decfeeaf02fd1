//! The socket device (virtio 1.3 section 5.10): stream sockets between programs of the guest and programs of the host.
//!
//! Cut into what a packet is ([`packet`]), what a connection is ([`connection`]: nothing but bookkeeping), and who is
//! connected to whom ([`switch`]), which knows the host by the traits [`Host`] and [`Stream`] alone; the device's one
//! thread moves packets between the switch and the queues. What a host program sees is
//! [`host::vsock`](crate::host::vsock). Seqpacket sockets are absent.
//!
//! Everything is bounded: connections, bytes that wait for a host program, resets that wait for the guest. When the last
//! are too many, no more is taken from the guest until it takes some (virtio 1.3 section 5.10.6.1). So is the time that
//! a guest has for an answer that a connection cannot do without ([`ANSWER_LIMIT`]).

mod clock;
pub mod connection;
mod device;
pub mod packet;
mod queue;
mod state;
pub mod switch;
#[cfg(test)]
mod tests;

use std::{fmt, io, time::Duration};

pub use device::{Vsock, VsockConfig};
pub use state::VsockState;

/// Stream sockets (virtio 1.3 section 5.10.3).
pub const FEATURE_STREAM: u64 = 1 << 0;

/// Context ids that no guest can have (virtio 1.3 section 5.10.4).
pub const RESERVED_CIDS: [u32; 4] = [0, 1, 2, u32::MAX];

/// The first port that a host program gets for its side of a connection. Below are those that programs listen on.
pub const FIRST_HOST_PORT: u32 = 1 << 30;
/// The last one.
pub const LAST_HOST_PORT: u32 = (1 << 31) - 1;

/// How long the guest has for an answer, in time that the device runs: to take or refuse a connection that a program of
/// the host's asks for, and to end one that the host neither sends nor receives on any more (virtio 1.3 section 5.10.6.5
/// leaves the length to the device). It is what Linux gives for the second; for the first it gives 2 s, but a program
/// that is in a hurry can go away, and a guest whose memory is still on its way here is slow.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(8);

/// The host, as far as there are programs on it that talk to the guest.
pub trait Host: Send + fmt::Debug {
    /// A connection to such a program.
    type Stream: Stream;

    /// Connects to the program that listens on that port.
    ///
    /// # Errors
    /// There is none, or it is too busy.
    fn connect(&mut self, port: u32) -> io::Result<Self::Stream>;

    /// The next program that wants to talk to the guest.
    ///
    /// # Errors
    /// `WouldBlock` if there is none, or whatever else keeps it away.
    fn accept(&mut self) -> io::Result<Self::Stream>;
}

/// The host's end of a connection. None of its calls waits.
pub trait Stream: Send + fmt::Debug {
    /// Reads; 0 when the program sends no more.
    ///
    /// # Errors
    /// `WouldBlock` if there is nothing now.
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize>;

    /// Writes a part.
    ///
    /// # Errors
    /// `WouldBlock` if there is no room now; anything else if the program receives no more.
    fn write(&mut self, data: &[u8]) -> io::Result<usize>;

    /// The guest sends no more.
    fn end_writing(&mut self);

    /// The guest receives no more.
    fn end_reading(&mut self);

    /// Whether the program has gone.
    fn is_hung_up(&self) -> bool;
}
