//! The size of a console's window: looked at when it may have changed.
//!
//! The process's own terminal tells of a change by a signal. A pseudo-terminal tells the programs that run in it and
//! not us, who hold its other side, so that one is asked once in a while.

use std::{
    fmt, io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::Arc,
    thread::JoinHandle,
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use signal_hook::{
    SigId,
    consts::SIGWINCH,
    low_level::{pipe, unregister},
};

/// Calls somebody when a window may have another size, on a thread of its own, until it is dropped.
pub(super) struct Watch {
    stop: Arc<OwnedFd>,
    signal: Option<SigId>,
    join: Option<JoinHandle<()>>,
}

/// How a change of size becomes known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// By SIGWINCH.
    Signal,
    /// By asking every second.
    Asking,
}

const ASK_EVERY_S: i64 = 1;

impl Watch {
    /// Starts the thread.
    ///
    /// # Errors
    /// The host has no descriptor or thread left.
    pub(super) fn start(notice: Notice, changed: impl Fn() + Send + 'static) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let (readable, writable) = UnixStream::pair()?;
        readable.set_nonblocking(true)?;
        // Made first, so that whatever fails later is undone when it is dropped.
        let mut watch = Self { stop: Arc::clone(&stop), signal: None, join: None };
        if notice == Notice::Signal {
            watch.signal = Some(pipe::register(SIGWINCH, writable)?);
        }
        let thread = std::thread::Builder::new().name("console-size".into());
        let signals = (notice == Notice::Signal).then_some(readable);
        watch.join = Some(thread.spawn(move || wait(&stop, signals.as_ref(), changed))?);
        Ok(watch)
    }
}

fn wait(stop: &OwnedFd, signals: Option<&UnixStream>, changed: impl Fn()) {
    let timeout = signals.is_none().then_some(Timespec { tv_sec: ASK_EVERY_S, tv_nsec: 0 });
    loop {
        let mut fds = vec![PollFd::new(stop, PollFlags::IN)];
        fds.extend(signals.map(|signals| PollFd::new(signals, PollFlags::IN)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                log::warn!("the console's window keeps its size: {error}");
                return;
            }
        }
        if fds.first().is_some_and(|stop| !stop.revents().is_empty()) {
            return;
        }
        if let Some(signals) = signals {
            // However many came, the size is looked at once.
            while rustix::io::read(signals, &mut [0; 64]).is_ok_and(|count| count > 0) {}
        }
        changed();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(signal) = self.signal.take() {
            unregister(signal);
        }
        // An eventfd that cannot be written is signalled already.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(join) = self.join.take() {
            // A panic aborts the process: there is nothing to learn from the result.
            let _ = join.join();
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.signal.is_some() { "Watch(signal)" } else { "Watch(asking)" })
    }
}
