//! What a client of the REST API sends: one byte says in what pieces it arrives, the rest is the stream.
//!
//! It comes to the same requests, and to the same refusal, in whatever pieces; no body is longer than one may be. A
//! body that is a configuration is then made one, or refused.

#![no_main]

use api_client::wire;
use libfuzzer_sys::fuzz_target;
use vmm::{
    api::http::{Event, MAX_BODY, ParseError, Parser},
    config::{VmConfig, wire::IdCounter},
};

fuzz_target!(|input: &[u8]| {
    let Some((piece, stream)) = input.split_first() else { return };
    let (whole, refusal) = parse(stream, stream.len().max(1));
    let (pieces, again) = parse(stream, usize::from(*piece).max(1));
    assert_eq!((&whole, &refusal), (&pieces, &again));
    for body in whole.iter().filter_map(|request| request.split_once('\n')).map(|(_, body)| body) {
        assert!(body.len() <= MAX_BODY);
        if let Ok(mut said) = serde_json::from_str::<wire::VmConfig>(body) {
            let _ = VmConfig::from_wire(&mut said, &mut IdCounter::default());
        }
    }
});

/// What a stream comes to that arrives in pieces: each request as method, path and body, and the refusal.
fn parse(stream: &[u8], piece: usize) -> (Vec<String>, Option<ParseError>) {
    let mut parser = Parser::default();
    let mut requests = Vec::new();
    for bytes in stream.chunks(piece) {
        parser.feed(bytes, []).expect("there are no descriptors");
        loop {
            match parser.take() {
                Ok(Some(Event::Request(request))) => {
                    let body = String::from_utf8_lossy(&request.body);
                    requests.push(format!("{:?} {:?}\n{body}", request.method, request.path));
                }
                Ok(Some(Event::Continue)) => requests.push("continue".to_owned()),
                Ok(None) => break,
                Err(refusal) => return (requests, Some(refusal)),
            }
        }
    }
    (requests, None)
}
