//! The other end of a console: standard input and output, a file, nothing.
//!
//! Output never blocks the guest for longer than the target takes a write; input is read by a
//! thread of its own, only when standard input is a terminal or a pipe that somebody writes to.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
    thread::JoinHandle,
};

use devices::platform::Serial;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::AttachError;
use crate::{config::ConsoleTarget, terminal};

/// An opened target.
pub struct Terminal {
    /// Where the guest's output goes.
    pub output: Box<dyn Write + Send>,
    /// Where its input comes from.
    pub input: Option<Input>,
}

impl fmt::Debug for Terminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Terminal(input: {})", self.input.is_some())
    }
}

/// Opens a target; `None` if there shall be no device.
///
/// # Errors
/// A file cannot be made, or standard output cannot be duplicated.
pub fn open(target: &ConsoleTarget) -> Result<Option<Terminal>, AttachError> {
    let terminal = match target {
        ConsoleTarget::Off => return Ok(None),
        ConsoleTarget::Null => Terminal { output: Box::new(io::sink()), input: None },
        ConsoleTarget::Tty => tty()?,
        ConsoleTarget::File(path) => Terminal { output: Box::new(create(path)?), input: None },
        ConsoleTarget::Pty | ConsoleTarget::Socket(_) => {
            return Err(AttachError::Unavailable { what: "a pty or socket for the serial port" });
        }
    };
    Ok(Some(terminal))
}

fn tty() -> Result<Terminal, AttachError> {
    let duplicate = |fd: BorrowedFd<'_>, what| {
        fd.try_clone_to_owned().map_err(|source| AttachError::Standard { what, source })
    };
    let output = duplicate(rustix::stdio::stdout(), "standard output")?;
    let input = duplicate(rustix::stdio::stdin(), "standard input")?;
    terminal::make_raw(rustix::stdio::stdin())
        .map_err(|source| AttachError::Standard { what: "the terminal of standard input", source })?;
    Ok(Terminal { output: Box::new(File::from(output)), input: Some(Input(input)) })
}

fn create(path: &Path) -> Result<File, AttachError> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map_err(|source| AttachError::Open { path: path.to_path_buf(), source })
}

/// A source of input.
#[derive(Debug)]
pub struct Input(OwnedFd);

impl Input {
    /// Starts a thread that hands what arrives to `serial`, as far as it has room.
    ///
    /// # Errors
    /// The host has no descriptor or thread left.
    pub fn pump_into(self, serial: Arc<Mutex<Serial>>) -> io::Result<InputPump> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let stopped = Arc::clone(&stop);
        let join = std::thread::Builder::new()
            .name("serial-manager".into())
            .spawn(move || pump(self.0.as_fd(), stopped.as_fd(), &serial))?;
        Ok(InputPump { stop, join: Some(join) })
    }
}

/// The thread that reads input; stops when dropped.
#[derive(Debug)]
pub struct InputPump {
    stop: Arc<OwnedFd>,
    join: Option<JoinHandle<()>>,
}

impl Drop for InputPump {
    fn drop(&mut self) {
        // An eventfd that cannot be written is signalled already.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(join) = self.join.take() {
            // A panic aborts the process: there is nothing to learn from the result.
            let _ = join.join();
        }
    }
}

/// While the guest does not read, how often it is asked whether it has.
const FULL_POLL_MS: i64 = 10;

fn pump(input: BorrowedFd<'_>, stop: BorrowedFd<'_>, serial: &Mutex<Serial>) {
    let mut buffer = [0; 64];
    loop {
        let room = serial.lock().room();
        let mut fds = [PollFd::new(&stop, PollFlags::IN), PollFd::new(&input, PollFlags::IN)];
        let wait = if room == 0 {
            rustix::time::Timespec { tv_sec: 0, tv_nsec: FULL_POLL_MS * 1_000_000 }
        } else {
            rustix::time::Timespec { tv_sec: 3600, tv_nsec: 0 }
        };
        let watched = if room == 0 { 1 } else { 2 };
        match poll(fds.get_mut(..watched).unwrap_or_default(), Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        let [stop_fd, input_fd] = &fds;
        if !stop_fd.revents().is_empty() {
            return;
        }
        if input_fd.revents().is_empty() || room == 0 {
            continue;
        }
        let length = room.min(buffer.len());
        match rustix::io::read(input, buffer.get_mut(..length).unwrap_or_default()) {
            // The other end is closed: no more input will come.
            Ok(0) => return,
            Ok(read) => {
                serial.lock().receive(buffer.get(..read).unwrap_or_default());
            }
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(error) => {
                log::warn!("serial input ends: {error}");
                return;
            }
        }
    }
}
