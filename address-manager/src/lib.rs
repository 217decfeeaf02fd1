//! The guest's wiring, and the one transaction that changes it.
//!
//! Wiring is the four things that the kernel holds for a running VM: memory **slots**, **handlers**
//! (which device answers an address), **doorbells** (a guest write that signals an eventfd) and
//! **interrupt routes** with their irqfds. This crate owns them all, and is the only caller of the
//! hypervisor operations that change them ([`hypervisor::WiringOps`]).
//!
//! Two wirings exist. The *live* one is immutable and published: a vCPU exit dispatches on it
//! without a lock. While a [`Transaction`] is open there is also a *staged* one; staging makes no
//! system call. [`Transaction::commit`] computes the difference of the two and applies only that,
//! in the order and with the undo that [`apply`] describes. There is no other way to change
//! wiring.
//!
//! What is absent: device types, configuration, policy about addresses. Where things go is
//! decided by `vmm::layout`; this crate only refuses what overlaps.

#![forbid(unsafe_code)]

pub mod apply;
pub mod diff;
pub mod dispatch;
pub mod listener;
pub mod manager;
pub mod memory;
pub mod memory_table;
pub mod publish;
pub mod report;
pub mod slots;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transaction;
pub mod window;
pub mod wiring;

pub use apply::{ApplyError, Step, UndoFailure};
pub use dispatch::{Dispatch, Dispatcher, Handler};
pub use hypervisor::{DoorbellSpec, IoSpace, MsiMessage, RouteTarget, SlotFlags};
pub use listener::{Interest, ListenerError, ListenerId, WiringChange, WiringListener};
pub use manager::AddressManager;
pub use memory::{GuestMemoryView, MemoryHandle, MemoryReader, RamRegion};
pub use memory_table::{MemoryTable, MemoryTableBackend, MemoryTableListener};
pub use report::{CommitReport, CommitTotals, OperationCount, Operations};
pub use slots::MemoryRange;
pub use transaction::{CommitError, Transaction};
pub use window::{Window, WindowError, WindowKind, Windows};
pub use wiring::{
    Arm, Conflict, Doorbell, HandlerRange, IrqEvent, Owner, PAGE_SIZE, Route, Slot, SlotRole, Wired, Wiring,
};
