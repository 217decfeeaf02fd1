//! Memory as the kernel sees it: stretches of one host mapping, and the numbered slots that show
//! them to the guest.
//!
//! Pure: the pieces of a [`Wiring`](crate::Wiring) go in, ranges come out. Neighbouring pieces of
//! one mapping become one range here, whoever owns them.

use std::{collections::BTreeMap, sync::Arc};

use hypervisor::{MemorySlot, SlotFlags};
use thiserror::Error;
use vm_memory::MmapRegion;

use crate::wiring::{PAGE_SIZE, Slot, SlotRole};

/// A guest-physical range backed by one stretch of one mapping.
#[derive(Clone, Debug)]
pub struct MemoryRange {
    /// First guest-physical address.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
    /// The host memory.
    pub mapping: Arc<MmapRegion>,
    /// Where in `mapping` the range begins, in bytes.
    pub offset: u64,
    /// Access and tracking flags.
    pub flags: SlotFlags,
    /// What it is to the guest.
    pub role: SlotRole,
}

impl MemoryRange {
    /// First address after the range.
    pub fn end(&self) -> u64 {
        self.base.saturating_add(self.size)
    }

    /// Address in this process of the first byte.
    pub fn host_address(&self) -> u64 {
        (self.mapping.as_ptr() as u64).wrapping_add(self.offset)
    }

    /// Whether this range shows the same memory at every address of `part`, in the same way but
    /// perhaps for tracking.
    fn shows(&self, part: &Self) -> bool {
        let Self { base, size: _, mapping, offset, flags, role } = self;
        *base <= part.base
            && part.end() <= self.end()
            && Arc::ptr_eq(mapping, &part.mapping)
            && offset.checked_add(part.base - base) == Some(part.offset)
            && *flags - SlotFlags::LOG_DIRTY == part.flags - SlotFlags::LOG_DIRTY
            && *role == part.role
    }

    /// Whether both are the same range of the same memory, whatever the flags.
    pub(crate) fn same_backing(&self, other: &Self) -> bool {
        self.base == other.base
            && self.size == other.size
            && Arc::ptr_eq(&self.mapping, &other.mapping)
            && self.offset == other.offset
            && self.role == other.role
    }

    /// The part from `from` to `to`, both inside.
    fn part(&self, from: u64, to: u64) -> Self {
        Self { base: from, size: to - from, offset: self.offset + (from - self.base), ..self.clone() }
    }

    fn of(slot: &Slot) -> Self {
        let Slot { base, size, mapping, offset, flags, role, owner: _ } = slot;
        let mapping = Arc::clone(mapping);
        Self { base: *base, size: *size, mapping, offset: *offset, flags: *flags, role: *role }
    }

    fn continues_with(&self, slot: &Slot) -> bool {
        self.end() == slot.base
            && Arc::ptr_eq(&self.mapping, &slot.mapping)
            && self.offset.checked_add(self.size) == Some(slot.offset)
            && self.role == slot.role
    }
}

impl PartialEq for MemoryRange {
    fn eq(&self, other: &Self) -> bool {
        self.same_backing(other) && self.flags == other.flags
    }
}

impl Eq for MemoryRange {}

/// Joins neighbouring pieces that show one stretch of host memory with the same flags. `slots` is
/// in address order and without overlap.
pub fn merge<'s>(slots: impl IntoIterator<Item = &'s Slot>) -> Vec<MemoryRange> {
    join(slots, |range, slot| range.flags == slot.flags)
}

/// The same for what devices may reach, and whatever the flags: as they see it.
pub fn merge_reachable<'s>(slots: impl IntoIterator<Item = &'s Slot>) -> Vec<MemoryRange> {
    join(slots.into_iter().filter(|slot| slot.role.is_reachable()), |_, _| true)
}

fn join<'s>(
    slots: impl IntoIterator<Item = &'s Slot>,
    alike: impl Fn(&MemoryRange, &Slot) -> bool,
) -> Vec<MemoryRange> {
    let mut ranges: Vec<MemoryRange> = Vec::new();
    for slot in slots {
        match ranges.last_mut() {
            // The sum is the end of `slot`, which was checked on entry.
            Some(last) if last.continues_with(slot) && alike(last, slot) => last.size += slot.size,
            _ => ranges.push(MemoryRange::of(slot)),
        }
    }
    ranges
}

/// What the hypervisor sets to the number and the size of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotLimits {
    /// How many slots a VM can have.
    pub slots: u32,
    /// How many pages one slot can have.
    pub pages: u64,
    /// Size in bytes of the pieces that a larger range is cut into: round, so that huge pages stay
    /// whole.
    pub cut: u64,
}

impl SlotLimits {
    /// The limits of KVM (`KVM_MEM_MAX_NR_PAGES`): 2^31 - 1 pages a slot; larger ranges are cut
    /// every 4 TiB.
    pub fn kvm(slots: u32) -> Self {
        Self { slots, pages: (1 << 31) - 1, cut: 1 << 42 }
    }
}

/// More slots are needed than there can be.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the wiring needs {needed} memory slots, and the hypervisor has {limit}")]
pub struct TooManySlots {
    /// How many are needed.
    pub needed: usize,
    /// How many there can be.
    pub limit: u32,
}

/// A slot as it was given to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSlot {
    /// Its number.
    pub number: u32,
    /// What it shows.
    pub range: MemoryRange,
}

impl KernelSlot {
    /// The hypervisor's form of it.
    pub fn memory_slot(&self) -> MemorySlot {
        MemorySlot {
            slot: self.number,
            guest_address: self.range.base,
            size: self.range.size,
            host_address: self.range.host_address(),
            flags: self.range.flags,
        }
    }
}

/// All slots that the kernel has, by guest-physical address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelSlots(BTreeMap<u64, KernelSlot>);

impl KernelSlots {
    /// The slots in address order.
    pub fn iter(&self) -> impl Iterator<Item = &KernelSlot> {
        self.0.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How these differ from what was there `before`, however that came about.
    pub fn since(&self, before: &Self) -> SlotChanges {
        let mut changes = SlotChanges::default();
        let stays = |a: &KernelSlot, b: &KernelSlot| {
            let untracked = |slot: &KernelSlot| slot.range.flags - SlotFlags::LOG_DIRTY;
            a.range.same_backing(&b.range) && untracked(a) == untracked(b)
        };
        for slot in before.iter() {
            match self.0.get(&slot.range.base).filter(|now| stays(slot, now)) {
                Some(now) if now.range.flags != slot.range.flags => {
                    changes.reflagged.push((slot.clone(), now.clone()));
                }
                Some(_) => {}
                None => changes.removed.push(slot.clone()),
            }
        }
        let new = |now: &&KernelSlot| !before.0.get(&now.range.base).is_some_and(|slot| stays(slot, now));
        changes.added = self.iter().filter(new).cloned().collect();
        changes
    }
}

/// How the slots change: what goes, what comes, what only changes its flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotChanges {
    /// Slots that go.
    pub removed: Vec<KernelSlot>,
    /// Slots that come. They may have the numbers of slots that go.
    pub added: Vec<KernelSlot>,
    /// Slots whose tracking changes: before, and after.
    pub reflagged: Vec<(KernelSlot, KernelSlot)>,
}

/// Compares what the kernel has with what it should have.
///
/// A slot that shows the right memory stays as it is, even where a neighbour could now be joined to
/// it: joining would take memory away from a running guest for a moment, and cost two calls more.
/// What is new is joined with what is new. Returns the changes, and the slots after them.
///
/// # Errors
/// The wiring needs more slots than there can be.
pub fn changes(
    kernel: &KernelSlots,
    wanted: &[MemoryRange],
    limits: SlotLimits,
) -> Result<(SlotChanges, KernelSlots), TooManySlots> {
    let mut changes = SlotChanges::default();
    let mut after = BTreeMap::new();
    let mut fresh = Vec::new();
    let mut wanted = wanted.iter().peekable();
    // Up to where the range that `wanted` is at is dealt with.
    let mut done = wanted.peek().map_or(0, |range| range.base);
    for slot in kernel.iter() {
        while let Some(range) = wanted.next_if(|range| range.end() <= slot.range.base) {
            cut(&mut fresh, range, done, range.end(), limits);
            done = wanted.peek().map_or(0, |next| next.base);
        }
        match wanted.peek() {
            Some(range) if range.shows(&slot.range) => {
                cut(&mut fresh, range, done, slot.range.base, limits);
                done = slot.range.end();
                let range = MemoryRange { flags: range.flags, ..slot.range.clone() };
                let kept = KernelSlot { number: slot.number, range };
                if kept.range.flags != slot.range.flags {
                    changes.reflagged.push((slot.clone(), kept.clone()));
                }
                after.insert(kept.range.base, kept);
            }
            _ => changes.removed.push(slot.clone()),
        }
    }
    while let Some(range) = wanted.next() {
        cut(&mut fresh, range, done, range.end(), limits);
        done = wanted.peek().map_or(0, |next| next.base);
    }

    let needed = after.len() + fresh.len();
    if u32::try_from(needed).map_or(true, |needed| needed > limits.slots) {
        return Err(TooManySlots { needed, limit: limits.slots });
    }
    let mut taken: Vec<u32> = after.values().map(|slot: &KernelSlot| slot.number).collect();
    taken.sort_unstable();
    let mut taken = taken.into_iter().peekable();
    let mut free = (0..limits.slots).filter(|number| taken.next_if_eq(number).is_none());
    for range in fresh {
        let number = free.next().ok_or(TooManySlots { needed, limit: limits.slots })?;
        let slot = KernelSlot { number, range };
        after.insert(slot.range.base, slot.clone());
        changes.added.push(slot);
    }
    Ok((changes, KernelSlots(after)))
}

/// Adds `from..to` of a range to `fresh`, in pieces that the kernel takes.
fn cut(fresh: &mut Vec<MemoryRange>, range: &MemoryRange, from: u64, to: u64, limits: SlotLimits) {
    let mut at = from;
    while at < to {
        let fits = (to - at) / PAGE_SIZE <= limits.pages;
        // The next multiple of the cut: at least one page on, as both are made of whole pages.
        let next = if fits { to } else { (at - at % limits.cut).saturating_add(limits.cut).min(to) };
        fresh.push(range.part(at, next));
        at = next;
    }
}

#[cfg(test)]
mod tests;
