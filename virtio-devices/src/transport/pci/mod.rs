//! A virtio device as a PCI function (virtio 1.3 section 4.1), modern interface only.
//!
//! The function owns the registers, the queues' configuration and the device; it activates the device when
//! the driver is ready, stops it at a reset, and saves and loads all of it as one section. Whatever the
//! driver writes, in whatever order, has an answer.
//!
//! Locks: the function has one, taken by vCPUs that access registers and by the machine. It is never held
//! while a transaction is begun. Notifications take no lock.

mod handlers;
mod layout;
mod load;
mod registers;
mod state;
#[cfg(test)]
mod tests;
mod window;

use std::{collections::BTreeMap, fmt, io, sync::Arc};

use address_manager::{AddressManager, Arm, GuestMemoryView, Handler};
use devices::{
    Device, DmaMemory, MsiSink, PauseError,
    device::QueueCount,
    pci::{
        BarShape, ConfigEffect, Endpoint, Identity, MsixTable, PciFunction,
        bar::{DoorbellPart, HandlerPart},
    },
};
use log::{info, warn};
use parking_lot::Mutex;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::{
    handlers::{NotifyHandler, RegisterHandler},
    layout::{COMMON_SIZE, DEVICE, DEVICE_SIZE, NOTIFY},
    registers::{Action, Registers},
    window::Window,
};
pub use self::{
    layout::{BAR, BarLayout, NOTIFY_MULTIPLIER},
    state::{QueueRegistersState, VirtioPciState, WindowState},
};
use crate::{
    device::{Activation, ActiveQueue, DeviceType, StoppedQueue, VirtioDevice},
    features,
    interrupt::{Interrupts, status},
    queue::{Queue, QueueError, QueueState, RingFeatures, Traffic},
};

const VENDOR: u16 = 0x1af4;
/// Device id of device type 0 (virtio 1.3 section 4.1.2).
const DEVICE_ID_BASE: u16 = 0x1040;

/// Who is told that a guest's driver has taken or left a device. Returns at once.
pub trait LifeEvents: Send + Sync {
    /// The driver is ready and the device active.
    fn activated(&self, id: &str);
    /// The driver reset the device.
    fn reset(&self, id: &str);
}

/// What the layout says of a function.
#[derive(Clone, Debug)]
pub struct PciPlace {
    /// The device's id.
    pub id: String,
    /// PCI segment.
    pub segment: u16,
    /// Requester id that its interrupt messages bear.
    pub requester: u32,
    /// Address of its BAR, or 0 to leave that to the guest.
    pub bar: u64,
}

/// What a function is given by its machine.
#[derive(Clone)]
pub struct PciHandles {
    /// Guest memory.
    pub memory: DmaMemory,
    /// Where its interrupts go.
    pub msi: Arc<dyn MsiSink>,
    /// Who rewires it when the driver is ready.
    pub manager: Arc<AddressManager>,
    /// Who is told of its life.
    pub events: Arc<dyn LifeEvents>,
    /// Whether a doorbell can match a write of any width, which is the cheaper kind.
    pub doorbell_any_width: bool,
    /// Whether the driver may choose the packed ring format.
    pub packed: bool,
}

impl fmt::Debug for PciHandles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PciHandles")
    }
}

/// A virtio device behind its registers.
pub struct VirtioPci {
    id: String,
    endpoint: Endpoint,
    layout: BarLayout,
    window: Window,
    registers: Registers,
    interrupts: Arc<Interrupts>,
    kicks: Arc<[Arc<EventFd>]>,
    /// What went through each queue.
    traffic: Vec<Arc<Traffic>>,
    device: Box<dyn VirtioDevice>,
    memory: DmaMemory,
    events: Arc<dyn LifeEvents>,
    doorbell_width: u8,
    /// The device has queues.
    active: bool,
    /// The machine runs: an activated device is to serve at once.
    running: bool,
    /// The driver asked for a reset that something in flight holds up.
    resetting: bool,
    /// Where the queues stand, of a paused device.
    stopped: Vec<StoppedQueue>,
}

impl VirtioPci {
    /// The function of `device`. Not wired: its machine stages its endpoint.
    ///
    /// # Errors
    /// No eventfd can be made.
    pub fn new(
        place: &PciPlace,
        handles: PciHandles,
        device: Box<dyn VirtioDevice>,
    ) -> io::Result<Arc<Mutex<Self>>> {
        let PciHandles { memory, msi, manager, events, doorbell_any_width, packed } = handles;
        let sizes = device.queue_max_sizes();
        let kicks: io::Result<Vec<_>> =
            sizes.iter().map(|_| EventFd::new(EFD_NONBLOCK).map(Arc::new)).collect();
        let kicks: Arc<[Arc<EventFd>]> = kicks?.into();
        let withheld = if packed { 0 } else { features::RING_PACKED };
        let offered = device.features() | features::TRANSPORT & !withheld;
        let registers = Registers::new(&place.id, offered, device.feature_rules(), sizes);
        let layout = BarLayout::new(registers.count());
        let table = MsixTable::new(msi, place.requester, layout.vectors());
        let interrupts = Interrupts::new(Arc::clone(&table), kicks.len());
        let mut endpoint = Endpoint::new(&place.id, place.segment, identity(device.device_type()));
        let window = Window::new(window::add_capabilities(&mut endpoint, layout));
        Ok(Arc::new_cyclic(|function| {
            let registers_part = RegisterHandler {
                function: function.clone(),
                interrupts: Arc::clone(&interrupts),
                manager: Arc::downgrade(&manager),
            };
            let notify_part = NotifyHandler { kicks: Arc::clone(&kicks) };
            let shape = BarShape {
                handlers: vec![
                    HandlerPart { offset: 0, size: NOTIFY, handler: Arc::new(registers_part) },
                    HandlerPart {
                        offset: NOTIFY,
                        size: layout.notify_size(),
                        handler: Arc::new(notify_part),
                    },
                ],
                ..BarShape::default()
            };
            endpoint.add_bar(layout.spec(), place.bar, shape);
            let word = |offset: u64| u32::try_from(offset).unwrap_or(u32::MAX);
            endpoint.add_msix(table, BAR, word(layout.table()), word(layout.pending()));
            Mutex::new(Self {
                id: place.id.clone(),
                endpoint,
                layout,
                window,
                registers,
                interrupts,
                traffic: kicks.iter().map(|_| Arc::default()).collect(),
                kicks,
                device,
                memory,
                events,
                doorbell_width: if doorbell_any_width { 0 } else { 2 },
                active: false,
                running: false,
                resetting: false,
                stopped: Vec::new(),
            })
        }))
    }

    /// The device's counters.
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        self.device.counters()
    }

    /// A queue's eventfd, as the kernel signals it.
    #[cfg(test)]
    pub(crate) fn kick_event(&self, queue: u16) -> Arc<EventFd> {
        Arc::clone(&self.kicks[usize::from(queue)])
    }

    /// Whether a driver has activated the device.
    pub fn is_active(&self) -> bool {
        self.active
    }

    /// The guest reads a register of the BAR's first three regions.
    fn read_register(&mut self, offset: u64, data: &mut [u8]) {
        if self.resetting {
            // The driver polls the status for the end of a reset (virtio 1.3 section 4.1.4.3.2).
            self.finish_reset();
        }
        if offset < COMMON_SIZE {
            self.registers.read(offset, data, &self.interrupts);
        } else if let Some(at) = device_offset(offset) {
            self.device.read_config(at, data);
        } else {
            data.fill(0);
        }
    }

    /// The guest writes there.
    fn write_register(&mut self, offset: u64, data: &[u8]) -> ConfigEffect {
        if self.resetting {
            self.finish_reset();
            if self.resetting {
                return ConfigEffect::None;
            }
        }
        if offset < COMMON_SIZE {
            let action = self.registers.write(offset, data, &self.interrupts);
            return self.act(action);
        }
        if let Some(at) = device_offset(offset) {
            self.device.write_config(at, data);
        }
        ConfigEffect::None
    }

    fn act(&mut self, action: Action) -> ConfigEffect {
        match action {
            Action::None => ConfigEffect::None,
            Action::Activate => self.driver_ready(),
            Action::Reset => {
                self.begin_reset();
                ConfigEffect::None
            }
            Action::StartQueue(index) => self.start_queue(index),
            Action::StopQueue(index) => {
                self.stop_queue(index);
                ConfigEffect::None
            }
        }
    }

    /// The driver set DRIVER_OK.
    fn driver_ready(&mut self) -> ConfigEffect {
        let memory = self.memory.view();
        self.interrupts.add_status(status::DRIVER_OK);
        let queues = match self.build_queues(&memory, |_| None) {
            Ok(queues) => queues,
            Err((index, error)) => {
                self.broken(&format_args!("queue {index}: {error}"));
                return ConfigEffect::None;
            }
        };
        if let Err(error) = self.device.activate(self.activation(queues)) {
            self.broken(&error);
            return ConfigEffect::None;
        }
        self.active = true;
        if self.running {
            self.device.resume();
        }
        info!("{}: activated, features {:#x}", self.id, self.registers.driver_features);
        self.events.activated(&self.id);
        self.add_doorbells(Arm::Now)
    }

    fn activation(&self, queues: Vec<ActiveQueue>) -> Activation {
        Activation {
            features: self.registers.driver_features,
            memory: self.memory.clone(),
            queues,
            config: self.interrupts.config(),
        }
    }

    /// The enabled queues, each where `progress` says it stands, or else at its beginning.
    fn build_queues(
        &self,
        memory: &GuestMemoryView,
        progress: impl Fn(u16) -> Option<QueueState>,
    ) -> Result<Vec<ActiveQueue>, (u16, QueueError)> {
        let enabled = (0..).zip(&self.registers.queues).filter(|(_, queue)| queue.enabled);
        enabled
            .map(|(index, _)| {
                self.build_queue(index, memory, progress(index)).map_err(|error| (index, error))
            })
            .collect()
    }

    fn build_queue(
        &self,
        index: u16,
        memory: &GuestMemoryView,
        progress: Option<QueueState>,
    ) -> Result<ActiveQueue, QueueError> {
        let (Some(registers), Some(kick)) =
            (self.registers.queues.get(usize::from(index)), self.kicks.get(usize::from(index)))
        else {
            return Err(QueueError::Broken);
        };
        let features = RingFeatures::of(self.registers.driver_features);
        let queue = match progress {
            Some(state) => Queue::from_state(registers.config, features, &state, memory)?,
            None => Queue::new(registers.config, features, memory)?,
        };
        let queue = match self.traffic.get(usize::from(index)) {
            Some(traffic) => queue.counted(traffic),
            None => queue,
        };
        Ok(ActiveQueue { index, queue, kick: Arc::clone(kick), interrupt: self.interrupts.queue(index) })
    }

    /// Gives each enabled queue that has none a doorbell. Doorbells stay through resets: the eventfd
    /// behind one is the queue's for ever, and a kick of a queue that nobody serves does no harm.
    fn add_doorbells(&mut self, arm: Arm) -> ConfigEffect {
        let (layout, width) = (self.layout, self.doorbell_width);
        let Some(shape) = self.endpoint.shape_mut(BAR) else { return ConfigEffect::None };
        let before = shape.doorbells.len();
        for (index, queue) in (0..).zip(&self.registers.queues) {
            let offset = layout.doorbell(index);
            let there = shape.doorbells.iter().any(|doorbell| doorbell.offset == offset);
            if let Some(kick) = self.kicks.get(usize::from(index))
                && queue.enabled
                && !there
            {
                let event = Arc::clone(kick);
                shape.doorbells.push(DoorbellPart { offset, width, data_match: None, event, arm });
            }
        }
        if shape.doorbells.len() == before { ConfigEffect::None } else { ConfigEffect::Rewire }
    }

    fn start_queue(&mut self, index: u16) -> ConfigEffect {
        if !self.active {
            return ConfigEffect::None;
        }
        let memory = self.memory.view();
        let started = match self.build_queue(index, &memory, None) {
            Ok(queue) => self.device.start_queue(queue).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match started {
            Ok(()) => self.add_doorbells(Arm::Now),
            Err(error) => {
                self.broken(&format_args!("queue {index}: {error}"));
                ConfigEffect::None
            }
        }
    }

    fn stop_queue(&mut self, index: u16) {
        match self.device.stop_queue(index) {
            Ok(_) => {
                if let Some(queue) = self.registers.queues.get_mut(usize::from(index)) {
                    queue.reset();
                }
                self.interrupts.set_queue_vector(index, crate::interrupt::NO_VECTOR);
            }
            Err(error) => self.broken(&error),
        }
    }

    fn broken(&self, why: &dyn fmt::Display) {
        self.interrupts.config().needs_reset(&self.id, why);
    }

    fn begin_reset(&mut self) {
        let was_active = self.active;
        self.resetting = true;
        self.finish_reset();
        if was_active {
            self.events.reset(&self.id);
        }
    }

    /// Resets the device if it comes to a halt; the status stays what it was until then.
    fn finish_reset(&mut self) {
        match self.device.stop() {
            Ok(_) => {
                self.active = false;
                self.resetting = false;
                self.stopped.clear();
                self.registers.reset(&self.interrupts);
                self.device.reset();
            }
            Err(error) => warn!("{}: reset is held up: {error}", self.id),
        }
    }

    /// A read of the BAR through the window in configuration space.
    fn read_bar(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if offset < NOTIFY {
            if offset == layout::ISR {
                data.fill(0);
                if let Some(first) = data.first_mut() {
                    *first = self.interrupts.take_isr();
                }
            } else {
                self.read_register(offset, data);
            }
        } else if let Some((handler, at)) = self.vectors_at(offset) {
            handler.read(at, data);
        }
    }

    fn write_bar(&mut self, offset: u64, data: &[u8]) -> ConfigEffect {
        if offset < NOTIFY {
            return self.write_register(offset, data);
        }
        if let Some((handler, at)) = self.vectors_at(offset) {
            handler.write(at, data);
        } else {
            NotifyHandler { kicks: Arc::clone(&self.kicks) }.write(offset - NOTIFY, data);
        }
        ConfigEffect::None
    }

    /// The handler of the vector table or the pending bits, if `offset` is there.
    fn vectors_at(&self, offset: u64) -> Option<(Arc<dyn Handler>, u64)> {
        let table = self.endpoint.msix()?;
        if let Some(at) = offset.checked_sub(self.layout.pending()) {
            return Some((table.pending_handler(), at));
        }
        Some((table.table_handler(), offset.checked_sub(self.layout.table())?))
    }
}

/// Offset in the device configuration, if there is one there.
fn device_offset(offset: u64) -> Option<u64> {
    offset.checked_sub(DEVICE).filter(|at| *at < DEVICE_SIZE)
}

fn identity(kind: DeviceType) -> Identity {
    let class = match kind {
        DeviceType::NET => 0x02_0000,
        DeviceType::BLOCK => 0x01_8000,
        DeviceType::CONSOLE => 0x07_8000,
        DeviceType::VSOCK => 0x02_8000,
        _ => 0xff_0000,
    };
    let device = DEVICE_ID_BASE.wrapping_add(kind.0);
    Identity { vendor: VENDOR, device, revision: 1, class, subsystem_vendor: VENDOR, subsystem: device }
}

impl PciFunction for VirtioPci {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        if let Some(register) = self.window.data_touched(offset, data.len())
            && let Some(access) = self.window.access(&self.endpoint, self.layout)
        {
            let mut value = [0; 4];
            if let Some(part) = value.get_mut(..access.width) {
                self.read_bar(access.offset, part);
            }
            self.endpoint.write(register, &value);
        }
        self.endpoint.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) -> ConfigEffect {
        let effect = self.endpoint.write(offset, data);
        if let Some(register) = self.window.data_touched(offset, data.len())
            && let Some(access) = self.window.access(&self.endpoint, self.layout)
        {
            let mut value = [0; 4];
            self.endpoint.read(register, &mut value);
            if let Some(part) = value.get(..access.width) {
                let through_window = self.write_bar(access.offset, part);
                if through_window == ConfigEffect::Rewire {
                    return through_window;
                }
            }
        }
        effect
    }

    fn endpoint(&mut self) -> &mut Endpoint {
        &mut self.endpoint
    }
}

impl Device for VirtioPci {
    fn ask_to_pause(&mut self) {
        if self.active {
            self.device.ask_to_pause();
        }
    }

    fn pause(&mut self) -> Result<(), PauseError> {
        if self.active {
            self.stopped = self.device.pause()?;
        }
        self.running = false;
        Ok(())
    }

    fn resume(&mut self) {
        if let Some(table) = self.endpoint.msix() {
            table.resume();
        }
        // Doorbells that a restore left to be armed late are armed by now or about to be; wherever this
        // function is wired anew, they come with it.
        if let Some(shape) = self.endpoint.shape_mut(BAR) {
            shape.doorbells.iter_mut().for_each(|doorbell| doorbell.arm = Arm::Now);
        }
        self.running = true;
        if self.active {
            self.device.resume();
        }
    }

    fn reset(&mut self) {
        self.resetting = true;
        self.finish_reset();
        self.endpoint.reset();
        self.window.load(&mut self.endpoint, WindowState::default());
        if let Some(shape) = self.endpoint.shape_mut(BAR) {
            shape.doorbells.clear();
        }
    }

    fn pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }

    fn counters(&self) -> BTreeMap<&'static str, u64> {
        self.device.counters()
    }

    fn queue_counts(&self) -> Vec<QueueCount> {
        self.traffic.iter().map(|traffic| traffic.count()).collect()
    }
}

impl fmt::Debug for VirtioPci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VirtioPci({}, status {:#x})", self.id, self.interrupts.status())
    }
}
