//! The device and its life.

use std::{fs::File, sync::Arc};

use address_manager::Transaction;
use devices::Stateful;
use vm_migration::{LoadError, NoState};

use super::queue::RequestJob;
use crate::{
    device::{ActivateError, Activation, DeviceType, VirtioDevice},
    one_worker::{DeviceJob, OneWorker},
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
        self.worker = Some(job.begin(&self.id, &self.spawn)?);
        Ok(())
    }

    fn reset(&mut self) {}
}

impl OneWorker for Rng {
    type Job = RequestJob;

    fn worker(&self) -> Option<&Worker<RequestJob>> {
        self.worker.as_ref()
    }

    fn worker_mut(&mut self) -> &mut Option<Worker<RequestJob>> {
        &mut self.worker
    }
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
