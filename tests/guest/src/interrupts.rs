//! The interrupt descriptor table, filled from ring 3, and the report of a fault.
//!
//! The stubs (`boot.s`) count each interrupt by vector; the program reads the counts.

#![expect(unsafe_code, reason = "the fault report is entered from assembly")]

use core::fmt::Write;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::boot::{self, address};
use crate::cpu;
use crate::serial::Serial;

/// Exit code of a guest that took a fault.
pub const EXIT_FAULT: u32 = 0x7e;

const VECTOR_NMI: u8 = 2;
const VECTOR_UNDEFINED: u8 = 6;
const VECTOR_SPURIOUS: u8 = 0xff;
const FIRST_INTERRUPT: u8 = 32;
const STUB_BYTES: u64 = 16;

/// Fills in the faults, and with them the services of ring 0.
pub fn setup_faults() {
    let stubs = address(&boot::fault_stubs);
    for vector in 0..FIRST_INTERRUPT {
        set_gate(vector, stubs + STUB_BYTES * u64::from(vector));
    }
    set_gate(VECTOR_NMI, address(&boot::stub_nmi));
    set_gate(VECTOR_UNDEFINED, address(&boot::stub_undefined));
}

/// Fills in the interrupts. `x2apic` says how the stubs end one.
pub fn setup_interrupts(x2apic: bool) {
    let stubs = address(if x2apic { &boot::interrupt_stubs_x2apic } else { &boot::interrupt_stubs_xapic });
    for vector in FIRST_INTERRUPT..VECTOR_SPURIOUS {
        set_gate(vector, stubs + STUB_BYTES * u64::from(vector));
    }
    set_gate(VECTOR_SPURIOUS, address(&boot::stub_spurious));
}

/// Writes a 64-bit interrupt gate (Intel SDM volume 3, section 7.14.1).
fn set_gate(vector: u8, stub: u64) {
    let gate = &boot::idt[usize::from(vector)];
    let low = stub & 0xffff | 0x08 << 16 | 0x8e00 << 32 | (stub >> 16 & 0xffff) << 48;
    gate[1].store(stub >> 32, Ordering::Relaxed);
    gate[0].store(low, Ordering::Relaxed);
}

/// Returns the count of `vector`, which changes with each interrupt.
pub fn counter(vector: u8) -> &'static AtomicU64 {
    &boot::interrupt_counts[usize::from(vector)]
}

/// Returns the count of all vectors together: the word to wait on for whatever comes next.
pub fn total() -> &'static AtomicU64 {
    &boot::interrupt_total
}

/// Where the fault stubs return to, in ring 3: says what happened and ends the run.
#[unsafe(no_mangle)]
extern "C" fn fault_report(vector: u64, error_code: u64, rip: u64, cr2: u64, rsp: u64) -> ! {
    let _ = writeln!(
        Serial::new(),
        "\nfault vector={vector} error={error_code:#x} rip={rip:#x} cr2={cr2:#x} rsp={rsp:#x}"
    );
    cpu::exit(EXIT_FAULT)
}
