use std::collections::BTreeSet;

use parking_lot::Mutex;

use super::*;
use crate::vsock::{connection::BUFFER, packet::shutdown};

const CID: u32 = 5;

/// What the guest has for an answer.
const LIMIT: Duration = Duration::from_secs(8);
const MOMENT: Duration = Duration::from_nanos(1);

/// A program of the host's, as the test and the switch see it.
#[derive(Clone, Debug, Default)]
struct Program(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// What it has written.
    said: VecDeque<u8>,
    /// What it was sent.
    heard: Vec<u8>,
    /// How much more it takes.
    room: usize,
    says_no_more: bool,
    is_gone: bool,
    heard_the_end: bool,
    may_say_no_more: bool,
}

impl Program {
    fn new(said: &[u8]) -> Self {
        Self(Arc::new(Mutex::new(State {
            said: said.iter().copied().collect(),
            room: 1 << 20,
            ..State::default()
        })))
    }

    fn says(&self, bytes: &[u8]) {
        self.0.lock().said.extend(bytes);
    }

    fn heard(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().heard)
    }

    /// Whether the switch has let go of it.
    fn is_left(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl Stream for Program {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        let count = data.len().min(state.said.len());
        if count == 0 && !state.says_no_more && !state.is_gone {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        for byte in data.iter_mut().take(count) {
            *byte = state.said.pop_front().unwrap();
        }
        Ok(count)
    }

    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        if state.is_gone {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let count = data.len().min(state.room);
        if count == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        state.room -= count;
        state.heard.extend(&data[..count]);
        Ok(count)
    }

    fn end_writing(&mut self) {
        self.0.lock().heard_the_end = true;
    }

    fn end_reading(&mut self) {
        self.0.lock().may_say_no_more = true;
    }

    fn is_hung_up(&self) -> bool {
        self.0.lock().is_gone
    }
}

#[derive(Debug, Default)]
struct Programs {
    callers: VecDeque<Program>,
    listening: BTreeMap<u32, Program>,
}

impl Host for Programs {
    type Stream = Program;

    fn connect(&mut self, port: u32) -> io::Result<Program> {
        self.listening.get(&port).cloned().ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
    }

    fn accept(&mut self) -> io::Result<Program> {
        self.callers.pop_front().ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }
}

fn switch() -> Switch<Programs> {
    Switch::new(CID, Programs::default(), Arc::default(), LIMIT)
}

/// A packet of the guest's.
fn packet(guest: u32, host: u32, operation: u16) -> Header {
    Header {
        source_cid: CID.into(),
        destination_cid: HOST_CID,
        source_port: guest,
        destination_port: host,
        socket_type: STREAM,
        operation,
        buffer: 1 << 20,
        ..Header::default()
    }
}

fn send(switch: &mut Switch<Programs>, guest: u32, host: u32, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).unwrap();
    switch.receive(&Header { len, ..packet(guest, host, operation::RW) }, bytes);
}

/// All that the guest is sent.
fn heard_by_guest(switch: &mut Switch<Programs>) -> Vec<(Header, Vec<u8>)> {
    let mut data = vec![0; 4096];
    let mut all = Vec::new();
    while let Some(header) = switch.next_packet(&mut data) {
        all.push((header, data[..header.len as usize].to_vec()));
    }
    all
}

fn operations(switch: &mut Switch<Programs>) -> Vec<u16> {
    heard_by_guest(switch).into_iter().map(|(header, _)| header.operation).collect()
}

/// A program that listens, and a connection of the guest's to it.
fn connected(switch: &mut Switch<Programs>, guest: u32, host: u32) -> Program {
    let program = Program::new(b"");
    switch.host.listening.insert(host, program.clone());
    switch.receive(&packet(guest, host, operation::REQUEST), &[]);
    switch.host.listening.remove(&host);
    assert_eq!(operations(switch), [operation::RESPONSE]);
    program
}

fn place(switch: &Switch<Programs>, guest: u32, host: u32) -> usize {
    switch.linked[&Ports { host, guest }]
}

/// A program that has called, and the packet that asks the guest.
fn called(switch: &mut Switch<Programs>, line: &[u8]) -> (Program, Vec<(Header, Vec<u8>)>) {
    let program = Program::new(line);
    switch.host.callers.push_back(program.clone());
    switch.accept().unwrap();
    (program, heard_by_guest(switch))
}

#[test]
fn a_guest_calls_a_program() {
    let mut switch = switch();
    let program = connected(&mut switch, 7, 80);
    assert_eq!(switch.take_new(), [0]);
    send(&mut switch, 7, 80, b"hello");
    assert_eq!(program.heard(), b"hello");
    assert!(operations(&mut switch).is_empty());
    program.says(b"and good bye");
    switch.ready(0);
    let said = heard_by_guest(&mut switch);
    assert_eq!(said.len(), 1);
    let (header, bytes) = &said[0];
    let expected = Header {
        source_cid: HOST_CID,
        destination_cid: CID.into(),
        source_port: 80,
        destination_port: 7,
        len: 12,
        socket_type: STREAM,
        operation: operation::RW,
        buffer: BUFFER,
        forwarded: 5,
        flags: 0,
    };
    assert_eq!((header, &bytes[..]), (&expected, &b"and good bye"[..]));
    // Nobody listens on another port, and the answer is a reset.
    switch.receive(&packet(7, 81, operation::REQUEST), &[]);
    let (reset, _) = heard_by_guest(&mut switch).pop().unwrap();
    assert_eq!((reset.operation, reset.source_port, reset.destination_port), (operation::RST, 81, 7));
    switch.receive(&packet(7, 80, operation::RST), &[]);
    assert!(program.is_left() && operations(&mut switch).is_empty());
}

#[test]
fn a_program_calls_the_guest() {
    let mut switch = switch();
    let (program, asked) = called(&mut switch, b"CONNECT 52\nearly");
    let (request, _) = asked[0];
    assert_eq!((request.operation, request.destination_port), (operation::REQUEST, 52));
    assert_eq!(request.source_port, FIRST_HOST_PORT);
    assert!(program.heard().is_empty(), "it is told when the guest has answered");
    switch.receive(&packet(52, FIRST_HOST_PORT, operation::RESPONSE), &[]);
    assert_eq!(program.heard(), format!("OK {FIRST_HOST_PORT}\n").as_bytes());
    assert_eq!(heard_by_guest(&mut switch)[0].1, b"early");
    // The next has another port, and one that the guest refuses is cut off.
    let (refused, asked) = called(&mut switch, b"connect 52\r\n");
    assert_eq!(asked[0].0.source_port, FIRST_HOST_PORT + 1);
    switch.receive(&packet(52, FIRST_HOST_PORT + 1, operation::RST), &[]);
    assert!(refused.is_left() && refused.heard().is_empty());
    assert!(operations(&mut switch).is_empty());
}

#[test]
fn ports_begin_anew_after_the_last_and_pass_over_those_in_use() {
    let mut switch = switch();
    let (_first, _) = called(&mut switch, b"CONNECT 1\n");
    switch.tally.next_port.store(LAST_HOST_PORT, Ordering::Release);
    let ports: Vec<u32> = (0..3).map(|_| called(&mut switch, b"CONNECT 1\n").1[0].0.source_port).collect();
    assert_eq!(ports, [LAST_HOST_PORT, FIRST_HOST_PORT + 1, FIRST_HOST_PORT + 2]);
}

#[test]
fn a_program_that_does_not_say_whom_it_wants_is_cut_off() {
    let mut switch = switch();
    for line in [
        &b"\n"[..],
        b"CONNECT\n",
        b"CONNECT \n",
        b"CONNECT x\n",
        b"CONNECT +1\n",
        b"CONNECT 4294967296\n",
        b"CONNECT 1 2\n",
        b"HELLO 1\n",
        b"\xff\xfe 1\n",
        &[b'x'; MAX_LINE],
    ] {
        let (program, asked) = called(&mut switch, line);
        assert!(program.is_left() && asked.is_empty(), "{line:?}");
    }
    // One that has gone, and one that takes its time.
    let gone = Program::new(b"CONN");
    gone.0.lock().says_no_more = true;
    switch.host.callers.push_back(gone.clone());
    switch.accept().unwrap();
    assert!(gone.is_left());
    let (slow, asked) = called(&mut switch, b"CONN");
    assert!(!slow.is_left() && asked.is_empty());
    slow.says(b"ECT 9\n");
    let at = switch.calling[0];
    switch.ready(at);
    assert_eq!(heard_by_guest(&mut switch)[0].0.destination_port, 9);
    // Too many that say nothing: the first of them goes.
    let silent: Vec<Program> = (0..=MAX_CALLING).map(|_| called(&mut switch, b"").0).collect();
    assert!(silent[0].is_left() && !silent[1].is_left());
    assert_eq!(switch.calling.len(), MAX_CALLING);
}

#[test]
fn a_program_that_does_not_wait_for_the_answer_is_taken_back() {
    let mut switch = switch();
    let (program, asked) = called(&mut switch, b"CONNECT 52\n");
    let port = asked[0].0.source_port;
    program.0.lock().is_gone = true;
    let at = place(&switch, 52, port);
    switch.ready(at);
    assert!(program.is_left());
    assert_eq!(operations(&mut switch), [operation::RST]);
    // The guest's answer comes too late.
    switch.receive(&packet(52, port, operation::RESPONSE), &[]);
    assert_eq!(operations(&mut switch), [operation::RST]);
}

#[test]
fn what_is_wrong_is_answered_with_a_reset() {
    let mut switch = switch();
    let good = packet(7, 80, operation::RW);
    let listening = Program::new(b"");
    switch.host.listening.insert(80, listening.clone());
    for wrong in [
        Header { source_cid: 6, operation: operation::REQUEST, ..good },
        Header { destination_cid: 1, operation: operation::REQUEST, ..good },
        Header { destination_cid: 1 << 32 | 2, operation: operation::REQUEST, ..good },
        Header { socket_type: 2, operation: operation::REQUEST, ..good },
        Header { operation: 0, ..good },
        Header { operation: 99, ..good },
        Header { operation: operation::RESPONSE, ..good },
        Header { operation: operation::CREDIT_UPDATE, ..good },
        good,
    ] {
        switch.receive(&wrong, &[]);
        let said = heard_by_guest(&mut switch);
        assert_eq!(said, [(wrong.reset(), vec![])], "{wrong:?}");
        // A reset is the end of it, whatever it says.
        switch.receive(&Header { operation: operation::RST, ..wrong }, &[]);
        assert!(heard_by_guest(&mut switch).is_empty());
    }
    // Of a connection that is there.
    for wrong in [operation::REQUEST, operation::RESPONSE, 0, 8] {
        let program = connected(&mut switch, 7, 81);
        switch.receive(&packet(7, 81, wrong), &[]);
        assert_eq!(operations(&mut switch), [operation::RST]);
        assert!(program.is_left());
    }
    let program = connected(&mut switch, 7, 81);
    switch.break_off(&Header { len: 1 << 30, ..packet(7, 81, operation::RW) });
    assert_eq!(operations(&mut switch), [operation::RST]);
    assert!(program.is_left());
    // And no stranger breaks it off.
    let program = connected(&mut switch, 7, 81);
    switch.break_off(&Header { source_cid: 9, ..packet(7, 81, operation::RW) });
    assert!(!program.is_left());
}

#[test]
fn a_slow_program_holds_up_its_own_connection_and_no_other() {
    let mut switch = switch();
    let (slow, quick) = (connected(&mut switch, 1, 80), connected(&mut switch, 2, 80));
    slow.0.lock().room = 10;
    let many = vec![3; BUFFER as usize];
    send(&mut switch, 1, 80, &many);
    send(&mut switch, 2, 80, b"hello");
    assert_eq!((slow.heard().len(), quick.heard()), (10, b"hello".to_vec()));
    // The guest knows that there is no more room, and what it sends all the same ends the connection.
    let update = heard_by_guest(&mut switch);
    assert_eq!((update[0].0.operation, update[0].0.forwarded), (operation::CREDIT_UPDATE, 10));
    slow.0.lock().room = 1 << 20;
    let at = place(&switch, 1, 80);
    switch.ready(at);
    assert_eq!(slow.heard().len(), many.len() - 10);
    assert_eq!(heard_by_guest(&mut switch)[0].0.forwarded, BUFFER);
    slow.0.lock().room = 0;
    send(&mut switch, 1, 80, &many);
    send(&mut switch, 1, 80, b"x");
    assert_eq!(operations(&mut switch), [operation::RST]);
    assert!(slow.is_left() && !quick.is_left());
}

#[test]
fn the_guest_gets_no_more_than_it_has_room_for() {
    let mut switch = switch();
    let program = connected(&mut switch, 1, 80);
    let at = place(&switch, 1, 80);
    let update = |forwarded| Header { buffer: 5000, forwarded, ..packet(1, 80, operation::CREDIT_UPDATE) };
    switch.receive(&update(0), &[]);
    program.says(&[9; 12_000]);
    switch.ready(at);
    let said = heard_by_guest(&mut switch);
    let lens: Vec<u32> = said.iter().map(|(header, _)| header.len).collect();
    assert_eq!(lens, [4096, 904, 0]);
    assert_eq!(said[2].0.operation, operation::CREDIT_REQUEST);
    // Asked once, however often the program has more.
    switch.ready(at);
    assert!(operations(&mut switch).is_empty());
    switch.receive(&update(1000), &[]);
    assert_eq!(operations(&mut switch), [operation::RW, operation::CREDIT_REQUEST]);
    switch.receive(&update(6000), &[]);
    switch.receive(&update(6000), &[]);
    let lens: Vec<u32> = heard_by_guest(&mut switch).iter().map(|(header, _)| header.len).collect();
    assert_eq!(lens, [4096, 904, 0]);
    assert_eq!(switch.tally.to_guest.load(Ordering::Relaxed), 11_000);
}

#[test]
fn connections_take_turns() {
    let mut switch = switch();
    let programs: Vec<Program> = (0..3).map(|guest| connected(&mut switch, guest, 80)).collect();
    programs[0].says(&[0; 4 * 4096]);
    programs[1].says(&[0; 4096]);
    programs[2].says(&[0; 2 * 4096]);
    switch.all().into_iter().for_each(|at| switch.ready(at));
    let order: Vec<u32> =
        heard_by_guest(&mut switch).iter().map(|(header, _)| header.destination_port).collect();
    assert_eq!(order, [0, 1, 2, 0, 2, 0, 0]);
    // A buffer without room for bytes takes none, and nobody loses a turn by it.
    programs[0].says(b"x");
    switch.ready(place(&switch, 0, 80));
    assert_eq!(switch.next_packet(&mut []), None);
    assert!(switch.has_packets());
    assert_eq!(heard_by_guest(&mut switch)[0].1, b"x");
}

#[test]
fn each_direction_ends_on_its_own() {
    let mut switch = switch();
    let program = connected(&mut switch, 1, 80);
    let at = place(&switch, 1, 80);
    // The guest sends no more: the program learns so when it has heard everything.
    program.0.lock().room = 2;
    send(&mut switch, 1, 80, b"last");
    let shut = |flags| Header { flags, ..packet(1, 80, operation::SHUTDOWN) };
    switch.receive(&shut(shutdown::SEND), &[]);
    assert!(!program.0.lock().heard_the_end);
    program.0.lock().room = 100;
    switch.ready(at);
    assert!(program.0.lock().heard_the_end);
    assert_eq!(program.heard(), b"last");
    program.says(b"answer");
    program.0.lock().says_no_more = true;
    switch.ready(at);
    let said = heard_by_guest(&mut switch);
    assert_eq!(said[0].1, b"answer");
    assert_eq!((said[1].0.operation, said[1].0.flags), (operation::SHUTDOWN, shutdown::SEND));
    assert_eq!(said.len(), 2);
    switch.receive(&shut(shutdown::RECEIVE), &[]);
    assert_eq!(operations(&mut switch), [operation::RST]);
    assert!(program.is_left() && switch.linked.is_empty());

    // A guest that receives no more.
    let program = connected(&mut switch, 1, 80);
    switch.receive(&shut(shutdown::RECEIVE), &[]);
    assert!(program.0.lock().may_say_no_more);
    program.says(b"into the void");
    let at = place(&switch, 1, 80);
    switch.ready(at);
    assert!(operations(&mut switch).is_empty());
    program.0.lock().is_gone = true;
    switch.ready(at);
    let said = heard_by_guest(&mut switch);
    assert_eq!((said[0].0.operation, said[0].0.flags), (operation::SHUTDOWN, shutdown::BOTH));
}

#[test]
fn what_the_guest_has_said_reaches_a_slow_program_after_the_guest_is_done() {
    let mut switch = switch();
    let program = connected(&mut switch, 1, 80);
    let at = place(&switch, 1, 80);
    program.0.lock().room = 1;
    send(&mut switch, 1, 80, b"last words");
    switch.receive(&Header { flags: shutdown::BOTH, ..packet(1, 80, operation::SHUTDOWN) }, &[]);
    assert_eq!(operations(&mut switch), [operation::RST]);
    assert!(!program.is_left());
    // The ports are free at once.
    let next = connected(&mut switch, 1, 80);
    assert!(!next.is_left());
    program.0.lock().room = 100;
    switch.ready(at);
    assert!(program.is_left());
    assert_eq!(program.heard(), b"last words");
}

#[test]
fn a_program_that_goes_ends_both_directions() {
    let mut switch = switch();
    let program = connected(&mut switch, 1, 80);
    program.says(b"bye");
    program.0.lock().is_gone = true;
    let at = place(&switch, 1, 80);
    switch.ready(at);
    let said = heard_by_guest(&mut switch);
    assert_eq!(said[0].1, b"bye");
    assert_eq!((said[1].0.operation, said[1].0.flags), (operation::SHUTDOWN, shutdown::BOTH));
    // What the guest sends meanwhile is dropped, and the guest's word ends it.
    send(&mut switch, 1, 80, b"too late");
    assert!(operations(&mut switch).is_empty());
    switch.receive(&packet(1, 80, operation::RST), &[]);
    assert!(program.is_left());
    // One that is found to be gone when it is written to.
    let program = connected(&mut switch, 1, 80);
    program.0.lock().is_gone = true;
    send(&mut switch, 1, 80, b"hello");
    let said = heard_by_guest(&mut switch);
    assert_eq!((said[0].0.operation, said[0].0.flags), (operation::SHUTDOWN, shutdown::BOTH));
}

/// So much time passes; whatever the guest has not answered by then is given up.
fn pass(switch: &mut Switch<Programs>, time: Duration) {
    switch.set_time(switch.now + time);
    switch.give_up();
}

/// A program that goes, and the guest has been told.
fn gone(switch: &mut Switch<Programs>, guest: u32) -> Program {
    let program = connected(switch, guest, 80);
    program.0.lock().is_gone = true;
    switch.ready(place(switch, guest, 80));
    assert_eq!(operations(switch), [operation::SHUTDOWN]);
    program
}

#[test]
fn a_guest_that_does_not_answer_a_shutdown_in_time_is_reset() {
    let mut switch = switch();
    let begin = Duration::from_secs(100);
    switch.set_time(begin);
    let program = gone(&mut switch, 1);
    assert_eq!(switch.next_limit(), Some(begin + LIMIT));
    // Nothing that it says but the end prolongs its time.
    pass(&mut switch, LIMIT / 2);
    send(&mut switch, 1, 80, b"still here");
    switch.receive(&packet(1, 80, operation::CREDIT_REQUEST), &[]);
    let shut = Header { flags: shutdown::SEND, ..packet(1, 80, operation::SHUTDOWN) };
    switch.receive(&shut, &[]);
    assert_eq!(operations(&mut switch), [operation::CREDIT_UPDATE]);
    pass(&mut switch, LIMIT / 2 - MOMENT);
    assert!(!program.is_left());
    pass(&mut switch, MOMENT);
    assert!(program.is_left() && switch.linked.is_empty());
    let said = heard_by_guest(&mut switch);
    let (reset, _) = said[0];
    assert_eq!((reset.operation, reset.source_port, reset.destination_port), (operation::RST, 80, 1));
    assert_eq!((said.len(), switch.next_limit()), (1, None));
}

#[test]
fn a_guest_that_does_not_answer_a_request_in_time_is_reset() {
    let mut switch = switch();
    let (program, asked) = called(&mut switch, b"CONNECT 52\n");
    let port = asked[0].0.source_port;
    pass(&mut switch, LIMIT - MOMENT);
    assert!(!program.is_left());
    pass(&mut switch, MOMENT);
    assert!(program.is_left() && program.heard().is_empty());
    assert_eq!(operations(&mut switch), [operation::RST]);
    switch.receive(&packet(52, port, operation::RESPONSE), &[]);
    assert_eq!(operations(&mut switch), [operation::RST], "too late");
    // One that takes no packets keeps nothing by that, and hears of nothing.
    let unheard = Program::new(b"CONNECT 52\n");
    switch.host.callers.push_back(unheard.clone());
    switch.accept().unwrap();
    assert!(switch.has_packets());
    pass(&mut switch, LIMIT);
    assert!(unheard.is_left() && !switch.has_packets());
    assert_eq!(switch.next_limit(), None);
}

#[test]
fn only_what_waits_for_an_answer_has_a_limit() {
    let mut switch = switch();
    // Connections that are made, whoever asked, also if one side is done.
    let (called, asked) = called(&mut switch, b"CONNECT 52\n");
    switch.receive(&packet(52, asked[0].0.source_port, operation::RESPONSE), &[]);
    assert_eq!(switch.next_limit(), None);
    let half = connected(&mut switch, 1, 80);
    half.0.lock().says_no_more = true;
    switch.ready(place(&switch, 1, 80));
    assert_eq!(operations(&mut switch), [operation::SHUTDOWN]);
    assert_eq!(switch.next_limit(), None);
    // Those that the guest has ended, by either of its words; a place that is taken again has its own time.
    for last in [operation::RST, operation::SHUTDOWN] {
        let program = gone(&mut switch, 2);
        assert_eq!(switch.next_limit(), Some(switch.now + LIMIT));
        switch.receive(&Header { flags: shutdown::BOTH, ..packet(2, 80, last) }, &[]);
        assert!(program.is_left());
        assert_eq!(switch.next_limit(), None);
        heard_by_guest(&mut switch);
        pass(&mut switch, LIMIT / 2);
    }
    let (first, second) = (gone(&mut switch, 3), connected(&mut switch, 4, 80));
    pass(&mut switch, LIMIT / 2);
    second.0.lock().is_gone = true;
    switch.ready(place(&switch, 4, 80));
    assert_eq!(operations(&mut switch), [operation::SHUTDOWN]);
    pass(&mut switch, LIMIT / 2);
    assert!(first.is_left() && !second.is_left());
    pass(&mut switch, 100 * LIMIT);
    assert!(second.is_left() && !called.is_left() && !half.is_left());
}

#[test]
fn places_of_a_guest_that_answers_nothing_come_back() {
    let mut switch = switch();
    for _ in 0..3 {
        // As many as come, not only one for each place.
        let programs: Vec<Program> =
            (0..MAX_PLACES + 10).map(|_| called(&mut switch, b"CONNECT 1\n").0).collect();
        assert_eq!(programs.iter().filter(|program| !program.is_left()).count(), MAX_PLACES);
        pass(&mut switch, LIMIT);
        assert!(programs.iter().all(Program::is_left));
        assert_eq!(operations(&mut switch), vec![operation::RST; MAX_PLACES]);
        assert!(switch.all().is_empty() && switch.awaiting.is_empty() && switch.turns.is_empty());
    }
}

#[test]
fn there_is_a_bound_to_everything() {
    let mut switch = switch();
    let programs: Vec<Program> =
        (0..).take(MAX_PLACES).map(|guest| connected(&mut switch, guest, 80)).collect();
    assert_eq!(switch.take_new().len(), MAX_PLACES);
    switch.host.listening.insert(80, Program::new(b""));
    switch.receive(&packet(5000, 80, operation::REQUEST), &[]);
    assert_eq!(operations(&mut switch), [operation::RST]);
    let (cut_off, asked) = called(&mut switch, b"CONNECT 1\n");
    assert!(cut_off.is_left() && asked.is_empty());
    // One that the host is done with gives its place up, though the guest has not answered.
    programs[7].0.lock().is_gone = true;
    switch.ready(place(&switch, 7, 80));
    assert_eq!(operations(&mut switch), [operation::SHUTDOWN]);
    switch.receive(&packet(5000, 80, operation::REQUEST), &[]);
    assert_eq!(operations(&mut switch), [operation::RST, operation::RESPONSE]);
    assert!(programs[7].is_left());
    // Resets that the guest does not take keep its packets away.
    for _ in 0..MAX_RESETS {
        assert!(switch.takes_packets());
        switch.receive(&packet(1, 1, operation::RW), &[]);
    }
    assert!(!switch.takes_packets());
    assert!(switch.next_packet(&mut []).is_some());
    assert!(switch.takes_packets());
    // Each place is listed once.
    let all: BTreeSet<usize> = switch.all().into_iter().collect();
    assert_eq!(all.len(), MAX_PLACES);
}
