//! The device and its life.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use address_manager::Transaction;
use devices::{PauseError, Stateful, terminal::Terminal};
use parking_lot::Mutex;
use vm_migration::LoadError;

use super::{ConsoleState, FEATURE_SIZE, queue::PortJob};
use crate::{
    device::{ActivateError, Activation, ActiveQueue, DeviceType, StoppedQueue, VirtioDevice},
    interrupt::ConfigInterrupt,
    queue::QueueState,
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
        let worker = Worker::new(&self.id, job, &self.spawn);
        self.worker = Some(worker.map_err(|error| ActivateError::host("cannot make an eventfd", error))?);
        Ok(())
    }

    fn start_queue(&mut self, queue: ActiveQueue) -> Result<(), ActivateError> {
        if let Some(worker) = &self.worker {
            worker.job().start_queue(queue);
            worker.wake();
        }
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Result<Option<QueueState>, PauseError> {
        Ok(self.worker.as_ref().and_then(|worker| worker.job().stop_queue(index)))
    }

    fn stop(&mut self) -> Result<Vec<StoppedQueue>, PauseError> {
        let Some(worker) = &mut self.worker else { return Ok(Vec::new()) };
        worker.stop()?;
        let stopped = worker.job().states();
        self.worker = None;
        *self.size.config.lock() = None;
        Ok(stopped)
    }

    fn ask_to_pause(&self) {
        self.worker.iter().for_each(Worker::ask_to_pause);
    }

    fn pause(&mut self) -> Result<Vec<StoppedQueue>, PauseError> {
        let Some(worker) = &self.worker else { return Ok(Vec::new()) };
        worker.pause()?;
        Ok(worker.job().states())
    }

    fn resume(&mut self) {
        if let Some(worker) = &mut self.worker {
            worker.resume();
        }
    }

    // The size is the terminal's, not the driver's.
    fn reset(&mut self) {}
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
