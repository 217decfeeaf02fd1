//! Disk traffic that runs by itself while the program waits for orders, and checks itself: each round writes a block of
//! a pattern of its own and then reads it back. Nothing may be lost, doubled or mixed up, whatever happens to the VM.

use test_guest::orders::Words;
use test_guest::pattern;

use super::Program;
use super::block_orders::{NOTE_SLOT, READ, Request, WRITE, status_of};
use super::reply::{OrderError, say};
use super::virtio_orders::NO_ANSWER;
use crate::cpu::{self, Width, read, write};
use crate::pci::Bdf;
use crate::virtio::KIND_BLOCK;
use crate::virtio::queue::Queue;

const BLOCK_BYTES: u32 = 4096;
const SECTORS: u64 = BLOCK_BYTES as u64 / 512;
const SLOTS: usize = 16;

/// How long the last requests may take to be answered.
const ANSWER_TSC: u64 = 20_000_000_000;

/// The traffic. Round `n` uses block `n` of the disk, modulo its size.
#[derive(Debug)]
pub struct Stress {
    bdf: Bdf,
    index: u16,
    seed: u64,
    blocks: u64,
    slots: [Slot; SLOTS],
    next_round: u64,
    stopping: bool,
    rounds: u64,
    bad_status: u64,
    bad_data: u64,
}

/// A round on its way.
#[derive(Clone, Copy, Debug)]
struct Slot {
    buffer: u64,
    round: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Writing,
    Reading,
}

impl Program {
    /// `vstress start BDF QUEUE SEED`, `vstress stop`, `vstress`.
    pub(super) fn vstress(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        match words.optional_word() {
            Some("start") => return self.start_stress(words),
            Some("stop") => {
                if let Some(stress) = &mut self.stress {
                    stress.stopping = true;
                }
                let start = cpu::tsc();
                while self.stress.as_ref().is_some_and(Stress::is_busy) {
                    self.stress();
                    if cpu::tsc().wrapping_sub(start) > ANSWER_TSC {
                        return Err(OrderError::Refused(NO_ANSWER));
                    }
                }
            }
            None => {}
            Some(_) => return Err(OrderError::Refused("vstress can start or stop")),
        }
        words.end()?;
        if let Some(stress) = &self.stress {
            let busy = stress.slots.iter().filter(|slot| slot.state != State::Free).count();
            say!(self.reply, " rounds={} in_flight={busy}", stress.rounds);
            say!(self.reply, " bad_status={} bad_data={}", stress.bad_status, stress.bad_data);
        }
        Ok(())
    }

    fn start_stress(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let bdf = Bdf(words.bdf()?);
        let index = words.narrow("QUEUE")?;
        let seed = words.number("SEED")?;
        words.end()?;
        let device = self.virtio.device(bdf)?;
        if device.transport.kind != KIND_BLOCK {
            return Err(OrderError::Refused("the device is no block device"));
        }
        let blocks = device.transport.capacity() / SECTORS;
        if blocks == 0 {
            return Err(OrderError::Refused("the disk is too small"));
        }
        self.virtio.queue(bdf, index)?;
        let buffers = self.scratch()?;
        let mut slots = [Slot { buffer: 0, round: 0, state: State::Free }; SLOTS];
        for (number, slot) in (0..).zip(&mut slots) {
            slot.buffer = buffers + number * u64::from(BLOCK_BYTES);
        }
        self.stress = Some(Stress {
            bdf,
            index,
            seed,
            blocks,
            slots,
            next_round: 0,
            stopping: false,
            rounds: 0,
            bad_status: 0,
            bad_data: 0,
        });
        Ok(())
    }

    /// Takes the traffic on by what the device has done. Returns whether it had done anything.
    pub(super) fn stress(&mut self) -> bool {
        let Some(stress) = &mut self.stress else {
            return false;
        };
        // A device that was reset ends the traffic.
        let Ok(queue) = self.virtio.queue(stress.bdf, stress.index) else {
            self.stress = None;
            return false;
        };
        let mut busy = false;
        while let Some((id, _)) = queue.take_used() {
            busy = true;
            let note = queue.note(id);
            let slot = usize::try_from(read(note + NOTE_SLOT, Width::Quad)).unwrap_or(0) % SLOTS;
            stress.take(queue, slot, status_of(note));
        }
        for slot in 0..SLOTS {
            if stress.may_start(slot) && queue.has_room(3) {
                stress.start_round(queue, slot);
                busy = true;
            }
        }
        queue.notify();
        busy
    }
}

impl Stress {
    /// Returns whether a queue is in the hands of the traffic.
    pub fn uses(&self, bdf: Bdf, index: u16) -> bool {
        self.bdf == bdf && self.index == index && self.is_busy()
    }

    /// Returns whether the traffic was stopped, and all of it is answered.
    pub fn is_over(&self) -> bool {
        self.stopping && !self.is_busy()
    }

    pub fn bdf(&self) -> Bdf {
        self.bdf
    }

    fn is_busy(&self) -> bool {
        self.slots.iter().any(|slot| slot.state != State::Free)
    }

    /// Returns whether a slot may take the next round: not before the round is over that last used the same block.
    fn may_start(&self, slot: usize) -> bool {
        let in_flight = self.slots.iter().filter(|slot| slot.state != State::Free);
        let oldest = in_flight.map(|slot| slot.round).min().unwrap_or(self.next_round);
        self.slots[slot].state == State::Free && !self.stopping && self.next_round - oldest < self.blocks
    }

    fn start_round(&mut self, queue: &mut Queue, slot: usize) {
        let round = self.next_round;
        self.next_round += 1;
        let buffer = self.slots[slot].buffer;
        for word in 0..u64::from(BLOCK_BYTES) / 8 {
            write(buffer + 8 * word, Width::Quad, pattern::word(self.seed ^ round, word));
        }
        self.slots[slot] = Slot { buffer, round, state: State::Writing };
        self.submit(queue, slot, WRITE);
    }

    /// Takes a finished request: what was written is read, what was read is compared.
    fn take(&mut self, queue: &mut Queue, slot: usize, status: u64) {
        self.bad_status += u64::from(status != 0);
        let Slot { buffer, round, state } = self.slots[slot];
        if state == State::Writing {
            for word in 0..u64::from(BLOCK_BYTES) / 8 {
                write(buffer + 8 * word, Width::Quad, 0);
            }
            self.slots[slot].state = State::Reading;
            self.submit(queue, slot, READ);
        } else {
            let words = 0..u64::from(BLOCK_BYTES) / 8;
            let same = words
                .into_iter()
                .all(|word| read(buffer + 8 * word, Width::Quad) == pattern::word(self.seed ^ round, word));
            self.bad_data += u64::from(!same);
            self.rounds += 1;
            self.slots[slot].state = State::Free;
        }
    }

    fn submit(&self, queue: &mut Queue, slot: usize, kind: u32) {
        let Slot { buffer, round, .. } = self.slots[slot];
        write(queue.next_note() + NOTE_SLOT, Width::Quad, slot as u64);
        let sector = round % self.blocks * SECTORS;
        Request { kind, sector, data: Some((buffer, BLOCK_BYTES)) }.add_to(queue);
    }
}
