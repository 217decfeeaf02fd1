//! A file that is given as a kernel, with PVH notes or a bzImage header or whatever is in it.
//!
//! Either it is refused, or the plan that comes out is one that may be carried out unchecked: what is copied from
//! the image is in the image, what is written is in RAM, and no two pieces overlap.

#![no_main]

use std::sync::LazyLock;

use arch::x86_64::{
    boot::{self, BootPlan, BootRequest, PieceSource},
    layout::Range,
    memory_map::MemoryMap,
};
use cumulet_fuzz::Bytes;
use libfuzzer_sys::fuzz_target;

/// RAM below the hole and above it, as a guest of 4 GiB has it.
const RAM: [Range; 2] =
    [Range { start: 0, size: 0xc000_0000 }, Range { start: 0x1_0000_0000, size: 0x4000_0000 }];

static MEMORY: LazyLock<MemoryMap> =
    LazyLock::new(|| MemoryMap::new(&RAM, &[]).expect("the ranges are apart and in order"));

fuzz_target!(|input: &[u8]| {
    let _ = run(Bytes::new(input));
});

/// `None` when the input is used up, or the image was refused.
fn run(mut input: Bytes<'_>) -> Option<()> {
    let flags = input.byte()?;
    let initramfs_size = if flags & 1 != 0 { Some(size(&mut input)?) } else { None };
    let cmdline = [b'a'; 64];
    let cmdline = &cmdline[..usize::from(flags >> 2)];
    let image = input.rest();
    let request = BootRequest { kernel: &image, initramfs_size, cmdline, memory: &MEMORY, rsdp: 0xe_0000 };
    check(&boot::plan(&request).ok()?, image, initramfs_size);
    Some(())
}

/// Mostly a size that fits.
fn size(input: &mut Bytes<'_>) -> Option<u64> {
    let small = input.word()?;
    Some(if small == u32::MAX { input.double()? } else { u64::from(small) })
}

fn check(plan: &BootPlan, image: &[u8], initramfs_size: Option<u64>) {
    for (index, piece) in plan.pieces.iter().enumerate() {
        let range = piece.range();
        let end = range.start.checked_add(range.size).expect("a piece ends somewhere");
        let in_ram = RAM.iter().any(|ram| ram.start <= range.start && end <= ram.start + ram.size);
        assert!(in_ram, "{range:?} is not in RAM");
        match &piece.source {
            PieceSource::Kernel { offset, len } => {
                assert!(offset.checked_add(*len).is_some_and(|end| end <= image.len() as u64));
            }
            PieceSource::Initramfs { len } => assert_eq!(Some(*len), initramfs_size),
            PieceSource::Bytes(_) | PieceSource::Zero { .. } => {}
        }
        for other in &plan.pieces[..index] {
            let other = other.range();
            let apart = end <= other.start || other.start + other.size <= range.start;
            assert!(apart || range.size == 0 || other.size == 0, "{range:?} and {other:?}");
        }
    }
}
