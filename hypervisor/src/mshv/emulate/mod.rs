//! Runs one instruction of the guest in software.
//!
//! The hypervisor stops a vCPU at an access that nothing backs (Hyper-V TLFS, "Intercepts") and
//! hands over the bytes of the instruction, not its meaning. This module decodes it, makes its
//! accesses through an [`Environment`], and changes a [`RegisterFile`]. It is pure: no hypervisor
//! call, no guest memory of its own, and the bytes may be anything (Intel SDM volume 2 says what
//! they do).
//!
//! Known are the forms that drivers use on device memory: `mov` (with `movzx`, `movsx`, `movsxd`,
//! `movbe`, `movnti`), `and`, `or`, `xor`, `add`, `sub`, `cmp`, `test`, `xchg`, and the string
//! instructions `movs`, `stos`, `lods`, `ins`, `outs`. Every other instruction is refused by name.
//! It is not a processor: no segment limits, no alignment checks, no debug traps, and a `lock`
//! prefix changes nothing, because device registers have no other writer in between.
//!
//! The exit handling of the vCPU is its only caller.

mod alu;
mod decode;
mod execute;
#[cfg(test)]
mod native;
mod registers;
mod string;
#[cfg(test)]
mod tests;

pub use decode::{DecodeError, Decoded, MAX_INSTRUCTION_BYTES, Mode};
pub use execute::{Outcome, execute};
pub use registers::{RegisterFile, SegmentSlot};

use thiserror::Error;

/// What an access does to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Data is read.
    Read,
    /// Data is written, or read and then written.
    Write,
}

/// Why an access of the instruction did not happen.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// The guest's page tables do not allow it: #PF (Intel SDM volume 3, 4.7).
    #[error("page fault at {address:#x}, error code {error_code:#x}")]
    Page {
        /// Linear address, as CR2 will show it.
        address: u64,
        /// Error code of the exception.
        error_code: u32,
    },
    /// It runs over the end of the address space: #GP(0).
    #[error("access beyond the end of the address space")]
    Protection,
    /// The hypervisor could not answer; nothing to tell the guest.
    #[error("{0}")]
    Host(String),
}

/// What an instruction reaches outside the registers. Addresses are linear: segmentation is done,
/// paging is not.
pub trait Environment {
    /// Whether the access would be allowed, without making it.
    ///
    /// # Errors
    /// It would not be.
    fn probe(&mut self, address: u64, size: usize, access: Access) -> Result<(), Fault>;

    /// Reads guest memory or a device.
    ///
    /// # Errors
    /// The access is not allowed; nothing was read.
    fn read(&mut self, address: u64, data: &mut [u8]) -> Result<(), Fault>;

    /// Writes guest memory or a device.
    ///
    /// # Errors
    /// The access is not allowed; nothing was written.
    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Fault>;

    /// Reads an I/O port.
    fn port_read(&mut self, port: u16, data: &mut [u8]);

    /// Writes an I/O port.
    fn port_write(&mut self, port: u16, data: &[u8]);
}

/// Why an instruction was not run.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EmulateError {
    /// This emulator does not know it.
    #[error("instruction {name} ({bytes})")]
    Unsupported {
        /// The decoder's name of the form, as in `Cmpxchg_rm32_r32`.
        name: String,
        /// The bytes, in hexadecimal.
        bytes: String,
    },
    /// One of its accesses faulted. The registers are as the processor leaves them at that point:
    /// unchanged, or after the last whole iteration of a repeated string instruction.
    #[error(transparent)]
    Fault(#[from] Fault),
}
