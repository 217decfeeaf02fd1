//! Orders on the machine as a whole: its tables, its PCI functions, its interrupts, its end; and two stop watches.

use core::fmt::Write;
use core::ops::RangeInclusive;
use core::sync::atomic::Ordering;

use test_guest::orders::{Malformed, Words};

use super::Program;
use super::registers::width;
use super::reply::{OrderError, say};
use crate::acpi::EcamWindow;
use crate::cpu::{self, Width};
use crate::pci::{Bar, BarKind, Bdf, Moved};
use crate::{apic, interrupts};

/// Vectors that no device and no processor uses by itself.
const HELD_VECTORS: RangeInclusive<u8> = 0x31..=0x3f;
/// How long an interrupt that is let in may take: a second or two.
const HELD_TSC: u64 = 4_000_000_000;

/// How long the machine may take to power off: a second or two.
const POWER_OFF_TSC: u64 = 4_000_000_000;

impl Program {
    pub(super) fn acpi(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        words.end()?;
        for table in self.acpi.tables() {
            let name = core::str::from_utf8(&table.signature).unwrap_or("????");
            let sum = if table.checksum_good { "good" } else { "bad" };
            say!(self.reply, " {name}={:#x},{},{sum}", table.address, table.len_bytes);
        }
        Ok(())
    }

    /// `pci`: each function, its IDs, its class and its BARs.
    pub(super) fn pci(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        words.end()?;
        let (pci, reply) = (&self.pci, &mut self.reply);
        pci.each(|bdf| {
            let (vendor, device) = pci.id(bdf);
            say!(reply, " [{bdf} {vendor:04x}:{device:04x} {:06x}", pci.class(bdf));
            for bar in pci.bars(bdf) {
                say!(reply, " bar{}={},{:#x}", bar.index, bar_kind(&bar), bar.address);
            }
            say!(reply, "]");
            Ok(())
        })
    }

    pub(super) fn pci_read(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let (bdf, offset, width) = register(words)?;
        words.end()?;
        say!(self.reply, " {:#x}", self.pci.read(bdf, offset, width));
        Ok(())
    }

    pub(super) fn pci_write(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let (bdf, offset, width) = register(words)?;
        let value = words.number("VALUE")?;
        words.end()?;
        self.pci.write(bdf, offset, width, value);
        Ok(())
    }

    /// `pci-size BDF`: each BAR with its size.
    pub(super) fn pci_size(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let bdf = self.function(words)?;
        words.end()?;
        for bar in self.pci.bars(bdf) {
            let size = self.pci.bar_size(bdf, &bar);
            say!(self.reply, " bar{}={},{:#x},{size:#x}", bar.index, bar_kind(&bar), bar.address);
        }
        Ok(())
    }

    /// `pci-move BDF BAR ADDR`: moves a BAR with memory decoding off, as an operating system does. The driver follows.
    pub(super) fn pci_move(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let bdf = self.function(words)?;
        let index: u8 = words.narrow("BAR")?;
        let address = words.number("ADDR")?;
        words.end()?;
        if index > 5 {
            return Err(Malformed::NotANumber { what: "BAR" }.into());
        }
        let bar = self.pci.bar(bdf, index);
        let size = self.pci.bar_size(bdf, &bar);
        if size == 0 {
            return Err(OrderError::Refused("there is no such BAR"));
        }
        self.memory.reach(address, size)?;
        self.pci.move_bar(bdf, &bar, address);
        self.virtio.follow(bdf, Moved { old: bar.address, new: address, size });
        Ok(())
    }

    /// Reads the address of a function that is there.
    pub(super) fn function(&self, words: &mut Words<'_>) -> Result<Bdf, OrderError> {
        let bdf = Bdf(words.bdf()?);
        if self.pci.id(bdf).0 == 0xffff {
            return Err(OrderError::Refused("there is no such function"));
        }
        Ok(bdf)
    }

    /// `pci-ecam ADDR BUSES`: a window of segment 0 that no table describes.
    pub(super) fn pci_ecam(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let address = words.number("ADDR")?;
        let buses: u8 = words.narrow("BUSES")?;
        words.end()?;
        let last_bus = buses.checked_sub(1).ok_or(Malformed::NotANumber { what: "BUSES" })?;
        if self.pci.has_window(0) {
            return Err(OrderError::Refused("segment 0 has a window"));
        }
        self.pci.add_window(&mut self.memory, &EcamWindow { address, segment: 0, first_bus: 0, last_bus })?;
        Ok(())
    }

    /// `pci-assign ADDR LEN`: gives addresses to the memory BARs that have none.
    pub(super) fn pci_assign(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let address = words.number("ADDR")?;
        let len = words.number("LEN")?;
        words.end()?;
        let assigned = self.pci.assign(&mut self.memory, address, len)?;
        say!(self.reply, " {assigned}");
        Ok(())
    }

    /// `interrupts`: the vectors that came, with their counts.
    pub(super) fn interrupts(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        words.end()?;
        for vector in 0..=u8::MAX {
            let count = interrupts::counter(vector).load(Ordering::Relaxed);
            if count != 0 {
                say!(self.reply, " {vector:#x}={count}");
            }
        }
        Ok(())
    }

    /// `hold VECTOR ADDR`: sends itself an interrupt that it does not let in until the word at ADDR is another one.
    pub(super) fn hold(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let vector: u8 = words.narrow("VECTOR")?;
        let address = words.number("ADDR")?;
        words.end()?;
        if !HELD_VECTORS.contains(&vector) {
            return Err(Malformed::NotANumber { what: "VECTOR" }.into());
        }
        self.memory.reach(address, Width::Quad.bytes())?;
        let count = || interrupts::counter(vector).load(Ordering::Relaxed);
        let word = cpu::read(address, Width::Quad);
        cpu::disable_interrupts();
        apic::send(apic::id(), vector);
        let requested = u8::from(apic::is_requested(vector));
        let _ = writeln!(self.serial, "held requested={requested} count={}", count());
        while cpu::read(address, Width::Quad) == word {
            core::hint::spin_loop();
        }
        let (held, requested) = (count(), u8::from(apic::is_requested(vector)));
        cpu::enable_interrupts();
        let start = cpu::tsc();
        while count() == held && cpu::tsc().wrapping_sub(start) < HELD_TSC {
            core::hint::spin_loop();
        }
        say!(self.reply, " requested={requested} held={held} count={}", count());
        Ok(())
    }

    /// `spin N`: ticks of the time stamp counter for N rounds of a loop of two instructions.
    pub(super) fn spin(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let rounds = words.number("N")?;
        words.end()?;
        let start = cpu::tsc();
        cpu::spin(rounds);
        say!(self.reply, " {}", cpu::tsc().wrapping_sub(start));
        Ok(())
    }

    /// `ioexit N`: ticks of the time stamp counter for N writes to port 0x80.
    pub(super) fn ioexit(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let count = words.number("N")?;
        words.end()?;
        let start = cpu::tsc();
        for _ in 0..count {
            cpu::out8(0x80, 0);
        }
        say!(self.reply, " {}", cpu::tsc().wrapping_sub(start));
        Ok(())
    }

    /// `shutdown`: powers off as the ACPI tables say.
    pub(super) fn shutdown(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        words.end()?;
        self.acpi.power_off();
        // The VMM may let the processor run on for a while.
        let start = cpu::tsc();
        while cpu::tsc().wrapping_sub(start) < POWER_OFF_TSC {
            core::hint::spin_loop();
        }
        Err(OrderError::Refused("the machine does not power off"))
    }

    /// `reset`: by the reset control register, then the keyboard controller, then a triple fault.
    pub(super) fn reset(&mut self) -> ! {
        cpu::out8(0xcf9, 0x02);
        cpu::out8(0xcf9, 0x06);
        cpu::out8(0x64, 0xfe);
        cpu::triple_fault()
    }
}

/// Reads `BDF OFF WIDTH`.
fn register(words: &mut Words<'_>) -> Result<(Bdf, u16, Width), OrderError> {
    let bdf = Bdf(words.bdf()?);
    let offset: u16 = words.narrow("OFF")?;
    let width = width(words, Width::Long)?;
    if offset >= 4096 || u64::from(offset) % width.bytes() != 0 {
        return Err(Malformed::NotANumber { what: "OFF" }.into());
    }
    Ok((bdf, offset, width))
}

fn bar_kind(bar: &Bar) -> &'static str {
    match bar.kind {
        BarKind::Io => "io",
        BarKind::Memory32 => "mem32",
        BarKind::Memory64 => "mem64",
    }
}
