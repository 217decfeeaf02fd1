//! The packed format (virtio 1.3 section 2.8): one ring of descriptors that driver and device both write.

use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::{
    DESCRIPTOR_SIZE, Descriptor, F_INDIRECT, F_NEXT, F_WRITE, QueueConfig, QueueError, RingFeatures,
    RingProgress,
    chain::{Builder, Head},
    passed,
};

const F_AVAIL: u16 = 1 << 7;
const F_USED: u16 = 1 << 15;

/// Event suppression: notify always.
const EVENT_ENABLE: u16 = 0;
/// Event suppression: notify never.
const EVENT_DISABLE: u16 = 1;
/// Event suppression: notify when a given slot is passed.
const EVENT_DESC: u16 = 2;
/// The wrap counter in an event offset.
const EVENT_WRAP: u16 = 1 << 15;

/// A place in the ring and the wrap counter there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) slot: u16,
    pub(super) wrap: bool,
}

impl Cursor {
    /// `count` slots further; `count` is at most the ring's size.
    fn forward(self, count: u16, size: u16) -> Self {
        let slot = u32::from(self.slot) + u32::from(count);
        match slot.checked_sub(u32::from(size)) {
            None => Self { slot: truncate(slot), wrap: self.wrap },
            Some(slot) => Self { slot: truncate(slot), wrap: !self.wrap },
        }
    }

    /// `count` slots back; `count` is at most the ring's size.
    fn back(self, count: u16, size: u16) -> Self {
        match self.slot.checked_sub(count) {
            Some(slot) => Self { slot, wrap: self.wrap },
            None => {
                let slot = u32::from(self.slot) + u32::from(size) - u32::from(count);
                Self { slot: truncate(slot), wrap: !self.wrap }
            }
        }
    }
}

/// A slot number, which is below 32768.
fn truncate(slot: u32) -> u16 {
    u16::try_from(slot).unwrap_or(u16::MAX)
}

#[derive(Debug)]
pub(super) struct PackedRing {
    size: u16,
    /// Checked when the queue was made: every address below is inside its area.
    ring: u64,
    driver_event: u64,
    device_event: u64,
    event_idx: bool,
    avail: Cursor,
    used: Cursor,
    unsignalled: Option<u16>,
    /// Slot and flags of the first used descriptor that the driver may not see yet. It reads used
    /// descriptors in ring order, so one held back hides all that follow.
    held: Option<(u16, u16)>,
}

impl PackedRing {
    pub(super) fn new(
        config: &QueueConfig,
        features: RingFeatures,
        avail: Cursor,
        used: Cursor,
        unsignalled: Option<u16>,
    ) -> Self {
        let QueueConfig { size, descriptors: ring, driver: driver_event, device: device_event } = *config;
        let event_idx = features.event_idx;
        Self { size, ring, driver_event, device_event, event_idx, avail, used, unsignalled, held: None }
    }

    pub(super) fn progress(&self) -> RingProgress {
        RingProgress::Packed {
            next_avail: self.avail.slot,
            avail_wrap: self.avail.wrap,
            next_used: self.used.slot,
            used_wrap: self.used.wrap,
            unsignalled: self.unsignalled,
        }
    }

    pub(super) fn pop<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
        features: RingFeatures,
        chain: &mut Builder,
    ) -> Result<Option<Head>, QueueError> {
        if !self.is_available(memory)? {
            return Ok(None);
        }
        let mut cursor = self.avail;
        let mut descriptors = 0;
        let id = loop {
            if descriptors == self.size {
                return Err(QueueError::ChainLength { limit: u32::from(self.size) });
            }
            let descriptor = Descriptor::packed(memory, self.slot_address(cursor.slot))?;
            descriptors += 1;
            cursor = cursor.forward(1, self.size);
            if descriptor.has(F_INDIRECT) {
                self.indirect(memory, features, &descriptor, chain)?;
                break descriptor.last;
            }
            chain.push(memory, descriptor.address, descriptor.len, descriptor.flags)?;
            if !descriptor.has(F_NEXT) {
                break descriptor.last;
            }
        };
        self.avail = cursor;
        Ok(Some(Head { id, descriptors }))
    }

    pub(super) fn give_back(&mut self, descriptors: u16) {
        self.avail = self.avail.back(descriptors, self.size);
    }

    pub(super) fn put_used<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
        head: Head,
        written: u32,
    ) -> Result<(), QueueError> {
        let slot = self.used.slot;
        let address = self.slot_address(slot);
        let mut element = [0; 6];
        element[..4].copy_from_slice(&written.to_le_bytes());
        element[4..].copy_from_slice(&head.id.to_le_bytes());
        memory.write_slice(&element, GuestAddress(address + 8)).map_err(QueueError::access(address))?;
        let mut flags = if self.used.wrap { F_AVAIL | F_USED } else { 0 };
        if written > 0 {
            flags |= F_WRITE;
        }
        if self.held.is_none() {
            self.held = Some((slot, flags));
        } else {
            store(memory, address + 14, flags, Ordering::Release)?;
        }
        self.used = self.used.forward(head.descriptors, self.size);
        self.unsignalled = self.unsignalled.map(|count| count.saturating_add(head.descriptors));
        Ok(())
    }

    pub(super) fn publish_used<M: GuestMemoryBackend>(&mut self, memory: &M) -> Result<(), QueueError> {
        if let Some((slot, flags)) = self.held.take() {
            // Release: the driver that sees the flags sees the descriptor and the data.
            store(memory, self.slot_address(slot) + 14, flags, Ordering::Release)?;
        }
        Ok(())
    }

    pub(super) fn needs_notification<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
    ) -> Result<bool, QueueError> {
        // The flags must be visible before the driver's wish is read, or both sides wait for the other.
        fence(Ordering::SeqCst);
        let flags = load(memory, self.driver_event + 2, Ordering::Acquire)?;
        let count = self.unsignalled.replace(0);
        match flags & 3 {
            EVENT_DISABLE => Ok(false),
            EVENT_DESC if self.event_idx => {
                // After a whole lap the event is behind, wherever it is: slots do not tell laps apart.
                let Some(count) = count.filter(|count| *count < self.size) else { return Ok(true) };
                let event = load(memory, self.driver_event, Ordering::Relaxed)?;
                let mut slot = event & !EVENT_WRAP;
                if (event & EVENT_WRAP != 0) != self.used.wrap {
                    // A slot of the lap before this one.
                    slot = slot.wrapping_sub(self.size);
                }
                Ok(passed(slot, self.used.slot, self.used.slot.wrapping_sub(count)))
            }
            _ => Ok(true),
        }
    }

    pub(super) fn enable_notification<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
    ) -> Result<bool, QueueError> {
        if self.event_idx {
            let wrap = if self.avail.wrap { EVENT_WRAP } else { 0 };
            store(memory, self.device_event, self.avail.slot | wrap, Ordering::Relaxed)?;
            store(memory, self.device_event + 2, EVENT_DESC, Ordering::Release)?;
        } else {
            store(memory, self.device_event + 2, EVENT_ENABLE, Ordering::Relaxed)?;
        }
        // As above, for the other direction.
        fence(Ordering::SeqCst);
        self.is_available(memory)
    }

    pub(super) fn disable_notification<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
    ) -> Result<(), QueueError> {
        store(memory, self.device_event + 2, EVENT_DISABLE, Ordering::Relaxed)
    }

    /// Whether the driver has made the next slot available: its two flags differ from each other, and the
    /// available one is the wrap counter.
    fn is_available<M: GuestMemoryBackend>(&self, memory: &M) -> Result<bool, QueueError> {
        let flags = load(memory, self.slot_address(self.avail.slot) + 14, Ordering::Acquire)?;
        let avail = flags & F_AVAIL != 0;
        let used = flags & F_USED != 0;
        Ok(avail == self.avail.wrap && used != self.avail.wrap)
    }

    /// Takes an indirect table: every entry of it, in order (virtio 1.3 section 2.8.7: of the flags only
    /// "writable" counts there).
    fn indirect<M: GuestMemoryBackend>(
        &self,
        memory: &M,
        features: RingFeatures,
        descriptor: &Descriptor,
        chain: &mut Builder,
    ) -> Result<(), QueueError> {
        let entries = descriptor.indirect_len(memory, features, self.size)?;
        for entry in 0..entries {
            let address = descriptor.address + DESCRIPTOR_SIZE * u64::from(entry);
            let Descriptor { address, len, flags, last: _ } = Descriptor::packed(memory, address)?;
            chain.push(memory, address, len, flags)?;
        }
        Ok(())
    }

    fn slot_address(&self, slot: u16) -> u64 {
        self.ring + DESCRIPTOR_SIZE * u64::from(slot)
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
