//! The KVM back end (Linux, `Documentation/virt/kvm/api.rst`, called "KVM API" below).
//!
//! [`open`] opens the device and asks it, once, for everything optional: a host without nested
//! state, SMM, a split interrupt controller, a dirty ring or TSC control is an ordinary host. What
//! this back end cannot do without is Linux 4.11 (immediate exit through the run page).
//!
//! Inside: `vm` and `irqchip` make the machine's parts, `wiring` is what `address-manager` calls,
//! `vcpu` runs the guest, `state` saves and loads a vCPU (with `parts`, the pure half that reads
//! untrusted bytes), `dirty` tracks written pages. `ioctl`, `mapping` and `run_page` hold the
//! `unsafe` that kvm-ioctls does not wrap.

mod convert;
mod dirty;
mod exit;
mod ioctl;
mod irqchip;
mod kick;
mod mapping;
mod msr;
mod parts;
mod ring;
mod run_page;
mod state;
#[cfg(test)]
mod tests;
mod vcpu;
mod vm;
mod wiring;

use std::{
    ffi::CString,
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{Arc, OnceLock},
};

use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_EXCEPTION_PAYLOAD,
    KVM_CAP_IOEVENTFD_ANY_LENGTH, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_X86_TRIPLE_FAULT_EVENT,
    KVM_CLOCK_REALTIME, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_MAX_CPUID_ENTRIES,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, kvm_dirty_gfn,
};
use kvm_ioctls::{Cap, Kvm};

pub use self::{
    kick::kick_signal,
    parts::{ParsedIrqchip, ParsedVcpu, parse_irqchip, parse_vcpu},
};
use crate::{Capabilities, Hypervisor, HypervisorError, HypervisorKind, Vm, VmOptions, x86_64::CpuidEntry};

/// Size in bytes of the XSAVE area that every host takes (`struct kvm_xsave`).
const XSAVE_BASE_SIZE: u32 = 4096;

/// Opens `/dev/kvm`.
///
/// # Errors
/// The device is not there, cannot be opened, or speaks another version of the interface.
pub fn open() -> Result<Arc<dyn Hypervisor>, HypervisorError> {
    open_at(Path::new("/dev/kvm"))
}

/// Opens a KVM device node under another name.
///
/// # Errors
/// As [`open`].
pub fn open_at(path: &Path) -> Result<Arc<dyn Hypervisor>, HypervisorError> {
    let refuse = |source: io::Error| HypervisorError::Open { path: path.to_path_buf(), source };
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| refuse(error.into()))?;
    let kvm = Kvm::new_with_path(&name).map_err(|error| match error.errno() {
        libc::ENOENT => HypervisorError::NoDevice { tried: vec![path.to_path_buf()] },
        _ => refuse(error.into()),
    })?;
    let found = kvm.get_api_version();
    if found < 0 {
        // Some other device answers to that name.
        return Err(refuse(io::Error::last_os_error()));
    }
    let expected = KVM_API_VERSION.cast_signed();
    if found != expected {
        return Err(HypervisorError::Version { found, expected });
    }
    let (capabilities, details) = ask(&kvm);
    if !capabilities.immediate_exit {
        return Err(HypervisorError::Missing { what: "immediate exit (KVM_CAP_IMMEDIATE_EXIT, Linux 4.11)" });
    }
    let host = Host { kvm, capabilities, details, msr_indices: OnceLock::new() };
    Ok(Arc::new(KvmHypervisor { host: Arc::new(host) }))
}

/// The host's KVM, shared by everything made from it.
#[derive(Debug)]
struct Host {
    kvm: Kvm,
    capabilities: Capabilities,
    details: Details,
    /// The registers that KVM wants saved, asked for at the first save.
    msr_indices: OnceLock<Vec<u32>>,
}

/// What only this back end needs to know of the host.
#[derive(Clone, Copy, Debug)]
struct Details {
    /// The capability that turns the dirty ring on, 0 without one.
    dirty_ring_capability: u32,
    manual_dirty_log: bool,
    exception_payload: bool,
    triple_fault_event: bool,
    tsc_khz: bool,
    xsave: bool,
    xcrs: bool,
    pit: bool,
    resample: bool,
}

#[derive(Debug)]
struct KvmHypervisor {
    host: Arc<Host>,
}

impl Hypervisor for KvmHypervisor {
    fn kind(&self) -> HypervisorKind {
        HypervisorKind::Kvm
    }

    fn capabilities(&self) -> &Capabilities {
        &self.host.capabilities
    }

    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>, HypervisorError> {
        let table = self
            .host
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| call("cannot ask for", "the supported CPUID".to_owned(), error))?;
        Ok(table.as_slice().iter().map(convert::cpuid_from_kvm).collect())
    }

    fn check_tsc_khz(&self, khz: u32) -> Result<(), HypervisorError> {
        if self.host.capabilities.tsc_control || !self.host.details.tsc_khz {
            return Ok(());
        }
        let asked = |error| call("cannot ask for", "the TSC frequency".to_owned(), error);
        let vm = self.host.kvm.create_vm().map_err(asked)?;
        let have = vm.create_vcpu(0).and_then(|vcpu| vcpu.get_tsc_khz()).map_err(asked)?;
        state::compare_tsc_khz(khz, have)
    }

    fn create_vm(&self, options: &VmOptions) -> Result<Arc<dyn Vm>, HypervisorError> {
        Ok(Arc::new(vm::KvmVm::new(&self.host, options)?))
    }
}

fn ask(kvm: &Kvm) -> (Capabilities, Details) {
    let number = |capability: Cap| u32::try_from(kvm.check_extension_int(capability)).unwrap_or(0);
    let raw = |capability: u32| u32::try_from(kvm.check_extension_raw(capability.into())).unwrap_or(0);
    let has = |capability: Cap| number(capability) != 0;

    let count = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    let entry_size = count(size_of::<kvm_dirty_gfn>());
    let (ring_capability, ring_bytes) = [KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING]
        .into_iter()
        .map(|capability| (capability, raw(capability)))
        .find(|(_, bytes)| *bytes != 0)
        .unwrap_or((0, 0));
    let manual = raw(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE != 0;
    let x2apic = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;

    let details = Details {
        dirty_ring_capability: ring_capability,
        manual_dirty_log: manual,
        exception_payload: raw(KVM_CAP_EXCEPTION_PAYLOAD) != 0,
        triple_fault_event: raw(KVM_CAP_X86_TRIPLE_FAULT_EVENT) != 0,
        tsc_khz: has(Cap::GetTscKhz),
        xsave: has(Cap::Xsave),
        xcrs: has(Cap::Xcrs),
        pit: has(Cap::Pit2) && has(Cap::PitState2),
        resample: has(Cap::IrqfdResample),
    };
    let capabilities = Capabilities {
        max_vcpus: count(kvm.get_max_vcpus()),
        max_vcpu_id: count(kvm.get_max_vcpu_id()),
        max_slots: count(kvm.get_nr_memslots()),
        // The value is the size of the table (KVM API 4.52); GSI numbers are below it too.
        max_gsis: number(Cap::IrqRouting),
        read_only_slots: has(Cap::ReadonlyMem),
        doorbell_any_width: raw(KVM_CAP_IOEVENTFD_ANY_LENGTH) != 0,
        signal_msi: has(Cap::SignalMsi),
        split_irqchip: has(Cap::SplitIrqchip),
        x2apic_ids: number(Cap::X2ApicApi) & x2apic == x2apic,
        nested_state_size: number(Cap::NestedState),
        smm: has(Cap::X86Smm),
        manual_dirty_log: manual,
        dirty_ring_entries: ring_bytes / entry_size,
        realtime_clock: number(Cap::AdjustClock) & KVM_CLOCK_REALTIME != 0,
        tsc_control: has(Cap::TscControl),
        xsave_size: if details.xsave { number(Cap::Xsave2).max(XSAVE_BASE_SIZE) } else { 0 },
        pit: details.pit,
        immediate_exit: has(Cap::ImmediateExit),
    };
    (capabilities, details)
}

/// An error of a kernel request.
fn call(operation: &'static str, detail: String, source: impl Into<io::Error>) -> HypervisorError {
    HypervisorError::Call { operation, detail, source: source.into() }
}

fn invalid(what: &'static str, detail: impl Into<String>) -> HypervisorError {
    HypervisorError::Invalid { what, detail: detail.into() }
}
