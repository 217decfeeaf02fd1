//! Support for the end-to-end tests.

pub mod api;
pub mod cumulet;
pub mod golden;
pub mod guest;
pub mod lab;
pub mod monitor;
pub mod qemu;
pub mod saved;
pub mod tap;
