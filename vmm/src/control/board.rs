//! What is known of the VM, for whoever asks: published by the control thread, read by anybody without
//! waiting for it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use address_manager::{AddressManager, CommitTotals};
use api_client::wire::{DeviceNode, VmConfig, VmCounters, VmInfo, VmState};
use devices::device::QueueCount;
use parking_lot::Mutex;

use super::error::CommandError;
use crate::{
    cpu::ExitCounters,
    machine::{Machine, NamedDevice},
    memory::background::{Background, Counters},
    snapshot::RestoreReport,
};

/// How long a question for counters waits for devices that are busy; what it does not get in that time it
/// has from the last time.
const PATIENCE: Duration = Duration::from_millis(40);

/// What is known of the VM.
#[derive(Debug, Default)]
pub struct Board {
    status: Mutex<Arc<Status>>,
    // Locked for no longer than it takes to read the counters.
    gauges: Mutex<Option<Gauges>>,
    restored: Mutex<Option<Arc<RestoreReport>>>,
}

/// The VM at one moment.
#[derive(Debug, Default)]
pub struct Status {
    /// What it does; `None` if there is none.
    pub state: Option<VmState>,
    /// Its configuration.
    pub config: Option<Arc<VmConfig>>,
    /// Its devices, while it is booted.
    pub device_tree: Option<Arc<BTreeMap<String, DeviceNode>>>,
}

/// What can be read of a machine that runs.
struct Gauges {
    devices: Vec<NamedDevice>,
    last: VmCounters,
    vcpus: Vec<(u32, Arc<ExitCounters>)>,
    memory: Option<Arc<Counters>>,
    manager: Arc<AddressManager>,
}

impl Board {
    /// What is known now.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status.lock())
    }

    /// The same as the API tells it.
    ///
    /// # Errors
    /// There is no VM.
    pub fn info(&self) -> Result<VmInfo, CommandError> {
        let status = self.status();
        let (Some(state), Some(config)) = (status.state, &status.config) else {
            return Err(CommandError::NotCreated);
        };
        Ok(VmInfo {
            config: Box::new(VmConfig::clone(config)),
            state,
            memory_actual_size: memory_size(config),
            device_tree: status.device_tree.as_deref().cloned(),
        })
    }

    /// The counters of the devices, as the API tells them.
    ///
    /// # Errors
    /// There is no machine.
    pub fn counters(&self) -> Result<VmCounters, CommandError> {
        let deadline = Instant::now() + PATIENCE;
        let mut gauges = self.gauges.lock();
        let Gauges { devices, last, .. } = gauges.as_mut().ok_or(CommandError::NotRunning)?;
        for NamedDevice { id, device, .. } in devices.iter() {
            let patience = deadline.saturating_duration_since(Instant::now());
            let Some(device) = device.try_lock_for(patience) else { continue };
            let counters = device.counters();
            if !counters.is_empty() {
                let counters = counters.into_iter().map(|(name, value)| (name.to_owned(), value));
                last.insert(id.clone(), counters.collect());
            }
        }
        Ok(last.clone())
    }

    /// What went through each queue: the device, the queue's number, the count. A device that is busy for longer than
    /// anybody likes to wait is left out.
    pub fn queues(&self) -> Vec<(String, usize, QueueCount)> {
        let deadline = Instant::now() + PATIENCE;
        let gauges = self.gauges.lock();
        let mut counts = Vec::new();
        for NamedDevice { id, device, .. } in gauges.iter().flat_map(|gauges| &gauges.devices) {
            let patience = deadline.saturating_duration_since(Instant::now());
            let Some(device) = device.try_lock_for(patience) else { continue };
            let queues = device.queue_counts().into_iter().enumerate();
            counts.extend(queues.map(|(queue, count)| (id.clone(), queue, count)));
        }
        counts
    }

    /// Exits of each vCPU by kind; none without a machine.
    pub fn exits(&self) -> Vec<(u32, [(&'static str, u64); 6])> {
        let gauges = self.gauges.lock();
        let vcpus = gauges.iter().flat_map(|gauges| &gauges.vcpus);
        vcpus.map(|(index, counters)| (*index, counters.all())).collect()
    }

    /// What the commits of the machine did together; `None` without one.
    pub fn commits(&self) -> Option<CommitTotals> {
        self.gauges.lock().as_ref().map(|gauges| gauges.manager.totals())
    }

    /// What was done for the memory of a restored machine since it runs: bytes that were brought in beside what it
    /// touched, and chunks that were checked.
    pub fn looked_after(&self) -> Option<(u64, u64)> {
        let gauges = self.gauges.lock();
        let counters = gauges.as_ref()?.memory.as_ref()?;
        Some((counters.filled.load(Ordering::Relaxed), counters.checked.load(Ordering::Relaxed)))
    }

    /// How the last restore of this process went, if there was one.
    pub fn restored(&self) -> Option<Arc<RestoreReport>> {
        self.restored.lock().clone()
    }

    pub(super) fn remember(&self, report: &RestoreReport) {
        *self.restored.lock() = Some(Arc::new(report.clone()));
    }

    pub(super) fn publish(&self, status: Status) {
        *self.status.lock() = Arc::new(status);
    }

    /// From now on, `machine` is read; nothing if there is none.
    pub(super) fn gauge(&self, machine: Option<&Machine>) {
        let gauges = machine.map(|machine| Gauges {
            devices: machine.devices().to_vec(),
            last: VmCounters::new(),
            vcpus: machine.vcpus().shared_counters(),
            memory: machine.memory().background().map(Background::counters),
            manager: Arc::clone(machine.manager()),
        });
        // What goes is dropped here: nobody else holds on to a machine that is taken down.
        drop(std::mem::replace(&mut *self.gauges.lock(), gauges));
    }
}

impl fmt::Debug for Gauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gauges({} devices)", self.devices.len())
    }
}

/// All RAM of a configuration, in bytes.
fn memory_size(config: &VmConfig) -> u64 {
    let zones = config.memory.zones.iter().flatten();
    zones.fold(config.memory.size, |sum, zone| sum.saturating_add(zone.size))
}
