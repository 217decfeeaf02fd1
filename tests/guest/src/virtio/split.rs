//! The split virtqueue, driver side (virtio 1.3, section 2.7).

use core::sync::atomic::{Ordering, fence};

use test_guest::ring::{self, DESCRIPTOR_BYTES};

use super::queue::{FLAG_INDIRECT, FLAG_NEXT, Segment, Setup};
use crate::cpu::{Width, read, read_word, write};

/// Set by a driver that wants no interrupts, and by a device that wants no notifications.
const SUPPRESS: u64 = 1;

/// Where the queue lies and how far it has come.
#[derive(Debug)]
pub struct Split {
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    event_idx: bool,
    free_head: u16,
    free_count: u16,
    pub available_index: u16,
    /// Available index when the device was last told, or needed not be told.
    told_index: u16,
    pub used_index: u16,
}

impl Split {
    /// Takes zeroed memory at `address`.
    pub fn new(address: u64, setup: &Setup) -> Self {
        let layout = ring::split(setup.size);
        let split = Self {
            size: setup.size,
            descriptors: address + layout.descriptors,
            available: address + layout.driver,
            used: address + layout.device,
            event_idx: setup.event_idx,
            free_head: 0,
            free_count: setup.size,
            available_index: 0,
            told_index: 0,
            used_index: 0,
        };
        for index in 0..setup.size {
            write(split.descriptor(index) + 14, Width::Word, u64::from(index) + 1);
        }
        if !setup.interrupts {
            write(split.available, Width::Word, SUPPRESS);
        }
        split
    }

    pub fn free_count(&self) -> u16 {
        self.free_count
    }

    /// The ID that the next chain will have.
    pub fn next_id(&self) -> u16 {
        self.free_head
    }

    /// Makes a chain available to the device. There must be room for it.
    pub fn add(&mut self, segments: &[Segment]) {
        let head = self.free_head;
        let last = segments.len() - 1;
        for (at, segment) in segments.iter().enumerate() {
            let descriptor = self.descriptor(self.free_head);
            write(descriptor, Width::Quad, segment.address);
            write(descriptor + 8, Width::Long, segment.len_bytes.into());
            write(descriptor + 12, Width::Word, segment.flags() | if at < last { FLAG_NEXT } else { 0 });
            self.free_head = read_word(descriptor + 14);
            self.free_count -= 1;
        }
        let place = self.available + 4 + 2 * u64::from(self.available_index % self.size);
        write(place, Width::Word, head.into());
        self.available_index = self.available_index.wrapping_add(1);
        fence(Ordering::Release);
        write(self.available + 2, Width::Word, self.available_index.into());
    }

    /// Returns whether the device wants to be told of what was added since the last call.
    pub fn wants_notification(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let (old, new) = (self.told_index, self.available_index);
        self.told_index = new;
        if self.event_idx {
            ring::passes(read_word(self.used + 4 + 8 * u64::from(self.size)), new, old)
        } else {
            new != old && read(self.used, Width::Word) & SUPPRESS == 0
        }
    }

    /// Takes the next chain that the device has used: its ID, and how many bytes were written.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        if !self.has_used() {
            return None;
        }
        fence(Ordering::Acquire);
        let element = self.used + 4 + 8 * u64::from(self.used_index % self.size);
        let (id, len) = (read_word(element), read(element + 4, Width::Long));
        self.free(id);
        self.used_index = self.used_index.wrapping_add(1);
        if self.event_idx {
            write(self.available + 4 + 2 * u64::from(self.size), Width::Word, self.used_index.into());
            fence(Ordering::SeqCst);
        }
        Some((id, u32::try_from(len).unwrap_or(u32::MAX)))
    }

    pub fn has_used(&self) -> bool {
        read_word(self.used + 2) != self.used_index
    }

    /// The used index that the device has written.
    pub fn device_index(&self) -> u16 {
        read_word(self.used + 2)
    }

    fn free(&mut self, head: u16) {
        let mut at = head % self.size;
        let mut count = 1;
        while read(self.descriptor(at) + 12, Width::Word) & (FLAG_NEXT | FLAG_INDIRECT) == FLAG_NEXT {
            at = read_word(self.descriptor(at) + 14) % self.size;
            count += 1;
        }
        write(self.descriptor(at) + 14, Width::Word, self.free_head.into());
        self.free_head = head % self.size;
        self.free_count += count;
    }

    fn descriptor(&self, index: u16) -> u64 {
        self.descriptors + DESCRIPTOR_BYTES * u64::from(index)
    }
}
