//! Orders on memory: the map, the pattern, the checksum.

use test_guest::orders::Words;
use test_guest::pattern::{self, Checksum};

use super::Program;
use super::reply::{OrderError, say};
use crate::cpu::{self, Width};

impl Program {
    pub(super) fn memory_map(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        words.end()?;
        for range in self.start_info.ranges() {
            say!(self.reply, " range={:#x},{:#x},{}", range.start, range.len_bytes, range.kind);
        }
        for range in self.memory.free() {
            say!(self.reply, " free={:#x},{:#x}", range.start, range.len_bytes);
        }
        say!(self.reply, " heap_left={}", self.memory.heap_left_bytes());
        Ok(())
    }

    pub(super) fn fill(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let (address, len) = self.free_words(words)?;
        let seed = words.number("SEED")?;
        words.end()?;
        for index in 0..len / 8 {
            cpu::write(address + 8 * index, Width::Quad, pattern::word(seed, index));
        }
        Ok(())
    }

    pub(super) fn sum(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let (address, len) = self.free_words(words)?;
        words.end()?;
        say!(self.reply, " {:#x}", checksum(address, len).value());
        Ok(())
    }

    pub(super) fn verify(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let (address, len) = self.free_words(words)?;
        let seed = words.number("SEED")?;
        words.end()?;
        for index in 0..len / 8 {
            let at = address + 8 * index;
            let is = cpu::read(at, Width::Quad);
            let want = pattern::word(seed, index);
            if is != want {
                say!(self.reply, " mismatch {at:#x} is {is:#x} want {want:#x}");
                return Ok(());
            }
        }
        say!(self.reply, " same");
        Ok(())
    }

    /// Reads `ADDR LEN`, whole words of free memory, and maps them.
    pub(super) fn free_words(&mut self, words: &mut Words<'_>) -> Result<(u64, u64), OrderError> {
        let address = words.number("ADDR")?;
        let len = words.number("LEN")?;
        if address % 8 != 0 || len % 8 != 0 {
            return Err(OrderError::Refused("ADDR and LEN must be multiples of 8"));
        }
        self.memory.reach_free(address, len)?;
        Ok((address, len))
    }
}

/// Returns the checksum of `len` bytes, whole words.
pub(super) fn checksum(address: u64, len: u64) -> Checksum {
    let mut sum = Checksum::new();
    for at in (address..address + len).step_by(8) {
        sum.add(cpu::read(at, Width::Quad));
    }
    sum
}
