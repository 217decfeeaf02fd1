//! A hypervisor, and a VM of it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    Capabilities, HypervisorError, HypervisorKind, MsiMessage, Route, RouteTarget, Vcpu, WiringOps,
    x86_64::{CpuidEntry, IrqchipState, VmClock},
};

/// Where the interrupt controllers live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IrqchipMode {
    /// Local APICs, IOAPIC and PIC in the kernel.
    Kernel,
    /// Local APICs in the kernel; IOAPIC and PIC, if any, in this process. Where the hypervisor has x2APIC ids
    /// ([`Capabilities::x2apic_ids`]), bits 11 to 5 of a message's address are bits 14 to 8 of its destination.
    Split,
}

impl IrqchipMode {
    /// The routing table that a VM begins with when it has just been given such controllers: each line of a PC leads to
    /// the IOAPIC's pin of the same number, and the first 16 to the 8259s as well. The next table takes its place, and
    /// lines that are not in it lead nowhere.
    pub fn first_routes(self) -> Vec<Route> {
        let lines = match self {
            Self::Kernel => 0..IOAPIC_PINS,
            Self::Split => 0..0,
        };
        let to = |gsi, chip, pin| Route { gsi, target: RouteTarget::Irqchip { chip, pin } };
        let places = |line: u32| {
            let pic = (line < 2 * PIC_PINS).then(|| to(line, line / PIC_PINS, line % PIC_PINS));
            [Some(to(line, IOAPIC, line)), pic].into_iter().flatten()
        };
        lines.flat_map(places).collect()
    }
}

/// Number of the IOAPIC among the controllers of [`RouteTarget::Irqchip`], and its pins.
const IOAPIC: u32 = 2;
const IOAPIC_PINS: u32 = 24;
/// Pins of each of the two 8259s.
const PIC_PINS: u32 = 8;

/// What is fixed when a VM is created.
#[derive(Clone, Debug, Default)]
pub struct VmOptions {
    /// Dirty ring entries per vCPU, a power of two; 0 tracks dirty pages by bitmap.
    pub dirty_ring_entries: u32,
}

/// The host's hypervisor.
pub trait Hypervisor: Send + Sync {
    /// Which back end this is.
    fn kind(&self) -> HypervisorKind;

    /// What it can do. Asked of the host once, at open.
    fn capabilities(&self) -> &Capabilities;

    /// The CPU identification that the host and the hypervisor can give a guest.
    ///
    /// # Errors
    /// The hypervisor does not hand it out.
    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>, HypervisorError>;

    /// Checks that the time stamp counters of a guest that has measured `khz` can count at that rate, which loading a
    /// vCPU's state asks for. The host says how fast they count only through a VM, so this may make one, without memory,
    /// and drop it again.
    ///
    /// # Errors
    /// They count at another rate and cannot be scaled, or the host cannot be asked.
    fn check_tsc_khz(&self, khz: u32) -> Result<(), HypervisorError>;

    /// Makes an empty VM: no memory, no vCPU, no interrupt controller.
    ///
    /// # Errors
    /// The hypervisor refuses, or an option needs an ability that the host lacks.
    fn create_vm(&self, options: &VmOptions) -> Result<Arc<dyn Vm>, HypervisorError>;
}

/// One virtual machine. Dropping the last reference tears it down in the kernel as a whole.
pub trait Vm: Send + Sync {
    /// The operations that `address-manager`, and nobody else, may call.
    fn wiring(&self) -> &dyn WiringOps;

    /// Creates the interrupt controllers and, if asked for, the interval timer. To be called once
    /// the first memory slots are set and before the first vCPU is made. The routing table is then that of
    /// [`IrqchipMode::first_routes`].
    ///
    /// # Errors
    /// The hypervisor lacks that mode.
    fn create_irqchip(&self, mode: IrqchipMode, pit: bool) -> Result<(), HypervisorError>;

    /// Creates a vCPU. `apic_id` is its local APIC id.
    ///
    /// # Errors
    /// The id is beyond the hypervisor's limit or taken.
    fn create_vcpu(&self, index: u32, apic_id: u32) -> Result<Box<dyn Vcpu>, HypervisorError>;

    /// Sends an interrupt by message, without a route.
    ///
    /// # Errors
    /// The message is refused, or the host lacks the ability (see
    /// [`Capabilities::signal_msi`](crate::Capabilities::signal_msi)).
    fn signal_msi(&self, message: &MsiMessage) -> Result<(), HypervisorError>;

    /// Raises or lowers a GSI line.
    ///
    /// # Errors
    /// There is no interrupt controller, or no such line.
    fn set_irq_line(&self, gsi: u32, high: bool) -> Result<(), HypervisorError>;

    /// State of the in-kernel interrupt controllers and timer.
    ///
    /// # Errors
    /// The hypervisor does not hand it out.
    fn save_irqchip(&self) -> Result<IrqchipState, HypervisorError>;

    /// The inverse of [`save_irqchip`](Self::save_irqchip).
    ///
    /// # Errors
    /// A part is of the wrong size or refused.
    fn load_irqchip(&self, state: &IrqchipState) -> Result<(), HypervisorError>;

    /// The guest's paravirtual clock now.
    ///
    /// # Errors
    /// The hypervisor does not hand it out.
    fn clock(&self) -> Result<VmClock, HypervisorError>;

    /// Sets the guest's paravirtual clock.
    ///
    /// # Errors
    /// The hypervisor refuses.
    fn set_clock(&self, clock: &VmClock) -> Result<(), HypervisorError>;

    /// Pages of a slot written since the last call, one bit a page, lowest address first, and
    /// starts a new period. The slot must have [`LOG_DIRTY`](crate::SlotFlags::LOG_DIRTY).
    ///
    /// # Errors
    /// The slot is unknown or not tracked.
    fn take_dirty_log(&self, slot: u32, size: u64) -> Result<Vec<u64>, HypervisorError>;
}
