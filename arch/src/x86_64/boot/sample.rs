//! Small valid images for the tests of the boot protocols, and the check every plan must pass.

use super::{BootPlan, PieceSource};
use crate::x86_64::{layout::Range, memory_map::MemoryMap};

/// An ELF file with one note segment (header 0) and load segments (headers 1 and on).
#[derive(Clone, Debug)]
pub struct ElfSample {
    pub kind: u16,
    pub machine: u16,
    /// Entry point of the Xen note; none leaves only a note of another kind.
    pub note: Option<u64>,
    pub wide_note: bool,
    /// Address, file offset, file size, memory size.
    pub segments: Vec<(u64, u64, u64, u64)>,
}

impl Default for ElfSample {
    fn default() -> Self {
        Self {
            kind: 2,
            machine: 62,
            note: Some(0x10_0010),
            wide_note: true,
            segments: vec![(0x10_0000, 0x1000, 0x800, 0x4000)],
        }
    }
}

impl ElfSample {
    pub fn build(&self) -> Vec<u8> {
        let mut image = vec![0; 0x1800];
        let mut put =
            |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01\x01");
        put(16, &self.kind.to_le_bytes());
        put(18, &self.machine.to_le_bytes());
        put(32, &64u64.to_le_bytes());
        put(54, &56u16.to_le_bytes());
        put(56, &u16::try_from(1 + self.segments.len()).unwrap().to_le_bytes());

        let notes = self.notes();
        let mut header = 64;
        let mut program_header =
            |kind: u32, (address, offset, file_size, memory_size): (u64, u64, u64, u64)| {
                put(header, &kind.to_le_bytes());
                put(header + 8, &offset.to_le_bytes());
                put(header + 24, &address.to_le_bytes());
                put(header + 32, &file_size.to_le_bytes());
                put(header + 40, &memory_size.to_le_bytes());
                put(header + 48, &4u64.to_le_bytes());
                header += 56;
            };
        program_header(4, (0, 0x400, notes.len() as u64, notes.len() as u64));
        for segment in &self.segments {
            program_header(1, *segment);
        }
        put(0x400, &notes);
        image
    }

    fn notes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut note = |owner: &[u8], kind: u32, content: &[u8]| {
            for word in [owner.len(), content.len()] {
                bytes.extend(u32::try_from(word).unwrap().to_le_bytes());
            }
            bytes.extend(kind.to_le_bytes());
            for part in [owner, content] {
                bytes.extend(part);
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
        };
        note(b"Linux\0", 257, b"6.12");
        if let Some(entry) = self.note {
            match u32::try_from(entry) {
                Ok(narrow) if !self.wide_note => note(b"Xen\0", 18, &narrow.to_le_bytes()),
                _ => note(b"Xen\0", 18, &entry.to_le_bytes()),
            }
        }
        bytes
    }
}

/// A bzImage of protocol 2.15: one setup sector, 4 KiB of protected-mode code, relocatable, 32 MiB
/// of working memory at 16 MiB.
pub fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 2 * 512 + 0x1000];
    let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &0x100u32.to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x020f_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x214, &0x10_0000u32.to_le_bytes());
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[1, 21]);
    put(0x236, &3u16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x200_0000u32.to_le_bytes());
    image
}

/// What [`super::BootPlan`] promises: no two pieces overlap, and all lie in RAM where there is any.
pub fn check_pieces(plan: &BootPlan, memory: &MemoryMap) {
    let mut ranges: Vec<Range> = plan.pieces.iter().map(super::Piece::range).collect();
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        assert!(!pair[0].overlaps(&pair[1]), "{:#x?}", pair);
    }
    for piece in &plan.pieces {
        // Generated boot data has fixed places, which the machine's minimum of memory covers.
        if !matches!(piece.source, PieceSource::Bytes(_)) {
            assert!(memory.ram().any(|ram| ram.contains(&piece.range())), "{:#x?}", piece.range());
        }
    }
}
