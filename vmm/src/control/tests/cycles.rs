//! How lives begin, go round and end, and what others see meanwhile.

use super::*;

#[test]
fn nobody_waits_for_a_boot_but_who_asked_for_it() {
    let bench = Bench::new();
    bench.create(&json!({})).unwrap();
    bench.gate.shut();
    let (sender, booted) = std::sync::mpsc::channel();
    bench.handle.send(Command::Boot, Box::new(move |result| drop(sender.send(result))));
    while bench.jobs.list().is_empty() {
        std::thread::yield_now();
    }
    // The gate is shut: whoever waited for the control thread would wait for ever.
    assert_eq!(bench.board.info().unwrap().state, VmState::Created);
    assert!(bench.board.counters().is_err());
    let jobs = bench.jobs.list();
    assert_eq!((jobs[0].kind, jobs[0].state), (wire::JobKind::Boot, wire::JobState::Running));
    assert!(booted.try_recv().is_err());
    bench.gate.open();
    booted.recv().unwrap().unwrap();
    assert_eq!(bench.board.info().unwrap().state, VmState::Running);
    assert_eq!(bench.jobs.list()[0].state, wire::JobState::Done);
}

#[test]
fn a_guest_that_powers_off_ends_the_process() {
    let mut bench = Bench::with(false, Some(json!({})));
    bench.reaches(Some(VmState::Running));
    bench.guest_asks(GuestRequest::PowerOff);
    assert_eq!(bench.end().unwrap(), Ending::PoweredOff);
    let expected = ["vmm starting", "vm booting", "vm booted", "vm shutdown", "vm deleted", "vmm shutdown"];
    assert_eq!(bench.events(), expected);
    assert!(matches!(bench.handle.call(Command::Boot), Err(CommandError::Ending)));
}

#[test]
fn a_guest_that_powers_off_can_leave_the_process_there() {
    let mut bench = Bench::with(true, Some(json!({})));
    bench.reaches(Some(VmState::Running));
    bench.guest_asks(GuestRequest::PowerOff);
    bench.reaches(Some(VmState::Created));
    bench.handle.call(Command::Boot).unwrap();
    bench.guest_asks(GuestRequest::DebugExit(7));
    assert_eq!(bench.end().unwrap(), Ending::DebugExit(7));
}

#[test]
fn a_guest_that_resets_boots_again() {
    let mut bench = Bench::with(false, Some(json!({})));
    bench.reaches(Some(VmState::Running));
    bench.guest_asks(GuestRequest::Panicked(1));
    bench.guest_asks(GuestRequest::Reset);
    while !bench.events().contains(&"vm rebooted".to_owned()) {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(bench.events().contains(&"guest panic".to_owned()));
    assert_eq!(bench.state(), Some(VmState::Running));
    bench.guest_asks(GuestRequest::Failed);
    assert!(matches!(bench.end(), Err(RunError::Failed)));
}

#[test]
fn a_client_can_end_the_process() {
    let mut bench = Bench::new();
    bench.handle.call(Command::Quit).unwrap();
    assert_eq!(bench.end().unwrap(), Ending::Asked);
    assert_eq!(bench.events(), ["vmm starting", "vmm shutdown"]);
}

#[test]
fn what_the_command_line_asks_for_must_work() {
    let mut bench = Bench::with(false, Some(json!({ "payload": { "kernel": "/nowhere/kernel" } })));
    let said = crate::error::chain(&bench.end().unwrap_err());
    assert!(said.contains("/nowhere/kernel"), "{said}");
}

#[test]
fn pausing_and_refusals_are_told() {
    let bench = Bench::new();
    bench.handle.call(Command::Boot).unwrap_err();
    bench.create(&json!({})).unwrap();
    for command in [Command::Boot, Command::Pause, Command::Resume, Command::Shutdown] {
        bench.handle.call(command).unwrap();
    }
    let expected = [
        "vmm starting",
        "vm booting",
        "vm booting",
        "vm booted",
        "vm pausing",
        "vm paused",
        "vm resuming",
        "vm resumed",
        "vm shutdown",
    ];
    assert_eq!(bench.events(), expected);
}

#[test]
fn a_life_leaves_nothing_behind() {
    if !devices::testing::is_alone(module_path!(), "a_life_leaves_nothing_behind") {
        return;
    }
    let bench = Bench::new();
    let life = || {
        bench.create(&json!({ "cpus": { "boot_vcpus": 2, "max_vcpus": 2 } })).unwrap();
        bench.handle.call(Command::Boot).unwrap();
        bench.handle.call(Command::Delete).unwrap();
    };
    let count = || ["fd", "task"].map(|of| std::fs::read_dir(format!("/proc/self/{of}")).unwrap().count());
    for _ in 0..10 {
        life();
    }
    // A thread that was waited for may be listed a moment longer, here and below.
    std::thread::sleep(Duration::from_millis(100));
    let held = count();
    for round in 0..300 {
        life();
        let deadline = Instant::now() + Duration::from_secs(5);
        while count() != held {
            assert!(Instant::now() < deadline, "round {round}: {:?}, not {held:?}", count());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
