//! Orders that read and write one register or one word: ports, memory, MMIO, CPUID, MSRs.

use test_guest::orders::{Malformed, Words};

use super::Program;
use super::reply::{OrderError, say};
use crate::cpu::{self, Width};

impl Program {
    pub(super) fn port_in(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let port = words.narrow("PORT")?;
        let width = width(words, Width::Long)?;
        words.end()?;
        let value = match width {
            Width::Byte => u32::from(cpu::in8(port)),
            Width::Word => u32::from(cpu::in16(port)),
            Width::Long | Width::Quad => cpu::in32(port),
        };
        say!(self.reply, " {value:#x}");
        Ok(())
    }

    pub(super) fn port_out(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let port = words.narrow("PORT")?;
        match width(words, Width::Long)? {
            Width::Byte => cpu::out8(port, last(words)?),
            Width::Word => cpu::out16(port, last(words)?),
            Width::Long | Width::Quad => cpu::out32(port, last(words)?),
        }
        Ok(())
    }

    pub(super) fn peek(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let address = words.number("ADDR")?;
        let width = width(words, Width::Quad)?;
        words.end()?;
        self.memory.reach(address, width.bytes())?;
        say!(self.reply, " {:#x}", cpu::read(address, width));
        Ok(())
    }

    pub(super) fn poke(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let address = words.number("ADDR")?;
        let width = width(words, Width::Quad)?;
        let value = match width {
            Width::Byte => last::<u8>(words)?.into(),
            Width::Word => last::<u16>(words)?.into(),
            Width::Long => last::<u32>(words)?.into(),
            Width::Quad => last(words)?,
        };
        self.memory.reach(address, width.bytes())?;
        cpu::write(address, width, value);
        Ok(())
    }

    pub(super) fn cpuid(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let leaf = words.narrow("LEAF")?;
        let subleaf = words.optional_number("SUBLEAF")?.unwrap_or(0);
        let subleaf = u32::try_from(subleaf).map_err(|_| Malformed::NotANumber { what: "SUBLEAF" })?;
        words.end()?;
        let is = cpu::cpuid(leaf, subleaf);
        say!(self.reply, " {:#x} {:#x} {:#x} {:#x}", is.eax, is.ebx, is.ecx, is.edx);
        Ok(())
    }

    /// `msr IDX [VALUE]`.
    pub(super) fn msr(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let index = words.narrow("IDX")?;
        let value = words.optional_number("VALUE")?;
        words.end()?;
        match value {
            Some(value) => cpu::wrmsr(index, value),
            None => say!(self.reply, " {:#x}", cpu::rdmsr(index)),
        }
        Ok(())
    }
}

/// Reads `WIDTH`, up to `max`.
pub(super) fn width(words: &mut Words<'_>, max: Width) -> Result<Width, OrderError> {
    Width::from_bytes(words.number("WIDTH")?)
        .filter(|width| width.bytes() <= max.bytes())
        .ok_or(Malformed::NotANumber { what: "WIDTH" }.into())
}

/// Reads the last argument of an order.
fn last<T: TryFrom<u64>>(words: &mut Words<'_>) -> Result<T, OrderError> {
    let value = words.narrow("VALUE")?;
    words.end()?;
    Ok(value)
}
