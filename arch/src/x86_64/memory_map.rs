//! The memory map that the guest is told at boot, in the two forms that boot protocols carry.
//!
//! It lists what is RAM and what the guest must leave alone; what it does not list is nothing or a
//! device. Built once from the RAM ranges, then handed to [`boot::plan`](super::boot::plan), which
//! checks every load address against it.

use super::layout::{self, LayoutError, Range};

/// Most entries of a memory map: what the Linux zero page holds (`E820_MAX_ENTRIES_ZEROPAGE`).
/// Linux cuts a PVH map off at the same number.
pub const MAX_ENTRIES: usize = 128;

/// What a range is, with the numbers of ACPI 6.5, table 15.3, which PVH shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemoryKind {
    /// RAM that the guest may use.
    Ram = 1,
    /// Never to be used.
    Reserved = 2,
    /// ACPI tables; RAM once the guest has read them.
    Acpi = 3,
    /// ACPI memory to be kept.
    AcpiNvs = 4,
}

impl MemoryKind {
    /// The number in the map.
    pub fn number(self) -> u32 {
        match self {
            Self::Ram => 1,
            Self::Reserved => 2,
            Self::Acpi => 3,
            Self::AcpiNvs => 4,
        }
    }
}

/// One entry of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemoryMapEntry {
    /// Where.
    pub range: Range,
    /// What.
    pub kind: MemoryKind,
}

/// A memory map: sorted, without overlaps, at most [`MAX_ENTRIES`] long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryMap(Vec<MemoryMapEntry>);

impl MemoryMap {
    /// The map of a guest with this RAM, in ascending order, of which `taken` is not for general use
    /// (ACPI tables at the end of low RAM, say).
    ///
    /// What the architecture reserves is added: the extended BIOS data area, the ranges of ACPI,
    /// SMBIOS and the reset vector, ECAM, and the pages KVM takes.
    ///
    /// # Errors
    /// RAM ranges overlap each other or the hole, something in `taken` overlaps another entry of
    /// it, or there are too many entries.
    pub fn new(ram: &[Range], taken: &[MemoryMapEntry]) -> Result<Self, LayoutError> {
        let reserved =
            |start, size| MemoryMapEntry { range: Range { start, size }, kind: MemoryKind::Reserved };
        let mut carved = vec![
            reserved(layout::EBDA_START, layout::EBDA_END - layout::EBDA_START),
            reserved(layout::ACPI_START, layout::HIGH_RAM_START - layout::ACPI_START),
            reserved(layout::ECAM_START, layout::ECAM_SIZE),
            reserved(layout::KVM_IDENTITY_MAP_START, layout::KVM_IDENTITY_MAP_SIZE + layout::KVM_TSS_SIZE),
        ];
        carved.extend_from_slice(taken);
        carved.retain(|entry| entry.range.size > 0);
        carved.sort_unstable();
        disjoint(&carved)?;

        // The range between conventional memory and the ACPI tables is backed, so that tables can be
        // put there, but it is video memory and option ROMs to every guest: neither RAM nor reserved.
        let legacy_hole = Range { start: layout::EBDA_END, size: layout::HIGH_RAM_START - layout::EBDA_END };
        let mut cuts: Vec<Range> = carved.iter().map(|entry| entry.range).collect();
        cuts.push(legacy_hole);
        cuts.sort_unstable();

        let mut entries = carved;
        for range in ram.iter().filter(|range| range.size > 0) {
            let hole = Range { start: layout::HOLE_START, size: layout::HOLE_END - layout::HOLE_START };
            if range.overlaps(&hole) {
                return Err(overlap(range, &hole));
            }
            let mut start = range.start;
            for cut in &cuts {
                if cut.end() <= start || cut.start >= range.end() {
                    continue;
                }
                if cut.start > start {
                    entries.push(ram_entry(start, cut.start));
                }
                start = cut.end();
            }
            if start < range.end() {
                entries.push(ram_entry(start, range.end()));
            }
        }
        entries.sort_unstable();
        disjoint(&entries)?;
        if entries.len() > MAX_ENTRIES {
            return Err(LayoutError::TooManyEntries { entries: entries.len(), max: MAX_ENTRIES });
        }
        Ok(Self(entries))
    }

    /// The entries in ascending order.
    pub fn entries(&self) -> &[MemoryMapEntry] {
        &self.0
    }

    /// The ranges of RAM in ascending order.
    pub fn ram(&self) -> impl DoubleEndedIterator<Item = Range> + '_ {
        self.0.iter().filter(|entry| entry.kind == MemoryKind::Ram).map(|entry| entry.range)
    }

    /// The map as PVH carries it: entries of 24 bytes (`hvm_memmap_table_entry`).
    pub fn to_pvh(&self) -> Vec<u8> {
        self.0.iter().flat_map(|entry| encode(entry).into_iter().chain([0; 4])).collect()
    }

    /// The map as the Linux zero page carries it: entries of 20 bytes (`boot_e820_entry`).
    pub fn to_e820(&self) -> Vec<u8> {
        self.0.iter().flat_map(encode).collect()
    }
}

fn ram_entry(start: u64, end: u64) -> MemoryMapEntry {
    MemoryMapEntry { range: Range { start, size: end - start }, kind: MemoryKind::Ram }
}

fn encode(entry: &MemoryMapEntry) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(24);
    bytes.extend_from_slice(&entry.range.start.to_le_bytes());
    bytes.extend_from_slice(&entry.range.size.to_le_bytes());
    bytes.extend_from_slice(&entry.kind.number().to_le_bytes());
    bytes
}

fn overlap(first: &Range, second: &Range) -> LayoutError {
    LayoutError::Overlap {
        first: first.start,
        first_end: first.end(),
        second: second.start,
        second_end: second.end(),
    }
}

/// Checks sorted entries.
fn disjoint(entries: &[MemoryMapEntry]) -> Result<(), LayoutError> {
    for (first, second) in entries.iter().zip(entries.iter().skip(1)) {
        if first.range.overlaps(&second.range) {
            return Err(overlap(&first.range, &second.range));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::x86_64::layout::ram_regions;

    fn summary(map: &MemoryMap) -> Vec<(u64, u64, u32)> {
        map.entries().iter().map(|e| (e.range.start, e.range.end(), e.kind.number())).collect()
    }

    #[test]
    fn map_of_5_gib() {
        let map = MemoryMap::new(&ram_regions(5 << 30).unwrap(), &[]).unwrap();
        assert_eq!(
            summary(&map),
            [
                (0, 0x9_fc00, 1),
                (0x9_fc00, 0xa_0000, 2),
                (0xe_0000, 0x10_0000, 2),
                (0x10_0000, 0xc000_0000, 1),
                (0xe000_0000, 0xf000_0000, 2),
                (0xfeff_c000, 0xff00_0000, 2),
                (0x1_0000_0000, 0x1_8000_0000, 1),
            ]
        );
        assert_eq!(map.to_e820().len(), 7 * 20);
        assert_eq!(map.to_pvh().len(), 7 * 24);
        assert_eq!(map.to_pvh()[24..48], [&map.to_e820()[20..40], &[0; 4]].concat());
    }

    #[test]
    fn taken_ranges_are_cut_out_of_ram() {
        let top = 0x2000_0000;
        let tables =
            MemoryMapEntry { range: Range { start: top - 0x8000, size: 0x8000 }, kind: MemoryKind::Acpi };
        let map = MemoryMap::new(&ram_regions(top).unwrap(), &[tables]).unwrap();
        assert!(map.entries().contains(&tables));
        assert_eq!(map.ram().last().unwrap(), Range { start: 0x10_0000, size: top - 0x8000 - 0x10_0000 });
    }

    #[test]
    fn overlaps_are_refused() {
        let ram = [Range { start: 0, size: 0x20_0000 }, Range { start: 0x1f_f000, size: 0x1000 }];
        assert!(matches!(MemoryMap::new(&ram, &[]), Err(LayoutError::Overlap { .. })));
        let ram = [Range { start: 0, size: layout::HOLE_START + 0x1000 }];
        assert!(matches!(MemoryMap::new(&ram, &[]), Err(LayoutError::Overlap { .. })));
        let entry = MemoryMapEntry { range: Range { start: 0xf_f000, size: 0x2000 }, kind: MemoryKind::Acpi };
        assert!(matches!(MemoryMap::new(&[], &[entry]), Err(LayoutError::Overlap { .. })));
    }

    #[test]
    fn too_many_entries_are_refused() {
        let ram: Vec<Range> =
            (0..200).map(|n| Range { start: 0x10_0000 + n * 0x2000, size: 0x1000 }).collect();
        assert_eq!(
            MemoryMap::new(&ram, &[]),
            Err(LayoutError::TooManyEntries { entries: 204, max: MAX_ENTRIES })
        );
    }

    proptest! {
        #[test]
        fn ram_in_the_map_is_ram_minus_the_cuts(pages in 1u64..4 << 20, cut in 0x100u64..0x200, len in 1u64..64) {
            let ram = ram_regions(pages * 4096).unwrap();
            let taken = MemoryMapEntry {
                range: Range { start: cut * 4096, size: len * 4096 },
                kind: MemoryKind::Reserved,
            };
            let map = MemoryMap::new(&ram, &[taken]).unwrap();
            for range in map.ram() {
                prop_assert!(ram.iter().any(|r| r.contains(&range)));
                prop_assert!(!range.overlaps(&taken.range));
                prop_assert!(range.end() <= layout::EBDA_START || range.start >= layout::HIGH_RAM_START);
            }
        }

        #[test]
        fn nothing_panics(ranges in prop::collection::vec((any::<u64>(), any::<u64>()), 0..20), taken: (u64, u64)) {
            let ram: Vec<Range> = ranges.iter().map(|&(start, size)| Range { start, size }).collect();
            let taken = MemoryMapEntry { range: Range { start: taken.0, size: taken.1 }, kind: MemoryKind::Acpi };
            let _ = MemoryMap::new(&ram, &[taken]);
        }
    }
}
