//! The emulator against the processor this test runs on: the same instruction with the same
//! registers and memory, once natively and once emulated, must leave the same behind.

#![expect(unsafe_code, reason = "generated instructions are run natively")]
#![cfg(target_arch = "x86_64")]

use std::{arch::asm, ptr};

use proptest::prelude::*;

use super::{alu, *};

/// Bytes of memory that a case works on.
const BUFFER: usize = 256;

/// Registers in the order of their encoding, then the flags. The stack pointer is not loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NativeState {
    general: [u64; 16],
    rflags: u64,
}

/// A page that holds one instruction and a return.
struct CodePage(*mut u8);

impl CodePage {
    fn new(instruction: &[u8]) -> Self {
        assert!(instruction.len() <= MAX_INSTRUCTION_BYTES);
        // SAFETY: a new anonymous mapping touches no existing memory.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(page, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        let code = page.cast::<u8>();
        // SAFETY: the page is ours, writable, and longer than the instruction.
        unsafe { ptr::copy_nonoverlapping(instruction.as_ptr(), code, instruction.len()) };
        // SAFETY: the byte after the instruction is in the page.
        let end = unsafe { code.add(instruction.len()) };
        // SAFETY: as above. 0xc3 is RET.
        unsafe { end.write(0xc3) };
        // SAFETY: the page is ours and nothing else points into it.
        let result = unsafe { libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_EXEC) };
        assert_eq!(result, 0, "mprotect: {}", std::io::Error::last_os_error());
        Self(code)
    }

    /// Runs the instruction with these registers.
    ///
    /// # Safety
    /// With these registers, the instruction touches no memory but what the caller owns, does not
    /// use the stack, and goes on to the next one.
    unsafe fn run(&self, state: &mut NativeState) {
        // SAFETY: the stack is balanced, what the compiler does not save is pushed and popped, the
        // direction flag is cleared again, and for the instruction itself the caller vouches.
        unsafe {
            asm!(
                "push rbx",
                "push rbp",
                "push rdi",
                "push rsi",
                "push qword ptr [rdi + 128]",
                "popfq",
                "mov rax, [rdi]",
                "mov rcx, [rdi + 8]",
                "mov rdx, [rdi + 16]",
                "mov rbx, [rdi + 24]",
                "mov rbp, [rdi + 40]",
                "mov rsi, [rdi + 48]",
                "mov r8, [rdi + 64]",
                "mov r9, [rdi + 72]",
                "mov r10, [rdi + 80]",
                "mov r11, [rdi + 88]",
                "mov r12, [rdi + 96]",
                "mov r13, [rdi + 104]",
                "mov r14, [rdi + 112]",
                "mov r15, [rdi + 120]",
                "mov rdi, [rdi + 56]",
                "call qword ptr [rsp]",
                "pushfq",
                "push rdi",
                "mov rdi, [rsp + 24]",
                "mov [rdi], rax",
                "mov [rdi + 8], rcx",
                "mov [rdi + 16], rdx",
                "mov [rdi + 24], rbx",
                "mov [rdi + 40], rbp",
                "mov [rdi + 48], rsi",
                "mov [rdi + 64], r8",
                "mov [rdi + 72], r9",
                "mov [rdi + 80], r10",
                "mov [rdi + 88], r11",
                "mov [rdi + 96], r12",
                "mov [rdi + 104], r13",
                "mov [rdi + 112], r14",
                "mov [rdi + 120], r15",
                "pop rax",
                "mov [rdi + 56], rax",
                "pop rax",
                "mov [rdi + 128], rax",
                "cld",
                "pop rsi",
                "pop rdi",
                "pop rbp",
                "pop rbx",
                in("rdi") ptr::from_mut(state),
                in("rsi") self.0,
                out("rax") _, out("rcx") _, out("rdx") _,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
                out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            );
        }
    }
}

impl Drop for CodePage {
    fn drop(&mut self) {
        // SAFETY: the page was mapped by `new` and is used no more.
        let _ = unsafe { libc::munmap(self.0.cast(), 4096) };
    }
}

/// Memory at the address where the native run has it.
struct Window<'a> {
    base: u64,
    bytes: &'a mut [u8],
}

impl Window<'_> {
    fn part(&mut self, address: u64, size: usize) -> Result<&mut [u8], Fault> {
        let start = usize::try_from(address.wrapping_sub(self.base)).unwrap();
        self.bytes.get_mut(start..start + size).ok_or_else(|| Fault::Host(format!("{address:#x} is outside")))
    }
}

impl Environment for Window<'_> {
    fn probe(&mut self, address: u64, size: usize, _: Access) -> Result<(), Fault> {
        self.part(address, size).map(|_| ())
    }
    fn read(&mut self, address: u64, data: &mut [u8]) -> Result<(), Fault> {
        let part = self.part(address, data.len())?;
        data.copy_from_slice(part);
        Ok(())
    }
    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Fault> {
        self.part(address, data.len())?.copy_from_slice(data);
        Ok(())
    }
    fn port_read(&mut self, _: u16, _: &mut [u8]) {
        panic!("no port is used");
    }
    fn port_write(&mut self, _: u16, _: &[u8]) {
        panic!("no port is used");
    }
}

/// Runs `instruction` both ways. RSI and RDI point at the middle of the buffer.
fn both_ways(instruction: &[u8], general: [u64; 16], rflags: u64, memory: [u8; BUFFER]) {
    let mut native_memory = Box::new(memory);
    let mut native = NativeState { general, rflags: 0x202 | rflags };
    let base = ptr::from_mut(&mut *native_memory) as u64;
    native.general[6] = base + 128;
    native.general[7] = base + 120;

    let mut emulated_memory = memory;
    let mut registers = RegisterFile {
        general: native.general,
        rip: 0x1000,
        rflags: native.rflags,
        segments: Default::default(),
    };
    let decoded = Decoded::new(Mode::Bits64, 0x1000, instruction).expect("the generator makes instructions");
    assert_eq!(decoded.length(), instruction.len(), "{instruction:02x?}");
    let outcome = execute(&decoded, &mut registers, &mut Window { base, bytes: &mut emulated_memory });
    assert_eq!(outcome, Ok(Outcome::Completed), "{instruction:02x?}");

    let page = CodePage::new(instruction);
    // SAFETY: the emulated run, which came first, stayed inside a buffer of the same size at the
    // same address, and the generator makes no instruction that uses the stack or branches.
    unsafe { page.run(&mut native) };

    registers.general[4] = native.general[4];
    assert_eq!(registers.general, native.general, "registers after {instruction:02x?}");
    assert_eq!(emulated_memory, *native_memory, "memory after {instruction:02x?}");
    // AF is undefined after the bitwise operations.
    let defined = alu::STATUS & !alu::AF;
    assert_eq!(registers.rflags & defined, native.rflags & defined, "flags after {instruction:02x?}");
    assert_eq!(registers.rip, 0x1000 + instruction.len() as u64);
}

/// An instruction with a memory operand at [rsi + disp8] or [rsi + rcx * scale + disp8].
#[derive(Clone, Debug)]
struct Form {
    opcode: Vec<u8>,
    /// The ModRM reg field, where the opcode fixes it.
    extension: Option<u8>,
    /// Immediate bytes with a 16-bit, and with a wider operand.
    immediate: (usize, usize),
    byte: bool,
}

fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    let mut add = |opcode: &[u8], extension, immediate, byte| {
        forms.push(Form { opcode: opcode.to_vec(), extension, immediate, byte });
    };
    for operation in [0x00_u8, 0x08, 0x20, 0x28, 0x30, 0x38] {
        add(&[operation], None, (0, 0), true);
        add(&[operation + 1], None, (0, 0), false);
        add(&[operation + 2], None, (0, 0), true);
        add(&[operation + 3], None, (0, 0), false);
        let extension = Some(operation >> 3);
        add(&[0x80], extension, (1, 1), true);
        add(&[0x81], extension, (2, 4), false);
        add(&[0x83], extension, (1, 1), false);
    }
    for (opcode, byte) in [
        (0x84, true),
        (0x85, false),
        (0x86, true),
        (0x87, false),
        (0x88, true),
        (0x89, false),
        (0x8a, true),
        (0x8b, false),
    ] {
        add(&[opcode], None, (0, 0), byte);
    }
    add(&[0xc6], Some(0), (1, 1), true);
    add(&[0xc7], Some(0), (2, 4), false);
    add(&[0xf6], Some(0), (1, 1), true);
    add(&[0xf7], Some(0), (2, 4), false);
    for opcode in [0xb6, 0xb7, 0xbe, 0xbf] {
        add(&[0x0f, opcode], None, (0, 0), false);
    }
    forms
}

/// Encodes a form; `choice` decides what the form leaves open.
fn encode(form: &Form, choice: [u8; 16]) -> Vec<u8> {
    let [operand_16, rex_w, rex_r, use_rex, reg, indexed, scale, displacement, immediate @ ..] = choice;
    let wide = rex_w & 1 != 0 && !form.byte;
    let narrow = operand_16 & 1 != 0 && !form.byte && !wide;
    let extended = rex_r & 1 != 0 && form.extension.is_none();
    let rex = wide || extended || use_rex & 1 != 0;
    let mut reg = form.extension.unwrap_or(reg & 7);
    // Field 4 is the stack pointer, or AH where there is no REX prefix.
    if form.extension.is_none() && reg == 4 && !extended && (rex || !form.byte) {
        reg = 3;
    }
    let mut bytes = Vec::new();
    if narrow {
        bytes.push(0x66);
    }
    if rex {
        bytes.push(0x40 | u8::from(wide) << 3 | u8::from(extended) << 2);
    }
    bytes.extend(&form.opcode);
    let displacement = displacement % 64;
    if indexed & 1 != 0 {
        bytes.extend([0x44 | reg << 3, (scale & 3) << 6 | 1 << 3 | 6, displacement]);
    } else {
        bytes.extend([0x46 | reg << 3, displacement]);
    }
    bytes.extend(&immediate[..if narrow { form.immediate.0 } else { form.immediate.1 }]);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn two_operand_instructions(
        form in proptest::sample::select(forms()),
        choice in any::<[u8; 16]>(),
        mut general in any::<[u64; 16]>(),
        flags in any::<u64>(),
        memory in proptest::collection::vec(any::<u8>(), BUFFER),
    ) {
        general[1] &= 7;
        both_ways(&encode(&form, choice), general, flags & alu::STATUS, memory.try_into().unwrap());
    }

    #[test]
    fn string_instructions(
        opcode in proptest::sample::select(vec![0xa4_u8, 0xa5, 0xaa, 0xab, 0xac, 0xad]),
        prefix in proptest::sample::select(vec![&[][..], &[0x66], &[0x48]]),
        repeat in any::<bool>(),
        mut general in any::<[u64; 16]>(),
        backwards in any::<bool>(),
        memory in proptest::collection::vec(any::<u8>(), BUFFER),
    ) {
        general[1] &= 7;
        let mut bytes = Vec::new();
        if repeat {
            bytes.push(0xf3);
        }
        bytes.extend(prefix);
        bytes.push(opcode);
        both_ways(&bytes, general, u64::from(backwards) << 10, memory.try_into().unwrap());
    }
}
