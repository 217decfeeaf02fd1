//! Feature bits that belong to no particular device (virtio 1.3 section 6). Device-specific bits
//! are in the device's own module.

/// The ring handles indirect descriptors.
pub const RING_INDIRECT_DESC: u64 = 1 << 28;
/// Notifications are suppressed by index instead of by flag.
pub const RING_EVENT_IDX: u64 = 1 << 29;
/// The device follows the specification from version 1 on. Always offered, always required.
pub const VERSION_1: u64 = 1 << 32;
/// The device's memory access goes through the platform's IOMMU, where there is one.
pub const ACCESS_PLATFORM: u64 = 1 << 33;
/// The packed ring format.
pub const RING_PACKED: u64 = 1 << 34;
/// Each queue can be reset on its own.
pub const RING_RESET: u64 = 1 << 40;

/// What the queues and the transport of this crate can do for any device.
pub const TRANSPORT: u64 = RING_INDIRECT_DESC | RING_EVENT_IDX | VERSION_1 | RING_PACKED | RING_RESET;
