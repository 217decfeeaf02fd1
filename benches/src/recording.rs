//! A VM that writes its wiring calls down and does nothing else, so that what is measured is the
//! address manager. (The fake back end of `hypervisor` checks what a kernel checks, in time that
//! grows with the square of the number of doorbells.)

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use hypervisor::{
    DoorbellSpec, HypervisorError, IrqchipMode, Irqfd, MemorySlot, MsiMessage, Route, Vcpu, Vm, WiringOps,
    x86_64::{IrqchipState, VmClock},
};
use parking_lot::Mutex;

/// A call.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each variant is the method of the same name")]
pub enum Call {
    SetSlot(MemorySlot),
    RemoveSlot(MemorySlot),
    AddDoorbell(DoorbellSpec, RawFd),
    RemoveDoorbell(DoorbellSpec, RawFd),
    SetRoutes(Vec<Route>),
    AddIrqfd(u32, RawFd),
    RemoveIrqfd(u32, RawFd),
}

/// The VM. Has no vCPU, no interrupt controller and no clock.
#[derive(Debug, Default)]
pub struct RecordingVm {
    calls: Mutex<Vec<Call>>,
}

impl RecordingVm {
    /// Hands the calls out and starts anew.
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock())
    }

    fn note(&self, call: Call) -> Result<(), HypervisorError> {
        self.calls.lock().push(call);
        Ok(())
    }
}

impl WiringOps for RecordingVm {
    fn set_slot(&self, slot: &MemorySlot) -> Result<(), HypervisorError> {
        self.note(Call::SetSlot(*slot))
    }

    fn remove_slot(&self, slot: &MemorySlot) -> Result<(), HypervisorError> {
        self.note(Call::RemoveSlot(*slot))
    }

    fn add_doorbell(&self, doorbell: &DoorbellSpec, event: BorrowedFd<'_>) -> Result<(), HypervisorError> {
        self.note(Call::AddDoorbell(*doorbell, event.as_raw_fd()))
    }

    fn remove_doorbell(&self, doorbell: &DoorbellSpec, event: BorrowedFd<'_>) -> Result<(), HypervisorError> {
        self.note(Call::RemoveDoorbell(*doorbell, event.as_raw_fd()))
    }

    fn set_routes(&self, routes: &[Route]) -> Result<(), HypervisorError> {
        self.note(Call::SetRoutes(routes.to_vec()))
    }

    fn add_irqfd(&self, irqfd: &Irqfd<'_>) -> Result<(), HypervisorError> {
        self.note(Call::AddIrqfd(irqfd.gsi, irqfd.event.as_raw_fd()))
    }

    fn remove_irqfd(&self, irqfd: &Irqfd<'_>) -> Result<(), HypervisorError> {
        self.note(Call::RemoveIrqfd(irqfd.gsi, irqfd.event.as_raw_fd()))
    }
}

fn missing<T>() -> Result<T, HypervisorError> {
    Err(HypervisorError::Missing { what: "all but its wiring" })
}

impl Vm for RecordingVm {
    fn wiring(&self) -> &dyn WiringOps {
        self
    }

    fn create_irqchip(&self, _mode: IrqchipMode, _pit: bool) -> Result<(), HypervisorError> {
        missing()
    }

    fn create_vcpu(&self, _index: u32, _apic_id: u32) -> Result<Box<dyn Vcpu>, HypervisorError> {
        missing()
    }

    fn signal_msi(&self, _message: &MsiMessage) -> Result<(), HypervisorError> {
        missing()
    }

    fn set_irq_line(&self, _gsi: u32, _high: bool) -> Result<(), HypervisorError> {
        missing()
    }

    fn save_irqchip(&self) -> Result<IrqchipState, HypervisorError> {
        missing()
    }

    fn load_irqchip(&self, _state: &IrqchipState) -> Result<(), HypervisorError> {
        missing()
    }

    fn clock(&self) -> Result<VmClock, HypervisorError> {
        missing()
    }

    fn set_clock(&self, _clock: &VmClock) -> Result<(), HypervisorError> {
        missing()
    }

    fn take_dirty_log(&self, _slot: u32, _size: u64) -> Result<Vec<u64>, HypervisorError> {
        missing()
    }
}
