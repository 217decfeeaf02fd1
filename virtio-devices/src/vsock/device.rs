//! The device and its life.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use address_manager::Transaction;
use devices::Stateful;
use vm_migration::LoadError;

use super::{
    ANSWER_LIMIT, FEATURE_STREAM, FIRST_HOST_PORT, LAST_HOST_PORT, VsockState, queue::SocketJob,
    switch::Tally,
};
use crate::{
    device::{ActivateError, Activation, DeviceType, VirtioDevice},
    host::vsock::HostSocket,
    one_worker::{DeviceJob, OneWorker},
    worker::{Spawn, Worker},
};

/// Receive, transmit and event queue.
const QUEUE_SIZES: [u16; 3] = [256; 3];

/// What a socket device is built from.
#[derive(Clone, Debug)]
pub struct VsockConfig {
    /// Its id.
    pub id: String,
    /// The guest's context id; none of [`RESERVED_CIDS`](super::RESERVED_CIDS).
    pub cid: u32,
}

/// What the device and its thread have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) id: String,
    pub(super) cid: u32,
    pub(super) host: Arc<HostSocket>,
    pub(super) tally: Arc<Tally>,
    /// How long the guest has for an answer.
    pub(super) answer_limit: Duration,
    /// The guest has to be told that its connections are gone, and that it may have another context id.
    pub(super) transport_reset: AtomicBool,
}

/// A socket device.
#[derive(Debug)]
pub struct Vsock {
    shared: Arc<Shared>,
    spawn: Arc<dyn Spawn>,
    /// With it go all connections.
    worker: Option<Worker<SocketJob>>,
}

impl Vsock {
    /// A device that connects the guest with the programs behind `host`.
    pub fn new(config: VsockConfig, host: HostSocket, spawn: Arc<dyn Spawn>) -> Self {
        Self::with_limit(config, host, spawn, ANSWER_LIMIT)
    }

    /// One whose guest has another time for its answers.
    pub(super) fn with_limit(
        config: VsockConfig,
        host: HostSocket,
        spawn: Arc<dyn Spawn>,
        answer_limit: Duration,
    ) -> Self {
        let VsockConfig { id, cid } = config;
        let shared = Shared {
            id,
            cid,
            host: Arc::new(host),
            tally: Arc::default(),
            answer_limit,
            transport_reset: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared), spawn, worker: None }
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> DeviceType {
        DeviceType::VSOCK
    }

    fn features(&self) -> u64 {
        FEATURE_STREAM
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::device::read_config_bytes(&u64::from(self.shared.cid).to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let job = SocketJob::new(&self.shared, activation);
        self.worker = Some(job.begin(&self.shared.id, &self.spawn)?);
        Ok(())
    }

    fn reset(&mut self) {
        // A driver that begins has no connections that it would have to be told of.
        self.shared.transport_reset.store(false, Ordering::Release);
        self.shared.tally.next_port.store(FIRST_HOST_PORT, Ordering::Release);
    }

    fn counters(&self) -> BTreeMap<&'static str, u64> {
        let Tally { next_port: _, to_guest, from_guest, made, resets } = &*self.shared.tally;
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BTreeMap::from([
            ("rx_bytes", value(to_guest)),
            ("tx_bytes", value(from_guest)),
            ("connections", value(made)),
            ("resets", value(resets)),
        ])
    }
}

impl OneWorker for Vsock {
    type Job = SocketJob;

    fn worker(&self) -> Option<&Worker<SocketJob>> {
        self.worker.as_ref()
    }

    fn worker_mut(&mut self) -> &mut Option<Worker<SocketJob>> {
        &mut self.worker
    }
}

impl Stateful for Vsock {
    type State = VsockState;

    fn save(&self) -> VsockState {
        VsockState { next_port: self.shared.tally.next_port.load(Ordering::Acquire) }
    }

    fn load(&mut self, state: VsockState, _transaction: &Transaction<'_>) -> Result<(), LoadError> {
        let VsockState { next_port } = state;
        if !(FIRST_HOST_PORT..=LAST_HOST_PORT).contains(&next_port) {
            let why = format!("{next_port}, not from {FIRST_HOST_PORT} to {LAST_HOST_PORT}");
            return Err(LoadError::field("device.next_port", why));
        }
        self.shared.tally.next_port.store(next_port, Ordering::Release);
        // Not saved: whatever was connected when the state was saved is not connected to this device.
        self.shared.transport_reset.store(true, Ordering::Release);
        Ok(())
    }
}
