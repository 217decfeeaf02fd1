use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::{
        atomic::AtomicUsize,
        mpsc::{Receiver, Sender, channel},
    },
};

use tempfile::TempDir;

use super::*;
use crate::api::http::Status;

/// Says the path back; `/later` whenever the test likes; `/big` with more than any socket holds.
struct Echo {
    later: Sender<Responder>,
    big: Arc<[u8]>,
    asked_for_big: Arc<AtomicUsize>,
}

const BIG: usize = 8 << 20;

impl Service for Echo {
    fn serve(&self, request: Request, responder: Responder) {
        match request.path.as_str() {
            "/later" => drop(self.later.send(responder)),
            "/big" => {
                self.asked_for_big.fetch_add(1, Ordering::Relaxed);
                responder.send(Response::json(Status::Ok, Arc::clone(&self.big)));
            }
            // As long as the body of one byte says, in milliseconds.
            "/slow" => {
                std::thread::sleep(Duration::from_millis(request.body.first().copied().unwrap_or(0).into()));
                responder.send(Response::new(Status::NoContent));
            }
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
    asked_for_big: Arc<AtomicUsize>,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = ApiSocket::bind(&directory.path().join("api")).unwrap();
        let (sender, later) = channel();
        let asked_for_big = Arc::new(AtomicUsize::new(0));
        let echo =
            Echo { later: sender, big: vec![b'x'; BIG].into(), asked_for_big: Arc::clone(&asked_for_big) };
        let server = Some(Server::start(socket, Box::new(echo)).unwrap());
        Self { directory, server, later, asked_for_big }
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
fn clients_that_wait_leave_room_for_others() {
    let bench = Bench::new();
    let mut waiting: Vec<UnixStream> = (0..10).map(|_| bench.connect()).collect();
    for client in &mut waiting {
        client.write_all(b"GET /later HTTP/1.1\r\n\r\n").unwrap();
    }
    let responders: Vec<Responder> = waiting.iter().map(|_| bench.later.recv().unwrap()).collect();
    let mut others: Vec<UnixStream> = (0..10).map(|_| bench.connect()).collect();
    for client in &mut others {
        assert_eq!(get(client, "/a"), "/a 0 0");
    }
    // There is an end to that too.
    others[0].write_all(b"GET /later HTTP/1.1\r\n\r\n").unwrap();
    let eleventh = bench.later.recv().unwrap();
    assert!(answer(&mut bench.connect()).starts_with("HTTP/1.1 503"));
    for responder in responders.into_iter().chain([eleventh]) {
        responder.send(Response::json(Status::Ok, "now"));
    }
    for client in waiting.iter_mut().chain(others.first_mut()) {
        assert_eq!(body(client), "now");
    }
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
    let said = answer(&mut client);
    assert!(
        said.starts_with("HTTP/1.1 500 \r\n") && said.contains("\r\nX-Cumulet-Error: unanswered\r\n"),
        "{said}"
    );
    assert!(said.ends_with(r#"["Error from API","The request was dropped without an answer"]"#), "{said}");
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

/// Reads the whole answer to a request for `/big`, resting after each piece.
fn read_big(stream: &mut UnixStream, piece: usize, rest: impl Fn()) -> usize {
    let (mut bytes, mut length) = (vec![0; piece], 0);
    while length < BIG {
        match stream.read(&mut bytes).unwrap() {
            0 => break,
            more => length += more,
        }
        rest();
    }
    length
}

#[test]
fn whoever_takes_an_answer_bit_by_bit_gets_all_of_it() {
    let bench = Bench::new();
    let mut slow = bench.connect();
    slow.write_all(b"GET /big HTTP/1.1\r\n\r\n").unwrap();
    let begun = Instant::now();
    // For longer than a silent client is given, but never silent for so long.
    let rest = || {
        if begun.elapsed() < PATIENCE + Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(300));
        }
    };
    let length = read_big(&mut slow, BIG / 64, rest);
    assert!(length > BIG && begun.elapsed() > PATIENCE + Duration::from_secs(1), "{length}");
    assert_eq!(get(&mut slow, "/a"), "/a 0 0");
}

#[test]
fn whoever_does_not_take_an_answer_is_cut_off() {
    let bench = Bench::new();
    let mut silent = bench.connect();
    silent.write_all(b"GET /big HTTP/1.1\r\n\r\n").unwrap();
    std::thread::sleep(PATIENCE + Duration::from_secs(1));
    let length = read_big(&mut silent, 1 << 16, || ());
    assert!(length < BIG, "{length}");
}

#[test]
fn whoever_asks_and_does_not_listen_is_owed_one_answer() {
    let bench = Bench::new();
    let mut greedy = bench.connect();
    greedy.write_all("GET /big HTTP/1.1\r\n\r\n".repeat(20).as_bytes()).unwrap();
    let mut other = bench.connect();
    for _ in 0..100 {
        get(&mut other, "/a");
    }
    assert_eq!(bench.asked_for_big.load(Ordering::Relaxed), 1);
    // When it listens, it has all of them, one after the other.
    greedy.shutdown(std::net::Shutdown::Write).unwrap();
    let mut bytes = vec![0; 1 << 20];
    let mut length = 0;
    while let more @ 1.. = greedy.read(&mut bytes).unwrap() {
        length += more;
    }
    assert_eq!(bench.asked_for_big.load(Ordering::Relaxed), 20);
    assert!(length > 20 * BIG, "{length}");
}

#[test]
fn long_bodies_take_turns_with_questions() {
    let bench = Bench::new();
    // Eight requests of 200 ms each become whole at the same time.
    let mut writers: Vec<UnixStream> = (0..8).map(|_| bench.connect()).collect();
    let body = vec![200; LONG];
    for writer in &mut writers {
        writer
            .write_all(format!("PUT /slow HTTP/1.1\r\nContent-Length: {}\r\n\r\n", LONG).as_bytes())
            .unwrap();
        writer.write_all(&body[1..]).unwrap();
    }
    let mut asks = bench.connect();
    assert_eq!(get(&mut asks, "/a"), "/a 0 0");
    for writer in &mut writers {
        writer.write_all(&body[..1]).unwrap();
    }
    let begun = Instant::now();
    let mut longest = Duration::ZERO;
    for _ in 0..3 {
        let asked = Instant::now();
        assert_eq!(get(&mut asks, "/b"), "/b 0 0");
        longest = longest.max(asked.elapsed());
    }
    // Three answers: none waited for more than two of the eight, of which some are still to come.
    assert!(
        begun.elapsed() < Duration::from_millis(8 * 200) && longest < Duration::from_millis(4 * 200),
        "{longest:?}"
    );
    for writer in &mut writers {
        assert!(answer(writer).starts_with("HTTP/1.1 204 "));
    }
}
