//! What Cumulet asks of a hypervisor, as traits, and the back ends that answer.
//!
//! This is the lowest crate of the house and the only one that names a KVM or MSHV type: every
//! signature here is made of plain data of our own. It holds no policy. Who decides *when* the
//! guest's memory slots, doorbells and interrupt routes change is `address-manager`, the only
//! caller of [`WiringOps`]; who builds a machine out of a [`Vm`] and its [`Vcpu`]s is `vmm`.
//!
//! Back ends: `kvm` (feature `kvm`, the default), `mshv` (feature `mshv`), and [`fake`] (feature
//! `testing`), which records every call and can fail the k-th, so that all of `vmm` runs without a
//! hypervisor device.

pub mod capabilities;
pub mod error;
pub mod event;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
#[cfg(feature = "kvm")]
pub mod kvm;
#[cfg(feature = "mshv")]
pub mod mshv;
pub mod open;
pub mod vcpu;
pub mod vm;
pub mod wiring;
pub mod x86_64;

pub use capabilities::Capabilities;
pub use error::HypervisorError;
pub use event::borrow_event;
pub use open::{HypervisorKind, open};
pub use vcpu::{ExitBus, Vcpu, VcpuExit, VcpuKicker};
pub use vm::{Hypervisor, IrqchipMode, Vm, VmOptions};
pub use wiring::{
    DoorbellSpec, IoSpace, Irqfd, MemorySlot, MsiMessage, Route, RouteTarget, SlotFlags, WiringOps,
};
