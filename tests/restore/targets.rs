//! Directories that a snapshot cannot be written to: the refusal names them, what was begun is gone, the guest goes on,
//! and the same request works where it can.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use cumulet_tests::{cumulet, golden::Golden, guest::Console, monitor, monitor::Monitor};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::{Value, json};

use crate::{Held, golden::usable, text};

/// A guest that is paused and has something to save.
fn paused(monitor: &mut Monitor, golden: &Golden) -> Console {
    monitor.put("vm.restore", &golden.request(&json!({}))).expect("it can be restored");
    let console = golden.proves_itself();
    monitor.put("vm.pause", &Value::Null).expect("it can be paused");
    console
}

fn save(target: &Path) -> Value {
    json!({ "destination_url": monitor::url(target) })
}

/// Saving into a target is refused by its name, and what was made for that is gone.
fn refused(monitor: &mut Monitor, held: Held, target: &Path, expected: &str) {
    let said = text(&monitor.refused("vm.snapshot", &save(target)));
    assert!(said.contains(&*target.to_string_lossy()) && said.contains(expected), "{said}");
    held.is_all_of(monitor);
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).expect("it is there").next().is_none()
}

/// The same guest is saved after all, and lives.
fn works(mut monitor: Monitor, golden: &Golden, mut console: Console, target: &Path) {
    monitor.put("vm.snapshot", &save(target)).expect("it can be saved");
    monitor.put("vm.resume", &Value::Null).expect("it can go on");
    golden.is_proven_over(&mut console);
    monitor.put("vm.delete", &Value::Null).expect("it can be deleted");
    let request = monitor::restore_request(target, &json!({ "verify": "full" }));
    monitor.put("vm.restore", &request).expect("it is whole");
    golden.proves_itself();
    monitor.quit();
}

#[test]
fn a_size_limit_is_an_error_at_every_size() {
    let directory = tempfile::tempdir().expect("there is room");
    let Some(golden) = usable(directory.path()) else { return };
    let mut monitor = Monitor::start(directory.path(), &[] as &[&str]);
    let console = paused(&mut monitor, &golden);
    let held = Held::by(&mut monitor);
    let target = directory.path().join("target");
    fs::create_dir(&target).expect("there is room");
    let pid = Pid::from_raw(i32::try_from(monitor.pid()).expect("it is small"));
    let maximum = getrlimit(Resource::Fsize).maximum;
    // Nothing; less than the state; the state, and less than the memory.
    for bytes in [0, 4096, 1 << 20, 35 << 20] {
        let limited = Rlimit { current: Some(bytes), maximum };
        let before = prlimit(pid, Resource::Fsize, limited).expect("it can be limited");
        refused(&mut monitor, held, &target, "File too large");
        prlimit(pid, Resource::Fsize, before).expect("it can be lifted");
        assert!(is_empty(&target), "{bytes} bytes: something is left");
    }
    works(monitor, &golden, console, &target);
}

/// A process in a file system of its own, in which `full` has room for next to nothing and `sealed` cannot be written.
#[expect(clippy::print_stdout, reason = "the test report counts this line")]
fn in_a_file_system_of_its_own(place: &Path) -> Option<Monitor> {
    const MOUNTS: &str = "mount -t tmpfs -o size=256k full full && mount -t tmpfs -o ro sealed sealed";
    for name in ["full", "sealed"] {
        fs::create_dir(place.join(name)).expect("there is room");
    }
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).current_dir(place);
        command
    };
    let tried = unshare(MOUNTS).stdout(Stdio::null()).stderr(Stdio::piped()).output();
    match tried {
        Ok(tried) if tried.status.success() => {}
        Ok(tried) => {
            println!(
                "SKIPPED: nothing can be mounted here: {}",
                String::from_utf8_lossy(&tried.stderr).trim()
            );
            return None;
        }
        Err(error) => {
            println!("SKIPPED: unshare cannot be started: {error}");
            return None;
        }
    }
    let mut command = unshare(&format!("{MOUNTS} && exec \"$0\" \"$@\""));
    command.arg(cumulet::path());
    Some(Monitor::spawn(command, place, &[] as &[&str]))
}

#[test]
fn a_full_or_read_only_file_system_is_an_error_that_names_the_target() {
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let Some(golden) = usable(place) else { return };
    let Some(mut monitor) = in_a_file_system_of_its_own(place) else { return };
    let console = paused(&mut monitor, &golden);
    let held = Held::by(&mut monitor);
    for (name, expected) in [("full", "No space left on device"), ("sealed", "Read-only file system")] {
        let target = place.join(name);
        // More than once: nothing of the first attempt stands in the way of the second.
        for _ in 0..2 {
            refused(&mut monitor, held, &target, expected);
            // As the process sees it: the mount is its own.
            let seen = Path::new("/proc").join(monitor.pid().to_string()).join("root");
            let seen = seen.join(target.strip_prefix("/").expect("it is absolute"));
            assert!(is_empty(&seen), "{name}: something is left");
        }
    }
    let target = place.join("target");
    fs::create_dir(&target).expect("there is room");
    works(monitor, &golden, console, &target);
}

#[test]
fn a_target_that_is_missing_or_no_directory_is_an_error_that_names_it() {
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let Some(golden) = usable(place) else { return };
    let mut monitor = Monitor::start(place, &[] as &[&str]);
    let console = paused(&mut monitor, &golden);
    let held = Held::by(&mut monitor);
    let target = place.join("target");
    let refused = |monitor: &mut Monitor, expected: &str| refused(monitor, held, &target, expected);
    refused(&mut monitor, "No such file");
    fs::write(&target, "a file").expect("there is room");
    refused(&mut monitor, "not a directory");
    assert_eq!(fs::read(&target).expect("it is there"), b"a file");
    fs::remove_file(&target).expect("it is there");
    fs::create_dir(&target).expect("there is room");
    works(monitor, &golden, console, &target);
}

#[test]
fn a_target_that_is_being_written_or_has_files_of_others_is_an_error_that_names_it_and_is_left_alone() {
    let directory = tempfile::tempdir().expect("there is room");
    let place = directory.path();
    let Some(golden) = usable(place) else { return };
    let mut monitor = Monitor::start(place, &[] as &[&str]);
    let console = paused(&mut monitor, &golden);
    let held = Held::by(&mut monitor);
    let target = place.join("target");
    fs::create_dir(&target).expect("there is room");
    let refused = |monitor: &mut Monitor, expected: &str| refused(monitor, held, &target, expected);
    // Another process, as far as the kernel is concerned.
    let other = fs::File::open(&target).expect("it is there");
    other.lock().expect("it can be locked");
    refused(&mut monitor, "another snapshot is being written to");
    drop(other);
    // A snapshot of another program.
    let names = ["config.json", "state.json", "memory-ranges"];
    for name in names {
        fs::write(target.join(name), name).expect("there is room");
    }
    for name in names {
        refused(&mut monitor, &format!("{name} is in the way"));
        assert_eq!(fs::read(target.join(name)).expect("it is there"), name.as_bytes());
        fs::remove_file(target.join(name)).expect("it is there");
        fs::create_dir(target.join(name)).expect("there is room");
        refused(&mut monitor, &format!("{name} is in the way"));
        fs::remove_dir(target.join(name)).expect("it is there");
    }
    works(monitor, &golden, console, &target);
}
