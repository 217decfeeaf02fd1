//! A guest in front of a back end that is one end of a socket pair: one datagram is one frame. And, last,
//! in front of a tap of this host.

use std::{
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    time::Instant,
};

use parking_lot::Mutex;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::{
    device::VirtioDevice,
    features as ring,
    host::{
        rate_limiter::{BucketConfig, RateLimiter},
        tap::{Interface, Taps},
    },
    interrupt::status,
    testing::{
        Buffer, Driver,
        conformance::conformance,
        machine::{DATA, Machine},
    },
    worker::PlainThreads,
};

const MAC: [u8; 6] = [0x2e, 1, 2, 3, 4, 5];

#[derive(Debug, Default)]
struct Fake {
    queues: Vec<Arc<File>>,
    calls: Mutex<Vec<String>>,
}

impl Fake {
    fn new(pairs: u16) -> (Arc<Self>, Vec<UnixDatagram>) {
        let mut fake = Self::default();
        let mut peers = Vec::new();
        for _ in 0..pairs {
            let (ours, theirs) = UnixDatagram::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            fake.queues.push(Arc::new(File::from(OwnedFd::from(ours))));
            peers.push(theirs);
        }
        (Arc::new(fake), peers)
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock())
    }
}

impl NetBackend for Fake {
    fn queue(&self, pair: u16) -> Option<&Arc<File>> {
        self.queues.get(usize::from(pair))
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.calls.lock().push(format!("offloads {} {}", offloads.checksum, offloads.tso4));
        Ok(())
    }

    fn enable_queues(&self, pairs: u16) -> io::Result<()> {
        self.calls.lock().push(format!("pairs {pairs}"));
        Ok(())
    }
}

fn config(pairs: u16) -> NetConfig {
    NetConfig {
        id: "dev0".into(),
        mac: MAC,
        mtu: Some(1500),
        pairs,
        queue_size: 64,
        offload_csum: true,
        offload_tso: true,
        offload_ufo: true,
        receive_limiter: None,
        transmit_limiter: None,
    }
}

fn net(config: NetConfig) -> (Machine, Arc<Fake>, Vec<UnixDatagram>) {
    let (fake, peers) = Fake::new(config.pairs);
    let device = Net::new(config, Arc::clone(&fake) as Arc<_>, Arc::new(PlainThreads));
    (Machine::new(Box::new(device)), fake, peers)
}

fn make() -> Box<dyn VirtioDevice> {
    let (fake, peers) = Fake::new(2);
    // Kept open: a peer that has gone is another matter.
    std::mem::forget(peers);
    Box::new(Net::new(config(2), fake, Arc::new(PlainThreads)))
}

const ALL: u64 = features::MRG_RXBUF
    | features::CTRL_VQ
    | features::MQ
    | features::STATUS
    | features::MAC
    | features::CTRL_MAC_ADDR
    | features::GUEST_ANNOUNCE
    | features::CTRL_GUEST_OFFLOADS
    | features::CSUM
    | features::GUEST_CSUM
    | features::GUEST_TSO4
    | features::HOST_TSO4;

fn formats() -> [u64; 3] {
    [0, ring::RING_EVENT_IDX, ring::RING_PACKED | ring::RING_EVENT_IDX | ring::RING_INDIRECT_DESC]
}

fn send(machine: &mut Machine, driver: &mut Driver, queue: u16, frame: &[u8]) {
    let memory = machine.memory();
    memory.write_slice(frame, GuestAddress(DATA)).unwrap();
    let len = u32::try_from(frame.len()).unwrap();
    let id =
        driver.add(&*memory, &[Buffer::readable(DATA, 12), Buffer::readable(DATA + 12, len - 12)], false);
    assert_eq!(machine.run(driver, queue, id.unwrap()), 0);
}

fn command(machine: &mut Machine, driver: &mut Driver, queue: u16, bytes: &[u8]) -> u8 {
    let memory = machine.memory();
    memory.write_slice(bytes, GuestAddress(DATA)).unwrap();
    memory.write_obj(0xeeu8, GuestAddress(DATA + 0x100)).unwrap();
    let len = u32::try_from(bytes.len()).unwrap();
    let id = driver.add(&*memory, &[Buffer::readable(DATA, len), Buffer::writable(DATA + 0x100, 1)], false);
    assert_eq!(machine.run(driver, queue, id.unwrap()), 1);
    memory.read_obj(GuestAddress(DATA + 0x100)).unwrap()
}

fn drive(machine: &mut Machine) {
    for wanted in formats() {
        let mut drivers = machine.start(wanted | ALL, 16);
        for _ in 0..20 {
            send(machine, &mut drivers[1], 1, &[7; 76]);
        }
        assert_eq!(command(machine, &mut drivers[4], 4, &[4, 0, 2, 0]), 0);
        assert_eq!(command(machine, &mut drivers[4], 4, &[1, 1, 2, 0, 0, 0, 0, 9]), 0);
    }
}

conformance!(conforms, make: make, drive: drive);

fn frame(len: usize, seed: u8) -> Vec<u8> {
    // A header of zeros, as a tap's would be, and content.
    let mut frame = vec![0; 12];
    frame.extend((0..len).map(|index| index.to_le_bytes()[0].wrapping_mul(5).wrapping_add(seed)));
    frame
}

/// Buffers for the guest to receive into, `len` bytes each.
fn post(machine: &mut Machine, driver: &mut Driver, count: u64, len: u32) {
    let memory = machine.memory();
    for index in 0..count {
        let address = DATA + 0x1_0000 + index * u64::from(len);
        driver.add(&*memory, &[Buffer::writable(address, len)], false).unwrap();
    }
    driver.enable_interrupts(&*memory);
    if driver.needs_kick(&*memory) {
        machine.kick(0);
    }
}

/// The next frame that arrives at the guest; buffers are used in the order in which they were posted.
fn arrived(machine: &Machine, driver: &mut Driver, next: &mut u64, len: u32) -> Vec<u8> {
    let memory = machine.memory();
    let mut frame = Vec::new();
    let mut expected = 1;
    let mut seen = 0;
    while seen < expected {
        let Some((_, written)) = driver.take_used(&*memory) else {
            if !driver.enable_interrupts(&*memory) {
                machine.wait_queue(0);
            }
            continue;
        };
        let mut part = vec![0; written as usize];
        memory.read_slice(&mut part, GuestAddress(DATA + 0x1_0000 + *next * u64::from(len))).unwrap();
        *next += 1;
        if seen == 0 {
            expected = u16::from_le_bytes([part[10], part[11]]);
            part[10..12].fill(0);
        }
        frame.extend(part);
        seen += 1;
    }
    frame
}

#[test]
fn frames_arrive_whatever_their_size() {
    for wanted in formats() {
        for (mergeable, len, count) in [(features::MRG_RXBUF, 1536, 60), (0, 65600, 12)] {
            let (mut machine, _, peers) = net(config(1));
            let mut drivers = machine.start(wanted | mergeable, 64);
            post(&mut machine, &mut drivers[0], count, len);
            let mut next = 0;
            // Small ones, then a large one that nobody expected, then one that was.
            for (size, seed) in [(60, 1), (1514, 2), (20_000, 3), (30_000, 4), (64, 5)] {
                let sent = frame(size, seed);
                peers[0].send(&sent).unwrap();
                let seen = arrived(&machine, &mut drivers[0], &mut next, len);
                assert!(seen == sent, "{size} bytes, mergeable {mergeable:#x}, {wanted:#x}");
            }
            let counters = machine.function.lock().counters();
            assert_eq!((counters["rx_frames"], counters["rx_bytes"]), (5, 60 + 1514 + 50_000 + 64));
        }
    }
}

#[test]
fn frames_wait_for_buffers_and_over_a_pause() {
    for wanted in formats() {
        let (mut machine, _, peers) = net(config(1));
        let mut drivers = machine.start(wanted | features::MRG_RXBUF, 64);
        for seed in 0..3 {
            peers[0].send(&frame(100, seed)).unwrap();
        }
        machine.save();
        peers[0].send(&frame(100, 3)).unwrap();
        machine.resume();
        let mut next = 0;
        post(&mut machine, &mut drivers[0], 40, 1536);
        for seed in 0..4 {
            assert_eq!(arrived(&machine, &mut drivers[0], &mut next, 1536), frame(100, seed));
        }
        // Buffers that were taken ahead go back at a halt, and are taken again.
        machine.save();
        peers[0].send(&frame(5000, 9)).unwrap();
        machine.resume();
        assert_eq!(arrived(&machine, &mut drivers[0], &mut next, 1536), frame(5000, 9));
    }
}

#[test]
fn a_restored_device_receives_into_what_was_posted_before() {
    for wanted in formats() {
        let (mut machine, _, peers) = net(config(1));
        let mut drivers = machine.start(wanted | features::MRG_RXBUF, 64);
        let mut next = 0;
        post(&mut machine, &mut drivers[0], 40, 1536);
        peers[0].send(&frame(100, 1)).unwrap();
        arrived(&machine, &mut drivers[0], &mut next, 1536);
        let saved = machine.save();
        let (fake, peers) = Fake::new(1);
        let device = Net::new(config(1), fake, Arc::new(PlainThreads));
        let restored = Machine::restore(&machine, Box::new(device), &saved).unwrap();
        peers[0].send(&frame(4000, 2)).unwrap();
        restored.resume();
        assert_eq!(arrived(&restored, &mut drivers[0], &mut next, 1536), frame(4000, 2));
    }
}

#[test]
fn a_frame_that_does_not_fit_is_dropped_alone() {
    for mergeable in [0, features::MRG_RXBUF] {
        let (mut machine, _, peers) = net(config(1));
        let mut drivers = machine.start(mergeable, 64);
        post(&mut machine, &mut drivers[0], 2, 1536);
        peers[0].send(&frame(9000, 1)).unwrap();
        peers[0].send(&frame(60, 2)).unwrap();
        assert_eq!(arrived(&machine, &mut drivers[0], &mut 0, 1536), frame(60, 2));
        assert_eq!(machine.status() & status::NEEDS_RESET, 0);
    }
}

#[test]
fn frames_of_the_guest_arrive_in_order_though_nobody_takes_them_for_a_while() {
    for wanted in formats() {
        let (mut machine, _, peers) = net(config(1));
        let mut driver = machine.start(wanted, 64).remove(1);
        let memory = machine.memory();
        let mut sent = 0u64;
        let mut add = |machine: &mut Machine, driver: &mut Driver| {
            let at = DATA + sent * 0x1000;
            memory.write_slice(&frame(3000, sent.to_le_bytes()[0]), GuestAddress(at)).unwrap();
            driver.add(&*memory, &[Buffer::readable(at, 3012)], false).unwrap();
            sent += 1;
            if driver.needs_kick(&*memory) {
                machine.kick(1);
            }
        };
        // More than the socket holds.
        for _ in 0..60 {
            add(&mut machine, &mut driver);
        }
        // A pause in between loses none either.
        machine.save();
        machine.resume();
        let mut buffer = vec![0; 4000];
        for seed in 0..60 {
            let count = peers[0].recv(&mut buffer).unwrap();
            assert!(buffer[..count] == frame(3000, seed), "frame {seed}");
        }
        let mut left = 60;
        while left > 0 {
            match driver.take_used(&*memory) {
                Some((_, written)) => {
                    assert_eq!(written, 0);
                    left -= 1;
                }
                None => {
                    if !driver.enable_interrupts(&*memory) {
                        machine.wait_queue(1);
                    }
                }
            }
        }
        let counters = machine.function.lock().counters();
        assert_eq!((counters["tx_frames"], counters["tx_bytes"]), (60, 180_000));
    }
}

#[test]
fn the_control_queue_carries_commands_out() {
    let (mut machine, fake, _peers) = net(config(4));
    let mut control = machine.start(ALL, 16).remove(8);
    assert_eq!(fake.take(), ["pairs 1", "offloads true true"]);
    let mut run = |machine: &mut Machine, bytes: &[u8]| command(machine, &mut control, 8, bytes);
    assert_eq!(run(&mut machine, &[4, 0, 3, 0]), 0);
    assert_eq!(fake.take(), ["pairs 3"]);
    assert_eq!(run(&mut machine, &[4, 0, 0, 0]), 1);
    assert_eq!(run(&mut machine, &[4, 0, 5, 0]), 1);
    assert_eq!(machine.config::<6>(0), MAC);
    assert_eq!(run(&mut machine, &[1, 1, 2, 0, 0, 0, 0, 9]), 0);
    assert_eq!(machine.config::<6>(0), [2, 0, 0, 0, 0, 9]);
    assert_eq!(run(&mut machine, &[5, 0, 2, 0, 0, 0, 0, 0, 0, 0]), 0);
    assert_eq!(fake.take(), ["offloads true false"]);
    // A feature that was not negotiated, commands that nobody knows.
    assert_eq!(run(&mut machine, &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]), 1);
    assert_eq!(run(&mut machine, &[0, 0, 1]), 1);
    assert_eq!(run(&mut machine, &[9, 9]), 1);
    // All of that is saved, and in force again after a restore.
    let saved = machine.save();
    let (fake, _peers) = Fake::new(4);
    let device = Net::new(config(4), Arc::clone(&fake) as Arc<_>, Arc::new(PlainThreads));
    let mut restored = Machine::restore(&machine, Box::new(device), &saved).unwrap();
    assert_eq!(fake.take(), ["pairs 3", "offloads true false"]);
    restored.resume();
    assert_eq!(restored.config::<6>(0), [2, 0, 0, 0, 0, 9]);
    // And gone with a reset.
    restored.start(ALL, 16);
    assert_eq!(fake.take(), ["pairs 1", "offloads true true"]);
    assert_eq!(restored.config::<6>(0), MAC);
}

#[test]
fn a_device_with_fewer_pairs_refuses_the_state() {
    let (mut machine, _, _peers) = net(config(2));
    let mut drivers = machine.start(ALL, 16);
    command(&mut machine, &mut drivers[4], 4, &[4, 0, 2, 0]);
    let saved = machine.save();
    let wrong = saved.replace("\"pairs\":2", "\"pairs\":3");
    assert!(Machine::restore(&machine, make(), &wrong).is_err());
    let wrong = saved.replace("\"chosen_offloads\":null", "\"chosen_offloads\":1");
    assert!(Machine::restore(&machine, make(), &wrong).is_err());
    assert!(Machine::restore(&machine, make(), &saved).is_ok());
}

#[test]
fn without_several_pairs_the_control_queue_is_the_third() {
    let (mut machine, fake, _peers) = net(config(4));
    let mut control = machine.start(ALL & !features::MQ, 16).remove(2);
    fake.take();
    assert_eq!(command(&mut machine, &mut control, 2, &[1, 1, 2, 0, 0, 0, 0, 9]), 0);
    assert_eq!(machine.config::<6>(0), [2, 0, 0, 0, 0, 9]);
    assert_eq!(command(&mut machine, &mut control, 2, &[4, 0, 2, 0]), 1);
}

#[test]
fn the_configuration_space_and_features_follow_the_configuration() {
    let (mut machine, _, _peers) = net(config(4));
    assert_eq!(machine.config::<12>(0)[..], [&MAC[..], &[1, 0, 4, 0, 0xdc, 5]].concat());
    let offered = machine.offered();
    assert_eq!(offered & ALL, ALL);
    let plain = NetConfig { offload_csum: false, mtu: None, ..config(1) };
    let offered = net(plain).0.offered();
    let absent = features::CSUM
        | features::GUEST_CSUM
        | features::GUEST_TSO4
        | features::HOST_UFO
        | features::MTU
        | features::MQ;
    assert_eq!(offered & absent, 0);
}

#[test]
fn features_that_need_others_are_not_accepted_alone() {
    let (mut machine, _, _peers) = net(config(1));
    for alone in [features::GUEST_TSO4, features::HOST_TSO6, features::GUEST_ANNOUNCE, features::GUEST_ECN] {
        machine.set_status(0);
        machine.set_status(status::ACKNOWLEDGE | status::DRIVER);
        machine.write(12, &u32::try_from(alone).unwrap().to_le_bytes());
        machine.write(8, &1u32.to_le_bytes());
        machine.write(12, &1u32.to_le_bytes());
        machine.write(8, &0u32.to_le_bytes());
        machine.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        assert_eq!(machine.status(), status::ACKNOWLEDGE | status::DRIVER, "{alone:#x}");
    }
}

#[test]
fn a_guest_that_moved_is_announced() {
    let (fake, peers) = Fake::new(1);
    let device = Net::new(config(1), fake, Arc::new(PlainThreads));
    let control = device.control();
    let mut machine = Machine::new(Box::new(device));
    let mut drivers = machine.start(ALL, 16);
    control.announce();
    machine.wait_config();
    assert_eq!(machine.config::<2>(6), [3, 0]);
    let mut buffer = [0; 200];
    let count = peers[0].recv(&mut buffer).unwrap();
    assert_eq!(
        (count, &buffer[12..18], &buffer[18..24], &buffer[24..26]),
        (72, &[0xff; 6][..], &MAC[..], &[0x80, 0x35][..])
    );
    // Pending over a restore, until the driver has done it.
    assert!(machine.save().contains("\"announce\":true"));
    machine.resume();
    assert_eq!(command(&mut machine, &mut drivers[2], 2, &[3, 0]), 0);
    assert_eq!(machine.config::<2>(6), [1, 0]);
}

#[test]
fn limits_hold_frames_up_and_lose_none() {
    let limiter = || {
        let bucket = BucketConfig { size: 2, one_time_burst: 0, refill_ms: 20 };
        Some(Arc::new(RateLimiter::new(None, Some(bucket), Instant::now())))
    };
    let limited = NetConfig { receive_limiter: limiter(), transmit_limiter: limiter(), ..config(1) };
    let (mut machine, _, peers) = net(limited);
    let mut drivers = machine.start(features::MRG_RXBUF, 64);
    post(&mut machine, &mut drivers[0], 20, 1536);
    let mut next = 0;
    let mut buffer = [0; 2000];
    for seed in 0..8 {
        peers[0].send(&frame(100, seed)).unwrap();
        send(&mut machine, &mut drivers[1], 1, &frame(200, seed));
    }
    for seed in 0..8 {
        assert_eq!(arrived(&machine, &mut drivers[0], &mut next, 1536), frame(100, seed));
        let count = peers[0].recv(&mut buffer).unwrap();
        assert_eq!(buffer[..count], frame(200, seed));
    }
}

#[test]
fn queues_are_reset_alone() {
    let (mut machine, _, peers) = net(config(1));
    let mut drivers = machine.start(ring::RING_RESET | features::MRG_RXBUF, 64);
    post(&mut machine, &mut drivers[0], 20, 1536);
    peers[0].send(&frame(100, 1)).unwrap();
    arrived(&machine, &mut drivers[0], &mut 0, 1536);
    for queue in 0..2 {
        machine.write16(22, queue);
        machine.write16(58, 1);
        assert_eq!(machine.read16(28), 0);
        drivers[usize::from(queue)] = machine.enable_queue(queue, 32);
    }
    post(&mut machine, &mut drivers[0], 20, 1536);
    peers[0].send(&frame(100, 2)).unwrap();
    assert_eq!(arrived(&machine, &mut drivers[0], &mut 0, 1536), frame(100, 2));
    send(&mut machine, &mut drivers[1], 1, &frame(100, 3));
}

#[test]
fn a_back_end_that_has_gone_is_left_alone() {
    let (mut machine, _, peers) = net(config(1));
    let mut drivers = machine.start(0, 64);
    post(&mut machine, &mut drivers[0], 4, 65600);
    drop(peers);
    // Frames are lost, as on a wire, and the thread still comes to a halt.
    for _ in 0..5 {
        send(&mut machine, &mut drivers[1], 1, &frame(100, 0));
    }
    machine.save();
}

#[test]
fn the_hosts_kernel_answers_over_a_tap() {
    if std::env::var_os("CUMULET_WITHOUT_TAP").is_some_and(|value| value == "1") {
        println!("SKIPPED: CUMULET_WITHOUT_TAP is set");
        return;
    }
    for (number, wanted) in (0..).zip(formats()) {
        let name = format!("cml{:x}n{number}", std::process::id());
        let taps = Arc::new(Taps::open(Some(&name), 1).unwrap());
        let interface = Interface::named(&name);
        let address = [198, 18, number, 1];
        interface.set_address(std::net::IpAddr::from(address), "255.255.255.0".parse().unwrap()).unwrap();
        interface.set_up().unwrap();
        let host_mac = interface.mac().unwrap();
        let device = Net::new(config(1), taps, Arc::new(PlainThreads));
        let mut machine = Machine::new(Box::new(device));
        let mut drivers = machine.start(wanted | features::MRG_RXBUF, 64);
        post(&mut machine, &mut drivers[0], 60, 1536);
        // Who has the host's address?
        let mut request = vec![0; 12];
        request.extend([0xff; 6]);
        request.extend(MAC);
        request.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        request.extend(MAC);
        request.extend([198, 18, number, 2]);
        request.extend([0; 6]);
        request.extend(address);
        send(&mut machine, &mut drivers[1], 1, &request);
        // The host says other things on a new link, too.
        let mut next = 0;
        let answer = loop {
            let frame = arrived(&machine, &mut drivers[0], &mut next, 1536);
            if frame.get(24..26) == Some(&[8, 6][..]) && frame.get(32..34) == Some(&[0, 2][..]) {
                break frame;
            }
        };
        assert_eq!(answer[12..18], MAC);
        assert_eq!(answer[34..40], host_mac);
        assert_eq!(answer[40..44], address);
    }
}
