//! A VMM that serves its API, and ways to speak to it: typed, and byte by byte.

use std::{
    ffi::OsStr,
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use api_client::Client;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{cumulet, guest};

/// Longest time that a question may take while the VMM is busy with something else.
pub const AT_ONCE: Duration = Duration::from_millis(100);

/// How often something is done until all answers that came meanwhile were in time.
const SAMPLES: usize = 4;

/// Returns the path of `cumulet-remote`, built with optimisation.
///
/// # Panics
///
/// If it cannot be built; with what Cargo said.
#[must_use]
pub fn remote() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| guest::build_release("cumulet", "cumulet-remote"))
}

/// A process that serves its API. Dropping it ends the process.
#[derive(Debug)]
pub struct Vmm {
    // Taken by the one that waits for the end.
    child: Option<Child>,
    directory: TempDir,
}

/// What came back for one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// Everything before the body.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Reply {
    /// The body as JSON; null if it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }
}

impl Vmm {
    /// Starts the program with a socket of its own, and `arguments` besides.
    ///
    /// # Panics
    ///
    /// If it cannot be started, or does not answer within ten seconds.
    pub fn start<A: AsRef<OsStr>>(arguments: &[A]) -> Self {
        let directory = tempfile::tempdir().expect("there is room for a socket");
        let socket = directory.path().join("api");
        let mut command = Command::new(cumulet::path());
        command.arg("--api-socket").arg(&socket).args(arguments);
        Self::spawn(command, directory)
    }

    /// Starts a command that serves at `api` in `directory`.
    ///
    /// # Panics
    ///
    /// If it cannot be started, or does not answer within ten seconds.
    #[must_use]
    pub fn spawn(mut command: Command, directory: TempDir) -> Self {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cumulet cannot be started: {error}"));
        let vmm = Self { child: Some(child), directory };
        let deadline = Instant::now() + Duration::from_secs(10);
        while UnixStream::connect(vmm.socket()).is_err() {
            assert!(Instant::now() < deadline, "cumulet does not serve its API");
            thread::sleep(Duration::from_millis(10));
        }
        vmm
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("api")
    }

    /// The process id.
    ///
    /// # Panics
    ///
    /// If the process was waited for.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it has not been waited for").id()
    }

    /// A connection to send bytes over.
    ///
    /// # Panics
    ///
    /// If there is nobody to connect to.
    #[must_use]
    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).expect("somebody listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("30 is not 0");
        stream
    }

    /// A typed client.
    ///
    /// # Panics
    ///
    /// If there is nobody to connect to.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::over(self.connect())
    }

    /// Sends one request on a connection of its own; an empty body is none.
    ///
    /// # Panics
    ///
    /// If no answer comes.
    #[must_use]
    pub fn ask(&self, method: &str, endpoint: &str, body: &str) -> Reply {
        send(&mut self.connect(), method, endpoint, body)
    }

    /// How many of something the process has: `fd` or `task`.
    ///
    /// # Panics
    ///
    /// If the process is gone.
    #[must_use]
    pub fn count(&self, of: &str) -> usize {
        fs::read_dir(format!("/proc/{}/{of}", self.pid())).expect("the process is there").count()
    }

    /// Memory that the process has resident, in KiB.
    ///
    /// # Panics
    ///
    /// If the process is gone.
    #[must_use]
    pub fn resident_kib(&self) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the process is there");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse().ok());
        number.unwrap_or_else(|| panic!("{status:?} has no resident memory"))
    }

    /// Does `work` while questions are put to the VMM, one after the other over one connection; returns what came of
    /// the work, and the answers that came meanwhile.
    ///
    /// Each answer must come in [`AT_ONCE`], without exception. Other tests may keep the machine from running a process
    /// for longer than that, so where one is late everything is done again, a few times.
    ///
    /// # Panics
    ///
    /// If an answer was late each time, or a question had none while the work was done.
    pub fn answers_while<T>(
        &self,
        questions: &[&'static str],
        mut work: impl FnMut() -> T,
    ) -> (T, Vec<(&'static str, Reply)>) {
        let mut late = Vec::new();
        for _ in 0..SAMPLES {
            let done = AtomicBool::new(false);
            let (came, answers) = thread::scope(|scope| {
                let asker = scope.spawn(|| self.put(questions, &done));
                // Whether it fails or not, the other one comes to its end.
                let ends = Raised(&done);
                let came = work();
                drop(ends);
                (came, asker.join().expect("each question is answered"))
            });
            let slowest = answers.iter().max_by_key(|(_, _, took)| *took);
            let (question, _, longest) = slowest.expect("there are questions, and each is put once at least");
            if *longest < AT_ONCE {
                return (came, answers.into_iter().map(|(question, reply, _)| (question, reply)).collect());
            }
            late.push(format!("{question} {longest:?}"));
            thread::sleep(Duration::from_millis(200));
        }
        panic!("not all answers came in {AT_ONCE:?}, in none of {SAMPLES} attempts: {late:?}");
    }

    /// Puts each question in turn, until it is `done` and each had an answer.
    fn put(&self, questions: &[&'static str], done: &AtomicBool) -> Vec<(&'static str, Reply, Duration)> {
        let mut stream = self.connect();
        let mut answers = Vec::new();
        while !done.load(Ordering::Relaxed) || answers.len() < questions.len() {
            for question in questions {
                let begun = Instant::now();
                let reply = send(&mut stream, "GET", question, "");
                answers.push((*question, reply, begun.elapsed()));
            }
            // Whoever does the work needs a processor too.
            thread::sleep(Duration::from_millis(1));
        }
        answers
    }

    /// The names of its threads.
    ///
    /// # Panics
    ///
    /// If the process is gone.
    #[must_use]
    pub fn threads(&self) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the process is there");
        // One that has ended meanwhile has no name any more.
        let names = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
        names.map(|name| name.trim_end().to_owned()).collect()
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

    /// Waits for the end; returns the status, and whether the socket is still there.
    ///
    /// # Panics
    ///
    /// If it does not end within a minute.
    #[must_use]
    pub fn end(mut self) -> (ExitStatus, bool) {
        let (status, _) = cumulet::end(self.child.take().expect("it is taken only here"));
        (status, self.socket().exists())
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only if the process has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Raises a flag when it goes.
struct Raised<'flag>(&'flag AtomicBool);

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends one request and reads its answer, by one read if it is not longer than [`ONE_READ`], as there are clients
/// that do.
///
/// # Panics
///
/// If no answer comes, or if its first part comes alone.
#[must_use]
pub fn send(stream: &mut UnixStream, method: &str, endpoint: &str, body: &str) -> Reply {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let request = format!("{method} http://localhost/api/v1/{endpoint} HTTP/1.1\r\n{length}\r\n{body}");
    stream.write_all(request.as_bytes()).expect("the server reads");
    reply(stream)
}

/// Bytes of an answer that a client gets by one read: the kernel cuts longer messages on a socket.
pub const ONE_READ: usize = 32 << 10;

/// Reads an answer, by one read if it is not longer than [`ONE_READ`].
///
/// # Panics
///
/// If none comes, or if its first part comes alone.
#[must_use]
pub fn reply(stream: &mut UnixStream) -> Reply {
    let mut bytes = vec![0; 1 << 20];
    let mut length = stream.read(&mut bytes).expect("an answer comes");
    let first = String::from_utf8_lossy(&bytes[..length]).into_owned();
    let (head, _) = first.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{first:?} is no answer"));
    let status = head.get(9..12).and_then(|code| code.parse().ok());
    let status = status.unwrap_or_else(|| panic!("{head:?} has no status"));
    let body = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let body: usize = body.map_or(0, |length| length.parse().expect("it is a number"));
    let whole = head.len() + 4 + body;
    assert!(length == whole || whole > ONE_READ, "the first read has {length} of {whole} bytes: {head}");
    while length < whole {
        let more = stream.read(&mut bytes[length..]).expect("the rest comes");
        assert!(more > 0, "the answer ends after {length} of {whole} bytes: {head}");
        length += more;
    }
    let body = String::from_utf8_lossy(&bytes[head.len() + 4..length]).into_owned();
    Reply { status, head: head.to_owned(), body }
}

/// A configuration of the test guest with `orders` on its command line, and `more` laid over it.
#[must_use]
pub fn guest_config(orders: &str, more: &Value) -> Value {
    let mut config = json!({
        "payload": { "kernel": guest::path(), "cmdline": orders },
        "memory": { "size": 64 << 20 },
        "console": { "mode": "Off" },
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    config
}
