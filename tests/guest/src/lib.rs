//! What the test guest and the tests on the host must agree on: the memory pattern, the checksum, the grammar of orders,
//! and where the parts of a virtqueue lie.
//!
//! Pure functions, no hardware. The guest (`main.rs`) links it freestanding; the host's tests link it as a library.

#![cfg_attr(not(test), no_std)]

pub mod orders;
pub mod pattern;
pub mod ring;
