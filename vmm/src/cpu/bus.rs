//! How a vCPU's accesses reach the device that answers: a look at the published wiring, without a
//! lock, and a call.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use address_manager::{Dispatcher, IoSpace};
use hypervisor::ExitBus;

/// Exits of one vCPU by kind. Written by its thread alone, read by anybody.
#[derive(Debug, Default)]
pub struct ExitCounters {
    port_reads: AtomicU64,
    port_writes: AtomicU64,
    mmio_reads: AtomicU64,
    mmio_writes: AtomicU64,
    unanswered: AtomicU64,
    interrupted: AtomicU64,
}

impl ExitCounters {
    /// Name and count of each kind.
    pub fn all(&self) -> [(&'static str, u64); 6] {
        let Self { port_reads, port_writes, mmio_reads, mmio_writes, unanswered, interrupted } = self;
        [
            ("port_read", port_reads),
            ("port_write", port_writes),
            ("mmio_read", mmio_reads),
            ("mmio_write", mmio_writes),
            ("unanswered", unanswered),
            ("interrupted", interrupted),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
    }

    pub(super) fn interrupted(&self) {
        count(&self.interrupted);
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// One vCPU's way to the devices.
pub(super) struct Bus {
    dispatcher: Dispatcher,
    counters: Arc<ExitCounters>,
}

impl Bus {
    pub(super) fn new(dispatcher: Dispatcher, counters: Arc<ExitCounters>) -> Self {
        Self { dispatcher, counters }
    }

    pub(super) fn counters(&self) -> &ExitCounters {
        &self.counters
    }

    fn read(&mut self, space: IoSpace, address: u64, data: &mut [u8]) {
        // What no register answers reads as ones; the hypervisor's buffer holds anything.
        data.fill(0xff);
        if !self.dispatcher.read(space, address, data) {
            count(&self.counters.unanswered);
        }
    }

    fn write(&mut self, space: IoSpace, address: u64, data: &[u8]) {
        if !self.dispatcher.write(space, address, data) {
            count(&self.counters.unanswered);
        }
    }
}

impl ExitBus for Bus {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        count(&self.counters.port_reads);
        self.read(IoSpace::Pio, u64::from(port), data);
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        count(&self.counters.port_writes);
        self.write(IoSpace::Pio, u64::from(port), data);
    }

    fn mmio_read(&mut self, address: u64, data: &mut [u8]) {
        count(&self.counters.mmio_reads);
        self.read(IoSpace::Mmio, address, data);
    }

    fn mmio_write(&mut self, address: u64, data: &[u8]) {
        count(&self.counters.mmio_writes);
        self.write(IoSpace::Mmio, address, data);
    }
}
