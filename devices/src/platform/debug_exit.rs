//! A port through which a guest under test ends its machine with an exit code.

use std::sync::Arc;

use address_manager::Transaction;
use vm_migration::{LoadError, NoState};

use super::reset::stateless_port_device;
use crate::{
    Device, PauseError, PortIo, Stateful,
    handle::{GuestRequest, RequestSink},
};

/// The debug exit port: what is written there ends the machine.
#[derive(Debug)]
pub struct DebugExit {
    sink: Arc<dyn RequestSink>,
}

impl DebugExit {
    /// Ports from its base, so that a 32-bit write belongs to it alone.
    pub const SIZE: u64 = 4;

    /// A port that hands the code to `sink`.
    pub fn new(sink: Arc<dyn RequestSink>) -> Self {
        Self { sink }
    }
}

impl PortIo for DebugExit {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == 0 {
            let code = data.iter().rev().fold(0u32, |code, byte| code << 8 | u32::from(*byte));
            self.sink.request(GuestRequest::DebugExit(code));
        }
    }
}

stateless_port_device!(DebugExit);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Requests;

    #[test]
    fn the_code_arrives_whatever_its_width() {
        let requests = Requests::new();
        let mut port = DebugExit::new(requests.clone());
        port.write(0, &[7]);
        port.write(0, &[1, 2, 0, 0]);
        port.write(2, &[9]);
        assert_eq!(requests.take(), [GuestRequest::DebugExit(7), GuestRequest::DebugExit(0x201)]);
    }
}
