//! The view of guest memory.

use std::{fs::File, sync::Arc};

use vm_memory::{
    Address, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress,
    MmapRegion,
};

use super::{GuestMemoryView, MemoryHandle, RamRegion, view_of};
use crate::{
    Wired, Wiring,
    testing::{PAGE, host, ram},
};

const LEN: usize = 0x1000;
/// `PROT_READ` and `MAP_PRIVATE` of mmap(2).
const READ: i32 = 1;
const PRIVATE: i32 = 2;

fn wiring(slots: Vec<crate::Slot>) -> Wiring {
    let mut wiring = Wiring::default();
    wiring.add(&Wired { slots, ..Wired::default() }).unwrap();
    wiring
}

#[test]
fn an_access_goes_across_pieces_of_one_mapping_and_across_mappings() {
    let (a, b) = (host(4), host(4));
    let view = view_of(&wiring(vec![ram(0, 1, &a, 1), ram(1, 1, &a, 2), ram(2, 1, &b, 0), ram(9, 1, &b, 3)]));
    assert_eq!(view.num_regions(), 3);
    let data: Vec<u8> = (0..3 * PAGE).map(|at| (at / 7).to_le_bytes()[0]).collect();
    view.write_slice(&data, GuestAddress(0)).unwrap();
    let mut back = vec![0; data.len()];
    view.read_slice(&mut back, GuestAddress(0)).unwrap();
    assert_eq!(back, data);
    // The host memory has it at the offsets of the slots.
    assert_eq!(view.get_host_address(GuestAddress(PAGE)).unwrap(), a.as_ptr().wrapping_add(2 * LEN));
    // Not across the hole, and not beyond the region although the mapping goes on.
    assert!(view.write_slice(&[0; 2], GuestAddress(3 * PAGE - 1)).is_err());
    let region = view.find_region(GuestAddress(0)).unwrap();
    assert!(region.get_slice(MemoryRegionAddress(PAGE), 2 * LEN).is_err());
    assert!(region.get_slice(MemoryRegionAddress(u64::MAX), 2).is_err());
    assert!(region.get_host_address(MemoryRegionAddress(2 * PAGE)).is_err());
    assert_eq!(region.last_addr().raw_value(), 2 * PAGE - 1);
}

#[test]
fn a_region_of_a_file_counts_its_offset_from_itself() {
    let file = File::open("/proc/self/exe").unwrap();
    let file = FileOffset::new(file, PAGE);
    let mapping = Arc::new(MmapRegion::build(Some(file), 2 * LEN, READ, PRIVATE).unwrap());
    let region = RamRegion::new(GuestAddress(0), PAGE, mapping, PAGE).unwrap();
    assert_eq!(region.file_offset().unwrap().start(), 2 * PAGE);
}

#[test]
fn regions_that_are_none() {
    let mapping = host(2);
    let region = |base, size, offset| RamRegion::new(GuestAddress(base), size, Arc::clone(&mapping), offset);
    assert!(region(0, 2 * PAGE, 0).is_some());
    assert!(region(0, 0, 0).is_none());
    assert!(region(0, 2 * PAGE, PAGE).is_none());
    assert!(region(0, PAGE, u64::MAX).is_none());
    assert!(region(u64::MAX, PAGE, 0).is_none());
}

#[test]
fn a_fixed_handle_shows_its_view() {
    let mapping = host(1);
    let region = RamRegion::new(GuestAddress(PAGE), PAGE, mapping, 0).unwrap();
    let handle = MemoryHandle::fixed(GuestMemoryView::from_regions(vec![region]).unwrap());
    let mut reader = handle.reader();
    reader.get().write_obj(5_u32, GuestAddress(PAGE)).unwrap();
    assert_eq!(handle.view().read_obj::<u32>(GuestAddress(PAGE)).unwrap(), 5);
    assert_eq!(view_of(&Wiring::default()).num_regions(), 0);
}
