//! Machines that do not stand still when they shall.

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use address_manager::Transaction;
use devices::{Device, PauseError, SharedDevice, Stateful};
use hypervisor::fake::{Call, VcpuCall};
use parking_lot::Mutex;
use serde_json::json;
use vm_migration::{LoadError, NoState};

use super::Bench;
use crate::{
    cpu::VcpuError,
    machine::{LifeError, Machine, NamedDevice, attach::Control},
};

type Log = Arc<Mutex<Vec<String>>>;

/// Says what is asked of it, and stops if it is told that it can.
struct Witness {
    name: &'static str,
    stops: bool,
    log: Log,
}

impl Witness {
    fn note(&self, what: &str) {
        self.log.lock().push(format!("{}: {what}", self.name));
    }
}

impl Stateful for Witness {
    type State = NoState;

    fn save(&self) -> NoState {
        NoState {}
    }

    fn load(&mut self, _state: NoState, _transaction: &Transaction<'_>) -> Result<(), LoadError> {
        Ok(())
    }
}

impl Device for Witness {
    fn ask_to_pause(&mut self) {
        self.note("asked");
    }

    fn pause(&mut self) -> Result<(), PauseError> {
        self.note("paused");
        let stuck = || PauseError { who: "the witness".into(), why: "it is told so".into() };
        self.stops.then_some(()).ok_or_else(stuck)
    }

    fn resume(&mut self) {
        self.note("resumed");
    }

    fn reset(&mut self) {}
}

/// A running machine of two processors and witnesses of these names, of which those that are told so stop.
fn machine(bench: &Bench, witnesses: [(&'static str, bool); 3]) -> (Machine, Log) {
    let mut machine = bench.boot(json!({ "cpus": { "boot_vcpus": 2, "max_vcpus": 2 } })).unwrap();
    let log = Log::default();
    for (name, stops) in witnesses {
        let device = SharedDevice::new(Witness { name, stops, log: Arc::clone(&log) });
        machine.devices.push(NamedDevice { id: name.to_owned(), device, control: Control::None });
    }
    machine.resume();
    expect_more_entries(bench, [0, 0]);
    log.lock().clear();
    (machine, log)
}

/// How often each processor has entered the guest.
fn entries(bench: &Bench) -> [usize; 2] {
    let calls = bench.hypervisor.recorder().calls();
    let enters = |of| Call::Vcpu { index: of, call: VcpuCall::Run };
    [0, 1].map(|index| calls.iter().filter(|call| **call == enters(index)).count())
}

/// Waits until both processors have entered the guest more often than that.
fn expect_more_entries(bench: &Bench, before: [usize; 2]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while entries(bench).iter().zip(before).any(|(now, before)| *now <= before) {
        assert!(Instant::now() < deadline, "{:?} after {before:?}", entries(bench));
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn all_devices_are_asked_before_one_is_waited_for() {
    let bench = Bench::new();
    let (mut machine, log) = machine(&bench, [("a", true), ("b", true), ("c", true)]);
    machine.pause().unwrap();
    let expected =
        ["a: asked", "b: asked", "c: asked", "a: paused", "b: paused", "c: paused"].map(str::to_owned);
    assert_eq!(*log.lock(), expected);
}

#[test]
fn a_machine_whose_device_does_not_stop_runs_on() {
    let bench = Bench::new();
    let (mut machine, log) = machine(&bench, [("a", true), ("b", false), ("c", true)]);
    let before = entries(&bench);
    let error = machine.pause().unwrap_err();
    assert!(matches!(&error, LifeError::Device { id, .. } if id == "b"), "{error:?}");
    let said = crate::error::chain(&error);
    assert!(said.contains("device b") && said.contains("the witness did not stop: it is told so"), "{said}");
    let resumed = ["a: resumed", "b: resumed", "c: resumed"].map(str::to_owned);
    assert!(log.lock().ends_with(&resumed), "{:?}", log.lock());
    expect_more_entries(&bench, before);
    assert!(machine.stopped_clock.is_none(), "the guest's clock runs on");
}

#[test]
fn a_machine_whose_processor_does_not_answer_runs_on() {
    let bench = Bench::new();
    let (mut machine, log) = machine(&bench, [("a", true), ("b", true), ("c", true)]);
    let (release, until) = mpsc::channel();
    machine.vcpus.occupy(1, until);
    let before = entries(&bench);
    let error = machine.pause().unwrap_err();
    assert!(matches!(error, LifeError::Vcpu(VcpuError::NoAnswer { index: 1, what: "stop" })), "{error:?}");
    let resumed = ["a: resumed", "b: resumed", "c: resumed"].map(str::to_owned);
    assert_eq!(*log.lock(), resumed, "processors come first: no device was asked");
    release.send(()).unwrap();
    expect_more_entries(&bench, before);
    // It can be paused once it answers.
    machine.pause().unwrap();
}
