use std::fs::File;

use super::*;

/// What a whole stream comes to, fed in pieces of `piece` bytes.
fn parse(stream: &[u8], piece: usize) -> (Vec<String>, Option<ParseError>) {
    let mut parser = Parser::default();
    let mut said = Vec::new();
    for bytes in stream.chunks(piece) {
        parser.feed(bytes, []).unwrap();
        loop {
            match parser.take() {
                Ok(Some(Event::Continue)) => said.push("continue".to_owned()),
                Ok(Some(Event::Request(request))) => {
                    let body = String::from_utf8_lossy(&request.body).into_owned();
                    said.push(format!("{:?} {} {body}", request.method, request.path));
                }
                Ok(None) => break,
                Err(error) => return (said, Some(error)),
            }
        }
    }
    (said, None)
}

fn refused(stream: &[u8]) -> String {
    let (said, error) = parse(stream, stream.len());
    assert!(said.is_empty(), "{said:?}");
    error.unwrap().to_string()
}

#[test]
fn requests_are_the_same_in_whatever_pieces_they_come() {
    let stream = b"GET /a HTTP/1.1\r\n\r\n\
        PUT http://localhost/b HTTP/1.0\r\nHost: x\r\ncontent-length: 3\r\nExpect: 100-continue\r\n\r\nabc\
        PUT /c HTTP/1.1\r\nContent-Length: 0\r\nAccept: text/html\r\nContent-Type: odd/odd\r\n\r\n\
        DELETE http://host HTTP/1.1\r\n\r\nPATCH /d?e HTTP/1.1\r\n\r\n";
    let expected = ["Get /a ", "continue", "Put /b abc", "Put /c ", "Delete  ", "Patch /d?e "];
    for piece in [1, 2, 3, 7, 64, 1000] {
        assert_eq!(parse(stream, piece), (expected.map(str::to_owned).to_vec(), None), "{piece}");
    }
}

#[test]
fn what_is_no_request_is_refused_in_the_words_that_clients_know() {
    for line in ["POST /a HTTP/1.1", "HEAD / HTTP/1.1", "get / HTTP/1.1", "OPTIONS * HTTP/1.1"] {
        assert_eq!(
            refused(format!("{line}\r\n\r\n").as_bytes()),
            "Invalid HTTP Method: Unsupported HTTP method."
        );
    }
    assert_eq!(refused(b"GET / HTTP/2.0\r\n\r\n"), "Invalid HTTP Version: Unsupported HTTP version.");
    assert_eq!(refused(b"DELETE  HTTP/1.1\r\n\r\n"), "Invalid URI: Empty URI not allowed.");
    assert_eq!(refused(b"\r\n\r\n"), "Invalid request.");
    assert_eq!(refused(b"GET /\xff HTTP/1.1\r\n\r\n"), "Invalid URI: Cannot parse URI as UTF-8.");
    let with = |header: &str| refused(format!("PUT / HTTP/1.1\r\n{header}\r\n\r\n").as_bytes());
    assert_eq!(
        with("Content-Length"),
        "Invalid header. Reason: Header is incorrectly formatted. Key: Content-Length"
    );
    for length in ["9223372036854775808", "4294967296", "-1", "x", "1 2"] {
        let said = with(&format!("Content-Length: {length}"));
        assert!(said.starts_with("Invalid header. Reason: Invalid value."), "{said}");
    }
    assert_eq!(
        with("Content-Length: 4194305"),
        "Request payload with size 4194305 is larger than the limit of 4194304 allowed by server."
    );
}

#[test]
fn lines_headers_and_bodies_have_limits() {
    let line = |length: usize| format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(length - 16));
    assert_eq!(parse(line(1024).as_bytes(), 4096).1, None);
    assert_eq!(refused(line(1025).as_bytes()), "Invalid request.");
    assert_eq!(refused(&[b'a'; 5000]), "Invalid request.");

    let header = |length: usize| format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(length - 5));
    assert_eq!(parse(header(1024).as_bytes(), 1).1, None);
    assert_eq!(refused(header(1025).as_bytes()), "Invalid header. Reason: Invalid content length. Header: X");

    let many = |count: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(count));
    assert_eq!(parse(many(100).as_bytes(), 100).1, None);
    assert_eq!(refused(many(101).as_bytes()), ParseError::Headers.to_string());

    let body = vec![b'x'; MAX_BODY];
    let stream = [format!("PUT / HTTP/1.1\r\nContent-Length: {MAX_BODY}\r\n\r\n").as_bytes(), &body].concat();
    assert_eq!(parse(&stream, 1 << 16).0.len(), 1);
}

#[test]
fn chunks_that_hold_nothing_are_passed_over() {
    let stream = b"PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n0\r\n\r\n\
        GET /b HTTP/1.1\r\n\r\n";
    for piece in [1, 5, 500] {
        assert_eq!(parse(stream, piece), (vec!["Put /a ".into(), "Get /b ".into()], None));
    }
    let without = b"PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nGET /b HTTP/1.1\r\n\r\n";
    assert_eq!(parse(without, 500).0.len(), 2);
}

fn descriptors(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| File::open("/dev/null").unwrap().into()).collect()
}

#[test]
fn descriptors_belong_to_the_request_that_they_came_with() {
    let mut parser = Parser::default();
    // All in one message; then in the head, before the body; then in the second of two that arrive together.
    parser.feed(b"PUT /a HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", descriptors(2)).unwrap();
    let count = |parser: &mut Parser| match parser.take().unwrap() {
        Some(Event::Request(request)) => Some(request.descriptors.len()),
        _ => None,
    };
    assert_eq!(count(&mut parser), Some(2));
    parser.feed(b"PUT /b HTTP/1.1\r\nContent-Length: 3\r\n\r\nx", descriptors(1)).unwrap();
    assert_eq!(count(&mut parser), None);
    parser.feed(b"yz", descriptors(1)).unwrap();
    assert_eq!(count(&mut parser), Some(2));
    parser.feed(b"GET /c HTTP/1.1\r\n\r\nPUT /d HTT", descriptors(3)).unwrap();
    assert_eq!(count(&mut parser), Some(0));
    parser.feed(b"P/1.1\r\n\r\n", []).unwrap();
    assert_eq!(count(&mut parser), Some(3));
    assert_eq!(count(&mut parser), None);
    assert!(parser.is_idle());
}

#[test]
fn descriptors_have_a_limit() {
    let mut parser = Parser::default();
    parser.feed(b"PUT /a ", descriptors(MAX_DESCRIPTORS - 1)).unwrap();
    parser.feed(b"H", descriptors(1)).unwrap();
    assert_eq!(parser.feed(b"T", descriptors(1)), Err(ParseError::Descriptors));
}
