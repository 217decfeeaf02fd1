//! What a device is to the machine: a tiny root trait that answers which buses it speaks, and a
//! facet for each.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use address_manager::Handler;
use parking_lot::Mutex;
use thiserror::Error;

use crate::{pci::PciFunction, state::Persist};

/// A device could not be brought to a halt in time.
#[derive(Debug, Error)]
#[error("{who} did not stop: {why}")]
pub struct PauseError {
    /// The device, and the thread or back end of it.
    pub who: String,
    /// What was waited for.
    pub why: String,
}

/// A device of the machine.
pub trait Device: Persist + Send {
    /// Asks the threads of the device to come to a halt, and returns at once. The time that
    /// [`pause`](Self::pause) has begins here: of many devices that are asked first and paused then, the last has no
    /// longer than the first. Nothing to do for a device without threads.
    fn ask_to_pause(&mut self) {}

    /// Stops all activity of its own. Idempotent. What can fail (a back end, kernel state) is
    /// fetched here, so that a paused device is still and saving it cannot fail.
    ///
    /// # Errors
    /// Something of the device did not stop in time.
    fn pause(&mut self) -> Result<(), PauseError>;

    /// Goes on after [`pause`](Self::pause), or begins, after a machine was built or restored.
    fn resume(&mut self);

    /// Back to the state after power-on.
    fn reset(&mut self);

    /// Its I/O ports, if it has any.
    fn ports(&mut self) -> Option<&mut dyn PortIo> {
        None
    }

    /// Its memory-mapped registers, if it has any.
    fn mmio(&mut self) -> Option<&mut dyn Mmio> {
        None
    }

    /// Its PCI function, if it is one.
    fn pci(&mut self) -> Option<&mut dyn PciFunction> {
        None
    }

    /// What it counts, by name; nothing for most.
    fn counters(&self) -> BTreeMap<&'static str, u64> {
        BTreeMap::new()
    }

    /// What went through each of its queues, by number; nothing for a device without queues.
    fn queue_counts(&self) -> Vec<QueueCount> {
        Vec::new()
    }
}

/// What went through a queue since the machine was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCount {
    /// Requests that were served.
    pub requests: u64,
    /// Their bytes, headers included, in both directions.
    pub bytes: u64,
}

/// I/O port registers. Offsets are from the first port of the device's range; `data` has 1, 2 or 4
/// bytes.
pub trait PortIo {
    /// The guest reads. What no register answers stays as it is (all ones).
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The guest writes.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// Memory-mapped registers. Offsets are from the start of the device's range; `data` has 1 to 8
/// bytes.
pub trait Mmio {
    /// The guest reads. What no register answers stays as it is (all ones).
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The guest writes.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device behind its one lock.
#[derive(Clone)]
pub struct SharedDevice(Arc<Mutex<dyn Device>>);

impl SharedDevice {
    /// Puts a device behind its lock.
    pub fn new(device: impl Device + 'static) -> Self {
        Self(Arc::new(Mutex::new(device)))
    }

    /// The same for a device that is shared already under its own type.
    pub fn from_arc<D: Device + 'static>(device: Arc<Mutex<D>>) -> Self {
        Self(device)
    }

    /// The device, locked.
    pub fn lock(&self) -> parking_lot::MutexGuard<'_, dyn Device> {
        self.0.lock()
    }

    /// The device, locked; `None` if somebody else has it for longer than that.
    pub fn try_lock_for(&self, patience: Duration) -> Option<parking_lot::MutexGuard<'_, dyn Device>> {
        self.0.try_lock_for(patience)
    }

    /// The handler that answers this device's I/O ports.
    pub fn port_handler(&self) -> Arc<dyn Handler> {
        Arc::new(PortHandler(self.clone()))
    }

    /// The handler that answers this device's memory-mapped registers.
    pub fn mmio_handler(&self) -> Arc<dyn Handler> {
        Arc::new(MmioHandler(self.clone()))
    }
}

impl fmt::Debug for SharedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedDevice")
    }
}

struct PortHandler(SharedDevice);

impl Handler for PortHandler {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(ports) = self.0.lock().ports() {
            ports.read(offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(ports) = self.0.lock().ports() {
            ports.write(offset, data);
        }
    }
}

struct MmioHandler(SharedDevice);

impl Handler for MmioHandler {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(mmio) = self.0.lock().mmio() {
            mmio.read(offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(mmio) = self.0.lock().mmio() {
            mmio.write(offset, data);
        }
    }
}
