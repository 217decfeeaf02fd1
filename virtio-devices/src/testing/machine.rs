//! A machine for one device: guest memory, an address manager on the fake hypervisor, the PCI function, and
//! a guest that drives it through its registers as a vCPU would.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use address_manager::{
    AddressManager, Dispatcher, GuestMemoryView, IoSpace, MsiMessage, Owner, Slot, SlotFlags, SlotRole,
    Transaction, Window, WindowKind, Windows,
};
use devices::{
    Device, MsiSink, Persist, SharedDevice,
    pci::{ConfigEffect, PciFunction, root},
};
use hypervisor::fake::FakeVm;
use parking_lot::{Condvar, Mutex};
use vm_memory::MmapRegion;
use vm_migration::{LoadError, Section};

use super::Driver;
use crate::{
    device::VirtioDevice,
    features,
    interrupt::status,
    queue::RingFeatures,
    transport::pci::{BarLayout, LifeEvents, PciHandles, PciPlace, VirtioPci},
    worker::signal,
};

/// Guest memory, from address 0 on.
pub(crate) const MEMORY: u64 = 0x100_0000;
/// Where tests put their buffers: above the rings.
pub(crate) const DATA: u64 = 0x80_0000;
const BAR: u64 = 0x40_0000_0000;
const NOTIFY: u64 = 0x3000;
/// Vector of configuration changes; queue `n` has `n + 1`.
const CONFIG_VECTOR: u16 = 0;

/// Interrupts that arrived, by message data.
#[derive(Default)]
pub(crate) struct Arrivals {
    seen: Mutex<Vec<u32>>,
    more: Condvar,
}

impl MsiSink for Arrivals {
    fn send(&self, message: MsiMessage) {
        self.seen.lock().push(message.data);
        self.more.notify_all();
    }
}

impl Arrivals {
    /// Waits for an interrupt of `vector` and takes it. Ten seconds are for ever.
    fn wait(&self, vector: u16) {
        let end = Instant::now() + Duration::from_secs(10);
        let mut seen = self.seen.lock();
        loop {
            if let Some(at) = seen.iter().position(|data| *data == u32::from(vector)) {
                seen.remove(at);
                return;
            }
            assert!(!self.more.wait_until(&mut seen, end).timed_out(), "no interrupt of vector {vector}");
        }
    }

    fn take(&self) -> Vec<u32> {
        std::mem::take(&mut self.seen.lock())
    }
}

/// Takes note of the device's life.
#[derive(Default)]
pub(crate) struct Life(Mutex<Vec<&'static str>>);

impl LifeEvents for Life {
    fn activated(&self, _id: &str) {
        self.0.lock().push("activated");
    }

    fn reset(&self, _id: &str) {
        self.0.lock().push("reset");
    }
}

pub(crate) struct Machine {
    pub(crate) manager: Arc<AddressManager>,
    pub(crate) vm: Arc<FakeVm>,
    pub(crate) function: Arc<Mutex<VirtioPci>>,
    mapping: Arc<MmapRegion>,
    arrivals: Arc<Arrivals>,
    life: Arc<Life>,
    dispatcher: Dispatcher,
    driver_features: u64,
}

impl Machine {
    /// A machine that runs, its device not yet seen by the guest.
    pub(crate) fn new(device: Box<dyn VirtioDevice>) -> Self {
        Self::with_packed(device, true)
    }

    /// The same, and whether the driver is offered packed queues.
    pub(crate) fn with_packed(device: Box<dyn VirtioDevice>, packed: bool) -> Self {
        let size = usize::try_from(MEMORY).unwrap();
        let machine = Self::build(device, Arc::new(MmapRegion::new(size).unwrap()), packed);
        let transaction = machine.manager.begin();
        machine.add_memory(&transaction);
        transaction.commit().unwrap();
        machine.function.lock().config_write(4, &6u16.to_le_bytes());
        root::rewire(&machine.manager, &machine.shared(), "BAR");
        machine.function.lock().resume();
        machine
    }

    /// A machine with the memory of `old`, whose device has loaded `state`; not yet running, no doorbell
    /// armed.
    pub(crate) fn restore(old: &Self, device: Box<dyn VirtioDevice>, state: &str) -> Result<Self, LoadError> {
        let mut machine = Self::build(device, Arc::clone(&old.mapping), true);
        machine.driver_features = old.driver_features;
        let manager = Arc::clone(&machine.manager);
        let transaction = manager.begin();
        machine.add_memory(&transaction);
        let section: Section = serde_json::from_str(state).expect("a section");
        {
            let mut function = machine.function.lock();
            function.load_section(&section, &transaction)?;
            let staged = function.endpoint().stage(&transaction);
            transaction.commit().unwrap();
            function.endpoint().committed(staged);
        }
        Ok(machine)
    }

    fn build(device: Box<dyn VirtioDevice>, mapping: Arc<MmapRegion>, packed: bool) -> Self {
        let vm = FakeVm::new();
        let windows = Windows::new().with(Window { kind: WindowKind::Mmio64, segment: 0 }, BAR, 1 << 32);
        let manager = AddressManager::new(Arc::clone(&vm) as Arc<_>, 32, windows);
        let arrivals = Arc::new(Arrivals::default());
        let life = Arc::new(Life::default());
        let place = PciPlace { id: "dev0".into(), segment: 0, requester: 8, bar: BAR };
        let handles = PciHandles {
            memory: manager.memory(),
            msi: Arc::clone(&arrivals) as Arc<_>,
            manager: Arc::clone(&manager),
            events: Arc::clone(&life) as Arc<_>,
            doorbell_any_width: false,
            packed,
        };
        let function = VirtioPci::new(&place, handles, device).unwrap();
        let dispatcher = manager.dispatcher();
        Self { manager, vm, function, mapping, arrivals, life, dispatcher, driver_features: 0 }
    }

    fn add_memory(&self, transaction: &Transaction<'_>) {
        let slot = Slot {
            base: 0,
            size: MEMORY,
            mapping: Arc::clone(&self.mapping),
            offset: 0,
            flags: SlotFlags::default(),
            role: SlotRole::Ram,
            owner: Owner::new("mem0"),
        };
        transaction.add_slot(slot).unwrap();
    }

    fn shared(&self) -> SharedDevice {
        SharedDevice::from_arc(Arc::clone(&self.function))
    }

    pub(crate) fn memory(&self) -> Arc<GuestMemoryView> {
        self.manager.memory().view()
    }

    pub(crate) fn read<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        assert!(self.dispatcher.read(IoSpace::Mmio, BAR + offset, &mut data), "nobody at {offset:#x}");
        data
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        assert!(self.dispatcher.write(IoSpace::Mmio, BAR + offset, data), "nobody at {offset:#x}");
    }

    /// A read that may go nowhere.
    pub(crate) fn try_read(&mut self, offset: u64, data: &mut [u8]) {
        self.dispatcher.read(IoSpace::Mmio, BAR + offset, data);
    }

    /// A write that may go nowhere.
    pub(crate) fn try_write(&mut self, offset: u64, data: &[u8]) {
        self.dispatcher.write(IoSpace::Mmio, BAR + offset, data);
    }

    /// A write of configuration space, and the rewiring that it asks for.
    pub(crate) fn try_config(&mut self, offset: u16, data: &[u8]) {
        let effect = self.function.lock().config_write(offset, data);
        if effect == ConfigEffect::Rewire {
            root::rewire(&self.manager, &self.shared(), "BAR");
        }
    }

    /// Puts the BAR where this machine expects it.
    pub(crate) fn place_bar(&mut self) {
        let [low, high] = [BAR & 0xffff_ffff, BAR >> 32].map(|half| u32::try_from(half).unwrap());
        self.try_config(0x10, &low.to_le_bytes());
        self.try_config(0x14, &high.to_le_bytes());
    }

    pub(crate) fn read16(&mut self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(offset))
    }

    pub(crate) fn write16(&mut self, offset: u64, value: u16) {
        self.write(offset, &value.to_le_bytes());
    }

    pub(crate) fn status(&mut self) -> u8 {
        self.read::<1>(20)[0]
    }

    pub(crate) fn set_status(&mut self, value: u8) {
        self.write(20, &[value]);
    }

    /// A byte of the device's configuration space and those after it.
    pub(crate) fn config<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        self.read(0x2000 + offset)
    }

    pub(crate) fn offered(&mut self) -> u64 {
        let mut words = [0; 2];
        for (select, word) in (0u32..).zip(&mut words) {
            self.write(0, &select.to_le_bytes());
            *word = u32::from_le_bytes(self.read(4));
        }
        u64::from(words[0]) | u64::from(words[1]) << 32
    }

    /// Reset to FEATURES_OK with the offered ones of `wanted`, and version 1. What was negotiated.
    pub(crate) fn negotiate(&mut self, wanted: u64) -> u64 {
        self.set_status(0);
        assert_eq!(self.status(), 0);
        self.set_status(status::ACKNOWLEDGE);
        self.set_status(status::ACKNOWLEDGE | status::DRIVER);
        let features = (wanted | features::VERSION_1) & self.offered();
        for select in 0u32..2 {
            self.write(8, &select.to_le_bytes());
            let half = u32::try_from(features >> (32 * select) & 0xffff_ffff).unwrap();
            self.write(12, &half.to_le_bytes());
        }
        let ok = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.set_status(ok);
        assert_eq!(self.status(), ok);
        self.driver_features = features;
        features
    }

    /// Programs the vectors: message data is the vector's number.
    pub(crate) fn enable_vectors(&mut self) {
        let queues = self.read16(18);
        let table = BarLayout::new(queues);
        let base = NOTIFY + (u64::from(queues) * 4).next_multiple_of(4096);
        for vector in 0..table.vectors() {
            let entry = base + 16 * u64::from(vector);
            self.write(entry, &0xfee0_0000u64.to_le_bytes());
            self.write(entry + 8, &u32::from(vector).to_le_bytes());
            self.write(entry + 12, &0u32.to_le_bytes());
        }
        let mut function = self.function.lock();
        let mut capability = 0x34;
        loop {
            let mut next = [0];
            function.config_read(capability, &mut next);
            assert_ne!(next[0], 0, "no MSI-X");
            let at = u16::from(next[0]);
            let mut id = [0];
            function.config_read(at, &mut id);
            if id[0] == 0x11 {
                function.config_write(at + 2, &0x8000u16.to_le_bytes());
                break;
            }
            capability = at + 1;
        }
        drop(function);
        self.write16(16, CONFIG_VECTOR);
    }

    /// Enables queue `index`; its rings lie in a region of memory of its own.
    pub(crate) fn enable_queue(&mut self, index: u16, size: u16) -> Driver {
        let base = 0x1000 + u64::from(index) * Driver::footprint(size);
        assert!(base + Driver::footprint(size) <= DATA, "rings reach into the buffers");
        // A queue that was used before starts with clean rings.
        let zeros = vec![0; usize::try_from(Driver::footprint(size)).unwrap()];
        vm_memory::Bytes::write_slice(&*self.memory(), &zeros, vm_memory::GuestAddress(base)).unwrap();
        let driver = Driver::new(base, size, RingFeatures::of(self.driver_features));
        let config = driver.config();
        self.write16(22, index);
        self.write16(24, size);
        self.write16(26, index + 1);
        for (offset, address) in [(32, config.descriptors), (40, config.driver), (48, config.device)] {
            self.write(offset, &address.to_le_bytes());
        }
        self.write16(28, 1);
        assert_eq!(self.read16(28), 1);
        driver
    }

    pub(crate) fn driver_ok(&mut self) {
        let now = self.status();
        self.set_status(now | status::DRIVER_OK);
    }

    /// All of it: features, vectors, every queue with `size` descriptors at most, DRIVER_OK.
    pub(crate) fn start(&mut self, wanted: u64, size: u16) -> Vec<Driver> {
        self.negotiate(wanted);
        self.enable_vectors();
        let drivers = (0..self.read16(18))
            .map(|index| {
                self.write16(22, index);
                let max = self.read16(24);
                self.enable_queue(index, max.min(size))
            })
            .collect();
        self.driver_ok();
        assert_eq!(self.status() & status::NEEDS_RESET, 0, "activation failed");
        drivers
    }

    /// Notifies a queue as the guest's write would: by its doorbell if the kernel has that, else through the
    /// exit's handler. Says whether it was the doorbell.
    pub(crate) fn kick(&mut self, queue: u16) -> bool {
        let offset = NOTIFY + 4 * u64::from(queue);
        let data = queue.to_le_bytes();
        let armed = self.vm.wiring_state().rung_by(IoSpace::Mmio, BAR + offset, &data).is_some();
        if armed {
            signal(&self.function.lock().kick_event(queue));
        } else {
            self.write(offset, &data);
        }
        armed
    }

    pub(crate) fn wait_queue(&self, queue: u16) {
        self.arrivals.wait(queue + 1);
    }

    pub(crate) fn wait_config(&self) {
        self.arrivals.wait(CONFIG_VECTOR);
    }

    pub(crate) fn take_interrupts(&self) -> Vec<u32> {
        self.arrivals.take()
    }

    pub(crate) fn take_life(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.life.0.lock())
    }

    /// Kicks and waits until the device has handed `id` back; how much it wrote.
    pub(crate) fn run(&mut self, driver: &mut Driver, queue: u16, id: u16) -> u32 {
        let memory = self.memory();
        driver.enable_interrupts(&*memory);
        if driver.needs_kick(&*memory) {
            self.kick(queue);
        }
        self.finish(driver, queue, id)
    }

    /// Waits until the device has handed `id` back.
    pub(crate) fn finish(&self, driver: &mut Driver, queue: u16, id: u16) -> u32 {
        let memory = self.memory();
        loop {
            match driver.take_used(&*memory) {
                Some((used, written)) => {
                    assert_eq!(used, id, "another request than expected");
                    return written;
                }
                None => {
                    if !driver.enable_interrupts(&*memory) {
                        self.wait_queue(queue);
                    }
                }
            }
        }
    }

    /// Pauses and saves the device.
    pub(crate) fn save(&self) -> String {
        let mut function = self.function.lock();
        function.pause().unwrap();
        serde_json::to_string(&function.save_section("dev0").unwrap()).unwrap()
    }

    pub(crate) fn resume(&self) {
        self.function.lock().resume();
    }

    /// Arms up to `limit` doorbells.
    pub(crate) fn arm_late(&self, limit: usize) -> usize {
        let transaction = self.manager.begin();
        let armed = transaction.arm_late(limit);
        transaction.commit().unwrap();
        armed
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The function's device may still serve: its threads end with it.
        self.function.lock().pause().unwrap();
    }
}
