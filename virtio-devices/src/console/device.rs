//! The device and its life.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use address_manager::Transaction;
use devices::{Stateful, terminal::Terminal};
use parking_lot::Mutex;
use vm_migration::LoadError;

use super::{ConsoleState, FEATURE_SIZE, queue::PortJob};
use crate::{
    device::{ActivateError, Activation, DeviceType, VirtioDevice},
    interrupt::ConfigInterrupt,
    one_worker::{DeviceJob, OneWorker},
    worker::{Spawn, Worker},
};

/// Receive and transmit queue of port 0.
const QUEUE_SIZES: [u16; 2] = [256, 256];

/// The size of the terminal, and how to tell of it.
#[derive(Debug)]
struct Size {
    /// Columns below, rows above: both change at once.
    value: AtomicU32,
    config: Mutex<Option<ConfigInterrupt>>,
}

impl Size {
    fn get(&self) -> (u16, u16) {
        let [c0, c1, r0, r1] = self.value.load(Ordering::Acquire).to_le_bytes();
        (u16::from_le_bytes([c0, c1]), u16::from_le_bytes([r0, r1]))
    }

    /// Whether that is another size than before.
    fn set(&self, columns: u16, rows: u16) -> bool {
        let value = u32::from(columns) | u32::from(rows) << 16;
        self.value.swap(value, Ordering::AcqRel) != value
    }
}

/// A console.
#[derive(Debug)]
pub struct Console {
    id: String,
    terminal: Arc<Terminal>,
    size: Arc<Size>,
    spawn: Arc<dyn Spawn>,
    worker: Option<Worker<PortJob>>,
}

/// Tells a console what happens to its terminal.
#[derive(Clone, Debug)]
pub struct ConsoleControl {
    size: Arc<Size>,
}

impl ConsoleControl {
    /// The terminal has another size; the guest is told if it differs.
    pub fn resize(&self, columns: u16, rows: u16) {
        if self.size.set(columns, rows)
            && let Some(config) = &*self.size.config.lock()
        {
            config.changed();
        }
    }
}

impl Console {
    /// A console of that size in front of `terminal`.
    pub fn new(id: &str, terminal: Arc<Terminal>, columns: u16, rows: u16, spawn: Arc<dyn Spawn>) -> Self {
        let size = Size { value: AtomicU32::new(0), config: Mutex::new(None) };
        size.set(columns, rows);
        Self { id: id.to_owned(), terminal, size: Arc::new(size), spawn, worker: None }
    }

    /// A handle to tell it of its terminal.
    pub fn control(&self) -> ConsoleControl {
        ConsoleControl { size: Arc::clone(&self.size) }
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> DeviceType {
        DeviceType::CONSOLE
    }

    fn features(&self) -> u64 {
        FEATURE_SIZE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let (columns, rows) = self.size.get();
        let mut space = [0; 12];
        let (size, _) = space.split_at_mut(4);
        size.copy_from_slice(&(u32::from(columns) | u32::from(rows) << 16).to_le_bytes());
        crate::device::read_config_bytes(&space, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if activation.features & FEATURE_SIZE != 0 {
            *self.size.config.lock() = Some(activation.config.clone());
        }
        let job = PortJob::new(&self.id, &self.terminal, activation);
        self.worker = Some(job.begin(&self.id, &self.spawn)?);
        Ok(())
    }

    // The size is the terminal's, not the driver's.
    fn reset(&mut self) {}
}

impl OneWorker for Console {
    type Job = PortJob;

    fn worker(&self) -> Option<&Worker<PortJob>> {
        self.worker.as_ref()
    }

    fn worker_mut(&mut self) -> &mut Option<Worker<PortJob>> {
        &mut self.worker
    }

    fn stopped(&mut self) {
        *self.size.config.lock() = None;
    }
}

impl Stateful for Console {
    type State = ConsoleState;

    fn save(&self) -> ConsoleState {
        let (columns, rows) = self.size.get();
        ConsoleState { columns, rows }
    }

    fn load(&mut self, state: ConsoleState, _transaction: &Transaction<'_>) -> Result<(), LoadError> {
        // What the guest was told; the machine says later what size the terminal has here.
        let ConsoleState { columns, rows } = state;
        self.size.set(columns, rows);
        Ok(())
    }
}
