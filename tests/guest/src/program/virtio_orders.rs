//! Orders on virtio devices of any type.

use core::sync::atomic::Ordering;

use test_guest::orders::{Malformed, Words};

use super::Program;
use super::block_orders::{self, Request};
use super::net_orders;
use super::pmem_orders;
use super::registers::width;
use super::reply::{OrderError, say};
use crate::boot::interrupt_counts;
use crate::cpu::{self, Width};
use crate::pci::Bdf;
use crate::virtio::queue::{Queue, Segment};
use crate::virtio::transport::{self, Transport};
use crate::virtio::{Device, KIND_BLOCK, KIND_NET, KIND_PMEM, KIND_RNG, Wanted};

/// Memory that requests of the guest's own go to or come from.
pub(super) const SCRATCH_BYTES: u64 = 4 << 20;

/// How long all queues together may take to answer `vcheck`, and how long their interrupts may take after that.
const CHECK_TSC: u64 = 20_000_000_000;

impl Program {
    /// `virtio`: every virtio function, as it is.
    pub(super) fn virtio(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        words.end()?;
        let (pci, memory, reply) = (&self.pci, &mut self.memory, &mut self.reply);
        pci.each(|bdf| {
            if transport::kind(pci, bdf).is_none() {
                return Ok(());
            }
            let Some(found) = Transport::find(pci, memory, bdf)? else {
                return Ok(());
            };
            let (queues, features, status) = (found.queue_count(), found.device_features(), found.status());
            let live = (0..queues).filter(|queue| found.queue_is_enabled(*queue)).count();
            say!(reply, " [{bdf} type={} queues={queues} msix={}", found.kind, found.msix_entries);
            say!(reply, " features={features:#x} status={status:#x} live={live}]");
            Ok(())
        })
    }

    /// `vinit BDF [OPTION...]`.
    pub(super) fn vinit(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let bdf = Bdf(words.bdf()?);
        let mut wanted = Wanted::default();
        while let Some(option) = words.optional_word() {
            match option {
                "packed" => wanted.packed = true,
                "event-idx" => wanted.event_idx = true,
                "indirect" => wanted.indirect = true,
                "notification-data" => wanted.notification_data = true,
                "msix" => wanted.poll = false,
                "poll" => wanted.poll = true,
                "queues" => wanted.queues = Some(words.narrow("N")?),
                "size" => wanted.size = Some(words.narrow("N")?),
                "features" => wanted.features = words.number("MASK")?,
                _ => return Err(OrderError::Refused("no such option")),
            }
        }
        self.release(bdf);
        let count = self.virtio.init(&self.pci, &mut self.memory, bdf, &wanted)?;
        let device = self.virtio.device(bdf)?;
        let (kind, features) = (device.transport.kind, device.features);
        net_orders::start(&mut self.virtio, &mut self.memory, bdf)?;
        say!(self.reply, " type={kind} queues={count} features={features:#x}");
        Ok(())
    }

    pub(super) fn vreset(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let bdf = Bdf(words.bdf()?);
        words.end()?;
        self.release(bdf);
        self.virtio.reset(&self.pci, &mut self.memory, bdf)?;
        Ok(())
    }

    /// `vqueue-state BDF QUEUE`.
    pub(super) fn vqueue_state(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let (bdf, index) = queue_words(words)?;
        words.end()?;
        let queue = self.virtio.queue(bdf, index)?;
        say!(self.reply, " {queue}");
        Ok(())
    }

    /// `vkick BDF QUEUE`: tells the device to look, whether or not there is anything new.
    pub(super) fn vkick(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let (bdf, index) = queue_words(words)?;
        words.end()?;
        self.virtio.queue(bdf, index)?.kick();
        Ok(())
    }

    /// `vmask BDF ENTRY 0|1`: masks an MSI-X entry.
    pub(super) fn vmask(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let bdf = Bdf(words.bdf()?);
        let entry: u16 = words.narrow("ENTRY")?;
        let masked = words.number("MASKED")? != 0;
        words.end()?;
        let device = self.virtio.device(bdf)?;
        if entry >= device.transport.msix_entries {
            return Err(Malformed::NotANumber { what: "ENTRY" }.into());
        }
        device.transport.mask_msix_entry(entry, masked);
        Ok(())
    }

    /// `vconfig BDF OFF WIDTH [VALUE]`: the device's own configuration.
    pub(super) fn vconfig(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let bdf = Bdf(words.bdf()?);
        let offset: u16 = words.narrow("OFF")?;
        let width = width(words, Width::Long)?;
        let value = words.optional_number("VALUE")?;
        words.end()?;
        if u64::from(offset) + width.bytes() > 4096 {
            return Err(Malformed::NotANumber { what: "OFF" }.into());
        }
        let transport = Transport::find(&self.pci, &mut self.memory, bdf)?
            .ok_or(OrderError::Refused("the function is no modern virtio device"))?;
        match value {
            Some(value) => transport.set_config(offset.into(), width, value),
            None => say!(
                self.reply,
                " {:#x} generation={} isr={:#x}",
                transport.config(offset.into(), width),
                transport.config_generation(),
                transport.take_isr()
            ),
        }
        Ok(())
    }

    /// `vcheck`: gives every queue in use one request, all at once, and waits for all answers and interrupts.
    pub(super) fn vcheck(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        words.end()?;
        if self.server.is_some() || self.stress.as_ref().is_some_and(|stress| !stress.is_over()) {
            return Err(OrderError::Refused("vnet-serve and vstress must be stopped first"));
        }
        let scratch = self.scratch()?;
        let mut before = [0; 256];
        for (count, counter) in before.iter_mut().zip(&interrupt_counts) {
            *count = counter.load(Ordering::Acquire);
        }
        let mut vectors = [false; 256];
        let start = cpu::tsc();
        let mut asked = 0;
        for (device, queue) in self.virtio.queues() {
            if ask(device, queue, scratch) {
                asked += 1;
                queue.notify();
                if let Some(vector) = queue.vector {
                    vectors[usize::from(vector)] = true;
                }
            }
        }
        let late = || cpu::tsc().wrapping_sub(start) > CHECK_TSC;
        let mut answered = 0;
        while answered < asked && !late() {
            answered = 0;
            for (device, queue) in self.virtio.queues().filter(|(device, queue)| is_asked(device, queue)) {
                while is_asked(device, queue) && queue.take_used().is_some() {}
                answered += u32::from(queue.is_idle());
            }
        }
        let elapsed = cpu::tsc().wrapping_sub(start);
        let came = |vector: usize| interrupt_counts[vector].load(Ordering::Acquire) != before[vector];
        let used = || (0..256).filter(|vector| vectors[*vector]);
        while !used().all(came) && !late() {
            core::hint::spin_loop();
        }
        let (used_count, came_count) = (used().count(), used().filter(|vector| came(*vector)).count());
        say!(self.reply, " asked={asked} answered={answered} vectors={used_count} signalled={came_count}");
        say!(self.reply, " ticks={elapsed}");
        Ok(())
    }

    /// `vrng BDF LEN`: random bytes of the device.
    pub(super) fn vrng(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let bdf = Bdf(words.bdf()?);
        let len: u32 = words.narrow("LEN")?;
        words.end()?;
        if !(8..=65536).contains(&len) || !len.is_multiple_of(8) {
            return Err(OrderError::Refused("LEN must be a multiple of 8 up to 65536"));
        }
        if self.virtio.device(bdf)?.transport.kind != KIND_RNG {
            return Err(OrderError::Refused("the device is no entropy device"));
        }
        let scratch = self.scratch()?;
        let timer_is_free = !self.clock.is_ticking();
        let queue = self.virtio.queue(bdf, 0)?;
        queue.add(&[Segment::write(scratch, len)]);
        queue.notify();
        let (_, written) = queue.wait_used(timer_is_free).ok_or(OrderError::Refused(NO_ANSWER))?;
        let first = cpu::read(scratch, Width::Quad);
        let sum = super::memory_orders::checksum(scratch, u64::from(written.min(len)) / 8 * 8).value();
        say!(self.reply, " len={written} first={first:#x} sum={sum:#x}");
        Ok(())
    }

    /// Ends what runs by itself on a device.
    pub(super) fn release(&mut self, bdf: Bdf) {
        self.server.take_if(|server| server.bdf() == bdf);
        self.stress.take_if(|stress| stress.bdf() == bdf);
        self.release_peer(bdf);
    }

    /// Returns memory for requests of the guest's own.
    pub(super) fn scratch(&mut self) -> Result<u64, OrderError> {
        if let Some(scratch) = self.scratch {
            return Ok(scratch);
        }
        let scratch = self.memory.allocate_raw(SCRATCH_BYTES, 4096)?;
        self.scratch = Some(scratch);
        Ok(scratch)
    }
}

pub(super) const NO_ANSWER: &str = "the device does not answer";

/// Reads `BDF QUEUE`.
pub(super) fn queue_words(words: &mut Words<'_>) -> Result<(Bdf, u16), OrderError> {
    Ok((Bdf(words.bdf()?), words.narrow("QUEUE")?))
}

/// Returns whether `vcheck` has a request for a queue.
fn is_asked(device: &Device, queue: &Queue) -> bool {
    match device.transport.kind {
        KIND_BLOCK | KIND_PMEM | KIND_RNG => true,
        KIND_NET => net_orders::is_transmit(queue.index) || net_orders::is_control(device, queue.index),
        _ => false,
    }
}

/// Adds the request of `vcheck` to a queue. Returns whether there is one.
fn ask(device: &Device, queue: &mut Queue, scratch: u64) -> bool {
    if !is_asked(device, queue) || !queue.has_room(3) {
        return false;
    }
    match device.transport.kind {
        KIND_BLOCK => {
            let request = Request { kind: block_orders::READ, sector: 0, data: Some((scratch, 512)) };
            request.add_to(queue);
        }
        KIND_NET if net_orders::is_control(device, queue.index) => {
            net_orders::add_pairs_command(device, queue)
        }
        KIND_NET => net_orders::add_test_frame(queue, scratch + SCRATCH_BYTES / 2),
        KIND_PMEM => pmem_orders::add_request(queue, pmem_orders::FLUSH.into()),
        _ => queue.add(&[Segment::write(scratch, 8)]),
    }
    true
}
