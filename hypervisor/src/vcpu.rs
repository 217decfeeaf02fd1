//! One virtual processor: running it, stopping it, and moving its state.

use crate::{
    HypervisorError,
    x86_64::{CpuidEntry, ReadyRegisters, VcpuState},
};

/// Who answers the guest's port and memory-mapped accesses while a vCPU runs.
///
/// Called on the vCPU's own thread, between two entries of the guest. An address that nobody owns
/// reads as all ones and swallows writes; that is the implementer's business, not the caller's.
pub trait ExitBus {
    /// The guest reads `data.len()` bytes (1, 2 or 4) from `port`.
    fn port_read(&mut self, port: u16, data: &mut [u8]);
    /// The guest writes `data.len()` bytes (1, 2 or 4) to `port`.
    fn port_write(&mut self, port: u16, data: &[u8]);
    /// The guest reads `data.len()` bytes (1 to 8) from `address`.
    fn mmio_read(&mut self, address: u64, data: &mut [u8]);
    /// The guest writes `data.len()` bytes (1 to 8) to `address`.
    fn mmio_write(&mut self, address: u64, data: &[u8]);
}

/// Why [`Vcpu::run`] came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VcpuExit {
    /// An access was answered by the bus; run again.
    Handled,
    /// A kick or a signal asked for attention; nothing was lost.
    Interrupted,
    /// The guest halted and no in-kernel interrupt controller will wake it.
    Halted,
    /// Triple fault, or a reset that the hypervisor noticed.
    Reset,
    /// The guest asked the hypervisor to shut down.
    Shutdown,
    /// A level-triggered interrupt was acknowledged (split interrupt controllers only).
    EndOfInterrupt(u8),
    /// The hypervisor could not go on; the text says where and why.
    Failed(String),
}

/// Makes a vCPU thread come back from [`Vcpu::run`] soon, from any thread.
pub trait VcpuKicker: Send + Sync {
    /// The next or current run returns [`VcpuExit::Interrupted`]. Does not block.
    fn kick(&self);
}

/// A virtual processor. Owned by the one thread that runs it.
pub trait Vcpu: Send {
    /// Index of this vCPU, 0 to the number of vCPUs less one.
    fn index(&self) -> u32;

    /// Gives the guest its CPU identification. Before the first run only.
    ///
    /// # Errors
    /// The hypervisor refuses the table.
    fn set_cpuid(&mut self, entries: &[CpuidEntry]) -> Result<(), HypervisorError>;

    /// Puts the registers in the state that a boot protocol asks for, everything else at reset
    /// values.
    ///
    /// # Errors
    /// The hypervisor refuses a value.
    fn set_ready(&mut self, registers: &ReadyRegisters) -> Result<(), HypervisorError>;

    /// Enters the guest until something needs attention. Accesses are answered through `bus`.
    ///
    /// # Errors
    /// The vCPU cannot be entered at all.
    fn run(&mut self, bus: &mut dyn ExitBus) -> Result<VcpuExit, HypervisorError>;

    /// A handle that other threads use to get this vCPU out of [`run`](Self::run). Must be taken
    /// on the thread that runs the vCPU.
    fn kicker(&mut self) -> Box<dyn VcpuKicker>;

    /// Finishes an access that was answered but not yet delivered to the guest, so that
    /// [`save`](Self::save) sees registers after the instruction. An instruction that makes several
    /// accesses (string I/O, an access over a page boundary) may have more of them to make: `bus`
    /// answers those. No other instruction of the guest is run, and a kick is kept for the next run.
    ///
    /// # Errors
    /// The vCPU cannot be entered.
    fn settle(&mut self, bus: &mut dyn ExitBus) -> Result<(), HypervisorError>;

    /// Everything that makes this vCPU what it is. The vCPU must not be running.
    ///
    /// # Errors
    /// The hypervisor does not hand a part of it out; names the part.
    fn save(&self) -> Result<VcpuState, HypervisorError>;

    /// The inverse of [`save`](Self::save), checked: the state may come from a hostile file.
    ///
    /// # Errors
    /// A part is missing, of the wrong size or refused; names the part.
    fn load(&mut self, state: &VcpuState) -> Result<(), HypervisorError>;

    /// Delivers a non-maskable interrupt.
    ///
    /// # Errors
    /// The hypervisor refuses.
    fn inject_nmi(&self) -> Result<(), HypervisorError>;

    /// Tells the guest's paravirtual clock that it was stopped, so that no soft lockup is reported.
    /// Does nothing where the guest uses no such clock.
    fn notify_pause(&self);
}
