//! The ACPI tables, as far as the guest needs them: processors, ECAM windows, the I/O APIC, and how to power off.
//!
//! Read at boot and kept as facts. Tables come from the VMM under test, so each is checked against its length before
//! it is believed; the order `acpi` lists all of them with their checksums.

use crate::cpu::{Width, out8, out16, read, write};
use crate::memory::Memory;
use crate::start_info::StartInfo;

const MAX_TABLES: usize = 32;
const MAX_WINDOWS: usize = 16;
const MAX_TABLE_BYTES: u64 = 1 << 20;
const HEADER_BYTES: u64 = 36;

/// One table.
#[derive(Clone, Copy, Debug, Default)]
pub struct Table {
    pub signature: [u8; 4],
    pub address: u64,
    pub len_bytes: u64,
    pub checksum_good: bool,
}

/// A window of PCI Express configuration space (an MCFG entry).
#[derive(Clone, Copy, Debug, Default)]
pub struct EcamWindow {
    pub address: u64,
    pub segment: u16,
    pub first_bus: u8,
    pub last_bus: u8,
}

/// How the machine is powered off.
#[derive(Clone, Copy, Debug)]
enum PowerOff {
    /// The sleep control register of a hardware-reduced machine (ACPI 6.5, section 4.8.4.2).
    SleepControl { memory: bool, address: u64, kind: u8 },
    /// The PM1a control port.
    Pm1Control { port: u16, kind: u8 },
}

/// The facts.
#[derive(Debug)]
pub struct Acpi {
    tables: [Table; MAX_TABLES],
    table_count: usize,
    windows: [EcamWindow; MAX_WINDOWS],
    window_count: usize,
    /// Enabled processors; 0 without a MADT.
    pub processors: usize,
    pub io_apic: Option<u64>,
    power_off: Option<PowerOff>,
}

impl Acpi {
    /// Reads the tables. A machine without any gives no facts.
    pub fn read(memory: &mut Memory, start_info: &StartInfo) -> Self {
        let mut acpi = Self {
            tables: [Table::default(); MAX_TABLES],
            table_count: 0,
            windows: [EcamWindow::default(); MAX_WINDOWS],
            window_count: 0,
            processors: 0,
            io_apic: None,
            power_off: None,
        };
        if let Some(rsdp) = find_rsdp(memory, start_info) {
            acpi.read_roots(memory, rsdp);
        }
        acpi
    }

    pub fn tables(&self) -> &[Table] {
        &self.tables[..self.table_count]
    }

    pub fn ecam_windows(&self) -> &[EcamWindow] {
        &self.windows[..self.window_count]
    }

    /// Powers off. Returns if the tables do not say how, or if nothing happens.
    pub fn power_off(&self) {
        match self.power_off {
            Some(PowerOff::SleepControl { memory: true, address, kind }) => {
                write(address, Width::Byte, u64::from(kind << 2 | 1 << 5));
            }
            Some(PowerOff::SleepControl { memory: false, address, kind }) => {
                if let Ok(port) = u16::try_from(address) {
                    out8(port, kind << 2 | 1 << 5);
                }
            }
            Some(PowerOff::Pm1Control { port, kind }) => out16(port, u16::from(kind) << 10 | 1 << 13),
            None => {}
        }
    }

    fn read_roots(&mut self, memory: &mut Memory, rsdp: u64) {
        let xsdt = if read(rsdp + 15, Width::Byte) >= 2 { read(rsdp + 24, Width::Quad) } else { 0 };
        let (root, width) =
            if xsdt != 0 { (xsdt, Width::Quad) } else { (read(rsdp + 16, Width::Long), Width::Long) };
        let Some(root) = self.add_table(memory, root) else {
            return;
        };
        let mut entry = root.address + HEADER_BYTES;
        while entry + width.bytes() <= root.address + root.len_bytes {
            let address = read(entry, width);
            entry += width.bytes();
            let Some(table) = self.add_table(memory, address) else {
                continue;
            };
            match &table.signature {
                b"APIC" => self.read_madt(&table),
                b"MCFG" => self.read_mcfg(&table),
                b"FACP" => self.read_fadt(memory, &table),
                _ => {}
            }
        }
    }

    fn add_table(&mut self, memory: &mut Memory, address: u64) -> Option<Table> {
        memory.reach(address, HEADER_BYTES).ok()?;
        let len_bytes = read(address + 4, Width::Long);
        if !(HEADER_BYTES..=MAX_TABLE_BYTES).contains(&len_bytes) {
            return None;
        }
        memory.reach(address, len_bytes).ok()?;
        let sum = (0..len_bytes).fold(0, |sum: u64, at| sum + read(address + at, Width::Byte));
        let table = Table {
            signature: u32::try_from(read(address, Width::Long)).unwrap_or(0).to_le_bytes(),
            address,
            len_bytes,
            checksum_good: sum & 0xff == 0,
        };
        *self.tables.get_mut(self.table_count)? = table;
        self.table_count += 1;
        Some(table)
    }

    /// Counts the enabled local APICs and x2APICs (ACPI 6.5, sections 5.2.12.2 and 5.2.12.12).
    fn read_madt(&mut self, table: &Table) {
        let end = table.address + table.len_bytes;
        let mut at = table.address + 44;
        while at + 2 <= end {
            let (kind, len) = (read(at, Width::Byte), read(at + 1, Width::Byte));
            if len < 2 || at + len > end {
                return;
            }
            match kind {
                0 if len >= 8 => self.processors += usize::from(read(at + 4, Width::Long) & 1 != 0),
                1 if len >= 12 && self.io_apic.is_none() => self.io_apic = Some(read(at + 4, Width::Long)),
                9 if len >= 16 => self.processors += usize::from(read(at + 8, Width::Long) & 1 != 0),
                _ => {}
            }
            at += len;
        }
    }

    fn read_mcfg(&mut self, table: &Table) {
        let mut at = table.address + 44;
        while at + 16 <= table.address + table.len_bytes && self.window_count < MAX_WINDOWS {
            self.windows[self.window_count] = EcamWindow {
                address: read(at, Width::Quad),
                segment: u16::try_from(read(at + 8, Width::Word)).unwrap_or(0),
                first_bus: u8::try_from(read(at + 10, Width::Byte)).unwrap_or(0),
                last_bus: u8::try_from(read(at + 11, Width::Byte)).unwrap_or(0),
            };
            self.window_count += 1;
            at += 16;
        }
    }

    /// Finds out how to power off (ACPI 6.5, section 5.2.9, and the package `_S5_` of the DSDT).
    fn read_fadt(&mut self, memory: &mut Memory, table: &Table) {
        const HARDWARE_REDUCED: u64 = 1 << 20;
        if table.len_bytes < 116 {
            return;
        }
        let wide = if table.len_bytes >= 148 { read(table.address + 140, Width::Quad) } else { 0 };
        let dsdt = if wide != 0 { wide } else { read(table.address + 40, Width::Long) };
        let Some(kind) = self.add_table(memory, dsdt).and_then(|dsdt| sleep_kind(&dsdt)) else {
            return;
        };
        if read(table.address + 112, Width::Long) & HARDWARE_REDUCED == 0 {
            let port = u16::try_from(read(table.address + 64, Width::Long)).unwrap_or(0);
            self.power_off = (port != 0).then_some(PowerOff::Pm1Control { port, kind });
        } else if table.len_bytes >= 256 {
            let register = table.address + 244;
            let address = read(register + 4, Width::Quad);
            let memory_space = read(register, Width::Byte) == 0;
            if address != 0 && (!memory_space || memory.reach(address, 1).is_ok()) {
                self.power_off = Some(PowerOff::SleepControl { memory: memory_space, address, kind });
            }
        }
    }
}

/// Returns the sleep type of S5: the first element of the package `_S5_`.
fn sleep_kind(dsdt: &Table) -> Option<u8> {
    const NAME: u64 = u32::from_le_bytes(*b"_S5_") as u64;
    const PACKAGE: u64 = 0x12;
    const BYTE: u64 = 0x0a;
    let end = dsdt.address + dsdt.len_bytes;
    let at =
        (dsdt.address + HEADER_BYTES..end.saturating_sub(8)).find(|at| read(*at, Width::Long) == NAME)?;
    if read(at + 4, Width::Byte) != PACKAGE {
        return None;
    }
    // The package's length, of 1 to 4 bytes, and its element count are passed over.
    let first = at + 5 + (read(at + 5, Width::Byte) >> 6) + 2;
    let value = match read(first, Width::Byte) {
        BYTE => read(first + 1, Width::Byte),
        zero_or_one => zero_or_one,
    };
    u8::try_from(value).ok().filter(|value| *value < 8)
}

/// Finds the root pointer: where the start info says, or else in the firmware's segment (ACPI 6.5, section 5.2.5.1),
/// where the memory map knows that there is one.
fn find_rsdp(memory: &mut Memory, start_info: &StartInfo) -> Option<u64> {
    const SIGNATURE: u64 = u64::from_le_bytes(*b"RSD PTR ");
    if start_info.rsdp != 0 {
        memory.reach(start_info.rsdp, 36).ok()?;
        return (read(start_info.rsdp, Width::Quad) == SIGNATURE).then_some(start_info.rsdp);
    }
    let known = |at: &u64| start_info.ranges().iter().any(|range| range.start <= *at && *at < range.end());
    (0xe_0000..0x10_0000).step_by(16).filter(known).find(|at| read(*at, Width::Quad) == SIGNATURE)
}
