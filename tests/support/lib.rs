//! Support for the end-to-end tests.

pub mod guest;
pub mod qemu;
