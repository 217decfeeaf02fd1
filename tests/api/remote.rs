//! The client program against the server.

use std::{
    fs::File,
    io::Read,
    os::unix::fs::symlink,
    process::{Command, Stdio},
};

use cumulet_tests::{
    api::{Vmm, guest_config, remote},
    cumulet::{self, Ran},
};
use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use serde_json::{Value, json};

fn run(vmm: &Vmm, arguments: &[&str], input: &str) -> Ran {
    let socket = vmm.socket();
    let socket = ["--api-socket", socket.to_str().expect("a path of ours is text")];
    cumulet::run(remote(), &[&socket, arguments].concat(), input)
}

#[test]
fn a_vm_is_driven_from_a_script() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let vmm = Vmm::start::<&str>(&[]);
    let ok = |arguments: &[&str], input: &str| {
        let ran = run(&vmm, arguments, input);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{arguments:?}");
        ran.stdout
    };
    let ping: Value = serde_json::from_str(&ok(&["ping"], "")).unwrap();
    assert_eq!(ping["pid"], vmm.pid());
    assert_eq!(ok(&["create"], &guest_config("", &json!({})).to_string()), "");
    assert_eq!(ok(&["add-disk", "path=/nowhere,id=extra"], ""), "");
    assert_eq!(ok(&["remove-device", "extra"], ""), "");
    assert_eq!(ok(&["resize", "--memory", "128M"], ""), "");
    ok(&["boot"], "");
    let info: Value = serde_json::from_str(&ok(&["info"], "")).unwrap();
    assert_eq!((&info["state"], &info["memory_actual_size"]), (&json!("Running"), &json!(128 << 20)));
    for command in
        ["nmi", "power-button", "pause", "resume", "reboot", "shutdown", "boot", "counters", "jobs"]
    {
        ok(&[command], "");
    }
    let refused = run(&vmm, &["resume"], "");
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""));
    let expected = "cumulet-remote: Server responded with InternalServerError: Error from API: The VM could not resume: ";
    assert!(refused.stderr.starts_with(expected), "{}", refused.stderr);
    let refused = run(&vmm, &["--json", "resume"], "");
    let said: Value = serde_json::from_str(&refused.stdout).unwrap();
    assert_eq!(
        (refused.code, &said["code"], &said["status"]),
        (Some(1), &json!("invalid-transition"), &json!(500))
    );
    assert_eq!(run(&vmm, &["add-disk"], "").code, Some(2));
    assert_eq!(run(&vmm, &[], "").code, Some(2));
    assert_eq!(ok(&["shutdown-vmm"], ""), "\n");
    assert_eq!(vmm.end().0.code(), Some(0));
}

#[test]
fn under_the_other_name_it_speaks_as_scripts_expect() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("ch-remote");
    symlink(remote(), &program).unwrap();
    let ran = cumulet::run(&program, &["--version"], "");
    assert!(ran.stdout.starts_with("ch-remote v"), "{ran:?}");
    let ran = cumulet::run(&program, &["--api-socket", "/nowhere/api", "info"], "");
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stderr.starts_with("Error: ch-remote exited with the following chain of errors:\n  0: "),
        "{ran:?}"
    );
    assert_eq!(cumulet::run(&program, &["info"], "").code, Some(1));
}

/// Runs the program with standard error on a terminal of its own; returns its exit code and what was on the terminal.
fn on_a_terminal(vmm: &Vmm, arguments: &[&str]) -> (Option<i32>, String) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags).expect("there are terminals");
    grantpt(&ours).expect("it is ours");
    unlockpt(&ours).expect("it is ours");
    let path = ptsname(&ours, Vec::new()).expect("it has a name").into_string().expect("its name is text");
    let theirs = File::options().read(true).write(true).open(path).expect("it can be opened");
    // Without a size it would be taken for one without columns.
    let size = Winsize { ws_row: 24, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&theirs, size).expect("it is a terminal");
    let mut child = Command::new(remote())
        .arg("--api-socket")
        .arg(vmm.socket())
        .args(arguments)
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(theirs)
        .spawn()
        .expect("it can be started");
    let reader = std::thread::spawn(move || {
        let (mut ours, mut bytes) = (File::from(ours), Vec::new());
        // Ends with an error when nobody has the other side open any more.
        let _ = ours.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let code = child.wait().expect("it ends").code();
    (code, reader.join().expect("it does not panic"))
}

#[test]
fn a_terminal_shows_how_far_it_is() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let vmm = Vmm::start::<&str>(&[]);
    let config = guest_config("", &json!({ "memory": { "size": 2u64 << 30, "prefault": true } }));
    assert_eq!(run(&vmm, &["create"], &config.to_string()).code, Some(0));
    let (code, shown) = on_a_terminal(&vmm, &["boot"]);
    assert_eq!(code, Some(0), "{shown:?}");
    assert!(shown.contains("boot: prefault ["), "{shown:?}");
    assert!(shown.contains("/2.00 GiB ") && shown.contains("iB/s ") && shown.contains(" left"), "{shown:?}");
    // What is over is not shown; errors are, where there was a bar.
    let (code, shown) = on_a_terminal(&vmm, &["boot"]);
    assert_eq!(code, Some(1));
    assert!(shown.contains("VM is already created") && !shown.contains("prefault"), "{shown:?}");
}

#[test]
fn shells_get_completions_under_both_names() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("ch-remote");
    symlink(remote(), &program).unwrap();
    for (program, name) in [(remote(), "cumulet-remote"), (program.as_path(), "ch-remote")] {
        for shell in ["bash", "zsh", "fish", "elvish"] {
            let ran = cumulet::run(program, &["--completions", shell], "");
            assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{shell}");
            for word in [name, "add-generic-vhost-user", "api-socket"] {
                assert!(ran.stdout.contains(word), "{shell}: no {word}");
            }
        }
        let ran = cumulet::run(program, &["--completions", "tcsh"], "");
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran:?}");
    }
}
