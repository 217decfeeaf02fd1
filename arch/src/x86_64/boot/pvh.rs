//! The Xen PVH boot protocol ("x86/HVM direct boot ABI", version 1 of `hvm_start_info`).
//!
//! An ELF kernel is loaded to the physical addresses of its segments and entered in 32-bit mode at
//! the address its Xen note of type 18 (`XEN_ELFNOTE_PHYS32_ENTRY`) holds. EBX points to the start
//! info, which points to the memory map, the command line, the initramfs and the ACPI root pointer.

use super::{
    BootError, BootPlan, BootProtocol, BootRequest, Piece, PieceSource, check_load_range, cmdline_piece,
    elf::{self, Elf, Note, Segment},
    image::Fields,
    initramfs, registers,
};
use crate::x86_64::layout::{self, Range};

const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
const START_INFO_MAGIC: u32 = 0x336e_c578;
const START_INFO_VERSION: u32 = 1;

/// Plans the boot of an ELF file.
///
/// # Errors
/// The file is damaged, has no PVH entry point, or does not fit into the guest's memory.
pub fn plan(request: &BootRequest<'_>) -> Result<BootPlan, BootError> {
    let elf = elf::parse(request.kernel)?;
    let entry = entry_point(&elf)?;
    let loaded = check_segments(&elf.segments, request)?;
    if !loaded.iter().any(|range| range.contains(&Range { start: entry, size: 1 })) {
        return Err(BootError::EntryOutside { entry });
    }

    let mut pieces = Vec::new();
    for segment in &elf.segments {
        pieces.extend(segment_pieces(segment));
    }
    let initramfs = request
        .initramfs_size
        .map(|size| initramfs::place(size, layout::HOLE_END, request.memory, &loaded))
        .transpose()?;

    let cmdline = cmdline_piece(request.cmdline, u64::MAX)?;
    let map = request.memory.to_pvh();
    pieces.push(start_info(request, initramfs.is_some()));
    if let Some(initramfs) = initramfs {
        pieces.push(module_list(&initramfs.range()));
        pieces.push(initramfs);
    }
    pieces.push(Piece { at: layout::PVH_MEMORY_MAP_START, source: PieceSource::Bytes(map) });
    pieces.push(cmdline);
    let registers = registers::pvh(entry, layout::PVH_START_INFO_START);
    pieces.push(registers::gdt(&registers));
    Ok(BootPlan { protocol: BootProtocol::Pvh, pieces, entry: registers })
}

fn entry_point(elf: &Elf) -> Result<u64, BootError> {
    let is_entry = |note: &&Note| note.owner == b"Xen" && note.kind == XEN_ELFNOTE_PHYS32_ENTRY;
    let note = elf.notes.iter().find(is_entry).ok_or(BootError::NoPvhNote)?;
    let fields = Fields(&note.content);
    let address = match note.content.len() {
        4 => fields.u32(0).map(u64::from),
        8 => fields.u64(0),
        _ => None,
    };
    let entry = address.ok_or(BootError::PvhNoteSize { len: note.content.len() as u64 })?;
    if entry > u64::from(u32::MAX) {
        return Err(BootError::Field { what: "PVH entry point", value: entry, expected: "a 32-bit address" });
    }
    Ok(entry)
}

/// The ranges the segments occupy, in ascending order.
fn check_segments(segments: &[Segment], request: &BootRequest<'_>) -> Result<Vec<Range>, BootError> {
    if segments.is_empty() {
        return Err(BootError::NoSegments);
    }
    let mut ranges = Vec::with_capacity(segments.len());
    for segment in segments {
        let range = Range { start: segment.address, size: segment.memory_size };
        check_load_range(&format!("segment {}", segment.index), range, request.memory)?;
        ranges.push((range, segment.index));
    }
    ranges.sort_unstable();
    for ((first, first_index), (second, second_index)) in ranges.iter().zip(ranges.iter().skip(1)) {
        if first.overlaps(second) {
            return Err(BootError::SegmentsOverlap {
                first: *first_index,
                first_start: first.start,
                first_end: first.end(),
                second: *second_index,
                second_start: second.start,
                second_end: second.end(),
            });
        }
    }
    Ok(ranges.into_iter().map(|(range, _)| range).collect())
}

fn segment_pieces(segment: &Segment) -> impl Iterator<Item = Piece> {
    let content = (segment.file_size > 0).then_some(Piece {
        at: segment.address,
        source: PieceSource::Kernel { offset: segment.file_offset, len: segment.file_size },
    });
    let zeros = segment.memory_size - segment.file_size;
    let rest = (zeros > 0).then_some(Piece {
        at: segment.address + segment.file_size,
        source: PieceSource::Zero { len: zeros },
    });
    content.into_iter().chain(rest)
}

/// `struct hvm_start_info`, 56 bytes.
fn start_info(request: &BootRequest<'_>, has_module: bool) -> Piece {
    let entries = u32::try_from(request.memory.entries().len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(56);
    for word in [START_INFO_MAGIC, START_INFO_VERSION, 0, u32::from(has_module)] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    let modules = if has_module { layout::PVH_MODULES_START } else { 0 };
    for address in [modules, layout::CMDLINE_START, request.rsdp, layout::PVH_MEMORY_MAP_START] {
        bytes.extend_from_slice(&address.to_le_bytes());
    }
    for word in [entries, 0] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    Piece { at: layout::PVH_START_INFO_START, source: PieceSource::Bytes(bytes) }
}

/// One `struct hvm_modlist_entry`, 32 bytes: address, size, no command line, reserved.
fn module_list(initramfs: &Range) -> Piece {
    let bytes = [initramfs.start, initramfs.size, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    Piece { at: layout::PVH_MODULES_START, source: PieceSource::Bytes(bytes) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::x86_64::{
        boot::sample::{self, ElfSample},
        layout::ram_regions,
        memory_map::MemoryMap,
    };

    const MIB: u64 = 1 << 20;

    fn memory(size: u64) -> MemoryMap {
        MemoryMap::new(&ram_regions(size).unwrap(), &[]).unwrap()
    }

    fn plan_in(image: &[u8], memory: &MemoryMap, initramfs_size: Option<u64>) -> Result<BootPlan, BootError> {
        let request =
            BootRequest { kernel: &image, initramfs_size, cmdline: b"quiet", memory, rsdp: 0xe_0000 };
        crate::x86_64::boot::plan(&request)
    }

    fn message(image: &[u8]) -> String {
        plan_in(image, &memory(128 * MIB), None).unwrap_err().to_string()
    }

    fn bytes_at(plan: &BootPlan, at: u64) -> &[u8] {
        match plan.pieces.iter().find(|piece| piece.at == at).map(|piece| &piece.source) {
            Some(PieceSource::Bytes(bytes)) => bytes,
            other => panic!("{at:#x} holds {other:?}"),
        }
    }

    #[test]
    fn segments_and_start_info() {
        let plan = plan_in(&ElfSample::default().build(), &memory(128 * MIB), Some(5000)).unwrap();
        assert_eq!(plan.protocol, BootProtocol::Pvh);
        assert_eq!((plan.entry.rip, plan.entry.rbx), (0x10_0010, 0x6000));
        assert_eq!(
            plan.pieces[..2],
            [
                Piece { at: 0x10_0000, source: PieceSource::Kernel { offset: 0x1000, len: 0x800 } },
                Piece { at: 0x10_0800, source: PieceSource::Zero { len: 0x3800 } },
            ]
        );
        let info = Fields(bytes_at(&plan, 0x6000));
        assert_eq!(info.0.len(), 56);
        assert_eq!((info.u32(0), info.u32(4)), (Some(0x336e_c578), Some(1)));
        assert_eq!((info.u32(12), info.u64(16)), (Some(1), Some(0x6040)));
        assert_eq!((info.u64(24), info.u64(32)), (Some(0x2_0000), Some(0xe_0000)));
        assert_eq!((info.u64(40), info.u32(48)), (Some(0x8000), Some(6)));
        let module = Fields(bytes_at(&plan, 0x6040));
        assert_eq!((module.u64(0), module.u64(8)), (Some(128 * MIB - 0x2000), Some(5000)));
        assert_eq!(bytes_at(&plan, 0x2_0000), b"quiet\0");
        assert_eq!(bytes_at(&plan, 0x8000), memory(128 * MIB).to_pvh());
        sample::check_pieces(&plan, &memory(128 * MIB));

        let plan = plan_in(&ElfSample::default().build(), &memory(128 * MIB), None).unwrap();
        let info = Fields(bytes_at(&plan, 0x6000));
        assert_eq!((info.u32(12), info.u64(16)), (Some(0), Some(0)));
    }

    #[test]
    fn notes_of_both_widths_and_machines_are_accepted() {
        for (machine, wide) in [(62, true), (62, false), (3, false)] {
            let image = ElfSample { machine, wide_note: wide, ..Default::default() }.build();
            assert_eq!(plan_in(&image, &memory(128 * MIB), None).unwrap().entry.rip, 0x10_0010);
        }
    }

    #[test]
    fn bad_images_are_named() {
        let good = ElfSample::default();
        let with = |change: fn(&mut ElfSample)| {
            let mut sample = good.clone();
            change(&mut sample);
            message(&sample.build())
        };
        assert_eq!(
            with(|s| s.note = None),
            "ELF file has no PVH entry point (a Xen note of type 18): not a kernel built with CONFIG_PVH"
        );
        assert_eq!(with(|s| s.segments.clear()), "ELF file has no segment to load");
        assert_eq!(with(|s| s.segments[0].3 = 0), "segment 1 has 0x800 bytes in the file and 0x0 in memory");
        assert_eq!(with(|s| s.note = Some(0x50_0000)), "entry point 0x500000 is outside of what is loaded");
        assert_eq!(
            with(|s| s.note = Some(1 << 32)),
            "PVH entry point is 0x100000000, expected a 32-bit address"
        );
        assert_eq!(with(|s| s.machine = 40), "ELF machine is 0x28, expected 0x3e (x86-64) or 3 (i386)");
        assert_eq!(
            with(|s| s.kind = 1),
            "ELF file type is 0x1, expected 2 (executable) or 3 (position-independent)"
        );
        assert_eq!(
            with(|s| s.segments[0].0 = 0x8000),
            "segment 1 at 0x8000..0xc000 overlaps the boot data below 0x30000"
        );
        assert_eq!(
            with(|s| s.segments[0].0 = 0xbfff_f000),
            "segment 1 at 0xbffff000..0xc0003000 overlaps the memory hole 0xc0000000..0x100000000"
        );
        assert_eq!(
            with(|s| s.segments[0].3 = 1 << 30),
            "segment 1 at 0x100000..0x40100000 is beyond the end of guest memory at 0x8000000"
        );
        assert_eq!(
            with(|s| s.segments.push((0x10_2000, 0x1000, 0, 0x1000))),
            "segment 1 at 0x100000..0x104000 overlaps segment 2 at 0x102000..0x103000"
        );
        assert_eq!(
            with(|s| s.segments[0].1 = u64::MAX),
            "truncated: segment 1 ends at byte 0xffffffffffffffff, the image has 0x1800 bytes"
        );
        let image = good.build();
        assert_eq!(
            message(&image[..image.len() - 1]),
            "truncated: segment 1 ends at byte 0x1800, the image has 0x17ff bytes"
        );
        assert_eq!(
            message(&image[..63]),
            "truncated: the ELF header ends at byte 0x40, the image has 0x3f bytes"
        );
        let mut narrow = image.clone();
        narrow[4] = 1;
        assert_eq!(message(&narrow), "ELF class is 0x1, expected 2 (64-bit)");
        narrow[4] = 2;
        narrow[5] = 2;
        assert_eq!(message(&narrow), "ELF byte order is 0x2, expected 1 (little-endian)");
    }

    #[test]
    fn the_initramfs_avoids_the_kernel() {
        let memory = memory(8 * MIB);
        let mut sample = ElfSample::default();
        sample.segments.push((7 * MIB, 0, 0, MIB));
        let plan = plan_in(&sample.build(), &memory, Some(MIB)).unwrap();
        let initramfs = plan.pieces.iter().find(|p| matches!(p.source, PieceSource::Initramfs { .. }));
        assert_eq!(initramfs.unwrap().at, 6 * MIB);
        sample::check_pieces(&plan, &memory);
        let refused = plan_in(&sample.build(), &memory, Some(6 * MIB)).unwrap_err().to_string();
        assert_eq!(
            refused,
            "initramfs of 0x600000 bytes finds no room in RAM below 0x100000000 beside the kernel"
        );
    }

    proptest! {
        #[test]
        fn damaged_images_never_panic(
            flips in prop::collection::vec((0usize..0x180, any::<u8>()), 0..8),
            len in 0usize..0x1800,
            cut: bool,
            ram in 1u64..1 << 21,
            initramfs in proptest::option::of(any::<u64>()),
        ) {
            let mut image = ElfSample::default().build();
            for (offset, byte) in flips {
                image[offset] = byte;
            }
            if cut {
                image.truncate(len);
            }
            let memory = memory(ram * 4096);
            if let Ok(plan) = plan_in(&image, &memory, initramfs) {
                sample::check_pieces(&plan, &memory);
            }
        }

        #[test]
        fn arbitrary_headers_never_panic(body in prop::collection::vec(any::<u8>(), 0..512)) {
            let image = [b"\x7fELF\x02\x01\x01".as_slice(), &body].concat();
            let _ = plan_in(&image, &memory(MIB * 64), Some(4096));
            let _ = plan_in(&body, &memory(MIB * 64), Some(4096));
        }
    }
}
