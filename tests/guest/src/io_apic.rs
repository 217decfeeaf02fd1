//! The I/O APIC: one pin, that of the serial port, so that an order ends the wait for orders at once.

use crate::apic;
use crate::cpu::{Width, read, write};
use crate::memory::Memory;

/// Vector of the serial port's interrupt, and its pin (ISA interrupt 4).
pub const VECTOR_SERIAL: u8 = 0x30;
const SERIAL_PIN: u64 = 4;

/// Where the byte with the mask of a redirection entry is written: byte 2 of the window.
pub const MASK_BYTE: u64 = WINDOW + 2;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const VERSION: u64 = 0x01;
const REDIRECTION: u64 = 0x10;

/// Routes the serial port's interrupt to this processor. Returns whether there is an I/O APIC with that pin.
pub fn route_serial(memory: &mut Memory, address: u64) -> bool {
    if memory.reach(address, 4096).is_err() {
        return false;
    }
    let version = get(address, VERSION);
    if version == 0xffff_ffff || (version >> 16) & 0xff < SERIAL_PIN {
        return false;
    }
    set(address, REDIRECTION + 2 * SERIAL_PIN + 1, apic::id() << 24);
    set(address, REDIRECTION + 2 * SERIAL_PIN, u64::from(VECTOR_SERIAL));
    true
}

fn get(address: u64, register: u64) -> u64 {
    write(address + SELECT, Width::Long, register);
    read(address + WINDOW, Width::Long)
}

fn set(address: u64, register: u64, value: u64) {
    write(address + SELECT, Width::Long, register);
    write(address + WINDOW, Width::Long, value);
}
