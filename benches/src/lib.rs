//! What the benchmarks share.
//!
//! [`guest`] makes the wiring of a guest with many devices and queues, [`recording`] a VM that only
//! writes its calls down, for what the address manager costs by itself, [`cpu_time`] a clock, [`vm`]
//! runs the test guest in Cumulet and in QEMU, and [`kernel`] makes a guest that says only that it has begun.

pub mod cpu_time;
pub mod guest;
pub mod kernel;
pub mod recording;
pub mod vm;
