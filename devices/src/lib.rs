//! PCI and platform devices, and what every device is written against: the [`device`] traits, the
//! [`state`] traits and the [`handle`]s.
//!
//! A device is built from its configuration and its handles. It never sees the hypervisor, a path,
//! another device, or whether it is being booted or restored. Called by `virtio-devices` and `vmm`.

pub mod device;
pub mod handle;
pub mod pci;
pub mod platform;
pub mod state;
pub mod terminal;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use device::{Device, Mmio, PauseError, PortIo, SharedDevice};
pub use handle::{DmaMemory, GuestRequest, IrqLine, LineSink, MsiSink, RequestSink};
pub use state::{Persist, Stateful};
