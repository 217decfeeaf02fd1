//! The wiring of a guest as large as those that restore and migration are measured with: 8 network
//! devices of 16 queue pairs, 16 disks of 4 queues.

use std::sync::Arc;

use address_manager::{
    Arm, Conflict, Doorbell, DoorbellSpec, Handler, HandlerRange, IoSpace, IrqEvent, MsiMessage, Owner,
    Route, RouteTarget, Slot, SlotFlags, SlotRole, Transaction, Window, WindowError, WindowKind, Windows,
    Wired,
};
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Network devices, and queues of each.
const NETS: (u64, u64) = (8, 32);
/// Disks, and queues of each.
const DISKS: (u64, u64) = (16, 4);
/// Interrupts of the platform: hot plug of each PCI port and the like.
const PLATFORM_ROUTES: u32 = 6;
/// Memory slots.
const SLOTS: u64 = 16;

const PAGE: u64 = 0x1000;
/// Where BARs lie.
const BARS: u64 = 1 << 40;
/// Length of a BAR.
const BAR: u64 = 0x1_0000;
/// Offset of the queue notifiers in it.
const NOTIFY: u64 = 0x3000;
/// GSIs below are the interrupt controller's pins.
const FIRST_GSI: u32 = 24;
/// 64-bit MMIO.
const MMIO: Window = Window::new(WindowKind::Mmio64, 0);
/// GSIs.
const GSIS: Window = Window::new(WindowKind::Gsi, 0);

/// Answers nothing: no guest runs.
struct Silent;

impl Handler for Silent {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}
    fn write(&self, _offset: u64, _data: &[u8]) {}
}

/// A device: its wiring, and what it asks of the windows.
#[derive(Clone, Debug)]
pub struct Device {
    /// Whose it is.
    pub owner: Owner,
    /// Its BAR, doorbells, routes and irqfds.
    pub wired: Wired,
}

/// A guest: memory, and devices.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Memory that is not contiguous, so that each piece is a slot.
    pub slots: Vec<Slot>,
    /// All devices, and the platform as the last one.
    pub devices: Vec<Device>,
}

/// How a guest is wired.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How many times as large as the guest that is measured with.
    pub scale: u32,
    /// Whether each queue has an irqfd, as with vhost; an irqfd needs a descriptor.
    pub irqfds: bool,
    /// When doorbells are registered.
    pub arm: Arm,
}

impl Guest {
    /// Makes the pieces. Takes no descriptor per doorbell: they share one.
    ///
    /// # Panics
    /// There is no memory or no descriptor left.
    pub fn new(shape: Shape) -> Self {
        let mut maker = Maker { shape, next_bar: BARS, next_gsi: FIRST_GSI, rung: event() };
        let mut devices = Vec::new();
        for (kind, (count, queues)) in [("net", NETS), ("disk", DISKS)] {
            for number in 0..count * u64::from(shape.scale) {
                devices.push(maker.device(&format!("{kind}{number}"), queues));
            }
        }
        let owner = Owner::from("platform");
        let mut wired = Wired::default();
        for _ in 0..PLATFORM_ROUTES * shape.scale {
            maker.interrupt(&owner, &mut wired);
        }
        devices.push(Device { owner, wired });
        Self { slots: memory(SLOTS * u64::from(shape.scale)), devices }
    }

    /// Windows that all devices fit into.
    pub fn windows() -> Windows {
        Windows::new().with(MMIO, BARS, 1 << 40).with(GSIS, FIRST_GSI.into(), 1 << 20)
    }

    /// Stages all of it, as a restore does: every place is the one that was saved.
    ///
    /// # Errors
    /// A piece does not fit.
    pub fn stage(&self, tx: &Transaction<'_>) -> Result<(), StageError> {
        for slot in &self.slots {
            tx.add_slot(slot.clone())?;
        }
        for device in &self.devices {
            device.stage(tx)?;
        }
        Ok(())
    }
}

impl Device {
    /// Reserves the places of the device and stages its wiring.
    ///
    /// # Errors
    /// A piece does not fit.
    pub fn stage(&self, tx: &Transaction<'_>) -> Result<(), StageError> {
        for range in &self.wired.handlers {
            tx.reserve(MMIO, range.base, range.size, &self.owner)?;
        }
        for route in &self.wired.routes {
            tx.reserve(GSIS, route.gsi.into(), 1, &self.owner)?;
        }
        Ok(tx.add(&self.wired)?)
    }
}

/// A piece that does not fit: a mistake in this file.
#[derive(Debug)]
pub enum StageError {
    /// In the wiring.
    Conflict(Conflict),
    /// In a window.
    Window(WindowError),
}

impl From<Conflict> for StageError {
    fn from(conflict: Conflict) -> Self {
        Self::Conflict(conflict)
    }
}

impl From<WindowError> for StageError {
    fn from(error: WindowError) -> Self {
        Self::Window(error)
    }
}

struct Maker {
    shape: Shape,
    next_bar: u64,
    next_gsi: u32,
    /// What all doorbells signal: nothing waits for it.
    rung: Arc<EventFd>,
}

impl Maker {
    fn device(&mut self, name: &str, queues: u64) -> Device {
        let owner = Owner::new(name);
        let base = self.next_bar;
        self.next_bar += BAR;
        let mut wired = Wired::default();
        wired.handlers.push(HandlerRange {
            space: IoSpace::Mmio,
            base,
            size: BAR,
            handler: Arc::new(Silent),
            owner: owner.clone(),
        });
        for queue in 0..queues {
            let address = base + NOTIFY + 4 * queue;
            wired.doorbells.push(Doorbell {
                spec: DoorbellSpec { space: IoSpace::Mmio, address, width: 2, data_match: None },
                event: Arc::clone(&self.rung),
                arm: self.shape.arm,
                owner: owner.clone(),
            });
            self.interrupt(&owner, &mut wired);
        }
        // One more for changes of the configuration.
        self.interrupt(&owner, &mut wired);
        Device { owner, wired }
    }

    fn interrupt(&mut self, owner: &Owner, wired: &mut Wired) {
        let gsi = self.next_gsi;
        self.next_gsi += 1;
        let message = MsiMessage { address: 0xfee0_0000, data: 0x20 + gsi % 0xc0, device_id: 0 };
        wired.routes.push(Route { gsi, target: RouteTarget::Msi(message), owner: owner.clone() });
        if self.shape.irqfds {
            wired.irq_events.push(IrqEvent { gsi, event: event(), resample: None, owner: owner.clone() });
        }
    }
}

/// Pieces of two pages with a hole after each.
fn memory(slots: u64) -> Vec<Slot> {
    let size = 2 * PAGE;
    let len = usize::try_from(slots * size).expect("the memory of a benchmark is small");
    let mapping = Arc::new(MmapRegion::new(len).expect("anonymous memory"));
    let piece = |number: u64| Slot {
        base: number * (size + PAGE),
        size,
        mapping: Arc::clone(&mapping),
        offset: number * size,
        flags: SlotFlags::empty(),
        role: SlotRole::Ram,
        owner: Owner::from("memory"),
    };
    (0..slots).map(piece).collect()
}

fn event() -> Arc<EventFd> {
    Arc::new(EventFd::new(EFD_NONBLOCK).expect("a descriptor for an eventfd"))
}
