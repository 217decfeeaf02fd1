//! The device and its life.

use std::{fs::File, sync::Arc};

use address_manager::Transaction;
use devices::{PauseError, Stateful};
use vm_migration::{LoadError, NoState};

use super::queue::RequestJob;
use crate::{
    device::{ActivateError, Activation, ActiveQueue, DeviceType, StoppedQueue, VirtioDevice},
    queue::QueueState,
    worker::{Spawn, Worker},
};

/// Largest size of the one queue.
const QUEUE_SIZES: [u16; 1] = [256];

/// An entropy device.
#[derive(Debug)]
pub struct Rng {
    id: String,
    source: Arc<File>,
    spawn: Arc<dyn Spawn>,
    worker: Option<Worker<RequestJob>>,
}

impl Rng {
    /// A device that reads from `source`, which is expected not to end and not to block for long.
    pub fn new(id: &str, source: File, spawn: Arc<dyn Spawn>) -> Self {
        Self { id: id.to_owned(), source: Arc::new(source), spawn, worker: None }
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> DeviceType {
        DeviceType::RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let job = RequestJob::new(&self.id, &self.source, activation);
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

    fn reset(&mut self) {}
}

impl Stateful for Rng {
    // What the device has given out is the guest's; it keeps nothing itself.
    type State = NoState;

    fn save(&self) -> NoState {
        NoState {}
    }

    fn load(&mut self, state: NoState, _transaction: &Transaction<'_>) -> Result<(), LoadError> {
        let NoState {} = state;
        Ok(())
    }
}
