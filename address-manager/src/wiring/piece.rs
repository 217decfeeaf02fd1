//! The pieces that wiring is made of: plain values that a device builds and hands to a transaction.

use std::{fmt, sync::Arc};

use hypervisor::{DoorbellSpec, IoSpace, RouteTarget, SlotFlags};
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::EventFd;

use crate::dispatch::Handler;

/// Size of the pages that slots are made of, in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// Whose a piece of wiring is: a device or memory zone id. Conflicts name both owners.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(Arc<str>);

impl Owner {
    /// An owner by its id.
    pub fn new(id: impl AsRef<str>) -> Self {
        Self(Arc::from(id.as_ref()))
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Owner({})", self.0)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Owner {
    fn from(id: &str) -> Self {
        Self::new(id)
    }
}

/// What a slot is to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SlotRole {
    /// Main memory: devices may reach it, vhost back ends and dirty tracking are told of it.
    Ram,
    /// Persistent memory: storage that drivers put buffers into as if it was main memory. Devices may reach it, and vhost
    /// back ends are told of it; it is not tracked, as its content is the host's.
    Persistent,
    /// A device's window onto host memory (a passed-through BAR, a shared region). Not part
    /// of [`GuestMemoryView`](crate::GuestMemoryView).
    Device,
}

impl SlotRole {
    /// Whether devices may reach it.
    pub fn is_reachable(self) -> bool {
        match self {
            Self::Ram | Self::Persistent => true,
            Self::Device => false,
        }
    }
}

/// A guest-physical range that shows host memory.
#[derive(Clone, Debug)]
pub struct Slot {
    /// First guest-physical address; page-aligned.
    pub base: u64,
    /// Length in bytes; a non-zero multiple of the page size.
    pub size: u64,
    /// The host memory. The live wiring keeps it mapped.
    pub mapping: Arc<MmapRegion>,
    /// Where in `mapping` the range begins, in bytes; page-aligned.
    pub offset: u64,
    /// Access and tracking flags.
    pub flags: SlotFlags,
    /// What it is to the guest.
    pub role: SlotRole,
    /// Whose it is.
    pub owner: Owner,
}

impl Slot {
    /// Address in this process of the slot's first byte.
    pub fn host_address(&self) -> u64 {
        // A pointer fits 64 bits on every host this builds for; the offset was checked on entry.
        (self.mapping.as_ptr() as u64).wrapping_add(self.offset)
    }

    /// First address after the range. Cannot overflow for a slot that a [`Wiring`](super::Wiring) accepted.
    pub fn end(&self) -> u64 {
        self.base.saturating_add(self.size)
    }
}

impl PartialEq for Slot {
    fn eq(&self, other: &Self) -> bool {
        let Self { base, size, mapping, offset, flags, role, owner } = self;
        *base == other.base
            && *size == other.size
            && Arc::ptr_eq(mapping, &other.mapping)
            && *offset == other.offset
            && *flags == other.flags
            && *role == other.role
            && *owner == other.owner
    }
}

impl Eq for Slot {}

/// An address range and the handler that answers it.
#[derive(Clone)]
pub struct HandlerRange {
    /// Which address space.
    pub space: IoSpace,
    /// First address.
    pub base: u64,
    /// Length in addresses; not zero.
    pub size: u64,
    /// Who answers. Sees offsets from `base`.
    pub handler: Arc<dyn Handler>,
    /// Whose it is.
    pub owner: Owner,
}

impl HandlerRange {
    /// First address after the range. Cannot overflow for a range that a [`Wiring`](super::Wiring) accepted.
    pub fn end(&self) -> u64 {
        self.base.saturating_add(self.size)
    }
}

impl fmt::Debug for HandlerRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandlerRange({:?} {:#x}+{:#x} {})", self.space, self.base, self.size, self.owner)
    }
}

impl PartialEq for HandlerRange {
    fn eq(&self, other: &Self) -> bool {
        let Self { space, base, size, handler, owner } = self;
        *space == other.space
            && *base == other.base
            && *size == other.size
            && Arc::ptr_eq(handler, &other.handler)
            && *owner == other.owner
    }
}

impl Eq for HandlerRange {}

/// When a doorbell is registered with the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arm {
    /// At commit.
    Now,
    /// Not until a transaction arms it: until then the guest's write exits and the handler at that
    /// address serves it.
    Late,
}

/// A guest write that signals an eventfd.
#[derive(Clone, Debug)]
pub struct Doorbell {
    /// The write.
    pub spec: DoorbellSpec,
    /// What it signals.
    pub event: Arc<EventFd>,
    /// When it is registered.
    pub arm: Arm,
    /// Whose it is.
    pub owner: Owner,
}

impl PartialEq for Doorbell {
    fn eq(&self, other: &Self) -> bool {
        let Self { spec, event, arm, owner } = self;
        *spec == other.spec && Arc::ptr_eq(event, &other.event) && *arm == other.arm && *owner == other.owner
    }
}

impl Eq for Doorbell {}

/// Where a GSI leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Global system interrupt number.
    pub gsi: u32,
    /// What raising it does.
    pub target: RouteTarget,
    /// Whose it is.
    pub owner: Owner,
}

/// An eventfd that raises a GSI.
#[derive(Clone, Debug)]
pub struct IrqEvent {
    /// Which GSI.
    pub gsi: u32,
    /// The eventfd that raises it.
    pub event: Arc<EventFd>,
    /// For level-triggered lines: signalled at the guest's acknowledgement.
    pub resample: Option<Arc<EventFd>>,
    /// Whose it is.
    pub owner: Owner,
}

impl PartialEq for IrqEvent {
    fn eq(&self, other: &Self) -> bool {
        let Self { gsi, event, resample, owner } = self;
        let resample_equal = match (resample, &other.resample) {
            (None, None) => true,
            (Some(mine), Some(theirs)) => Arc::ptr_eq(mine, theirs),
            _ => false,
        };
        *gsi == other.gsi && Arc::ptr_eq(event, &other.event) && resample_equal && *owner == other.owner
    }
}

impl Eq for IrqEvent {}

/// All wiring of one thing that moves as one: a BAR, a device, a memory zone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wired {
    /// Its slots.
    pub slots: Vec<Slot>,
    /// Its handlers.
    pub handlers: Vec<HandlerRange>,
    /// Its doorbells.
    pub doorbells: Vec<Doorbell>,
    /// Its interrupt routes.
    pub routes: Vec<Route>,
    /// Its irqfds.
    pub irq_events: Vec<IrqEvent>,
}
