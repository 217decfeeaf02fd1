//! Signals that ask the process to end, as a descriptor.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, atomic::AtomicBool},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::{
    SigId,
    consts::{SIGINT, SIGTERM},
    flag,
    low_level::{pipe, unregister},
};

/// SIGTERM and SIGINT. While this lives they do not end the process; once one has come, it stays so.
#[derive(Debug)]
pub(super) struct Signals {
    readable: UnixStream,
    registered: [SigId; 4],
}

impl Signals {
    /// `ending` is raised when one comes, at once: the control thread may be busy.
    pub(super) fn new(ending: &Arc<AtomicBool>) -> io::Result<Self> {
        let (readable, writable) = UnixStream::pair()?;
        let registered = [
            pipe::register(SIGTERM, writable.try_clone()?)?,
            pipe::register(SIGINT, writable)?,
            flag::register(SIGTERM, Arc::clone(ending))?,
            flag::register(SIGINT, Arc::clone(ending))?,
        ];
        Ok(Self { readable, registered })
    }

    /// Whether one has come.
    pub(super) fn arrived(&self) -> bool {
        let mut fds = [PollFd::new(&self.readable, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.registered {
            unregister(id);
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}
