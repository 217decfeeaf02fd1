//! Orders on virtio persistent memory (virtio 1.3, section 5.19).

use test_guest::orders::Words;

use super::Program;
use super::reply::{OrderError, say};
use super::virtio_orders::NO_ANSWER;
use crate::cpu::{Width, read, write};
use crate::pci::Bdf;
use crate::virtio::KIND_PMEM;
use crate::virtio::queue::{Queue, Segment};

/// The type of a request to make stable what was written (section 5.19.6).
pub(super) const FLUSH: u32 = 0;

/// Where the answer is in the notes of a request; its type is at their start.
const NOTE_ANSWER: u64 = 8;
/// What the answer holds until the device writes it.
const UNWRITTEN: u64 = 0x5a5a_5a5a;

impl Program {
    /// `vpmem BDF`: where the window is. From then on it is free memory.
    pub(super) fn vpmem(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let bdf = Bdf(words.bdf()?);
        words.end()?;
        self.pmem_queue(bdf)?;
        let transport = &self.virtio.device(bdf)?.transport;
        let (start, size) = (transport.config(0, Width::Quad), transport.config(8, Width::Quad));
        self.memory.free_window(start, size)?;
        say!(self.reply, " start={start:#x} size={size}");
        Ok(())
    }

    /// `vpmem-flush BDF [TYPE]`.
    pub(super) fn vpmem_flush(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let bdf = Bdf(words.bdf()?);
        let kind = words.optional_number("TYPE")?;
        words.end()?;
        let timer_is_free = !self.clock.is_ticking();
        let queue = self.pmem_queue(bdf)?;
        add_request(queue, kind.unwrap_or(FLUSH.into()));
        queue.notify();
        let (id, _) = queue.wait_used(timer_is_free).ok_or(OrderError::Refused(NO_ANSWER))?;
        let answer = read(queue.note(id) + NOTE_ANSWER, Width::Long);
        say!(self.reply, " ret={answer:#x}");
        Ok(())
    }

    fn pmem_queue(&mut self, bdf: Bdf) -> Result<&mut Queue, OrderError> {
        if self.virtio.device(bdf)?.transport.kind != KIND_PMEM {
            return Err(OrderError::Refused("the device is no persistent memory"));
        }
        Ok(self.virtio.queue(bdf, 0)?)
    }
}

/// Makes a request available. There must be room for 2 segments.
pub(super) fn add_request(queue: &mut Queue, kind: u64) {
    let note = queue.next_note();
    write(note, Width::Long, kind);
    write(note + NOTE_ANSWER, Width::Long, UNWRITTEN);
    queue.add(&[Segment::read(note, 4), Segment::write(note + NOTE_ANSWER, 4)]);
}
