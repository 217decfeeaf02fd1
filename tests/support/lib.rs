//! Support for the end-to-end tests.

pub mod cumulet;
pub mod guest;
pub mod lab;
pub mod qemu;
