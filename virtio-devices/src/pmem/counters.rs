//! What a persistent memory device has done, by the names of the REST API.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

/// The counters of one device.
#[derive(Debug, Default)]
pub(super) struct Counters {
    flushes: AtomicU64,
    errors: AtomicU64,
}

impl Counters {
    /// Requests to flush were answered: so many with success, so many with failure.
    pub(super) fn add(&self, done: u64, failed: u64) {
        self.flushes.fetch_add(done, Ordering::Relaxed);
        self.errors.fetch_add(failed, Ordering::Relaxed);
    }

    pub(super) fn values(&self) -> BTreeMap<&'static str, u64> {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [("flush_ops", value(&self.flushes)), ("flush_errors", value(&self.errors))].into()
    }
}
