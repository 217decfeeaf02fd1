//! A client that waits: one connection, one request at a time.

mod answer;
mod calls;

use std::{
    fmt,
    io::{self, IoSlice, Read},
    mem::MaybeUninit,
    os::{fd::BorrowedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use thiserror::Error;

use self::answer::Reader;
pub use self::{answer::Answer, calls::Restored};

/// Most descriptors that one request can have: as many as the kernel sends in one message.
const MAX_DESCRIPTORS: usize = 253;

/// Endpoints with more to tell than all clients read; this one does, and says so.
const TELLING: [&str; 3] = ["vm.add-net", "vm.restore", "vm.snapshot"];

/// How a request ended that brought no answer to use.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens there, or not for this user.
    #[error("Cannot connect to {}", .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection broke, or no answer came in time.
    #[error("The server does not answer")]
    Connection(#[source] io::Error),
    /// What came back is no answer.
    #[error("The server's answer cannot be read: {0}")]
    Protocol(&'static str),
    /// It is one, but its body is not what this request is answered with.
    #[error("The server's answer is not what was asked for")]
    Body(#[source] serde_json::Error),
    /// A request that cannot be put in JSON: a path is no text.
    #[error("The request cannot be written down")]
    Request(#[source] serde_json::Error),
    /// More descriptors than a request can have.
    #[error("{0} descriptors, {MAX_DESCRIPTORS} at most")]
    Descriptors(usize),
    /// The server refused, or failed.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// What the server says when it does not do what it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status code.
    pub status: u16,
    /// Its messages, the outermost first; `None` if it said something else.
    pub messages: Option<Vec<String>>,
    /// Its word for what went wrong, that does not change from version to version, if it has any.
    pub code: Option<String>,
}

impl Refusal {
    /// The name of the status code.
    pub fn status_name(&self) -> &'static str {
        match self.status {
            400 => "BadRequest",
            404 => "NotFound",
            409 => "Conflict",
            429 => "TooManyRequests",
            500 => "InternalServerError",
            501 => "NotImplemented",
            503 => "ServiceUnavailable",
            _ => "Unknown",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server responded with {}", self.status_name())?;
        match &self.messages {
            Some(messages) => messages.iter().try_for_each(|message| write!(f, ": {message}")),
            None => f.write_str(": it gave no reason that can be read"),
        }
    }
}

impl std::error::Error for Refusal {}

/// What a request asks to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Tell something.
    Get,
    /// Do something.
    Put,
}

/// A connection to a server.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    reader: Reader,
}

impl Client {
    /// Connects to the socket at a path.
    ///
    /// # Errors
    /// Nobody listens there, or not for this user.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path)
            .map_err(|source| ClientError::Connect { path: path.to_path_buf(), source })?;
        Ok(Self::over(stream))
    }

    /// A client over a connection that is there already.
    pub fn over(stream: UnixStream) -> Self {
        Self { stream, reader: Reader::default() }
    }

    /// How long to wait for an answer; for ever by default. After a wait in vain the connection is of no
    /// more use.
    ///
    /// # Errors
    /// The time is 0.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> Result<(), ClientError> {
        let set = |set: fn(&UnixStream, Option<Duration>) -> io::Result<()>| set(&self.stream, timeout);
        set(UnixStream::set_read_timeout)
            .and_then(|()| set(UnixStream::set_write_timeout))
            .map_err(ClientError::Connection)
    }

    /// Sends a request to an endpoint, as `vm.info`, and waits for the answer. The descriptors travel with
    /// the first of it. Of a snapshot and of a restore the report is asked for, which a server that knows
    /// of it answers as the body.
    ///
    /// # Errors
    /// The connection fails, or the server refuses.
    pub fn request(
        &mut self,
        method: Method,
        endpoint: &str,
        body: Option<&[u8]>,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Answer, ClientError> {
        let method = match method {
            Method::Get => "GET",
            Method::Put => "PUT",
        };
        let mut bytes = format!("{method} /api/v1/{endpoint} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n")
            .into_bytes();
        if TELLING.contains(&endpoint) {
            bytes.extend_from_slice(b"X-Cumulet-Report: full\r\n");
        }
        if let Some(body) = body {
            bytes.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
            bytes.extend_from_slice(body);
        } else {
            bytes.extend_from_slice(b"\r\n");
        }
        let sent = self.send(&bytes, descriptors);
        // A server that refuses a request while it is being sent has said why.
        let answer = match (self.receive(), sent) {
            (Err(_), Err(error)) => return Err(error),
            (answer, _) => answer?,
        };
        match answer.status() {
            200 | 204 => Ok(answer),
            _ => Err(ClientError::Refused(answer.into_refusal())),
        }
    }

    fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(ClientError::Descriptors(descriptors.len()));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(ClientError::Descriptors(descriptors.len()));
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match sendmsg(&self.stream, &[IoSlice::new(rest)], &mut beside, SendFlags::NOSIGNAL) {
                Ok(length) => {
                    rest = rest.get(length..).unwrap_or_default();
                    // They went with the first piece.
                    beside.clear();
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(ClientError::Connection(error.into())),
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Answer, ClientError> {
        let mut bytes = [0; 8192];
        loop {
            if let Some(answer) = self.reader.take()? {
                // 100 only says that the server goes on reading.
                if answer.status() != 100 {
                    return Ok(answer);
                }
                continue;
            }
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(ClientError::Connection(io::ErrorKind::UnexpectedEof.into())),
                Ok(length) => self.reader.feed(bytes.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ClientError::Connection(error)),
            }
        }
    }
}
