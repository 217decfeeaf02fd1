//! The host's side of a socket device: a Unix socket that programs connect to, and a way to those that listen.
//!
//! A program that connects says `CONNECT PORT` and a line feed, and is told `OK PORT` with the port of its own side once
//! a program of the guest's has taken the connection; if none does, it is cut off. A program of the guest's that connects
//! to the host is connected to whoever [`Dial`] finds at that port.

use std::{
    fmt,
    io::{self, Read},
    net::Shutdown,
    os::{
        fd::{AsFd, AsRawFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    sync::Arc,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    net::SendFlags,
    time::Timespec,
};

use crate::vsock::{Host, Stream};

/// Finds the programs of the host's that listen.
pub trait Dial: Send + Sync + fmt::Debug {
    /// Connects to the program at that port; never waits.
    ///
    /// # Errors
    /// There is none, or it is too busy.
    fn dial(&self, port: u32) -> io::Result<UnixStream>;
}

/// The socket that programs connect to, and the way to those that listen.
#[derive(Debug)]
pub struct HostSocket {
    listener: UnixListener,
    dial: Box<dyn Dial>,
}

impl HostSocket {
    /// Programs come by `listener`, and are found by `dial`.
    ///
    /// # Errors
    /// The listener cannot be made non-blocking.
    pub fn new(listener: UnixListener, dial: Box<dyn Dial>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, dial })
    }
}

impl AsRawFd for HostSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

impl Host for Arc<HostSocket> {
    type Stream = HostStream;

    fn connect(&mut self, port: u32) -> io::Result<HostStream> {
        HostStream::new(self.dial.dial(port)?)
    }

    fn accept(&mut self) -> io::Result<HostStream> {
        HostStream::new(self.listener.accept()?.0)
    }
}

/// A connection to a program.
#[derive(Debug)]
pub struct HostStream(UnixStream);

impl HostStream {
    fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self(stream))
    }

    fn shut(&self, how: Shutdown) {
        // It fails only if the program has gone already.
        if let Err(error) = self.0.shutdown(how) {
            log::debug!("vsock: shutdown: {error}");
        }
    }
}

impl AsRawFd for HostStream {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Stream for HostStream {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        self.0.read(data)
    }

    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(&self.0, data, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
    }

    fn end_writing(&mut self) {
        self.shut(Shutdown::Write);
    }

    fn end_reading(&mut self) {
        self.shut(Shutdown::Read);
    }

    fn is_hung_up(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let [state] = match poll(&mut fds, Some(&now)) {
            Ok(_) => fds,
            Err(_) => return false,
        };
        state.revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }
}
