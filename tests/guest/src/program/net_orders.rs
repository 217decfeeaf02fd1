//! Orders on virtio network devices (virtio 1.3, section 5.1) and consoles (section 5.3): raw frames and text.

use test_guest::orders::Words;

use super::Program;
use super::reply::{OrderError, say};
use super::virtio_orders::NO_ANSWER;
use crate::cpu::{self, Width, read, write};
use crate::memory::Memory;
use crate::pci::Bdf;
use crate::virtio::queue::{Queue, Segment};
use crate::virtio::{Device, DeviceError, KIND_CONSOLE, KIND_NET, NET_MQ, Virtio};

/// Size of the header before each frame.
pub(super) const HEADER_BYTES: u32 = 12;
const FRAME_MIN: u32 = 60;
pub(super) const FRAME_MAX: u32 = 1514;

/// What a queue receives into: this many buffers of this size.
const BUFFERS: u16 = 16;
const BUFFER_BYTES: u32 = 2048;

// The notes of a chain: the header of a frame (or the bytes of a command), the status of a command, the buffer.
const NOTE_STATUS: u64 = 16;
const NOTE_BUFFER: u64 = 24;

// The command that sets the number of queue pairs in use (section 5.1.6.5.5).
const CLASS_MQ: u64 = 4;
const MQ_PAIRS_SET: u64 = 0;

/// Ethertype for experiments in one place.
const ETHERTYPE_TEST: u64 = 0x88b5;

pub(super) fn is_transmit(index: u16) -> bool {
    index % 2 == 1
}

/// Returns whether a queue of a network device is its control queue: the last one, with an even number.
pub(super) fn is_control(device: &Device, index: u16) -> bool {
    device.control_queue == Some(index)
}

/// Fills the receive queues of a network device or of a console that was just set up; tells a network device how many
/// queue pairs there are.
pub(super) fn start(virtio: &mut Virtio, memory: &mut Memory, bdf: Bdf) -> Result<(), DeviceError> {
    let device = virtio.device(bdf)?;
    let control = device.control_queue;
    let receives = match device.transport.kind {
        KIND_NET => |index: u16| index.is_multiple_of(2),
        KIND_CONSOLE => |index: u16| index == 0,
        _ => return Ok(()),
    };
    let is_receive = |index| receives(index) && Some(index) != control;
    let has_pairs = device.features & NET_MQ != 0;
    let count = virtio
        .queues()
        .filter(|(device, queue)| device.transport.bdf == bdf && is_receive(queue.index))
        .count() as u64;
    let len_bytes = count * u64::from(BUFFERS) * u64::from(BUFFER_BYTES);
    let mut buffer = virtio.buffers(memory, bdf, len_bytes)?;
    for (device, queue) in virtio.queues().filter(|(device, _)| device.transport.bdf == bdf) {
        if is_receive(queue.index) {
            for _ in 0..BUFFERS {
                if queue.has_room(2) {
                    add_receive_buffer(device, queue, buffer);
                    buffer += u64::from(BUFFER_BYTES);
                }
            }
            queue.notify();
        } else if Some(queue.index) == control && has_pairs {
            add_pairs_command(device, queue);
            queue.notify();
            queue.wait_used(true);
        }
    }
    Ok(())
}

pub(super) fn add_receive_buffer(device: &Device, queue: &mut Queue, buffer: u64) {
    let note = queue.next_note();
    write(note + NOTE_BUFFER, Width::Quad, buffer);
    let data = Segment::write(buffer, BUFFER_BYTES);
    if device.transport.kind == KIND_NET {
        queue.add(&[Segment::write(note, HEADER_BYTES), data]);
    } else {
        queue.add(&[data]);
    }
}

/// The receive buffer that a chain is about; `None` if it is about none.
pub(super) fn buffer_of(queue: &Queue, id: u16) -> Option<u64> {
    Some(read(queue.note(id) + NOTE_BUFFER, Width::Quad)).filter(|buffer| *buffer != 0)
}

/// Gives a receive buffer back to the device.
pub(super) fn give_back(virtio: &mut Virtio, bdf: Bdf, index: u16, buffer: u64) {
    let place = virtio.queues().find(|(device, queue)| device.transport.bdf == bdf && queue.index == index);
    if let Some((device, queue)) = place.filter(|(_, queue)| queue.has_room(2)) {
        add_receive_buffer(device, queue, buffer);
        queue.notify();
    }
}

/// Adds a frame at `frame` to a transmit queue; `buffer` is the receive buffer that it lies in, if it does.
pub(super) fn add_frame(queue: &mut Queue, frame: u64, len_bytes: u32, buffer: Option<u64>) {
    let note = queue.next_note();
    write(note + NOTE_BUFFER, Width::Quad, buffer.unwrap_or(0));
    write(note, Width::Quad, 0);
    write(note + 8, Width::Long, 0);
    queue.add(&[Segment::read(note, HEADER_BYTES), Segment::read(frame, len_bytes)]);
}

/// Makes a frame at `frame` that nobody listens to, from and to a locally administered address, and adds it.
pub(super) fn add_test_frame(queue: &mut Queue, frame: u64) {
    for at in (0..64).step_by(8) {
        write(frame + at, Width::Quad, 0);
    }
    write(frame, Width::Byte, 0x02);
    write(frame + 6, Width::Byte, 0x02);
    write(frame + 12, Width::Word, ETHERTYPE_TEST.swap_bytes() >> 48);
    add_frame(queue, frame, FRAME_MIN, None);
}

/// Adds the command that puts all queue pairs in use that the device has queues for.
pub(super) fn add_pairs_command(device: &Device, queue: &mut Queue) {
    let note = queue.next_note();
    write(note, Width::Byte, CLASS_MQ);
    write(note + 1, Width::Byte, MQ_PAIRS_SET);
    write(note + 2, Width::Word, u64::from(device.data_queues) / 2);
    write(note + NOTE_STATUS, Width::Byte, 0xff);
    queue.add(&[Segment::read(note, 2), Segment::read(note + 2, 2), Segment::write(note + NOTE_STATUS, 1)]);
}

impl Program {
    /// `vnet-tx BDF PAIR HEX`.
    pub(super) fn vnet_tx(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let bdf = Bdf(words.bdf()?);
        let pair: u16 = words.narrow("PAIR")?;
        let hex = words.word("HEX")?;
        words.end()?;
        let frame = self.scratch()?;
        let len = unhex(hex, frame)?;
        if !(14..=FRAME_MAX).contains(&len) {
            return Err(OrderError::Refused("a frame has 14 to 1514 bytes"));
        }
        let timer_is_free = !self.clock.is_ticking();
        let queue = self.net_queue(bdf, pair, true)?;
        add_frame(queue, frame, len, None);
        queue.notify();
        queue.wait_used(timer_is_free).ok_or(OrderError::Refused(NO_ANSWER))?;
        Ok(())
    }

    /// `vnet-rx BDF PAIR [MS]`: the next frame that came, or `none`.
    pub(super) fn vnet_rx(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let bdf = Bdf(words.bdf()?);
        let pair: u16 = words.narrow("PAIR")?;
        let ms = words.optional_number("MS")?.unwrap_or(0);
        words.end()?;
        self.net_queue(bdf, pair, false)?;
        match self.receive(bdf, 2 * pair, ms)? {
            None => say!(self.reply, " none"),
            Some((buffer, len)) => {
                let len = u64::from(len.saturating_sub(HEADER_BYTES).min(BUFFER_BYTES));
                say!(self.reply, " ");
                for at in buffer..buffer + len {
                    say!(self.reply, "{:02x}", read(at, Width::Byte));
                }
            }
        }
        Ok(())
    }

    /// `vcon-write BDF TEXT...`: the rest of the line, its words one blank apart, and a new line.
    pub(super) fn vcon_write(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let bdf = Bdf(words.bdf()?);
        let text = self.scratch()?;
        let mut len = 0;
        while let Some(word) = words.optional_word() {
            for byte in word.bytes().chain(*b" ") {
                write(text + len, Width::Byte, byte.into());
                len += 1;
            }
        }
        write(text + len.saturating_sub(1), Width::Byte, u64::from(b'\n'));
        let timer_is_free = !self.clock.is_ticking();
        self.console(bdf)?;
        let queue = self.virtio.queue(bdf, 1)?;
        queue.add(&[Segment::read(text, u32::try_from(len.max(1)).unwrap_or(1))]);
        queue.notify();
        queue.wait_used(timer_is_free).ok_or(OrderError::Refused(NO_ANSWER))?;
        Ok(())
    }

    /// `vcon-read BDF [MS]`: the next text that came, escaped, or `none`.
    pub(super) fn vcon_read(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let bdf = Bdf(words.bdf()?);
        let ms = words.optional_number("MS")?.unwrap_or(0);
        words.end()?;
        self.console(bdf)?;
        match self.receive(bdf, 0, ms)? {
            None => say!(self.reply, " none"),
            Some((buffer, len)) => {
                say!(self.reply, " ");
                for at in buffer..buffer + u64::from(len.min(BUFFER_BYTES)) {
                    say!(self.reply, "{}", read(at, Width::Byte).to_le_bytes()[0].escape_ascii());
                }
            }
        }
        Ok(())
    }

    /// Takes the next filled buffer of a receive queue, waiting up to `ms`, and gives the buffer back to the device: its
    /// content stays until the queue has gone round.
    fn receive(&mut self, bdf: Bdf, index: u16, ms: u64) -> Result<Option<(u64, u32)>, OrderError> {
        let patience = ms.saturating_mul(if ms == 0 { 0 } else { self.clock.tsc_hz() / 1000 });
        let start = cpu::tsc();
        loop {
            let found = self
                .virtio
                .queues()
                .find(|(device, queue)| device.transport.bdf == bdf && queue.index == index);
            let (device, queue) = found.ok_or(DeviceError::NoSuchQueue)?;
            if let Some((id, len)) = queue.take_used() {
                let buffer = read(queue.note(id) + NOTE_BUFFER, Width::Quad);
                add_receive_buffer(device, queue, buffer);
                queue.notify();
                return Ok(Some((buffer, len)));
            }
            if cpu::tsc().wrapping_sub(start) >= patience {
                return Ok(None);
            }
            core::hint::spin_loop();
        }
    }

    fn net_queue(&mut self, bdf: Bdf, pair: u16, transmit: bool) -> Result<&mut Queue, OrderError> {
        let device = self.virtio.device(bdf)?;
        if device.transport.kind != KIND_NET {
            return Err(OrderError::Refused("the device is no network device"));
        }
        if self.server.as_ref().is_some_and(|server| server.bdf() == bdf) {
            return Err(OrderError::Refused("vnet-serve uses the queue"));
        }
        if pair >= device.data_queues / 2 {
            return Err(DeviceError::NoSuchQueue.into());
        }
        Ok(self.virtio.queue(bdf, 2 * pair + u16::from(transmit))?)
    }

    fn console(&self, bdf: Bdf) -> Result<(), OrderError> {
        if self.virtio.device(bdf)?.transport.kind == KIND_CONSOLE {
            Ok(())
        } else {
            Err(OrderError::Refused("the device is no console"))
        }
    }
}

/// Writes the bytes that `hex` spells to `address`; returns how many.
fn unhex(hex: &str, address: u64) -> Result<u32, OrderError> {
    let mut len = 0;
    for pair in hex.as_bytes().chunks(2) {
        let byte = core::str::from_utf8(pair)
            .ok()
            .filter(|pair| pair.len() == 2)
            .and_then(|pair| u8::from_str_radix(pair, 16).ok())
            .ok_or(OrderError::Refused("HEX is not an even number of hexadecimal digits"))?;
        write(address + u64::from(len), Width::Byte, byte.into());
        len += 1;
    }
    Ok(len)
}
