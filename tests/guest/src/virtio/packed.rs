//! The packed virtqueue, driver side (virtio 1.3, section 2.8).

use core::sync::atomic::{Ordering, fence};

use test_guest::ring::{self, DESCRIPTOR_BYTES};

use super::queue::{FLAG_NEXT, Segment, Setup};
use crate::cpu::{Width, read, read_word, write};

const FLAG_AVAILABLE: u64 = 1 << 7;
const FLAG_USED: u64 = 1 << 15;

// What an event suppression structure asks for (section 2.8.10).
const EVENTS_ENABLED: u64 = 0;
const EVENTS_DISABLED: u64 = 1;
const EVENTS_AT_DESCRIPTOR: u64 = 2;

/// A place in the ring, and the wrap counter there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub index: u16,
    pub wrap: bool,
}

/// Where the queue lies and how far it has come.
#[derive(Debug)]
pub struct Packed {
    pub size: u16,
    pub descriptors: u64,
    pub driver_event: u64,
    pub device_event: u64,
    event_idx: bool,
    /// For each ID: the next free one, and how many descriptors its chain has; 2 bytes each.
    ids: u64,
    free_id: u16,
    free_count: u16,
    pub next: Place,
    /// Descriptors added since the device was last told, or needed not be told.
    added: u16,
    pub next_used: Place,
}

impl Packed {
    /// Memory that the IDs need besides the ring.
    pub fn ids_len_bytes(size: u16) -> u64 {
        4 * u64::from(size)
    }

    /// Takes zeroed memory at `address` for the ring, and at `ids` for the IDs.
    pub fn new(address: u64, ids: u64, setup: &Setup) -> Self {
        let layout = ring::packed(setup.size);
        for id in 0..u64::from(setup.size) {
            write(ids + 4 * id, Width::Word, id + 1);
        }
        let start = Place { index: 0, wrap: true };
        let packed = Self {
            size: setup.size,
            descriptors: address + layout.descriptors,
            driver_event: address + layout.driver,
            device_event: address + layout.device,
            event_idx: setup.event_idx,
            ids,
            free_id: 0,
            free_count: setup.size,
            next: start,
            added: 0,
            next_used: start,
        };
        if !setup.interrupts {
            write(packed.driver_event + 2, Width::Word, EVENTS_DISABLED);
        } else if setup.event_idx {
            packed.ask_for_interrupt();
        }
        packed
    }

    pub fn free_count(&self) -> u16 {
        self.free_count
    }

    /// The ID that the next chain will have.
    pub fn next_id(&self) -> u16 {
        self.free_id
    }

    /// Makes a chain available to the device. There must be room for it.
    pub fn add(&mut self, segments: &[Segment]) {
        let id = self.free_id;
        let first = self.next;
        let mut first_flags = 0;
        let last = segments.len() - 1;
        for (at, segment) in segments.iter().enumerate() {
            let descriptor = self.descriptor(self.next.index);
            write(descriptor, Width::Quad, segment.address);
            write(descriptor + 8, Width::Long, segment.len_bytes.into());
            write(descriptor + 12, Width::Word, id.into());
            let next = if at < last { FLAG_NEXT } else { 0 };
            let flags = segment.flags() | next | if self.next.wrap { FLAG_AVAILABLE } else { FLAG_USED };
            if at == 0 {
                first_flags = flags;
            } else {
                write(descriptor + 14, Width::Word, flags);
            }
            self.next = self.after(self.next, 1);
            self.free_count -= 1;
            self.added += 1;
        }
        let entry = self.ids + 4 * u64::from(id);
        self.free_id = read_word(entry);
        write(entry + 2, Width::Word, segments.len() as u64);
        // The first descriptor goes last: it hands the whole chain over.
        fence(Ordering::Release);
        write(self.descriptor(first.index) + 14, Width::Word, first_flags);
    }

    /// Returns whether the device wants to be told of what was added since the last call.
    pub fn wants_notification(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let added = self.added;
        self.added = 0;
        match read(self.device_event + 2, Width::Word) & 3 {
            EVENTS_ENABLED => added > 0,
            EVENTS_AT_DESCRIPTOR if self.event_idx => {
                let at = read_word(self.device_event);
                let (mut event, wrap) = (at & 0x7fff, at >> 15 != 0);
                if wrap != self.next.wrap {
                    event = event.wrapping_sub(self.size);
                }
                ring::passes(event, self.next.index, self.next.index.wrapping_sub(added))
            }
            _ => false,
        }
    }

    /// Takes the next chain that the device has used: its ID, and how many bytes were written.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        if !self.has_used() {
            return None;
        }
        fence(Ordering::Acquire);
        let descriptor = self.descriptor(self.next_used.index);
        let (id, len) = (read_word(descriptor + 12) % self.size, read(descriptor + 8, Width::Long));
        let entry = self.ids + 4 * u64::from(id);
        let count = read_word(entry + 2);
        write(entry, Width::Word, self.free_id.into());
        self.free_id = id;
        self.free_count += count;
        self.next_used = self.after(self.next_used, count);
        if self.event_idx {
            self.ask_for_interrupt();
        }
        Some((id, u32::try_from(len).unwrap_or(u32::MAX)))
    }

    pub fn has_used(&self) -> bool {
        let flags = read(self.descriptor(self.next_used.index) + 14, Width::Word);
        let (available, used) = (flags & FLAG_AVAILABLE != 0, flags & FLAG_USED != 0);
        available == used && used == self.next_used.wrap
    }

    /// Asks for an interrupt when the next chain is used, unless the driver wants none.
    fn ask_for_interrupt(&self) {
        if read(self.driver_event + 2, Width::Word) != EVENTS_DISABLED {
            let at = u64::from(self.next_used.index) | u64::from(self.next_used.wrap) << 15;
            write(self.driver_event, Width::Word, at);
            write(self.driver_event + 2, Width::Word, EVENTS_AT_DESCRIPTOR);
            fence(Ordering::SeqCst);
        }
    }

    fn after(&self, place: Place, count: u16) -> Place {
        let index = place.index + count;
        if index >= self.size {
            Place { index: index - self.size, wrap: !place.wrap }
        } else {
            Place { index, wrap: place.wrap }
        }
    }

    fn descriptor(&self, index: u16) -> u64 {
        self.descriptors + DESCRIPTOR_BYTES * u64::from(index)
    }
}
