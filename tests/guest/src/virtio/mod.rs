//! A small virtio driver: modern PCI devices, split and packed queues, MSI-X or polling.
//!
//! It sets devices up and moves chains; what a request means is the business of the orders (`program/`). All its state is
//! in guest memory and none of it depends on time, so a restored guest goes on where it was.

pub mod queue;
pub mod transport;

mod packed;
mod split;

use self::queue::{Queue, Setup};
use self::transport::{STATUS_ACKNOWLEDGE, STATUS_DRIVER, STATUS_DRIVER_OK, STATUS_FEATURES_OK, Transport};
use crate::cell::table;
use crate::cpu::{Width, write};
use crate::memory::{Memory, MemoryError};
use crate::pci::{Bdf, Moved, Pci};

const MAX_DEVICES: usize = 48;
const MAX_QUEUES: usize = 640;

/// Queue sizes that are not asked for.
const SIZE_MAX: u16 = 256;

/// The vectors of MSI-X messages, given out in turn.
pub const FIRST_VECTOR: u8 = 0x42;
pub const VECTORS: u8 = 0x80 - FIRST_VECTOR;

// Device types (virtio 1.3, section 5).
pub const KIND_NET: u16 = 1;
pub const KIND_BLOCK: u16 = 2;
pub const KIND_CONSOLE: u16 = 3;
pub const KIND_RNG: u16 = 4;
pub const KIND_VSOCK: u16 = 19;
pub const KIND_PMEM: u16 = 27;

// Feature bits (section 6).
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
const ACCESS_PLATFORM: u64 = 1 << 33;
pub const RING_PACKED: u64 = 1 << 34;
const NOTIFICATION_DATA: u64 = 1 << 38;

// Of network devices (section 5.1.3): a MAC address, a status, a control queue, several queue pairs.
const NET_FEATURES: u64 = 1 << 5 | 1 << 16 | NET_CTRL_VQ | NET_MQ;
pub const NET_CTRL_VQ: u64 = 1 << 17;
pub const NET_MQ: u64 = 1 << 22;
/// Of block devices (section 5.2.3): limits, read-only, block size, flush, topology, several queues, discard, zeroes.
const BLOCK_FEATURES: u64 = 1 << 2 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10 | BLOCK_MQ | 1 << 13 | 1 << 14;
const BLOCK_MQ: u64 = 1 << 12;

/// What `vinit` asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    pub packed: bool,
    pub event_idx: bool,
    pub indirect: bool,
    pub notification_data: bool,
    pub poll: bool,
    /// Queues, or queue pairs of a network device; all if `None`.
    pub queues: Option<u16>,
    /// Most descriptors in a queue.
    pub size: Option<u16>,
    /// Features of the device's own besides those that the driver knows.
    pub features: u64,
}

/// Why a device cannot be used.
#[derive(Clone, Copy, Debug)]
pub enum DeviceError {
    Memory(MemoryError),
    NotVirtio,
    NotInUse,
    NoSuchQueue,
    FeatureMissing(&'static str),
    FeaturesRefused,
    VectorRefused,
    TooMany,
}

impl core::fmt::Display for DeviceError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Memory(error) => error.fmt(f),
            Self::NotVirtio => f.write_str("the function is no modern virtio device"),
            Self::NotInUse => f.write_str("the device was not set up by vinit"),
            Self::NoSuchQueue => f.write_str("the device has no such queue in use"),
            Self::FeatureMissing(name) => write!(f, "the device does not offer {name}"),
            Self::FeaturesRefused => f.write_str("the device refused the features"),
            Self::VectorRefused => f.write_str("the device refused an MSI-X entry"),
            Self::TooMany => f.write_str("more devices or queues than the driver has room for"),
        }
    }
}

impl From<MemoryError> for DeviceError {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
    }
}

/// A piece of the heap.
#[derive(Clone, Copy, Debug, Default)]
struct Area {
    address: u64,
    len_bytes: u64,
}

impl Area {
    /// Takes a larger piece if this one is too small.
    fn grow(&mut self, memory: &mut Memory, len_bytes: u64) -> Result<u64, MemoryError> {
        if self.len_bytes < len_bytes {
            *self = Self { address: memory.allocate_raw(len_bytes, 4096)?, len_bytes };
        }
        Ok(self.address)
    }
}

/// A device that was set up, in use unless it was reset.
#[derive(Debug)]
pub struct Device {
    pub transport: Transport,
    pub features: u64,
    /// Queues but for the control queue, which is numbered after all that the device could have.
    pub data_queues: u16,
    pub control_queue: Option<u16>,
    /// Memory of its queues and of the buffers it receives into, kept for the next time it is set up.
    arena: Area,
    buffers: Area,
    live: bool,
}

/// All devices and their queues.
#[derive(Debug)]
pub struct Virtio {
    devices: &'static mut [Option<Device>],
    /// Each queue with the number of its device.
    queues: &'static mut [Option<(usize, Queue)>],
    next_vector: u8,
}

impl Virtio {
    pub fn new(memory: &mut Memory) -> Result<Self, MemoryError> {
        Ok(Self { devices: table(memory, MAX_DEVICES)?, queues: table(memory, MAX_QUEUES)?, next_vector: 0 })
    }

    /// The devices in use.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.devices.iter().flatten().filter(|device| device.live)
    }

    pub fn device(&self, bdf: Bdf) -> Result<&Device, DeviceError> {
        self.devices().find(|device| device.transport.bdf == bdf).ok_or(DeviceError::NotInUse)
    }

    /// All queues in use, each with its device.
    pub fn queues(&mut self) -> impl Iterator<Item = (&Device, &mut Queue)> {
        let devices = &*self.devices;
        self.queues.iter_mut().flatten().filter_map(|(number, queue)| {
            devices[*number].as_ref().filter(|device| device.live).map(|device| (device, queue))
        })
    }

    /// A queue of a device in use.
    pub fn queue(&mut self, bdf: Bdf, index: u16) -> Result<&mut Queue, DeviceError> {
        self.device(bdf)?;
        self.queues()
            .find(|(device, queue)| device.transport.bdf == bdf && queue.index == index)
            .map(|(_, queue)| queue)
            .ok_or(DeviceError::NoSuchQueue)
    }

    /// Resets a device and forgets its queues.
    pub fn reset(&mut self, pci: &Pci, memory: &mut Memory, bdf: Bdf) -> Result<(), DeviceError> {
        let transport = Transport::find(pci, memory, bdf)?.ok_or(DeviceError::NotVirtio)?;
        transport.reset();
        transport.enable_msix(pci, false);
        if let Some(number) = self.number(bdf) {
            self.forget(number);
        }
        Ok(())
    }

    /// Sets a device up from its reset to DRIVER_OK (section 3.1.1). Returns how many queues it has.
    pub fn init(
        &mut self,
        pci: &Pci,
        memory: &mut Memory,
        bdf: Bdf,
        wanted: &Wanted,
    ) -> Result<u16, DeviceError> {
        let transport = Transport::find(pci, memory, bdf)?.ok_or(DeviceError::NotVirtio)?;
        let number = self
            .number(bdf)
            .or_else(|| self.devices.iter().position(Option::is_none))
            .ok_or(DeviceError::TooMany)?;
        self.forget(number);
        transport.reset();
        transport.set_status(STATUS_ACKNOWLEDGE);
        transport.set_status(STATUS_ACKNOWLEDGE | STATUS_DRIVER);
        let features = choose_features(&transport, wanted)?;
        transport.set_driver_features(features);
        let status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;
        transport.set_status(status);
        if transport.status() & STATUS_FEATURES_OK == 0 {
            return Err(DeviceError::FeaturesRefused);
        }
        let msix = !wanted.poll && transport.msix_entries > 0;
        transport.enable_msix(pci, msix);
        let old = self.devices[number].as_ref();
        let (arena, buffers) = old.map_or_else(Default::default, |device| (device.arena, device.buffers));
        let (data_queues, control_queue) = queue_numbers(&transport, features, wanted.queues)?;
        self.devices[number] =
            Some(Device { transport, features, data_queues, control_queue, arena, buffers, live: true });
        let count = self.add_queues(memory, number, wanted, msix)?;
        transport.set_status(status | STATUS_DRIVER_OK);
        Ok(count)
    }

    /// Returns memory of `len_bytes` for a device to receive into.
    pub fn buffers(&mut self, memory: &mut Memory, bdf: Bdf, len_bytes: u64) -> Result<u64, DeviceError> {
        let number = self.number(bdf).ok_or(DeviceError::NotInUse)?;
        let device = self.devices[number].as_mut().ok_or(DeviceError::NotInUse)?;
        Ok(device.buffers.grow(memory, len_bytes)?)
    }

    /// Follows a BAR of a device that was moved: everything of the device's that lay in it.
    pub fn follow(&mut self, bdf: Bdf, moved: Moved) {
        let Some(number) = self.number(bdf) else {
            return;
        };
        if let Some(device) = &mut self.devices[number] {
            device.transport.follow(moved);
        }
        for (device, queue) in self.queues.iter_mut().flatten() {
            if *device == number {
                queue.follow(moved);
            }
        }
    }

    fn number(&self, bdf: Bdf) -> Option<usize> {
        self.devices.iter().position(|device| device.as_ref().is_some_and(|it| it.transport.bdf == bdf))
    }

    fn forget(&mut self, number: usize) {
        if let Some(device) = &mut self.devices[number] {
            device.live = false;
        }
        for place in self.queues.iter_mut() {
            if place.as_ref().is_some_and(|(device, _)| *device == number) {
                *place = None;
            }
        }
    }

    /// Makes and enables the queues of a device.
    fn add_queues(
        &mut self,
        memory: &mut Memory,
        number: usize,
        wanted: &Wanted,
        msix: bool,
    ) -> Result<u16, DeviceError> {
        let device = self.devices[number].as_mut().ok_or(DeviceError::NotInUse)?;
        let (transport, data_queues, control) = (device.transport, device.data_queues, device.control_queue);
        let setup = |queue| Setup {
            size: size_of_queue(transport.queue_size(queue), wanted),
            packed: wanted.packed,
            event_idx: wanted.event_idx,
            indirect: wanted.indirect,
            interrupts: msix,
            notification_data: wanted.notification_data,
        };
        let queues = || (0..data_queues).chain(control);
        let len_bytes: u64 = queues().map(|queue| setup(queue).len_bytes().next_multiple_of(4096)).sum();
        let mut address = device.arena.grow(memory, len_bytes)?;
        for at in (address..address + len_bytes).step_by(8) {
            write(at, Width::Quad, 0);
        }
        // Entry 0 is for configuration changes; the queues have one each, or share what there is.
        if msix {
            transport.set_msix_entry(0, next_vector(&mut self.next_vector));
            if !transport.set_config_entry(0) {
                return Err(DeviceError::VectorRefused);
            }
        }
        let entries = transport.msix_entries;
        let shared = next_vector(&mut self.next_vector);
        let mut count = 0;
        for queue in queues() {
            let setup = setup(queue);
            if setup.size == 0 {
                return Err(DeviceError::NoSuchQueue);
            }
            let (entry, vector) = match count + 1 {
                _ if !msix => (None, None),
                entry if entry < entries => (Some(entry), Some(next_vector(&mut self.next_vector))),
                _ => (Some(entries - 1), Some(shared)),
            };
            if let (Some(entry), Some(vector)) = (entry, vector) {
                transport.set_msix_entry(entry, vector);
            }
            let place = self.queues.iter_mut().find(|place| place.is_none()).ok_or(DeviceError::TooMany)?;
            let queue = Queue::new(queue, address, &setup, transport.notify_address(queue), vector);
            if !transport.enable_queue(queue.index, setup.size, queue.areas(), entry) {
                return Err(DeviceError::VectorRefused);
            }
            *place = Some((number, queue));
            address += setup.len_bytes().next_multiple_of(4096);
            count += 1;
        }
        Ok(count)
    }
}

/// Takes the next vector.
fn next_vector(next: &mut u8) -> u8 {
    let vector = FIRST_VECTOR + *next;
    *next = (*next + 1) % VECTORS;
    vector
}

fn size_of_queue(max: u16, wanted: &Wanted) -> u16 {
    let size = wanted.size.unwrap_or(SIZE_MAX).min(max);
    // A split queue's size is a power of 2; a device's own limit is one already.
    if wanted.packed || size == 0 { size } else { 1 << size.ilog2() }
}

/// Returns the number of data queues, and the number of the control queue.
fn queue_numbers(
    transport: &Transport,
    features: u64,
    wanted: Option<u16>,
) -> Result<(u16, Option<u16>), DeviceError> {
    let config = |offset| u16::try_from(transport.config(offset, Width::Word)).unwrap_or(0);
    let (most, factor, control) = match transport.kind {
        KIND_NET => {
            let pairs = if features & NET_MQ != 0 { config(8) } else { 1 };
            (pairs, 2, (features & NET_CTRL_VQ != 0).then_some(2 * pairs))
        }
        KIND_BLOCK if features & BLOCK_MQ != 0 => (config(34), 1, None),
        KIND_BLOCK | KIND_PMEM | KIND_RNG => (1, 1, None),
        KIND_CONSOLE => (2, 1, None),
        _ => (transport.queue_count(), 1, None),
    };
    let queues = wanted.unwrap_or(most);
    if queues == 0 || queues > most {
        return Err(DeviceError::NoSuchQueue);
    }
    Ok((queues * factor, control))
}

/// Returns the features to negotiate, after a check that those are offered that the order insists on.
fn choose_features(transport: &Transport, wanted: &Wanted) -> Result<u64, DeviceError> {
    let offered = transport.device_features();
    let own = match transport.kind {
        KIND_NET => NET_FEATURES,
        KIND_BLOCK => BLOCK_FEATURES,
        _ => 0,
    };
    let insisted = [
        (true, VERSION_1, "VERSION_1"),
        (wanted.packed, RING_PACKED, "RING_PACKED"),
        (wanted.event_idx, EVENT_IDX, "EVENT_IDX"),
        (wanted.indirect, INDIRECT_DESC, "INDIRECT_DESC"),
        (wanted.notification_data, NOTIFICATION_DATA, "NOTIFICATION_DATA"),
    ];
    let mut features = offered & (own | ACCESS_PLATFORM | wanted.features);
    for (is_wanted, bit, name) in insisted {
        if is_wanted && offered & bit == 0 {
            return Err(DeviceError::FeatureMissing(name));
        }
        if is_wanted {
            features |= bit;
        }
    }
    Ok(features)
}
