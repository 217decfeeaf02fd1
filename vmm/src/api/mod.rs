//! The REST API: a thread that listens on a Unix socket, and what the requests mean.
//!
//! ```text
//! server (who is connected) -> http (what was said) -> routes (which endpoint) -> body (its object)
//!     -> control::Handle (what changes the VM), or control::Board and Jobs (what merely asks)
//! ```
//!
//! The forms and words are those that existing clients expect, down to single bytes; what is our own comes
//! as headers and endpoints that they do not look at. What is absent: the machine itself.

mod answer;
mod body;
mod bounds;
mod commands;
mod connection;
pub mod http;
mod metrics;
mod queue;
mod routes;
mod server;
mod socket;
#[cfg(test)]
mod tests;

use std::{fmt, io, sync::Arc};

pub use self::socket::{ApiSocket, SocketError};
use self::{
    queue::Queue,
    server::{Responder, Server, Service},
};
use crate::{
    control::{Board, Control, Handle},
    jobs::Jobs,
};

/// The API, being served. Ends when dropped.
pub struct Api(Server);

/// What the endpoints speak to.
#[derive(Clone, Debug)]
pub struct Vmm {
    handle: Handle,
    board: Arc<Board>,
    jobs: Jobs,
    queue: Queue,
    /// Whether a request that says something unknown is refused.
    strict: bool,
    /// What this build can do, in the words that clients look for.
    features: Vec<String>,
}

impl Vmm {
    /// The VM that `control` has, or will have.
    pub fn new(control: &Control, strict: bool, features: Vec<String>) -> Self {
        Self {
            handle: control.handle(),
            board: control.board(),
            jobs: control.jobs(),
            queue: Queue::default(),
            strict,
            features,
        }
    }
}

impl Api {
    /// Serves `vmm` on a thread of its own.
    ///
    /// # Errors
    /// The host has no descriptor or thread left.
    pub fn start(socket: ApiSocket, vmm: Vmm) -> io::Result<Self> {
        Server::start(socket, Box::new(vmm)).map(Self)
    }

    /// Sends what answers there are, and ends. After a normal end of everything the socket's file goes too.
    pub fn end(self, remove: bool) {
        if let Some(socket) = self.0.stop()
            && remove
        {
            socket.remove();
        }
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Api")
    }
}

impl Service for Vmm {
    fn serve(&self, request: http::Request, responder: Responder) {
        routes::serve(self, request, responder);
    }
}
