//! From bytes to an instruction.

use std::fmt::Write as _;

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, OpKind, Register};
use thiserror::Error;

use super::{EmulateError, string::StringOperation};

/// No instruction is longer (Intel SDM volume 2, 2.3.11).
pub const MAX_INSTRUCTION_BYTES: usize = 15;

/// How code is read: its default operand and address size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real mode, virtual 8086 mode, 16-bit protected mode.
    Bits16,
    /// 32-bit protected mode, compatibility mode.
    Bits32,
    /// Long mode, 64-bit code.
    Bits64,
}

impl Mode {
    /// The mode of code in a segment with these attributes.
    pub fn of(long_mode_active: bool, code_long: bool, code_big: bool) -> Self {
        match (long_mode_active && code_long, code_big) {
            (true, _) => Self::Bits64,
            (false, true) => Self::Bits32,
            (false, false) => Self::Bits16,
        }
    }

    /// A linear address as this mode forms it.
    pub(super) fn linear(self, address: u64) -> u64 {
        if self == Self::Bits64 { address } else { address & 0xffff_ffff }
    }

    /// An instruction pointer as this mode holds it.
    pub fn instruction_pointer(self, rip: u64) -> u64 {
        match self {
            Self::Bits16 => rip & 0xffff,
            Self::Bits32 => rip & 0xffff_ffff,
            Self::Bits64 => rip,
        }
    }

    fn bits(self) -> u32 {
        match self {
            Self::Bits16 => 16,
            Self::Bits32 => 32,
            Self::Bits64 => 64,
        }
    }
}

/// Why bytes are no instruction.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The instruction goes on after the last byte.
    #[error("the instruction is longer than its {0} bytes at hand")]
    Short(usize),
    /// No processor takes them.
    #[error("not an instruction: {0}")]
    Invalid(String),
}

/// An instruction and where it was found.
#[derive(Clone, Copy, Debug)]
pub struct Decoded {
    pub(super) instruction: Instruction,
    pub(super) mode: Mode,
    bytes: [u8; MAX_INSTRUCTION_BYTES],
}

impl Decoded {
    /// Decodes the instruction that begins at `rip` with `bytes`; what follows it is ignored.
    ///
    /// # Errors
    /// It does not end within `bytes`, or is none.
    pub fn new(mode: Mode, rip: u64, bytes: &[u8]) -> Result<Self, DecodeError> {
        let bytes = bytes.get(..MAX_INSTRUCTION_BYTES).unwrap_or(bytes);
        let mut decoder = Decoder::with_ip(mode.bits(), bytes, rip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            let short =
                decoder.last_error() == DecoderError::NoMoreBytes && bytes.len() < MAX_INSTRUCTION_BYTES;
            return Err(if short {
                DecodeError::Short(bytes.len())
            } else {
                DecodeError::Invalid(hexadecimal(bytes))
            });
        }
        let mut copy = [0; MAX_INSTRUCTION_BYTES];
        for (to, from) in copy.iter_mut().zip(bytes) {
            *to = *from;
        }
        Ok(Self { instruction, mode, bytes: copy })
    }

    /// Length in bytes.
    pub fn length(&self) -> usize {
        self.instruction.len()
    }

    /// Whether it is `ins` or `outs`. Such an instruction must not be run for a memory intercept:
    /// the processor has not checked the guest's right to the port then.
    pub fn uses_port(&self) -> bool {
        StringOperation::of(&self.instruction).is_some_and(StringOperation::uses_port)
    }

    /// Whether the bases (or a selector) of segment registers matter to it. Long mode takes all but
    /// FS and GS to be zero, so that the common instruction gets by without asking for them.
    pub fn uses_segments(&self) -> bool {
        self.mode != Mode::Bits64
            || (0..self.instruction.op_count()).any(|operand| match self.instruction.op_kind(operand) {
                OpKind::Register => self.instruction.op_register(operand).is_segment_register(),
                _ => matches!(self.instruction.memory_segment(), Register::FS | Register::GS),
            })
    }

    /// The error that names this instruction as one that is not known.
    pub(super) fn unsupported(&self) -> EmulateError {
        let bytes = self.bytes.get(..self.length()).unwrap_or(&self.bytes);
        EmulateError::Unsupported {
            name: format!("{:?}", self.instruction.code()),
            bytes: hexadecimal(bytes),
        }
    }
}

/// Bytes as text, for people.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        let space = if text.is_empty() { "" } else { " " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{space}{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_follows_the_code_segment() {
        assert_eq!(Mode::of(true, true, false), Mode::Bits64);
        assert_eq!(Mode::of(true, false, true), Mode::Bits32);
        assert_eq!(Mode::of(false, true, false), Mode::Bits16, "the L bit means nothing outside long mode");
        assert_eq!(Mode::of(false, false, false), Mode::Bits16);
    }

    #[test]
    fn a_cut_instruction_asks_for_more() {
        // mov dword [rip+0x11223344], 0x55667788
        let whole = [0xc7, 0x05, 0x44, 0x33, 0x22, 0x11, 0x88, 0x77, 0x66, 0x55];
        for length in 0..whole.len() {
            let error = Decoded::new(Mode::Bits64, 0, &whole[..length]).unwrap_err();
            assert_eq!(error, DecodeError::Short(length));
        }
        assert_eq!(Decoded::new(Mode::Bits64, 0, &whole).unwrap().length(), whole.len());
    }

    #[test]
    fn nonsense_is_invalid_and_never_short_for_ever() {
        // 0x06 is PUSH ES only outside long mode; prefixes without end are too long an instruction.
        let error = Decoded::new(Mode::Bits64, 0, &[0x06, 0x90, 0x90]).unwrap_err();
        assert_eq!(error, DecodeError::Invalid("06 90 90".into()));
        assert!(matches!(Decoded::new(Mode::Bits64, 0, &[0x66; 64]).unwrap_err(), DecodeError::Invalid(_)));
    }

    #[test]
    fn segments_are_asked_for_when_they_matter() {
        let uses = |mode, bytes: &[u8]| Decoded::new(mode, 0, bytes).unwrap().uses_segments();
        assert!(!uses(Mode::Bits64, &[0x8b, 0x06]), "mov eax, [rsi]");
        assert!(uses(Mode::Bits64, &[0x65, 0x8b, 0x06]), "mov eax, gs:[rsi]");
        assert!(uses(Mode::Bits64, &[0x8c, 0x1e]), "mov [rsi], ds");
        assert!(uses(Mode::Bits32, &[0x8b, 0x06]), "mov eax, [esi]");
        assert!(!uses(Mode::Bits64, &[0xf3, 0xa5]), "rep movsd");
        assert!(uses(Mode::Bits64, &[0x64, 0xf3, 0xa5]), "rep movsd from fs");
    }
}
