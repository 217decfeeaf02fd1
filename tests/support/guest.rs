//! The test guest: where its ELF is, and how to give it orders.
//!
//! Called by every test that boots a guest, whatever VMM it boots in. What the orders mean is in docs/test-guest.md.

use std::env;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use serde::Deserialize;

/// The one line of Cargo's JSON output that this module reads.
#[derive(Deserialize)]
struct Artifact {
    reason: String,
    executable: Option<PathBuf>,
}

/// Returns the path of the test guest, built with optimisation.
///
/// # Panics
///
/// If it cannot be built; with what Cargo said.
#[must_use]
pub fn path() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| build_release("test-guest", "test-guest"))
}

/// Lets Cargo build a program into the target directory of this build, and say where it put it.
pub(crate) fn build_release(package: &str, program: &str) -> PathBuf {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--release", "--package", package, "--bin", program])
        .args(["--message-format", "json-render-diagnostics", "--quiet"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .output()
        .unwrap_or_else(|error| panic!("cargo cannot be started to build {program}: {error}"));
    assert!(
        output.status.success(),
        "{program} cannot be built: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Artifact>(line).ok())
        .find_map(|artifact| artifact.executable.filter(|_| artifact.reason == "compiler-artifact"))
        .unwrap_or_else(|| panic!("cargo built no executable {program}"))
}

/// How long a guest may be silent before a test fails. Far beyond what any order takes: it ends hung runs only.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// The guest's serial port, seen from the test.
pub struct Console {
    lines: Receiver<String>,
    input: Box<dyn Write + Send>,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

/// What the guest says of itself when it has booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Version of the orders.
    pub version: u64,
    /// Processors that run.
    pub cpus: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// A number that is different at each boot.
    pub nonce: u64,
    /// The time stamp counter.
    pub tsc: u64,
}

impl Console {
    /// Takes both directions of the port. What the guest says need not be text.
    pub fn new(output: impl Read + Send + 'static, input: impl Write + Send + 'static) -> Self {
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
        Self { lines, input: Box::new(input) }
    }

    /// Returns the next line, or `None` when the port is closed.
    ///
    /// # Panics
    ///
    /// If the guest is silent for two minutes.
    pub fn line(&mut self) -> Option<String> {
        match self.lines.recv_timeout(SILENCE_MAX) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("the guest was silent for {SILENCE_MAX:?}"),
        }
    }

    /// Waits until the guest has booted. Lines of firmware before that are passed over.
    ///
    /// # Panics
    ///
    /// If the port is closed before, or the line cannot be read.
    pub fn ready(&mut self) -> Ready {
        let mut seen = String::new();
        loop {
            let line = self
                .line()
                .unwrap_or_else(|| panic!("the guest ended before it was ready; it said {seen:?}"));
            if let Some((_, fields)) = line.split_once("test-guest ready ") {
                return Ready {
                    version: field(fields, "version"),
                    cpus: field(fields, "cpus"),
                    memory_bytes: field(fields, "mem"),
                    nonce: field(fields, "nonce"),
                    tsc: field(fields, "tsc"),
                };
            }
            seen += &line;
        }
    }

    /// Sends an order without waiting for its reply.
    ///
    /// # Panics
    ///
    /// If the port is closed.
    pub fn send(&mut self, order: &str) {
        self.input
            .write_all(format!("{order}\n").as_bytes())
            .and_then(|()| self.input.flush())
            .unwrap_or_else(|error| panic!("order {order:?} cannot be sent: {error}"));
    }

    /// Reads the reply to the order before: what follows `ok`, or what follows `err`.
    ///
    /// # Panics
    ///
    /// If the port is closed, or the line is no reply (the guest reports a fault so).
    pub fn reply(&mut self) -> Result<String, String> {
        let line = self.line().expect("the port was closed before the reply");
        let line = line.trim_end();
        match line.split_once(' ').unwrap_or((line, "")) {
            ("ok", result) => Ok(result.to_owned()),
            ("err", reason) => Err(reason.to_owned()),
            _ => panic!("the guest answered {line:?}"),
        }
    }

    /// Gives an order and returns its reply.
    pub fn order(&mut self, order: &str) -> Result<String, String> {
        self.send(order);
        self.reply()
    }

    /// Gives an order that must succeed.
    ///
    /// # Panics
    ///
    /// If the guest refuses it.
    pub fn ok(&mut self, order: &str) -> String {
        self.order(order).unwrap_or_else(|reason| panic!("order {order:?} was refused: {reason}"))
    }
}

/// Returns the number of `NAME=NUMBER` among blank-separated fields.
///
/// # Panics
///
/// If there is none.
#[must_use]
pub fn field(fields: &str, name: &str) -> u64 {
    let value = fields
        .split_ascii_whitespace()
        .filter_map(|field| field.split_once('='))
        .find_map(|(key, value)| (key == name).then_some(value))
        .unwrap_or_else(|| panic!("no {name}= in {fields:?}"));
    number(value)
}

/// Reads a number as the guest prints it.
///
/// # Panics
///
/// If it is none.
#[must_use]
pub fn number(word: &str) -> u64 {
    test_guest::orders::number(word).unwrap_or_else(|| panic!("{word:?} is not a number"))
}
