//! A driver for tests: the other side of a virtqueue, written from the specification and sharing nothing
//! with [`queue`](crate::queue). It keeps the rules unless a test breaks them by hand.
//!
//! For the tests of this crate and, with feature `testing`, of others; and for fuzz targets.

#[cfg(test)]
pub(crate) mod conformance;
#[cfg(test)]
pub(crate) mod machine;

use std::{
    collections::BTreeMap,
    sync::atomic::{Ordering, fence},
};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::queue::{QueueConfig, RingFeatures};

/// Longest indirect table that [`Driver::add`] writes.
const MAX_TABLE: u64 = 64;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// A buffer to make available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

impl Buffer {
    /// A buffer that the device reads.
    pub fn readable(address: u64, len: u32) -> Self {
        Self { address, len, writable: false }
    }

    /// A buffer that the device writes.
    pub fn writable(address: u64, len: u32) -> Self {
        Self { address, len, writable: true }
    }
}

/// The driver's side of one queue.
#[derive(Debug)]
pub struct Driver {
    config: QueueConfig,
    features: RingFeatures,
    tables: u64,
    /// Split: free descriptors. Packed: free buffer ids.
    free: Vec<u16>,
    /// Descriptors of each chain that the device has: indices (split), or their number (packed).
    out: BTreeMap<u16, Vec<u16>>,
    /// Split: free-running available index. Packed: next slot to fill.
    next: u16,
    wrap: bool,
    /// Split: free-running used index. Packed: next slot to look at.
    used: u16,
    used_wrap: bool,
    /// Packed: slots that are not free.
    taken: u16,
    /// Descriptors (packed) or chains (split) added since the last decision about a kick.
    unkicked: u16,
}

impl Driver {
    /// Bytes of guest memory that a queue of `size` needs.
    pub fn footprint(size: u16) -> u64 {
        let size = u64::from(size);
        (16 * size + 4096 + 8 * size + 4096 + 16 * MAX_TABLE * size).next_multiple_of(4096)
    }

    /// A queue whose rings lie at `base`, a multiple of 4096. The memory there is zero.
    pub fn new(base: u64, size: u16, features: RingFeatures) -> Self {
        let entries = u64::from(size);
        let driver = base + 16 * entries;
        let device = (driver + 6 + 2 * entries).next_multiple_of(16);
        let tables = (device + 6 + 8 * entries).next_multiple_of(16);
        Self {
            config: QueueConfig { size, descriptors: base, driver, device },
            features,
            tables,
            free: (0..size).rev().collect(),
            out: BTreeMap::new(),
            next: 0,
            wrap: true,
            used: 0,
            used_wrap: true,
            taken: 0,
            unkicked: 0,
        }
    }

    /// Where the rings are.
    pub fn config(&self) -> QueueConfig {
        self.config
    }

    /// The ring features.
    pub fn features(&self) -> RingFeatures {
        self.features
    }

    /// Chains that the device has.
    pub fn outstanding(&self) -> usize {
        self.out.len()
    }

    /// Makes a chain available; readable buffers come first. Its id, or none if the ring has no room.
    ///
    /// # Panics
    /// The rings are not in `memory`, or the chain is empty or too long for an indirect table.
    pub fn add<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
        buffers: &[Buffer],
        indirect: bool,
    ) -> Option<u16> {
        assert!(!buffers.is_empty(), "an empty chain");
        assert!(!indirect || buffers.len() as u64 <= MAX_TABLE, "table too long");
        if self.features.packed {
            self.add_packed(memory, buffers, indirect)
        } else {
            self.add_split(memory, buffers, indirect)
        }
    }

    /// The next chain that the device handed back: its id, and how many bytes the device says it wrote.
    ///
    /// # Panics
    /// The device handed back what it did not have.
    pub fn take_used<M: GuestMemoryBackend>(&mut self, memory: &M) -> Option<(u16, u32)> {
        if self.features.packed { self.used_packed(memory) } else { self.used_split(memory) }
    }

    /// Whether the device wants to be notified of what was added since the last call.
    pub fn needs_kick<M: GuestMemoryBackend>(&mut self, memory: &M) -> bool {
        fence(Ordering::SeqCst);
        let added = std::mem::take(&mut self.unkicked);
        let QueueConfig { size, device, .. } = self.config;
        if !self.features.packed {
            if !self.features.event_idx {
                return load(memory, device) & 1 == 0;
            }
            let event = load(memory, device + 4 + 8 * u64::from(size));
            return crossed(event, self.next, added);
        }
        match load(memory, device + 2) {
            0 => true,
            1 => false,
            // After a whole lap the event is behind, wherever it is.
            2 if added >= size => true,
            2 => {
                let event = load(memory, device);
                let mut slot = event & 0x7fff;
                if (event >> 15 == 1) != self.wrap {
                    slot = slot.wrapping_sub(size);
                }
                crossed(slot, self.next, added)
            }
            other => panic!("reserved event flags {other}"),
        }
    }

    /// Asks for an interrupt at the next used chain. True when some are there already.
    pub fn enable_interrupts<M: GuestMemoryBackend>(&mut self, memory: &M) -> bool {
        let QueueConfig { size, driver, .. } = self.config;
        match (self.features.packed, self.features.event_idx) {
            (false, false) => store(memory, driver, 0),
            (false, true) => store(memory, driver + 4 + 2 * u64::from(size), self.used),
            (true, false) => store(memory, driver + 2, 0),
            (true, true) => {
                store(memory, driver, self.used | if self.used_wrap { 1 << 15 } else { 0 });
                store(memory, driver + 2, 2);
            }
        }
        fence(Ordering::SeqCst);
        self.has_used(memory)
    }

    /// Asks for no interrupts (with event indices in the split format: leaves the index behind).
    pub fn disable_interrupts<M: GuestMemoryBackend>(&mut self, memory: &M) {
        let QueueConfig { driver, .. } = self.config;
        match (self.features.packed, self.features.event_idx) {
            (false, false) => store(memory, driver, 1),
            (false, true) => {}
            (true, _) => store(memory, driver + 2, 1),
        }
    }

    /// Whether a used chain can be taken.
    pub fn has_used<M: GuestMemoryBackend>(&self, memory: &M) -> bool {
        if self.features.packed {
            let flags = load(memory, self.slot(self.used) + 14);
            (flags & AVAIL != 0) == self.used_wrap && (flags & USED != 0) == self.used_wrap
        } else {
            load(memory, self.config.device + 2) != self.used
        }
    }

    fn add_split<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
        buffers: &[Buffer],
        indirect: bool,
    ) -> Option<u16> {
        let needed = if indirect { 1 } else { buffers.len() };
        if self.free.len() < needed {
            return None;
        }
        let indices = self.free.split_off(self.free.len() - needed);
        let head = *indices.first()?;
        if indirect {
            let table = self.table(head);
            for (entry, buffer) in (0u16..).zip(buffers) {
                let last = usize::from(entry) + 1 == buffers.len();
                let flags = write_flag(buffer) | if last { 0 } else { NEXT };
                put(memory, table + 16 * u64::from(entry), buffer.address, buffer.len, flags, entry + 1);
            }
            let len = u32::try_from(16 * buffers.len()).expect("bounded");
            put(memory, self.slot(head), table, len, INDIRECT, 0);
        } else {
            for (position, buffer) in buffers.iter().enumerate() {
                let next = indices.get(position + 1);
                let flags = write_flag(buffer) | if next.is_some() { NEXT } else { 0 };
                let next = next.copied().unwrap_or(0);
                put(memory, self.slot(indices[position]), buffer.address, buffer.len, flags, next);
            }
        }
        let QueueConfig { size, driver, .. } = self.config;
        store(memory, driver + 4 + 2 * u64::from(self.next % size), head);
        self.next = self.next.wrapping_add(1);
        store(memory, driver + 2, self.next);
        self.unkicked = self.unkicked.saturating_add(1);
        self.out.insert(head, indices);
        Some(head)
    }

    fn add_packed<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
        buffers: &[Buffer],
        indirect: bool,
    ) -> Option<u16> {
        let needed = if indirect { 1 } else { u16::try_from(buffers.len()).ok()? };
        if self.config.size - self.taken < needed {
            return None;
        }
        let id = self.free.pop()?;
        let (first, first_wrap) = (self.next, self.wrap);
        let mut first_flags = 0;
        for position in 0..needed {
            let ring_flags = if self.wrap { AVAIL } else { USED };
            let (address, len, flags) = if indirect {
                let table = self.table(id);
                for (entry, buffer) in (0u64..).zip(buffers) {
                    put(memory, table + 16 * entry, buffer.address, buffer.len, 0, write_flag(buffer));
                }
                (table, u32::try_from(16 * buffers.len()).expect("bounded"), INDIRECT)
            } else {
                let buffer = buffers[usize::from(position)];
                let more = position + 1 < needed;
                (buffer.address, buffer.len, write_flag(&buffer) | if more { NEXT } else { 0 })
            };
            let slot = self.slot(self.next);
            memory.write_obj(address.to_le(), GuestAddress(slot)).expect("ring");
            memory.write_obj(len.to_le(), GuestAddress(slot + 8)).expect("ring");
            memory.write_obj(id.to_le(), GuestAddress(slot + 12)).expect("ring");
            if position == 0 {
                first_flags = flags | ring_flags;
            } else {
                store(memory, slot + 14, flags | ring_flags);
            }
            self.next += 1;
            if self.next == self.config.size {
                (self.next, self.wrap) = (0, !self.wrap);
            }
        }
        debug_assert!(first_wrap == self.wrap || self.next <= first, "wrapped once");
        store(memory, self.slot(first) + 14, first_flags);
        self.taken += needed;
        self.unkicked = self.unkicked.saturating_add(needed);
        self.out.insert(id, vec![needed]);
        Some(id)
    }

    fn used_split<M: GuestMemoryBackend>(&mut self, memory: &M) -> Option<(u16, u32)> {
        if !self.has_used(memory) {
            return None;
        }
        let QueueConfig { size, device, .. } = self.config;
        let element = device + 4 + 8 * u64::from(self.used % size);
        let id = u32::from_le(memory.read_obj(GuestAddress(element)).expect("ring"));
        let len = u32::from_le(memory.read_obj(GuestAddress(element + 4)).expect("ring"));
        let id = u16::try_from(id).expect("an id of ours");
        let indices = self.out.remove(&id).unwrap_or_else(|| panic!("{id} was not out"));
        self.free.extend(indices);
        self.used = self.used.wrapping_add(1);
        Some((id, len))
    }

    fn used_packed<M: GuestMemoryBackend>(&mut self, memory: &M) -> Option<(u16, u32)> {
        if !self.has_used(memory) {
            return None;
        }
        let slot = self.slot(self.used);
        let len = u32::from_le(memory.read_obj(GuestAddress(slot + 8)).expect("ring"));
        let id = u16::from_le(memory.read_obj(GuestAddress(slot + 12)).expect("ring"));
        let flags = load(memory, slot + 14);
        assert_eq!(flags & WRITE != 0, len > 0, "the write flag says whether anything was written");
        let count = self.out.remove(&id).unwrap_or_else(|| panic!("{id} was not out"))[0];
        self.free.push(id);
        self.taken -= count;
        self.used += count;
        if self.used >= self.config.size {
            self.used -= self.config.size;
            self.used_wrap = !self.used_wrap;
        }
        Some((id, len))
    }

    fn slot(&self, index: u16) -> u64 {
        self.config.descriptors + 16 * u64::from(index)
    }

    fn table(&self, id: u16) -> u64 {
        self.tables + 16 * MAX_TABLE * u64::from(id)
    }
}

fn write_flag(buffer: &Buffer) -> u16 {
    if buffer.writable { WRITE } else { 0 }
}

/// Whether the last `count` steps up to `now` went over `event`: the step from `event` to the next one.
fn crossed(event: u16, now: u16, count: u16) -> bool {
    (1..=count).any(|back| now.wrapping_sub(back) == event)
}

fn put<M: GuestMemoryBackend>(memory: &M, at: u64, address: u64, len: u32, third: u16, fourth: u16) {
    memory.write_obj(address.to_le(), GuestAddress(at)).expect("table");
    memory.write_obj(len.to_le(), GuestAddress(at + 8)).expect("table");
    memory.write_obj(third.to_le(), GuestAddress(at + 12)).expect("table");
    memory.write_obj(fourth.to_le(), GuestAddress(at + 14)).expect("table");
}

fn load<M: GuestMemoryBackend>(memory: &M, address: u64) -> u16 {
    u16::from_le(memory.load(GuestAddress(address), Ordering::Acquire).expect("ring"))
}

fn store<M: GuestMemoryBackend>(memory: &M, address: u64, value: u16) {
    memory.store(value.to_le(), GuestAddress(address), Ordering::Release).expect("ring");
}
