//! Answers out of a stream of bytes.

use serde::de::DeserializeOwned;

use super::{ClientError, Refusal};

/// Longest head of an answer, and longest body, in bytes: a server must not fill this process's memory.
const MAX_HEAD: usize = 64 << 10;
const MAX_BODY: usize = 64 << 20;

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Answer {
    /// The status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// A header, whatever the case of its name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let header = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        header.map(|(_, value)| value.as_str())
    }

    /// The body; `None` if the server announced none at all.
    pub fn body(&self) -> Option<&[u8]> {
        self.body.as_deref()
    }

    /// What the body says.
    ///
    /// # Errors
    /// It is no JSON, or not of that type.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        serde_json::from_slice(self.body().unwrap_or_default()).map_err(ClientError::Body)
    }

    pub(super) fn into_refusal(self) -> Refusal {
        Refusal {
            status: self.status,
            messages: self.json().ok(),
            code: self.header("X-Cumulet-Error").map(str::to_owned),
        }
    }
}

/// Takes bytes as they arrive, and gives answers.
#[derive(Debug, Default)]
pub(super) struct Reader {
    received: Vec<u8>,
}

impl Reader {
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    /// The next answer; `None` until more arrives.
    pub(super) fn take(&mut self) -> Result<Option<Answer>, ClientError> {
        let end = self.received.windows(4).take(MAX_HEAD).position(|four| four == b"\r\n\r\n");
        let Some(end) = end else {
            if self.received.len() > MAX_HEAD {
                return Err(ClientError::Protocol("its head does not end"));
            }
            return Ok(None);
        };
        let head = self.received.get(..end).unwrap_or_default();
        let head = std::str::from_utf8(head).map_err(|_| ClientError::Protocol("its head is no text"))?;
        let mut answer = parse_head(head)?;
        let length = match answer.header("Content-Length") {
            None => None,
            Some(length) => {
                let length = length.parse().ok().filter(|length| *length <= MAX_BODY);
                Some(length.ok_or(ClientError::Protocol("its length cannot be"))?)
            }
        };
        let begin = end + 4;
        let end = begin + length.unwrap_or(0);
        let Some(body) = self.received.get(begin..end) else { return Ok(None) };
        answer.body = length.map(|_| body.to_vec());
        self.received.drain(..end);
        Ok(Some(answer))
    }
}

fn parse_head(head: &str) -> Result<Answer, ClientError> {
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    // After the code there may be words, or none.
    let status = first
        .strip_prefix("HTTP/1.1 ")
        .or_else(|| first.strip_prefix("HTTP/1.0 "))
        .and_then(|rest| rest.split(' ').next())
        .filter(|code| code.len() == 3)
        .and_then(|code| code.parse().ok())
        .ok_or(ClientError::Protocol("it does not begin as one"))?;
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(':').ok_or(ClientError::Protocol("a header is none"))?;
        Ok((name.to_owned(), value.trim().to_owned()))
    });
    Ok(Answer { status, headers: headers.collect::<Result<_, ClientError>>()?, body: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], piece: usize) -> Result<Vec<Answer>, ClientError> {
        let mut reader = Reader::default();
        let mut answers = Vec::new();
        for piece in bytes.chunks(piece) {
            reader.feed(piece);
            while let Some(answer) = reader.take()? {
                answers.push(answer);
            }
        }
        Ok(answers)
    }

    #[test]
    fn answers_are_read_in_whatever_pieces_they_come() {
        let stream = b"HTTP/1.1 100 \r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\nX-A:  b \r\n\r\n{}\
            HTTP/1.1 204 \r\n\r\nHTTP/1.0 200 \r\nContent-Length: 0\r\n\r\n";
        for piece in [1, 2, 7, 1000] {
            let answers = read(stream, piece).unwrap();
            let seen: Vec<_> = answers.iter().map(|answer| (answer.status(), answer.body())).collect();
            assert_eq!(seen, [(100, None), (200, Some(&b"{}"[..])), (204, None), (200, Some(&b""[..]))]);
            assert_eq!(answers[1].header("x-a"), Some("b"));
        }
    }

    #[test]
    fn what_is_no_answer_is_an_error_and_takes_no_memory() {
        let bad: [&[u8]; 7] = [
            b"hello\r\n\r\n",
            b"HTTP/2 200\r\n\r\n",
            b"HTTP/1.1 20\r\n\r\n",
            b"HTTP/1.1 200 \r\nx\r\n\r\n",
            b"HTTP/1.1 200 \r\nContent-Length: 9223372036854775808\r\n\r\n",
            b"HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 \r\nA: \xff\r\n\r\n",
        ];
        for bytes in bad {
            assert!(read(bytes, 1000).is_err(), "{}", String::from_utf8_lossy(bytes));
        }
        assert!(read(&vec![b'x'; MAX_HEAD + 10], 4096).is_err());
    }

    #[test]
    fn refusals_say_what_the_server_said() {
        let stream =
            b"HTTP/1.1 404 \r\nContent-Length: 14\r\nX-Cumulet-Error: none\r\n\r\n[\"one\",\"two\"]\n";
        let refusal = read(stream, 1000).unwrap().remove(0).into_refusal();
        assert_eq!(refusal.to_string(), "Server responded with NotFound: one: two");
        assert_eq!(refusal.code.as_deref(), Some("none"));
        let stream = b"HTTP/1.1 418 \r\nContent-Length: 2\r\n\r\n{}";
        let refusal = read(stream, 1000).unwrap().remove(0).into_refusal();
        assert_eq!(refusal.messages, None);
        assert!(refusal.to_string().starts_with("Server responded with Unknown: "));
    }
}
