//! What a virtio device is to its transport.
//!
//! [`VirtioDevice`] is the other half of `devices::Device`: the machine drives a transport (a PCI function),
//! the transport drives the device. A device knows no registers, no status bits and no addresses; it gets
//! queues that work ([`ActiveQueue`]) and gives back how far they came. Its constructor never learns whether
//! this is a boot or a restore: a restored device is activated like any other, with queues that go on where
//! they stood, and begins to serve them at [`resume`](Queues::resume).

use std::{collections::BTreeMap, fmt, io, sync::Arc};

use address_manager::GuestMemoryView;
use devices::{DmaMemory, PauseError, Persist};
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::{
    interrupt::{ConfigInterrupt, QueueInterrupt},
    queue::{Chain, Queue, QueueError, QueueState},
    worker::signal,
};

/// Device types (virtio 1.3 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceType(pub u16);

impl DeviceType {
    /// Network device.
    pub const NET: Self = Self(1);
    /// Block device.
    pub const BLOCK: Self = Self(2);
    /// Console.
    pub const CONSOLE: Self = Self(3);
    /// Entropy source.
    pub const RNG: Self = Self(4);
    /// Socket device.
    pub const VSOCK: Self = Self(19);
    /// Persistent memory.
    pub const PMEM: Self = Self(27);
}

/// An enabled queue, ready to be served.
#[derive(Debug)]
pub struct ActiveQueue {
    /// Its number.
    pub index: u16,
    /// The queue.
    pub queue: Queue,
    /// Signalled when the driver has made buffers available. May be signalled without cause.
    pub kick: Arc<EventFd>,
    /// Tells the driver of used buffers.
    pub interrupt: QueueInterrupt,
}

/// Chains that are served in one go.
pub const BUDGET: u32 = 1024;

impl ActiveQueue {
    /// The driver broke a rule: nothing more is served, and the device asks for a reset.
    pub fn fail(&mut self, device: &str, config: &ConfigInterrupt, why: &QueueError) {
        self.queue.set_broken();
        config.needs_reset(device, &format_args!("queue {}: {why}", self.index));
    }

    /// Raises the interrupt if the driver wants one for what was used since the last call.
    ///
    /// # Errors
    /// The driver broke the queue.
    pub fn notify(&mut self, memory: &GuestMemoryView) -> Result<(), QueueError> {
        if self.queue.needs_notification(memory)? {
            self.interrupt.signal();
        }
        Ok(())
    }

    /// Serves available chains at once: `each` answers with the number of bytes it wrote. Returns when none
    /// is left and the driver was asked to kick at the next one; or after a while, having kicked itself, so
    /// that a driver that never rests does not keep the thread from coming to a halt.
    ///
    /// # Errors
    /// The driver broke the queue, or `each` failed.
    pub fn serve(
        &mut self,
        memory: &GuestMemoryView,
        mut each: impl FnMut(&Chain) -> Result<u32, QueueError>,
    ) -> Result<(), QueueError> {
        let mut left = BUDGET;
        loop {
            self.queue.disable_notification(memory)?;
            while left > 0
                && let Some(chain) = self.queue.pop(memory)?
            {
                let written = each(&chain)?;
                self.queue.add_used(memory, chain, written)?;
                left -= 1;
            }
            if left == 0 {
                signal(&self.kick);
                break;
            }
            if !self.queue.enable_notification(memory)? {
                break;
            }
        }
        self.notify(memory)
    }
}

/// All that a driver's DRIVER_OK, or a restored one, gives a device to work with.
#[derive(Debug)]
pub struct Activation {
    /// The negotiated features, those of transport and queues included.
    pub features: u64,
    /// Guest memory.
    pub memory: DmaMemory,
    /// The queues that the driver enabled, by ascending number.
    pub queues: Vec<ActiveQueue>,
    /// Tells the driver of configuration changes, and of a device that is broken.
    pub config: ConfigInterrupt,
}

/// A device could not begin to work with what the driver gave it.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// The driver did not enable a queue that the device cannot do without.
    #[error("queue {0} is not enabled")]
    QueueMissing(u16),
    /// A host resource failed.
    #[error("{what}")]
    Host {
        /// What was being done.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl ActivateError {
    /// A failure of the host.
    pub fn host(what: impl fmt::Display, source: io::Error) -> Self {
        Self::Host { what: what.to_string(), source }
    }
}

/// A feature bit, and the bits of which it needs one.
pub type FeatureRule = (u64, u64);

/// A stopped queue: its number and how far it came.
pub type StoppedQueue = (u16, QueueState);

/// A virtio device, driven by its transport.
///
/// The transport calls in this order: `activate`, then any number of `resume` and `pause`, `stop_queue` and
/// `start_queue`, then `stop`; and from there again. `activate` leaves the device paused.
pub trait VirtioDevice: Queues + Persist + Send {
    /// What it is.
    fn device_type(&self) -> DeviceType;

    /// The device-specific features that it offers. Never changes.
    fn features(&self) -> u64;

    /// Features that mean nothing without others: a bit, and bits of which one has to be there too. A driver
    /// that breaks such a rule does not get FEATURES_OK.
    fn feature_rules(&self) -> &'static [FeatureRule] {
        &[]
    }

    /// The largest size of each of its queues. Never changes.
    fn queue_max_sizes(&self) -> &[u16];

    /// The guest reads the configuration space. What no field answers is zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// The guest writes the configuration space. Fields that are not writable ignore it.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Takes the queues. Nothing is served before [`resume`](Queues::resume).
    ///
    /// # Errors
    /// The device cannot work with them; it asks for a reset.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Device-specific state as after power-on. The device is not active.
    fn reset(&mut self);

    /// Counters, by the names of the REST API.
    fn counters(&self) -> BTreeMap<&'static str, u64> {
        BTreeMap::new()
    }
}

/// The queues of a device that is active. One that is not has none.
pub trait Queues {
    /// Takes a queue that was stopped alone and is enabled again (virtio 1.3 section 2.6.1).
    ///
    /// # Errors
    /// As for [`activate`](VirtioDevice::activate).
    fn start_queue(&mut self, queue: ActiveQueue) -> Result<(), ActivateError>;

    /// Gives one queue up, once nothing of it is in flight. None if the device does not have it.
    ///
    /// # Errors
    /// Something in flight did not finish in time; the queue stays.
    fn stop_queue(&mut self, index: u16) -> Result<Option<QueueState>, PauseError>;

    /// Gives all queues up, once nothing is in flight, and is inactive after that. Idempotent.
    ///
    /// # Errors
    /// Something in flight did not finish in time; the device stays active, and may be asked again.
    fn stop(&mut self) -> Result<Vec<StoppedQueue>, PauseError>;

    /// Asks the device's threads to come to a halt, and returns at once. The time that [`pause`](Self::pause) has begins
    /// here.
    fn ask_to_pause(&self);

    /// Comes to a halt with nothing in flight and says where its queues stand. Idempotent; nothing to say
    /// for a device that is not active.
    ///
    /// # Errors
    /// Something did not stop in time.
    fn pause(&mut self) -> Result<Vec<StoppedQueue>, PauseError>;

    /// Serves its queues. Looks at each of them once, whether or not a kick has come: what was kicked
    /// before a pause or a save is not kicked again.
    fn resume(&mut self);
}

/// Copies from a configuration space given as bytes; what is beyond them reads as zero.
pub fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let bytes = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)).unwrap_or_default();
    let mut bytes = bytes.iter();
    data.fill_with(|| bytes.next().copied().unwrap_or(0));
}
