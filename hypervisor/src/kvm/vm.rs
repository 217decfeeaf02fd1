//! A VM of KVM.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use kvm_bindings::{
    KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X2APIC_API, KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_CLOCK_HOST_TSC,
    KVM_CLOCK_REALTIME, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, kvm_clock_data,
    kvm_enable_cap, kvm_msi,
};
use kvm_ioctls::VmFd;
use parking_lot::Mutex;

use super::{Host, call, dirty::DirtyTracking, invalid, irqchip, msr::SavedMsrs, vcpu::KvmVcpu};
use crate::{
    HypervisorError, IrqchipMode, MemorySlot, MsiMessage, Vcpu, Vm, VmOptions, WiringOps,
    x86_64::{IrqchipState, VmClock},
};

/// KVM_CREATE_VM takes locks that a signal interrupts; so often in a row it never does.
const CREATE_ATTEMPTS: usize = 100;

/// A VM: a thin handle on what its vCPUs share with it.
#[derive(Debug)]
pub(super) struct KvmVm {
    pub(super) shared: Arc<VmShared>,
}

/// What a VM and its vCPUs share.
#[derive(Debug)]
pub(super) struct VmShared {
    pub(super) fd: VmFd,
    pub(super) host: Arc<Host>,
    /// Set once, by `create_irqchip`.
    pub(super) irqchip: OnceLock<IrqchipMode>,
    /// The slots as KVM has them: it writes a dirty bitmap as long as the *slot*, whatever the
    /// length of the buffer that it is given.
    pub(super) slots: Mutex<BTreeMap<u32, MemorySlot>>,
    pub(super) dirty: DirtyTracking,
    /// Which MSRs a vCPU of this VM has, found out at the first save.
    pub(super) msrs: Mutex<Option<SavedMsrs>>,
}

impl VmShared {
    /// Turns a capability of the VM on (KVM API 4.37).
    pub(super) fn enable(
        &self,
        what: &'static str,
        capability: u32,
        arguments: [u64; 2],
    ) -> Result<(), HypervisorError> {
        let [first, second] = arguments;
        let request =
            kvm_enable_cap { cap: capability, args: [first, second, 0, 0], ..kvm_enable_cap::default() };
        self.fd.enable_cap(&request).map_err(|error| call("cannot enable", what.to_owned(), error))
    }
}

impl KvmVm {
    pub(super) fn new(host: &Arc<Host>, options: &VmOptions) -> Result<Self, HypervisorError> {
        let dirty = DirtyTracking::new(host, options.dirty_ring_entries)?;
        let mut attempts = 0;
        let fd = loop {
            match host.kvm.create_vm() {
                Ok(fd) => break fd,
                Err(error) if error.errno() == libc::EINTR && attempts < CREATE_ATTEMPTS => attempts += 1,
                Err(error) => return Err(call("cannot create", "a VM".to_owned(), error)),
            }
        };
        let shared = VmShared {
            fd,
            host: Arc::clone(host),
            irqchip: OnceLock::new(),
            slots: Mutex::default(),
            dirty,
            msrs: Mutex::default(),
        };
        // Both must be on before the first vCPU, and make its events complete: an exception whose
        // side effects are still to come, and a triple fault that is still to be delivered.
        if host.details.exception_payload {
            shared.enable("exception payloads", KVM_CAP_EXCEPTION_PAYLOAD, [1, 0])?;
        }
        if host.details.triple_fault_event {
            shared.enable("triple fault events", KVM_CAP_X86_TRIPLE_FAULT_EVENT, [1, 0])?;
        }
        if host.capabilities.x2apic_ids {
            // MSI messages and LAPIC state carry 32-bit ids from here on (KVM API 7.7).
            let flags = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
            shared.enable("32-bit x2APIC ids", KVM_CAP_X2APIC_API, [flags.into(), 0])?;
        }
        shared.dirty.enable(&shared)?;
        Ok(Self { shared: Arc::new(shared) })
    }

    fn need_irqchip(&self) -> Result<(), HypervisorError> {
        match self.shared.irqchip.get() {
            Some(_) => Ok(()),
            None => Err(HypervisorError::Missing { what: "an in-kernel interrupt controller" }),
        }
    }
}

impl Vm for KvmVm {
    fn wiring(&self) -> &dyn WiringOps {
        self
    }

    /// Every wiring call after this one may wait for a grace period of the kernel (milliseconds).
    fn create_irqchip(&self, mode: IrqchipMode, pit: bool) -> Result<(), HypervisorError> {
        irqchip::create(&self.shared, mode, pit)
    }

    fn create_vcpu(&self, index: u32, apic_id: u32) -> Result<Box<dyn Vcpu>, HypervisorError> {
        Ok(Box::new(KvmVcpu::new(&self.shared, index, apic_id)?))
    }

    fn signal_msi(&self, message: &MsiMessage) -> Result<(), HypervisorError> {
        if !self.shared.host.capabilities.signal_msi {
            return Err(HypervisorError::Missing { what: "interrupts by message (KVM_CAP_SIGNAL_MSI)" });
        }
        self.need_irqchip()?;
        let (address_lo, address_hi) = self.shared.msi_address(message.address);
        let request = kvm_msi { address_lo, address_hi, data: message.data, ..kvm_msi::default() };
        // A result of 0 says that the guest has masked the interrupt, and KVM's -1 for "no such
        // destination" arrives as EPERM. Both are of the guest's making: as on hardware, it is lost.
        match self.shared.fd.signal_msi(request) {
            Ok(_) => Ok(()),
            Err(error) if error.errno() == libc::EPERM => Ok(()),
            Err(error) => Err(call("cannot send", format!("MSI {message:x?}"), error)),
        }
    }

    fn set_irq_line(&self, gsi: u32, high: bool) -> Result<(), HypervisorError> {
        self.need_irqchip()?;
        self.shared
            .fd
            .set_irq_line(gsi, high)
            .map_err(|error| call("cannot set", format!("GSI line {gsi} to {high}"), error))
    }

    fn save_irqchip(&self) -> Result<IrqchipState, HypervisorError> {
        irqchip::save(&self.shared)
    }

    fn load_irqchip(&self, state: &IrqchipState) -> Result<(), HypervisorError> {
        irqchip::load(&self.shared, state)
    }

    fn clock(&self) -> Result<VmClock, HypervisorError> {
        let data = self
            .shared
            .fd
            .get_clock()
            .map_err(|error| call("cannot read", "the guest's clock".to_owned(), error))?;
        let given = |flag: u32, value: u64| (data.flags & flag != 0).then_some(value);
        Ok(VmClock {
            guest_ns: data.clock,
            realtime_ns: given(KVM_CLOCK_REALTIME, data.realtime),
            host_tsc: given(KVM_CLOCK_HOST_TSC, data.host_tsc),
        })
    }

    /// With `realtime_ns`, and on a host that can, the clock is set forward by the time that has
    /// passed since; without, it goes on from `guest_ns`.
    fn set_clock(&self, clock: &VmClock) -> Result<(), HypervisorError> {
        let mut data = kvm_clock_data { clock: clock.guest_ns, ..kvm_clock_data::default() };
        if let Some(realtime) = clock.realtime_ns
            && self.shared.host.capabilities.realtime_clock
        {
            data.realtime = realtime;
            data.flags = KVM_CLOCK_REALTIME;
        }
        self.shared
            .fd
            .set_clock(&data)
            .map_err(|error| call("cannot set", format!("the guest's clock to {clock:?}"), error))
    }

    /// With a dirty ring, a page that a running vCPU has written since it last came back may be
    /// reported by the next call only: make the last one with every vCPU stopped.
    fn take_dirty_log(&self, slot: u32, size: u64) -> Result<Vec<u64>, HypervisorError> {
        // Held all along: KVM's idea of the slot's size must not change under the buffer.
        let slots = self.shared.slots.lock();
        match slots.get(&slot) {
            Some(memory) if memory.size == size => self.shared.dirty.take(&self.shared, &slots, memory),
            Some(memory) => {
                let detail = format!("slot {slot} has {:#x} bytes, not {size:#x}", memory.size);
                Err(invalid("dirty log request", detail))
            }
            None => Err(invalid("dirty log request", format!("there is no slot {slot}"))),
        }
    }
}

impl VmShared {
    /// A message's address in KVM's halves.
    ///
    /// With 32-bit x2APIC ids the high half holds the upper 24 bits of the destination, and KVM refuses
    /// what has a bit below them, a whole routing table for one entry. A guest may write anything into
    /// its MSI-X tables, so these bits are dropped, as KVM itself drops the half where ids have 8 bits.
    pub(super) fn msi_address(&self, address: u64) -> (u32, u32) {
        let extended = self.host.capabilities.x2apic_ids && self.irqchip.get() == Some(&IrqchipMode::Split);
        let [a, b, c, d, _, f, g, h] = if extended { widen(address) } else { address }.to_le_bytes();
        (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([0, f, g, h]))
    }
}

/// Moves bits 14 to 8 of the destination from where the guest has them (bits 11 to 5, if KVM_FEATURE_MSI_EXT_DEST_ID
/// was announced to it) to where KVM has them.
fn widen(address: u64) -> u64 {
    const EXTENDED: u64 = 0x7f << 5;
    address & !EXTENDED | (address & EXTENDED) << 35
}

#[cfg(test)]
mod tests {
    use super::widen;

    #[test]
    fn extended_destinations_move_to_the_high_half() {
        assert_eq!(widen(0xfee3_4000), 0xfee3_4000);
        assert_eq!(widen(0xfee3_4004 | 0x12 << 5), 0x1200_fee3_4004);
        assert_eq!(widen(0x100_fee0_0fe0), 0x7f00_fee0_0000);
    }
}
