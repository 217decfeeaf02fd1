//! The two ways in which PC software asks for a reset: the keyboard controller's pulse command and
//! the reset control register. Neither has state: a request goes to the machine at once.

use std::sync::Arc;

use address_manager::Transaction;
use vm_migration::{LoadError, NoState};

use crate::{
    Device, PauseError, PortIo, Stateful,
    handle::{GuestRequest, RequestSink},
};

/// Keyboard controller: only its status and its reset command.
#[derive(Debug)]
pub struct I8042 {
    sink: Arc<dyn RequestSink>,
}

impl I8042 {
    /// Data port; command and status are 4 above.
    pub const BASE: u64 = 0x60;
    /// Ports from data to command.
    pub const SIZE: u64 = 5;

    const COMMAND: u64 = 4;
    /// Pulse output line 0, which is the processor's reset line.
    const PULSE_RESET: u8 = 0xfe;

    /// A controller that asks `sink` for the reset.
    pub fn new(sink: Arc<dyn RequestSink>) -> Self {
        Self { sink }
    }
}

impl PortIo for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (Self::COMMAND | 0, [byte]) = (offset, data) {
            // Both buffers empty: a driver that waits for that goes on.
            *byte = 0;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if (offset, data) == (Self::COMMAND, &[Self::PULSE_RESET]) {
            self.sink.request(GuestRequest::Reset);
        }
    }
}

/// The reset control register at port 0xcf9.
#[derive(Debug)]
pub struct ResetControl {
    sink: Arc<dyn RequestSink>,
}

impl ResetControl {
    /// Its port.
    pub const BASE: u64 = 0xcf9;
    /// One port.
    pub const SIZE: u64 = 1;

    /// Reset the processor, when this bit goes up.
    const RESET_CPU: u8 = 1 << 2;

    /// A register that asks `sink` for the reset.
    pub fn new(sink: Arc<dyn RequestSink>) -> Self {
        Self { sink }
    }
}

impl PortIo for ResetControl {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data.first().is_some_and(|byte| byte & Self::RESET_CPU != 0) {
            self.sink.request(GuestRequest::Reset);
        }
    }
}

macro_rules! stateless_port_device {
    ($device:ty) => {
        impl Stateful for $device {
            type State = NoState;

            fn save(&self) -> NoState {
                NoState {}
            }

            fn load(&mut self, state: NoState, _transaction: &Transaction<'_>) -> Result<(), LoadError> {
                let NoState {} = state;
                Ok(())
            }
        }

        impl Device for $device {
            fn pause(&mut self) -> Result<(), PauseError> {
                Ok(())
            }

            fn resume(&mut self) {}

            fn reset(&mut self) {}

            fn ports(&mut self) -> Option<&mut dyn PortIo> {
                Some(self)
            }
        }
    };
}
pub(super) use stateless_port_device;

stateless_port_device!(I8042);
stateless_port_device!(ResetControl);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Requests;

    #[test]
    fn only_the_reset_command_resets() {
        let requests = Requests::new();
        let mut keyboard = I8042::new(requests.clone());
        for command in 0..0xfe {
            keyboard.write(4, &[command]);
        }
        keyboard.write(0, &[0xfe]);
        assert_eq!(requests.take(), []);
        keyboard.write(4, &[0xfe]);
        assert_eq!(requests.take(), [GuestRequest::Reset]);
        let mut status = [0xff];
        keyboard.read(4, &mut status);
        assert_eq!(status, [0]);
    }

    #[test]
    fn the_reset_register_wants_its_bit() {
        let requests = Requests::new();
        let mut register = ResetControl::new(requests.clone());
        register.write(0, &[0x02]);
        assert_eq!(requests.take(), []);
        register.write(0, &[0x06]);
        assert_eq!(requests.take(), [GuestRequest::Reset]);
    }
}
