//! HTTP/1.1, as much of it as the clients of this API speak.
//!
//! Bytes in, requests out ([`Parser`]); a [`Response`] in, bytes out. No socket, no clock: those are the
//! server's. Everything that a client sends is bounded here: the length of a line, the number of header
//! lines, the body, the descriptors beside a request.
//!
//! What a line of a request means is the crate `dbs-uhttp`'s to say, so that what is accepted, and in which
//! words the rest is refused, is what clients know. Its connections and its server are not used, because
//! they cannot be kept in bounds: they take any number of header lines and of descriptors, do not close
//! descriptors on exec, know no time limit, and write no status codes or headers but their own.

mod parse;
mod response;

pub use self::{
    parse::{Event, MAX_BODY, ParseError, Parser},
    response::{Bytes, Response, Status},
};

use std::os::fd::OwnedFd;

/// The header with the word for what went wrong.
pub const ERROR_HEADER: &str = "X-Cumulet-Error";
/// In an answer, how a snapshot or a restore went, in brief, as JSON. In a request, with the value
/// [`WHOLE_REPORT`], that the client reads answers of any length, and wants all of it.
pub const REPORT_HEADER: &str = "X-Cumulet-Report";
/// See [`REPORT_HEADER`].
pub const WHOLE_REPORT: &str = "full";

/// Most descriptors beside one request: as many as the kernel sends in one message.
pub const MAX_DESCRIPTORS: usize = 253;

/// What a request asks to be done with its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Tell.
    Get,
    /// Do.
    Put,
    /// Not used by any endpoint.
    Patch,
    /// The same.
    Delete,
}

/// A request.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub method: Method,
    /// The absolute path, whatever host was named before it; empty if there is none.
    pub path: String,
    /// The body; empty if there is none.
    pub body: Vec<u8>,
    /// The descriptors that came with it, in order.
    pub descriptors: Vec<OwnedFd>,
    /// Whether the client reads answers of any length, and wants all that there is to report.
    pub wants_report: bool,
}
