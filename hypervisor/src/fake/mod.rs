//! The recording back end: a hypervisor, VM and vCPUs made of plain data, for tests.
//!
//! Every call is written to a log that the whole machine shares ([`Recorder`]), in order, and any
//! call can be made to fail ([`Fault`]). Beyond recording, a [`FakeVm`] keeps a model of what a
//! kernel would hold (slots, doorbells, routes, irqfds) and refuses what a kernel would refuse, so
//! a test can compare that [`FakeWiring`] before and after an undo. A [`FakeVcpu`] plays a script
//! of accesses and exits in the place of a guest.
//!
//! It makes no system call: an eventfd is known by its descriptor number alone.

mod call;
#[cfg(test)]
mod tests;
mod vcpu;
mod vm;
mod wiring;

use std::sync::Arc;

use parking_lot::Mutex;

pub use self::{
    call::{Call, Entry, Fault, Recorder, VcpuCall},
    vcpu::{FakeKicker, FakeVcpu, Step},
    vm::FakeVm,
    wiring::{FakeDoorbell, FakeIrqfd, FakeWiring},
};
use crate::{Capabilities, Hypervisor, HypervisorError, HypervisorKind, Vm, VmOptions, x86_64::CpuidEntry};

/// A hypervisor that records.
#[derive(Debug)]
pub struct FakeHypervisor {
    capabilities: Capabilities,
    recorder: Arc<Recorder>,
    vms: Mutex<Vec<Arc<FakeVm>>>,
}

impl Default for FakeHypervisor {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeHypervisor {
    /// A host that can do everything.
    pub fn new() -> Self {
        Self::with_capabilities(capable())
    }

    /// A host that can do what is given, and no more.
    pub fn with_capabilities(capabilities: Capabilities) -> Self {
        Self { capabilities, recorder: Arc::default(), vms: Mutex::default() }
    }

    /// The log of this hypervisor and of every VM and vCPU it made.
    pub fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    /// The VMs made so far, oldest first.
    pub fn vms(&self) -> Vec<Arc<FakeVm>> {
        self.vms.lock().clone()
    }
}

impl Hypervisor for FakeHypervisor {
    fn kind(&self) -> HypervisorKind {
        HypervisorKind::Fake
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>, HypervisorError> {
        self.recorder.record(Call::SupportedCpuid)?;
        // Leaf 0 names a vendor and the highest leaf, leaf 1 has what every 64-bit kernel asks for.
        Ok(vec![
            CpuidEntry {
                leaf: 0,
                eax: 1,
                ebx: u32::from_le_bytes(*b"Cumu"),
                edx: u32::from_le_bytes(*b"letF"),
                ecx: u32::from_le_bytes(*b"ake "),
                ..CpuidEntry::default()
            },
            CpuidEntry {
                leaf: 1,
                eax: 0x0005_0650,
                ecx: 1 << 31 | 1 << 26 | 1 << 21 | 1 << 13,
                edx: 1 << 9 | 1 << 6 | 1 << 5 | 1 << 4,
                ..CpuidEntry::default()
            },
            CpuidEntry { leaf: 0x8000_0000, eax: 0x8000_0008, ..CpuidEntry::default() },
            CpuidEntry { leaf: 0x8000_0001, edx: 1 << 29 | 1 << 20 | 1 << 11, ..CpuidEntry::default() },
            CpuidEntry { leaf: 0x8000_0008, eax: 0x3028, ..CpuidEntry::default() },
        ])
    }

    fn check_tsc_khz(&self, khz: u32) -> Result<(), HypervisorError> {
        vcpu::check_tsc_khz(&self.capabilities, khz)
    }

    fn create_vm(&self, options: &VmOptions) -> Result<Arc<dyn Vm>, HypervisorError> {
        let entries = options.dirty_ring_entries;
        self.recorder.record(Call::CreateVm { dirty_ring_entries: entries })?;
        if entries != 0 && (!entries.is_power_of_two() || entries > self.capabilities.dirty_ring_entries) {
            return Err(HypervisorError::Missing { what: "a dirty ring of that size" });
        }
        let vm = Arc::new(FakeVm::empty(self.capabilities.clone(), Arc::clone(&self.recorder)));
        self.vms.lock().push(Arc::clone(&vm));
        Ok(vm)
    }
}

/// The capabilities of a host that can do everything, with the limits of a common KVM host.
pub fn capable() -> Capabilities {
    Capabilities {
        max_vcpus: 1024,
        max_vcpu_id: 4096,
        max_slots: 32764,
        max_gsis: 4096,
        read_only_slots: true,
        doorbell_any_width: true,
        signal_msi: true,
        split_irqchip: true,
        x2apic_ids: true,
        nested_state_size: 4224,
        smm: true,
        manual_dirty_log: true,
        dirty_ring_entries: 65536,
        realtime_clock: true,
        tsc_control: true,
        xsave_size: 4096,
        pit: true,
        immediate_exit: true,
    }
}
