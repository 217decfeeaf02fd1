//! What is where in the one BAR of a virtio function, fixed by the number of queues.

use devices::pci::{BarKind, BarSpec, msix};

/// The register number of the BAR.
pub const BAR: u8 = 0;

/// Distance between the notification addresses of two queues, in bytes (virtio 1.3 section 4.1.4.4,
/// `notify_off_multiplier`).
pub const NOTIFY_MULTIPLIER: u32 = 4;

/// Each region has pages of its own.
const PAGE: u64 = 4096;

/// Common configuration (virtio 1.3 section 4.1.4.3).
pub(super) const COMMON: u64 = 0;
/// Its size in bytes.
pub(super) const COMMON_SIZE: u64 = 64;
/// Interrupt status (4.1.4.5).
pub(super) const ISR: u64 = PAGE;
/// Its size in bytes.
pub(super) const ISR_SIZE: u64 = 1;
/// Device-specific configuration (4.1.4.6).
pub(super) const DEVICE: u64 = 2 * PAGE;
/// Its size in bytes.
pub(super) const DEVICE_SIZE: u64 = PAGE;
/// Notification addresses (4.1.4.4).
pub(super) const NOTIFY: u64 = 3 * PAGE;

/// The BAR of a function with some number of queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarLayout {
    queues: u16,
}

impl BarLayout {
    /// The layout for `queues` queues.
    pub fn new(queues: u16) -> Self {
        Self { queues }
    }

    /// The BAR: a 64-bit one.
    pub fn spec(self) -> BarSpec {
        let size = (self.pending() + PAGE).next_power_of_two();
        BarSpec { index: BAR, size, kind: BarKind::Memory64, prefetchable: false }
    }

    /// MSI-X vectors: one for each queue and one for configuration changes.
    pub fn vectors(self) -> u16 {
        self.queues.saturating_add(1).min(msix::MAX_VECTORS)
    }

    /// Length in bytes of the notification addresses.
    pub(super) fn notify_size(self) -> u64 {
        u64::from(self.queues.max(1)) * u64::from(NOTIFY_MULTIPLIER)
    }

    /// Offset of a queue's notification address.
    pub(super) fn doorbell(self, queue: u16) -> u64 {
        NOTIFY + u64::from(queue) * u64::from(NOTIFY_MULTIPLIER)
    }

    /// Offset of the vector table.
    pub(super) fn table(self) -> u64 {
        NOTIFY + self.notify_size().next_multiple_of(PAGE)
    }

    /// Offset of the pending bits.
    pub(super) fn pending(self) -> u64 {
        self.table() + (u64::from(self.vectors()) * msix::ENTRY_SIZE).next_multiple_of(PAGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_do_not_overlap_and_fit() {
        for queues in [1, 2, 33, 255, 1024, 2047] {
            let layout = BarLayout::new(queues);
            let size = layout.spec().size;
            assert!(layout.doorbell(queues - 1) + 4 <= layout.table());
            assert!(layout.table() + u64::from(layout.vectors()) * 16 <= layout.pending());
            assert!(layout.pending() + u64::from(layout.vectors()).div_ceil(64) * 8 <= size);
        }
        assert_eq!(BarLayout::new(1).spec().size, 0x8000);
        assert_eq!(BarLayout::new(33).spec().size, 0x8000);
        assert_eq!(BarLayout::new(33).vectors(), 34);
    }
}
