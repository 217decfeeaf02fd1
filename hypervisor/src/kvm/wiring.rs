//! The wiring operations, each one system call. `address-manager` is their only caller.
//!
//! What they cost beyond the call: KVM frees the old memory-slot set, bus array or routing table
//! after a grace period of SRCU. A slot call always waits for one, a doorbell and a routing call may;
//! that is tens of microseconds as long as the VM has registered no interrupt controller, timer or
//! doorbell, and 4 to 8 ms on Linux 6.18 when one was registered shortly before.

use std::os::fd::{AsRawFd, BorrowedFd};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KvmIrqRouting,
    kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
    kvm_userspace_memory_region,
};

use super::{
    call, invalid, ioctl,
    vm::{KvmVm, VmShared},
};
use crate::{
    DoorbellSpec, HypervisorError, IrqchipMode, Irqfd, MemorySlot, Route, RouteTarget, SlotFlags, WiringOps,
};

impl KvmVm {
    fn check_gsi(&self, gsi: u32) -> Result<(), HypervisorError> {
        let limit = self.shared.host.capabilities.max_gsis;
        if gsi < limit {
            return Ok(());
        }
        Err(invalid("GSI", format!("{gsi}, the limit is {limit}")))
    }

    /// KVM takes any number that is one of its four widths; the rest is told in words.
    fn check_doorbell(&self, doorbell: &DoorbellSpec) -> Result<(), HypervisorError> {
        let any_width = self.shared.host.capabilities.doorbell_any_width;
        match (doorbell.width, doorbell.data_match) {
            (0, None) if any_width => Ok(()),
            (0, None) => Err(HypervisorError::Missing { what: "doorbells of any width" }),
            (1 | 2 | 4 | 8, _) => Ok(()),
            _ => Err(invalid("doorbell", format!("{doorbell:x?}: a width that cannot be matched"))),
        }
    }
}

impl WiringOps for KvmVm {
    /// Waits for a grace period, except for the first slots of a VM that has neither vCPU nor
    /// interrupt controller yet.
    fn set_slot(&self, slot: &MemorySlot) -> Result<(), HypervisorError> {
        if slot.size == 0 {
            // To KVM that is a removal.
            return Err(invalid("memory slot", format!("slot {} of no bytes", slot.slot)));
        }
        let mut flags = 0;
        if slot.flags.contains(SlotFlags::READ_ONLY) {
            if !self.shared.host.capabilities.read_only_slots {
                return Err(HypervisorError::Missing { what: "read-only memory slots" });
            }
            flags |= KVM_MEM_READONLY;
        }
        if slot.flags.contains(SlotFlags::LOG_DIRTY) {
            flags |= KVM_MEM_LOG_DIRTY_PAGES;
        }
        let mut slots = self.shared.slots.lock();
        // KVM would move the slot; callers are promised that a slot stays where it is.
        if let Some(old) = slots.get(&slot.slot)
            && old.guest_address != slot.guest_address
        {
            let detail = format!("{}; it is in use at {:#x}", describe(slot), old.guest_address);
            return Err(invalid("memory slot", detail));
        }
        ioctl::set_memory_region(&self.shared.fd, region(slot, slot.size, flags))
            .map_err(|error| call("cannot set memory slot", describe(slot), error))?;
        slots.insert(slot.slot, *slot);
        drop(slots);
        if !slot.flags.contains(SlotFlags::LOG_DIRTY) {
            self.shared.dirty.forget(slot.slot);
        }
        Ok(())
    }

    /// Waits for a grace period: when it comes back, no vCPU uses the slot any more.
    fn remove_slot(&self, slot: &MemorySlot) -> Result<(), HypervisorError> {
        let mut slots = self.shared.slots.lock();
        ioctl::set_memory_region(&self.shared.fd, region(slot, 0, 0))
            .map_err(|error| call("cannot remove memory slot", describe(slot), error))?;
        slots.remove(&slot.slot);
        drop(slots);
        self.shared.dirty.forget(slot.slot);
        Ok(())
    }

    /// Copies the whole bus array, so the n-th doorbell costs O(n); the old array is freed after a
    /// grace period that newer kernels do not wait for.
    fn add_doorbell(&self, doorbell: &DoorbellSpec, event: BorrowedFd<'_>) -> Result<(), HypervisorError> {
        self.check_doorbell(doorbell)?;
        ioctl::ioeventfd(&self.shared.fd, doorbell, event, true)
            .map_err(|error| call("cannot add doorbell", format!("{doorbell:x?}"), error))
    }

    /// Waits for a grace period: when it comes back, the eventfd is not signalled any more.
    fn remove_doorbell(&self, doorbell: &DoorbellSpec, event: BorrowedFd<'_>) -> Result<(), HypervisorError> {
        self.check_doorbell(doorbell)?;
        ioctl::ioeventfd(&self.shared.fd, doorbell, event, false)
            .map_err(|error| call("cannot remove doorbell", format!("{doorbell:x?}"), error))
    }

    /// Costs O(entries), and waits for a grace period.
    fn set_routes(&self, routes: &[Route]) -> Result<(), HypervisorError> {
        for route in routes {
            self.check_gsi(route.gsi)?;
        }
        let entries: Vec<_> = routes.iter().map(|route| entry(&self.shared, route)).collect();
        let refuse = || invalid("routing table", format!("{} entries are too many", routes.len()));
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| refuse())?;
        self.shared
            .fd
            .set_gsi_routing(&table)
            .map_err(|error| call("cannot set", format!("{} interrupt routes", routes.len()), error))
    }

    fn add_irqfd(&self, irqfd: &Irqfd<'_>) -> Result<(), HypervisorError> {
        self.check_gsi(irqfd.gsi)?;
        if irqfd.resample.is_some() {
            if !self.shared.host.details.resample {
                return Err(HypervisorError::Missing { what: "resampling irqfds (KVM_CAP_IRQFD_RESAMPLE)" });
            }
            if self.shared.irqchip.get() != Some(&IrqchipMode::Kernel) {
                return Err(HypervisorError::Missing { what: "an in-kernel IOAPIC for a resampling irqfd" });
            }
        }
        ioctl::irqfd(&self.shared.fd, irqfd, true)
            .map_err(|error| call("cannot add irqfd", describe_irqfd(irqfd), error))
    }

    /// KVM does not say whether the irqfd was connected. When this comes back, no interrupt from the
    /// eventfd is under way.
    fn remove_irqfd(&self, irqfd: &Irqfd<'_>) -> Result<(), HypervisorError> {
        self.check_gsi(irqfd.gsi)?;
        ioctl::irqfd(&self.shared.fd, irqfd, false)
            .map_err(|error| call("cannot remove irqfd", describe_irqfd(irqfd), error))
    }
}

fn region(slot: &MemorySlot, size: u64, flags: u32) -> kvm_userspace_memory_region {
    kvm_userspace_memory_region {
        slot: slot.slot,
        flags,
        guest_phys_addr: slot.guest_address,
        memory_size: size,
        userspace_addr: slot.host_address,
    }
}

fn entry(vm: &VmShared, route: &Route) -> kvm_irq_routing_entry {
    let (type_, u) = match route.target {
        RouteTarget::Msi(message) => {
            let (address_lo, address_hi) = vm.msi_address(message.address);
            let msi =
                kvm_irq_routing_msi { address_lo, address_hi, data: message.data, ..Default::default() };
            (KVM_IRQ_ROUTING_MSI, kvm_irq_routing_entry__bindgen_ty_1 { msi })
        }
        RouteTarget::Irqchip { chip, pin } => {
            let irqchip = kvm_irq_routing_irqchip { irqchip: chip, pin };
            (KVM_IRQ_ROUTING_IRQCHIP, kvm_irq_routing_entry__bindgen_ty_1 { irqchip })
        }
    };
    kvm_irq_routing_entry { gsi: route.gsi, type_, u, ..Default::default() }
}

fn describe(slot: &MemorySlot) -> String {
    format!(
        "{}: guest {:#x}, {:#x} bytes, host {:#x}, {:?}",
        slot.slot, slot.guest_address, slot.size, slot.host_address, slot.flags
    )
}

fn describe_irqfd(irqfd: &Irqfd<'_>) -> String {
    format!("on GSI {}, descriptor {}", irqfd.gsi, irqfd.event.as_raw_fd())
}
