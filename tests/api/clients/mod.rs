//! What Kata Containers and libvirt send, in their order and their form, and what they expect to come back
//! (rest-api.md, section 8).
//!
//! What they ask for and this version has no machinery for yet is asked for too, and the answer is held
//! against what it has to be until then.

mod kata_go;
mod kata_rust;
mod libvirt;

use std::{
    io::{IoSlice, Read, Write},
    os::{fd::BorrowedFd, unix::net::UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use cumulet_tests::api::{Reply, reply, send};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

/// What libvirt reads of an answer: one read, of so many bytes.
const ONE_READ: usize = 1023;

/// Sends a request in one message, with descriptors.
fn ask_with(stream: &mut UnixStream, endpoint: &str, body: &str, fds: &[BorrowedFd<'_>]) {
    let request = format!(
        "PUT /api/v1/{endpoint} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || beside.push(SendAncillaryMessage::ScmRights(fds)));
    let sent = sendmsg(&mut *stream, &[IoSlice::new(request.as_bytes())], &mut beside, SendFlags::empty());
    assert_eq!(sent, Ok(request.len()));
}

/// Sends a request in one message, with descriptors, and reads the answer.
fn send_with(stream: &mut UnixStream, endpoint: &str, body: &str, fds: &[BorrowedFd<'_>]) -> Reply {
    ask_with(stream, endpoint, body, fds);
    reply(stream)
}

/// The same as libvirt does it: what one read of 1023 bytes brings is the whole answer.
fn send_and_read_once(stream: &mut UnixStream, endpoint: &str, body: &str, fds: &[BorrowedFd<'_>]) -> Reply {
    ask_with(stream, endpoint, body, fds);
    let mut bytes = [0; ONE_READ];
    let length = stream.read(&mut bytes).expect("an answer comes");
    let text = String::from_utf8(bytes[..length].to_vec()).expect("an answer is text");
    let (head, body) = text.split_once("\r\n\r\n").expect("its head is whole");
    let status = head.get(9..12).and_then(|code| code.parse().ok()).expect("it has a status");
    // Nothing is left of it: what comes next is the next answer.
    assert_eq!(send(stream, "GET", "vmm.ping", "").status, 200, "{endpoint}");
    Reply { status, head: head.to_owned(), body: body.to_owned() }
}

/// Restores a VM so, and returns the report that the answer has in brief.
fn restore_and_read_once(stream: &mut UnixStream, body: &Value, fds: &[BorrowedFd<'_>]) -> Value {
    let reply = send_and_read_once(stream, "vm.restore", &body.to_string(), fds);
    assert_eq!((reply.status, reply.body.as_str()), (204, ""), "{reply:?}");
    let report = reply.head.lines().find_map(|line| line.strip_prefix("X-Cumulet-Report: "));
    let report: Value = serde_json::from_str(report.expect("it is told in brief")).expect("it is JSON");
    assert!(report["total_ns"].as_u64().is_some_and(|ns| ns > 0), "{report}");
    report
}

fn done(reply: &Reply) {
    assert!([200, 204].contains(&reply.status), "{reply:?}");
}

/// The status of a refusal and the word for it.
fn refusal(reply: &Reply) -> (u16, &str) {
    let code = reply.head.lines().find_map(|line| line.strip_prefix("X-Cumulet-Error: "));
    (reply.status, code.unwrap_or_default())
}

/// What is asked for is right, and has no machinery yet: an error that says so, `what` among its words.
fn not_there_yet(reply: &Reply, what: &str) {
    assert_eq!(refusal(reply), (500, "unsupported"), "{reply:?}");
    let said: Vec<String> = serde_json::from_str(&reply.body).expect("an error is an array of texts");
    assert_eq!(said[0], "Error from API");
    let last = said.last().expect("there is one");
    assert!(last.contains("his version has no") && last.contains(what), "{said:?}");
    // Kata tries again what says so.
    assert!(!reply.body.contains("Too Many Requests"), "{said:?}");
}

/// A network device as Kata's generated client describes it: with addresses that it never meant.
fn kata_net() -> Value {
    json!({
        "id": "net0", "ip": "192.168.249.1", "mask": "255.255.255.0", "mac": "2e:89:a8:e4:92:00",
        "num_queues": 2, "queue_size": 256, "vhost_user": false, "vhost_mode": "Client", "iommu": false,
        "offload_tso": true, "offload_ufo": true, "offload_csum": true,
        "rate_limiter_config": { "bandwidth": { "size": 1000, "one_time_burst": 0, "refill_time": 100 } },
    })
}

/// The address of a directory.
fn url(directory: &Path) -> String {
    format!("file://{}", directory.display())
}

/// Writes all of a request that is no ordinary one.
fn write(stream: &mut UnixStream, request: &str) {
    stream.write_all(request.as_bytes()).expect("the server reads");
}

/// How long something took, and what came of it.
fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let started = Instant::now();
    let done = work();
    (started.elapsed(), done)
}
