//! Power-off, reboot and the power button of a hardware-reduced ACPI machine (ACPI 6.5, 4.8.3.7 and
//! 5.6.9): the sleep control register, and the generic event device.

use std::sync::Arc;

use address_manager::Transaction;
use serde::{Deserialize, Serialize};
use vm_migration::{LoadError, NoState, State};

use super::reset::stateless_port_device;
use crate::{
    Device, IrqLine, Mmio, PauseError, PortIo, Stateful,
    handle::{GuestRequest, RequestSink},
};

/// The sleep control and status registers and, beside them, the reset register.
#[derive(Debug)]
pub struct PowerControl {
    sink: Arc<dyn RequestSink>,
}

impl PowerControl {
    /// Sleep control register; firmware for this kind of machine knows the port as well.
    pub const BASE: u64 = 0x600;
    /// Sleep control, sleep status, reset.
    pub const SIZE: u64 = 3;
    /// What a guest writes to the sleep control register to power off: sleep type 5, and enable.
    pub const POWER_OFF: u8 = 5 << 2 | 1 << 5;
    /// What it writes to the reset register.
    pub const RESET: u8 = 1;

    /// Registers that hand requests to `sink`.
    pub fn new(sink: Arc<dyn RequestSink>) -> Self {
        Self { sink }
    }
}

impl PortIo for PowerControl {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, &[Self::POWER_OFF]) => self.sink.request(GuestRequest::PowerOff),
            (2, &[Self::RESET]) => self.sink.request(GuestRequest::Reset),
            _ => {}
        }
    }
}

stateless_port_device!(PowerControl);

/// Saved form of the event device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsState {
    /// Events that the guest has not read.
    pub pending: u8,
}

impl State for EventsState {
    const KIND: &'static str = "acpi-events";
    const VERSION: u32 = 1;
}

/// The generic event device: what has happened, as bits that reading clears, and an interrupt.
#[derive(Debug)]
pub struct Events {
    irq: IrqLine,
    pending: u8,
}

impl Events {
    /// Length of the register.
    pub const SIZE: u64 = 1;

    /// A device with no event, that pulses `irq`.
    pub fn new(irq: IrqLine) -> Self {
        Self { irq, pending: 0 }
    }

    /// Something has happened: `event` is one or several bits of the register.
    pub fn raise(&mut self, event: u8) {
        self.pending |= event;
        self.irq.pulse();
    }
}

impl Mmio for Events {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (0, [first, ..]) = (offset, data) {
            *first = std::mem::take(&mut self.pending);
        }
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}

impl Stateful for Events {
    type State = EventsState;

    fn save(&self) -> EventsState {
        EventsState { pending: self.pending }
    }

    fn load(&mut self, state: EventsState, _transaction: &Transaction<'_>) -> Result<(), LoadError> {
        let EventsState { pending } = state;
        self.pending = pending;
        Ok(())
    }
}

impl Device for Events {
    fn pause(&mut self) -> Result<(), PauseError> {
        Ok(())
    }

    fn resume(&mut self) {}

    fn reset(&mut self) {
        self.pending = 0;
    }

    fn mmio(&mut self) -> Option<&mut dyn Mmio> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Lines, Requests};

    #[test]
    fn only_the_right_values_act() {
        let requests = Requests::new();
        let mut power = PowerControl::new(requests.clone());
        for value in 0..=u8::MAX {
            power.write(1, &[value]);
            if value != PowerControl::POWER_OFF {
                power.write(0, &[value]);
            }
        }
        assert_eq!(requests.take(), []);
        power.write(0, &[0x34]);
        power.write(2, &[1]);
        assert_eq!(requests.take(), [GuestRequest::PowerOff, GuestRequest::Reset]);
    }

    #[test]
    fn an_event_is_read_once() {
        let lines = Lines::new();
        let mut events = Events::new(lines.line(5));
        events.raise(1);
        events.raise(4);
        assert_eq!(lines.take(), [(5, true), (5, false), (5, true), (5, false)]);
        let mut data = [0xff];
        events.read(0, &mut data);
        assert_eq!(data, [5]);
        events.read(0, &mut data);
        assert_eq!(data, [0]);
    }
}
