//! The guest's memory slots, as the hypervisor was told them, and the guest's memory through them.
//!
//! The kernel of mshv knows no slot numbers and cannot change a mapping in place, so this table
//! says what a call of `set_slot` amounts to. The instruction emulator finds guest memory with it
//! and marks what it writes: the hypervisor sees only the guest's own writes.
#![expect(unsafe_code, reason = "guest memory is reached by address")]

use std::{
    collections::{BTreeMap, BTreeSet},
    ptr,
};

use super::call::invalid;
use crate::{HypervisorError, MemorySlot, SlotFlags};

/// Page size of slots and of the dirty log.
pub(super) const PAGE_SIZE: u64 = 4096;

/// What a call of `set_slot` amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The range is not mapped yet.
    New,
    /// It is mapped; these flags differ from before.
    Flags(SlotFlags),
}

/// What became of an access to guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backing {
    /// Memory took part in it.
    Memory,
    /// There is memory, which the guest may only read; nothing was done.
    ReadOnly,
    /// No slot is there; nothing was done.
    Absent,
}

#[derive(Debug)]
struct Entry {
    slot: MemorySlot,
    /// Pages, counted within the slot, that the emulator wrote while the slot was tracked.
    written: BTreeSet<u64>,
}

/// The slots of one VM.
#[derive(Debug, Default)]
pub(super) struct SlotTable {
    entries: BTreeMap<u32, Entry>,
}

impl SlotTable {
    /// Checks a slot that is to be set and says what that amounts to.
    pub fn plan(&self, slot: &MemorySlot, max_slots: u32) -> Result<Change, HypervisorError> {
        let wrong = |why: &str| Err(invalid("memory slot", format!("{slot:x?}: {why}")));
        if slot.slot >= max_slots {
            return wrong(&format!("slot numbers end below {max_slots}"));
        }
        if slot.size == 0
            || [slot.size, slot.guest_address, slot.host_address].iter().any(|n| n % PAGE_SIZE != 0)
        {
            return wrong("not whole pages");
        }
        if slot.guest_address.checked_add(slot.size).is_none()
            || slot.host_address.checked_add(slot.size).is_none()
        {
            return wrong("runs over the end of the address space");
        }
        if let Some(Entry { slot: old, .. }) = self.entries.get(&slot.slot) {
            let same = MemorySlot { flags: slot.flags, ..*old } == *slot;
            return if same {
                Ok(Change::Flags(old.flags ^ slot.flags))
            } else {
                wrong("the number is taken")
            };
        }
        // The driver refuses both kinds of overlap (mshv_partition_create_region), without saying which.
        for Entry { slot: other, .. } in self.entries.values() {
            if overlap((slot.guest_address, slot.size), (other.guest_address, other.size)) {
                return wrong(&format!("overlaps slot {}", other.slot));
            }
            if overlap((slot.host_address, slot.size), (other.host_address, other.size)) {
                return wrong(&format!("shares host memory with slot {}, which mshv cannot do", other.slot));
            }
        }
        Ok(Change::New)
    }

    /// Enters a slot that the hypervisor has taken.
    pub fn insert(&mut self, slot: MemorySlot) {
        match self.entries.get_mut(&slot.slot) {
            Some(entry) => {
                if !slot.flags.contains(SlotFlags::LOG_DIRTY) {
                    entry.written.clear();
                }
                entry.slot = slot;
            }
            None => {
                self.entries.insert(slot.slot, Entry { slot, written: BTreeSet::new() });
            }
        }
    }

    /// Strikes a slot that the hypervisor has no more.
    pub fn remove(&mut self, number: u32) {
        self.entries.remove(&number);
    }

    /// The slot with this number.
    pub fn get(&self, number: u32) -> Option<&MemorySlot> {
        self.entries.get(&number).map(|entry| &entry.slot)
    }

    /// How many slots are tracked.
    pub fn tracked(&self) -> usize {
        self.entries.values().filter(|entry| entry.slot.flags.contains(SlotFlags::LOG_DIRTY)).count()
    }

    /// Adds the emulator's writes to the hypervisor's dirty log of a slot, and forgets them.
    pub fn merge_written(&mut self, number: u32, bitmap: &mut [u64]) {
        let Some(entry) = self.entries.get_mut(&number) else { return };
        for page in std::mem::take(&mut entry.written) {
            let word = usize::try_from(page / 64).unwrap_or(usize::MAX);
            if let Some(word) = bitmap.get_mut(word) {
                *word |= 1 << (page % 64);
            }
        }
    }

    /// What is at an address that the guest accessed.
    pub fn backing(&self, address: u64, write: bool) -> Backing {
        match self.find(address, 1) {
            None => Backing::Absent,
            Some((entry, _)) if write && entry.slot.flags.contains(SlotFlags::READ_ONLY) => Backing::ReadOnly,
            Some(_) => Backing::Memory,
        }
    }

    /// Reads guest memory; the range must not cross a page boundary.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Backing {
        let Some((_, host)) = self.find(address, data.len()) else { return Backing::Absent };
        copy_from(host, data);
        Backing::Memory
    }

    /// Writes guest memory; the range must not cross a page boundary.
    pub fn write(&mut self, address: u64, data: &[u8]) -> Backing {
        let Some((entry, host)) = self.find(address, data.len()) else { return Backing::Absent };
        let slot = entry.slot;
        if slot.flags.contains(SlotFlags::READ_ONLY) {
            return Backing::ReadOnly;
        }
        copy_to(host, data);
        if slot.flags.contains(SlotFlags::LOG_DIRTY)
            && let Some(entry) = self.entries.get_mut(&slot.slot)
        {
            entry.written.insert(address.saturating_sub(slot.guest_address) / PAGE_SIZE);
        }
        Backing::Memory
    }

    /// The slot that holds a whole range, and the range's host address.
    fn find(&self, address: u64, size: usize) -> Option<(&Entry, *mut u8)> {
        let size = u64::try_from(size).ok()?;
        self.entries.values().find_map(|entry| {
            let offset = address.checked_sub(entry.slot.guest_address)?;
            if offset.checked_add(size)? > entry.slot.size {
                return None;
            }
            let host = usize::try_from(entry.slot.host_address.checked_add(offset)?).ok()?;
            Some((entry, ptr::with_exposed_provenance_mut(host)))
        })
    }
}

fn overlap((a, a_size): (u64, u64), (b, b_size): (u64, u64)) -> bool {
    a < b.saturating_add(b_size) && b < a.saturating_add(a_size)
}

// The guest runs on other vCPUs meanwhile, so each byte is touched once, and a naturally aligned
// value in one piece, as the instruction would.

fn copy_from(host: *const u8, data: &mut [u8]) {
    // SAFETY (both functions): `find` made sure that as many bytes lie in a slot, and the contract
    // of `WiringOps::set_slot` keeps its host memory mapped for as long as it is in the table, which
    // the caller has locked. Alignment is checked before each cast.
    match (data.len(), host.addr()) {
        (8, at) if at.is_multiple_of(8) => {
            // SAFETY: as above.
            data.copy_from_slice(&unsafe { host.cast::<u64>().read_volatile() }.to_ne_bytes());
        }
        (4, at) if at.is_multiple_of(4) => {
            // SAFETY: as above.
            data.copy_from_slice(&unsafe { host.cast::<u32>().read_volatile() }.to_ne_bytes());
        }
        (2, at) if at.is_multiple_of(2) => {
            // SAFETY: as above.
            data.copy_from_slice(&unsafe { host.cast::<u16>().read_volatile() }.to_ne_bytes());
        }
        _ => {
            for (offset, byte) in data.iter_mut().enumerate() {
                // SAFETY: as above; the offset is within the range.
                *byte = unsafe { host.wrapping_add(offset).read_volatile() };
            }
        }
    }
}

fn copy_to(host: *mut u8, data: &[u8]) {
    match (data, host.addr()) {
        (&[a, b, c, d, e, f, g, h], at) if at.is_multiple_of(8) => {
            let value = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
            // SAFETY: see `copy_from`.
            unsafe { host.cast::<u64>().write_volatile(value) };
        }
        (&[a, b, c, d], at) if at.is_multiple_of(4) => {
            // SAFETY: see `copy_from`.
            unsafe { host.cast::<u32>().write_volatile(u32::from_ne_bytes([a, b, c, d])) };
        }
        (&[a, b], at) if at.is_multiple_of(2) => {
            // SAFETY: see `copy_from`.
            unsafe { host.cast::<u16>().write_volatile(u16::from_ne_bytes([a, b])) };
        }
        _ => {
            for (offset, byte) in data.iter().enumerate() {
                // SAFETY: see `copy_from`; the offset is within the range.
                unsafe { host.wrapping_add(offset).write_volatile(*byte) };
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Memory of the test, page-aligned, in place of guest memory.
    #[repr(C, align(4096))]
    pub(in super::super) struct Pages(pub [u8; 4 * 4096]);

    /// A slot over `pages` at `guest_address`.
    pub(in super::super) fn slot(
        number: u32,
        guest_address: u64,
        pages: &mut Pages,
        flags: SlotFlags,
    ) -> MemorySlot {
        MemorySlot {
            slot: number,
            guest_address,
            size: size_of::<Pages>() as u64,
            host_address: pages.0.as_mut_ptr().expose_provenance() as u64,
            flags,
        }
    }

    fn plain(number: u32, guest_address: u64, host_address: u64, size: u64) -> MemorySlot {
        MemorySlot { slot: number, guest_address, size, host_address, flags: SlotFlags::empty() }
    }

    #[test]
    fn what_setting_a_slot_amounts_to() {
        let mut table = SlotTable::default();
        let first = plain(0, 0, 0x10_0000, 0x8000);
        assert_eq!(table.plan(&first, 8).unwrap(), Change::New);
        table.insert(first);
        assert_eq!(table.plan(&first, 8).unwrap(), Change::Flags(SlotFlags::empty()));
        let tracked = MemorySlot { flags: SlotFlags::LOG_DIRTY, ..first };
        assert_eq!(table.plan(&tracked, 8).unwrap(), Change::Flags(SlotFlags::LOG_DIRTY));
        table.insert(tracked);
        assert_eq!(table.tracked(), 1);
        let locked = MemorySlot { flags: SlotFlags::READ_ONLY, ..first };
        assert_eq!(
            table.plan(&locked, 8).unwrap(),
            Change::Flags(SlotFlags::LOG_DIRTY | SlotFlags::READ_ONLY)
        );
        assert_eq!(table.plan(&plain(1, 0x8000, 0x20_0000, 0x1000), 8).unwrap(), Change::New);
        table.remove(0);
        assert_eq!((table.get(0), table.tracked()), (None, 0));
    }

    #[test]
    fn bad_slots_are_refused_by_name() {
        let mut table = SlotTable::default();
        table.insert(plain(0, 0x1000, 0x10_0000, 0x2000));
        for (slot, words) in [
            (plain(8, 0x8000, 0x20_0000, 0x1000), "below 8"),
            (plain(1, 0x8000, 0x20_0000, 0), "whole pages"),
            (plain(1, 0x8001, 0x20_0000, 0x1000), "whole pages"),
            (plain(1, 0x8000, 0x20_0800, 0x1000), "whole pages"),
            (plain(1, 0xffff_ffff_ffff_f000, 0x20_0000, 0x1000), "end of the address space"),
            (plain(1, 0x8000, 0xffff_ffff_ffff_f000, 0x2000), "end of the address space"),
            (plain(0, 0x8000, 0x20_0000, 0x1000), "taken"),
            (plain(1, 0, 0x20_0000, 0x2000), "overlaps slot 0"),
            (plain(1, 0x2000, 0x20_0000, 0x1000), "overlaps slot 0"),
            (plain(1, 0x8000, 0x10_1000, 0x1000), "shares host memory with slot 0"),
        ] {
            let error = table.plan(&slot, 8).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn memory_is_found_read_and_written() {
        let mut pages = Box::new(Pages([0; 4 * 4096]));
        let mut table = SlotTable::default();
        table.insert(slot(3, 0x10_0000, &mut pages, SlotFlags::empty()));
        for (offset, data) in [
            (0, &[1, 2, 3, 4, 5, 6, 7, 8][..]),
            (9, &[1, 2, 3, 4, 5, 6, 7, 8]),
            (0x1004, &[1, 2, 3, 4]),
            (0x1ffe, &[9, 8]),
            (0x3fff, &[7]),
            (0x2001, &[1, 2, 3]),
        ] {
            assert_eq!(table.write(0x10_0000 + offset, data), Backing::Memory);
            let mut back = vec![0; data.len()];
            assert_eq!(table.read(0x10_0000 + offset, &mut back), Backing::Memory);
            assert_eq!(back, data);
        }
        let end = 0x10_0000 + 4 * 4096;
        assert_eq!(table.write(end - 1, &[1, 2]), Backing::Absent, "runs over the end");
        assert_eq!(table.read(end, &mut [0]), Backing::Absent);
        assert_eq!(table.read(0xf_ffff, &mut [0]), Backing::Absent);
        assert_eq!(table.read(u64::MAX, &mut [0; 2]), Backing::Absent);
        drop(table);
        assert_eq!((pages.0[9], pages.0[0x1ffe], pages.0[0x3fff]), (1, 9, 7));
    }

    #[test]
    fn read_only_memory_is_not_written() {
        let mut pages = Box::new(Pages([5; 4 * 4096]));
        let mut table = SlotTable::default();
        table.insert(slot(0, 0, &mut pages, SlotFlags::READ_ONLY));
        assert_eq!(table.backing(0, false), Backing::Memory);
        assert_eq!(table.backing(0, true), Backing::ReadOnly);
        assert_eq!(table.write(0, &[1]), Backing::ReadOnly);
        let mut byte = [0];
        assert_eq!(table.read(0, &mut byte), Backing::Memory);
        assert_eq!(byte, [5]);
    }

    #[test]
    fn writes_of_the_emulator_are_in_the_dirty_log() {
        let mut pages = Box::new(Pages([0; 4 * 4096]));
        let mut table = SlotTable::default();
        table.insert(slot(0, 0x8000, &mut pages, SlotFlags::empty()));
        table.write(0x8000, &[1]);
        table.insert(slot(0, 0x8000, &mut pages, SlotFlags::LOG_DIRTY));
        table.write(0x9000, &[1]);
        table.write(0xbfff, &[1]);
        let mut bitmap = [1 << 2];
        table.merge_written(0, &mut bitmap);
        assert_eq!(bitmap, [0b1110], "page 0 was written before tracking began");
        let mut bitmap = [0];
        table.merge_written(0, &mut bitmap);
        assert_eq!(bitmap, [0], "a new period");
    }
}
