//! The emulator on encodings whose effect is known, and on bytes that mean nothing.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// What reached the environment, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    PortRead(u16, usize),
    PortWrite(u16, Vec<u8>),
}

/// Memory that is zero where nothing was put, with pages that can be made to fault.
#[derive(Default)]
pub(super) struct Sparse {
    pub bytes: BTreeMap<u64, u8>,
    pub events: Vec<Event>,
    pub read_only_from: Option<u64>,
    pub absent_from: Option<u64>,
    pub port_value: u32,
}

impl Sparse {
    fn with(address: u64, bytes: &[u8]) -> Self {
        let mut memory = Self::default();
        memory.put(address, bytes);
        memory
    }

    pub fn put(&mut self, address: u64, bytes: &[u8]) {
        for (offset, byte) in bytes.iter().enumerate() {
            self.bytes.insert(address.wrapping_add(offset as u64), *byte);
        }
    }

    pub fn get(&self, address: u64, size: usize) -> Vec<u8> {
        (0..size as u64).map(|n| self.bytes.get(&address.wrapping_add(n)).copied().unwrap_or(0)).collect()
    }
}

impl Environment for Sparse {
    fn probe(&mut self, address: u64, size: usize, access: Access) -> Result<(), Fault> {
        let last = address.checked_add(size as u64 - 1).ok_or(Fault::Protection)?;
        if self.absent_from.is_some_and(|from| last >= from) {
            return Err(Fault::Page { address, error_code: if access == Access::Write { 2 } else { 0 } });
        }
        if access == Access::Write && self.read_only_from.is_some_and(|from| last >= from) {
            return Err(Fault::Page { address, error_code: 3 });
        }
        Ok(())
    }

    fn read(&mut self, address: u64, data: &mut [u8]) -> Result<(), Fault> {
        self.probe(address, data.len(), Access::Read)?;
        self.events.push(Event::Read(address, data.len()));
        data.copy_from_slice(&self.get(address, data.len()));
        Ok(())
    }

    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Fault> {
        self.probe(address, data.len(), Access::Write)?;
        self.events.push(Event::Write(address, data.to_vec()));
        self.put(address, data);
        Ok(())
    }

    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        self.events.push(Event::PortRead(port, data.len()));
        data.copy_from_slice(&self.port_value.to_le_bytes()[..data.len()]);
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        self.events.push(Event::PortWrite(port, data.to_vec()));
    }
}

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSI: usize = 6;
const RDI: usize = 7;

/// Registers with distinct values; RSI and RDI point at two pages.
fn registers() -> RegisterFile {
    let mut file = RegisterFile {
        general: std::array::from_fn(|n| 0x0101_0101_0101_0101 * (n as u64 + 1)),
        rip: 0x1000,
        rflags: 2,
        segments: [0, 8, 16, 24, 32, 40].map(|selector| SegmentSlot { base: 0, selector }),
    };
    file.general[RSI] = 0x4000;
    file.general[RDI] = 0x8000;
    file
}

fn run(
    mode: Mode,
    bytes: &[u8],
    file: &mut RegisterFile,
    memory: &mut Sparse,
) -> Result<Outcome, EmulateError> {
    let decoded = Decoded::new(mode, file.rip, bytes).expect("an encoding of the table");
    assert_eq!(decoded.length(), bytes.len(), "{bytes:02x?}");
    execute(&decoded, file, memory)
}

/// Loads: bytes, then which register shows what when memory at RSI (0x4000) holds 0x8899aabbccddeeff.
const LOADS: &[(&[u8], usize, u64)] = &[
    (&[0x8a, 0x06], RAX, 0x0101_0101_0101_01ff),       // mov al, [rsi]
    (&[0x8a, 0x26], RAX, 0x0101_0101_0101_ff01),       // mov ah, [rsi]
    (&[0x66, 0x8b, 0x06], RAX, 0x0101_0101_0101_eeff), // mov ax, [rsi]
    (&[0x8b, 0x06], RAX, 0xccdd_eeff),                 // mov eax, [rsi]
    (&[0x48, 0x8b, 0x06], RAX, 0x8899_aabb_ccdd_eeff), // mov rax, [rsi]
    (&[0x44, 0x8b, 0x46, 0x04], 8, 0x8899_aabb),       // mov r8d, [rsi+4]
    (&[0x0f, 0xb6, 0x0e], RCX, 0xff),                  // movzx ecx, byte [rsi]
    (&[0x0f, 0xb7, 0x0e], RCX, 0xeeff),                // movzx ecx, word [rsi]
    (&[0x48, 0x0f, 0xb6, 0x0e], RCX, 0xff),            // movzx rcx, byte [rsi]
    (&[0x0f, 0xbe, 0x0e], RCX, 0xffff_ffff),           // movsx ecx, byte [rsi]
    (&[0x48, 0x0f, 0xbe, 0x0e], RCX, u64::MAX),        // movsx rcx, byte [rsi]
    (&[0x48, 0x0f, 0xbf, 0x0e], RCX, 0xffff_ffff_ffff_eeff), // movsx rcx, word [rsi]
    (&[0x48, 0x63, 0x16], RDX, 0xffff_ffff_ccdd_eeff), // movsxd rdx, dword [rsi]
    (&[0x66, 0x0f, 0xbe, 0x0e], RCX, 0x0202_0202_0202_ffff), // movsx cx, byte [rsi]
    (&[0x0f, 0x38, 0xf0, 0x06], RAX, 0xffee_ddcc),     // movbe eax, [rsi]
    (&[0x66, 0x0f, 0x38, 0xf0, 0x06], RAX, 0x0101_0101_0101_ffee), // movbe ax, [rsi]
    (&[0x8b, 0x04, 0x25, 0x00, 0x40, 0, 0], RAX, 0xccdd_eeff), // mov eax, [0x4000]
    (&[0x8b, 0x05, 0xfa, 0x2f, 0, 0], RAX, 0xccdd_eeff), // mov eax, [rip+0x2ffa]
    (&[0x48, 0xa1, 0x00, 0x40, 0, 0, 0, 0, 0, 0], RAX, 0x8899_aabb_ccdd_eeff), // mov rax, [moffs]
    (&[0xa0, 0x00, 0x40, 0, 0, 0, 0, 0, 0], RAX, 0x0101_0101_0101_01ff), // mov al, [moffs]
    (&[0xac], RAX, 0x0101_0101_0101_01ff),             // lodsb
    (&[0xad], RAX, 0xccdd_eeff),                       // lodsd
];

#[test]
fn loads() {
    for (bytes, register, expected) in LOADS {
        let mut file = registers();
        let mut memory = Sparse::with(0x4000, &0x8899_aabb_ccdd_eeff_u64.to_le_bytes());
        assert_eq!(run(Mode::Bits64, bytes, &mut file, &mut memory), Ok(Outcome::Completed), "{bytes:02x?}");
        assert_eq!(file.general[*register], *expected, "{bytes:02x?}");
        assert_eq!(file.rip, 0x1000 + bytes.len() as u64, "{bytes:02x?}");
        assert_eq!(file.rflags, 2, "{bytes:02x?} changes no flag");
    }
}

/// Stores: bytes, then what memory at RDI (0x8000) holds, out of RAX = 0x1122334455667788.
const STORES: &[(&[u8], &[u8])] = &[
    (&[0x88, 0x07], &[0x88]),                   // mov [rdi], al
    (&[0x88, 0x27], &[0x77]),                   // mov [rdi], ah
    (&[0x66, 0x89, 0x07], &[0x88, 0x77]),       // mov [rdi], ax
    (&[0x89, 0x07], &[0x88, 0x77, 0x66, 0x55]), // mov [rdi], eax
    (&[0x48, 0x89, 0x07], &[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]), // mov [rdi], rax
    (&[0xc6, 0x07, 0x5a], &[0x5a]),             // mov byte [rdi], 0x5a
    (&[0x66, 0xc7, 0x07, 0x34, 0x12], &[0x34, 0x12]), // mov word [rdi], 0x1234
    (&[0xc7, 0x07, 0x78, 0x56, 0x34, 0x12], &[0x78, 0x56, 0x34, 0x12]), // mov dword [rdi], 0x12345678
    (&[0x48, 0xc7, 0x07, 0xfe, 0xff, 0xff, 0xff], &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), // mov qword [rdi], -2
    (&[0x0f, 0xc3, 0x07], &[0x88, 0x77, 0x66, 0x55]), // movnti [rdi], eax
    (&[0x0f, 0x38, 0xf1, 0x07], &[0x55, 0x66, 0x77, 0x88]), // movbe [rdi], eax
    (&[0x8c, 0x1f], &[24, 0]),                        // mov [rdi], ds
    (&[0xa3, 0x00, 0x80, 0, 0, 0, 0, 0, 0], &[0x88, 0x77, 0x66, 0x55]), // mov [moffs], eax
    (&[0xaa], &[0x88]),                               // stosb
    (&[0x66, 0xab], &[0x88, 0x77]),                   // stosw
    (&[0xab], &[0x88, 0x77, 0x66, 0x55]),             // stosd
    (&[0x48, 0xab], &[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]), // stosq
];

#[test]
fn stores() {
    for (bytes, expected) in STORES {
        let mut file = registers();
        file.general[RAX] = 0x1122_3344_5566_7788;
        let mut memory = Sparse::default();
        assert_eq!(run(Mode::Bits64, bytes, &mut file, &mut memory), Ok(Outcome::Completed), "{bytes:02x?}");
        assert_eq!(memory.events, [Event::Write(0x8000, expected.to_vec())], "{bytes:02x?}");
    }
}

/// Read, change, write: bytes, old value at RSI, new value, status flags; RAX is 0x0f, BL 0x80.
const CHANGES: &[(&[u8], u32, u32, u64)] = &[
    (&[0x21, 0x06], 0xff, 0x0f, alu::PF),           // and [rsi], eax
    (&[0x09, 0x06], 0xf0, 0xff, alu::PF),           // or [rsi], eax
    (&[0x31, 0x06], 0x0f, 0x00, alu::ZF | alu::PF), // xor [rsi], eax
    (&[0x01, 0x06], 0xffff_fff1, 0, alu::CF | alu::AF | alu::ZF | alu::PF), // add [rsi], eax
    (&[0x29, 0x06], 0x0e, 0xffff_ffff, alu::CF | alu::AF | alu::SF | alu::PF), // sub [rsi], eax
    (&[0x80, 0x0e, 0x80], 0x01, 0x81, alu::SF | alu::PF), // or byte [rsi], 0x80
    (&[0x83, 0x26, 0xfe], 0xffff_ffff, 0xffff_fffe, alu::SF), // and dword [rsi], -2
    (&[0x81, 0x06, 0, 0, 0, 0x80], 0x8000_0000, 0, alu::CF | alu::OF | alu::ZF | alu::PF), // add dword [rsi], 0x80000000
    (&[0xf0, 0x83, 0x0e, 0x01], 0, 1, 0), // lock or dword [rsi], 1
];

#[test]
fn read_change_write() {
    for (bytes, before, after, flags) in CHANGES {
        let mut file = registers();
        file.general[RAX] = 0x0f;
        file.rflags = 2 | alu::STATUS;
        let mut memory = Sparse::with(0x4000, &before.to_le_bytes());
        assert_eq!(run(Mode::Bits64, bytes, &mut file, &mut memory), Ok(Outcome::Completed), "{bytes:02x?}");
        assert_eq!(memory.get(0x4000, 4), after.to_le_bytes(), "{bytes:02x?}");
        assert_eq!(file.rflags & alu::STATUS, *flags, "{bytes:02x?}");
        assert_eq!(file.rflags & !alu::STATUS, 2, "{bytes:02x?}");
        assert_eq!(memory.events.len(), 2, "{bytes:02x?} reads once and writes once");
    }
}

#[test]
fn comparisons_write_nothing() {
    for (bytes, flags) in [
        (&[0x39, 0x06][..], alu::ZF | alu::PF),   // cmp [rsi], eax
        (&[0x3b, 0x06], alu::ZF | alu::PF),       // cmp eax, [rsi]
        (&[0x83, 0x3e, 0x01], 0),                 // cmp dword [rsi], 1
        (&[0x85, 0x06], 0),                       // test [rsi], eax
        (&[0xf6, 0x06, 0x01], alu::ZF | alu::PF), // test byte [rsi], 1
        (&[0xf7, 0x06, 0x02, 0, 0, 0], 0),        // test dword [rsi], 2
    ] {
        let mut file = registers();
        file.general[RAX] = 2;
        let mut memory = Sparse::with(0x4000, &[2]);
        memory.read_only_from = Some(0);
        assert_eq!(run(Mode::Bits64, bytes, &mut file, &mut memory), Ok(Outcome::Completed), "{bytes:02x?}");
        assert_eq!(file.rflags & alu::STATUS, flags, "{bytes:02x?}");
        assert_eq!(memory.events.len(), 1, "{bytes:02x?}");
    }
}

#[test]
fn arithmetic_into_a_register() {
    let mut file = registers();
    file.general[RBX] = 0xffff_ffff_0000_0001;
    let mut memory = Sparse::with(0x4000, &[2]);
    run(Mode::Bits64, &[0x03, 0x1e], &mut file, &mut memory).unwrap(); // add ebx, [rsi]
    assert_eq!(file.general[RBX], 3);
    assert_eq!(memory.events, [Event::Read(0x4000, 4)]);
}

#[test]
fn an_exchange_swaps() {
    let mut file = registers();
    let mut memory = Sparse::with(0x4000, &[0xaa, 0xbb, 0xcc, 0xdd]);
    run(Mode::Bits64, &[0x87, 0x0e], &mut file, &mut memory).unwrap(); // xchg [rsi], ecx
    assert_eq!(file.general[RCX], 0xddcc_bbaa);
    assert_eq!(memory.get(0x4000, 4), [2, 2, 2, 2]);
}

#[test]
fn repeated_moves_count_and_stop() {
    let mut file = registers();
    file.general[RCX] = 3;
    let mut memory = Sparse::with(0x4000, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]);
    assert_eq!(run(Mode::Bits64, &[0xf3, 0xa5], &mut file, &mut memory), Ok(Outcome::Completed)); // rep movsd
    assert_eq!(memory.get(0x8000, 13), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0]);
    assert_eq!((file.general[RCX], file.general[RSI], file.general[RDI]), (0, 0x400c, 0x800c));
    assert_eq!(file.rip, 0x1002);
}

#[test]
fn the_direction_flag_turns_round() {
    let mut file = registers();
    file.general[RCX] = 2;
    file.rflags |= 1 << 10;
    let mut memory = Sparse::with(0x3ff8, &[1, 0, 0, 0, 0, 0, 0, 0, 2]);
    run(Mode::Bits64, &[0xf3, 0x48, 0xa5], &mut file, &mut memory).unwrap(); // rep movsq
    assert_eq!(memory.get(0x7ff8, 9), [1, 0, 0, 0, 0, 0, 0, 0, 2]);
    assert_eq!((file.general[RSI], file.general[RDI]), (0x3ff0, 0x7ff0));
}

#[test]
fn a_count_of_zero_does_nothing() {
    let mut file = registers();
    file.general[RCX] = 0;
    let mut memory = Sparse { absent_from: Some(0), ..Default::default() };
    assert_eq!(run(Mode::Bits64, &[0xf3, 0xaa], &mut file, &mut memory), Ok(Outcome::Completed)); // rep stosb
    assert_eq!((file.rip, memory.events.len()), (0x1002, 0));
}

#[test]
fn a_long_repetition_comes_back_for_the_rest() {
    let mut file = registers();
    file.general[RCX] = 1024 + 1;
    let mut memory = Sparse::default();
    assert_eq!(run(Mode::Bits64, &[0xf3, 0xaa], &mut file, &mut memory), Ok(Outcome::Repeats)); // rep stosb
    assert_eq!((file.general[RCX], file.rip), (1, 0x1000));
    assert_eq!(run(Mode::Bits64, &[0xf3, 0xaa], &mut file, &mut memory), Ok(Outcome::Completed));
    assert_eq!((file.general[RCX], file.general[RDI], file.rip), (0, 0x8401, 0x1002));
}

#[test]
fn a_fault_in_a_repetition_keeps_what_was_done() {
    let mut file = registers();
    file.general[RCX] = 4;
    let mut memory = Sparse { absent_from: Some(0x8008), ..Default::default() };
    let error = run(Mode::Bits64, &[0xf3, 0xab], &mut file, &mut memory).unwrap_err(); // rep stosd
    assert_eq!(error, EmulateError::Fault(Fault::Page { address: 0x8008, error_code: 2 }));
    assert_eq!((file.general[RCX], file.general[RDI], file.rip), (2, 0x8008, 0x1000));
}

#[test]
fn a_move_into_a_fault_reads_no_device() {
    let mut file = registers();
    let mut memory = Sparse { absent_from: Some(0x8000), ..Default::default() };
    let before = file;
    assert!(matches!(run(Mode::Bits64, &[0xa4], &mut file, &mut memory), Err(EmulateError::Fault(_)))); // movsb
    assert_eq!((file, memory.events.len()), (before, 0));
}

#[test]
fn a_change_of_a_read_only_page_reads_no_device() {
    for bytes in [&[0x09, 0x06][..], &[0x87, 0x06]] {
        let mut file = registers();
        let before = file;
        let mut memory = Sparse { read_only_from: Some(0), ..Default::default() };
        let error = run(Mode::Bits64, bytes, &mut file, &mut memory).unwrap_err();
        assert_eq!(error, EmulateError::Fault(Fault::Page { address: 0x4000, error_code: 3 }));
        assert_eq!((file, memory.events.len()), (before, 0));
    }
}

#[test]
fn port_strings() {
    let mut file = registers();
    (file.general[RCX], file.general[RDX]) = (2, 0xffff_03f8);
    let mut memory = Sparse::with(0x4000, b"hi");
    run(Mode::Bits64, &[0xf3, 0x6e], &mut file, &mut memory).unwrap(); // rep outsb
    assert_eq!(memory.events[1], Event::PortWrite(0x3f8, b"h".to_vec()));
    assert_eq!(memory.events[3], Event::PortWrite(0x3f8, b"i".to_vec()));
    assert_eq!((file.general[RSI], file.general[RDI]), (0x4002, 0x8000));

    memory.port_value = 0x4433_2211;
    run(Mode::Bits64, &[0x6d], &mut file, &mut memory).unwrap(); // insd
    assert_eq!(memory.get(0x8000, 4), [0x11, 0x22, 0x33, 0x44]);
    assert_eq!(file.general[RDI], 0x8004);
    let decoded = Decoded::new(Mode::Bits64, 0, &[0x6d]).unwrap();
    assert!(decoded.uses_port());
}

#[test]
fn segments_and_narrow_addresses() {
    let mut file = registers();
    file.segments[5].base = 0x10_0000; // GS
    file.segments[3].base = 0xffff_f000; // DS
    file.segments[0].base = 0x2000; // ES
    file.general[RSI] = 0xdead_0000_0000_2010;
    file.general[RDI] = 0xdead_0000_0000_0010;

    let mut memory = Sparse::default();
    file.general[RBX] = 0x20;
    run(Mode::Bits64, &[0x65, 0x8b, 0x43, 0x08], &mut file, &mut memory).unwrap(); // mov eax, gs:[rbx+8]
    assert_eq!(memory.events, [Event::Read(0x10_0028, 4)]);

    memory.events.clear();
    run(Mode::Bits32, &[0x8b, 0x06], &mut file, &mut memory).unwrap(); // mov eax, [esi]
    assert_eq!(memory.events, [Event::Read(0x1010, 4)], "base plus offset wraps at 32 bits");

    memory.events.clear();
    run(Mode::Bits16, &[0xa5], &mut file, &mut memory).unwrap(); // movsw
    assert_eq!(memory.events[0], Event::Read(0x1010, 2));
    assert_eq!(memory.events[1], Event::Write(0x2010, vec![0, 0]));
    assert_eq!(file.general[RSI], 0xdead_0000_0000_2012, "only SI counts");

    memory.events.clear();
    file.general[RBX] = 0xffff_ffff;
    run(Mode::Bits64, &[0x67, 0x8a, 0x43, 0x02], &mut file, &mut memory).unwrap(); // mov al, [ebx+2]
    assert_eq!(memory.events, [Event::Read(1, 1)], "a 32-bit address wraps before it is extended");
}

#[test]
fn the_instruction_pointer_wraps_with_its_width() {
    for (mode, rip, next) in [
        (Mode::Bits16, 0xffff, 1),
        (Mode::Bits32, 0xffff_ffff, 1),
        (Mode::Bits64, 0xffff_ffff, 0x1_0000_0001),
    ] {
        let mut file = RegisterFile { rip, rflags: 2 | 1 << 16, ..Default::default() };
        run(mode, &[0x88, 0x07], &mut file, &mut Sparse::default()).unwrap();
        assert_eq!(file.rip, next, "{mode:?}");
        assert_eq!(file.rflags, 2, "RF is spent");
    }
}

#[test]
fn an_access_over_the_top_is_a_protection_fault() {
    let mut file = registers();
    file.general[RSI] = u64::MAX - 1;
    let error = run(Mode::Bits64, &[0x8b, 0x06], &mut file, &mut Sparse::default()).unwrap_err();
    assert_eq!(error, EmulateError::Fault(Fault::Protection));
}

#[test]
fn others_are_refused_by_name() {
    for (bytes, name) in [
        (&[0x0f, 0xb1, 0x0e][..], "Cmpxchg_rm32_r32"),
        (&[0xff, 0x06], "Inc_rm32"),
        (&[0x0f, 0x6f, 0x06], "Movq_mm_mmm64"),
        (&[0xf3, 0x0f, 0x6f, 0x06], "Movdqu_xmm_xmmm128"),
        (&[0x8e, 0x1e], "Mov_Sreg_r32m16"),
        (&[0x0f, 0x22, 0xc0], "Mov_cr_r64"),
        (&[0xf4], "Hlt"),
        (&[0xa6], "Cmpsb_m8_m8"),
    ] {
        let mut file = registers();
        let before = file;
        let error = run(Mode::Bits64, bytes, &mut file, &mut Sparse::default()).unwrap_err();
        let EmulateError::Unsupported { name: found, bytes: text } = &error else { panic!("{error}") };
        assert_eq!(found, name);
        assert_eq!(text, &decode::hexadecimal(bytes));
        assert_eq!(error.to_string(), format!("instruction {name} ({text})"));
        assert_eq!(file, before);
    }
}

fn any_mode() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Bits16), Just(Mode::Bits32), Just(Mode::Bits64)]
}

fn any_file() -> impl Strategy<Value = RegisterFile> {
    (any::<[u64; 16]>(), any::<u64>(), any::<u64>(), any::<[(u64, u16); 6]>()).prop_map(
        |(general, rip, rflags, segments)| RegisterFile {
            general,
            rip,
            rflags,
            segments: segments.map(|(base, selector)| SegmentSlot { base, selector }),
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    /// Nothing the guest can put into its code and registers panics, runs for ever, or changes a
    /// segment register.
    #[test]
    fn hostile_bytes(
        mode in any_mode(),
        bytes in proptest::collection::vec(any::<u8>(), 0..24),
        file in any_file(),
        absent_from in proptest::option::of(any::<u64>()),
    ) {
        let mut after = file;
        let mut memory = Sparse { absent_from, ..Default::default() };
        if let Ok(decoded) = Decoded::new(mode, file.rip, &bytes) {
            prop_assert!(decoded.length() <= MAX_INSTRUCTION_BYTES.min(bytes.len()));
            let _ = (decoded.uses_port(), decoded.uses_segments());
            let result = execute(&decoded, &mut after, &mut memory);
            prop_assert_eq!(after.segments, file.segments);
            prop_assert!(memory.events.len() <= 2 * 1024);
            if matches!(result, Err(EmulateError::Unsupported { .. })) {
                prop_assert_eq!(after, file);
            }
        }
    }

    /// The same with bytes that are mostly known instructions.
    #[test]
    fn hostile_operands(
        mode in any_mode(),
        prefix in proptest::sample::subsequence(vec![0x66_u8, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x64, 0x65], 0..4),
        opcode in proptest::sample::select(vec![
            0x00_u8, 0x01, 0x02, 0x03, 0x08, 0x09, 0x0b, 0x21, 0x23, 0x29, 0x2b, 0x31, 0x33, 0x38, 0x39, 0x3b, 0x6c,
            0x6d, 0x6e, 0x6f, 0x80, 0x81, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8b, 0x8c, 0x8e, 0xa0, 0xa1,
            0xa2, 0xa3, 0xa4, 0xa5, 0xaa, 0xab, 0xac, 0xad, 0xc6, 0xc7, 0xf6, 0xf7,
        ]),
        tail in any::<[u8; 8]>(),
        file in any_file(),
    ) {
        let mut bytes = prefix;
        bytes.push(opcode);
        bytes.extend(tail);
        let mut after = file;
        let mut memory = Sparse::default();
        if let Ok(decoded) = Decoded::new(mode, file.rip, &bytes) {
            let _ = execute(&decoded, &mut after, &mut memory);
            prop_assert_eq!(after.segments, file.segments);
            prop_assert!(memory.events.len() <= 2 * 1024);
        }
    }
}
