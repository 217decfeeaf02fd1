//! The program under test: built with optimisation, started with options, talked to over the guest's serial port.

use std::{
    env,
    ffi::OsStr,
    fs::File,
    io::{Read, Write},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use crate::guest::{self, Console};

/// Returns the path of `cumulet`, built with optimisation.
///
/// # Panics
///
/// If it cannot be built; with what Cargo said.
#[must_use]
pub fn path() -> &'static Path {
    static PATH: OnceLock<std::path::PathBuf> = OnceLock::new();
    PATH.get_or_init(|| guest::build_release("cumulet", "cumulet"))
}

/// Returns whether `/dev/kvm` can be opened. Without it a test fails, unless the run is declared to be without KVM.
///
/// # Panics
///
/// If it cannot be opened and the run is not declared to be without it.
#[must_use]
#[expect(clippy::print_stdout, reason = "the test report counts this line")]
pub fn kvm_is_usable() -> bool {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) if env::var_os("CUMULET_WITHOUT_KVM").is_some_and(|value| value == "1") => {
            println!("SKIPPED: /dev/kvm cannot be opened: {error}");
            false
        }
        Err(error) => panic!("/dev/kvm cannot be opened: {error}"),
    }
}

/// Whether taps are to be made here. A host where they cannot be has to say so.
#[must_use]
#[expect(clippy::print_stdout, reason = "the test report counts this line")]
pub fn may_make_taps() -> bool {
    if env::var_os("CUMULET_WITHOUT_TAP").is_some_and(|value| value == "1") {
        println!("SKIPPED: CUMULET_WITHOUT_TAP is set");
        return false;
    }
    true
}

/// Runs the program to its end without a guest to talk to; returns the exit code and what it said on standard error.
///
/// # Panics
///
/// If it cannot be started, or does not end within a minute.
pub fn refusal<A: AsRef<OsStr>>(arguments: &[A]) -> (Option<i32>, String) {
    let child = Command::new(path())
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cumulet cannot be started: {error}"));
    let (status, said) = end(child);
    (status.code(), said)
}

/// What the program did without a guest to talk to.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it said on standard output.
    pub stdout: String,
    /// What it said on standard error.
    pub stderr: String,
}

/// Runs the program to its end, by a name of its own, and with `input` on standard input.
///
/// # Panics
///
/// If it cannot be started, or does not end within a minute.
pub fn run<A: AsRef<OsStr>>(program: &Path, arguments: &[A], input: &str) -> Ran {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{} cannot be started: {error}", program.display()));
    let mut stdin = child.stdin.take().expect("it is piped");
    // Fails if the program ends without having read it, which is its right.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let mut output = child.stdout.take().expect("it is piped");
    // On a thread of its own: a full pipe would keep the program from ending.
    let reader = thread::spawn(move || {
        let mut stdout = String::new();
        output.read_to_string(&mut stdout).map(|_| stdout)
    });
    let (status, stderr) = end(child);
    let stdout = reader.join().expect("the reader does not panic").expect("what it says is text");
    Ran { code: status.code(), stdout, stderr }
}

/// How long a VM may take to end before a test fails.
const END_MAX: Duration = Duration::from_secs(60);

/// A VM with the test guest. Dropping it ends the process.
#[derive(Debug)]
pub struct Vm {
    // Taken by the one that waits for the end.
    child: Option<Child>,
    /// The guest's serial port.
    pub console: Console,
}

impl Vm {
    /// Boots the test guest with `orders` on its command line, and `arguments` added to the options. It has no console
    /// but that of `arguments`.
    ///
    /// # Panics
    ///
    /// If the program cannot be started.
    pub fn boot<A: AsRef<OsStr>>(orders: &str, arguments: &[A]) -> Self {
        let has_console = arguments.iter().any(|argument| argument.as_ref() == "--console");
        let mut child = Command::new(path())
            .arg("--kernel")
            .arg(guest::path())
            .args(["--serial", "tty", "--debug-exit", "0x501"])
            .args(if has_console { &[][..] } else { &["--console", "off"] })
            .arg("--cmdline")
            .arg(orders)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cumulet cannot be started: {error}"));
        let output = child.stdout.take().expect("it is piped");
        let input = child.stdin.take().expect("it is piped");
        Self { child: Some(child), console: Console::new(output, input) }
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it has not been waited for").id()
    }

    /// Sends the process a signal.
    ///
    /// # Panics
    ///
    /// If the process is gone.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(status.is_ok_and(|status| status.success()), "signal {name} cannot be sent");
    }

    /// Waits for the end; returns the status and what the program said on standard error.
    ///
    /// # Panics
    ///
    /// If it does not end within a minute.
    pub fn end(mut self) -> (ExitStatus, String) {
        end(self.child.take().expect("it is taken only here"))
    }

    /// Waits for the end and returns the exit code.
    ///
    /// # Panics
    ///
    /// If it ends otherwise than by exiting.
    pub fn exit_code(self) -> i32 {
        let (status, said) = self.end();
        status.code().unwrap_or_else(|| panic!("cumulet ended by a signal; it said {said:?}"))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only if the process has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits for a process, but not for ever; returns its status and what it said on standard error.
pub(crate) fn end(mut child: Child) -> (ExitStatus, String) {
    let deadline = Instant::now() + END_MAX;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                // Fails only if it ends at this very moment.
                let _ = child.kill();
                panic!("cumulet did not end within {END_MAX:?}");
            }
            Err(error) => panic!("cumulet cannot be waited for: {error}"),
        }
    };
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut said).expect("what it says is text");
    }
    (status, said)
}
