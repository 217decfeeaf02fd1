//! The wiring as plain data: what is wired where, and to whom it belongs.
//!
//! A [`Wiring`] is a value. Changing it checks for overlap and touches nothing else: no system
//! call, no lock, no clock. [`Transaction`](crate::Transaction) stages changes on a copy of the
//! live one, and [`diff`](crate::diff) compares two of them.

use std::{collections::BTreeMap, fmt, sync::Arc};

use hypervisor::{DoorbellSpec, IoSpace, RouteTarget, SlotFlags};
use thiserror::Error;
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
    /// A device's window onto host memory (a passed-through BAR, pmem, a shared region). Not part
    /// of [`GuestMemoryView`](crate::GuestMemoryView).
    Device,
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

    /// First address after the range. Cannot overflow for a slot that a [`Wiring`] accepted.
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
    /// First address after the range. Cannot overflow for a range that a [`Wiring`] accepted.
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
        *spec == other.spec
            && Arc::ptr_eq(event, &other.event)
            && *arm == other.arm
            && *owner == other.owner
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

/// Why a piece of wiring was not accepted. Names both owners.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Conflict {
    /// Two ranges overlap.
    #[error("{what} {base:#x}+{size:#x} of {owner} overlaps {other_what} {other_base:#x}+{other_size:#x} of {other}")]
    Overlap {
        /// What was to be added.
        what: &'static str,
        /// Its first address.
        base: u64,
        /// Its length.
        size: u64,
        /// Its owner.
        owner: Owner,
        /// What is there.
        other_what: &'static str,
        /// Its first address.
        other_base: u64,
        /// Its length.
        other_size: u64,
        /// Its owner.
        other: Owner,
    },
    /// A range is empty, misaligned, beyond its address space or beyond its backing.
    #[error("{what} {base:#x}+{size:#x} of {owner}: {why}")]
    Range {
        /// What was to be added.
        what: &'static str,
        /// Its first address.
        base: u64,
        /// Its length.
        size: u64,
        /// Its owner.
        owner: Owner,
        /// What is wrong.
        why: &'static str,
    },
    /// The same doorbell, GSI or irqfd exists already.
    #[error("{what} of {owner} is taken by {other}")]
    Taken {
        /// What was to be added, with its number.
        what: String,
        /// Who wanted it.
        owner: Owner,
        /// Who has it.
        other: Owner,
    },
    /// What was to be removed is not there, or differs from what was named.
    #[error("{what} of {owner} is not wired")]
    Absent {
        /// What was to be removed, with its number.
        what: String,
        /// Who named it.
        owner: Owner,
    },
}

/// Where every address, doorbell and interrupt of the guest leads. Ordered, comparable, cheap to
/// clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wiring {
    slots: BTreeMap<u64, Slot>,
    handlers: BTreeMap<(IoSpace, u64), HandlerRange>,
    doorbells: BTreeMap<DoorbellSpec, Doorbell>,
    routes: BTreeMap<u32, Route>,
    irq_events: BTreeMap<(u32, usize), IrqEvent>,
}

/// Orders irqfds of one GSI by the identity of their eventfd.
fn irq_key(event: &IrqEvent) -> (u32, usize) {
    (event.gsi, Arc::as_ptr(&event.event) as usize)
}

impl Wiring {
    /// Slots by guest-physical address.
    pub fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.values()
    }

    /// Handlers by space and address.
    pub fn handlers(&self) -> impl Iterator<Item = &HandlerRange> {
        self.handlers.values()
    }

    /// Doorbells by space and address.
    pub fn doorbells(&self) -> impl Iterator<Item = &Doorbell> {
        self.doorbells.values()
    }

    /// Routes by GSI.
    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.values()
    }

    /// Irqfds by GSI.
    pub fn irq_events(&self) -> impl Iterator<Item = &IrqEvent> {
        self.irq_events.values()
    }

    /// Adds a slot.
    ///
    /// # Errors
    /// It is misaligned, empty, beyond its mapping, or overlaps a slot or an MMIO handler.
    pub fn add_slot(&mut self, slot: Slot) -> Result<(), Conflict> {
        self.check_slot(&slot)?;
        self.slots.insert(slot.base, slot);
        Ok(())
    }

    /// Removes a slot equal to `slot` in everything but its tracking flag.
    ///
    /// # Errors
    /// There is none.
    pub fn remove_slot(&mut self, slot: &Slot) -> Result<(), Conflict> {
        match self.slots.get(&slot.base) {
            Some(there) if same_but_tracking(there, slot) => {
                self.slots.remove(&slot.base);
                Ok(())
            }
            _ => Err(absent(format!("slot {:#x}+{:#x}", slot.base, slot.size), &slot.owner)),
        }
    }

    /// Turns dirty tracking of all RAM slots on or off.
    pub fn track_dirty(&mut self, on: bool) {
        for slot in self.slots.values_mut().filter(|slot| slot.role == SlotRole::Ram) {
            slot.flags.set(SlotFlags::LOG_DIRTY, on);
        }
    }

    /// Adds a handler.
    ///
    /// # Errors
    /// It is empty, beyond its address space, or overlaps a handler or a slot.
    pub fn add_handler(&mut self, range: HandlerRange) -> Result<(), Conflict> {
        self.check_handler(&range)?;
        self.handlers.insert((range.space, range.base), range);
        Ok(())
    }

    /// Removes a handler equal to `range`.
    ///
    /// # Errors
    /// There is none.
    pub fn remove_handler(&mut self, range: &HandlerRange) -> Result<(), Conflict> {
        let key = (range.space, range.base);
        if self.handlers.get(&key) != Some(range) {
            return Err(absent(format!("handler {:#x}+{:#x}", range.base, range.size), &range.owner));
        }
        self.handlers.remove(&key);
        Ok(())
    }

    /// Adds a doorbell.
    ///
    /// # Errors
    /// Its width is not 0, 1, 2, 4 or 8, or a write would ring two doorbells.
    pub fn add_doorbell(&mut self, doorbell: Doorbell) -> Result<(), Conflict> {
        self.check_doorbell(&doorbell)?;
        self.doorbells.insert(doorbell.spec, doorbell);
        Ok(())
    }

    /// Removes a doorbell with the write and the eventfd of `doorbell`, armed or not.
    ///
    /// # Errors
    /// There is none.
    pub fn remove_doorbell(&mut self, doorbell: &Doorbell) -> Result<(), Conflict> {
        match self.doorbells.get(&doorbell.spec) {
            Some(there) if Arc::ptr_eq(&there.event, &doorbell.event) => {
                self.doorbells.remove(&doorbell.spec);
                Ok(())
            }
            _ => Err(absent(format!("doorbell {:#x}", doorbell.spec.address), &doorbell.owner)),
        }
    }

    /// Arms up to `limit` late doorbells, in address order; returns how many it armed.
    pub fn arm_late(&mut self, limit: usize) -> usize {
        let late = self.doorbells.values_mut().filter(|doorbell| doorbell.arm == Arm::Late);
        late.take(limit).map(|doorbell| doorbell.arm = Arm::Now).count()
    }

    /// Number of doorbells that are not registered with the kernel.
    pub fn late_doorbells(&self) -> usize {
        self.doorbells.values().filter(|doorbell| doorbell.arm == Arm::Late).count()
    }

    /// Adds a route for a GSI that has none.
    ///
    /// # Errors
    /// The GSI has a route.
    pub fn add_route(&mut self, route: Route) -> Result<(), Conflict> {
        if let Some(there) = self.routes.get(&route.gsi) {
            return Err(taken(format!("route of GSI {}", route.gsi), &route.owner, &there.owner));
        }
        self.routes.insert(route.gsi, route);
        Ok(())
    }

    /// Leads a GSI somewhere else, or somewhere at all. Only its owner may.
    ///
    /// # Errors
    /// The GSI belongs to another owner.
    pub fn set_route(&mut self, route: Route) -> Result<(), Conflict> {
        match self.routes.get(&route.gsi) {
            Some(there) if there.owner != route.owner => {
                Err(taken(format!("route of GSI {}", route.gsi), &route.owner, &there.owner))
            }
            _ => {
                self.routes.insert(route.gsi, route);
                Ok(())
            }
        }
    }

    /// Removes the route of `route.gsi`, wherever it leads, if it belongs to `route.owner`.
    ///
    /// # Errors
    /// The GSI has no route of that owner.
    pub fn remove_route(&mut self, route: &Route) -> Result<(), Conflict> {
        match self.routes.get(&route.gsi) {
            Some(there) if there.owner == route.owner => {
                self.routes.remove(&route.gsi);
                Ok(())
            }
            _ => Err(absent(format!("route of GSI {}", route.gsi), &route.owner)),
        }
    }

    /// Adds an irqfd.
    ///
    /// # Errors
    /// That eventfd raises a GSI already.
    pub fn add_irq_event(&mut self, event: IrqEvent) -> Result<(), Conflict> {
        let same = |there: &&IrqEvent| Arc::ptr_eq(&there.event, &event.event);
        if let Some(there) = self.irq_events.values().find(same) {
            return Err(taken(format!("irqfd of GSI {}", event.gsi), &event.owner, &there.owner));
        }
        self.irq_events.insert(irq_key(&event), event);
        Ok(())
    }

    /// Removes an irqfd equal to `event`.
    ///
    /// # Errors
    /// There is none.
    pub fn remove_irq_event(&mut self, event: &IrqEvent) -> Result<(), Conflict> {
        if self.irq_events.get(&irq_key(event)) != Some(event) {
            return Err(absent(format!("irqfd of GSI {}", event.gsi), &event.owner));
        }
        self.irq_events.remove(&irq_key(event));
        Ok(())
    }

    /// Adds all of `wired`, or nothing.
    ///
    /// # Errors
    /// The first piece that is not accepted.
    pub fn add(&mut self, wired: &Wired) -> Result<(), Conflict> {
        let mut after = self.clone();
        after.add_each(wired)?;
        *self = after;
        Ok(())
    }

    /// Removes all of `wired`, or nothing.
    ///
    /// # Errors
    /// The first piece that is not there.
    pub fn remove(&mut self, wired: &Wired) -> Result<(), Conflict> {
        let mut after = self.clone();
        after.remove_each(wired)?;
        *self = after;
        Ok(())
    }

    /// Puts `new` in the place of `old`, or changes nothing.
    ///
    /// # Errors
    /// A piece of `old` is not there, or one of `new` is not accepted.
    pub fn replace(&mut self, old: &Wired, new: &Wired) -> Result<(), Conflict> {
        let mut after = self.clone();
        after.remove_each(old)?;
        after.add_each(new)?;
        *self = after;
        Ok(())
    }
}

