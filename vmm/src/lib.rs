//! Puts Cumulet together: configuration, layout, machine, and the thread that controls it.
//!
//! The road is one: a request becomes a configuration, that a layout, that a machine, whose
//! devices are wired in one transaction. What is absent: the programs (`cumulet`), the devices
//! themselves, and everything that names a hypervisor's own types.

pub mod api;
pub mod config;
pub mod control;
pub mod cpu;
pub mod error;
pub mod events;
pub mod host;
pub mod jobs;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod parallel;
pub mod phases;
pub mod snapshot;
pub mod terminal;
