//! A network peer that answers by itself: ARP, ping (ICMP echo), and UDP echo on port 7, while the program waits for
//! orders. A host can so see from outside how long a guest was away.
//!
//! A frame is answered in the buffer that it came in, which goes back to the receive queue when it has been sent.

use test_guest::orders::{Malformed, Words, ipv4};

use super::Program;
use super::net_orders::{HEADER_BYTES, add_frame, buffer_of, give_back};
use super::reply::{OrderError, say};
use crate::cpu::{Width, read, write};
use crate::pci::Bdf;
use crate::virtio::KIND_NET;

const FRAMES_MAX: u32 = 64;

// Offsets in a frame (Ethernet; ARP for IPv4; IPv4 without options), and the values there, as they are read.
const ETHERTYPE: u64 = 12;
const ETHERTYPE_ARP: u64 = 0x0608;
const ETHERTYPE_IPV4: u64 = 0x0008;
const ARP_OPERATION: u64 = 20;
const ARP_REQUEST: u64 = 0x0100;
const ARP_REPLY: u64 = 0x0200;
const ARP_SENDER_MAC: u64 = 22;
const ARP_SENDER_IP: u64 = 28;
const ARP_TARGET_MAC: u64 = 32;
const ARP_TARGET_IP: u64 = 38;
const IP_VERSION: u64 = 14;
const IP_WITHOUT_OPTIONS: u64 = 0x45;
const IP_PROTOCOL: u64 = 23;
const IP_SOURCE: u64 = 26;
const IP_TARGET: u64 = 30;
const PROTOCOL_ICMP: u64 = 1;
const PROTOCOL_UDP: u64 = 17;
const ICMP_TYPE: u64 = 34;
const ICMP_CHECKSUM: u64 = 36;
const ICMP_ECHO: u64 = 8;
const UDP_SOURCE: u64 = 34;
const UDP_TARGET: u64 = 36;
const UDP_ECHO: u64 = 0x0700;
const FRAME_MIN: u32 = 42;

/// The peer.
#[derive(Debug)]
pub struct Server {
    bdf: Bdf,
    mac: [u8; 6],
    ip: u64,
    answered: u64,
    ignored: u64,
}

impl Program {
    /// `vnet-serve BDF IP` starts; `vnet-serve stop` stops; `vnet-serve` tells the counts.
    pub(super) fn vnet_serve(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let Some(bdf) = words.optional_word() else {
            let (answered, ignored) = self.server.as_ref().map_or((0, 0), |it| (it.answered, it.ignored));
            say!(self.reply, " answered={answered} ignored={ignored}");
            return Ok(());
        };
        if bdf == "stop" {
            words.end()?;
            self.server = None;
            return Ok(());
        }
        let bdf = Bdf(test_guest::orders::bdf(bdf).ok_or(Malformed::NotABdf)?);
        let ip = ipv4(words.word("IP")?).ok_or(Malformed::NotANumber { what: "IP" })?;
        words.end()?;
        let device = self.virtio.device(bdf)?;
        if device.transport.kind != KIND_NET {
            return Err(OrderError::Refused("the device is no network device"));
        }
        let mut mac = [0; 6];
        for (offset, byte) in (0..).zip(&mut mac) {
            *byte = device.transport.config(offset, Width::Byte).to_le_bytes()[0];
        }
        let ip = u64::from(u32::from_le_bytes(ip));
        self.server = Some(Server { bdf, mac, ip, answered: 0, ignored: 0 });
        Ok(())
    }

    /// Answers what has come. Returns whether anything had.
    pub(super) fn serve(&mut self) -> bool {
        let Some(server) = &mut self.server else {
            return false;
        };
        let Ok(pairs) = self.virtio.device(server.bdf).map(|device| device.data_queues / 2) else {
            return false;
        };
        let mut busy = false;
        for pair in 0..pairs {
            // Buffers of answers that have been sent go back to the receive queue.
            while let Ok(transmit) = self.virtio.queue(server.bdf, 2 * pair + 1)
                && let Some((id, _)) = transmit.take_used()
            {
                if let Some(buffer) = buffer_of(transmit, id) {
                    give_back(&mut self.virtio, server.bdf, 2 * pair, buffer);
                }
            }
            for _ in 0..FRAMES_MAX {
                let Ok(receive) = self.virtio.queue(server.bdf, 2 * pair) else {
                    break;
                };
                let Some((id, len)) = receive.take_used() else {
                    break;
                };
                let Some(buffer) = buffer_of(receive, id) else {
                    break;
                };
                busy = true;
                let len = len.saturating_sub(HEADER_BYTES);
                let room = self.virtio.queue(server.bdf, 2 * pair + 1).is_ok_and(|queue| queue.has_room(2));
                if room && server.answer(buffer, len) {
                    server.answered += 1;
                    if let Ok(transmit) = self.virtio.queue(server.bdf, 2 * pair + 1) {
                        add_frame(transmit, buffer, len, Some(buffer));
                        transmit.notify();
                    }
                } else {
                    server.ignored += 1;
                    give_back(&mut self.virtio, server.bdf, 2 * pair, buffer);
                }
            }
        }
        busy
    }
}

impl Server {
    pub fn bdf(&self) -> Bdf {
        self.bdf
    }

    /// Turns the frame into its answer. Returns whether it has one.
    fn answer(&self, frame: u64, len: u32) -> bool {
        if len < FRAME_MIN {
            return false;
        }
        match read(frame + ETHERTYPE, Width::Word) {
            ETHERTYPE_ARP => self.answer_arp(frame),
            ETHERTYPE_IPV4 => self.answer_ip(frame),
            _ => false,
        }
    }

    fn answer_arp(&self, frame: u64) -> bool {
        let asked = read(frame + ARP_TARGET_IP, Width::Long);
        if read(frame + ARP_OPERATION, Width::Word) != ARP_REQUEST || asked != self.ip {
            return false;
        }
        write(frame + ARP_OPERATION, Width::Word, ARP_REPLY);
        copy(frame + ARP_SENDER_MAC, frame + ARP_TARGET_MAC, 10);
        self.put_mac(frame + ARP_SENDER_MAC);
        write(frame + ARP_SENDER_IP, Width::Long, self.ip);
        self.turn_round(frame);
        true
    }

    fn answer_ip(&self, frame: u64) -> bool {
        let is_ours = read(frame + IP_VERSION, Width::Byte) == IP_WITHOUT_OPTIONS
            && read(frame + IP_TARGET, Width::Long) == self.ip;
        match read(frame + IP_PROTOCOL, Width::Byte) {
            _ if !is_ours => return false,
            PROTOCOL_ICMP if read(frame + ICMP_TYPE, Width::Byte) == ICMP_ECHO => {
                // The type goes from 8 to 0, so the checksum grows by 8 in its first byte, with end-around carry.
                write(frame + ICMP_TYPE, Width::Byte, 0);
                let sum = read(frame + ICMP_CHECKSUM, Width::Word) + ICMP_ECHO;
                write(frame + ICMP_CHECKSUM, Width::Word, (sum & 0xffff) + (sum >> 16));
            }
            PROTOCOL_UDP if read(frame + UDP_TARGET, Width::Word) == UDP_ECHO => {
                // Sums do not depend on order, so exchanging ports and addresses leaves all checksums right.
                copy(frame + UDP_SOURCE, frame + UDP_TARGET, 2);
                write(frame + UDP_SOURCE, Width::Word, UDP_ECHO);
            }
            _ => return false,
        }
        copy(frame + IP_SOURCE, frame + IP_TARGET, 4);
        write(frame + IP_SOURCE, Width::Long, self.ip);
        self.turn_round(frame);
        true
    }

    /// Sends the frame back to whom it came from.
    fn turn_round(&self, frame: u64) {
        copy(frame + 6, frame, 6);
        self.put_mac(frame + 6);
    }

    fn put_mac(&self, at: u64) {
        for (offset, byte) in (0..).zip(self.mac) {
            write(at + offset, Width::Byte, byte.into());
        }
    }
}

fn copy(from: u64, to: u64, len: u64) {
    for offset in 0..len {
        write(to + offset, Width::Byte, read(from + offset, Width::Byte));
    }
}
