//! The model of what a kernel holds for a VM: slots, doorbells, routes and irqfds, with the
//! refusals of KVM (`virt/kvm/kvm_main.c`, `virt/kvm/eventfd.c`) and of the trait's contract.

use std::{collections::BTreeMap, io, os::fd::RawFd};

use crate::{
    Capabilities, DoorbellSpec, HypervisorError, IoSpace, MemorySlot, Route, RouteTarget, SlotFlags,
};

/// KVM counts the pages of one slot in 31 bits.
const SLOT_PAGES_MAX: u64 = (1 << 31) - 1;
const PAGE: u64 = 4096;

/// What the kernel would hold now. Two of them compare equal exactly when a guest could see no
/// difference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FakeWiring {
    /// Memory slots by number.
    pub slots: BTreeMap<u32, MemorySlot>,
    /// Doorbells, sorted.
    pub doorbells: Vec<FakeDoorbell>,
    /// The routing table, as it was set last.
    pub routes: Vec<Route>,
    /// Irqfds by their eventfd.
    pub irqfds: BTreeMap<RawFd, FakeIrqfd>,
}

/// An armed doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FakeDoorbell {
    /// What it listens to.
    pub doorbell: DoorbellSpec,
    /// The eventfd it signals.
    pub event: RawFd,
}

/// A connected irqfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FakeIrqfd {
    /// The GSI it raises.
    pub gsi: u32,
    /// The eventfd that hears of the acknowledgement.
    pub resample: Option<RawFd>,
}

impl FakeWiring {
    pub(super) fn set_slot(&mut self, slot: &MemorySlot, caps: &Capabilities) -> Result<(), HypervisorError> {
        let refuse = |why: &str| Err(invalid("memory slot", format!("{slot:x?}: {why}")));
        if slot.slot >= caps.max_slots {
            return refuse("number beyond the limit");
        }
        if slot.size == 0 || !(slot.guest_address | slot.size | slot.host_address).is_multiple_of(PAGE) {
            return refuse("not aligned to pages");
        }
        if slot.size / PAGE > SLOT_PAGES_MAX {
            return refuse("too large");
        }
        let Some(end) = slot.guest_address.checked_add(slot.size) else {
            return refuse("beyond the address space");
        };
        if slot.host_address.checked_add(slot.size).is_none() {
            return refuse("host range beyond the address space");
        }
        if slot.flags.contains(SlotFlags::READ_ONLY) && !caps.read_only_slots {
            return refuse("read-only slots are not supported");
        }
        if let Some(old) = self.slots.get(&slot.slot) {
            if !same_backing(old, slot) {
                return refuse("the number is in use with another range or backing");
            }
            if (old.flags ^ slot.flags).contains(SlotFlags::READ_ONLY) {
                return refuse("a slot cannot change between read-only and writable");
            }
        }
        let overlap = self.slots.values().find(|other| {
            other.slot != slot.slot
                && other.guest_address < end
                && slot.guest_address < other.guest_address + other.size
        });
        if let Some(other) = overlap {
            return refused("set memory slot", format!("{slot:x?} overlaps {other:x?}"), libc::EEXIST);
        }
        self.slots.insert(slot.slot, *slot);
        Ok(())
    }

    pub(super) fn remove_slot(&mut self, slot: &MemorySlot) -> Result<(), HypervisorError> {
        match self.slots.get(&slot.slot) {
            Some(old) if same_backing(old, slot) => {
                self.slots.remove(&slot.slot);
                Ok(())
            }
            other => refused("remove memory slot", format!("{slot:x?}, have {other:x?}"), libc::EINVAL),
        }
    }

    pub(super) fn add_doorbell(
        &mut self,
        doorbell: &DoorbellSpec,
        event: RawFd,
        caps: &Capabilities,
    ) -> Result<(), HypervisorError> {
        let refuse = |why: &str| Err(invalid("doorbell", format!("{doorbell:x?}: {why}")));
        match doorbell.width {
            1 | 2 | 4 | 8 => {}
            0 if doorbell.data_match.is_some() => return refuse("data match needs a width"),
            0 if !caps.doorbell_any_width => return refuse("matching any width is not supported"),
            0 => {}
            _ => return refuse("width is none of 0, 1, 2, 4, 8"),
        }
        if doorbell.address.checked_add(doorbell.width.into()).is_none() {
            return refuse("beyond the address space");
        }
        if let Some(other) = self.doorbells.iter().find(|other| collide(&other.doorbell, doorbell)) {
            let detail = format!("{doorbell:x?} collides with {:x?}", other.doorbell);
            return refused("add doorbell", detail, libc::EEXIST);
        }
        let armed = FakeDoorbell { doorbell: *doorbell, event };
        let at = self.doorbells.partition_point(|other| *other < armed);
        self.doorbells.insert(at, armed);
        Ok(())
    }

    pub(super) fn remove_doorbell(
        &mut self,
        doorbell: &DoorbellSpec,
        event: RawFd,
    ) -> Result<(), HypervisorError> {
        let armed = FakeDoorbell { doorbell: *doorbell, event };
        match self.doorbells.binary_search(&armed) {
            Ok(at) => {
                self.doorbells.remove(at);
                Ok(())
            }
            Err(_) => {
                refused("remove doorbell", format!("{doorbell:x?} with descriptor {event}"), libc::ENOENT)
            }
        }
    }

    pub(super) fn set_routes(
        &mut self,
        routes: &[Route],
        caps: &Capabilities,
    ) -> Result<(), HypervisorError> {
        if routes.len() > caps.max_gsis as usize {
            let detail = format!("{} entries, the limit is {}", routes.len(), caps.max_gsis);
            return Err(invalid("routing table", detail));
        }
        let mut sorted: Vec<&Route> = routes.iter().collect();
        sorted.sort_by_key(|route| route.gsi);
        for route in &sorted {
            check_gsi(route.gsi, caps)?;
            if let RouteTarget::Irqchip { chip, pin } = route.target {
                let pins = [8, 8, 24].get(chip as usize).copied().unwrap_or(0);
                if pin >= pins {
                    return Err(invalid("route", format!("{route:?}: no such pin")));
                }
            }
        }
        // Only irqchip pins may share a GSI, each on another chip.
        for pair in sorted.windows(2) {
            if let [a, b] = pair
                && a.gsi == b.gsi
            {
                match (a.target, b.target) {
                    (RouteTarget::Irqchip { chip: x, .. }, RouteTarget::Irqchip { chip: y, .. })
                        if x != y => {}
                    _ => return Err(invalid("routing table", format!("GSI {} is routed twice", a.gsi))),
                }
            }
        }
        self.routes = routes.to_vec();
        Ok(())
    }

    pub(super) fn add_irqfd(
        &mut self,
        event: RawFd,
        irqfd: FakeIrqfd,
        caps: &Capabilities,
    ) -> Result<(), HypervisorError> {
        check_gsi(irqfd.gsi, caps)?;
        if let Some(other) = self.irqfds.get(&event) {
            let detail = format!("descriptor {event} raises GSI {} already", other.gsi);
            return refused("add irqfd", detail, libc::EBUSY);
        }
        self.irqfds.insert(event, irqfd);
        Ok(())
    }

    pub(super) fn remove_irqfd(&mut self, event: RawFd, gsi: u32) -> Result<(), HypervisorError> {
        match self.irqfds.get(&event) {
            Some(irqfd) if irqfd.gsi == gsi => {
                self.irqfds.remove(&event);
                Ok(())
            }
            other => {
                let detail = format!("descriptor {event} on GSI {gsi}, have {other:?}");
                refused("remove irqfd", detail, libc::ENOENT)
            }
        }
    }

    /// The eventfd that a guest write signals, or nothing where the write exits.
    pub fn rung_by(&self, space: IoSpace, address: u64, data: &[u8]) -> Option<RawFd> {
        let armed = self.doorbells.iter().find(|armed| {
            let bell = &armed.doorbell;
            bell.space == space
                && bell.address == address
                && (bell.width == 0 || usize::from(bell.width) == data.len())
                && bell.data_match.is_none_or(|value| little_endian(data) == value)
        })?;
        Some(armed.event)
    }

    /// Where signalling an eventfd leads: the routes of its GSI, none if it is not connected.
    pub fn raised_by(&self, event: RawFd) -> Vec<RouteTarget> {
        let Some(irqfd) = self.irqfds.get(&event) else { return Vec::new() };
        self.routes.iter().filter(|route| route.gsi == irqfd.gsi).map(|route| route.target).collect()
    }
}

fn same_backing(a: &MemorySlot, b: &MemorySlot) -> bool {
    (a.guest_address, a.size, a.host_address) == (b.guest_address, b.size, b.host_address)
}

/// KVM's rule (`ioeventfd_check_collision`): at one address, two widths that both are set and differ
/// go together, as do two values of one width.
fn collide(a: &DoorbellSpec, b: &DoorbellSpec) -> bool {
    let same_width = a.width == b.width;
    let same_match = a.data_match.is_none() || b.data_match.is_none() || a.data_match == b.data_match;
    (a.space, a.address) == (b.space, b.address)
        && (a.width == 0 || b.width == 0 || (same_width && same_match))
}

fn check_gsi(gsi: u32, caps: &Capabilities) -> Result<(), HypervisorError> {
    if gsi < caps.max_gsis {
        return Ok(());
    }
    Err(invalid("GSI", format!("{gsi}, the limit is {}", caps.max_gsis)))
}

fn little_endian(data: &[u8]) -> u64 {
    data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn invalid(what: &'static str, detail: String) -> HypervisorError {
    HypervisorError::Invalid { what, detail }
}

fn refused(operation: &'static str, detail: String, errno: i32) -> Result<(), HypervisorError> {
    Err(HypervisorError::Call { operation, detail, source: io::Error::from_raw_os_error(errno) })
}
