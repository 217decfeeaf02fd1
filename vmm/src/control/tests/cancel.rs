//! Jobs that are given up, and what the event stream has of jobs.

use std::time::{Duration, Instant};

use api_client::wire::{JobInfo, JobState, VmState};
use devices::GuestRequest;
use serde_json::json;
use vm_migration::snapshot::SnapshotError;

use super::{Answer, Bench, Command, CommandError, Ending, FailureClass};
use crate::{memory::content::ContentError, snapshot::SaveError};

/// The newest job, once it is in a phase.
fn in_phase(bench: &Bench, phase: &str) -> JobInfo {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(job) =
            bench.jobs.list().pop().filter(|job| job.phase == phase && job.state == JobState::Running)
        {
            return job;
        }
        assert!(Instant::now() < deadline, "{:?}", bench.jobs.list());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Has a command begin that is held up before it makes its VM, gives its job up, and returns what comes of it.
fn given_up(bench: &Bench, command: Command) -> Result<Answer, CommandError> {
    bench.gate.shut();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| bench.handle.call(command));
        let job = in_phase(bench, "machine");
        bench.jobs.cancel(job.id).unwrap();
        assert_eq!(bench.jobs.list().pop().unwrap().state, JobState::Cancelling);
        bench.gate.open();
        asked.join().unwrap()
    })
}

#[test]
fn a_boot_that_is_given_up_leaves_the_vm_created() {
    let bench = Bench::new();
    bench.create(&json!({ "memory": { "size": 64 << 20, "prefault": true } })).unwrap();
    let error = given_up(&bench, Command::Boot).unwrap_err();
    assert!(error.is_cancelled());
    assert_eq!((error.class(), error.code()), (FailureClass::Failed, "cancelled"));
    // It is noticed here or there, depending on who is quicker.
    let said = crate::error::chain(&error);
    assert!(said.starts_with("Cannot build the VM: "), "{said}");
    assert!(said.ends_with(": given up, as was asked for"), "{said}");
    assert_eq!(bench.state(), Some(VmState::Created));
    let job = bench.jobs.list().pop().unwrap();
    assert_eq!(job.state, JobState::Cancelled);
    assert_eq!(job.error.unwrap().last().unwrap(), "given up, as was asked for");
    bench.handle.call(Command::Boot).unwrap();
    assert_eq!(bench.state(), Some(VmState::Running));

    // A client's reboot, and a guest's: the process and the configuration stay.
    assert!(given_up(&bench, Command::Reboot).unwrap_err().is_cancelled());
    assert_eq!(bench.state(), Some(VmState::Created));
    bench.handle.call(Command::Boot).unwrap();
    bench.gate.shut();
    bench.guest_asks(GuestRequest::Reset);
    bench.jobs.cancel(in_phase(&bench, "machine").id).unwrap();
    bench.gate.open();
    bench.reaches(Some(VmState::Created));
    bench.handle.call(Command::Boot).unwrap();
    assert_eq!(bench.state(), Some(VmState::Running));
}

#[test]
fn a_snapshot_that_is_given_up_late_is_as_one_that_is_given_up_early() {
    let late = CommandError::Save(SaveError::Directory(SnapshotError::Cancelled));
    let early = CommandError::Save(SaveError::Memory(ContentError::Cancelled));
    assert!(late.is_cancelled() && early.is_cancelled());
    let last = |error: &CommandError| crate::error::messages(error).pop();
    assert_eq!((last(&late), late.code()), (last(&early), early.code()));
}

#[test]
fn an_end_of_the_process_while_the_guest_boots_again_is_no_failure() {
    let mut bench = Bench::new();
    bench.create(&json!({})).unwrap();
    bench.handle.call(Command::Boot).unwrap();
    bench.gate.shut();
    bench.guest_asks(GuestRequest::Reset);
    in_phase(&bench, "machine");
    bench.jobs.ending().store(true, std::sync::atomic::Ordering::Relaxed);
    bench.gate.open();
    bench.reaches(Some(VmState::Created));
    bench.handle.call(Command::Quit).unwrap();
    assert_eq!(bench.end().unwrap(), Ending::Asked);
}

#[test]
fn the_stream_has_each_job_from_its_beginning_to_its_end() {
    let bench = Bench::new();
    bench.create(&json!({ "memory": { "size": 64 << 20, "prefault": true } })).unwrap();
    bench.handle.call(Command::Boot).unwrap();
    let size = (64u64 << 20).to_string();
    let all = |id: &str, phase: &str, done: &str| json!({ "id": id, "kind": "boot", "phase": phase, "bytes_done": done });
    let mut prefault = all("1", "prefault", "0");
    prefault["bytes_total"] = json!(size);
    let expected = [
        ("started", all("1", "configuration", "0")),
        ("phase", prefault),
        ("phase", all("1", "machine", "0")),
        ("finished", all("1", "machine", "0")),
    ];
    let expected: Vec<_> = expected.into_iter().map(|(event, told)| (event.to_owned(), told)).collect();
    // On a host that takes its time, there is news of the prefault too.
    let (news, told): (Vec<_>, Vec<_>) =
        bench.job_events().into_iter().partition(|(event, _)| event == "progress");
    assert!(news.iter().all(|(_, told)| told["phase"] == "prefault"), "{news:?}");
    assert_eq!(told, expected);

    let last = || bench.job_events().pop().unwrap();
    given_up(&bench, Command::Reboot).unwrap_err();
    assert_eq!(last(), ("cancelled".to_owned(), all("2", "machine", "0")));
    bench.handle.call(Command::Delete).unwrap();
    bench.create(&json!({ "payload": { "kernel": "/nowhere" } })).unwrap();
    bench.handle.call(Command::Boot).unwrap_err();
    assert_eq!(last(), ("failed".to_owned(), all("3", "configuration", "0")));
}
