//! Orders on virtio block devices (virtio 1.3, section 5.2).

use core::sync::atomic::Ordering;

use test_guest::orders::{Malformed, Words};
use test_guest::pattern;

use super::Program;
use super::memory_orders::checksum;
use super::reply::{OrderError, say};
use super::virtio_orders::{NO_ANSWER, SCRATCH_BYTES, queue_words};
use crate::cpu::{self, Width, read, write};
use crate::pci::Bdf;
use crate::virtio::KIND_BLOCK;
use crate::virtio::queue::{Queue, Segment, wait};

const SECTOR: u64 = 512;

// Request types (section 5.2.6).
pub(super) const READ: u32 = 0;
pub(super) const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const ID_BYTES: u32 = 20;
const STATUS_OK: u64 = 0;
/// What the status byte holds until the device writes it.
const STATUS_UNWRITTEN: u64 = 0xff;

// The notes of a request: its header, its status, the range of a discard; the slot and the start of a measured one.
const NOTE_STATUS: u64 = 16;
const NOTE_RANGE: u64 = 24;
pub(super) const NOTE_SLOT: u64 = 48;
const NOTE_START: u64 = 56;

/// One request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub kind: u32,
    pub sector: u64,
    /// Address and length of the data.
    pub data: Option<(u64, u32)>,
}

impl Request {
    /// Makes the request available. There must be room for 3 segments.
    pub fn add_to(&self, queue: &mut Queue) {
        let note = queue.next_note();
        write(note, Width::Quad, self.kind.into());
        write(note + 8, Width::Quad, self.sector);
        write(note + NOTE_STATUS, Width::Byte, STATUS_UNWRITTEN);
        let header = Segment::read(note, 16);
        let status = Segment::write(note + NOTE_STATUS, 1);
        match self.data {
            None => queue.add(&[header, status]),
            Some((address, len)) if matches!(self.kind, READ | GET_ID) => {
                queue.add(&[header, Segment::write(address, len), status]);
            }
            Some((address, len)) => queue.add(&[header, Segment::read(address, len), status]),
        }
    }
}

impl Program {
    /// `vblk-read` and `vblk-write BDF QUEUE SECTOR COUNT ADDR`.
    pub(super) fn vblk_move(&mut self, words: &mut Words<'_>, kind: u32) -> Result<(), OrderError> {
        let (bdf, index) = queue_words(words)?;
        let request = self.transfer(words, kind)?;
        words.end()?;
        let status = self.vblk_request(bdf, index, &request)?;
        let (address, len) = request.data.unwrap_or((0, 0));
        say!(self.reply, " status={status} sum={:#x}", checksum(address, len.into()).value());
        Ok(())
    }

    pub(super) fn vblk_read(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        self.vblk_move(words, READ)
    }

    pub(super) fn vblk_write(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        self.vblk_move(words, WRITE)
    }

    pub(super) fn vblk_flush(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let (bdf, index) = queue_words(words)?;
        words.end()?;
        let status = self.vblk_request(bdf, index, &Request { kind: FLUSH, sector: 0, data: None })?;
        say!(self.reply, " status={status}");
        Ok(())
    }

    /// `vblk-id BDF QUEUE`: the device's serial number.
    pub(super) fn vblk_id(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let (bdf, index) = queue_words(words)?;
        words.end()?;
        let scratch = self.scratch()?;
        for offset in 0..u64::from(ID_BYTES) {
            write(scratch + offset, Width::Byte, 0);
        }
        let request = Request { kind: GET_ID, sector: 0, data: Some((scratch, ID_BYTES)) };
        let status = self.vblk_request(bdf, index, &request)?;
        say!(self.reply, " status={status} id=");
        for offset in 0..u64::from(ID_BYTES) {
            let byte = read(scratch + offset, Width::Byte).to_le_bytes()[0];
            if byte == 0 {
                break;
            }
            say!(self.reply, "{}", byte.escape_ascii());
        }
        Ok(())
    }

    /// `vblk-discard` and `vblk-zero BDF QUEUE SECTOR COUNT`.
    pub(super) fn vblk_range(&mut self, words: &mut Words<'_>, zero: bool) -> Result<(), OrderError> {
        let (bdf, index) = queue_words(words)?;
        let sector = words.number("SECTOR")?;
        let count: u32 = words.narrow("COUNT")?;
        words.end()?;
        self.block_queue(bdf, index)?;
        let note = self.virtio.queue(bdf, index)?.next_note();
        write(note + NOTE_RANGE, Width::Quad, sector);
        write(note + NOTE_RANGE + 8, Width::Quad, count.into());
        let kind = if zero { WRITE_ZEROES } else { DISCARD };
        let request = Request { kind, sector: 0, data: Some((note + NOTE_RANGE, 16)) };
        let status = self.vblk_request(bdf, index, &request)?;
        say!(self.reply, " status={status}");
        Ok(())
    }

    /// `vblk-submit BDF QUEUE read|write SECTOR COUNT ADDR`: does not wait.
    pub(super) fn vblk_submit(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let (bdf, index) = queue_words(words)?;
        let kind = direction(words)?;
        let request = self.transfer(words, kind)?;
        words.end()?;
        let queue = self.block_queue(bdf, index)?;
        if !queue.has_room(3) {
            return Err(OrderError::Refused("the queue is full"));
        }
        request.add_to(queue);
        queue.notify();
        Ok(())
    }

    /// `vblk-wait BDF QUEUE`: waits for all that was submitted.
    pub(super) fn vblk_wait(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let (bdf, index) = queue_words(words)?;
        words.end()?;
        let timer_is_free = !self.clock.is_ticking();
        let queue = self.block_queue(bdf, index)?;
        let (mut done, mut bad) = (0, 0);
        while !queue.is_idle() {
            let (id, _) = queue.wait_used(timer_is_free).ok_or(OrderError::Refused(NO_ANSWER))?;
            done += 1;
            bad += u32::from(status_of(queue.note(id)) != STATUS_OK);
        }
        say!(self.reply, " done={done} bad={bad}");
        Ok(())
    }

    /// `vblk-bench BDF QUEUE read|write SIZE DEPTH COUNT [SEED]`: requests at random places, DEPTH at a time.
    pub(super) fn vblk_bench(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let (bdf, index) = queue_words(words)?;
        let kind = direction(words)?;
        let size: u32 = words.narrow("SIZE")?;
        let depth: u16 = words.narrow("DEPTH")?;
        let count = words.number("COUNT")?;
        let seed = words.optional_number("SEED")?.unwrap_or(0);
        words.end()?;
        if size == 0 || u64::from(size) % SECTOR != 0 || u64::from(size) * u64::from(depth) > SCRATCH_BYTES {
            return Err(OrderError::Refused("SIZE must be whole sectors, and SIZE x DEPTH at most 4 MiB"));
        }
        let scratch = self.scratch()?;
        let timer_is_free = !self.clock.is_ticking();
        let places = self.virtio.device(bdf)?.transport.capacity() * SECTOR / u64::from(size);
        let queue = self.block_queue(bdf, index)?;
        if places == 0 || depth == 0 || !queue.is_idle() || !queue.has_room(3) {
            return Err(OrderError::Refused("the device is too small, DEPTH is 0, or the queue is in use"));
        }
        let bench = Bench { kind, size, places, seed, scratch };
        let interrupts = |queue: &Queue| queue.interrupt_counter().map_or(0, |it| it.load(Ordering::Relaxed));
        let (notifications, interrupts_before) = (queue.notifications, interrupts(queue));
        let start = cpu::tsc();
        let mut submitted = 0;
        while submitted < count.min(depth.into()) && queue.has_room(3) {
            bench.submit(queue, submitted, submitted);
            submitted += 1;
        }
        queue.notify();
        let (mut done, mut bad, mut latency_sum, mut latency_max) = (0, 0, 0, 0);
        while done < count {
            if !wait(queue.vector, timer_is_free, || queue.has_used()) {
                return Err(OrderError::Refused(NO_ANSWER));
            }
            while let Some((id, _)) = queue.take_used() {
                let note = queue.note(id);
                let latency = cpu::tsc().wrapping_sub(read(note + NOTE_START, Width::Quad));
                latency_sum += latency;
                latency_max = latency.max(latency_max);
                bad += u64::from(status_of(note) != STATUS_OK);
                done += 1;
                if submitted < count {
                    bench.submit(queue, submitted, read(note + NOTE_SLOT, Width::Quad));
                    submitted += 1;
                }
            }
            queue.notify();
        }
        let ticks = cpu::tsc().wrapping_sub(start);
        let (notifications, interrupts) =
            (queue.notifications - notifications, interrupts(queue) - interrupts_before);
        let per = count.max(1);
        say!(self.reply, " ticks={ticks} per_op={} latency={}", ticks / per, latency_sum / per);
        say!(self.reply, " latency_max={latency_max} bad={bad} notifications={notifications}");
        say!(self.reply, " interrupts={interrupts}");
        Ok(())
    }

    /// Carries out one request and returns its status.
    fn vblk_request(&mut self, bdf: Bdf, index: u16, request: &Request) -> Result<u64, OrderError> {
        let timer_is_free = !self.clock.is_ticking();
        let queue = self.block_queue(bdf, index)?;
        if !queue.is_idle() {
            return Err(OrderError::Refused("the queue has requests that vblk-wait must wait for first"));
        }
        request.add_to(queue);
        queue.notify();
        let (id, _) = queue.wait_used(timer_is_free).ok_or(OrderError::Refused(NO_ANSWER))?;
        Ok(status_of(queue.note(id)))
    }

    fn block_queue(&mut self, bdf: Bdf, index: u16) -> Result<&mut Queue, OrderError> {
        if self.virtio.device(bdf)?.transport.kind != KIND_BLOCK {
            return Err(OrderError::Refused("the device is no block device"));
        }
        if self.stress.as_ref().is_some_and(|stress| stress.uses(bdf, index)) {
            return Err(OrderError::Refused("vstress uses the queue"));
        }
        Ok(self.virtio.queue(bdf, index)?)
    }

    /// Reads `SECTOR COUNT ADDR`.
    fn transfer(&mut self, words: &mut Words<'_>, kind: u32) -> Result<Request, OrderError> {
        let sector = words.number("SECTOR")?;
        let count = words.number("COUNT")?;
        let address = words.number("ADDR")?;
        let len = count
            .checked_mul(SECTOR)
            .and_then(|len| u32::try_from(len).ok())
            .filter(|len| *len > 0)
            .ok_or(Malformed::NotANumber { what: "COUNT" })?;
        self.memory.reach_free(address, len.into())?;
        Ok(Request { kind, sector, data: Some((address, len)) })
    }
}

/// The requests of a measurement.
struct Bench {
    kind: u32,
    size: u32,
    places: u64,
    seed: u64,
    scratch: u64,
}

impl Bench {
    /// Adds request `number`, with the data of a slot that is free.
    fn submit(&self, queue: &mut Queue, number: u64, slot: u64) {
        let note = queue.next_note();
        write(note + NOTE_SLOT, Width::Quad, slot);
        write(note + NOTE_START, Width::Quad, cpu::tsc());
        let size = u64::from(self.size);
        let sector = pattern::word(self.seed, number) % self.places * (size / SECTOR);
        let data = Some((self.scratch + slot * size, self.size));
        Request { kind: self.kind, sector, data }.add_to(queue);
    }
}

/// The status of a request that the device has answered.
pub(super) fn status_of(note: u64) -> u64 {
    read(note + NOTE_STATUS, Width::Byte)
}

/// Reads `read` or `write`.
fn direction(words: &mut Words<'_>) -> Result<u32, OrderError> {
    match words.word("read|write")? {
        "read" => Ok(READ),
        "write" => Ok(WRITE),
        _ => Err(OrderError::Refused("neither read nor write")),
    }
}
