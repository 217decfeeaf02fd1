//! What a guest of each processor architecture finds in its memory and registers when it starts:
//! the memory map, the boot protocols, the CPU identification, and the firmware tables.
//!
//! Functions from values to bytes. This crate opens no file, reads no clock, takes no lock and
//! makes no system call; the host is a value that is passed in. `vmm::layout` asks it where things
//! are, and `vmm::machine` copies what it returns into guest memory and registers.

#![forbid(unsafe_code)]

pub mod x86_64;
