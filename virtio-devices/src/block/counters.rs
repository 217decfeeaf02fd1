//! What went through a disk, by the names of the REST API.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// What the API shows for an average before the first sample.
const NO_AVERAGE: u64 = u64::MAX / 10_000;

/// One direction. Latencies are in microseconds.
#[derive(Debug)]
struct Direction {
    bytes: AtomicU64,
    operations: AtomicU64,
    latency_min: AtomicU64,
    /// Greatest latency plus one; 0 before the first sample.
    latency_top: AtomicU64,
    latency_sum: AtomicU64,
}

impl Direction {
    const fn new() -> Self {
        Self {
            bytes: AtomicU64::new(0),
            operations: AtomicU64::new(0),
            latency_min: AtomicU64::new(u64::MAX),
            latency_top: AtomicU64::new(0),
            latency_sum: AtomicU64::new(0),
        }
    }

    fn add(&self, bytes: u64, latency: Duration) {
        let latency = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX - 1);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.operations.fetch_add(1, Ordering::Relaxed);
        self.latency_min.fetch_min(latency, Ordering::Relaxed);
        self.latency_top.fetch_max(latency.saturating_add(1), Ordering::Relaxed);
        self.latency_sum.fetch_add(latency, Ordering::Relaxed);
    }

    fn values(&self) -> [u64; 5] {
        let operations = self.operations.load(Ordering::Relaxed);
        let average = self.latency_sum.load(Ordering::Relaxed).checked_div(operations);
        let max = self.latency_top.load(Ordering::Relaxed).checked_sub(1);
        [
            self.bytes.load(Ordering::Relaxed),
            operations,
            self.latency_min.load(Ordering::Relaxed),
            max.unwrap_or(u64::MAX),
            average.unwrap_or(NO_AVERAGE),
        ]
    }
}

/// The counters of one disk.
#[derive(Debug)]
pub(super) struct Counters {
    read: Direction,
    write: Direction,
}

impl Counters {
    pub(super) const fn new() -> Self {
        Self { read: Direction::new(), write: Direction::new() }
    }

    pub(super) fn read(&self, bytes: u64, latency: Duration) {
        self.read.add(bytes, latency);
    }

    pub(super) fn written(&self, bytes: u64, latency: Duration) {
        self.write.add(bytes, latency);
    }

    pub(super) fn values(&self) -> BTreeMap<&'static str, u64> {
        let read = ["read_bytes", "read_ops", "read_latency_min", "read_latency_max", "read_latency_avg"];
        let write =
            ["write_bytes", "write_ops", "write_latency_min", "write_latency_max", "write_latency_avg"];
        let names = read.into_iter().chain(write);
        names.zip(self.read.values().into_iter().chain(self.write.values())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_count() {
        let counters = Counters::new();
        let values = counters.values();
        assert_eq!(values["read_latency_min"], 18_446_744_073_709_551_615);
        assert_eq!(values["read_latency_max"], 18_446_744_073_709_551_615);
        assert_eq!(values["write_latency_avg"], 1_844_674_407_370_955);
        counters.read(512, Duration::from_micros(10));
        counters.read(1024, Duration::from_micros(20));
        counters.written(1, Duration::ZERO);
        let values = counters.values();
        assert_eq!((values["read_bytes"], values["read_ops"]), (1536, 2));
        assert_eq!(values["read_latency_min"], 10);
        assert_eq!(values["read_latency_max"], 20);
        assert_eq!(values["read_latency_avg"], 15);
        assert_eq!(values["write_latency_max"], 0);
    }
}
