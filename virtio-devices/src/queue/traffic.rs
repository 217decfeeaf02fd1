//! What went through a queue, counted by whoever serves it and read by anybody.

use std::sync::atomic::{AtomicU64, Ordering};

use devices::device::QueueCount;

/// Chains and bytes since the machine was built.
#[derive(Debug, Default)]
pub struct Traffic {
    chains: AtomicU64,
    bytes: AtomicU64,
}

impl Traffic {
    /// A chain was handed back, after so many bytes in both directions.
    pub(super) fn add(&self, bytes: u64) {
        self.chains.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What it comes to.
    pub fn count(&self) -> QueueCount {
        QueueCount {
            requests: self.chains.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}
