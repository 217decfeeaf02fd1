//! What a device is handed: the right to raise one interrupt line, to send messages, to reach guest
//! memory. It can ask for nothing else, and each has a fake (see [`crate::testing`]).

use std::{fmt, sync::Arc};

use hypervisor::MsiMessage;

/// The guest's memory as a device may reach it. [`DmaMemory::fixed`](address_manager::MemoryHandle::fixed)
/// makes one without a machine.
pub type DmaMemory = address_manager::MemoryHandle;

/// Who moves interrupt lines; the machine implements it.
pub trait LineSink: Send + Sync {
    /// Raises or lowers the line of a GSI.
    fn set(&self, gsi: u32, high: bool);
}

/// Who delivers message-signalled interrupts; the machine implements it.
pub trait MsiSink: Send + Sync {
    /// Sends one message to the local APICs. Never blocks on the guest.
    fn send(&self, message: MsiMessage);
}

/// One interrupt line.
#[derive(Clone)]
pub struct IrqLine {
    sink: Arc<dyn LineSink>,
    gsi: u32,
}

impl IrqLine {
    /// The line of `gsi`.
    pub fn new(sink: Arc<dyn LineSink>, gsi: u32) -> Self {
        Self { sink, gsi }
    }

    /// Which line.
    pub fn gsi(&self) -> u32 {
        self.gsi
    }

    /// Raises or lowers it.
    pub fn set(&self, high: bool) {
        self.sink.set(self.gsi, high);
    }

    /// One edge: up and down again.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IrqLine({})", self.gsi)
    }
}

/// What a guest asks of its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestRequest {
    /// Start over.
    Reset,
    /// Power off.
    PowerOff,
    /// End with an exit code (the debug exit port).
    DebugExit(u32),
    /// The guest's kernel has panicked (pvpanic events, as bits).
    Panicked(u8),
    /// A processor or a device of the machine cannot go on; the log says why.
    Failed,
}

/// Who carries out what a guest asks for; the machine implements it. Returns at once.
pub trait RequestSink: Send + Sync + fmt::Debug {
    /// Takes note of a request.
    fn request(&self, request: GuestRequest);
}
