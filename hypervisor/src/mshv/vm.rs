//! A partition: its memory, its clock, its vCPUs.

use std::sync::Arc;

use mshv_bindings::{
    MSHV_GPAP_ACCESS_OP_CLEAR, MSHV_GPAP_ACCESS_OP_SET, hv_interrupt_type_HV_X64_INTERRUPT_TYPE_NMI,
    hv_partition_property_code_HV_PARTITION_PROPERTY_PROCESSOR_CLOCK_FREQUENCY,
    hv_partition_property_code_HV_PARTITION_PROPERTY_REFERENCE_TIME,
    hv_partition_property_code_HV_PARTITION_PROPERTY_SYNTHETIC_PROC_FEATURES,
    hv_partition_property_code_HV_PARTITION_PROPERTY_TIME_FREEZE,
    hv_partition_property_code_HV_PARTITION_PROPERTY_UNIMPLEMENTED_MSR_ACTION,
    hv_unimplemented_msr_action_HV_UNIMPLEMENTED_MSR_ACTION_IGNORE_WRITE_READ_ZERO,
};
use mshv_ioctls::{InterruptRequest, Mshv, VmFd};
use parking_lot::RwLock;

use super::{
    MAX_APIC_ID, MAX_SLOTS,
    call::{failed, invalid, with_deposits},
    partition::Features,
    slots::{Change, PAGE_SIZE, SlotTable},
    state,
    vcpu::MshvVcpu,
    wiring,
};
use crate::{
    HypervisorError, IrqchipMode, MemorySlot, MsiMessage, SlotFlags, Vcpu, Vm, WiringOps,
    x86_64::{IrqchipState, VmClock},
};

/// The hypervisor's reference time counts units of 100 ns (TLFS, "Partition reference counter").
const REFERENCE_NS: u64 = 100;

/// What the VM and its vCPUs share. The partition lives until the last of them is gone.
#[derive(Debug)]
pub(super) struct Partition {
    pub fd: VmFd,
    /// Held while a slot is exchanged, so that a vCPU that finds no memory then waits here and tries
    /// again; see [`exits`](super::exits).
    pub slots: RwLock<SlotTable>,
    /// Registers to save, by their MSR numbers.
    pub msrs: Vec<u32>,
    /// TSC frequency, where the hypervisor tells it.
    pub tsc_khz: Option<u32>,
}

impl Partition {
    /// Delivers an NMI to the vCPU with this local APIC id.
    pub fn inject_nmi(&self, apic_id: u8) -> Result<(), HypervisorError> {
        let request = InterruptRequest {
            interrupt_type: hv_interrupt_type_HV_X64_INTERRUPT_TYPE_NMI,
            apic_id: apic_id.into(),
            vector: 0,
            level_triggered: false,
            logical_destination_mode: false,
            long_mode: false,
        };
        with_deposits(|| self.fd.request_virtual_interrupt(&request))
            .map_err(|error| failed("inject NMI", format!("into local APIC {apic_id}"), error))
    }
}

/// One VM.
#[derive(Debug)]
pub(super) struct MshvVm {
    partition: Arc<Partition>,
}

impl MshvVm {
    /// Makes a partition with these features.
    pub fn create(device: &Mshv, features: &Features) -> Result<Self, HypervisorError> {
        let fd = device
            .create_vm_with_args(&features.creation_arguments())
            .map_err(|error| failed("create partition", format!("with {features:x?}"), error))?;
        // Early properties are set between creation and initialization, the others after.
        set_property(
            &fd,
            "synthetic features",
            hv_partition_property_code_HV_PARTITION_PROPERTY_SYNTHETIC_PROC_FEATURES,
            features.synthetic,
        )?;
        with_deposits(|| fd.initialize()).map_err(|error| failed("initialize partition", "", error))?;
        // The default is a fault. Linux guests probe registers that are on every processor of their
        // vendor and not in a partition, early enough to die of it.
        set_property(
            &fd,
            "unknown MSRs",
            hv_partition_property_code_HV_PARTITION_PROPERTY_UNIMPLEMENTED_MSR_ACTION,
            hv_unimplemented_msr_action_HV_UNIMPLEMENTED_MSR_ACTION_IGNORE_WRITE_READ_ZERO.into(),
        )?;
        let supported =
            fd.get_msr_index_list().map_err(|error| failed("list MSRs", "of the partition", error))?;
        let tsc_khz = fd
            .get_partition_property(
                hv_partition_property_code_HV_PARTITION_PROPERTY_PROCESSOR_CLOCK_FREQUENCY,
            )
            .ok()
            .and_then(|hertz| u32::try_from(hertz / 1000).ok())
            .filter(|khz| *khz != 0);
        let partition =
            Partition { fd, slots: RwLock::default(), msrs: state::saved_msrs(&supported), tsc_khz };
        Ok(Self { partition: Arc::new(partition) })
    }

    /// Checks that a guest which has measured that frequency finds it here.
    pub fn check_tsc_khz(&self, khz: u32) -> Result<(), HypervisorError> {
        state::check_tsc(Some(khz), self.partition.tsc_khz)
    }

    /// The partition's descriptor.
    pub fn partition(&self) -> &VmFd {
        &self.partition.fd
    }

    /// Maps a slot or changes its flags.
    pub fn set_memory(&self, slot: &MemorySlot) -> Result<(), HypervisorError> {
        let mut slots = self.partition.slots.write();
        let change = slots.plan(slot, MAX_SLOTS)?;
        let tracked = slot.flags.contains(SlotFlags::LOG_DIRTY);
        match change {
            Change::New => {
                self.map(slot)?;
                slots.insert(*slot);
                if tracked && let Err(error) = self.track(slot, &slots) {
                    slots.remove(slot.slot);
                    // The error that counts is the first.
                    let _ = self.unmap(slot);
                    return Err(error);
                }
            }
            Change::Flags(flags) => {
                let Some(old) = slots.get(slot.slot).copied() else { return Ok(()) };
                if flags.contains(SlotFlags::READ_ONLY) {
                    self.exchange(&old, slot)?;
                    slots.insert(MemorySlot { flags: old.flags ^ SlotFlags::READ_ONLY, ..*slot });
                }
                if flags.contains(SlotFlags::LOG_DIRTY) {
                    slots.insert(*slot);
                    let result = if tracked { self.track(slot, &slots) } else { self.untrack(slot, &slots) };
                    if result.is_err() {
                        slots.insert(MemorySlot { flags: slot.flags ^ SlotFlags::LOG_DIRTY, ..*slot });
                        return result;
                    }
                }
            }
        }
        Ok(())
    }

    /// Unmaps a slot.
    pub fn remove_memory(&self, slot: &MemorySlot) -> Result<(), HypervisorError> {
        let mut slots = self.partition.slots.write();
        let Some(known) = slots.get(slot.slot).copied().filter(|known| known == slot) else {
            return Err(invalid("memory slot", format!("{slot:x?} is not set")));
        };
        self.unmap(&known)?;
        slots.remove(slot.slot);
        // The slot is gone, whatever comes of this: tracking that goes on costs, and harms nothing.
        if known.flags.contains(SlotFlags::LOG_DIRTY)
            && slots.tracked() == 0
            && let Err(error) = self.stop_tracking()
        {
            log::warn!("{}", super::guest::chain(&error));
        }
        Ok(())
    }

    fn map(&self, slot: &MemorySlot) -> Result<(), HypervisorError> {
        with_deposits(|| self.partition.fd.map_user_memory(wiring::region(slot)))
            .map_err(|error| failed("map memory", format!("{slot:x?}"), error))
    }

    fn unmap(&self, slot: &MemorySlot) -> Result<(), HypervisorError> {
        self.partition
            .fd
            .unmap_user_memory(wiring::region(slot))
            .map_err(|error| failed("unmap memory", format!("{slot:x?}"), error))
    }

    /// Maps a slot with other access; for a moment it is not mapped at all.
    fn exchange(&self, old: &MemorySlot, new: &MemorySlot) -> Result<(), HypervisorError> {
        self.unmap(old)?;
        self.map(new).inspect_err(|_| {
            if let Err(error) = self.map(old) {
                log::error!("memory slot {} is lost: {error}", old.slot);
            }
        })
    }

    /// Begins to track a slot that is in the table already.
    fn track(&self, slot: &MemorySlot, slots: &SlotTable) -> Result<(), HypervisorError> {
        // Tracking is the partition's; what is not tracked is just never asked for.
        if slots.tracked() == 1 {
            self.partition
                .fd
                .enable_dirty_page_tracking()
                .map_err(|error| failed("enable dirty page tracking", "", error))?;
        }
        self.dirty_log(slot, MSHV_GPAP_ACCESS_OP_CLEAR).map(|_| ())
    }

    /// Ends the tracking of a slot that is marked as untracked already.
    fn untrack(&self, slot: &MemorySlot, slots: &SlotTable) -> Result<(), HypervisorError> {
        // The hypervisor lets tracking be turned off only when every page counts as dirty again.
        self.dirty_log(slot, MSHV_GPAP_ACCESS_OP_SET)?;
        if slots.tracked() == 0 { self.stop_tracking() } else { Ok(()) }
    }

    fn stop_tracking(&self) -> Result<(), HypervisorError> {
        self.partition
            .fd
            .disable_dirty_page_tracking()
            .map_err(|error| failed("disable dirty page tracking", "", error))
    }

    fn dirty_log(&self, slot: &MemorySlot, operation: u32) -> Result<Vec<u64>, HypervisorError> {
        let wrong = || invalid("memory slot", format!("{slot:x?}"));
        let size = usize::try_from(slot.size).map_err(|_| wrong())?;
        let operation = u8::try_from(operation).map_err(|_| wrong())?;
        with_deposits(|| self.partition.fd.get_dirty_log(slot.guest_address / PAGE_SIZE, size, operation))
            .map_err(|error| failed("read dirty log", format!("of slot {}", slot.slot), error))
    }
}

impl Vm for MshvVm {
    fn wiring(&self) -> &dyn WiringOps {
        self
    }

    fn create_irqchip(&self, mode: IrqchipMode, pit: bool) -> Result<(), HypervisorError> {
        // The local APICs came with the partition.
        match (mode, pit) {
            (IrqchipMode::Split, false) => Ok(()),
            (IrqchipMode::Kernel, _) => {
                Err(HypervisorError::Missing { what: "an IOAPIC and a PIC of its own" })
            }
            (IrqchipMode::Split, true) => {
                Err(HypervisorError::Missing { what: "an interval timer of its own" })
            }
        }
    }

    fn create_vcpu(&self, index: u32, apic_id: u32) -> Result<Box<dyn Vcpu>, HypervisorError> {
        // The hypervisor makes the local APIC id out of the processor's index.
        let id = u8::try_from(apic_id)
            .ok()
            .filter(|id| u32::from(*id) <= MAX_APIC_ID)
            .ok_or_else(|| invalid("local APIC id", format!("{apic_id}, the greatest is {MAX_APIC_ID}")))?;
        let fd = with_deposits(|| self.partition.fd.create_vcpu(id))
            .map_err(|error| failed("create vCPU", format!("{index} with local APIC id {apic_id}"), error))?;
        Ok(Box::new(MshvVcpu::new(Arc::clone(&self.partition), fd, index, id)))
    }

    fn signal_msi(&self, message: &MsiMessage) -> Result<(), HypervisorError> {
        let request = wiring::interrupt_request(message)?;
        with_deposits(|| self.partition.fd.request_virtual_interrupt(&request))
            .map_err(|error| failed("signal interrupt", format!("{message:x?}"), error))
    }

    fn set_irq_line(&self, _gsi: u32, _high: bool) -> Result<(), HypervisorError> {
        Err(HypervisorError::Missing {
            what: "interrupt lines (it has no IOAPIC: one in user space sends messages instead)",
        })
    }

    fn save_irqchip(&self) -> Result<IrqchipState, HypervisorError> {
        // Each local APIC is a part of its vCPU, and there is nothing else.
        Ok(IrqchipState::default())
    }

    fn load_irqchip(&self, state: &IrqchipState) -> Result<(), HypervisorError> {
        match state.parts.first() {
            None => Ok(()),
            Some(part) => {
                Err(invalid("interrupt controller state", format!("part {:?} is unknown", part.name)))
            }
        }
    }

    fn clock(&self) -> Result<VmClock, HypervisorError> {
        let units = self
            .partition
            .fd
            .get_partition_property(hv_partition_property_code_HV_PARTITION_PROPERTY_REFERENCE_TIME)
            .map_err(|error| failed("read reference time", "", error))?;
        Ok(VmClock { guest_ns: units.saturating_mul(REFERENCE_NS), realtime_ns: None, host_tsc: None })
    }

    fn set_clock(&self, clock: &VmClock) -> Result<(), HypervisorError> {
        let property = |name, code, value| set_property(&self.partition.fd, name, code, value);
        let frozen = hv_partition_property_code_HV_PARTITION_PROPERTY_TIME_FREEZE;
        // Time can be set only while it stands.
        property("time freeze", frozen, 1)?;
        let result = property(
            "reference time",
            hv_partition_property_code_HV_PARTITION_PROPERTY_REFERENCE_TIME,
            clock.guest_ns / REFERENCE_NS,
        );
        property("time freeze", frozen, 0)?;
        result
    }

    fn take_dirty_log(&self, slot: u32, size: u64) -> Result<Vec<u64>, HypervisorError> {
        let mut slots = self.partition.slots.write();
        let known = slots.get(slot).copied();
        let Some(known) = known.filter(|s| s.size == size && s.flags.contains(SlotFlags::LOG_DIRTY)) else {
            let why = match known {
                None => "is not set".into(),
                Some(known) if known.size != size => format!("has {:#x} bytes, not {size:#x}", known.size),
                Some(_) => "is not tracked".into(),
            };
            return Err(invalid("memory slot", format!("{slot} {why}")));
        };
        let mut bitmap = self.dirty_log(&known, MSHV_GPAP_ACCESS_OP_CLEAR)?;
        slots.merge_written(slot, &mut bitmap);
        Ok(bitmap)
    }
}

fn set_property(fd: &VmFd, name: &str, code: u32, value: u64) -> Result<(), HypervisorError> {
    with_deposits(|| fd.set_partition_property(code, value))
        .map_err(|error| failed("set partition property", format!("{name} to {value:#x}"), error))
}
