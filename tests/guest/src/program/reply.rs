//! The reply to an order, and why there may be none.

use core::fmt::{self, Write};

use test_guest::orders::Malformed;

use crate::memory::MemoryError;
use crate::virtio::DeviceError;

/// Longest reply in bytes.
const REPLY_MAX: usize = 16384;

/// Why an order was not carried out.
#[derive(Debug)]
pub enum OrderError {
    Malformed(Malformed),
    Memory(MemoryError),
    Device(DeviceError),
    Unknown,
    Refused(&'static str),
}

impl fmt::Display for OrderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(error) => error.fmt(f),
            Self::Memory(error) => error.fmt(f),
            Self::Device(error) => error.fmt(f),
            Self::Unknown => f.write_str("no such order"),
            Self::Refused(reason) => f.write_str(reason),
        }
    }
}

impl From<Malformed> for OrderError {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error)
    }
}

impl From<MemoryError> for OrderError {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
    }
}

impl From<DeviceError> for OrderError {
    fn from(error: DeviceError) -> Self {
        Self::Device(error)
    }
}

/// One line, written to the port when it is complete.
#[derive(Debug)]
pub struct Reply {
    bytes: [u8; REPLY_MAX],
    len: usize,
    full: bool,
}

impl Reply {
    pub const fn new() -> Self {
        Self { bytes: [0; REPLY_MAX], len: 0, full: false }
    }

    pub fn clear(&mut self) {
        self.len = 0;
        self.full = false;
    }

    /// Adds to the line. What does not fit is dropped, and `is_full` says so.
    pub fn add(&mut self, text: fmt::Arguments<'_>) {
        // `write_str` never fails.
        let _ = self.write_fmt(text);
    }

    pub fn is_full(&self) -> bool {
        self.full
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Write for Reply {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let taken = text.len().min(self.bytes.len() - self.len);
        self.bytes[self.len..self.len + taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.len += taken;
        self.full |= taken < text.len();
        Ok(())
    }
}

/// Adds text to a reply, in the form of `format_args!`.
macro_rules! say {
    ($reply:expr, $($text:tt)*) => {
        $reply.add(format_args!($($text)*))
    };
}
pub(super) use say;
