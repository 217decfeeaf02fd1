//! COM1: a 16550 at port 0x3f8, used by polling, 8n1.
//!
//! Every port access is an exit, so output goes in bursts of the transmit FIFO's 16 bytes for one look at the status.

use core::fmt;

use crate::cpu::{in8, out8};

/// Its first port.
pub const COM1: u16 = 0x3f8;
const DATA: u16 = COM1;
const INTERRUPT_ENABLE: u16 = COM1 + 1;
const FIFO_CONTROL: u16 = COM1 + 2;
const LINE_CONTROL: u16 = COM1 + 3;
const MODEM_CONTROL: u16 = COM1 + 4;
const LINE_STATUS: u16 = COM1 + 5;

const DATA_READY: u8 = 1 << 0;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
const FIFO_BYTES: usize = 16;

/// Looks at the status before a transmitter that never empties is taken to be absent.
const POLLS_MAX: u32 = 1_000_000;

/// The port. Holds no state, so any processor may make one to report a fault.
#[derive(Debug)]
pub struct Serial(());

impl Serial {
    pub fn new() -> Self {
        Self(())
    }

    /// Sets 8n1, empties and enables the FIFOs, and lets the port raise its line (OUT2) for received data.
    pub fn setup(&mut self) {
        out8(LINE_CONTROL, 0x03);
        out8(FIFO_CONTROL, 0x07);
        out8(MODEM_CONTROL, 0x0b);
        out8(INTERRUPT_ENABLE, 0x01);
    }

    pub fn read(&mut self) -> Option<u8> {
        (in8(LINE_STATUS) & DATA_READY != 0).then(|| in8(DATA))
    }

    pub fn write(&mut self, bytes: &[u8]) {
        for burst in bytes.chunks(FIFO_BYTES) {
            for _ in 0..POLLS_MAX {
                if in8(LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
                    break;
                }
            }
            for byte in burst {
                out8(DATA, *byte);
            }
        }
    }
}

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write(text.as_bytes());
        Ok(())
    }
}
