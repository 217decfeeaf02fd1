//! The snapshots of every format that was ever released live again.

use api_client::wire::VmState;
use cumulet_tests::{
    cumulet,
    golden::Golden,
    guest,
    monitor::{self, Monitor},
};
use serde_json::{Value, json};

/// A copy of the golden snapshot, unless this host's processors cannot run it.
#[expect(clippy::print_stdout, reason = "the test report counts this line")]
pub fn usable(place: &std::path::Path) -> Option<Golden> {
    if !cumulet::kvm_is_usable() {
        return None;
    }
    let golden = Golden::unpack(place);
    let mut monitor = Monitor::start(place, &[] as &[&str]);
    let tried = monitor.put("vm.restore", &golden.request(&json!({ "dry_run": true })));
    monitor.quit();
    match tried {
        Ok(_) => Some(golden),
        // That, and nothing else, is no fault of the program's.
        Err(error)
            if error.to_string().contains("this host's processors lack what the guest uses: CPU vendor") =>
        {
            println!("SKIPPED: the golden snapshot is of another maker's processors: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn format_1_lives_again_in_every_memory_mode() {
    let directory = tempfile::tempdir().expect("there is room");
    let Some(golden) = usable(directory.path()) else { return };
    for mode in ["Copy", "Cow", "OnDemand"] {
        for verify in ["off", "state", "full"] {
            let mut monitor = Monitor::start(directory.path(), &[] as &[&str]);
            let request = golden.request(&json!({ "memory_restore_mode": mode, "verify": verify }));
            monitor.put("vm.restore", &request).unwrap_or_else(|error| panic!("{mode}, {verify}: {error}"));
            assert_eq!(monitor.state(), VmState::Running);
            let mut console = golden.proves_itself();
            // The timer that ran at the pause runs on, from where its count stood.
            let ticks = guest::number(&console.ok("ticks"));
            assert!((golden.ticks()..100_000).contains(&ticks), "{ticks}");
            monitor::until("the timer", || (guest::number(&console.ok("ticks")) > ticks).then_some(()));
            let said = console.ok("vcheck");
            assert_eq!((guest::field(&said, "asked"), guest::field(&said, "answered")), (3, 3), "{said}");
            monitor.quit();
        }
    }
}

#[test]
fn format_2_lives_again_on_top_of_format_1() {
    let directory = tempfile::tempdir().expect("there is room");
    let Some(golden) = usable(directory.path()) else { return };
    let (top, filled) = golden.on_top();
    for mode in ["Copy", "Cow", "OnDemand"] {
        let mut monitor = Monitor::start(directory.path(), &[] as &[&str]);
        let said = json!({ "source_url": monitor::url(&top), "memory_restore_mode": mode, "verify": "full" });
        monitor.put("vm.restore", &golden.request(&said)).unwrap_or_else(|error| panic!("{mode}: {error}"));
        let mut console = golden.proves_itself();
        assert_eq!(console.ok(&format!("verify {filled}")), "same", "{mode}");
        monitor.quit();
    }
}

#[test]
fn format_1_can_be_saved_again_in_the_format_of_today() {
    let directory = tempfile::tempdir().expect("there is room");
    let Some(golden) = usable(directory.path()) else { return };
    let mut monitor = Monitor::start(directory.path(), &[] as &[&str]);
    monitor.put("vm.restore", &golden.request(&json!({ "resume": false }))).expect("it can be restored");
    let again = directory.path().join("again");
    std::fs::create_dir(&again).expect("there is room");
    let request = json!({ "destination_url": monitor::url(&again) });
    monitor.put("vm.snapshot", &request).expect("it can be saved");
    monitor.quit();
    let mut monitor = Monitor::start(directory.path(), &[] as &[&str]);
    let report = monitor.restore(&again, &json!({ "verify": "full" }));
    assert_eq!(report["edited"], Value::Array(Vec::new()));
    golden.proves_itself();
    monitor.quit();
}

#[test]
fn counters_of_another_frequency_are_scaled_or_refused_or_wanted() {
    let directory = tempfile::tempdir().expect("there is room");
    let Some(golden) = usable(directory.path()) else { return };
    let mut monitor = Monitor::start(directory.path(), &[] as &[&str]);
    let tried = monitor.put("vm.restore", &golden.request(&json!({ "tsc": "saved", "dry_run": true })));
    let done = monitor.put("vm.restore", &golden.request(&json!({ "tsc": "saved" })));
    assert_eq!(tried.is_ok(), done.is_ok(), "{tried:?}, {done:?}");
    if let (Err(tried), Err(done)) = (tried, done) {
        for error in [tried.to_string(), done.to_string()] {
            assert!(error.contains("TSC of ") && error.contains("cannot be scaled"), "{error}");
        }
        monitor.put("vm.restore", &golden.request(&json!({ "tsc": "host" }))).expect("it can be restored");
    }
    golden.proves_itself();
    monitor.quit();
}
