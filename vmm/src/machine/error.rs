//! What can go wrong while a machine is built.

use std::{error::Error, io};

use address_manager::{Conflict, WindowError};
use arch::x86_64::{acpi::AcpiError, cpuid::CpuidError, smbios::SmbiosError};
use devices::pci::SlotError;
use hypervisor::HypervisorError;
use thiserror::Error;
use vm_migration::LoadError;

use super::{attach::AttachError, flash::FlashError, payload::PayloadError};
use crate::{config::ConfigError, cpu::VcpuError, layout::LayoutError, memory::BackingError};

/// A machine could not be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The configuration cannot be.
    #[error("configuration")]
    Config(#[from] ConfigError),
    /// It does not fit the address space or the host.
    #[error("layout")]
    Layout(#[from] LayoutError),
    /// The payload cannot be booted.
    #[error("payload")]
    Payload(#[from] PayloadError),
    /// The firmware in the guest's flash cannot be had again.
    #[error(transparent)]
    Flash(#[from] FlashError),
    /// The machine cannot be described to the guest.
    #[error("ACPI tables")]
    Acpi(#[from] AcpiError),
    /// It cannot be called what it shall be called.
    #[error("platform")]
    Smbios(#[from] SmbiosError),
    /// Memory cannot be had.
    #[error("guest memory")]
    Memory(#[from] BackingError),
    /// Somebody asked for it to be given up.
    #[error("given up, as was asked for")]
    Cancelled,
    /// The hypervisor refuses something.
    #[error("hypervisor")]
    Hypervisor(#[from] HypervisorError),
    /// CPU identification cannot be made.
    #[error("CPU identification")]
    Cpuid(#[from] CpuidError),
    /// What a device needs cannot be opened, or its constructor refuses it.
    #[error("device {id}")]
    Attach {
        /// Which device.
        id: String,
        /// Why.
        #[source]
        source: AttachError,
    },
    /// Two things claim one address.
    #[error("wiring")]
    Conflict(#[from] Conflict),
    /// The place of a device's memory is not free.
    #[error("wiring")]
    Place(#[from] WindowError),
    /// Two devices claim one slot.
    #[error("PCI")]
    Slot(#[from] SlotError),
    /// The commit failed.
    #[error("commit")]
    Commit(#[source] Box<dyn Error + Send + Sync>),
    /// A vCPU failed.
    #[error("processors")]
    Vcpu(#[from] VcpuError),
    /// A saved state does not fit the machine.
    #[error("saved state")]
    State(#[from] LoadError),
    /// The guest's clocks cannot be set forward.
    #[error("the guest's clocks cannot be set forward: {why}")]
    Clock {
        /// Why.
        why: &'static str,
    },
    /// The guest was given what this host's processors do not have.
    #[error("this host's processors lack what the guest uses: {missing}")]
    Processor {
        /// What, by name.
        missing: String,
    },
    /// There would be none left for devices that begin to work.
    #[error("the limit on open files leaves no room for the {needed} that the devices take when they work")]
    Descriptors {
        /// How many.
        needed: u64,
        /// What the next one would be refused with.
        #[source]
        source: io::Error,
    },
    /// The host has no descriptor or thread left.
    #[error("host resources")]
    Host(#[from] io::Error),
}
