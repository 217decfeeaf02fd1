//! What tests, benchmarks and fuzz targets share: pieces of wiring by short names, a naive model of
//! the wiring, and a player that runs a byte string as operations on both (feature `testing`).

#![allow(clippy::unwrap_used, reason = "for tests: whatever fails here must stop them")]

mod naive;
mod play;

pub use self::{
    naive::Naive,
    play::{Played, play},
};

use std::sync::Arc;

use hypervisor::fake::FakeVm;
use parking_lot::Mutex;
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{
    AddressManager, Arm, Doorbell, DoorbellSpec, Handler, HandlerRange, IoSpace, IrqEvent, MsiMessage, Owner,
    Route, RouteTarget, Slot, SlotFlags, SlotRole, Window, WindowKind, Windows,
};

/// Bytes in a page.
pub const PAGE: u64 = 0x1000;

/// Host memory of that many pages.
pub fn host(pages: u64) -> Arc<MmapRegion> {
    Arc::new(MmapRegion::new(usize::try_from(pages * PAGE).unwrap()).unwrap())
}

/// A slot of main memory, in pages.
pub fn ram(base: u64, pages: u64, mapping: &Arc<MmapRegion>, offset: u64) -> Slot {
    Slot {
        base: base * PAGE,
        size: pages * PAGE,
        mapping: Arc::clone(mapping),
        offset: offset * PAGE,
        flags: SlotFlags::empty(),
        role: SlotRole::Ram,
        owner: Owner::new("ram"),
    }
}

/// What a [`Noted`] handler was asked: the offset, and the data where it was a write.
pub type Access = (u64, Option<Vec<u8>>);

/// A handler that remembers what it was asked, and answers with its number.
#[derive(Debug, Default)]
pub struct Noted {
    /// What every byte that is read has.
    pub number: u8,
    /// All accesses, in order.
    pub seen: Mutex<Vec<Access>>,
}

impl Noted {
    /// A handler by its number.
    pub fn new(number: u8) -> Arc<Self> {
        Arc::new(Self { number, seen: Mutex::default() })
    }
}

impl Handler for Noted {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(self.number);
        self.seen.lock().push((offset, None));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.seen.lock().push((offset, Some(data.to_vec())));
    }
}

/// A handler range.
pub fn handler(space: IoSpace, base: u64, size: u64, handler: &Arc<Noted>) -> HandlerRange {
    let handler = Arc::clone(handler) as Arc<dyn Handler>;
    HandlerRange { space, base, size, handler, owner: Owner::new("device") }
}

/// An eventfd.
pub fn event() -> Arc<EventFd> {
    Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())
}

/// A doorbell for writes of two bytes.
pub fn doorbell(address: u64, event: &Arc<EventFd>) -> Doorbell {
    Doorbell {
        spec: DoorbellSpec { space: IoSpace::Mmio, address, width: 2, data_match: None },
        event: Arc::clone(event),
        arm: Arm::Now,
        owner: Owner::new("device"),
    }
}

/// A GSI that sends a message.
pub fn msi(gsi: u32, data: u32) -> Route {
    let message = MsiMessage { address: 0xfee0_0000, data, device_id: 0 };
    Route { gsi, target: RouteTarget::Msi(message), owner: Owner::new("device") }
}

/// An eventfd on a GSI.
pub fn irqfd(gsi: u32, event: &Arc<EventFd>) -> IrqEvent {
    IrqEvent { gsi, event: Arc::clone(event), resample: None, owner: Owner::new("device") }
}

/// Windows of the usual kinds.
pub fn windows() -> Windows {
    Windows::new()
        .with(Window::new(WindowKind::Mmio32, 0), 0xc000_0000, 0x2000_0000)
        .with(Window::new(WindowKind::Mmio64, 0), 1 << 40, 1 << 38)
        .with(Window::new(WindowKind::Port, 0), 0x1000, 0xf000)
        .with(Window::new(WindowKind::Gsi, 0), 24, 4000)
}

/// A manager, and the fake VM below it.
pub fn manager() -> (Arc<AddressManager>, Arc<FakeVm>) {
    let vm = FakeVm::new();
    let manager = AddressManager::new(Arc::clone(&vm) as Arc<dyn hypervisor::Vm>, 509, windows());
    (manager, vm)
}
