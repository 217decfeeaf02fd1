//! Requests out of a stream of bytes.

use std::{collections::VecDeque, os::fd::OwnedFd};

use dbs_uhttp::{Headers, HttpHeaderError, Request as Line, RequestError};
use thiserror::Error;

use super::{MAX_DESCRIPTORS, Method, REPORT_HEADER, Request, WHOLE_REPORT};

/// Longest line of a request's head, in bytes with its end.
const MAX_LINE: usize = 1024;
/// Most header lines.
const MAX_HEADERS: usize = 100;
/// Longest body, in bytes.
pub const MAX_BODY: usize = 4 << 20;

/// Bytes of memory that a connection keeps between requests.
const ROOM: usize = 16 << 10;

/// The end of a body in chunks that had none.
const NO_CHUNKS: &[u8] = b"0\r\n\r\n";

/// What a client sends is no request that could be answered; where the next one would begin is not known.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ParseError {
    /// A line, or a length, cannot be.
    // The foreign type is an error in all but name.
    #[error("{0}")]
    Line(RequestError),
    /// More header lines than any client sends.
    #[error("Invalid header. Reason: More than {MAX_HEADERS} lines.")]
    Headers,
    /// More descriptors than belong to any request.
    #[error("More than {MAX_DESCRIPTORS} file descriptors.")]
    Descriptors,
}

/// What the bytes so far come to.
#[derive(Debug)]
pub enum Event {
    /// The client waits for leave to send the body.
    Continue,
    /// A request, whole.
    Request(Request),
}

/// Takes bytes and descriptors as they arrive, and gives requests.
#[derive(Debug, Default)]
pub struct Parser {
    received: Vec<u8>,
    /// How many of them are dealt with.
    done: usize,
    /// How many bytes of the stream came before `received`.
    before: u64,
    /// With the number of the byte of the stream that each came with.
    descriptors: VecDeque<(u64, OwnedFd)>,
    state: State,
    /// The last request announced chunks; what ends them may follow.
    chunked: bool,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Between,
    Head {
        method: Method,
        path: String,
        headers: Headers,
        wants_report: bool,
        lines: usize,
    },
    Body {
        method: Method,
        path: String,
        wants_report: bool,
        length: usize,
    },
}

impl Parser {
    /// Takes what has arrived. The descriptors came with the last of the bytes.
    ///
    /// # Errors
    /// More descriptors than one request may have are waiting.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        descriptors: impl IntoIterator<Item = OwnedFd>,
    ) -> Result<(), ParseError> {
        // What is dealt with is let go of before more is taken.
        self.before += self.done as u64;
        self.received.drain(..self.done);
        self.done = 0;
        if self.received.is_empty() {
            // One long body does not take memory for ever.
            self.received.shrink_to(ROOM);
        }
        self.received.extend_from_slice(bytes);
        let last = (self.before + self.received.len() as u64).saturating_sub(1);
        for descriptor in descriptors {
            if self.descriptors.len() == MAX_DESCRIPTORS {
                return Err(ParseError::Descriptors);
            }
            self.descriptors.push_back((last, descriptor));
        }
        Ok(())
    }

    /// What comes next; `None` until more arrives.
    ///
    /// # Errors
    /// What has arrived is no request. There is no going on after that.
    pub fn take(&mut self) -> Result<Option<Event>, ParseError> {
        loop {
            match std::mem::take(&mut self.state) {
                State::Between => {
                    if !self.begin()? {
                        return Ok(None);
                    }
                }
                State::Head { method, path, headers, wants_report, lines } => {
                    let Some((from, to)) = self.line(too_long)? else {
                        self.state = State::Head { method, path, headers, wants_report, lines };
                        return Ok(None);
                    };
                    if from < to {
                        let headers = self.header(headers, from, to)?;
                        if lines == MAX_HEADERS {
                            return Err(ParseError::Headers);
                        }
                        let wants_report = wants_report || self.asks_for_report(from, to);
                        self.state = State::Head { method, path, headers, wants_report, lines: lines + 1 };
                        continue;
                    }
                    self.chunked = headers.chunked();
                    let length = usize::try_from(headers.content_length()).unwrap_or(usize::MAX);
                    if length > MAX_BODY {
                        return Err(ParseError::Line(RequestError::SizeLimitExceeded(MAX_BODY, length)));
                    }
                    self.state = State::Body { method, path, wants_report, length };
                    if length > 0 && headers.expect() {
                        return Ok(Some(Event::Continue));
                    }
                }
                State::Body { method, path, wants_report, length } => {
                    let end = self.done + length;
                    if self.received.len() < end {
                        self.state = State::Body { method, path, wants_report, length };
                        return Ok(None);
                    }
                    let descriptors = self.descriptors_until(end);
                    let body = self.body(end);
                    let request = Request { method, path, body, descriptors, wants_report };
                    return Ok(Some(Event::Request(request)));
                }
            }
        }
    }

    /// Takes everything up to `end` for a body. One that is all there is leaves with its memory.
    fn body(&mut self, end: usize) -> Vec<u8> {
        if end < self.received.len() {
            let body = self.received.get(self.done..end).unwrap_or_default().to_vec();
            self.done = end;
            return body;
        }
        let mut body = std::mem::take(&mut self.received);
        body.drain(..self.done);
        self.before += end as u64;
        self.done = 0;
        body
    }

    /// Whether nothing of a next request has arrived.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Between) && self.done == self.received.len()
    }

    /// Reads a request line, if one is there; false if more is needed.
    fn begin(&mut self) -> Result<bool, ParseError> {
        let rest = self.received.get(self.done..).unwrap_or_default();
        if self.chunked {
            let arrived = rest.len().min(NO_CHUNKS.len());
            if rest.get(..arrived) == NO_CHUNKS.get(..arrived) {
                if arrived < NO_CHUNKS.len() {
                    return Ok(false);
                }
                self.done += arrived;
            }
            self.chunked = false;
        }
        let Some((from, to)) = self.line(|_| RequestError::InvalidRequest)? else { return Ok(false) };
        let mut head = self.received.get(from..to).unwrap_or_default().to_vec();
        head.extend_from_slice(b"\r\n\r\n");
        let line = Line::try_from(&head, None).map_err(ParseError::Line)?;
        let method = match line.method() {
            dbs_uhttp::Method::Get => Method::Get,
            dbs_uhttp::Method::Put => Method::Put,
            dbs_uhttp::Method::Patch => Method::Patch,
            dbs_uhttp::Method::Delete => Method::Delete,
            // Clients do not know that these exist.
            dbs_uhttp::Method::Head | dbs_uhttp::Method::Post => {
                return Err(ParseError::Line(RequestError::InvalidHttpMethod("Unsupported HTTP method.")));
            }
        };
        let path = line.uri().get_abs_path().to_owned();
        self.state = State::Head { method, path, headers: Headers::default(), wants_report: false, lines: 0 };
        Ok(true)
    }

    fn header(&self, mut headers: Headers, from: usize, to: usize) -> Result<Headers, ParseError> {
        let line = self.received.get(from..to).unwrap_or_default();
        match headers.parse_header_line(line) {
            // What is asked for and cannot be had is no mistake.
            Ok(()) | Err(RequestError::HeaderError(HttpHeaderError::UnsupportedValue(..))) => Ok(headers),
            Err(error) => Err(ParseError::Line(error)),
        }
    }

    /// Whether a header line is the one that only our own clients send.
    fn asks_for_report(&self, from: usize, to: usize) -> bool {
        let line = self.received.get(from..to).unwrap_or_default();
        let value = std::str::from_utf8(line).ok().and_then(|line| line.split_once(':'));
        value.is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case(REPORT_HEADER) && value.trim().eq_ignore_ascii_case(WHOLE_REPORT)
        })
    }

    /// Where the next line begins and ends, without its end. `too_long` says what is wrong with one that
    /// goes on and on.
    fn line(
        &mut self,
        too_long: impl Fn(&[u8]) -> RequestError,
    ) -> Result<Option<(usize, usize)>, ParseError> {
        let rest = self.received.get(self.done..).unwrap_or_default();
        let window = rest.get(..MAX_LINE).unwrap_or(rest);
        match window.windows(2).position(|pair| pair == b"\r\n") {
            Some(length) => {
                let from = self.done;
                self.done += length + 2;
                Ok(Some((from, from + length)))
            }
            None if window.len() == MAX_LINE => Err(ParseError::Line(too_long(window))),
            None => Ok(None),
        }
    }

    /// The descriptors that came before a place in `received`.
    fn descriptors_until(&mut self, end: usize) -> Vec<OwnedFd> {
        let end = self.before + end as u64;
        let count = self.descriptors.iter().take_while(|(at, _)| *at < end).count();
        self.descriptors.drain(..count).map(|(_, descriptor)| descriptor).collect()
    }
}

/// Names the header whose line is too long, and does not repeat the line.
fn too_long(line: &[u8]) -> RequestError {
    const LONGEST_NAME: usize = 64;
    let name = line.iter().take(LONGEST_NAME).take_while(|byte| **byte != b':' && !byte.is_ascii_control());
    let name: Vec<u8> = name.copied().collect();
    let name = String::from_utf8_lossy(&name).into_owned();
    RequestError::HeaderError(HttpHeaderError::SizeLimitExceeded(name))
}

#[cfg(test)]
mod tests;
