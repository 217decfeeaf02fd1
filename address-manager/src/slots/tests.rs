//! Every small case of merging and of changing slots.

use std::{collections::BTreeMap, sync::Arc};

use hypervisor::SlotFlags;
use vm_memory::MmapRegion;

use super::{KernelSlots, MemoryRange, SlotLimits, changes, merge, merge_reachable};
use crate::{
    Slot, SlotRole,
    testing::{PAGE, host, ram},
};

const LIMITS: SlotLimits = SlotLimits { slots: 64, pages: u64::MAX, cut: 1 << 42 };

/// What one page of a small guest may show.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Page {
    Nothing,
    Memory,
    Tracked,
    ReadOnly,
    Other,
}

const ALL: [Page; 5] = [Page::Nothing, Page::Memory, Page::Tracked, Page::Other, Page::ReadOnly];

/// Each guest as slots of one page, so that merging has all of the work.
fn slots(pages: &[Page], mappings: &[Arc<MmapRegion>; 2]) -> Vec<Slot> {
    let mut slots = Vec::new();
    for (at, page) in (0..).zip(pages) {
        let [one, other] = mappings;
        let slot = ram(at, 1, one, at);
        slots.extend(match page {
            Page::Nothing => None,
            Page::Memory => Some(slot),
            Page::Tracked => Some(Slot { flags: SlotFlags::LOG_DIRTY, ..slot }),
            Page::ReadOnly => Some(Slot { flags: SlotFlags::READ_ONLY, ..slot }),
            Page::Other => Some(Slot { mapping: Arc::clone(other), ..slot }),
        });
    }
    slots
}

/// All guests of that many pages that are made of the first `kinds` kinds.
fn guests(pages: usize, kinds: usize) -> Vec<Vec<Page>> {
    let mut guests = vec![Vec::new()];
    for _ in 0..pages {
        guests = guests
            .iter()
            .flat_map(|pages| ALL[..kinds].iter().map(|page| pages.iter().copied().chain([*page]).collect()))
            .collect();
    }
    guests
}

/// What each page shows: host address and flags.
fn seen(kernel: &KernelSlots) -> BTreeMap<u64, (u64, SlotFlags)> {
    let pages = |range: &MemoryRange| {
        let (base, host, flags) = (range.base, range.host_address(), range.flags);
        (0..range.size / PAGE).map(move |page| (base + page * PAGE, (host + page * PAGE, flags)))
    };
    kernel.iter().flat_map(|slot| pages(&slot.range)).collect()
}

#[test]
fn every_small_guest_merges_to_the_fewest_ranges() {
    let mappings = [host(8), host(8)];
    for pages in guests(4, 5) {
        let ranges = merge(&slots(&pages, &mappings));
        // A range begins wherever a page differs from the one below.
        let begins = |at: usize| pages[at] != Page::Nothing && (at == 0 || pages[at - 1] != pages[at]);
        assert_eq!(ranges.len(), (0..pages.len()).filter(|at| begins(*at)).count(), "{pages:?}");
        let whole = ranges.iter().map(|range| range.size / PAGE).sum::<u64>();
        assert_eq!(whole, pages.iter().filter(|page| **page != Page::Nothing).count() as u64);
    }
}

#[test]
fn every_small_change() {
    let mappings = [host(8), host(8)];
    every_change_between(&guests(4, 4), &mappings);
    every_change_between(&guests(3, 5), &mappings);
}

fn every_change_between(guests: &[Vec<Page>], mappings: &[Arc<MmapRegion>; 2]) {
    for before in guests {
        let (first, kernel) =
            changes(&KernelSlots::default(), &merge(&slots(before, mappings)), LIMITS).unwrap();
        assert!(first.removed.is_empty() && first.reflagged.is_empty());
        for after in guests {
            let wanted = merge(&slots(after, mappings));
            let (change, kernel_after) = changes(&kernel, &wanted, LIMITS).unwrap();
            let name = || format!("{before:?} -> {after:?}: {change:?}");

            // The kernel shows what is wanted.
            let (_, expected) = changes(&KernelSlots::default(), &wanted, LIMITS).unwrap();
            assert_eq!(seen(&kernel_after), seen(&expected), "{}", name());

            // The changes lead there, and use each number once at a time.
            let mut numbers: BTreeMap<u32, MemoryRange> =
                kernel.iter().map(|slot| (slot.number, slot.range.clone())).collect();
            for slot in &change.removed {
                assert_eq!(numbers.remove(&slot.number).as_ref(), Some(&slot.range), "{}", name());
            }
            for slot in &change.added {
                assert!(numbers.insert(slot.number, slot.range.clone()).is_none(), "{}", name());
                assert!((slot.number as usize) < after.len(), "the lowest free number: {}", name());
            }
            for (old, new) in &change.reflagged {
                // KVM changes tracking in place, and nothing else (KVM API 4.35).
                assert_eq!(old.range.flags ^ new.range.flags, SlotFlags::LOG_DIRTY);
                assert!(old.range.same_backing(&new.range) && old.number == new.number, "{}", name());
                numbers.insert(new.number, new.range.clone());
            }
            let there: BTreeMap<_, _> =
                kernel_after.iter().map(|slot| (slot.number, slot.range.clone())).collect();
            assert_eq!(numbers, there, "{}", name());

            // Nothing is touched that is wanted as it is, and what is new is as large as can be.
            let page = |pages: &[Page], at: u64| pages[usize::try_from(at / PAGE).unwrap()];
            let backing = |page| if page == Page::Tracked { Page::Memory } else { page };
            for slot in &change.removed {
                let range = &slot.range;
                let first = page(after, range.base);
                let uniform = (0..range.size / PAGE).all(|at| page(after, range.base + at * PAGE) == first);
                let same = backing(first) == backing(page(before, range.base));
                assert!(!(uniform && same), "{}", name());
            }
            for pair in change.added.windows(2) {
                let [low, high] = [&pair[0].range, &pair[1].range];
                let alike = page(after, low.base) == page(after, high.base);
                assert!(low.end() != high.base || !alike, "{}", name());
            }
        }
    }
}

#[test]
fn a_range_beyond_the_page_limit_is_cut_at_round_addresses() {
    let mapping = host(32);
    let limits = SlotLimits { slots: 8, pages: 7, cut: 4 * PAGE };
    let wanted = merge(&[ram(3, 18, &mapping, 0)]);
    let (change, kernel) = changes(&KernelSlots::default(), &wanted, limits).unwrap();
    let cut: Vec<_> =
        change.added.iter().map(|slot| (slot.range.base / PAGE, slot.range.size / PAGE)).collect();
    assert_eq!(cut, [(3, 1), (4, 4), (8, 4), (12, 4), (16, 5)]);
    // All of it is there, so nothing more is done.
    let (again, same) = changes(&kernel, &wanted, limits).unwrap();
    assert_eq!((again.added.len(), again.removed.len()), (0, 0));
    assert_eq!(same, kernel);
}

#[test]
fn a_guest_of_9_tib_fits_slots_of_kvm() {
    let mapping = host(1);
    // No such memory is mapped: only the arithmetic is looked at.
    let range = MemoryRange { size: 9 << 40, ..merge(&[ram(0, 1, &mapping, 0)]).remove(0) };
    let (change, _) = changes(&KernelSlots::default(), &[range], SlotLimits::kvm(509)).unwrap();
    assert_eq!(change.added.iter().map(|slot| slot.range.size >> 40).collect::<Vec<_>>(), [4, 5]);
    assert!(change.added.iter().all(|slot| slot.range.size / PAGE < 1 << 31));
}

#[test]
fn more_slots_than_there_can_be_are_refused() {
    let mapping = host(8);
    let wanted = merge(&[ram(0, 1, &mapping, 0), ram(2, 1, &mapping, 1), ram(4, 1, &mapping, 2)]);
    let limits = SlotLimits { slots: 2, ..LIMITS };
    let error = changes(&KernelSlots::default(), &wanted, limits).unwrap_err();
    assert_eq!(error.to_string(), "the wiring needs 3 memory slots, and the hypervisor has 2");
}

#[test]
fn a_neighbour_of_live_memory_leaves_it_alone() {
    let mapping = host(8);
    let (_, kernel) = changes(&KernelSlots::default(), &merge(&[ram(0, 2, &mapping, 0)]), LIMITS).unwrap();
    let wanted = merge(&[ram(0, 2, &mapping, 0), ram(2, 1, &mapping, 2), ram(3, 1, &mapping, 3)]);
    assert_eq!(wanted.len(), 1);
    let (change, _) = changes(&kernel, &wanted, LIMITS).unwrap();
    assert!(change.removed.is_empty());
    assert_eq!(change.added.len(), 1);
    assert_eq!((change.added[0].number, change.added[0].range.size), (1, 2 * PAGE));
}

#[test]
fn devices_see_main_and_persistent_memory_and_no_flags() {
    let mapping = host(8);
    let tracked = Slot { flags: SlotFlags::LOG_DIRTY, ..ram(1, 1, &mapping, 1) };
    let window = Slot { role: SlotRole::Device, ..ram(2, 1, &mapping, 2) };
    let persistent = Slot { role: SlotRole::Persistent, ..ram(3, 3, &mapping, 3) };
    let ranges = merge_reachable(&[ram(0, 1, &mapping, 0), tracked, window, persistent]);
    let pages = |range: &MemoryRange| (range.base / PAGE, range.size / PAGE);
    assert_eq!(ranges.iter().map(pages).collect::<Vec<_>>(), [(0, 2), (3, 3)]);
}
