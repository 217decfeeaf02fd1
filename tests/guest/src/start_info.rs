//! What the VMM tells at boot: `hvm_start_info` of the PVH boot protocol, copied out before anything overwrites it.

use crate::cpu::{Width, read};

const MAGIC: u64 = 0x336e_c578;
const MAX_RANGES: usize = 64;
const MAX_COMMAND_LINE: usize = 4096;

/// Kind of a memory range, as in an E820 map.
pub const KIND_RAM: u32 = 1;

/// One range of the memory map.
#[derive(Clone, Copy, Debug, Default)]
pub struct Range {
    pub start: u64,
    pub len_bytes: u64,
    pub kind: u32,
}

impl Range {
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len_bytes)
    }
}

/// The copy.
#[derive(Debug)]
pub struct StartInfo {
    ranges: [Range; MAX_RANGES],
    range_count: usize,
    command_line: [u8; MAX_COMMAND_LINE],
    command_line_len: usize,
    /// Guest-physical address of the ACPI root pointer, or 0.
    pub rsdp: u64,
}

impl StartInfo {
    pub const fn empty() -> Self {
        Self {
            ranges: [Range { start: 0, len_bytes: 0, kind: 0 }; MAX_RANGES],
            range_count: 0,
            command_line: [0; MAX_COMMAND_LINE],
            command_line_len: 0,
            rsdp: 0,
        }
    }

    /// Copies what is at `address`, below 1 GiB. Returns whether a start info is there.
    #[expect(clippy::cast_possible_truncation, reason = "the fields are read at their own width")]
    pub fn copy_from(&mut self, address: u64) -> bool {
        if read(address, Width::Long) != MAGIC {
            return false;
        }
        let version = read(address + 4, Width::Long);
        let command_line = read(address + 24, Width::Quad);
        self.rsdp = read(address + 32, Width::Quad);
        if command_line != 0 {
            while self.command_line_len < MAX_COMMAND_LINE {
                let byte = read(command_line + self.command_line_len as u64, Width::Byte) as u8;
                if byte == 0 {
                    break;
                }
                self.command_line[self.command_line_len] = byte;
                self.command_line_len += 1;
            }
        }
        if version >= 1 {
            let map = read(address + 40, Width::Quad);
            let count = read(address + 48, Width::Long);
            for index in 0..count.min(MAX_RANGES as u64) {
                let entry = map + 24 * index;
                self.ranges[self.range_count] = Range {
                    start: read(entry, Width::Quad),
                    len_bytes: read(entry + 8, Width::Quad),
                    kind: read(entry + 16, Width::Long) as u32,
                };
                self.range_count += 1;
            }
        }
        true
    }

    pub fn ranges(&self) -> &[Range] {
        &self.ranges[..self.range_count]
    }

    pub fn ram(&self) -> impl Iterator<Item = &Range> {
        self.ranges().iter().filter(|range| range.kind == KIND_RAM)
    }

    pub fn ram_bytes(&self) -> u64 {
        self.ram().map(|range| range.len_bytes).sum()
    }

    /// The command line; empty if it is not text.
    pub fn command_line(&self) -> &str {
        core::str::from_utf8(&self.command_line[..self.command_line_len]).unwrap_or("")
    }
}
