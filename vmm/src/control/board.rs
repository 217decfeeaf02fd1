//! What is known of the VM, for whoever asks: published by the control thread, read by anybody without
//! waiting for it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use address_manager::{AddressManager, CommitTotals};
use api_client::wire::{VmConfig, VmCounters, VmInfo, VmState};
use devices::device::{Device, QueueCount};
use parking_lot::Mutex;

use super::error::CommandError;
use crate::{
    cpu::ExitCounters,
    machine::{Machine, NamedDevice},
    memory::background::{Background, Counters},
    snapshot::RestoreReport,
};

/// How long a question for counters waits for devices that are busy, all of them together; what it does not get
/// in that time it has from the last time. Devices are held for some microseconds as a rule, and whoever asks is
/// served by the thread that serves everybody.
const PATIENCE: Duration = Duration::from_millis(1);

/// What is known of the VM.
#[derive(Debug, Default)]
pub struct Board {
    status: Mutex<Option<Arc<Status>>>,
    // Locked for no longer than it takes to read the counters.
    gauges: Mutex<Option<Gauges>>,
    restored: Mutex<Option<Arc<RestoreReport>>>,
}

/// The VM at one moment.
#[derive(Debug)]
pub struct Status {
    /// What the API tells of it.
    pub info: VmInfo,
    /// The same as JSON, written once by the thread that knows it and shared by all who are told; or why it
    /// cannot be written: a path of the command line need not be text.
    pub json: Result<Arc<[u8]>, String>,
}

/// What can be read of a machine that runs.
struct Gauges {
    devices: Vec<NamedDevice>,
    // What was known last, by device.
    last: VmCounters,
    last_queues: BTreeMap<String, Vec<QueueCount>>,
    vcpus: Vec<(u32, Arc<ExitCounters>)>,
    memory: Option<Arc<Counters>>,
    manager: Arc<AddressManager>,
}

impl Board {
    /// What is known now.
    ///
    /// # Errors
    /// There is no VM.
    pub fn status(&self) -> Result<Arc<Status>, CommandError> {
        self.status.lock().clone().ok_or(CommandError::NotCreated)
    }

    /// What the VM does; `None` if there is none.
    pub fn state(&self) -> Option<VmState> {
        self.status.lock().as_ref().map(|status| status.info.state)
    }

    /// A copy of what the API tells of the VM.
    ///
    /// # Errors
    /// There is no VM.
    pub fn info(&self) -> Result<VmInfo, CommandError> {
        Ok(self.status()?.info.clone())
    }

    /// The counters of the devices, as the API tells them; of a device that is busy, those of the last time.
    ///
    /// # Errors
    /// There is no machine.
    pub fn counters(&self) -> Result<VmCounters, CommandError> {
        let mut gauges = self.gauges.lock();
        let Gauges { devices, last, .. } = gauges.as_mut().ok_or(CommandError::NotRunning)?;
        each_at_hand(devices, |id, device| {
            let counters = device.counters();
            if !counters.is_empty() {
                let counters = counters.into_iter().map(|(name, value)| (name.to_owned(), value));
                last.insert(id.to_owned(), counters.collect());
            }
        });
        Ok(last.clone())
    }

    /// What went through each queue: the device, the queue's number, the count; of a device that is busy, that of
    /// the last time.
    pub fn queues(&self) -> Vec<(String, usize, QueueCount)> {
        let mut gauges = self.gauges.lock();
        let Some(Gauges { devices, last_queues, .. }) = gauges.as_mut() else { return Vec::new() };
        each_at_hand(devices, |id, device| drop(last_queues.insert(id.to_owned(), device.queue_counts())));
        let mut counts = Vec::new();
        for NamedDevice { id, .. } in devices.iter() {
            let queues = last_queues.get(id).into_iter().flatten().enumerate();
            counts.extend(queues.map(|(queue, count)| (id.clone(), queue, *count)));
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

    /// A device of the machine, to keep it busy.
    #[cfg(test)]
    pub(crate) fn device(&self, id: &str) -> Option<devices::SharedDevice> {
        let gauges = self.gauges.lock();
        let mut devices = gauges.iter().flat_map(|gauges| &gauges.devices);
        devices.find(|device| device.id == id).map(|device| device.device.clone())
    }

    pub(super) fn remember(&self, report: &RestoreReport) {
        *self.restored.lock() = Some(Arc::new(report.clone()));
    }

    /// From now on, this is known of the VM; nothing if there is none.
    pub(super) fn publish(&self, info: Option<VmInfo>) {
        let known = self.status.lock().clone();
        if known.as_ref().map(|status| &status.info) == info.as_ref() {
            return;
        }
        let status = info.map(|info| {
            let json = serde_json::to_vec(&info).map(Arc::from).map_err(|error| error.to_string());
            Arc::new(Status { info, json })
        });
        // What was known before goes when it is let go of here, not while somebody waits for the lock.
        let before = std::mem::replace(&mut *self.status.lock(), status);
        drop((before, known));
    }

    /// From now on, `machine` is read; nothing if there is none.
    pub(super) fn gauge(&self, machine: Option<&Machine>) {
        let gauges = machine.map(|machine| Gauges {
            devices: machine.devices().to_vec(),
            last: VmCounters::new(),
            last_queues: BTreeMap::new(),
            vcpus: machine.vcpus().shared_counters(),
            memory: machine.memory().background().map(Background::counters),
            manager: Arc::clone(machine.manager()),
        });
        // What goes is dropped here, and not under the lock: nobody else holds on to a machine that is taken down.
        let before = std::mem::replace(&mut *self.gauges.lock(), gauges);
        drop(before);
    }
}

/// Reads every device that is not busy for long.
fn each_at_hand(devices: &[NamedDevice], mut read: impl FnMut(&str, &dyn Device)) {
    let deadline = Instant::now() + PATIENCE;
    for NamedDevice { id, device, .. } in devices {
        let patience = deadline.saturating_duration_since(Instant::now());
        if let Some(device) = device.try_lock_for(patience) {
            read(id, &*device);
        }
    }
}

impl fmt::Debug for Gauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gauges({} devices)", self.devices.len())
    }
}

/// All RAM of a configuration, in bytes.
pub(super) fn memory_size(config: &VmConfig) -> u64 {
    let zones = config.memory.zones.iter().flatten();
    zones.fold(config.memory.size, |sum, zone| sum.saturating_add(zone.size))
}
