//! The ring 0 part, in assembly, and the names that it shares with the program.
//!
//! Called by the VMM (`pvh_start`) and by hardware. Calls `main.rs` through `guest_main`, `ap_main`, `fault_report`.

#![expect(unsafe_code, reason = "the ring 0 stubs are assembly, and their tables are shared with it")]

use core::arch::global_asm;
use core::sync::atomic::AtomicU64;

global_asm!(include_str!("boot.s"), options(att_syntax));

/// Processors that the tables of `boot.s` have room for.
pub const MAX_CPUS: usize = 97;

/// A 16-byte gate of the interrupt descriptor table (Intel SDM volume 3, section 7.14.1).
pub type Gate = [AtomicU64; 2];

unsafe extern "C" {
    /// The root of the page tables.
    pub safe static pml4: [AtomicU64; 512];
    pub safe static gdt: [AtomicU64; 6 + 2 * MAX_CPUS];
    pub safe static tss: [[AtomicU64; 16]; MAX_CPUS];
    pub safe static idt: [Gate; 256];
    /// How often each vector came, on all processors together.
    pub safe static interrupt_counts: [AtomicU64; 256];
    /// How often any vector came.
    pub safe static interrupt_total: AtomicU64;
    /// Top of each application processor's ring 3 stack, set before it starts.
    pub safe static ap_user_stacks: [AtomicU64; MAX_CPUS];
    pub safe static ap_trampoline: u8;
    pub safe static ap_trampoline_end: u8;
    pub safe static interrupt_stubs_x2apic: u8;
    pub safe static interrupt_stubs_xapic: u8;
    pub safe static stub_undefined: u8;
    pub safe static stub_nmi: u8;
    pub safe static stub_spurious: u8;
    pub safe static fault_stubs: u8;
    /// Entered from `cpu.rs` only: takes its arguments in registers of its own choice.
    pub fn service_call();
}

/// Returns the address of a static or of a stub.
pub fn address<T>(symbol: &'static T) -> u64 {
    core::ptr::from_ref(symbol).expose_provenance() as u64
}
