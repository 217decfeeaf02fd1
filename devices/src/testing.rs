//! Fakes of the handles, and the suite that every device passes: for the tests of this crate and of
//! `virtio-devices`.

use std::sync::Arc;

use hypervisor::MsiMessage;
use parking_lot::Mutex;

use crate::handle::{GuestRequest, IrqLine, LineSink, MsiSink, RequestSink};

/// Takes note of what a device asks of its machine.
#[derive(Debug, Default)]
pub struct Requests(Mutex<Vec<GuestRequest>>);

impl Requests {
    /// None yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The requests since the last call.
    pub fn take(&self) -> Vec<GuestRequest> {
        std::mem::take(&mut self.0.lock())
    }
}

impl RequestSink for Requests {
    fn request(&self, request: GuestRequest) {
        self.0.lock().push(request);
    }
}

/// Takes note of the moves of interrupt lines.
#[derive(Debug, Default)]
pub struct Lines(Mutex<Vec<(u32, bool)>>);

impl Lines {
    /// None yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A line whose moves are noted here.
    pub fn line(self: &Arc<Self>, gsi: u32) -> IrqLine {
        let sink: Arc<Self> = Arc::clone(self);
        IrqLine::new(sink, gsi)
    }

    /// The moves since the last call.
    pub fn take(&self) -> Vec<(u32, bool)> {
        std::mem::take(&mut self.0.lock())
    }
}

impl LineSink for Lines {
    fn set(&self, gsi: u32, high: bool) {
        self.0.lock().push((gsi, high));
    }
}

/// Takes note of messages.
#[derive(Debug, Default)]
pub struct Messages(Mutex<Vec<MsiMessage>>);

impl Messages {
    /// None yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The messages since the last call.
    pub fn take(&self) -> Vec<MsiMessage> {
        std::mem::take(&mut self.0.lock())
    }
}

impl MsiSink for Messages {
    fn send(&self, message: MsiMessage) {
        self.0.lock().push(message);
    }
}
