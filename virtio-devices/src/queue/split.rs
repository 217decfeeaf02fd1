//! The split format (virtio 1.3 section 2.7): descriptor table, available ring, used ring.

use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::{
    DESCRIPTOR_SIZE, Descriptor, F_INDIRECT, F_NEXT, QueueConfig, QueueError, RingFeatures, RingProgress,
    chain::{Builder, Head},
    passed,
};

/// Available ring flag: the driver wants no interrupts.
const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// Used ring flag: the device wants no notifications.
const USED_F_NO_NOTIFY: u16 = 1;

#[derive(Debug)]
pub(super) struct SplitRing {
    size: u16,
    /// Checked when the queue was made: every address below is inside its area.
    descriptors: u64,
    avail: u64,
    used: u64,
    event_idx: bool,
    next_avail: u16,
    next_used: u16,
    signalled: Option<u16>,
}

impl SplitRing {
    pub(super) fn new(
        config: &QueueConfig,
        features: RingFeatures,
        next_avail: u16,
        next_used: u16,
        signalled: Option<u16>,
    ) -> Self {
        let QueueConfig { size, descriptors, driver: avail, device: used } = *config;
        let event_idx = features.event_idx;
        Self { size, descriptors, avail, used, event_idx, next_avail, next_used, signalled }
    }

    pub(super) fn progress(&self) -> RingProgress {
        RingProgress::Split {
            next_avail: self.next_avail,
            next_used: self.next_used,
            signalled: self.signalled,
        }
    }

    pub(super) fn pop<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
        features: RingFeatures,
        chain: &mut Builder,
    ) -> Result<Option<Head>, QueueError> {
        if self.waiting(memory)? == 0 {
            return Ok(None);
        }
        let slot = u64::from(self.next_avail % self.size);
        let id = load(memory, self.avail + 4 + 2 * slot, Ordering::Relaxed)?;
        self.walk(memory, features, id, chain)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(Head { id, descriptors: 1 }))
    }

    pub(super) fn give_back(&mut self) {
        self.next_avail = self.next_avail.wrapping_sub(1);
    }

    pub(super) fn put_used<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
        head: Head,
        written: u32,
    ) -> Result<(), QueueError> {
        let address = self.used + 4 + 8 * u64::from(self.next_used % self.size);
        let mut element = [0; 8];
        element[..4].copy_from_slice(&u32::from(head.id).to_le_bytes());
        element[4..].copy_from_slice(&written.to_le_bytes());
        memory.write_slice(&element, GuestAddress(address)).map_err(QueueError::access(address))?;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(())
    }

    pub(super) fn publish_used<M: GuestMemoryBackend>(&mut self, memory: &M) -> Result<(), QueueError> {
        // Release: the driver that sees the index sees the elements and the data.
        store(memory, self.used + 2, self.next_used, Ordering::Release)
    }

    pub(super) fn needs_notification<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
    ) -> Result<bool, QueueError> {
        // The index must be visible before the driver's wish is read, or both sides wait for the other.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            return Ok(load(memory, self.avail, Ordering::Relaxed)? & AVAIL_F_NO_INTERRUPT == 0);
        }
        let event = load(memory, self.avail + 4 + 2 * u64::from(self.size), Ordering::Relaxed)?;
        let old = self.signalled.replace(self.next_used);
        Ok(old.is_none_or(|old| passed(event, self.next_used, old)))
    }

    pub(super) fn enable_notification<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
    ) -> Result<bool, QueueError> {
        if self.event_idx {
            let event = self.used + 4 + 8 * u64::from(self.size);
            store(memory, event, self.next_avail, Ordering::Relaxed)?;
        } else {
            store(memory, self.used, 0, Ordering::Relaxed)?;
        }
        // As above, for the other direction.
        fence(Ordering::SeqCst);
        Ok(self.waiting(memory)? != 0)
    }

    pub(super) fn disable_notification<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
    ) -> Result<(), QueueError> {
        if self.event_idx {
            // An event index that is not moved on is never passed again.
            return Ok(());
        }
        store(memory, self.used, USED_F_NO_NOTIFY, Ordering::Relaxed)
    }

    /// Chains that the driver made available and that were not taken.
    fn waiting<M: GuestMemoryBackend>(&self, memory: &M) -> Result<u16, QueueError> {
        let index = load(memory, self.avail + 2, Ordering::Acquire)?;
        let waiting = index.wrapping_sub(self.next_avail);
        if waiting > self.size {
            return Err(QueueError::AvailableIndex { index, expected: self.next_avail, size: self.size });
        }
        Ok(waiting)
    }

    /// Follows a chain from its head descriptor.
    fn walk<M: GuestMemoryBackend>(
        &self,
        memory: &M,
        features: RingFeatures,
        head: u16,
        chain: &mut Builder,
    ) -> Result<(), QueueError> {
        let mut table = self.descriptors;
        let mut len = u32::from(self.size);
        let mut indirect = false;
        let mut index = head;
        let mut seen = 0;
        loop {
            if u32::from(index) >= len {
                return Err(QueueError::DescriptorIndex { index, len });
            }
            if seen == len {
                return Err(QueueError::ChainLength { limit: len });
            }
            seen += 1;
            let descriptor = Descriptor::split(memory, table + DESCRIPTOR_SIZE * u64::from(index))?;
            if descriptor.has(F_INDIRECT) {
                if indirect {
                    return Err(QueueError::Indirect { why: "inside an indirect table" });
                }
                len = descriptor.indirect_len(memory, features, self.size)?;
                (table, indirect, index, seen) = (descriptor.address, true, 0, 0);
                continue;
            }
            chain.push(memory, descriptor.address, descriptor.len, descriptor.flags)?;
            if !descriptor.has(F_NEXT) {
                return Ok(());
            }
            index = descriptor.last;
        }
    }
}

fn load<M: GuestMemoryBackend>(memory: &M, address: u64, order: Ordering) -> Result<u16, QueueError> {
    memory.load::<u16>(GuestAddress(address), order).map(u16::from_le).map_err(QueueError::access(address))
}

fn store<M: GuestMemoryBackend>(
    memory: &M,
    address: u64,
    value: u16,
    order: Ordering,
) -> Result<(), QueueError> {
    memory.store(value.to_le(), GuestAddress(address), order).map_err(QueueError::access(address))
}
