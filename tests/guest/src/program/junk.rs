//! Orders that write junk where a driver writes with care: configuration space, the registers behind BARs, ports.
//!
//! What is written follows from a seed. Spared is only what would end the guest itself: the doors to reset, power-off
//! and exit; messages that would reset this processor (their vectors and delivery modes); and queues in the guest's own
//! memory. Everything that has a way back is put back afterwards.

use test_guest::orders::{Malformed, Words};
use test_guest::pattern;

use super::Program;
use super::reply::{OrderError, say};
use crate::cpu::{self, Width};
use crate::pci::{BarKind, Bdf};
use crate::serial::COM1;
use crate::virtio::DeviceError;
use crate::virtio::transport::{
    self, NO_VECTOR, STATUS_ACKNOWLEDGE, STATUS_DRIVER, STATUS_DRIVER_OK, STATUS_FEATURES_OK, Span, Transport,
};
use crate::{apic, io_apic, virtio};

const WIDTHS: [Width; 4] = [Width::Byte, Width::Word, Width::Long, Width::Quad];

/// Configuration space, and its part that ports reach.
const CONFIG_BYTES: u16 = 4096;
const STANDARD_BYTES: u16 = 256;
const COMMAND: u16 = 0x04;
const BARS: core::ops::Range<u16> = 0x10..0x28;

/// Registers of a BAR that are written in every width; every 4 bytes of the rest are written once.
const SPAN_MAX: u64 = 128;
const SWEEP_MAX: u64 = 64 << 10;
/// Largest range of `junk-memory`.
const MEMORY_MAX: u64 = 64 << 10;

/// Addresses that a BAR is sent to besides random ones.
const PLACES: usize = 16;

// Ports that end the run, and what of a value does so.
const KEYBOARD_COMMAND: u16 = 0x64;
const RESET_CONTROL: u16 = 0xcf9;
const CONFIG_ADDRESS_TOP: u16 = 0xcfb;
const SLEEP_CONTROL: u16 = 0x600;
const ACPI_RESET: u16 = 0x602;
const COM1_PORTS: u16 = 8;
/// An access that goes beyond the last port is a fault.
const PORTS_END: u64 = 0x1_0000;

/// Junk from a seed: random bits, and the values that registers treat as special.
struct Junk {
    seed: u64,
    taken: u64,
}

impl Junk {
    fn new(seed: u64) -> Self {
        Self { seed, taken: 0 }
    }

    fn word(&mut self) -> u64 {
        self.taken += 1;
        pattern::word(self.seed, self.taken)
    }

    fn value(&mut self) -> u64 {
        let pick = self.word();
        match pick & 7 {
            0 => 0,
            1 => u64::MAX,
            2 => 1,
            3 => 1 << (pick >> 8 & 63),
            4 => pick >> 8 & 0xf,
            _ => self.word(),
        }
    }

    /// An address for a queue, never in the guest's own memory: an aligned one where there is memory, or any.
    fn queue_address(&mut self, sound: bool) -> u64 {
        let address = if sound { self.word() & 0x1ff_f000 } else { self.value() };
        address | OUT_OF_THE_GUEST
    }
}

/// A bit of the addresses from 32 MiB on, which are the tests'.
const OUT_OF_THE_GUEST: u64 = 32 << 20;

impl Program {
    /// `junk BDF SEED`.
    pub(super) fn junk(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let bdf = Bdf(words.bdf()?);
        let mut junk = Junk::new(words.number("SEED")?);
        words.end()?;
        let is_there = self.pci.id(bdf).0 != 0xffff;
        let config_writes = self.junk_config(bdf, is_there, &mut junk);
        let bar_writes = if is_there { self.junk_bars(bdf, &mut junk)? } else { 0 };
        if transport::kind(&self.pci, bdf).is_some() {
            self.release(bdf);
            self.virtio.reset(&self.pci, &mut self.memory, bdf)?;
        }
        say!(self.reply, " config={config_writes} bars={bar_writes}");
        Ok(())
    }

    /// Writes every configuration register, with memory decoding on and off; returns how many writes that took.
    fn junk_config(&self, bdf: Bdf, is_there: bool, junk: &mut Junk) -> u64 {
        let before = is_there.then(|| self.pci.settings(bdf));
        let put_back = || {
            if let Some(before) = &before {
                self.pci.put_back(bdf, before);
            }
        };
        let places = self.places(bdf);
        let mut writes = 0;
        for decoding in [true, false] {
            if let Some(space) = self.pci.ecam_address(bdf, 0) {
                for width in WIDTHS {
                    for offset in (0..CONFIG_BYTES).filter(|offset| is_chosen(*offset, width, decoding)) {
                        let value = config_value(junk, offset, width, decoding, &places);
                        cpu::write(space + u64::from(offset), width, value);
                        writes += 1;
                    }
                }
                put_back();
            }
            for width in [Width::Byte, Width::Word, Width::Long] {
                for offset in (0..STANDARD_BYTES).step_by(usize::try_from(width.bytes()).unwrap_or(1)) {
                    let value = config_value(junk, offset, width, decoding, &places);
                    writes += u64::from(self.pci.write_by_ports(bdf, offset, width, value));
                }
            }
            put_back();
        }
        writes
    }

    /// Places where something is already: memory, the interrupt controllers, configuration space, other functions.
    fn places(&self, bdf: Bdf) -> [u64; PLACES] {
        let mut places = [0; PLACES];
        let fixed = [
            1 << 20,
            OUT_OF_THE_GUEST,
            self.acpi.io_apic.unwrap_or(0),
            apic::XAPIC_BASE,
            self.pci.ecam_address(bdf, 0).unwrap_or(0),
            1 << 32,
            0xffff_f000,
        ];
        places[..fixed.len()].copy_from_slice(&fixed);
        let mut free = places[fixed.len()..].iter_mut();
        // The visit ends early when there is no place left.
        let _ = self.pci.each(|other| {
            for bar in self.pci.bars(other).filter(|_| other != bdf) {
                *free.next().ok_or(())? = bar.address;
            }
            Ok::<(), ()>(())
        });
        places
    }

    /// Writes everything behind the memory BARs of a function; returns how many writes that took.
    fn junk_bars(&mut self, bdf: Bdf, junk: &mut Junk) -> Result<u64, OrderError> {
        let mut writes = 0;
        let found = Transport::find(&self.pci, &mut self.memory, bdf)?;
        if let Some(found) = &found {
            let spans = found.spans(&self.pci);
            // As the device is, and then from status to status.
            writes += junk_spans(found, &spans, false, junk);
            writes += junk_spans(found, &spans, true, junk);
            activate_with_junk(found, junk)?;
            writes += junk_spans(found, &spans, false, junk);
        }
        for bar in self.pci.bars(bdf).filter(|bar| bar.kind != BarKind::Io && bar.address != 0) {
            let size = self.pci.bar_size(bdf, &bar).min(SWEEP_MAX);
            self.memory.reach(bar.address, size)?;
            for address in (bar.address..bar.address + size).step_by(4) {
                let value = junk.value();
                let value = found.as_ref().map_or(value, |found| spare(found, address, Width::Long, value));
                cpu::write(address, Width::Long, value);
                writes += 1;
            }
        }
        Ok(writes)
    }

    /// `junk-ports FIRST COUNT SEED`.
    pub(super) fn junk_ports(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let first: u16 = words.narrow("FIRST")?;
        let count: u16 = words.narrow("COUNT")?;
        let mut junk = Junk::new(words.number("SEED")?);
        words.end()?;
        let last = count.checked_sub(1).and_then(|rest| first.checked_add(rest));
        let last = last.ok_or(Malformed::NotANumber { what: "COUNT" })?;
        let mut writes = 0u64;
        for width in [Width::Byte, Width::Word, Width::Long] {
            for port in first..=last {
                let touched = u64::from(port)..u64::from(port) + width.bytes();
                if touched.contains(&cpu::DEBUG_EXIT_PORT.into()) || touched.end > PORTS_END {
                    continue;
                }
                let value = each_byte(port.into(), width, junk.value(), spare_port);
                match width {
                    Width::Byte => {
                        cpu::out8(port, value.to_le_bytes()[0]);
                        cpu::in8(port);
                    }
                    Width::Word => {
                        cpu::out16(port, u16::try_from(value & 0xffff).unwrap_or(0));
                        cpu::in16(port);
                    }
                    Width::Long | Width::Quad => {
                        cpu::out32(port, u32::try_from(value & 0xffff_ffff).unwrap_or(0));
                        cpu::in32(port);
                    }
                }
                writes += 1;
            }
        }
        if first < COM1 + COM1_PORTS && last >= COM1 {
            self.serial.setup();
            // What was sent of the junk is a line of its own.
            self.serial.write(b"\n");
        }
        say!(self.reply, " writes={writes}");
        Ok(())
    }

    /// `junk-memory ADDR LEN SEED`.
    pub(super) fn junk_memory(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let address = words.number("ADDR")?;
        let len = words.number("LEN")?;
        let mut junk = Junk::new(words.number("SEED")?);
        words.end()?;
        let end = address.checked_add(len).filter(|_| len <= MEMORY_MAX);
        let end = end.ok_or(Malformed::NotANumber { what: "LEN" })?;
        if self.start_info.ram().any(|range| range.start < end && address < range.end()) {
            return Err(OrderError::Refused("there is memory"));
        }
        self.memory.reach(address, len)?;
        let io_apic = self.acpi.io_apic.filter(|io_apic| (address..end).contains(io_apic));
        let spared = |at: u64, byte: u8| match io_apic {
            // What is written through the window leaves its pin masked.
            Some(io_apic) if at == io_apic + io_apic::MASK_BYTE => byte | 1,
            _ => byte,
        };
        let mut writes = 0u64;
        for width in WIDTHS {
            for at in (address..end).filter(|at| at + width.bytes() <= end) {
                cpu::write(at, width, each_byte(at, width, junk.value(), spared));
                cpu::read(at, width);
                writes += 1;
            }
        }
        if let Some(io_apic) = io_apic {
            self.serial_interrupts = io_apic::route_serial(&mut self.memory, io_apic);
        }
        say!(self.reply, " writes={writes}");
        Ok(())
    }
}

/// Whether a round writes a register: the standard part at every byte in every width, and once the rest where it is
/// aligned.
fn is_chosen(offset: u16, width: Width, first_round: bool) -> bool {
    let aligned = u64::from(offset) % width.bytes() == 0;
    let in_reach = u64::from(offset) + width.bytes() <= u64::from(CONFIG_BYTES);
    in_reach && (offset < STANDARD_BYTES || first_round && aligned && width != Width::Quad)
}

/// Junk for a configuration register, where the bit that decides whether BARs count is not left to chance.
fn config_value(junk: &mut Junk, offset: u16, width: Width, decoding: bool, places: &[u64; PLACES]) -> u64 {
    let pick = junk.word();
    let mut value = junk.value();
    if BARS.contains(&offset) && pick & 1 != 0 {
        let place = places[usize::try_from(pick >> 8).unwrap_or(0) % PLACES];
        value = if pick & 2 != 0 { place >> 32 } else { place };
    }
    each_byte(offset.into(), width, value, |at, byte| match at {
        at if at != u64::from(COMMAND) => byte,
        _ if decoding => byte | 2,
        _ => byte & !2,
    })
}

/// Writes registers of a virtio function at every byte in every width, and reads them; returns how many writes that took.
fn junk_spans(found: &Transport, spans: &[Span], with_status: bool, junk: &mut Junk) -> u64 {
    let mut writes = 0;
    for span in spans {
        let end = span.address + span.len_bytes.min(SPAN_MAX);
        for width in WIDTHS {
            for at in (span.address..end).filter(|at| with_status || *at != found.status_address()) {
                cpu::write(at, width, spare(found, at, width, junk.value()));
                cpu::read(at, width);
                writes += 1;
            }
        }
    }
    writes
}

/// Brings a device to DRIVER_OK with queues that are junk, and notifies them all.
fn activate_with_junk(found: &Transport, junk: &mut Junk) -> Result<(), OrderError> {
    found.reset();
    let mut status = STATUS_ACKNOWLEDGE;
    found.set_status(status);
    status |= STATUS_DRIVER;
    found.set_status(status);
    let packed = if junk.word() & 1 != 0 { virtio::RING_PACKED } else { 0 };
    found.set_driver_features(found.device_features() & !packed);
    status |= STATUS_FEATURES_OK;
    found.set_status(status);
    if found.status() & STATUS_FEATURES_OK == 0 {
        return Err(DeviceError::FeaturesRefused.into());
    }
    // Three of four devices get as far as to their rings.
    let sound = junk.word() & 3 != 0;
    for queue in 0..found.queue_count() {
        let size = u16::try_from(1 << (junk.word() % 10) | u64::from(!sound)).unwrap_or(1);
        let areas = [(); 3].map(|()| junk.queue_address(sound));
        let entry = u16::try_from(junk.word() % (u64::from(found.msix_entries) + 1)).unwrap_or(NO_VECTOR);
        found.enable_queue(queue, size, areas, Some(entry));
    }
    found.set_status(status | STATUS_DRIVER_OK);
    for queue in 0..found.queue_count() {
        cpu::write(found.notify_address(queue), Width::Word, queue.into());
    }
    Ok(())
}

/// Takes from a value for a virtio function what would end the guest: queues in its own memory; messages of a kind that
/// resets a processor, or that come as an exception.
fn spare(found: &Transport, address: u64, width: Width, value: u64) -> u64 {
    each_byte(address, width, value, |at, byte| {
        if let Some(offset) = found.queue_address_byte(at) {
            return if offset == 3 { byte | OUT_OF_THE_GUEST_BYTE } else { byte };
        }
        match found.message_byte(at) {
            Some(8) => virtio::FIRST_VECTOR + byte % virtio::VECTORS,
            Some(9) => byte & !DELIVERY_MODE_BYTE,
            _ => byte,
        }
    })
}

/// `OUT_OF_THE_GUEST` in byte 3 of an address.
const OUT_OF_THE_GUEST_BYTE: u8 = 1 << 1;
/// The delivery mode in byte 1 of a message's data (Intel SDM volume 3, section 11.11.2).
const DELIVERY_MODE_BYTE: u8 = 7;

/// Takes from a byte for a port what would end the run.
fn spare_port(port: u64, byte: u8) -> u8 {
    match u16::try_from(port).unwrap_or(0) {
        // A pulse on the reset line.
        KEYBOARD_COMMAND if byte & 0xf1 == 0xf0 => byte | 1,
        RESET_CONTROL => byte & !0x06,
        // Functions have an order of their own, which puts them back.
        CONFIG_ADDRESS_TOP => byte & 0x7f,
        SLEEP_CONTROL => byte & !(1 << 5),
        ACPI_RESET => byte & !1,
        // What is sent can be printed.
        COM1 => b' ' + byte % 64,
        _ => byte,
    }
}

/// Puts every byte of a value through `change`, which is told where the byte lands.
fn each_byte(start: u64, width: Width, value: u64, change: impl Fn(u64, u8) -> u8) -> u64 {
    let mut bytes = value.to_le_bytes();
    let count = usize::try_from(width.bytes()).unwrap_or(8);
    for (at, byte) in (start..).zip(&mut bytes[..count]) {
        *byte = change(at, *byte);
    }
    u64::from_le_bytes(bytes)
}
