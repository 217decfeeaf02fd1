use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::mpsc::{Receiver, Sender, channel},
};

use tempfile::TempDir;

use super::*;

/// Says the path back; `/later` whenever the test likes.
struct Echo(Sender<Responder>);

impl Service for Echo {
    fn serve(&self, request: Request, responder: Responder) {
        match request.path.as_str() {
            "/later" => drop(self.0.send(responder)),
            "/never" => {}
            _ => {
                let said = format!("{} {} {}", request.path, request.body.len(), request.descriptors.len());
                responder.send(Response::json(Status::Ok, said));
            }
        }
    }
}

struct Bench {
    directory: TempDir,
    server: Option<Server>,
    later: Receiver<Responder>,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = ApiSocket::bind(&directory.path().join("api")).unwrap();
        let (sender, later) = channel();
        let server = Some(Server::start(socket, Box::new(Echo(sender))).unwrap());
        Self { directory, server, later }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.directory.path().join("api")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }
}

/// What one read gives: an answer is one write.
fn answer(stream: &mut UnixStream) -> String {
    let mut bytes = [0; 4096];
    let length = stream.read(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

fn body(stream: &mut UnixStream) -> String {
    answer(stream).split_once("\r\n\r\n").unwrap_or_default().1.to_owned()
}

fn get(stream: &mut UnixStream, path: &str) -> String {
    stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
    body(stream)
}

#[test]
fn a_connection_serves_one_request_after_the_other() {
    let bench = Bench::new();
    let mut client = bench.connect();
    assert_eq!(get(&mut client, "/a"), "/a 0 0");
    client.write_all(b"PUT /b HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").unwrap();
    assert!(answer(&mut client).starts_with("HTTP/1.1 100 \r\n"));
    client.write_all(b"12345").unwrap();
    assert_eq!(body(&mut client), "/b 5 0");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let bench = Bench::new();
    let mut client = bench.connect();
    client.write_all(b"GET /later HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\nPOST /c HTTP/1.1\r\n\r\n").unwrap();
    let responder = bench.later.recv().unwrap();
    // Others are served meanwhile.
    assert_eq!(get(&mut bench.connect(), "/other"), "/other 0 0");
    responder.send(Response::json(Status::Ok, "first"));
    let mut all = String::new();
    client.read_to_string(&mut all).unwrap();
    let at = |text: &str| all.find(text).unwrap_or_else(|| panic!("{text} in {all}"));
    assert!(at("first") < at("/b 0 0") && at("/b 0 0") < at("Unsupported HTTP method"));
}

#[test]
fn what_is_no_request_is_told_and_no_more() {
    let bench = Bench::new();
    let mut client = bench.connect();
    client.write_all(b"PUT /a HTTP/1.1\r\nContent-Length: 104857600\r\n\r\n").unwrap();
    let said = answer(&mut client);
    assert!(said.starts_with("HTTP/1.1 400 \r\nServer: Firecracker API\r\n"), "{said}");
    // The body is thrown away, so that a client that sends all of it first can read the answer.
    for _ in 0..64 {
        client.write_all(&[b'x'; 1 << 16]).unwrap();
    }
    assert_eq!(client.read(&mut [0; 10]).unwrap(), 0);
    assert_eq!(get(&mut bench.connect(), "/a"), "/a 0 0");
}

#[test]
fn the_eleventh_client_is_sent_away() {
    let bench = Bench::new();
    let mut clients: Vec<UnixStream> = (0..10).map(|_| bench.connect()).collect();
    for client in &mut clients {
        assert_eq!(get(client, "/a"), "/a 0 0");
    }
    let mut more = bench.connect();
    let mut said = String::new();
    more.read_to_string(&mut said).unwrap();
    assert_eq!(said.as_bytes(), Response::no_room());
    // One that leaves makes room.
    drop(clients.pop());
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(get(&mut bench.connect(), "/b"), "/b 0 0");
}

#[test]
fn silent_clients_lock_nobody_out() {
    let bench = Bench::new();
    // Silent from the first; in the middle of a request; answered before, of which one goes to make room.
    let mut silent: Vec<UnixStream> = (0..2).map(|_| bench.connect()).collect();
    silent[0].write_all(b"GET /half HTT").unwrap();
    let mut known: Vec<UnixStream> = (0..8).map(|_| bench.connect()).collect();
    for client in &mut known {
        get(client, "/a");
    }
    let begun = Instant::now();
    for client in &mut silent {
        assert_eq!(client.read(&mut [0; 10]).unwrap(), 0);
    }
    assert!(begun.elapsed() < PATIENCE + Duration::from_secs(2), "{:?}", begun.elapsed());
    // With room to spare, those that were answered before stay for as long as they like.
    for client in &mut known {
        assert_eq!(get(client, "/b"), "/b 0 0");
    }
}

#[test]
fn when_there_is_no_room_the_one_idle_for_longest_goes() {
    let bench = Bench::new();
    let mut known: Vec<UnixStream> = (0..10).map(|_| bench.connect()).collect();
    for client in &mut known {
        get(client, "/a");
    }
    assert_eq!(known[0].read(&mut [0; 10]).unwrap(), 0);
    assert_eq!(get(&mut bench.connect(), "/b"), "/b 0 0");
    assert_eq!(get(&mut known[9], "/c"), "/c 0 0");
}

#[test]
fn an_answer_that_does_not_come_is_an_error() {
    let bench = Bench::new();
    let mut client = bench.connect();
    client.write_all(b"GET /never HTTP/1.1\r\n\r\n").unwrap();
    assert!(answer(&mut client).starts_with("HTTP/1.1 500 \r\n"));
    // A client that leaves before its answer is no error.
    client.write_all(b"GET /later HTTP/1.1\r\n\r\n").unwrap();
    let responder = bench.later.recv().unwrap();
    drop(client);
    responder.send(Response::new(Status::Ok));
    assert_eq!(get(&mut bench.connect(), "/a"), "/a 0 0");
}

#[test]
fn the_end_waits_for_answers_that_are_due() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    client.write_all(b"GET /later HTTP/1.1\r\n\r\n").unwrap();
    let responder = bench.later.recv().unwrap();
    responder.send(Response::json(Status::Ok, "bye"));
    bench.server.take().unwrap().stop().unwrap().remove();
    assert_eq!(body(&mut client), "bye");
    assert_eq!(std::fs::read_dir(bench.directory.path()).unwrap().count(), 1);
}

#[test]
fn a_thousand_clients_that_only_connect_cost_nothing() {
    let bench = Bench::new();
    let mut known = bench.connect();
    get(&mut known, "/a");
    for _ in 0..1000 {
        drop(bench.connect());
    }
    assert_eq!(get(&mut known, "/b"), "/b 0 0");
}

#[test]
fn descriptors_arrive_with_their_request() {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let bench = Bench::new();
    let client = bench.connect();
    let send = |bytes: &[u8], count: usize| {
        let files: Vec<_> = (0..count).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        assert!(beside.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(&client, &[std::io::IoSlice::new(bytes)], &mut beside, SendFlags::empty()).unwrap();
    };
    send(b"PUT /a HTTP/1.1\r\nContent-Length: 2\r\n\r\n", 3);
    send(b"xx", 200);
    let mut client = client;
    assert_eq!(body(&mut client), "/a 2 203");
}
