//! The command line as a process sees it: exit codes, which stream says what, the two names, files.
//!
//! What each option means is tested where it is read; here no guest runs but one.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use cumulet_tests::{
    cumulet::{self, Ran},
    guest,
};

fn run(arguments: &[&str]) -> Ran {
    cumulet::run(cumulet::path(), arguments, "")
}

/// The program by the name that clients of the reference look for.
fn reference(directory: &Path) -> PathBuf {
    let path = directory.join("cloud-hypervisor");
    symlink(cumulet::path(), &path).expect("a link can be made");
    path
}

/// A run that is refused with exit code 1 and one line.
fn refused(arguments: &[&str]) -> String {
    let ran = run(arguments);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{arguments:?}: {ran:?}");
    assert_eq!(ran.stderr.lines().count(), 1, "{arguments:?}: {ran:?}");
    ran.stderr
}

#[test]
fn without_arguments_there_is_help_on_standard_error() {
    let ran = run(&[]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""));
    assert!(ran.stderr.contains("Usage: cumulet"), "{}", ran.stderr);
    assert!(ran.stderr.contains("--kernel"), "{}", ran.stderr);
}

#[test]
fn help_is_on_standard_output() {
    for flag in ["-h", "--help"] {
        let ran = run(&[flag]);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{flag}");
        for part in ["Usage: cumulet", "Payload", "Machine:", "Devices:", "Consoles:", "Program:", "Output:"]
        {
            assert!(ran.stdout.contains(part), "{flag}: no {part:?} in {}", ran.stdout);
        }
    }
    assert!(run(&["--help"]).stdout.contains("queue_size=128"), "the long one has the keys");
}

#[test]
fn the_version_is_told_under_both_names() {
    let directory = tempfile::tempdir().unwrap();
    let own = run(&["--version"]);
    assert_eq!((own.code, own.stderr.as_str()), (Some(0), ""));
    assert!(own.stdout.starts_with("cumulet v"), "{}", own.stdout);
    let ran = cumulet::run(&reference(directory.path()), &["-V", "-v"], "");
    assert_eq!(ran.code, Some(0));
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(lines[0].starts_with("cloud-hypervisor v"), "{}", ran.stdout);
    assert_eq!(lines[1], "Migration Protocol Versions: 0");
    assert!(lines[2].starts_with("Enabled features: [\"io_uring\""), "{}", ran.stdout);
    assert!(!ran.stdout.contains('/'), "clients take what follows the last one: {}", ran.stdout);
}

#[test]
fn usage_errors_are_2() {
    let cases: [&[&str]; 8] = [
        &["--colour"],
        &["--cpus", "boot=2"],
        &["--kernel", "/k", "--kernel", "/l"],
        &["--kernel", "/k", "--seccomp", "maybe"],
        &["--config", "/c", "--cpus", "boot=2"],
        &["--config", "/c", "--kernel", "/k"],
        &["--completions", "tcsh"],
        &["vmlinux"],
    ];
    for arguments in cases {
        let ran = run(arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{arguments:?}: {ran:?}");
        assert!(ran.stderr.starts_with("error: "), "{arguments:?}: {ran:?}");
    }
    assert!(run(&["--config", "/c", "--cpus", "boot=2"]).stderr.contains("--cpus"));
}

#[test]
fn wrong_values_are_1_and_named() {
    let said = refused(&["--kernel", "/k", "--disk", "path=/d,readonly=maybe"]);
    assert_eq!(said, "cumulet: --disk: readonly: \"maybe\" is not on or off\n");
    let said = refused(&["--kernel", "/k", "--firmware", "/f"]);
    assert!(said.contains("exclude each other"), "{said}");
    let said = refused(&["--kernel", "/k", "--net", "fd=77"]);
    assert!(said.starts_with("cumulet: --net: fd: 77 "), "{said}");
}

#[test]
fn what_there_is_no_machinery_for_is_refused_by_name() {
    let cases: [&[&str]; 3] = [
        &["--kernel", "/k", "--seccomp", "errno"],
        &["--kernel", "/k", "--landlock"],
        &["--kernel", "/k", "--landlock-rules", "path=/,access=r"],
    ];
    for arguments in cases {
        let name = arguments.iter().rev().find_map(|word| word.strip_prefix("--")).unwrap();
        let said = refused(arguments);
        assert!(said.contains(name), "{arguments:?}: {said}");
    }
}

/// Whether a process has made up its mind about SIGTERM: it is blocked, for whoever waits for it, or handled.
fn takes_sigterm(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let masks = ["SigBlk:", "SigCgt:"].map(|name| {
        let mask =
            status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel tells its masks");
        u64::from_str_radix(mask.trim(), 16).expect("a mask is a number")
    });
    // Bit 0 is signal 1, and SIGTERM is 15.
    masks.iter().any(|mask| mask >> 14 & 1 == 1)
}

#[test]
fn with_options_and_nothing_to_boot_the_process_waits() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    // As existing clients know it; what it cannot do it says in the log.
    let warned: [(&[&str], &[&str]); 3] = [
        (&["-v"], &["without --api-socket nobody can ask"]),
        (&["--seccomp", "false"], &["without --api-socket nobody can ask"]),
        (
            &["--seccomp", "true"],
            &["--seccomp true: this version has no system call filters", "nobody can ask"],
        ),
    ];
    for (arguments, expected) in warned {
        let mut child = Command::new(cumulet::path())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
        for words in expected {
            assert!(said.any(|line| line.unwrap().contains(words)), "{arguments:?}: {words}");
        }
        cumulet_tests::monitor::until("the signals", || takes_sigterm(child.id()).then_some(()));
        assert_eq!(child.try_wait().unwrap(), None, "{arguments:?}");
        let signal = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
        assert!(signal.is_ok_and(|status| status.success()));
        assert_eq!(child.wait().unwrap().code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn under_the_other_name_errors_are_a_numbered_chain() {
    let directory = tempfile::tempdir().unwrap();
    let program = reference(directory.path());
    let ran = cumulet::run(&program, &["--kernel", "/k", "--memory", "size=1T"], "");
    assert_eq!(ran.code, Some(1));
    let expected =
        "Error: Cloud Hypervisor exited with the following chain of errors:\n  0: --memory\n  1: size: ";
    assert!(ran.stderr.starts_with(expected), "{}", ran.stderr);
    let ran = cumulet::run(&program, &["--kernel", "/k", "--log-format", "{colour}"], "");
    let expected = "Error: Cloud Hypervisor exited with the following error:\n  --log-format: ";
    assert!(ran.stderr.starts_with(expected), "{}", ran.stderr);
}

#[test]
fn bad_log_formats_are_1_before_anything_happens() {
    let said = refused(&["--kernel", "/k", "--log-format", "{colour}"]);
    assert_eq!(said, "cumulet: --log-format: unknown token {colour}\n");
}

#[test]
fn a_configuration_comes_from_a_file_or_standard_input() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vm.json");
    // A VM that cannot be, so that the test needs no hypervisor.
    let json = r#"{"payload":{"kernel":"/k"},"cpus":{"boot_vcpus":2,"max_vcpus":1,"speed":3},"disks":[{"path":"/d","colour":"red"}]}"#;
    fs::write(&file, json).unwrap();
    let ran =
        [run(&["--config", file.to_str().unwrap()]), cumulet::run(cumulet::path(), &["--config", "-"], json)];
    for ran in ran {
        assert_eq!(ran.code, Some(1));
        let lines: Vec<&str> = ran.stderr.lines().collect();
        let [speed, colour, error] = lines[..] else { panic!("{}", ran.stderr) };
        assert!(speed.contains("WARN") && speed.contains("cpus.speed"), "{speed}");
        assert!(colour.contains("disks") && colour.contains("0.colour"), "{colour}");
        assert_eq!(error, "cumulet: cpus: 2 vCPUs are more than 1, the maximum given");
    }
    assert!(
        refused(&["--config", "/nowhere/vm.json"]).starts_with("cumulet: --config /nowhere/vm.json: No such")
    );
    let ran = cumulet::run(cumulet::path(), &["--config", "-"], "{\"cpus\":7}");
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("--config -: ") && ran.stderr.contains("line 1 column"), "{}", ran.stderr);
}

#[test]
fn the_log_goes_to_a_file_of_its_owner_in_the_form_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let arguments =
        ["--config", "-", "--log-file", log.to_str().unwrap(), "--log-format", "{levelchar}|{msg}"];
    let ran = cumulet::run(
        cumulet::path(),
        &arguments,
        r#"{"cpu":{}, "payload":{"kernel":"/k"}, "memory":{"size":0}}"#,
    );
    assert_eq!(ran.stderr, "cumulet: memory: size is 0\n");
    assert_eq!(fs::read_to_string(&log).unwrap(), "W|--config -: unknown member cpu has no effect\n");
    assert_eq!(fs::metadata(&log).unwrap().mode() & 0o777, 0o600);
    let said = refused(&["--kernel", "/k", "--log-file", "/nowhere/log"]);
    assert!(said.starts_with("cumulet: --log-file /nowhere/log: No such"), "{said}");
}

#[test]
fn shells_get_completions() {
    for shell in ["bash", "zsh", "fish", "elvish"] {
        let ran = run(&["--completions", shell]);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{shell}");
        assert!(ran.stdout.contains("rate-limit-group"), "{shell}");
    }
}

#[test]
fn a_socket_that_cannot_be_is_1_and_named() {
    for socket in ["/nowhere/api", "fd=77"] {
        let said = refused(&["--api-socket", socket]);
        assert!(said.contains("nowhere") || said.contains("77"), "{said}");
    }
    let said = refused(&["--api-socket", "/nowhere/api", "--event-monitor", "path=/nowhere/events"]);
    assert!(said.contains("nowhere"), "{said}");
}

#[test]
fn a_configuration_boots() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let json = serde_json::json!({
        "payload": { "kernel": guest::path(), "cmdline": "exit 11" },
        "memory": { "size": 64 << 20 },
        "serial": { "mode": "Null" },
        "console": { "mode": "Off" },
        "debug_exit": 0x501,
    });
    let ran = cumulet::run(cumulet::path(), &["--config", "-"], &json.to_string());
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(11), ""));
}
