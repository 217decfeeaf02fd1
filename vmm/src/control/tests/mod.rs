//! The control thread on the fake hypervisor.

mod cancel;
mod cycles;
mod flash;
mod images;
mod states;

use std::{
    io::Write,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use api_client::wire::{self, VmState};
use devices::{GuestRequest, RequestSink};
use hypervisor::{
    Capabilities, Hypervisor, HypervisorError, HypervisorKind, Vm, VmOptions, fake::FakeHypervisor,
    x86_64::CpuidEntry,
};
use parking_lot::{Condvar, Mutex};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::{
    Answer, Board, Command, CommandError, Control, Ending, FailureClass, First, Handle, RunError, Settings,
};
use crate::{
    api::Vmm,
    events::Events,
    jobs::Jobs,
    machine::{Host, sinks::RequestQueue, tests::kernel_image},
};

/// A control thread, and every way to it.
pub(crate) struct Bench {
    pub(super) handle: Handle,
    pub(crate) vmm: Vmm,
    pub(crate) board: Arc<Board>,
    pub(super) jobs: Jobs,
    pub(super) requests: Arc<RequestQueue>,
    pub(crate) gate: Arc<Gate>,
    kernel: NamedTempFile,
    events: NamedTempFile,
    thread: Option<JoinHandle<Result<Ending, RunError>>>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(false, None)
    }

    /// `first` is laid over a configuration that can be booted.
    pub(crate) fn with(no_shutdown: bool, first: Option<Value>) -> Self {
        let mut kernel = NamedTempFile::new().unwrap();
        kernel.write_all(&kernel_image()).unwrap();
        let events = NamedTempFile::new().unwrap();
        let gate = Arc::new(Gate::default());
        let hypervisor = Arc::new(Gated { inner: FakeHypervisor::new(), gate: Arc::clone(&gate) });
        let host = Host { events: Events::to_path(events.path()).unwrap(), ..Host::new(hypervisor).unwrap() };
        let requests = Arc::clone(&host.requests);
        let control = Control::new(Settings { host, no_shutdown }, Box::new(|_, _| {})).unwrap();
        let (handle, board, jobs) = (control.handle(), control.board(), control.jobs());
        let vmm = Vmm::new(&control, false, vec!["fake".into()]);
        let first = first.map(|first| First::Boot(Box::new(configuration(&kernel, &first))));
        let thread = Some(std::thread::spawn(move || control.run(first)));
        Self { handle, vmm, board, jobs, requests, gate, kernel, events, thread }
    }

    /// What a client would send to have a VM.
    pub(crate) fn said(&self, said: &Value) -> wire::VmConfig {
        configuration(&self.kernel, said)
    }

    pub(crate) fn create(&self, said: &Value) -> Result<Answer, CommandError> {
        self.handle.call(Command::Create(Box::new(configuration(&self.kernel, said))))
    }

    pub(super) fn state(&self) -> Option<VmState> {
        self.board.state()
    }

    /// Waits until the VM is in a state.
    pub(super) fn reaches(&self, state: Option<VmState>) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.state() != state {
            assert!(Instant::now() < deadline, "{:?}, not {state:?}", self.state());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for the end of the thread.
    pub(crate) fn end(&mut self) -> Result<Ending, RunError> {
        self.thread.take().unwrap().join().unwrap()
    }

    /// What the stream has so far.
    fn told(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.events.path()).unwrap();
        serde_json::Deserializer::from_str(&text).into_iter::<Value>().map(Result::unwrap).collect()
    }

    /// The events of jobs so far: the name and the properties.
    pub(super) fn job_events(&self) -> Vec<(String, Value)> {
        let events = self.told().into_iter().filter(|event| event["source"] == "job");
        events
            .map(|event| (event["event"].as_str().unwrap().to_owned(), event["properties"].clone()))
            .collect()
    }

    /// The events so far but for those of jobs, as `source event`.
    pub(super) fn events(&self) -> Vec<String> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        self.told()
            .into_iter()
            .filter(|event| event["source"] != "job")
            .map(|event| format!("{} {}", text(&event["source"]), text(&event["event"])))
            .collect()
    }

    pub(super) fn guest_asks(&self, request: GuestRequest) {
        self.requests.request(request);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.gate.open();
            let _ = self.handle.call(Command::Quit);
            let _ = thread.join();
        }
    }
}

/// What a refusal comes to: its class and its words.
pub(super) fn refusal(result: Result<Answer, CommandError>) -> (FailureClass, String) {
    let error = result.unwrap_err();
    (error.class(), crate::error::chain(&error))
}

fn configuration(kernel: &NamedTempFile, said: &Value) -> wire::VmConfig {
    let mut whole = json!({
        "payload": { "kernel": kernel.path() },
        "memory": { "size": 64 << 20 },
        "console": { "mode": "Off" },
    });
    for (key, value) in said.as_object().unwrap() {
        whole[key] = value.clone();
    }
    serde_json::from_value(whole).unwrap()
}

/// Holds a boot up for as long as it is shut.
#[derive(Default)]
pub(crate) struct Gate {
    shut: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub(crate) fn shut(&self) {
        *self.shut.lock() = true;
    }

    pub(crate) fn open(&self) {
        *self.shut.lock() = false;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let mut shut = self.shut.lock();
        while *shut {
            self.opened.wait(&mut shut);
        }
    }
}

/// A hypervisor with a gate before each VM.
struct Gated {
    inner: FakeHypervisor,
    gate: Arc<Gate>,
}

impl Hypervisor for Gated {
    fn kind(&self) -> HypervisorKind {
        self.inner.kind()
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>, HypervisorError> {
        self.inner.supported_cpuid()
    }

    fn check_tsc_khz(&self, khz: u32) -> Result<(), HypervisorError> {
        self.inner.check_tsc_khz(khz)
    }

    fn create_vm(&self, options: &VmOptions) -> Result<Arc<dyn Vm>, HypervisorError> {
        self.gate.pass();
        // A new one each time: the recording one keeps its VMs.
        FakeHypervisor::new().create_vm(options)
    }
}
