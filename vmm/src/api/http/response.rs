//! Answers, as the bytes that clients expect.

use std::{fmt, fmt::Write as _, sync::Arc};

/// Status codes that this server sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is done; there may be a body.
    Ok,
    /// It is done; there is nothing to say.
    NoContent,
    /// The request cannot be.
    BadRequest,
    /// What it is about does not exist.
    NotFound,
    /// It would be there twice.
    Conflict,
    /// The guest has not done its part yet.
    TooManyRequests,
    /// It did not work.
    InternalServerError,
    /// There is no room for it now.
    ServiceUnavailable,
}

impl Status {
    /// The code.
    pub fn code(self) -> u16 {
        match self {
            Self::Ok => 200,
            Self::NoContent => 204,
            Self::BadRequest => 400,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::TooManyRequests => 429,
            Self::InternalServerError => 500,
            Self::ServiceUnavailable => 503,
        }
    }
}

/// What the server calls itself in answers, and in those to what it could not read.
const SERVER: &str = "Cloud Hypervisor API";
const PARSER: &str = "Firecracker API";

/// Bytes of an answer. What is the same for everybody is there once, however many read it.
#[derive(Clone)]
pub enum Bytes {
    /// Of this answer.
    Own(Vec<u8>),
    /// Of all answers that say the same.
    Shared(Arc<[u8]>),
    /// Of the program.
    Fixed(&'static [u8]),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Shared(bytes) => bytes,
            Self::Fixed(bytes) => bytes,
        }
    }
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Bytes {}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self))
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Own(bytes)
    }
}

impl From<String> for Bytes {
    fn from(text: String) -> Self {
        Self::Own(text.into_bytes())
    }
}

impl From<Arc<[u8]>> for Bytes {
    fn from(bytes: Arc<[u8]>) -> Self {
        Self::Shared(bytes)
    }
}

impl From<&'static str> for Bytes {
    fn from(text: &'static str) -> Self {
        Self::Fixed(text.as_bytes())
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    status: Status,
    server: &'static str,
    content_type: &'static str,
    body: Bytes,
    headers: Vec<(&'static str, String)>,
}

impl Response {
    /// An answer without a body.
    pub fn new(status: Status) -> Self {
        Self {
            status,
            server: SERVER,
            content_type: "application/json",
            body: Bytes::Own(Vec::new()),
            headers: Vec::new(),
        }
    }

    /// An answer with a body of JSON.
    pub fn json(status: Status, body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..Self::new(status) }
    }

    /// An answer with a body of another kind.
    pub fn with_type(content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self { content_type, body: body.into(), ..Self::new(Status::Ok) }
    }

    /// The answer to what is no request.
    pub fn unreadable(error: &str) -> Self {
        // The rest of the body is not what it should be either, but it is what clients know.
        let error = error.replace(['"', '\\'], "'").replace(|character: char| character.is_control(), " ");
        let body = format!("{{ \"error\": \"{error}\nAll previous unanswered requests will be dropped.\" }}");
        Self { server: PARSER, ..Self::json(Status::BadRequest, body) }
            .header(super::ERROR_HEADER, "malformed-request")
    }

    /// Adds a header. What no header can hold is replaced in its value.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        let printable = |character: char| if matches!(character, ' '..='~') { character } else { '?' };
        self.headers.push((name, value.chars().map(printable).collect()));
        self
    }

    /// Its status.
    pub fn status(&self) -> Status {
        self.status
    }

    /// Its body.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The same with another body of the same type.
    #[must_use]
    pub fn with_body(self, body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..self }
    }

    /// Its head and its body. They leave in one write: there are clients that take what they read first for all
    /// of it.
    pub fn into_pieces(self) -> [Bytes; 2] {
        let Self { status, server, content_type, body, headers } = self;
        let code = status.code();
        // No reason phrase: there are clients that read everything up to the end of the line as a number.
        let mut head = format!("HTTP/1.1 {code} \r\nServer: {server}\r\nConnection: keep-alive\r\n");
        // Writing to a string does not fail.
        if !body.is_empty() {
            let _ = write!(head, "Content-Type: {content_type}\r\n");
        }
        if status != Status::NoContent {
            let _ = write!(head, "Content-Length: {}\r\n", body.len());
        }
        for (name, value) in headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        head.push_str("\r\n");
        [head.into(), body]
    }

    /// All of its bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.into_pieces().iter().flat_map(|piece| piece.iter().copied()).collect()
    }

    /// Leave to send a body.
    pub fn go_on() -> Bytes {
        format!("HTTP/1.1 100 \r\nServer: {SERVER}\r\nConnection: keep-alive\r\n\r\n").into()
    }

    /// What a client gets for which there is no room.
    pub fn no_room() -> &'static [u8] {
        b"HTTP/1.1 503\r\nServer: Firecracker API\r\nConnection: close\r\nContent-Length: 40\r\n\
          X-Cumulet-Error: no-room\r\n\r\n\
          { \"error\": \"Too many open connections\" }"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(response: Response) -> String {
        String::from_utf8(response.into_bytes()).unwrap()
    }

    #[test]
    fn answers_have_the_form_that_clients_read() {
        assert_eq!(
            text(Response::json(Status::Ok, "{}")),
            "HTTP/1.1 200 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\
             Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        );
        assert_eq!(
            text(Response::new(Status::NoContent)),
            "HTTP/1.1 204 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\r\n"
        );
        assert_eq!(
            text(Response::new(Status::Ok)),
            "HTTP/1.1 200 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n"
        );
        assert_eq!(
            String::from_utf8(Response::go_on().to_vec()).unwrap(),
            "HTTP/1.1 100 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\r\n"
        );
        let full = String::from_utf8(Response::no_room().to_vec()).unwrap();
        let (head, body) = full.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.1 503\r\n")
                && head.ends_with(&format!("Content-Length: {}\r\nX-Cumulet-Error: no-room", body.len()))
        );
    }

    #[test]
    fn what_could_not_be_read_is_answered_with_a_raw_newline() {
        let text = text(Response::unreadable("a \"b\"\r\nc"));
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("\r\nServer: Firecracker API\r\n"), "{head}");
        assert_eq!(body, "{ \"error\": \"a 'b'  c\nAll previous unanswered requests will be dropped.\" }");
    }

    #[test]
    fn a_header_cannot_be_broken_out_of() {
        let text = text(Response::new(Status::NoContent).header("X-A", "b\r\nX-C: d\u{e9}"));
        assert!(text.ends_with("\r\nX-A: b??X-C: d?\r\n\r\n"), "{text}");
    }
}
