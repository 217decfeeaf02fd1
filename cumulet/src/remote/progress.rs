//! How far a long command is, shown on a terminal while its answer, or its end, is waited for.

use std::{
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use api_client::{
    Client,
    wire::{JobInfo, JobKind, JobState},
};
use indicatif::{BinaryBytes, FormattedDuration, ProgressBar, ProgressStyle};

/// How often the server is asked.
const EVERY: Duration = Duration::from_millis(100);

/// A bar on standard error. Taken away when dropped.
#[derive(Debug)]
pub(super) struct Shown {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Shows the job that the server is at; nothing if standard error is no terminal. A connection of its own
/// asks how far it is.
pub(super) fn show(socket: &Path) -> Option<Shown> {
    if !is_shown() {
        return None;
    }
    let over = Arc::new(AtomicBool::new(false));
    let (socket, seen): (PathBuf, _) = (socket.to_path_buf(), Arc::clone(&over));
    let thread = std::thread::Builder::new()
        .name("progress".into())
        .spawn(move || follow(&socket, &bar(), &seen))
        .ok();
    Some(Shown { over, thread })
}

/// Whether there is anybody to see it.
pub(super) fn is_shown() -> bool {
    io::stderr().is_terminal()
}

/// Shows the newest job of a kind, which has begun, until it is over. Returns what became of it; `None` if the server
/// has ended before it told, as it does when its VM has moved away.
pub(super) fn show_to_the_end(socket: &Path, kind: JobKind) -> Option<JobInfo> {
    follow_to_the_end(socket, &bar(), kind)
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic aborts the process: there is nothing to learn from the result.
            let _ = thread.join();
        }
    }
}

/// A bar on standard error, of which nothing is to be seen yet.
fn bar() -> ProgressBar {
    ProgressBar::no_length()
}

fn is_running(job: &JobInfo) -> bool {
    matches!(job.state, JobState::Running | JobState::Cancelling)
}

fn follow(socket: &Path, bar: &ProgressBar, over: &AtomicBool) {
    // A server that has no jobs, or no room for one more client, is no reason to fail.
    let Ok(mut client) = Client::connect(socket) else { return };
    while !over.load(Ordering::Relaxed) {
        let Ok(jobs) = client.jobs() else { break };
        if let Some(job) = jobs.iter().rfind(|job| is_running(job)) {
            draw(bar, job);
        }
        std::thread::sleep(EVERY);
    }
    bar.finish_and_clear();
}

fn follow_to_the_end(socket: &Path, bar: &ProgressBar, kind: JobKind) -> Option<JobInfo> {
    let mut client = Client::connect(socket).ok()?;
    let ended = loop {
        let Ok(jobs) = client.jobs() else { break None };
        match jobs.into_iter().rfind(|job| job.kind == kind) {
            Some(job) if is_running(&job) => draw(bar, &job),
            ended => break ended,
        }
        std::thread::sleep(EVERY);
    };
    bar.finish_and_clear();
    ended
}

/// The rate and the time left are the server's: it has seen the phase from its beginning.
fn draw(bar: &ProgressBar, job: &JobInfo) {
    let (form, besides) = match (job.bytes_total, job.remaining_ms) {
        (Some(_), left) => {
            let left = left.map_or_else(|| "?".to_owned(), time);
            let besides = format!("{}/s {left} left", BinaryBytes(job.bytes_per_second));
            ("{msg} [{bar:30}] {bytes}/{total_bytes} {prefix}", besides)
        }
        (None, _) => ("{spinner} {msg} {prefix}", time(job.elapsed_ms)),
    };
    // What is set is drawn at once: what belongs together comes in one.
    bar.update(|state| match job.bytes_total {
        Some(total) => {
            state.set_len(total);
            state.set_pos(job.bytes_done);
        }
        None => state.set_pos(0),
    });
    if let Ok(style) = ProgressStyle::with_template(form) {
        bar.set_style(style);
    }
    bar.set_prefix(besides);
    bar.set_message(format!("{}: {}", job.kind.name(), job.phase));
    bar.tick();
}

fn time(ms: u64) -> String {
    FormattedDuration(Duration::from_millis(ms)).to_string()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixListener,
    };

    use indicatif::{ProgressDrawTarget, TermLike};
    use parking_lot::Mutex;
    use serde_json::{Value, json};

    use super::*;

    /// A terminal that keeps what is written to it.
    #[derive(Clone, Debug, Default)]
    struct Terminal(Arc<Mutex<String>>);

    impl TermLike for Terminal {
        fn width(&self) -> u16 {
            120
        }

        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(&format!("{text}\n"))
        }

        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().push_str(text);
            Ok(())
        }

        fn clear_line(&self) -> io::Result<()> {
            self.write_str("<clear>")
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Terminal {
        fn bar(&self) -> ProgressBar {
            let target = ProgressDrawTarget::term_like_with_hz(Box::new(self.clone()), 255);
            ProgressBar::with_draw_target(None, target)
        }

        fn text(&self) -> String {
            self.0.lock().clone()
        }
    }

    fn job(more: &Value) -> Value {
        let mut whole = json!({
            "id": 3, "kind": "snapshot", "state": "running", "phase": "memory", "bytes_done": 256 << 20,
            "bytes_total": 1 << 30, "bytes_per_second": 512 << 20, "remaining_ms": 1500, "elapsed_ms": 512,
        });
        for (key, value) in more.as_object().unwrap() {
            whole[key] = value.clone();
        }
        whole
    }

    #[test]
    fn a_phase_with_bytes_is_a_bar_and_another_a_spinner() {
        let terminal = Terminal::default();
        let bar = terminal.bar();
        draw(&bar, &serde_json::from_value(job(&json!({}))).unwrap());
        let text = terminal.text();
        assert!(text.contains("snapshot: memory [███████░░"), "{text:?}");
        assert!(text.contains("] 256.00 MiB/1.00 GiB 512.00 MiB/s 00:00:01 left"), "{text:?}");
        terminal.0.lock().clear();
        let next = job(&json!({ "phase": "write and sync", "bytes_total": null, "bytes_done": 0 }));
        draw(&bar, &serde_json::from_value(next).unwrap());
        let text = terminal.text();
        let last = text.rsplit("<clear>").next().unwrap();
        assert!(last.contains("snapshot: write and sync 00:00:00") && !last.contains('['), "{text:?}");
        bar.finish_and_clear();
        assert!(terminal.text().ends_with("<clear>"), "{:?}", terminal.text());
    }

    /// A server that has a list of jobs for each question, and then ends.
    fn server(lists: Vec<Value>) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("api");
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for list in lists {
                let mut bytes = [0; 4096];
                let length = stream.read(&mut bytes).unwrap();
                assert!(bytes[..length].starts_with(b"GET "));
                let body = list.to_string();
                let head = format!("HTTP/1.1 200 \r\nContent-Length: {}\r\n\r\n", body.len());
                stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
            }
        });
        (directory, socket)
    }

    #[test]
    fn the_newest_running_job_is_shown_until_the_answer_comes() {
        let old = job(&json!({ "id": 1, "kind": "boot", "state": "done" }));
        let lists =
            vec![json!([old]), json!([old, job(&json!({ "id": 2, "state": "cancelling" }))]), json!([old])];
        let (_directory, socket) = server(lists);
        let terminal = Terminal::default();
        // The server's end is the last that is seen.
        follow(&socket, &terminal.bar(), &AtomicBool::new(false));
        let text = terminal.text();
        assert!(text.contains("snapshot: memory [") && !text.contains("boot"), "{text:?}");
        let terminal = Terminal::default();
        follow(&socket, &terminal.bar(), &AtomicBool::new(true));
        assert_eq!(terminal.text(), "");
    }

    #[test]
    fn a_job_that_goes_on_after_the_answer_is_followed_to_its_end() {
        let send = |more: &Value| {
            let mut job = job(more);
            job["kind"] = json!("send-migration");
            job
        };
        let failed = json!({ "id": 5, "state": "failed", "remaining_ms": null, "error": ["a", "b"] });
        let lists = vec![
            json!([send(&json!({ "id": 4, "state": "done" })), send(&json!({ "id": 5 }))]),
            json!([send(&json!({ "id": 5, "phase": "rest" })), job(&json!({ "id": 6 }))]),
            json!([send(&failed)]),
        ];
        let (_directory, socket) = server(lists);
        let terminal = Terminal::default();
        let ended = follow_to_the_end(&socket, &terminal.bar(), JobKind::SendMigration).unwrap();
        assert_eq!((ended.state, ended.error.unwrap().join(": ").as_str()), (JobState::Failed, "a: b"));
        let text = terminal.text();
        for phase in ["send-migration: memory [", "send-migration: rest ["] {
            assert!(text.contains(phase), "{text:?}");
        }
        assert!(!text.contains("snapshot"), "{text:?}");
        // The VM has moved away, and its server with it.
        let (_directory, socket) = server(vec![json!([send(&json!({ "id": 1 }))])]);
        assert!(follow_to_the_end(&socket, &Terminal::default().bar(), JobKind::SendMigration).is_none());
    }
}
