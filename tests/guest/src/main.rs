//! The test guest: boots by PVH, goes to ring 3 at once, and does what the tests order over the serial port.
//!
//! Ring 0 holds short stubs only (`boot.s`); all the rest runs in ring 3 with IOPL 3 and every page open to it, so that
//! it runs at native speed even on a host that emulates ring 0, and reaches ports and MMIO itself.
//!
//! It is no operating system: one program, no processes, no protection. docs/test-guest.md describes the orders.

#![no_std]
#![no_main]

mod acpi;
mod apic;
mod boot;
mod cell;
mod clock;
mod cpu;
mod interrupts;
mod io_apic;
mod jobs;
mod memory;
mod pci;
mod program;
mod runtime;
mod serial;
mod smp;
mod start_info;
mod virtio;
