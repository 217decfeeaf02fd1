//! The registers of a virtio function on PCI, modern interface only (virtio 1.3, section 4.1), and its MSI-X table.

use crate::apic;
use crate::cpu::{Width, read, read_word, write};
use crate::memory::{Memory, MemoryError};
use crate::pci::{self, Bdf, CAPABILITY_MSIX, Moved, Pci};

const VENDOR: u64 = 0x1af4;
const CAPABILITY_VENDOR: u64 = 0x09;
const MSIX_ENABLE: u64 = 1 << 15;
const MSIX_MASK_ALL: u64 = 1 << 14;
pub const NO_VECTOR: u16 = 0xffff;

pub const STATUS_ACKNOWLEDGE: u8 = 1;
pub const STATUS_DRIVER: u8 = 2;
pub const STATUS_DRIVER_OK: u8 = 4;
pub const STATUS_FEATURES_OK: u8 = 8;

// Offsets in the common configuration (section 4.1.4.3).
const DEVICE_FEATURE_SELECT: u64 = 0;
const DEVICE_FEATURE: u64 = 4;
const DRIVER_FEATURE_SELECT: u64 = 8;
const DRIVER_FEATURE: u64 = 12;
const CONFIG_MSIX_VECTOR: u64 = 16;
const NUM_QUEUES: u64 = 18;
const DEVICE_STATUS: u64 = 20;
const CONFIG_GENERATION: u64 = 21;
const QUEUE_SELECT: u64 = 22;
const QUEUE_SIZE: u64 = 24;
const QUEUE_MSIX_VECTOR: u64 = 26;
const QUEUE_ENABLE: u64 = 28;
const QUEUE_NOTIFY_OFF: u64 = 30;
const QUEUE_DESC: u64 = 32;

/// Most ranges of registers that a function has: four of virtio's, two of MSI-X's.
const SPANS: usize = 6;

/// A range of registers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Span {
    pub address: u64,
    pub len_bytes: u64,
}

/// Where the registers of one function are.
#[derive(Clone, Copy, Debug)]
pub struct Transport {
    pub bdf: Bdf,
    /// Device type (section 5).
    pub kind: u16,
    common: u64,
    notify: u64,
    notify_multiplier: u64,
    isr: u64,
    device: u64,
    msix_capability: u16,
    msix_table: u64,
    /// Entries of the MSI-X table; 0 without MSI-X.
    pub msix_entries: u16,
}

/// Returns whether a function is a virtio device, and of which type.
pub fn kind(pci: &Pci, bdf: Bdf) -> Option<u16> {
    let (vendor, device) = pci.id(bdf);
    let kind = match device {
        _ if vendor != VENDOR => return None,
        0x1040..=0x107f => device - 0x1040,
        // Transitional devices have their type as subsystem ID (section 4.1.2.1).
        0x1000..=0x103f => pci.read(bdf, 0x2e, Width::Word),
        _ => return None,
    };
    u16::try_from(kind).ok()
}

impl Transport {
    /// Finds and maps the registers, and lets the function decode memory and send messages. `None` if some are missing.
    pub fn find(pci: &Pci, memory: &mut Memory, bdf: Bdf) -> Result<Option<Self>, MemoryError> {
        let Some(kind) = kind(pci, bdf) else {
            return Ok(None);
        };
        let mut found = Self {
            bdf,
            kind,
            common: 0,
            notify: 0,
            notify_multiplier: 0,
            isr: 0,
            device: 0,
            msix_capability: 0,
            msix_table: 0,
            msix_entries: 0,
        };
        for bar in pci.bars(bdf).filter(|bar| bar.kind != pci::BarKind::Io && bar.address != 0) {
            memory.reach(bar.address, pci.bar_size(bdf, &bar))?;
        }
        for capability in pci.capabilities(bdf, CAPABILITY_VENDOR) {
            let register = |offset| pci.read(bdf, capability + offset, Width::Long);
            let Some(bar) = bar_address(pci, bdf, register(4) & 0xff) else {
                continue;
            };
            let address = bar + register(8);
            match register(0) >> 24 {
                1 if found.common == 0 => found.common = address,
                2 if found.notify == 0 => {
                    found.notify = address;
                    found.notify_multiplier = register(16);
                }
                3 if found.isr == 0 => found.isr = address,
                4 if found.device == 0 => found.device = address,
                _ => {}
            }
        }
        if let Some(capability) = pci.capabilities(bdf, CAPABILITY_MSIX).next() {
            let table = pci.read(bdf, capability + 4, Width::Long);
            if let Some(bar) = bar_address(pci, bdf, table & 7) {
                let size = pci.read(bdf, capability + 2, Width::Word) & 0x7ff;
                found.msix_capability = capability;
                found.msix_table = bar + (table & !7);
                found.msix_entries = u16::try_from(size + 1).unwrap_or(0);
            }
        }
        if found.common == 0 || found.notify == 0 {
            return Ok(None);
        }
        let command = pci.read(bdf, pci::COMMAND, Width::Word);
        let wanted = pci::COMMAND_MEMORY | pci::COMMAND_MASTER | pci::COMMAND_NO_INTX;
        if command & wanted != wanted {
            pci.write(bdf, pci::COMMAND, Width::Word, command | wanted);
        }
        Ok(Some(found))
    }

    /// The ranges of its registers; those that it lacks have no bytes.
    pub fn spans(&self, pci: &Pci) -> [Span; SPANS] {
        let mut spans = [Span::default(); SPANS];
        let (virtio, msix) = spans.split_at_mut(4);
        let structures = pci.capabilities(self.bdf, CAPABILITY_VENDOR).filter(|at| {
            let kind = pci.read(self.bdf, at + 3, Width::Byte);
            (1..=4).contains(&kind)
        });
        for (span, capability) in virtio.iter_mut().zip(structures) {
            let register = |offset| pci.read(self.bdf, capability + offset, Width::Long);
            if let Some(bar) = bar_address(pci, self.bdf, register(4) & 0xff) {
                *span = Span { address: bar + register(8), len_bytes: register(12) };
            }
        }
        if self.msix_capability != 0 {
            let pending = pci.read(self.bdf, self.msix_capability + 8, Width::Long);
            let entries = u64::from(self.msix_entries);
            msix[0] = Span { address: self.msix_table, len_bytes: 16 * entries };
            if let Some(bar) = bar_address(pci, self.bdf, pending & 7) {
                msix[1] = Span { address: bar + (pending & !7), len_bytes: 8 * entries.div_ceil(64) };
            }
        }
        spans
    }

    pub fn status_address(&self) -> u64 {
        self.common + DEVICE_STATUS
    }

    /// Which byte of a queue's address lies at `at`, if one does.
    pub fn queue_address_byte(&self, at: u64) -> Option<u64> {
        let areas = self.common + QUEUE_DESC..self.common + QUEUE_DESC + 24;
        areas.contains(&at).then(|| (at - areas.start) % 8)
    }

    /// Which byte of an MSI-X entry lies at `at`, if one does.
    pub fn message_byte(&self, at: u64) -> Option<u64> {
        let table = self.msix_table..self.msix_table + 16 * u64::from(self.msix_entries);
        table.contains(&at).then(|| (at - table.start) % 16)
    }

    /// Follows a BAR that was moved.
    pub fn follow(&mut self, moved: Moved) {
        for address in
            [&mut self.common, &mut self.notify, &mut self.isr, &mut self.device, &mut self.msix_table]
        {
            *address = moved.to(*address);
        }
    }

    /// Writes 0 to the status and waits until the device has reset itself (section 4.1.4.3.2).
    pub fn reset(&self) {
        const PATIENCE: u32 = 1_000_000;
        self.set_status(0);
        for _ in 0..PATIENCE {
            if self.status() == 0 {
                break;
            }
        }
    }

    pub fn status(&self) -> u8 {
        read(self.common + DEVICE_STATUS, Width::Byte).to_le_bytes()[0]
    }

    pub fn set_status(&self, status: u8) {
        write(self.common + DEVICE_STATUS, Width::Byte, status.into());
    }

    pub fn device_features(&self) -> u64 {
        (0..2).fold(0, |features, half| {
            write(self.common + DEVICE_FEATURE_SELECT, Width::Long, half);
            features | read(self.common + DEVICE_FEATURE, Width::Long) << (32 * half)
        })
    }

    pub fn set_driver_features(&self, features: u64) {
        for half in 0..2 {
            write(self.common + DRIVER_FEATURE_SELECT, Width::Long, half);
            write(self.common + DRIVER_FEATURE, Width::Long, features >> (32 * half) & 0xffff_ffff);
        }
    }

    pub fn queue_count(&self) -> u16 {
        read_word(self.common + NUM_QUEUES)
    }

    /// Returns the largest size of a queue; 0 if there is no such queue.
    pub fn queue_size(&self, queue: u16) -> u16 {
        write(self.common + QUEUE_SELECT, Width::Word, queue.into());
        read_word(self.common + QUEUE_SIZE)
    }

    /// Returns whether the device says that a queue is enabled.
    pub fn queue_is_enabled(&self, queue: u16) -> bool {
        write(self.common + QUEUE_SELECT, Width::Word, queue.into());
        read_word(self.common + QUEUE_ENABLE) == 1
    }

    /// Returns where a queue's notifications go.
    pub fn notify_address(&self, queue: u16) -> u64 {
        write(self.common + QUEUE_SELECT, Width::Word, queue.into());
        self.notify + u64::from(read_word(self.common + QUEUE_NOTIFY_OFF)) * self.notify_multiplier
    }

    /// Tells the device where a queue is and which MSI-X entry it has, and enables it. Returns whether it took the entry.
    pub fn enable_queue(&self, queue: u16, size: u16, areas: [u64; 3], entry: Option<u16>) -> bool {
        write(self.common + QUEUE_SELECT, Width::Word, queue.into());
        write(self.common + QUEUE_SIZE, Width::Word, size.into());
        let entry = entry.unwrap_or(NO_VECTOR);
        write(self.common + QUEUE_MSIX_VECTOR, Width::Word, entry.into());
        let taken = read_word(self.common + QUEUE_MSIX_VECTOR) == entry;
        for (register, area) in (QUEUE_DESC..).step_by(8).zip(areas) {
            write(self.common + register, Width::Long, area & 0xffff_ffff);
            write(self.common + register + 4, Width::Long, area >> 32);
        }
        write(self.common + QUEUE_ENABLE, Width::Word, 1);
        taken
    }

    /// Gives configuration changes an MSI-X entry. Returns whether the device took it.
    pub fn set_config_entry(&self, entry: u16) -> bool {
        write(self.common + CONFIG_MSIX_VECTOR, Width::Word, entry.into());
        read_word(self.common + CONFIG_MSIX_VECTOR) == entry
    }

    /// Lets an MSI-X entry send `vector` to this processor.
    pub fn set_msix_entry(&self, entry: u16, vector: u8) {
        let at = self.msix_table + 16 * u64::from(entry);
        write(at, Width::Long, apic::XAPIC_BASE | (apic::id() & 0xff) << 12);
        write(at + 4, Width::Long, 0);
        write(at + 8, Width::Long, vector.into());
        write(at + 12, Width::Long, 0);
    }

    /// Masks or unmasks an MSI-X entry.
    pub fn mask_msix_entry(&self, entry: u16, masked: bool) {
        write(self.msix_table + 16 * u64::from(entry) + 12, Width::Long, masked.into());
    }

    /// Turns MSI-X on or off.
    pub fn enable_msix(&self, pci: &Pci, enabled: bool) {
        if self.msix_capability != 0 {
            let register = self.msix_capability + 2;
            let control = pci.read(self.bdf, register, Width::Word) & !(MSIX_ENABLE | MSIX_MASK_ALL);
            pci.write(self.bdf, register, Width::Word, control | if enabled { MSIX_ENABLE } else { 0 });
        }
    }

    /// Reads and clears the interrupt status.
    pub fn take_isr(&self) -> u64 {
        if self.isr == 0 { 0 } else { read(self.isr, Width::Byte) }
    }

    /// Reads a field of the device's own configuration.
    pub fn config(&self, offset: u64, width: Width) -> u64 {
        if self.device == 0 { 0 } else { read(self.device + offset, width) }
    }

    /// The size of a block device in sectors (section 5.2.4).
    pub fn capacity(&self) -> u64 {
        self.config(0, Width::Long) | self.config(4, Width::Long) << 32
    }

    /// Writes a field of the device's own configuration.
    pub fn set_config(&self, offset: u64, width: Width, value: u64) {
        if self.device != 0 {
            write(self.device + offset, width, value);
        }
    }

    pub fn config_generation(&self) -> u64 {
        read(self.common + CONFIG_GENERATION, Width::Byte)
    }
}

fn bar_address(pci: &Pci, bdf: Bdf, bar: u64) -> Option<u64> {
    let bar = u8::try_from(bar).ok().filter(|bar| *bar < 6)?;
    let bar = pci.bar(bdf, bar);
    (bar.kind != pci::BarKind::Io && bar.address != 0).then_some(bar.address)
}
