//! Virtio devices, their transport and queues, and their host side.
//!
//! A device is written against [`device::VirtioDevice`] and serves [`queue::Queue`]s on a
//! [`worker::Worker`]; [`transport`] makes a PCI function of it. What a device needs of the host (an opened
//! image, a tap, a terminal) is in [`host`]. No device sees a path, a configuration, the hypervisor or
//! another device.

pub mod block;
pub mod console;
pub mod device;
pub mod features;
pub mod host;
pub mod interrupt;
pub mod net;
mod one_worker;
pub mod pmem;
pub mod queue;
pub mod rng;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transport;
pub mod vsock;
pub mod worker;
