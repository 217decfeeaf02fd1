//! The registers of the boot CPU for each boot protocol, and the tables they point to.

use hypervisor::x86_64::{DescriptorTable, ReadyRegisters, Segment};

use super::{Piece, PieceSource};
use crate::x86_64::layout::{BOOT_STACK_SIZE, BOOT_STACK_START, GDT_START, PAGE_SIZE, PAGE_TABLES_START};

/// `__BOOT_CS` of the Linux boot protocol.
const CODE_SELECTOR: u16 = 0x10;
/// `__BOOT_DS` of the Linux boot protocol.
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set (Intel SDM volume 1, 3.4.3).
const RFLAGS_FIXED: u64 = 1 << 1;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
/// MTRRs are on, and what none of them names is write-back (Intel SDM volume 3, 12.11.2.1).
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// Registers of the PVH entry: 32-bit protected mode with flat segments, paging off, interrupts
/// off, the start info in EBX (Xen "x86/HVM direct boot ABI").
pub fn pvh(entry: u64, start_info: u64) -> ReadyRegisters {
    ReadyRegisters {
        rip: entry,
        rbx: start_info,
        rflags: RFLAGS_FIXED,
        cs: code(false),
        data: data(),
        tr: task(),
        gdt: gdt_register(),
        cr0: CR0_PE | CR0_ET,
        mtrr_default: MTRR_WRITE_BACK,
        ..ReadyRegisters::default()
    }
}

/// Registers of the 64-bit Linux entry: long mode with identity-mapped memory, interrupts off, the
/// zero page in RSI (Linux `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol").
pub fn linux64(entry: u64, zero_page: u64) -> ReadyRegisters {
    ReadyRegisters {
        rip: entry,
        rsp: BOOT_STACK_START + BOOT_STACK_SIZE,
        rsi: zero_page,
        rflags: RFLAGS_FIXED,
        cs: code(true),
        data: data(),
        tr: task(),
        gdt: gdt_register(),
        cr0: CR0_PE | CR0_ET | CR0_PG,
        cr3: PAGE_TABLES_START,
        cr4: CR4_PAE,
        efer: EFER_LME | EFER_LMA,
        mtrr_default: MTRR_WRITE_BACK,
        ..ReadyRegisters::default()
    }
}

/// Registers after a reset, from which the first instruction is fetched 16 bytes below 4 GiB: real mode with the base
/// of CS still where no selector of real mode leads, paging and caches off, interrupts off (Intel SDM volume 3, table
/// 10-1). `signature` is what CPUID leaf 1 has in EAX.
pub fn reset(signature: u32) -> ReadyRegisters {
    let data =
        Segment { limit: 0xffff, kind: 0b0011, code_or_data: true, present: true, ..Segment::default() };
    let table = DescriptorTable { base: 0, limit: 0xffff };
    ReadyRegisters {
        rip: 0xfff0,
        rdx: signature.into(),
        rflags: RFLAGS_FIXED,
        cs: Segment { base: 0xffff_0000, selector: 0xf000, kind: 0b1011, ..data },
        data,
        tr: Segment { kind: 0b1011, code_or_data: false, ..data },
        gdt: table,
        idt: table,
        cr0: CR0_CD | CR0_NW | CR0_ET,
        ..ReadyRegisters::default()
    }
}

/// The global descriptor table that agrees with the segments of `registers`.
pub fn gdt(registers: &ReadyRegisters) -> Piece {
    let task = descriptor(&registers.tr);
    let entries = [0, 0, descriptor(&registers.cs), descriptor(&registers.data), task, 0];
    let bytes = entries.iter().flat_map(|entry: &u64| entry.to_le_bytes()).collect();
    Piece { at: GDT_START, source: PieceSource::Bytes(bytes) }
}

/// Page tables that map the first 4 GiB to themselves with pages of 2 MiB.
pub fn identity_page_tables() -> Piece {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let table = |n: u64| PAGE_TABLES_START + n * PAGE_SIZE;
    let mut entries = vec![table(1) | PRESENT_WRITABLE];
    entries.resize(512, 0);
    entries.extend((0..4).map(|n| table(2 + n) | PRESENT_WRITABLE));
    entries.resize(2 * 512, 0);
    entries.extend((0..4 * 512).map(|n| (n << 21) | LARGE | PRESENT_WRITABLE));
    let bytes = entries.iter().flat_map(|entry: &u64| entry.to_le_bytes()).collect();
    Piece { at: PAGE_TABLES_START, source: PieceSource::Bytes(bytes) }
}

fn code(long: bool) -> Segment {
    Segment {
        base: 0,
        limit: u32::MAX,
        selector: CODE_SELECTOR,
        kind: 0b1011, // code, readable, accessed
        code_or_data: true,
        present: true,
        long,
        big: !long,
        granularity: true,
        ..Segment::default()
    }
}

fn data() -> Segment {
    Segment {
        base: 0,
        limit: u32::MAX,
        selector: DATA_SELECTOR,
        kind: 0b0011, // data, writable, accessed
        code_or_data: true,
        present: true,
        big: true,
        granularity: true,
        ..Segment::default()
    }
}

fn task() -> Segment {
    Segment {
        base: 0,
        limit: 0x67,
        selector: TASK_SELECTOR,
        kind: 0b1011, // busy 32- or 64-bit TSS
        present: true,
        ..Segment::default()
    }
}

fn gdt_register() -> DescriptorTable {
    DescriptorTable { base: GDT_START, limit: 6 * 8 - 1 }
}

/// A segment in the layout of a descriptor table entry (Intel SDM volume 3, 3.4.5).
fn descriptor(segment: &Segment) -> u64 {
    let limit = u64::from(if segment.granularity { segment.limit >> 12 } else { segment.limit });
    let bit = |set: bool, position: u32| u64::from(set) << position;
    let base = segment.base;
    (limit & 0xffff)
        | ((base & 0xff_ffff) << 16)
        | (u64::from(segment.kind & 0xf) << 40)
        | bit(segment.code_or_data, 44)
        | (u64::from(segment.dpl & 3) << 45)
        | bit(segment.present, 47)
        | ((limit >> 16 & 0xf) << 48)
        | bit(segment.long, 53)
        | bit(segment.big, 54)
        | bit(segment.granularity, 55)
        | ((base >> 24 & 0xff) << 56)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(piece: &Piece) -> Vec<u64> {
        let PieceSource::Bytes(bytes) = &piece.source else { panic!("{piece:?}") };
        bytes.chunks_exact(8).map(|chunk| u64::from_le_bytes(chunk.try_into().unwrap())).collect()
    }

    #[test]
    fn descriptor_tables_are_the_usual_ones() {
        let table = gdt(&pvh(0x100_0000, 0x6000));
        assert_eq!(
            words(&table),
            [0, 0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067, 0]
        );
        assert_eq!(words(&gdt(&linux64(0, 0)))[2], 0x00af_9b00_0000_ffff);
    }

    #[test]
    fn page_tables_map_4_gib_to_itself() {
        let piece = identity_page_tables();
        let words = words(&piece);
        assert_eq!(words.len(), 6 * 512);
        for address in [0u64, 0x20_0000, 0x1234_5678, 0x4000_0000, 0xffff_ffff] {
            let follow = |table: u64, shift: u32| {
                let index = (table - PAGE_TABLES_START) / 8 + (address >> shift & 511);
                words[usize::try_from(index).unwrap()]
            };
            let pml4 = follow(PAGE_TABLES_START, 39);
            let pdpt = follow(pml4 & !0xfff, 30);
            let pd = follow(pdpt & !0xfff, 21);
            assert_eq!([pml4 & 0xfff, pdpt & 0xfff, pd & 0xfff], [3, 3, 0x83]);
            assert_eq!(pd & !0xfff, address & !0x1f_ffff);
        }
        assert_eq!(words[1], 0);
        assert_eq!(words[512 + 4], 0);
    }

    #[test]
    fn entry_modes() {
        let pvh = pvh(0x100_0b20, 0x6000);
        assert_eq!((pvh.rip, pvh.rbx, pvh.cr0 & CR0_PG, pvh.efer, pvh.rflags), (0x100_0b20, 0x6000, 0, 0, 2));
        assert!(pvh.cs.big && !pvh.cs.long);
        let linux = linux64(0x100_0200, 0x7000);
        assert_eq!((linux.rip, linux.rsi, linux.cr3), (0x100_0200, 0x7000, 0x9000));
        assert!(linux.cs.long && !linux.cs.big);
        assert_eq!((linux.cs.selector, linux.data.selector), (0x10, 0x18));
        assert_eq!((pvh.mtrr_default, linux.mtrr_default), (0x806, 0x806));
    }

    #[test]
    fn a_reset_fetches_16_bytes_below_4_gib() {
        let reset = reset(0x000a_0f11);
        assert_eq!(reset.cs.base + reset.rip, (4 << 30) - 16);
        assert_eq!((reset.cs.selector, reset.cs.limit, reset.cs.big), (0xf000, 0xffff, false));
        assert_eq!((reset.data.selector, reset.data.base, reset.data.limit), (0, 0, 0xffff));
        assert_eq!((reset.cr0, reset.cr3, reset.cr4, reset.efer), (0x6000_0010, 0, 0, 0));
        assert_eq!((reset.rflags, reset.rdx, reset.mtrr_default), (2, 0x000a_0f11, 0));
    }
}
