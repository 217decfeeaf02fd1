//! Jobs of a real process: how far they are, that they can be given up at any time, and what the event stream has of them.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use api_client::{
    Client, ClientError,
    wire::{JobInfo, JobKind, JobState, VmState},
};
use cumulet_tests::{
    api::{AT_ONCE, Vmm, guest_config},
    cumulet,
    monitor::{self, Monitor},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// First address that is the tests' own (docs/test-guest.md), and how much of it is written here.
const FREE: u64 = 32 << 20;
const FILLED: &str = "256M";

/// Longest that a job may go on after it was given up, on a machine that is busy with other tests.
const GIVEN_UP: Duration = Duration::from_secs(5);

/// The newest job.
fn newest(client: &mut Client) -> Option<JobInfo> {
    client.jobs().expect("there are jobs").pop()
}

/// The first job after `last` that there was, as soon as it is in the middle of a phase that has bytes.
fn in_the_middle_of(client: &mut Client, (kind, phase): (JobKind, &str), last: Option<JobInfo>) -> JobInfo {
    let last = last.map_or(0, |last| last.id);
    monitor::until("a job", || {
        let job = newest(client).filter(|job| job.id > last)?;
        assert_eq!((job.kind, job.state), (kind, JobState::Running), "too fast for this test: {job:?}");
        (job.phase == phase && job.bytes_done > 0).then_some(job)
    })
}

/// Has `work` begin, gives its job up in the middle of a phase, and sees that it ends as such; returns the refusal.
fn given_up(
    socket: &Path,
    part: (JobKind, &str),
    work: impl FnOnce() -> Result<(), ClientError> + Send,
) -> api_client::Refusal {
    let mut asks = Client::connect(socket).expect("somebody listens");
    let last = newest(&mut asks);
    std::thread::scope(|scope| {
        let working = scope.spawn(work);
        let job = in_the_middle_of(&mut asks, part, last);
        let total = job.bytes_total.expect("this phase has bytes");
        assert!(job.bytes_done <= total, "{job:?}");
        // The rate is over whole milliseconds, so the first one has none.
        assert!(job.bytes_per_second > 0 && job.remaining_ms.is_some(), "{job:?}");
        let begun = Instant::now();
        asks.cancel_job(&api_client::wire::VmCancelJob { id: job.id }).expect("it has not ended");
        let refused = working.join().expect("it does not panic");
        assert!(begun.elapsed() < GIVEN_UP, "{:?}", begun.elapsed());
        let job = newest(&mut asks).expect("there was one");
        assert_eq!((job.state, job.phase.as_str()), (JobState::Cancelled, part.1), "{job:?}");
        assert!(job.bytes_done < total, "{job:?}");
        assert_eq!(
            job.error.expect("it says why").last().expect("it has messages"),
            "given up, as was asked for"
        );
        match refused {
            Err(ClientError::Refused(refusal)) => {
                assert_eq!(
                    (refusal.status, refusal.code.as_deref()),
                    (500, Some("cancelled")),
                    "{refusal:?}"
                );
                refusal
            }
            other => panic!("{other:?}"),
        }
    })
}

/// The events of a file so far.
fn events(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("it is there");
    // The last one may be on its way.
    serde_json::Deserializer::from_str(&text).into_iter().map_while(Result::ok).collect()
}

/// Of each event of a job of that kind, the name, the phase and the bytes.
fn of_jobs(events: &[Value], kind: &str) -> Vec<(String, String, u64)> {
    let of_kind =
        events.iter().filter(|event| event["source"] == "job" && event["properties"]["kind"] == kind);
    let text = |value: &Value| value.as_str().expect("all properties are strings").to_owned();
    of_kind
        .map(|event| {
            let told = &event["properties"];
            let number = |name: &str| text(&told[name]).parse::<u64>().expect("it is a number");
            assert!(number("id") > 0, "{event}");
            (text(&event["event"]), text(&told["phase"]), number("bytes_done"))
        })
        .collect()
}

/// A VM that takes a while to populate.
fn large() -> Value {
    guest_config("", &json!({ "memory": { "size": 1 << 30, "prefault": true } }))
}

#[test]
fn a_boot_is_given_up_and_can_be_made_again() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let vmm = Vmm::start::<&str>(&[]);
    let mut client = vmm.client();
    let mut config = large();
    client.create(&serde_json::from_value(config.clone()).unwrap()).unwrap();
    let mut boots = vmm.client();
    boots.ping().unwrap();
    let count = || (vmm.count("fd"), vmm.count("task"));
    let (before, resident) = (count(), vmm.resident_kib());
    for _ in 0..2 {
        let refusal = given_up(&vmm.socket(), (JobKind::Boot, "prefault"), || boots.boot());
        assert_eq!(refusal.messages.unwrap()[1], "The VM could not boot");
        assert_eq!(client.info().unwrap().state, VmState::Created);
        // The server sees only at its next turn that clients have gone.
        monitor::until("nothing to be left", || (count() == before).then_some(()));
        assert!(vmm.resident_kib() < resident + (16 << 10), "{resident} KiB, and now {}", vmm.resident_kib());
    }
    client.boot().unwrap();
    assert_eq!(client.info().unwrap().state, VmState::Running);
    // A reboot leaves the VM created, too.
    given_up(&vmm.socket(), (JobKind::Boot, "prefault"), || boots.reboot());
    assert_eq!(client.info().unwrap().state, VmState::Created);
    client.delete().unwrap();
    // One that populates nothing has no such phase, and no bytes.
    config["memory"] = json!({ "size": 64 << 20 });
    client.create(&serde_json::from_value(config).unwrap()).unwrap();
    client.boot().unwrap();
    let job = client.jobs().unwrap().pop().unwrap();
    assert_eq!((job.state, job.phase.as_str(), job.bytes_total), (JobState::Done, "machine", None));
}

#[test]
fn a_signal_ends_a_boot() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    for name in ["TERM", "INT"] {
        let told = tempfile::NamedTempFile::new().unwrap();
        let vmm = Vmm::start(&["--event-monitor", &format!("path={}", told.path().display())]);
        let mut client = vmm.client();
        client.create(&serde_json::from_value(large()).unwrap()).unwrap();
        let mut boots = vmm.client();
        let booting = std::thread::spawn(move || boots.boot());
        in_the_middle_of(&mut client, (JobKind::Boot, "prefault"), None);
        let begun = Instant::now();
        vmm.signal(name);
        let (status, socket) = vmm.end();
        assert!(begun.elapsed() < GIVEN_UP, "{:?}", begun.elapsed());
        assert_eq!((status.code(), socket), (Some(0), false));
        assert!(booting.join().unwrap().is_err());
        let all = events(told.path());
        let of_boot = of_jobs(&all, "boot");
        let (event, phase, _) = of_boot.last().unwrap();
        assert_eq!((event.as_str(), phase.as_str()), ("cancelled", "prefault"), "{of_boot:?}");
        let rest =
            all.iter().filter(|event| event["source"] != "job").map(|event| event["event"].as_str().unwrap());
        assert_eq!(rest.collect::<Vec<_>>(), ["starting", "booting", "deleted", "shutdown"]);
    }
}

/// A VM with a lot in its memory, in a process that tells its events.
struct Full {
    directory: TempDir,
    monitor: Monitor,
}

impl Full {
    fn monitor(place: &Path) -> Monitor {
        let told = format!("path={}", place.join("events").display());
        Monitor::start(place, &["--event-monitor", &told])
    }

    fn start() -> Self {
        let directory = tempfile::tempdir().expect("there is room");
        let place = directory.path();
        let mut monitor = Self::monitor(place);
        let mut console = monitor.boot(place, &json!({ "memory": { "size": 512 << 20 } }));
        console.ok(&format!("fill {FREE:#x} {FILLED} 7"));
        monitor.put("vm.pause", &Value::Null).expect("it can be paused");
        Self { directory, monitor }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Has a request begin and gives it up.
    fn gives_up(&mut self, job: (JobKind, &str), endpoint: &str, body: &Value) {
        let socket = self.path("api");
        given_up(&socket, job, || self.monitor.put(endpoint, body).map(drop));
    }

    /// Descriptors and threads.
    fn has(&self) -> (usize, usize) {
        let count = |of| {
            fs::read_dir(format!("/proc/{}/{of}", self.monitor.pid())).expect("the process is there").count()
        };
        (count("fd"), count("task"))
    }

    fn names_in(&self, name: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(name)).expect("it is there");
        entries
            .map(|entry| entry.expect("it can be read").file_name().into_string().expect("names are text"))
            .collect()
    }
}

#[test]
fn snapshots_and_restores_are_given_up_and_can_be_made_again() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let mut full = Full::start();
    let target = full.path("snapshot");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("somebody's"), "own").unwrap();
    let request = json!({ "destination_url": monitor::url(&target) });
    for _ in 0..2 {
        full.gives_up((JobKind::Snapshot, "memory"), "vm.snapshot", &request);
        assert_eq!(full.monitor.state(), VmState::Paused);
        assert_eq!(full.names_in("snapshot"), ["somebody's"]);
    }
    // The VM is as it was: it can go on, and be saved as a whole.
    full.monitor.put("vm.resume", &Value::Null).unwrap();
    full.monitor.put("vm.pause", &Value::Null).unwrap();
    full.monitor.put("vm.snapshot", &request).unwrap();
    let all = events(&full.path("events"));
    let ends: Vec<_> = of_jobs(&all, "snapshot")
        .into_iter()
        .filter(|(event, ..)| event != "progress")
        .map(|(event, phase, _)| format!("{event} {phase}"))
        .collect();
    let up = ["started state", "phase scan", "phase memory"];
    let whole = [&up[..], &["phase write and sync", "finished write and sync"]].concat();
    let given_up = [&up[..], &["cancelled memory"]].concat();
    assert_eq!(ends, [given_up.as_slice(), &given_up, &whole].concat());
    full.monitor.put("vm.delete", &Value::Null).unwrap();

    let before = full.has();
    for (phase, said) in [
        ("memory", json!({ "memory_restore_mode": "Copy" })),
        ("verify", json!({ "memory_restore_mode": "Cow", "verify": "full" })),
        ("prefault", json!({ "prefault": true })),
    ] {
        let request = monitor::restore_request(&target, &said);
        full.gives_up((JobKind::Restore, phase), "vm.restore", &request);
        assert_eq!(full.monitor.refused("vm.pause", &Value::Null).code.as_deref(), Some("vm-not-running"));
        assert!(
            matches!(full.monitor.api.info(), Err(ClientError::Refused(refusal)) if refusal.status == 404)
        );
        monitor::until("nothing to be left", || (full.has() == before).then_some(()));
        full.monitor.put("vm.restore", &request).unwrap();
        let mut console = monitor::serial(full.directory.path());
        assert_eq!(console.ok(&format!("verify {FREE:#x} {FILLED} 7")), "same", "{said}");
        full.monitor.put("vm.delete", &Value::Null).unwrap();
    }
}

#[test]
fn progress_is_told_while_it_takes_long() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let mut full = Full::start();
    let target = full.path("snapshot");
    fs::create_dir(&target).unwrap();
    full.monitor.put("vm.snapshot", &json!({ "destination_url": monitor::url(&target) })).unwrap();
    full.monitor.put("vm.delete", &Value::Null).unwrap();
    // At that rate, all of it takes many times longer than the time between two events.
    let said =
        json!({ "memory_restore_mode": "Cow", "background_fill": "all", "fill_bytes_per_second": 32 << 20 });
    full.monitor.restore(&target, &said);
    let told = full.path("events");
    let progress = |told: &Path| -> Vec<u64> {
        let all = of_jobs(&events(told), "fill");
        all.into_iter().filter(|(event, ..)| event == "progress").map(|(.., done)| done).collect()
    };
    monitor::until("progress", || (progress(&told).len() >= 3).then_some(()));
    let done = progress(&told);
    assert!(done.is_sorted() && done[0] > 0 && done[0] < done[2], "{done:?}");
    let job = newest(&mut full.monitor.api).unwrap();
    assert_eq!((job.kind, job.state), (JobKind::Fill, JobState::Running), "{job:?}");
    let begun = Instant::now();
    full.monitor.api.ping().unwrap();
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    full.monitor.api.cancel_job(&api_client::wire::VmCancelJob { id: job.id }).unwrap();
    monitor::until("its end", || {
        let (event, phase, done) = of_jobs(&events(&told), "fill").pop()?;
        (event == "cancelled" && phase == "memory" && done < job.bytes_total?).then_some(())
    });
    // The guest is none the worse for it.
    assert_eq!(full.monitor.state(), VmState::Running);
    let mut console = monitor::serial(full.directory.path());
    assert_eq!(console.ok(&format!("verify {FREE:#x} {FILLED} 7")), "same");
}
