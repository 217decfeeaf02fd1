//! What the benchmarks share.
//!
//! [`guest`] makes the wiring of a guest with many devices and queues, [`recording`] a VM that only
//! writes its calls down, for what the address manager costs by itself, [`cpu_time`] a clock, and [`vm`]
//! runs the test guest in Cumulet and in QEMU.

pub mod cpu_time;
pub mod guest;
pub mod recording;
pub mod vm;
