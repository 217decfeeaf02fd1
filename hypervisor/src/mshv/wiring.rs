//! The wiring operations. `address-manager` is their only caller.
//!
//! What the requests look like is decided in pure functions; the calls are `ioctl`s of the partition
//! (`include/uapi/linux/mshv.h`). Limits that differ from KVM: a doorbell is a memory address,
//! never a port; a route is a message, never a pin, and reaches local APIC ids below 256; a page
//! of host memory backs one slot.

use std::{collections::BTreeMap, os::fd::BorrowedFd};

use mshv_bindings::{
    MSHV_IOEVENTFD_BIT_DATAMATCH, MSHV_IOEVENTFD_BIT_DEASSIGN, MSHV_IRQFD_BIT_DEASSIGN,
    MSHV_IRQFD_BIT_RESAMPLE, MSHV_SET_MEM_BIT_EXECUTABLE, MSHV_SET_MEM_BIT_WRITABLE, hv_interrupt_type,
    hv_interrupt_type_HV_X64_INTERRUPT_TYPE_FIXED, mshv_user_ioeventfd, mshv_user_irqfd,
    mshv_user_mem_region,
};
use mshv_ioctls::InterruptRequest;

use super::{
    MAX_GSIS,
    call::{self, invalid},
    slots::PAGE_SIZE,
    vm::MshvVm,
};
use crate::{
    DoorbellSpec, HypervisorError, IoSpace, Irqfd, MemorySlot, MsiMessage, Route, RouteTarget, SlotFlags,
    WiringOps,
};

impl WiringOps for MshvVm {
    fn set_slot(&self, slot: &MemorySlot) -> Result<(), HypervisorError> {
        self.set_memory(slot)
    }

    fn remove_slot(&self, slot: &MemorySlot) -> Result<(), HypervisorError> {
        self.remove_memory(slot)
    }

    fn add_doorbell(&self, doorbell: &DoorbellSpec, event: BorrowedFd<'_>) -> Result<(), HypervisorError> {
        let request = doorbell_request(doorbell, call::raw(event), true)?;
        call::ioeventfd(self.partition(), &request)
            .map_err(|source| call::refused("add doorbell", format!("{doorbell:x?}"), source))
    }

    fn remove_doorbell(&self, doorbell: &DoorbellSpec, event: BorrowedFd<'_>) -> Result<(), HypervisorError> {
        let request = doorbell_request(doorbell, call::raw(event), false)?;
        call::ioeventfd(self.partition(), &request)
            .map_err(|source| call::refused("remove doorbell", format!("{doorbell:x?}"), source))
    }

    fn set_routes(&self, routes: &[Route]) -> Result<(), HypervisorError> {
        let table = routing_table(routes)?;
        call::set_msi_routing(self.partition(), &table).map_err(|source| {
            call::refused("set interrupt routes", format!("({} entries)", routes.len()), source)
        })
    }

    fn add_irqfd(&self, irqfd: &Irqfd<'_>) -> Result<(), HypervisorError> {
        let request = irqfd_request(irqfd, true)?;
        call::irqfd(self.partition(), &request)
            .map_err(|source| call::refused("add irqfd", format!("for GSI {}", irqfd.gsi), source))
    }

    fn remove_irqfd(&self, irqfd: &Irqfd<'_>) -> Result<(), HypervisorError> {
        let request = irqfd_request(irqfd, false)?;
        call::irqfd(self.partition(), &request)
            .map_err(|source| call::refused("remove irqfd", format!("for GSI {}", irqfd.gsi), source))
    }
}

/// The request that maps a slot; the same fields, with another flag, unmap it.
pub(super) fn region(slot: &MemorySlot) -> mshv_user_mem_region {
    let mut flags = 1 << MSHV_SET_MEM_BIT_EXECUTABLE;
    if !slot.flags.contains(SlotFlags::READ_ONLY) {
        flags |= 1 << MSHV_SET_MEM_BIT_WRITABLE;
    }
    mshv_user_mem_region {
        size: slot.size,
        guest_pfn: slot.guest_address / PAGE_SIZE,
        userspace_addr: slot.host_address,
        flags,
        rsvd: [0; 7],
    }
}

fn doorbell_request(
    doorbell: &DoorbellSpec,
    fd: i32,
    add: bool,
) -> Result<mshv_user_ioeventfd, HypervisorError> {
    if doorbell.space == IoSpace::Pio {
        return Err(HypervisorError::Missing { what: "doorbells on I/O ports" });
    }
    match (doorbell.width, doorbell.data_match) {
        (0, None) | (1 | 2 | 4 | 8, _) => {}
        _ => return Err(invalid("doorbell", format!("{doorbell:x?}: a width that cannot be matched"))),
    }
    let mut flags = 0;
    if doorbell.data_match.is_some() {
        flags |= 1 << MSHV_IOEVENTFD_BIT_DATAMATCH;
    }
    if !add {
        flags |= 1 << MSHV_IOEVENTFD_BIT_DEASSIGN;
    }
    Ok(mshv_user_ioeventfd {
        datamatch: doorbell.data_match.unwrap_or(0),
        addr: doorbell.address,
        len: doorbell.width.into(),
        fd,
        flags,
        rsvd: [0; 4],
    })
}

fn irqfd_request(irqfd: &Irqfd<'_>, add: bool) -> Result<mshv_user_irqfd, HypervisorError> {
    check_gsi(irqfd.gsi)?;
    let mut flags = if add { 0 } else { 1 << MSHV_IRQFD_BIT_DEASSIGN };
    let mut resamplefd = 0;
    if let (Some(resample), true) = (irqfd.resample, add) {
        flags |= 1 << MSHV_IRQFD_BIT_RESAMPLE;
        resamplefd = call::raw(resample);
    }
    Ok(mshv_user_irqfd { fd: call::raw(irqfd.event), resamplefd, gsi: irqfd.gsi, flags })
}

fn check_gsi(gsi: u32) -> Result<(), HypervisorError> {
    if gsi < MAX_GSIS { Ok(()) } else { Err(invalid("GSI", format!("{gsi}, the limit is {MAX_GSIS}"))) }
}

/// `struct mshv_user_irq_table`: a count, a reserved word, and for each entry GSI, message address
/// (low, high) and data.
///
/// A message that reaches no local APIC is left out: the guest writes what it likes into an MSI
/// entry, and on hardware such a write is lost too. The driver would refuse the whole table for it,
/// or deliver it somewhere.
pub(super) fn routing_table(routes: &[Route]) -> Result<Vec<u32>, HypervisorError> {
    let mut entries: BTreeMap<u32, Option<MsiMessage>> = BTreeMap::new();
    for route in routes {
        check_gsi(route.gsi)?;
        let RouteTarget::Msi(message) = route.target else {
            return Err(HypervisorError::Missing {
                what: "interrupt controllers with pins (IOAPIC and PIC belong in user space; route the GSI to a message)",
            });
        };
        if entries.insert(route.gsi, decode(&message).is_ok().then_some(message)).is_some() {
            return Err(invalid("interrupt route", format!("GSI {} twice", route.gsi)));
        }
    }
    let mut table = vec![0, 0];
    for (gsi, message) in entries {
        let Some(message) = message else { continue };
        table.extend([gsi, low(message.address), high(message.address), message.data]);
    }
    let count = (table.len() - 2) / 4;
    // No more than there are GSIs.
    if let (Some(first), Ok(count)) = (table.first_mut(), u32::try_from(count)) {
        *first = count;
    }
    Ok(table)
}

/// What raises the interrupt of a message (Intel SDM volume 3, 11.11).
pub(super) fn interrupt_request(message: &MsiMessage) -> Result<InterruptRequest, HypervisorError> {
    let interrupt = decode(message)?;
    Ok(InterruptRequest {
        interrupt_type: interrupt.kind,
        apic_id: interrupt.destination.into(),
        vector: interrupt.vector.into(),
        level_triggered: interrupt.level,
        logical_destination_mode: interrupt.logical,
        long_mode: false,
    })
}

/// An interrupt message, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Interrupt {
    kind: hv_interrupt_type,
    destination: u8,
    vector: u8,
    level: bool,
    logical: bool,
}

fn decode(message: &MsiMessage) -> Result<Interrupt, HypervisorError> {
    let wrong = |why: &str| {
        Err(invalid("interrupt message", format!("{:#x} to {:#x}: {why}", message.data, message.address)))
    };
    if message.address >> 20 != 0xfee {
        return wrong("not an address of the local APICs");
    }
    let [vector, control, ..] = message.data.to_le_bytes();
    // Delivery modes and the hypervisor's interrupt types have the same numbers; 3 and 6 are
    // reserved in messages.
    let kind = hv_interrupt_type_HV_X64_INTERRUPT_TYPE_FIXED + hv_interrupt_type::from(control & 7);
    if matches!(control & 7, 3 | 6) {
        return wrong("a reserved delivery mode");
    }
    if matches!(control & 7, 0 | 1) && vector < 16 {
        return wrong("vectors below 16 are exceptions");
    }
    let [_, destination, ..] = (message.address >> 4).to_le_bytes();
    Ok(Interrupt {
        kind,
        destination,
        vector,
        level: control & 0x80 != 0,
        logical: message.address & 1 << 2 != 0,
    })
}

fn low(address: u64) -> u32 {
    u32::try_from(address & 0xffff_ffff).unwrap_or(0)
}

fn high(address: u64) -> u32 {
    u32::try_from(address >> 32).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use mshv_bindings::{
        hv_interrupt_type_HV_X64_INTERRUPT_TYPE_LOWESTPRIORITY, hv_interrupt_type_HV_X64_INTERRUPT_TYPE_NMI,
        mshv_user_irq_entry, mshv_user_irq_table,
    };
    use proptest::prelude::*;

    use super::*;

    fn message(address: u64, data: u32) -> MsiMessage {
        MsiMessage { address, data, device_id: 0 }
    }

    fn route(gsi: u32, address: u64, data: u32) -> Route {
        Route { gsi, target: RouteTarget::Msi(message(address, data)) }
    }

    #[test]
    fn regions() {
        let slot = MemorySlot {
            slot: 1,
            guest_address: 0x1_0000_0000,
            size: 0x4000,
            host_address: 0x7000_0000,
            flags: SlotFlags::LOG_DIRTY,
        };
        let writable = region(&slot);
        assert_eq!(
            (writable.guest_pfn, writable.size, writable.userspace_addr),
            (0x10_0000, 0x4000, 0x7000_0000)
        );
        assert_eq!(writable.flags, 0b011, "writable, executable, not the unmap bit");
        let read_only = region(&MemorySlot { flags: SlotFlags::READ_ONLY, ..slot });
        assert_eq!(read_only.flags, 0b010);
    }

    #[test]
    fn doorbells() {
        let spec = |width, data_match| DoorbellSpec {
            space: IoSpace::Mmio,
            address: 0xfe00_1000,
            width,
            data_match,
        };
        let request = doorbell_request(&spec(2, Some(7)), 5, true).unwrap();
        assert_eq!((request.addr, request.len, request.datamatch), (0xfe00_1000, 2, 7));
        assert_eq!((request.fd, request.flags), (5, 0b001));
        assert_eq!(doorbell_request(&spec(4, None), 5, true).unwrap().flags, 0, "a width without a value");
        assert_eq!(doorbell_request(&spec(0, None), 5, true).unwrap().len, 0, "any width");
        assert_eq!(doorbell_request(&spec(2, Some(7)), 5, false).unwrap().flags, 0b101);
        for (width, data_match) in [(0, Some(1)), (3, None), (16, None)] {
            let error = doorbell_request(&spec(width, data_match), 5, true).unwrap_err();
            assert!(matches!(error, HypervisorError::Invalid { what: "doorbell", .. }), "{error}");
        }
        let port = DoorbellSpec { space: IoSpace::Pio, ..spec(2, None) };
        let error = doorbell_request(&port, 5, true).unwrap_err();
        assert_eq!(error.to_string(), "the hypervisor lacks doorbells on I/O ports");
    }

    #[test]
    fn irqfds() {
        let (event, resample) = (std::io::stdin(), std::io::stdout());
        let irqfd = Irqfd { gsi: 9, event: event.as_fd(), resample: Some(resample.as_fd()) };
        let add = irqfd_request(&irqfd, true).unwrap();
        assert_eq!((add.fd, add.resamplefd, add.gsi, add.flags), (0, 1, 9, 0b10));
        let remove = irqfd_request(&irqfd, false).unwrap();
        assert_eq!((remove.resamplefd, remove.flags), (0, 0b01));
        let edge = irqfd_request(&Irqfd { resample: None, ..irqfd }, true).unwrap();
        assert_eq!(edge.flags, 0);
        assert!(irqfd_request(&Irqfd { gsi: MAX_GSIS, ..irqfd }, true).is_err());
    }

    #[test]
    fn routes_are_the_kernels_table() {
        let table = routing_table(&[route(24, 0xfee0_1000, 0x4041), route(4095, 0xfee0_f00c, 0x31)]).unwrap();
        assert_eq!(table, [2, 0, 24, 0xfee0_1000, 0, 0x4041, 4095, 0xfee0_f00c, 0, 0x31]);
        assert_eq!(size_of::<mshv_user_irq_table>(), 8);
        assert_eq!(size_of::<mshv_user_irq_entry>(), 16);
        assert_eq!(std::mem::offset_of!(mshv_user_irq_entry, address_lo), 4);
        assert_eq!(std::mem::offset_of!(mshv_user_irq_entry, address_hi), 8);
        assert_eq!(std::mem::offset_of!(mshv_user_irq_entry, data), 12);
        assert_eq!(routing_table(&[]).unwrap(), [0, 0]);
    }

    #[test]
    fn a_message_to_nowhere_is_left_out() {
        let table = routing_table(&[
            route(24, 0, 0),
            route(25, 0x1_fee0_0000, 0x40),
            route(26, 0xfed0_0000, 0x40),
            route(27, 0xfee0_0000, 0x0f),
            route(28, 0xfee0_0000, 0x0340),
            route(29, 0xfee0_0000, 0x40),
        ]);
        assert_eq!(table.unwrap(), [1, 0, 29, 0xfee0_0000, 0, 0x40]);
    }

    #[test]
    fn bad_routes_are_refused_by_name() {
        let pin = Route { gsi: 4, target: RouteTarget::Irqchip { chip: 2, pin: 4 } };
        for (routes, words) in [
            (vec![route(4096, 0xfee0_0000, 0x40)], "GSI: 4096"),
            (vec![route(7, 0xfee0_0000, 0x40), route(7, 0xfee0_0000, 0x41)], "GSI 7 twice"),
            (vec![route(7, 0, 0), route(7, 0xfee0_0000, 0x41)], "GSI 7 twice"),
            (vec![pin], "IOAPIC and PIC belong in user space"),
        ] {
            let error = routing_table(&routes).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn messages_become_interrupts() {
        let request = interrupt_request(&message(0xfee1_2000, 0x0041)).unwrap();
        assert_eq!((request.apic_id, request.vector), (0x12, 0x41));
        assert!(!request.level_triggered && !request.logical_destination_mode);
        assert_eq!(request.interrupt_type, hv_interrupt_type_HV_X64_INTERRUPT_TYPE_FIXED);

        let request = interrupt_request(&message(0xfeef_f00c, 0xc131)).unwrap();
        assert_eq!((request.apic_id, request.vector), (0xff, 0x31));
        assert!(request.level_triggered && request.logical_destination_mode);
        assert_eq!(request.interrupt_type, hv_interrupt_type_HV_X64_INTERRUPT_TYPE_LOWESTPRIORITY);

        let request = interrupt_request(&message(0xfee0_0000, 0x0400)).unwrap();
        assert_eq!(request.interrupt_type, hv_interrupt_type_HV_X64_INTERRUPT_TYPE_NMI);
        assert!(interrupt_request(&MsiMessage::default()).is_err());
    }

    proptest! {
        #[test]
        fn any_message_is_answered(address in any::<u64>(), data in any::<u32>()) {
            let within = message(0xfee0_0000 | address & 0xf_ffff, data);
            for message in [message(address, data), within] {
                if let Ok(request) = interrupt_request(&message) {
                    prop_assert!(request.apic_id <= 255 && request.vector <= 255);
                }
            }
        }
    }
}
