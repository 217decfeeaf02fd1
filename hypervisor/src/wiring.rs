//! The operations that change what the kernel holds for a running VM: memory slots, doorbells,
//! interrupt routes and irqfds.
//!
//! `address-manager` is their only caller (a test checks it). Each costs a system call, and on
//! KVM several cost a grace period; see the table in `docs/address-manager.md`.

use std::os::fd::BorrowedFd;

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

use crate::HypervisorError;

bitflags! {
    /// How the guest may use a memory slot.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct SlotFlags: u32 {
        /// Guest writes exit as MMIO writes (KVM API 4.35, `KVM_MEM_READONLY`).
        const READ_ONLY = 1 << 0;
        /// The hypervisor records which pages the guest writes (KVM API 4.35, `KVM_MEM_LOG_DIRTY_PAGES`).
        const LOG_DIRTY = 1 << 1;
    }
}

/// One guest-physical range that the hypervisor backs with host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemorySlot {
    /// Slot number, below [`Capabilities::max_slots`](crate::Capabilities::max_slots).
    pub slot: u32,
    /// First guest-physical address; page-aligned.
    pub guest_address: u64,
    /// Length in bytes; a non-zero multiple of the page size.
    pub size: u64,
    /// Address of the backing memory in this process; page-aligned.
    pub host_address: u64,
    /// Access and tracking flags.
    pub flags: SlotFlags,
}

/// The address space that a doorbell or a handler lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum IoSpace {
    /// Guest-physical memory addresses.
    Mmio,
    /// x86 I/O ports, 0 to 0xffff.
    Pio,
}

/// A guest write that the kernel turns into an eventfd signal (KVM API 4.59, `KVM_IOEVENTFD`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DoorbellSpec {
    /// Which address space the address is in.
    pub space: IoSpace,
    /// The exact address that is written.
    pub address: u64,
    /// Width of the write in bytes: 1, 2, 4 or 8; 0 matches any width (only without `data_match`).
    pub width: u8,
    /// When set, only a write of this value rings.
    pub data_match: Option<u64>,
}

/// A message-signalled interrupt: a write of `data` to `address` (PCI 3.0 section 6.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MsiMessage {
    /// Message address, low and high halves together.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// Device id as the interrupt controller sees it (used by GIC ITS; the BDF on x86 MSHV).
    pub device_id: u32,
}

/// Where a GSI leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RouteTarget {
    /// A message to the local APICs.
    Msi(MsiMessage),
    /// A pin of an in-kernel interrupt controller (0 and 1: the two 8259s, 2: the IOAPIC).
    Irqchip {
        /// Controller number.
        chip: u32,
        /// Pin of that controller.
        pin: u32,
    },
}

/// One entry of the interrupt routing table (KVM API 4.52, `KVM_SET_GSI_ROUTING`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Route {
    /// Global system interrupt number.
    pub gsi: u32,
    /// What raising that GSI does.
    pub target: RouteTarget,
}

/// An eventfd that raises a GSI (KVM API 4.75, `KVM_IRQFD`).
#[derive(Clone, Copy, Debug)]
pub struct Irqfd<'fd> {
    /// GSI to raise when `event` is signalled.
    pub gsi: u32,
    /// The eventfd that raises it.
    pub event: BorrowedFd<'fd>,
    /// For level-triggered lines: signalled when the guest acknowledges the interrupt.
    pub resample: Option<BorrowedFd<'fd>>,
}

/// Changes to a VM's wiring. Every call is one system call and takes effect at once.
pub trait WiringOps: Send + Sync {
    /// Adds a slot, or changes the flags of one whose range and backing are the same.
    ///
    /// The caller keeps the host memory mapped until the slot has been removed.
    ///
    /// # Errors
    /// The slot number, alignment or flags are not accepted, or it overlaps another slot.
    fn set_slot(&self, slot: &MemorySlot) -> Result<(), HypervisorError>;

    /// Removes a slot. `slot` is the value it was set with.
    ///
    /// # Errors
    /// The hypervisor refuses the removal.
    fn remove_slot(&self, slot: &MemorySlot) -> Result<(), HypervisorError>;

    /// Connects a guest write to an eventfd.
    ///
    /// # Errors
    /// The same doorbell exists already, or the kernel's limit is reached.
    fn add_doorbell(&self, doorbell: &DoorbellSpec, event: BorrowedFd<'_>) -> Result<(), HypervisorError>;

    /// Takes away a doorbell that [`add_doorbell`](Self::add_doorbell) made with the same arguments.
    ///
    /// # Errors
    /// There is no such doorbell.
    fn remove_doorbell(&self, doorbell: &DoorbellSpec, event: BorrowedFd<'_>) -> Result<(), HypervisorError>;

    /// Replaces the whole interrupt routing table, the lines of the kernel's controllers included
    /// ([`IrqchipMode::first_routes`](crate::IrqchipMode::first_routes)): one that is not in it leads nowhere.
    ///
    /// # Errors
    /// A GSI is beyond the limit, an entry is invalid, or there is no in-kernel interrupt controller.
    fn set_routes(&self, routes: &[Route]) -> Result<(), HypervisorError>;

    /// Lets an eventfd raise a GSI.
    ///
    /// # Errors
    /// The GSI is beyond the limit or the descriptor is in use.
    fn add_irqfd(&self, irqfd: &Irqfd<'_>) -> Result<(), HypervisorError>;

    /// Disconnects an eventfd that [`add_irqfd`](Self::add_irqfd) connected.
    ///
    /// # Errors
    /// It was not connected.
    fn remove_irqfd(&self, irqfd: &Irqfd<'_>) -> Result<(), HypervisorError>;
}
