//! Fakes of the handles, the suite that every device passes, and processes for tests that need one for themselves: for
//! the tests of this crate and of those above it.

use std::sync::Arc;

use hypervisor::MsiMessage;
use parking_lot::Mutex;

use crate::handle::{GuestRequest, IrqLine, LineSink, MsiSink, RequestSink};

/// Set in the process that has one test for itself.
const ALONE: &str = "CUMULET_TEST_ALONE";

/// Whether this process has a test for itself, so that what belongs to a process can be counted or limited. If not, the
/// test of that name, in the module of that path (`module_path!()`), is run in one that has, and must pass there.
///
/// # Panics
/// It does not pass there, or there is no such test.
pub fn is_alone(module: &str, test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let (_, module) = module.split_once("::").expect("a module of a crate");
    let program = std::env::current_exe().expect("the program of the tests");
    let output = std::process::Command::new(program)
        .args(["--exact", &format!("{module}::{test}"), "--test-threads", "1"])
        .env(ALONE, "1")
        .output()
        .expect("the program runs again");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    false
}

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
