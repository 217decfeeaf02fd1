//! Virtio devices, their transport and queues, and their host side.

pub mod features;
pub mod queue;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
