//! Who wants to know how far it is, and may want it given up.

use crate::jobs::Progress;

/// Told of bytes as they are done.
pub trait Tally: Sync {
    /// The next phase begins, which has `bytes_total` bytes to work through, if that is known.
    fn phase(&self, _phase: &'static str, _bytes_total: Option<u64>) {}

    /// So many more are done.
    fn add(&self, bytes: u64);

    /// Whether it shall be given up.
    fn is_cancelled(&self) -> bool;
}

impl Tally for Progress {
    fn phase(&self, phase: &'static str, bytes_total: Option<u64>) {
        Self::phase(self, phase, bytes_total);
    }

    fn add(&self, bytes: u64) {
        Self::add(self, bytes);
    }

    fn is_cancelled(&self) -> bool {
        Self::is_cancelled(self)
    }
}

/// Nobody does.
impl Tally for () {
    fn add(&self, _bytes: u64) {}

    fn is_cancelled(&self) -> bool {
        false
    }
}
