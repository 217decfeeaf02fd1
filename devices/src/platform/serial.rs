//! A 16550 serial port: vm-superio's registers, with our interrupt line, back end and state.

use std::{
    fmt,
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use address_manager::Transaction;
use log::warn;
use serde::{Deserialize, Serialize};
use vm_migration::{LoadError, State};
use vm_superio::{
    Trigger,
    serial::{NoEvents, Serial as Registers, SerialState as RegisterState},
};

use crate::{Device, IrqLine, PauseError, PortIo, Stateful};

/// Raises the line by an edge, as the ISA port does; silent while a saved state is taken over,
/// because an edge that was pending is in the interrupt controller's own state.
struct Line {
    irq: IrqLine,
    silent: Arc<AtomicBool>,
}

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        if !self.silent.load(Ordering::Relaxed) {
            self.irq.pulse();
        }
        Ok(())
    }
}

/// Where the guest's output goes.
type Output = Box<dyn Write + Send>;

/// Saved form of a serial port: its registers, and what it received and the guest has not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialState {
    /// Divisor latch, low byte.
    pub divisor_low: u8,
    /// Divisor latch, high byte.
    pub divisor_high: u8,
    /// Interrupt enable register.
    pub interrupt_enable: u8,
    /// Interrupt identification register.
    pub interrupt_identification: u8,
    /// Line control register.
    pub line_control: u8,
    /// Line status register.
    pub line_status: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Modem status register.
    pub modem_status: u8,
    /// Scratch register.
    pub scratch: u8,
    /// Received bytes, oldest first; 64 at most.
    pub received: Vec<u8>,
}

impl State for SerialState {
    const KIND: &'static str = "serial-16550";
    const VERSION: u32 = 1;
}

/// A serial port.
pub struct Serial {
    // Only absent while a state is taken over.
    registers: Option<Registers<Line, NoEvents, Output>>,
    irq: IrqLine,
    silent: Arc<AtomicBool>,
}

impl Serial {
    /// First port of COM1.
    pub const COM1: u64 = 0x3f8;
    /// Number of ports.
    pub const SIZE: u64 = 8;
    /// ISA interrupt of COM1.
    pub const COM1_IRQ: u32 = 4;

    /// A port that raises `irq` and writes the guest's output to `output`, which must not block.
    pub fn new(irq: IrqLine, output: Output) -> Self {
        let silent = Arc::new(AtomicBool::new(false));
        let line = Line { irq: irq.clone(), silent: Arc::clone(&silent) };
        Self { registers: Some(Registers::new(line, output)), irq, silent }
    }

    /// Bytes that [`receive`](Self::receive) would take now.
    pub fn room(&self) -> usize {
        self.registers.as_ref().map_or(0, Registers::fifo_capacity)
    }

    /// Hands bytes to the guest; returns how many fitted.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let Some(registers) = &mut self.registers else { return 0 };
        let bytes = bytes.get(..registers.fifo_capacity()).unwrap_or(bytes);
        match registers.enqueue_raw_bytes(bytes) {
            Ok(taken) => taken,
            Err(error) => {
                // Loop-back mode, in which nothing arrives from outside.
                log::debug!("serial input dropped: {error:?}");
                bytes.len()
            }
        }
    }

    fn take_over(&mut self, state: &RegisterState) -> Result<(), String> {
        let output =
            self.registers.take().map_or_else(|| Box::new(io::sink()) as Output, Registers::into_writer);
        self.silent.store(true, Ordering::Relaxed);
        let line = Line { irq: self.irq.clone(), silent: Arc::clone(&self.silent) };
        let registers = Registers::from_state(state, line, NoEvents, output);
        self.silent.store(false, Ordering::Relaxed);
        self.registers = Some(registers.map_err(|error| format!("{error:?}"))?);
        Ok(())
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({:?})", self.irq)
    }
}

impl PortIo for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let Some(registers) = &mut self.registers else { return };
        if let (Ok(offset), [byte]) = (u8::try_from(offset), data) {
            *byte = registers.read(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(registers) = &mut self.registers else { return };
        if let (Ok(offset), [byte]) = (u8::try_from(offset), data)
            && let Err(error) = registers.write(offset, *byte)
        {
            warn!("serial output: {error:?}");
        }
    }
}

impl Stateful for Serial {
    type State = SerialState;

    fn save(&self) -> SerialState {
        let state = self.registers.as_ref().map(Registers::state).unwrap_or_default();
        let RegisterState {
            baud_divisor_low: divisor_low,
            baud_divisor_high: divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: received,
        } = state;
        SerialState {
            divisor_low,
            divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            received,
        }
    }

    fn load(&mut self, state: SerialState, _transaction: &Transaction<'_>) -> Result<(), LoadError> {
        let SerialState {
            divisor_low,
            divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            received,
        } = state;
        let length = received.len();
        let state = RegisterState {
            baud_divisor_low: divisor_low,
            baud_divisor_high: divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: received,
        };
        self.take_over(&state)
            .map_err(|why| LoadError::field("received", format!("{length} bytes do not fit: {why}")))
    }
}

impl Device for Serial {
    fn pause(&mut self) -> Result<(), PauseError> {
        Ok(())
    }

    fn resume(&mut self) {}

    fn reset(&mut self) {
        if let Err(error) = self.take_over(&RegisterState::default()) {
            warn!("serial reset: {error}");
        }
    }

    fn ports(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}
