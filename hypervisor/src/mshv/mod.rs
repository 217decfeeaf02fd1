//! The MSHV back end: Linux as the root partition of the Microsoft Hypervisor, `/dev/mshv`.
//!
//! **It has not run on a real host.** It was written against the driver's interface
//! (`include/uapi/linux/mshv.h`, `drivers/hv/mshv_*.c`), the Hyper-V Top Level Functional
//! Specification (called "TLFS" below) and mshv-ioctls, on a machine without the device. What could
//! be made a pure function is one and is tested; the hypercalls and `ioctl`s behind them are
//! compiled and linted, no more.
//!
//! What differs from KVM, and what a machine must know:
//! * Local APICs are in the hypervisor and there is no IOAPIC, PIC or timer: the interrupt
//!   controllers are [`Split`](crate::IrqchipMode::Split), lines are refused, routes are messages.
//!   Local APIC ids end at 254.
//! * Doorbells are on memory addresses, never on ports.
//! * An access to a device comes back as an instruction, which `emulate` runs.
//! * A run has no flag that ends it before it begins: `kick` repeats its signal.
//! * Tracking of written pages is the whole partition's; the slots say which of it is looked at.
//! * There is no control over the TSC, no state of nested guests, and of the extended state what is
//!   up to AVX.
//!
//! Inside, pure: `emulate`, `exits` (what is done about an intercept), `guest` (what an instruction
//! reaches), `message`, `partition`, `cpuid`, `state`, `slots`, most of `wiring` and `registers`.
//! With system calls: `call`, `kick`, `vm`, `vcpu`, and [`open`].
#![cfg(target_arch = "x86_64")]

mod call;
mod cpuid;
mod emulate;
mod exits;
mod guest;
mod kick;
mod message;
mod partition;
mod registers;
mod slots;
mod state;
mod vcpu;
mod vm;
mod wiring;

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use mshv_bindings::{
    hv_partition_property_code_HV_PARTITION_PROPERTY_ASSIGNABLE_SYNTHETIC_PROC_FEATURES,
    hv_partition_property_code_HV_PARTITION_PROPERTY_MAX_XSAVE_DATA_SIZE,
    hv_partition_property_code_HV_PARTITION_PROPERTY_PROCESSOR_FEATURES0,
    hv_partition_property_code_HV_PARTITION_PROPERTY_PROCESSOR_FEATURES1,
    hv_partition_property_code_HV_PARTITION_PROPERTY_PROCESSOR_XSAVE_FEATURES,
    hv_partition_property_code_HV_PARTITION_PROPERTY_VMM_CAPABILITIES,
};
use mshv_ioctls::Mshv;

use self::{call::failed, partition::Features, vm::MshvVm};
use crate::{Capabilities, Hypervisor, HypervisorError, HypervisorKind, Vm, VmOptions, x86_64::CpuidEntry};

/// Processors of one partition (`MSHV_MAX_VPS`), less the broadcast id.
const MAX_VCPUS: u32 = 255;
/// Greatest local APIC id; 255 means all of them.
const MAX_APIC_ID: u32 = 254;
/// Entries of the routing table (`MSHV_MAX_GUEST_IRQS`).
const MAX_GSIS: u32 = 4096;
/// The driver keeps its regions in a list of any length and looks through it at each call.
const MAX_SLOTS: u32 = 1024;
/// The property's bit that says that synthetic features can be asked for by name.
const ASSIGNABLE_SYNTHETIC_FEATURES: u64 = 1 << 4;

/// Opens `/dev/mshv`.
///
/// # Errors
/// The device is not there, cannot be opened, or does not answer as one.
pub fn open() -> Result<Arc<dyn Hypervisor>, HypervisorError> {
    open_at(Path::new("/dev/mshv"))
}

/// Opens an MSHV device node under another name.
///
/// # Errors
/// As [`open`].
pub fn open_at(path: &Path) -> Result<Arc<dyn Hypervisor>, HypervisorError> {
    let refuse = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => HypervisorError::NoDevice { tried: vec![path.to_path_buf()] },
        _ => HypervisorError::Open { path: path.to_path_buf(), source },
    };
    let file = File::open(path).map_err(refuse)?;
    let own = file.try_clone().map_err(refuse)?;
    let device = take(file.into());
    // The first answer also tells whether this is the device that its name promises.
    let first = device
        .get_host_partition_property(hv_partition_property_code_HV_PARTITION_PROPERTY_PROCESSOR_FEATURES0)
        .map_err(|error| refuse(call::io_error(error)))?;
    let property = |name: &'static str, code| {
        device.get_host_partition_property(code).map_err(|error| failed("read host property", name, error))
    };
    let host = Features {
        processor: [
            first,
            property(
                "processor features",
                hv_partition_property_code_HV_PARTITION_PROPERTY_PROCESSOR_FEATURES1,
            )?,
        ],
        xsave: property(
            "XSAVE features",
            hv_partition_property_code_HV_PARTITION_PROPERTY_PROCESSOR_XSAVE_FEATURES,
        )?,
        synthetic: 0,
    };
    let xsave_size =
        property("XSAVE size", hv_partition_property_code_HV_PARTITION_PROPERTY_MAX_XSAVE_DATA_SIZE)
            .ok()
            .and_then(|size| u32::try_from(size).ok())
            .unwrap_or(0);
    // An older hypervisor does not know the question.
    let bank = |code| call::host_property_bank(own.as_fd(), code);
    let assignable = bank(hv_partition_property_code_HV_PARTITION_PROPERTY_VMM_CAPABILITIES)
        .ok()
        .filter(|capabilities| capabilities & ASSIGNABLE_SYNTHETIC_FEATURES != 0)
        .map(|_| bank(hv_partition_property_code_HV_PARTITION_PROPERTY_ASSIGNABLE_SYNTHETIC_PROC_FEATURES))
        .transpose()
        .map_err(|error| failed("read host property", "assignable synthetic features", error))?;
    let features = Features::for_guest(&host, assignable);
    Ok(Arc::new(MshvHypervisor { device, features, capabilities: capabilities(xsave_size) }))
}

#[expect(unsafe_code, reason = "mshv-ioctls takes a descriptor by number")]
fn take(fd: OwnedFd) -> Mshv {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor is open, and nobody else owns it any more.
    unsafe { Mshv::new_with_fd_number(fd.into_raw_fd()) }
}

fn capabilities(xsave_size: u32) -> Capabilities {
    Capabilities {
        max_vcpus: MAX_VCPUS,
        max_vcpu_id: MAX_APIC_ID + 1,
        max_slots: MAX_SLOTS,
        max_gsis: MAX_GSIS,
        read_only_slots: true,
        doorbell_any_width: true,
        signal_msi: true,
        split_irqchip: true,
        x2apic_ids: false,
        nested_state_size: 0,
        smm: false,
        manual_dirty_log: false,
        dirty_ring_entries: 0,
        realtime_clock: false,
        tsc_control: false,
        xsave_size,
        pit: false,
        immediate_exit: false,
    }
}

/// The opened device.
#[derive(Debug)]
struct MshvHypervisor {
    device: Mshv,
    /// What every partition gets.
    features: Features,
    capabilities: Capabilities,
}

impl Hypervisor for MshvHypervisor {
    fn kind(&self) -> HypervisorKind {
        HypervisorKind::Mshv
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>, HypervisorError> {
        Ok(cpuid::supported(&self.features))
    }

    fn check_tsc_khz(&self, khz: u32) -> Result<(), HypervisorError> {
        MshvVm::create(&self.device, &self.features)?.check_tsc_khz(khz)
    }

    fn create_vm(&self, options: &VmOptions) -> Result<Arc<dyn Vm>, HypervisorError> {
        if options.dirty_ring_entries != 0 {
            return Err(HypervisorError::Missing { what: "a dirty ring" });
        }
        Ok(Arc::new(MshvVm::create(&self.device, &self.features)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(path: &str) -> HypervisorError {
        match open_at(Path::new(path)) {
            Ok(_) => panic!("{path} is no hypervisor"),
            Err(error) => error,
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_named() {
        let error = refused("/dev/no-such-hypervisor");
        assert_eq!(error.to_string(), "no hypervisor: /dev/no-such-hypervisor is not there");
    }

    #[test]
    fn a_device_that_is_another_one_is_named() {
        let error = refused("/dev/null");
        assert_eq!(error.to_string(), "cannot open hypervisor device /dev/null");
        let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
        assert_eq!(source.and_then(io::Error::raw_os_error), Some(libc::ENOTTY));
    }

    #[test]
    fn a_node_that_cannot_be_opened_is_named() {
        // A directory in place of a file is refused to every user, root included.
        let error = refused("/dev/null/mshv");
        assert!(error.to_string().contains("/dev/null/mshv"), "{error}");
        assert!(matches!(error, HypervisorError::Open { .. }), "{error:?}");
    }

    #[test]
    fn the_limits_fit_together() {
        let capabilities = capabilities(832);
        assert!(capabilities.max_vcpus <= capabilities.max_vcpu_id);
        assert_eq!(capabilities.xsave_size, 832);
    }
}
