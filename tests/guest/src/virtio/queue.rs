//! One virtqueue of either format, with its notification and its interrupt.
//!
//! A queue is plain words in guest memory, as is everything that it points to, so it stays live over a snapshot.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use test_guest::ring::{self, DESCRIPTOR_BYTES};

use super::packed::Packed;
use super::split::Split;
use crate::cpu::{self, Width, write};
use crate::pci::Moved;
use crate::{apic, interrupts, smp};

pub const FLAG_NEXT: u64 = 1;
pub const FLAG_WRITE: u64 = 2;
pub const FLAG_INDIRECT: u64 = 4;

/// Descriptors in the indirect table of a chain.
const INDIRECT_MAX: u64 = 4;

/// Memory of the driver's own for each chain: a request's header, its status, and notes of the driver.
pub const NOTE_BYTES: u64 = 64;

/// How long a device may take to use a chain: a few seconds.
const ANSWER_TSC: u64 = 20_000_000_000;
/// The wait for an interrupt is looked after at this pace, so that a lost one is noticed.
const LOOK_COUNTS: u64 = apic::TIMER_HZ / 100;

/// A piece of memory handed to the device.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub address: u64,
    pub len_bytes: u32,
    pub device_writes: bool,
    pub indirect: bool,
}

impl Segment {
    pub fn read(address: u64, len_bytes: u32) -> Self {
        Self { address, len_bytes, device_writes: false, indirect: false }
    }

    pub fn write(address: u64, len_bytes: u32) -> Self {
        Self { address, len_bytes, device_writes: true, indirect: false }
    }

    pub fn flags(&self) -> u64 {
        (if self.device_writes { FLAG_WRITE } else { 0 }) | if self.indirect { FLAG_INDIRECT } else { 0 }
    }
}

/// How a queue is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub size: u16,
    pub packed: bool,
    pub event_idx: bool,
    pub indirect: bool,
    pub interrupts: bool,
    pub notification_data: bool,
}

impl Setup {
    /// Memory that a queue needs.
    pub fn len_bytes(&self) -> u64 {
        let ring = if self.packed { ring::packed(self.size) } else { ring::split(self.size) };
        ring.len_bytes.next_multiple_of(NOTE_BYTES)
            + NOTE_BYTES * u64::from(self.size)
            + Packed::ids_len_bytes(self.size).next_multiple_of(NOTE_BYTES)
            + if self.indirect { INDIRECT_MAX * DESCRIPTOR_BYTES * u64::from(self.size) } else { 0 }
    }
}

/// The two formats.
#[derive(Debug)]
pub enum Ring {
    Split(Split),
    Packed(Packed),
}

macro_rules! either {
    ($ring:expr, $part:ident => $do:expr) => {
        match $ring {
            Ring::Split($part) => $do,
            Ring::Packed($part) => $do,
        }
    };
}

/// A queue in use.
#[derive(Debug)]
pub struct Queue {
    pub index: u16,
    pub ring: Ring,
    /// Vector of its interrupt; `None` if it is polled.
    pub vector: Option<u8>,
    notify_address: u64,
    notification_data: bool,
    notes: u64,
    indirect_tables: Option<u64>,
    /// Notifications sent.
    pub notifications: u64,
    /// Chains used.
    pub answers: u64,
}

impl Queue {
    /// Follows the BAR that has the notification address.
    pub fn follow(&mut self, moved: Moved) {
        self.notify_address = moved.to(self.notify_address);
    }

    /// Makes an empty queue in zeroed memory of `setup.len_bytes()`.
    pub fn new(index: u16, address: u64, setup: &Setup, notify_address: u64, vector: Option<u8>) -> Self {
        let ring = if setup.packed { ring::packed(setup.size) } else { ring::split(setup.size) };
        let notes = address + ring.len_bytes.next_multiple_of(NOTE_BYTES);
        let ids = notes + NOTE_BYTES * u64::from(setup.size);
        let tables = ids + Packed::ids_len_bytes(setup.size).next_multiple_of(NOTE_BYTES);
        let ring = if setup.packed {
            Ring::Packed(Packed::new(address, ids, setup))
        } else {
            Ring::Split(Split::new(address, setup))
        };
        Self {
            index,
            ring,
            vector,
            notify_address,
            notification_data: setup.notification_data,
            notes,
            indirect_tables: setup.indirect.then_some(tables),
            notifications: 0,
            answers: 0,
        }
    }

    pub fn size(&self) -> u16 {
        either!(&self.ring, ring => ring.size)
    }

    /// Addresses of the descriptor area, the driver area and the device area.
    pub fn areas(&self) -> [u64; 3] {
        match &self.ring {
            Ring::Split(ring) => [ring.descriptors, ring.available, ring.used],
            Ring::Packed(ring) => [ring.descriptors, ring.driver_event, ring.device_event],
        }
    }

    /// Returns whether a chain of `len` segments fits.
    pub fn has_room(&self, len: u16) -> bool {
        let free = either!(&self.ring, ring => ring.free_count());
        free >= if self.indirect_tables.is_some() { 1 } else { len }
    }

    /// Chains that the device has not given back.
    pub fn is_idle(&self) -> bool {
        either!(&self.ring, ring => ring.free_count() == ring.size)
    }

    /// Address of the notes of the chain that is added next.
    pub fn next_note(&self) -> u64 {
        self.note(self.next_chain())
    }

    /// ID of the chain that is added next.
    pub fn next_chain(&self) -> u16 {
        either!(&self.ring, ring => ring.next_id())
    }

    /// Address of a chain's notes.
    pub fn note(&self, id: u16) -> u64 {
        self.notes + NOTE_BYTES * u64::from(id)
    }

    /// Makes a chain of up to 4 segments available. There must be room for it.
    pub fn add(&mut self, segments: &[Segment]) {
        let Some(tables) = self.indirect_tables else {
            return either!(&mut self.ring, ring => ring.add(segments));
        };
        let id = either!(&self.ring, ring => ring.next_id());
        let table = tables + INDIRECT_MAX * DESCRIPTOR_BYTES * u64::from(id);
        let packed = matches!(self.ring, Ring::Packed(_));
        let mut at = table;
        for (index, segment) in segments.iter().enumerate() {
            write(at, Width::Quad, segment.address);
            write(at + 8, Width::Long, segment.len_bytes.into());
            let more = index + 1 < segments.len();
            if packed {
                // In a packed queue's table there are no links: all of it is the chain (section 2.8.7).
                write(at + 12, Width::Word, 0);
                write(at + 14, Width::Word, segment.flags());
            } else {
                write(at + 12, Width::Word, segment.flags() | if more { FLAG_NEXT } else { 0 });
                write(at + 14, Width::Word, index as u64 + 1);
            }
            at += DESCRIPTOR_BYTES;
        }
        let len_bytes = u32::try_from(at - table).unwrap_or(0);
        let whole = Segment { address: table, len_bytes, device_writes: false, indirect: true };
        either!(&mut self.ring, ring => ring.add(&[whole]));
    }

    /// Tells the device of what was added, if it wants to be told.
    pub fn notify(&mut self) {
        if either!(&mut self.ring, ring => ring.wants_notification()) {
            self.kick();
        }
    }

    /// Tells the device to look at the queue (virtio 1.3, section 4.1.5.2).
    pub fn kick(&mut self) {
        self.notifications += 1;
        if !self.notification_data {
            return write(self.notify_address, Width::Word, self.index.into());
        }
        let next = match &self.ring {
            Ring::Split(ring) => u64::from(ring.available_index),
            Ring::Packed(ring) => u64::from(ring.next.index) | u64::from(ring.next.wrap) << 15,
        };
        write(self.notify_address, Width::Long, u64::from(self.index) | next << 16);
    }

    /// Takes the next chain that the device has used: its ID, and how many bytes were written.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        let used = either!(&mut self.ring, ring => ring.take_used());
        self.answers += u64::from(used.is_some());
        used
    }

    pub fn has_used(&self) -> bool {
        either!(&self.ring, ring => ring.has_used())
    }

    /// Waits for the next used chain and takes it. `None` if the device does not answer.
    pub fn wait_used(&mut self, timer_is_free: bool) -> Option<(u16, u32)> {
        wait(self.vector, timer_is_free, || self.has_used());
        self.take_used()
    }

    /// The counter of the queue's interrupts; shared with other queues if there are more than vectors.
    pub fn interrupt_counter(&self) -> Option<&'static AtomicU64> {
        self.vector.map(interrupts::counter)
    }
}

/// Waits until `done`, or until the device has had all the time it may take. Halts between interrupts of `vector`.
pub fn wait(vector: Option<u8>, timer_is_free: bool, done: impl Fn() -> bool) -> bool {
    if done() {
        return true;
    }
    let start = cpu::tsc();
    let late = || cpu::tsc().wrapping_sub(start) > ANSWER_TSC;
    let Some(vector) = vector else {
        while !done() && !late() {
            core::hint::spin_loop();
        }
        return done();
    };
    if timer_is_free {
        apic::start_timer(smp::wake_vector(0), LOOK_COUNTS);
    }
    let counter = interrupts::counter(vector);
    loop {
        let seen = counter.load(Ordering::Acquire);
        if done() || late() {
            break;
        }
        cpu::halt_while(counter, seen);
    }
    if timer_is_free {
        apic::stop_timer();
    }
    done()
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [descriptors, driver, device] = self.areas();
        let format = if matches!(self.ring, Ring::Packed(_)) { "packed" } else { "split" };
        write!(
            f,
            "{format} size={} desc={descriptors:#x} driver={driver:#x} device={device:#x}",
            self.size()
        )?;
        match &self.ring {
            Ring::Split(ring) => write!(
                f,
                " avail_idx={} used_idx={} last_used={} free={}",
                ring.available_index,
                ring.device_index(),
                ring.used_index,
                ring.free_count()
            )?,
            Ring::Packed(ring) => write!(
                f,
                " avail={}/{} used={}/{} free={}",
                ring.next.index,
                u8::from(ring.next.wrap),
                ring.next_used.index,
                u8::from(ring.next_used.wrap),
                ring.free_count()
            )?,
        }
        if let Some(vector) = self.vector {
            let interrupts = interrupts::counter(vector).load(Ordering::Relaxed);
            write!(f, " vector={vector:#x} interrupts={interrupts}")?;
        }
        write!(f, " notifications={} answers={}", self.notifications, self.answers)
    }
}
