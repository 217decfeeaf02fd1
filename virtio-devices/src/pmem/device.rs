//! The device and its life.

use std::{collections::BTreeMap, sync::Arc};

use address_manager::Transaction;
use devices::Stateful;
use vm_migration::LoadError;

use super::{PmemState, Store, counters::Counters, queue::FlushJob};
use crate::{
    device::{ActivateError, Activation, DeviceType, VirtioDevice},
    one_worker::{DeviceJob, OneWorker},
    worker::{Spawn, Worker},
};

/// Largest size of the one queue.
const QUEUE_SIZES: [u16; 1] = [256];

/// What a persistent memory device is built from.
#[derive(Clone, Debug)]
pub struct PmemConfig {
    /// Its id.
    pub id: String,
    /// Guest-physical address of its window.
    pub start: u64,
    /// Length of the window in bytes.
    pub size: u64,
}

/// A persistent memory device.
#[derive(Debug)]
pub struct Pmem {
    config: PmemConfig,
    store: Arc<dyn Store>,
    counters: Arc<Counters>,
    spawn: Arc<dyn Spawn>,
    worker: Option<Worker<FlushJob>>,
}

impl Pmem {
    /// A device whose window shows what `store` keeps.
    pub fn new(config: PmemConfig, store: Arc<dyn Store>, spawn: Arc<dyn Spawn>) -> Self {
        Self { config, store, counters: Arc::default(), spawn, worker: None }
    }
}

impl VirtioDevice for Pmem {
    fn device_type(&self) -> DeviceType {
        DeviceType::PMEM
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let PmemConfig { id: _, start, size } = &self.config;
        let space = [start.to_le_bytes(), size.to_le_bytes()].concat();
        crate::device::read_config_bytes(&space, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let (id, store, counters) = (&self.config.id, &self.store, &self.counters);
        let job = FlushJob::new(id, Arc::clone(store), Arc::clone(counters), activation);
        self.worker = Some(job.begin(id, &self.spawn)?);
        Ok(())
    }

    fn reset(&mut self) {}

    fn counters(&self) -> BTreeMap<&'static str, u64> {
        self.counters.values()
    }
}

impl OneWorker for Pmem {
    type Job = FlushJob;

    fn worker(&self) -> Option<&Worker<FlushJob>> {
        self.worker.as_ref()
    }

    fn worker_mut(&mut self) -> &mut Option<Worker<FlushJob>> {
        &mut self.worker
    }
}

impl Stateful for Pmem {
    type State = PmemState;

    fn save(&self) -> PmemState {
        PmemState { start: self.config.start, size: self.config.size }
    }

    fn load(&mut self, state: PmemState, _transaction: &Transaction<'_>) -> Result<(), LoadError> {
        state.check(self.config.start, self.config.size)
    }
}
