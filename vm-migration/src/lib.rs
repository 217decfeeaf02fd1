//! The state container, the snapshot directory, the migration protocol and its transports.
//!
//! Knows bytes, versions and checksums, and no device: what a section means is the business of
//! whoever saved it. Called by `devices` and `virtio-devices` (the [`State`] of each device) and
//! by `vmm` (snapshots and migration).

pub mod snapshot;
pub mod state;

pub use state::{LoadError, NoState, SaveError, Section, State};
