//! Clients that take their time.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    thread,
    time::{Duration, Instant},
};

use cumulet_tests::{api::Vmm, cumulet};

/// As many as are let in at a time.
const CLIENTS: usize = 10;
/// Longest time for a request, and some more for a machine that does other work too.
const ROOM_MAX: Duration = Duration::from_secs(30);

#[test]
fn clients_that_drip_do_not_lock_others_out() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let vmm = Vmm::start::<&str>(&[]);
    let begun = Instant::now();
    let mut dripping: Vec<UnixStream> = (0..CLIENTS).map(|_| vmm.connect()).collect();
    for client in &dripping {
        client.set_nonblocking(true).unwrap();
    }
    // Never silent, and never done: a head of which each line is short enough.
    let head = b"PUT /api/v1/vm.create HTTP/1.1\r\nX-A: b\r\n";
    let mut sent = 0;
    while !dripping.is_empty() {
        assert!(begun.elapsed() < ROOM_MAX, "{} of them are still there", dripping.len());
        let byte = head[if sent < head.len() { sent } else { sent % 8 + head.len() - 8 }];
        sent += 1;
        dripping.retain_mut(|client| {
            let is_there = !matches!(client.read(&mut [0; 1]), Ok(0));
            is_there && client.write(&[byte]).is_ok()
        });
        thread::sleep(Duration::from_millis(200));
    }
    // They had their time, though.
    assert!(begun.elapsed() > Duration::from_secs(9), "{:?}", begun.elapsed());
    vmm.client().ping().unwrap();
}

#[test]
fn one_that_takes_its_time_for_each_request_is_served() {
    if !cumulet::kvm_is_usable() {
        return;
    }
    let vmm = Vmm::start::<&str>(&[]);
    let mut client = vmm.connect();
    for _ in 0..2 {
        for byte in b"GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n" {
            client.write_all(&[*byte]).unwrap();
            thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(cumulet_tests::api::reply(&mut client).status, 200);
    }
}
