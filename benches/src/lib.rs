//! What the benchmarks share.
//!
//! [`guest`] makes the wiring of a guest with many devices and queues, [`recording`] a VM that only
//! writes its calls down, for what the address manager costs by itself.

pub mod guest;
pub mod recording;
