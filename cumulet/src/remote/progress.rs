//! How far a long command is, shown on a terminal while its answer is waited for.

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
    wire::{JobInfo, JobState},
};
use indicatif::{ProgressBar, ProgressStyle};

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
    if !io::stderr().is_terminal() {
        return None;
    }
    let over = Arc::new(AtomicBool::new(false));
    let (socket, seen): (PathBuf, _) = (socket.to_path_buf(), Arc::clone(&over));
    let thread =
        std::thread::Builder::new().name("progress".into()).spawn(move || follow(&socket, &seen)).ok();
    Some(Shown { over, thread })
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

fn follow(socket: &Path, over: &AtomicBool) {
    // A server that has no jobs, or no room for one more client, is no reason to fail.
    let Ok(mut client) = Client::connect(socket) else { return };
    let bar = ProgressBar::no_length();
    while !over.load(Ordering::Relaxed) {
        let Ok(jobs) = client.jobs() else { break };
        if let Some(job) = jobs.iter().rfind(|job| job.state == JobState::Running) {
            draw(&bar, job);
        }
        std::thread::sleep(EVERY);
    }
    bar.finish_and_clear();
}

fn draw(bar: &ProgressBar, job: &JobInfo) {
    let form = match job.bytes_total {
        Some(_) => "{msg} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}",
        None => "{spinner} {msg} {elapsed}",
    };
    if let Ok(style) = ProgressStyle::with_template(form) {
        bar.set_style(style);
    }
    match job.bytes_total {
        Some(total) => {
            bar.set_length(total);
            bar.set_position(job.bytes_done);
        }
        None => bar.unset_length(),
    }
    bar.set_message(format!("{}: {}", job.kind.name(), job.phase));
    bar.tick();
}
