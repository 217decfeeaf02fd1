//! PCI configuration space: through the ECAM windows that the ACPI tables give, else through ports 0xcf8 and 0xcfc.
//!
//! Finds functions and reads, sizes and moves their BARs (PCI Local Bus 3.0, section 6.2.5). Knows no driver.

use core::fmt;

use crate::acpi::{Acpi, EcamWindow};
use crate::cpu::{self, Width};
use crate::memory::{Memory, MemoryError};

const MAX_WINDOWS: usize = 16;

pub const COMMAND: u16 = 0x04;
pub const COMMAND_MEMORY: u64 = 1 << 1;
pub const COMMAND_MASTER: u64 = 1 << 2;
pub const COMMAND_NO_INTX: u64 = 1 << 10;
const CLASS: u16 = 0x08;
const HEADER_TYPE: u16 = 0x0e;
const BAR0: u16 = 0x10;
const SECONDARY_BUS: u16 = 0x19;
const CAPABILITIES: u16 = 0x34;
const STATUS: u16 = 0x06;
const STATUS_CAPABILITIES: u64 = 1 << 4;
pub const CAPABILITY_MSIX: u64 = 0x11;

/// Segment, bus, device and function, as `test_guest::orders::bdf` packs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bdf(pub u32);

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(bdf) = *self;
        if bdf >> 16 != 0 {
            write!(f, "{:04x}:", bdf >> 16)?;
        }
        write!(f, "{:02x}:{:02x}.{}", bdf >> 8 & 0xff, bdf >> 3 & 0x1f, bdf & 7)
    }
}

/// What a BAR decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    Io,
    Memory32,
    Memory64,
}

/// A base address register.
#[derive(Clone, Copy, Debug)]
pub struct Bar {
    pub index: u8,
    pub kind: BarKind,
    pub address: u64,
}

/// A BAR that was moved, with what lies in it.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    pub old: u64,
    pub new: u64,
    pub size: u64,
}

impl Moved {
    /// Where what was at `address` is now.
    pub fn to(self, address: u64) -> u64 {
        match address.checked_sub(self.old) {
            Some(offset) if offset < self.size => self.new + offset,
            _ => address,
        }
    }
}

/// The registers of a function that decide where and how it can be reached.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    command: u64,
    bars: [u64; 6],
    /// Message control of MSI-X, and where it is.
    msix: Option<(u16, u64)>,
}

/// Access to configuration space.
#[derive(Debug)]
pub struct Pci {
    windows: [EcamWindow; MAX_WINDOWS],
    window_count: usize,
}

impl Pci {
    /// Takes the windows that can be mapped.
    pub fn new(memory: &mut Memory, acpi: &Acpi) -> Self {
        let mut pci = Self { windows: [EcamWindow::default(); MAX_WINDOWS], window_count: 0 };
        for window in acpi.ecam_windows() {
            // One that cannot be mapped is as good as none.
            let _ = pci.add_window(memory, window);
        }
        pci
    }

    pub fn has_window(&self, segment: u16) -> bool {
        self.windows[..self.window_count].iter().any(|window| window.segment == segment)
    }

    /// Adds a window.
    pub fn add_window(&mut self, memory: &mut Memory, window: &EcamWindow) -> Result<(), MemoryError> {
        let len_bytes = (u64::from(window.last_bus) + 1) << 20;
        memory.reach(window.address, len_bytes)?;
        if let Some(place) = self.windows.get_mut(self.window_count) {
            *place = *window;
            self.window_count += 1;
        }
        Ok(())
    }

    /// Reads a register; all ones where there is nothing. `offset` is a multiple of the width.
    pub fn read(&self, bdf: Bdf, offset: u16, width: Width) -> u64 {
        if let Some(address) = self.ecam_address(bdf, offset) {
            return cpu::read(address, width);
        }
        let Some(port) = select(bdf, offset) else {
            return u64::MAX >> (64 - 8 * width.bytes());
        };
        match width {
            Width::Byte => cpu::in8(port).into(),
            Width::Word => cpu::in16(port).into(),
            Width::Long | Width::Quad => cpu::in32(port).into(),
        }
    }

    /// Writes a register. `offset` is a multiple of the width, which is 4 at most.
    pub fn write(&self, bdf: Bdf, offset: u16, width: Width, value: u64) {
        if let Some(address) = self.ecam_address(bdf, offset) {
            cpu::write(address, width, value);
        } else {
            self.write_by_ports(bdf, offset, width, value);
        }
    }

    /// Writes a register through the ports, whether or not there is a window. Returns whether they reach it.
    #[expect(clippy::cast_possible_truncation, reason = "the value is cut to the width of the register")]
    pub fn write_by_ports(&self, bdf: Bdf, offset: u16, width: Width, value: u64) -> bool {
        let Some(port) = select(bdf, offset) else {
            return false;
        };
        match width {
            Width::Byte => cpu::out8(port, value as u8),
            Width::Word => cpu::out16(port, value as u16),
            Width::Long | Width::Quad => cpu::out32(port, value as u32),
        }
        true
    }

    /// Calls `visit` for each function: bus by bus, buses behind bridges as the bridges are found.
    pub fn each<E>(&self, mut visit: impl FnMut(Bdf) -> Result<(), E>) -> Result<(), E> {
        if self.window_count == 0 {
            return self.each_of(0, 0, &mut visit);
        }
        for window in &self.windows[..self.window_count] {
            self.each_of(window.segment, window.first_bus, &mut visit)?;
        }
        Ok(())
    }

    fn each_of<E>(
        &self,
        segment: u16,
        first_bus: u8,
        visit: &mut impl FnMut(Bdf) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut wanted = [false; 256];
        wanted[usize::from(first_bus)] = true;
        // A bridge leads to a bus with a higher number, so one pass finds all.
        for bus in 0..=u8::MAX {
            if !wanted[usize::from(bus)] {
                continue;
            }
            for device in 0..32 {
                let device = Bdf(u32::from(segment) << 16 | u32::from(bus) << 8 | device << 3);
                if self.read(device, 0, Width::Word) == 0xffff {
                    continue;
                }
                let many = self.read(device, HEADER_TYPE, Width::Byte) & 0x80 != 0;
                for function in 0..if many { 8 } else { 1 } {
                    let bdf = Bdf(device.0 | function);
                    if self.read(bdf, 0, Width::Word) == 0xffff {
                        continue;
                    }
                    if self.is_bridge(bdf) {
                        let secondary = self.read(bdf, SECONDARY_BUS, Width::Byte) & 0xff;
                        wanted[usize::try_from(secondary).unwrap_or(0)] = true;
                    }
                    visit(bdf)?;
                }
            }
        }
        Ok(())
    }

    /// Returns vendor and device ID.
    pub fn id(&self, bdf: Bdf) -> (u64, u64) {
        let id = self.read(bdf, 0, Width::Long);
        (id & 0xffff, id >> 16 & 0xffff)
    }

    /// Returns base class, subclass and interface.
    pub fn class(&self, bdf: Bdf) -> u64 {
        self.read(bdf, CLASS, Width::Long) >> 8
    }

    /// Returns the BARs that are there: those with an address, and those that take one.
    pub fn bars(&self, bdf: Bdf) -> impl Iterator<Item = Bar> {
        let count = if self.is_bridge(bdf) { 2 } else { 6 };
        let mut next = 0;
        core::iter::from_fn(move || {
            while next < count {
                let index = next;
                let bar = self.bar(bdf, index);
                next += if bar.kind == BarKind::Memory64 { 2 } else { 1 };
                if bar.address != 0 || self.bar_size(bdf, &bar) != 0 {
                    return Some(bar);
                }
            }
            None
        })
    }

    /// Reads a BAR by its number.
    pub fn bar(&self, bdf: Bdf, index: u8) -> Bar {
        let low = self.read(bdf, bar_offset(index), Width::Long);
        let (kind, address) = match low & 0x7 {
            kind if kind & 1 != 0 => (BarKind::Io, low & !0x3),
            0x4 => {
                let high = self.read(bdf, bar_offset(index + 1), Width::Long);
                (BarKind::Memory64, high << 32 | (low & !0xf))
            }
            _ => (BarKind::Memory32, low & !0xf),
        };
        Bar { index, kind, address }
    }

    /// Returns how many bytes a BAR decodes, with decoding off while it is asked; 0 if it is not there.
    pub fn bar_size(&self, bdf: Bdf, bar: &Bar) -> u64 {
        const MEMORY_AND_IO: u64 = 0x3;
        let command = self.read(bdf, COMMAND, Width::Word);
        if command & MEMORY_AND_IO != 0 {
            self.write(bdf, COMMAND, Width::Word, command & !MEMORY_AND_IO);
        }
        let offset = bar_offset(bar.index);
        let old = self.read(bdf, offset, Width::Long);
        self.write(bdf, offset, Width::Long, 0xffff_ffff);
        let mut mask = self.read(bdf, offset, Width::Long);
        self.write(bdf, offset, Width::Long, old);
        if bar.kind == BarKind::Memory64 {
            let old = self.read(bdf, offset + 4, Width::Long);
            self.write(bdf, offset + 4, Width::Long, 0xffff_ffff);
            mask |= self.read(bdf, offset + 4, Width::Long) << 32;
            self.write(bdf, offset + 4, Width::Long, old);
        } else if mask != 0 {
            mask |= 0xffff_ffff << 32;
        }
        if command & MEMORY_AND_IO != 0 {
            self.write(bdf, COMMAND, Width::Word, command);
        }
        mask &= if bar.kind == BarKind::Io { !0x3 } else { !0xf };
        // An I/O BAR may leave its upper 16 bits at 0 (section 6.2.5.1).
        if bar.kind == BarKind::Io && mask != 0 {
            mask |= 0xffff_0000;
        }
        mask.wrapping_neg()
    }

    fn set_bar(&self, bdf: Bdf, bar: &Bar, address: u64) {
        let offset = bar_offset(bar.index);
        self.write(bdf, offset, Width::Long, address & 0xffff_ffff);
        if bar.kind == BarKind::Memory64 {
            self.write(bdf, offset + 4, Width::Long, address >> 32);
        }
    }

    /// Returns the settings of a function, to be put back later.
    pub fn settings(&self, bdf: Bdf) -> Settings {
        let mut bars = [0; 6];
        for (index, bar) in (0..).zip(&mut bars) {
            *bar = self.read(bdf, bar_offset(index), Width::Long);
        }
        let msix = self.capabilities(bdf, CAPABILITY_MSIX).next().map(|at| at + 2);
        Settings {
            command: self.read(bdf, COMMAND, Width::Word),
            bars,
            msix: msix.map(|control| (control, self.read(bdf, control, Width::Word))),
        }
    }

    /// Puts the settings of a function back, with decoding off meanwhile.
    pub fn put_back(&self, bdf: Bdf, settings: &Settings) {
        self.write(bdf, COMMAND, Width::Word, 0);
        for (index, bar) in (0..).zip(settings.bars) {
            self.write(bdf, bar_offset(index), Width::Long, bar);
        }
        if let Some((control, value)) = settings.msix {
            self.write(bdf, control, Width::Word, value);
        }
        self.write(bdf, COMMAND, Width::Word, settings.command);
    }

    /// Moves a BAR with memory decoding off meanwhile.
    pub fn move_bar(&self, bdf: Bdf, bar: &Bar, address: u64) {
        let command = self.read(bdf, COMMAND, Width::Word);
        self.write(bdf, COMMAND, Width::Word, command & !COMMAND_MEMORY);
        self.set_bar(bdf, bar, address);
        self.write(bdf, COMMAND, Width::Word, command);
    }

    /// Returns the offsets of the capabilities with this ID.
    pub fn capabilities(&self, bdf: Bdf, id: u64) -> impl Iterator<Item = u16> {
        const MAX_CAPABILITIES: u32 = 48;
        let has_list = self.read(bdf, STATUS, Width::Word) & STATUS_CAPABILITIES != 0;
        let mut next = if has_list { self.read(bdf, CAPABILITIES, Width::Byte) & 0xfc } else { 0 };
        let mut left = MAX_CAPABILITIES;
        core::iter::from_fn(move || {
            while next != 0 && left > 0 {
                let at = u16::try_from(next).unwrap_or(0);
                let header = self.read(bdf, at, Width::Word);
                next = header >> 8 & 0xfc;
                left -= 1;
                if header & 0xff == id {
                    return Some(at);
                }
            }
            None
        })
    }

    /// Gives each memory BAR that has no address one from a window, from the front, and lets its function decode it.
    /// Returns how many.
    pub fn assign(&self, memory: &mut Memory, mut address: u64, len_bytes: u64) -> Result<u64, MemoryError> {
        let end = address.saturating_add(len_bytes);
        memory.reach(address, len_bytes)?;
        let mut assigned = 0;
        self.each(|bdf| {
            for bar in self.bars(bdf).filter(|bar| bar.kind != BarKind::Io && bar.address == 0) {
                let size = self.bar_size(bdf, &bar);
                let at = address.next_multiple_of(size);
                if at.saturating_add(size) > end {
                    return Err(MemoryError::NotFree { address: at });
                }
                self.set_bar(bdf, &bar, at);
                address = at + size;
                assigned += 1;
            }
            let command = self.read(bdf, COMMAND, Width::Word);
            self.write(bdf, COMMAND, Width::Word, command | COMMAND_MEMORY);
            Ok(())
        })?;
        Ok(assigned)
    }

    fn is_bridge(&self, bdf: Bdf) -> bool {
        self.read(bdf, HEADER_TYPE, Width::Byte) & 0x7f == 1
    }

    /// Returns where a register is in memory, if it is in a window.
    pub fn ecam_address(&self, bdf: Bdf, offset: u16) -> Option<u64> {
        let bus = bdf.0 >> 8 & 0xff;
        self.windows[..self.window_count]
            .iter()
            .find(|window| {
                u32::from(window.segment) == bdf.0 >> 16
                    && (u32::from(window.first_bus)..=u32::from(window.last_bus)).contains(&bus)
            })
            .map(|window| window.address + (u64::from(bdf.0 & 0xffff) << 12) + u64::from(offset))
    }
}

fn bar_offset(index: u8) -> u16 {
    BAR0 + 4 * u16::from(index)
}

/// Selects a register of segment 0 below offset 256; returns the port of its data.
fn select(bdf: Bdf, offset: u16) -> Option<u16> {
    if bdf.0 >> 16 != 0 || offset >= 256 {
        return None;
    }
    cpu::out32(0xcf8, 1 << 31 | bdf.0 << 8 | u32::from(offset & 0xfc));
    Some(0xcfc + (offset & 3))
}
