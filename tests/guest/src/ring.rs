//! Where the parts of a virtqueue lie in its memory (virtio 1.3, sections 2.7 and 2.8).
//!
//! Numbers only. The guest's driver builds its queues so; tests that look into guest memory find them so.

/// Size of a descriptor of either format.
pub const DESCRIPTOR_BYTES: u64 = 16;

/// Offsets of the parts of a queue from its first byte, which is page-aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Descriptor area.
    pub descriptors: u64,
    /// Driver area: the available ring, or the driver's event suppression structure.
    pub driver: u64,
    /// Device area: the used ring, or the device's event suppression structure.
    pub device: u64,
    /// Size of all of it.
    pub len_bytes: u64,
}

/// The parts of a split queue with `size` descriptors, event fields included.
#[must_use]
pub fn split(size: u16) -> Layout {
    let size = u64::from(size);
    let driver = DESCRIPTOR_BYTES * size;
    let device = (driver + 6 + 2 * size).next_multiple_of(4);
    Layout { descriptors: 0, driver, device, len_bytes: device + 6 + 8 * size }
}

/// The parts of a packed queue with `size` descriptors.
#[must_use]
pub fn packed(size: u16) -> Layout {
    let driver = DESCRIPTOR_BYTES * u64::from(size);
    Layout { descriptors: 0, driver, device: driver + 4, len_bytes: driver + 8 }
}

/// Returns whether moving an index from `old` to `new` passes `event`, the last place at which the other side does not
/// want to be told (virtio 1.3, section 2.7.7.2).
#[must_use]
pub fn passes(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_aligned_and_do_not_overlap() {
        for size in [1, 2, 3, 8, 255, 256, 1024, 32768] {
            let split = split(size);
            let n = u64::from(size);
            assert_eq!(split.driver % 2, 0);
            assert_eq!(split.device % 4, 0);
            assert!(split.driver >= 16 * n);
            assert!(split.device >= split.driver + 6 + 2 * n);
            assert_eq!(split.len_bytes, split.device + 6 + 8 * n);

            let packed = packed(size);
            assert_eq!((packed.driver % 4, packed.device % 4), (0, 0));
            assert!(packed.driver >= 16 * n && packed.device >= packed.driver + 4);
            assert_eq!(packed.len_bytes, packed.device + 4);
        }
    }

    #[test]
    fn an_event_is_passed_once() {
        // From 5 to 8 the places 5, 6 and 7 are passed.
        for (event, passed) in [(4, false), (5, true), (6, true), (7, true), (8, false)] {
            assert_eq!(passes(event, 8, 5), passed, "{event}");
        }
        assert!(passes(0xffff, 1, 0xfffe));
        assert!(!passes(1, 1, 0xfffe));
        assert!(!passes(3, 3, 3));
    }
}
