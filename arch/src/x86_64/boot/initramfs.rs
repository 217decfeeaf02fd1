//! Where the initial RAM file system goes.

use super::{BootError, Piece, PieceSource};
use crate::x86_64::{
    layout::{self, PAGE_SIZE, Range},
    memory_map::MemoryMap,
};

/// Finds a place for `size` bytes: page-aligned, as high as possible in RAM below `limit`, above
/// 1 MiB, and beside everything in `taken`. High, because kernels move themselves upwards from
/// where they are loaded.
///
/// # Errors
/// The size is zero, or there is no such place.
pub fn place(size: u64, limit: u64, memory: &MemoryMap, taken: &[Range]) -> Result<Piece, BootError> {
    if size == 0 {
        return Err(BootError::InitramfsEmpty);
    }
    let no_room = BootError::InitramfsNoRoom { size, limit };
    let Some(room) = size.checked_next_multiple_of(PAGE_SIZE) else { return Err(no_room) };
    for ram in memory.ram().rev() {
        let floor = ram.start.max(layout::HIGH_RAM_START);
        let mut end = ram.end().min(limit) / PAGE_SIZE * PAGE_SIZE;
        while let Some(start) = end.checked_sub(room).filter(|start| *start >= floor) {
            let candidate = Range { start, size: room };
            match taken.iter().filter(|range| range.overlaps(&candidate)).map(|range| range.start).min() {
                None => return Ok(Piece { at: start, source: PieceSource::Initramfs { len: size } }),
                Some(below) => end = below / PAGE_SIZE * PAGE_SIZE,
            }
        }
    }
    Err(no_room)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86_64::layout::ram_regions;

    const MIB: u64 = 1 << 20;

    fn memory(size: u64) -> MemoryMap {
        MemoryMap::new(&ram_regions(size).unwrap(), &[]).unwrap()
    }

    #[test]
    fn goes_to_the_top_of_low_ram() {
        let at =
            |size, limit, taken: &[Range]| place(size, limit, &memory(6 << 30), taken).map(|piece| piece.at);
        assert_eq!(at(MIB, layout::HOLE_END, &[]).unwrap(), 0xc000_0000 - MIB);
        assert_eq!(at(1, layout::HOLE_END, &[]).unwrap(), 0xc000_0000 - 4096);
        assert_eq!(at(MIB, 0x8000_0000 - 1, &[]).unwrap(), 0x8000_0000 - MIB - 4096);
    }

    #[test]
    fn avoids_what_is_taken() {
        let taken = [Range { start: 60 * MIB, size: MIB }, Range { start: 16 * MIB, size: 20 * MIB }];
        let at = |size| place(size, layout::HOLE_END, &memory(64 * MIB), &taken).map(|piece| piece.at);
        assert_eq!(at(2 * MIB).unwrap(), 62 * MIB);
        assert_eq!(at(4 * MIB).unwrap(), 56 * MIB);
        assert_eq!(at(15 * MIB).unwrap(), 45 * MIB);
        assert!(matches!(at(25 * MIB), Err(BootError::InitramfsNoRoom { .. })));
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let at = |size| place(size, layout::HOLE_END, &memory(64 * MIB), &[]);
        assert!(matches!(at(0), Err(BootError::InitramfsEmpty)));
        assert!(at(63 * MIB).is_ok());
        for size in [63 * MIB + 1, 64 * MIB, 1 << 40, u64::MAX] {
            assert!(matches!(at(size), Err(BootError::InitramfsNoRoom { .. })));
        }
    }
}
