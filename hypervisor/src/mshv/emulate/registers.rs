//! The registers an emulated instruction can see.

use iced_x86::Register;

/// Base and selector of a segment register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentSlot {
    /// Linear base address.
    pub base: u64,
    /// Visible selector.
    pub selector: u16,
}

/// A copy of the vCPU's registers, as far as the known instructions reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegisterFile {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: the order of their encoding.
    pub general: [u64; 16],
    /// Instruction pointer, relative to the code segment.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS: the order of their encoding.
    pub segments: [SegmentSlot; 6],
}

impl RegisterFile {
    /// Value of a general register, or selector of a segment register; `None` for all others.
    pub fn read(&self, register: Register) -> Option<u64> {
        if register.is_segment_register() {
            return self.segments.get(register.number()).map(|slot| u64::from(slot.selector));
        }
        if !register.is_gpr() {
            return None;
        }
        let whole = *self.general.get(register.full_register().number())?;
        Some(if is_high_byte(register) { (whole >> 8) & 0xff } else { whole & mask(register.size()) })
    }

    /// Sets a general register the way the processor does: 32 bits clear the upper half, 8 and 16
    /// bits leave the rest alone (Intel SDM volume 1, 3.4.1.1). `None` for all others, which stay.
    pub fn write(&mut self, register: Register, value: u64) -> Option<()> {
        if !register.is_gpr() {
            return None;
        }
        let whole = self.general.get_mut(register.full_register().number())?;
        *whole = match register.size() {
            8 => value,
            4 => value & mask(4),
            1 if is_high_byte(register) => (*whole & !0xff00) | ((value & 0xff) << 8),
            size => (*whole & !mask(size)) | (value & mask(size)),
        };
        Some(())
    }

    /// Base address of a segment register; `None` for all others.
    pub fn segment_base(&self, register: Register) -> Option<u64> {
        if !register.is_segment_register() {
            return None;
        }
        self.segments.get(register.number()).map(|slot| slot.base)
    }
}

/// AH, CH, DH and BH are bits 8 to 15 of the first four registers.
fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// All bits of an operand of `size` bytes.
pub(super) fn mask(size: usize) -> u64 {
    match size {
        0 => 0,
        1..=7 => (1 << (8 * size)) - 1,
        _ => u64::MAX,
    }
}

/// The lowest `size` bytes of `value`, the rest filled with copies of their highest bit.
pub(super) fn sign_extend(value: u64, size: usize) -> u64 {
    let unsigned = value & mask(size);
    if size < 8 && size > 0 && unsigned >> (8 * size - 1) != 0 { unsigned | !mask(size) } else { unsigned }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> RegisterFile {
        RegisterFile {
            general: std::array::from_fn(|n| 0x1111_1111_1111_1111 * n as u64),
            ..Default::default()
        }
    }

    #[test]
    fn parts_of_a_register_are_read() {
        let mut file = file();
        file.general[0] = 0x8877_6655_4433_2211;
        assert_eq!(file.read(Register::RAX), Some(0x8877_6655_4433_2211));
        assert_eq!(file.read(Register::EAX), Some(0x4433_2211));
        assert_eq!(file.read(Register::AX), Some(0x2211));
        assert_eq!(file.read(Register::AL), Some(0x11));
        assert_eq!(file.read(Register::AH), Some(0x22));
        assert_eq!(file.read(Register::SIL), Some(0x66));
        assert_eq!(file.read(Register::R15D), Some(0xffff_ffff));
    }

    #[test]
    fn a_write_touches_what_the_processor_touches() {
        let mut file = file();
        file.general[3] = u64::MAX;
        file.write(Register::EBX, 0x1_2345_6789).unwrap();
        assert_eq!(file.general[3], 0x2345_6789);
        file.write(Register::BH, 0xfab).unwrap();
        assert_eq!(file.general[3], 0x2345_ab89);
        file.write(Register::BL, 0x3cd).unwrap();
        assert_eq!(file.general[3], 0x2345_abcd);
        file.general[8] = u64::MAX;
        file.write(Register::R8W, 0).unwrap();
        assert_eq!(file.general[8], 0xffff_ffff_ffff_0000);
    }

    #[test]
    fn other_registers_are_refused_and_stay() {
        let mut file = file();
        let before = file;
        for register in
            [Register::CR0, Register::XMM0, Register::DS, Register::RIP, Register::None, Register::K1]
        {
            assert_eq!(file.write(register, 7), None, "{register:?}");
        }
        assert_eq!(file, before);
        assert_eq!(file.read(Register::CR3), None);
        assert_eq!(file.segment_base(Register::RAX), None);
    }

    #[test]
    fn signs_extend() {
        assert_eq!(sign_extend(0x80, 1), 0xffff_ffff_ffff_ff80);
        assert_eq!(sign_extend(0x17f, 1), 0x7f);
        assert_eq!(sign_extend(0x8000_0000, 4), 0xffff_ffff_8000_0000);
        assert_eq!(sign_extend(u64::MAX, 8), u64::MAX);
        assert_eq!(sign_extend(5, 0), 0);
    }
}
