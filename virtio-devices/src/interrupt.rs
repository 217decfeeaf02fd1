//! How a device tells its driver something: used buffers, a changed configuration, a broken device.
//!
//! [`Interrupts`] is what the transport and the device's threads share without a lock: the vectors that the
//! driver assigned, the interrupt status, the device status byte. An interrupt of this process is a message
//! sent through the vector's handle; no route and no eventfd is made for it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU16, Ordering},
    },
};

use devices::pci::MsixTable;

/// No vector is assigned (virtio 1.3 section 4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

/// Device status bits (virtio 1.3 section 2.1).
pub mod status {
    /// The guest has noticed the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The guest has a driver for it.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// Features are negotiated.
    pub const FEATURES_OK: u8 = 8;
    /// The device cannot go on.
    pub const NEEDS_RESET: u8 = 64;
    /// The driver has given up.
    pub const FAILED: u8 = 128;
}

/// Interrupt status: a queue has used buffers.
const ISR_QUEUE: u8 = 1;
/// Interrupt status: the configuration changed.
const ISR_CONFIG: u8 = 2;

/// What transport and threads share. Every field is one register that stands for itself.
pub struct Interrupts {
    table: Arc<MsixTable>,
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
    isr: AtomicU8,
    status: AtomicU8,
    generation: AtomicU8,
}

impl Interrupts {
    /// With no vector assigned, for a device of `queues` queues.
    pub fn new(table: Arc<MsixTable>, queues: usize) -> Arc<Self> {
        Arc::new(Self {
            table,
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            isr: AtomicU8::new(0),
            status: AtomicU8::new(0),
            generation: AtomicU8::new(0),
        })
    }

    /// The interrupt of one queue.
    pub fn queue(self: &Arc<Self>, index: u16) -> QueueInterrupt {
        QueueInterrupt { shared: Arc::clone(self), index }
    }

    /// The configuration interrupt.
    pub fn config(self: &Arc<Self>) -> ConfigInterrupt {
        ConfigInterrupt { shared: Arc::clone(self) }
    }

    /// The vector of configuration changes.
    pub fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Acquire)
    }

    /// The vector of a queue.
    pub fn queue_vector(&self, index: u16) -> u16 {
        self.queue_vectors.get(usize::from(index)).map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    /// Assigns the vector of configuration changes; one that does not exist is none.
    pub fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.existing(vector), Ordering::Release);
    }

    /// Assigns the vector of a queue; one that does not exist is none.
    pub fn set_queue_vector(&self, index: u16, vector: u16) {
        if let Some(queue) = self.queue_vectors.get(usize::from(index)) {
            queue.store(self.existing(vector), Ordering::Release);
        }
    }

    /// The device status byte.
    pub fn status(&self) -> u8 {
        self.status.load(Ordering::Acquire)
    }

    /// Sets bits of the device status.
    pub fn add_status(&self, bits: u8) {
        self.status.fetch_or(bits, Ordering::AcqRel);
    }

    /// Sets the device status, as a reset and a restore do.
    pub fn set_status(&self, status: u8) {
        self.status.store(status, Ordering::Release);
    }

    /// The configuration generation.
    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// Sets the configuration generation, as a restore does.
    pub fn set_generation(&self, generation: u8) {
        self.generation.store(generation, Ordering::Release);
    }

    /// The interrupt status, without acknowledging it.
    pub fn isr(&self) -> u8 {
        self.isr.load(Ordering::Acquire)
    }

    /// Sets the interrupt status, as a reset and a restore do.
    pub fn set_isr(&self, isr: u8) {
        self.isr.store(isr, Ordering::Release);
    }

    /// The guest reads the interrupt status, which clears it (virtio 1.3 section 4.1.4.5).
    pub fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    fn existing(&self, vector: u16) -> u16 {
        if vector < self.table.count() { vector } else { NO_VECTOR }
    }

    fn signal(&self, vector: u16, isr: u8) {
        // Without MSI-X the driver can only poll the interrupt status.
        if !self.table.enabled() {
            self.isr.fetch_or(isr, Ordering::AcqRel);
        } else if let Some(vector) = self.table.vector(vector) {
            vector.signal();
        }
    }
}

impl fmt::Debug for Interrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Interrupts({} queues, status {:#x})", self.queue_vectors.len(), self.status())
    }
}

/// Tells the driver that a queue has used buffers.
#[derive(Clone, Debug)]
pub struct QueueInterrupt {
    shared: Arc<Interrupts>,
    index: u16,
}

impl QueueInterrupt {
    /// Raises it. Whether the driver wants it is the queue's knowledge
    /// ([`Queue::needs_notification`](crate::queue::Queue::needs_notification)).
    pub fn signal(&self) {
        self.shared.signal(self.shared.queue_vector(self.index), ISR_QUEUE);
    }
}

/// Tells the driver that the configuration changed, or that the device is broken.
#[derive(Clone, Debug)]
pub struct ConfigInterrupt {
    shared: Arc<Interrupts>,
}

impl ConfigInterrupt {
    /// The configuration space has changed.
    pub fn changed(&self) {
        self.shared.generation.fetch_add(1, Ordering::AcqRel);
        self.shared.signal(self.shared.config_vector(), ISR_CONFIG);
    }

    /// The device cannot go on before a reset (virtio 1.3 section 2.1.2). Says why in the log, once.
    pub fn needs_reset(&self, device: &str, why: &dyn fmt::Display) {
        let before = self.shared.status.fetch_or(status::NEEDS_RESET, Ordering::AcqRel);
        if before & status::NEEDS_RESET == 0 {
            log::warn!("{device}: needs a reset: {why}");
            if before & status::DRIVER_OK != 0 {
                self.shared.signal(self.shared.config_vector(), ISR_CONFIG);
            }
        }
    }
}
