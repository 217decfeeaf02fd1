//! A monitor that is driven over its API, and the guest in it over a serial socket.

use std::{
    ffi::OsStr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use api_client::{Answer, Client, ClientError, Method, Refusal, wire};
use serde_json::{Value, json};

use crate::{
    cumulet,
    guest::{self, Console},
};

/// How long anything may take before a test fails. It ends hung runs only.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that serves the API. Dropping it ends the process.
#[derive(Debug)]
pub struct Monitor {
    // Taken by the one that waits for the end.
    child: Option<Child>,
    /// A connection to it.
    pub api: Client,
}

impl Monitor {
    /// Starts one whose socket is in `directory`.
    ///
    /// # Panics
    ///
    /// If it cannot be started, or does not listen.
    pub fn start<A: AsRef<OsStr>>(directory: &Path, arguments: &[A]) -> Self {
        Self::spawn(Command::new(cumulet::path()), directory, arguments)
    }

    /// The same, by a command that ends in the program's name.
    ///
    /// # Panics
    ///
    /// If it cannot be started, or does not listen.
    pub fn spawn<A: AsRef<OsStr>>(mut command: Command, directory: &Path, arguments: &[A]) -> Self {
        let socket = directory.join("api");
        // Built before there is a connection: the server would close one that waits for a build.
        let _ = guest::path();
        let child = command
            .arg("--api-socket")
            .arg(&socket)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cumulet cannot be started: {error}"));
        // Kept from here on, so that it ends whatever happens.
        let mut child = Some(child);
        let api = until("the API", || {
            let ended = child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = ended {
                let (_, said) = cumulet::end(child.take().expect("it is taken only here"));
                panic!("cumulet ended with {status} before it listened: {said}");
            }
            Client::connect(&socket).ok()
        });
        Self { child, api }
    }

    /// The process id.
    ///
    /// # Panics
    ///
    /// Not before it was waited for.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it has not been waited for").id()
    }

    /// Puts `body`, and returns what the server refuses it with.
    ///
    /// # Panics
    ///
    /// If it is not refused.
    pub fn refused(&mut self, endpoint: &str, body: &Value) -> Refusal {
        match self.put(endpoint, body) {
            Err(ClientError::Refused(refusal)) => refusal,
            other => panic!("{endpoint} {body}: {other:?}"),
        }
    }

    /// Puts `body`.
    ///
    /// # Errors
    ///
    /// The connection fails, or the server refuses.
    pub fn put(&mut self, endpoint: &str, body: &Value) -> Result<Answer, ClientError> {
        let body = (!body.is_null()).then(|| body.to_string());
        self.api.request(Method::Put, endpoint, body.as_ref().map(String::as_bytes), &[])
    }

    /// Creates and boots the test guest, with `said` laid over its configuration; returns its serial port. Its socket
    /// is in `directory`.
    ///
    /// # Panics
    ///
    /// If that fails.
    pub fn boot(&mut self, directory: &Path, said: &Value) -> Console {
        self.put("vm.create", &configuration(directory, said)).expect("it can be created");
        self.put("vm.boot", &Value::Null).expect("it can be booted");
        let mut console = serial(directory);
        console.ready();
        console
    }

    /// Restores a snapshot, with `said` laid over the request; returns the report.
    ///
    /// # Panics
    ///
    /// If that fails.
    pub fn restore(&mut self, snapshot: &Path, said: &Value) -> Value {
        let answer = self
            .put("vm.restore", &restore_request(snapshot, said))
            .unwrap_or_else(|error| panic!("{} cannot be restored: {error:?}", snapshot.display()));
        answer.json().expect("the answer is the report")
    }

    /// What the VM does.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn state(&mut self) -> wire::VmState {
        self.api.info().expect("there is a VM").state
    }

    /// Waits for the end; returns the status and what the program said on standard error.
    ///
    /// # Panics
    ///
    /// If it does not end within a minute.
    pub fn end(mut self) -> (ExitStatus, String) {
        cumulet::end(self.child.take().expect("it is taken only here"))
    }

    /// Has it end.
    ///
    /// # Panics
    ///
    /// If it does not end well.
    pub fn quit(mut self) {
        self.put("vmm.shutdown", &Value::Null).expect("it can be ended");
        let (status, said) = self.end();
        assert!(status.success(), "{status}: {said}");
    }

    /// Kills it.
    ///
    /// # Panics
    ///
    /// If it cannot be.
    pub fn kill(mut self) {
        let mut child = self.child.take().expect("it is taken only here");
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Nothing more can be done in a test that fails.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The configuration of a test guest whose serial port is a socket in `directory`, with `said` laid over it.
///
/// # Panics
///
/// If `said` is no object.
#[must_use]
pub fn configuration(directory: &Path, said: &Value) -> Value {
    let mut whole = json!({
        "payload": { "kernel": guest::path(), "cmdline": "" },
        "memory": { "size": 128 << 20 },
        "serial": { "mode": "Socket", "socket": serial_socket(directory) },
        "console": { "mode": "Off" },
        "debug_exit": 0x501,
    });
    lay(&mut whole, said);
    whole
}

/// A request to restore a snapshot and to let it run, with `said` laid over it.
#[must_use]
pub fn restore_request(snapshot: &Path, said: &Value) -> Value {
    let mut whole = json!({ "source_url": url(snapshot), "resume": true });
    lay(&mut whole, said);
    whole
}

/// The address of a directory.
#[must_use]
pub fn url(directory: &Path) -> String {
    format!("file://{}", directory.display())
}

/// Lays the members of one object over another.
pub(crate) fn lay(whole: &mut Value, said: &Value) {
    for (key, value) in said.as_object().expect("an object") {
        whole[key] = value.clone();
    }
}

/// The socket of the serial port of a guest that lives in `directory`.
pub(crate) fn serial_socket(directory: &Path) -> PathBuf {
    directory.join("serial")
}

/// Connects to the serial port whose socket is in `directory`.
///
/// # Panics
///
/// If nobody listens there.
#[must_use]
pub fn serial(directory: &Path) -> Console {
    let path = serial_socket(directory);
    let stream = until("the serial port", || UnixStream::connect(&path).ok());
    let input = stream.try_clone().expect("there are descriptors left");
    Console::new(stream, input)
}

/// Tries until there is something.
///
/// # Panics
///
/// If there is nothing after a minute.
pub fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}
