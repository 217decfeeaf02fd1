//! Serving a pair of queues: frames go straight between guest memory and the back end.
//!
//! For frames to the guest, buffers are taken ahead, since how many a frame fills is known only when it is
//! there; at a halt those that are not filled go back. A tail of our own catches what does not fit into the
//! buffers that were offered for a frame.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use address_manager::{GuestMemoryView, MemoryReader};
use vmm_sys_util::epoll::EventSet;

use super::{
    device::{Context, Shared},
    features,
};
use crate::{
    device::{ActiveQueue, BUDGET, StoppedQueue},
    host::{
        buffers::{Part, Vectors, mark_written},
        rate_limiter::RateLimiter,
        tap::HEADER,
    },
    queue::{Chain, QueueError, QueueState},
    worker::{Job, LimitTimer, Poller, QueueSlot, signal},
};

const RECEIVE_KICK: u32 = 0;
const TRANSMIT_KICK: u32 = 1;
const BACKEND: u32 = 2;
const RECEIVE_TIMER: u32 = 3;
const TRANSMIT_TIMER: u32 = 4;

/// Largest frame: an unsegmented packet of 64 KiB, with Ethernet and virtio headers.
const MAX_FRAME: usize = 65550 + HEADER;
/// Room that is offered for a frame unless frames are large.
const USUAL_FRAME: u32 = 4096;

/// Frames after which the driver is told of them at the latest.
const BATCH: u32 = 32;

pub(super) struct PairJob {
    shared: Arc<Shared>,
    pair: u16,
    context: Context,
    backend: Arc<File>,
    memory: MemoryReader,
    receive: QueueSlot,
    transmit: QueueSlot,
    /// Buffers taken for frames to come, oldest first.
    posted: VecDeque<Chain>,
    posted_len: u64,
    tail: Box<[u8]>,
    /// The last frame was a large one.
    large: bool,
    receive_timer: LimitTimer,
    transmit_timer: LimitTimer,
    receive_throttled: bool,
    transmit_throttled: bool,
    /// The back end takes no frame now.
    backend_full: bool,
    /// The back end has nothing more to give.
    failed: bool,
    /// How the back end is waited for; not at all once it failed.
    polled: Option<EventSet>,
}

impl PairJob {
    pub(super) fn new(shared: &Arc<Shared>, pair: u16, context: &Context) -> io::Result<Self> {
        let backend = shared.backend.queue(pair).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self {
            shared: Arc::clone(shared),
            pair,
            context: context.clone(),
            backend: Arc::clone(backend),
            memory: context.memory.reader(),
            receive: QueueSlot::new(RECEIVE_KICK, None),
            transmit: QueueSlot::new(TRANSMIT_KICK, None),
            posted: VecDeque::new(),
            posted_len: 0,
            tail: Box::default(),
            large: false,
            receive_timer: LimitTimer::new(shared.receive_limiter.is_some())?,
            transmit_timer: LimitTimer::new(shared.transmit_limiter.is_some())?,
            receive_throttled: false,
            transmit_throttled: false,
            backend_full: false,
            failed: false,
            polled: None,
        })
    }

    pub(super) fn pair(&self) -> u16 {
        self.pair
    }

    pub(super) fn start_queue(&mut self, queue: ActiveQueue) {
        if queue.index.is_multiple_of(2) {
            self.receive.start(queue);
        } else {
            self.transmit.start(queue);
        }
    }

    pub(super) fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        if index != self.pair * 2 {
            return self.transmit.stop(index);
        }
        self.give_back();
        self.receive.stop(index)
    }

    pub(super) fn states(&self) -> Vec<StoppedQueue> {
        self.receive.state().into_iter().chain(self.transmit.state()).collect()
    }

    /// Returns the buffers that were taken ahead.
    fn give_back(&mut self) {
        let Some(queue) = self.receive.working() else {
            self.posted.clear();
            self.posted_len = 0;
            return;
        };
        while let Some(chain) = self.posted.pop_back() {
            queue.queue.give_back(chain);
        }
        self.posted_len = 0;
    }

    fn mergeable(&self) -> bool {
        self.context.features & features::MRG_RXBUF != 0
    }

    /// Frames for the guest, until there is none, no buffer, or no token. Says whether to wait for more.
    fn receive(&mut self) -> Result<bool, QueueError> {
        if self.receive_throttled || self.failed || self.receive.working().is_none() {
            return Ok(false);
        }
        let memory = Arc::clone(self.memory.get());
        if self.tail.is_empty() {
            self.tail = vec![0; MAX_FRAME].into();
        }
        let mut left = BUDGET;
        let mut more = true;
        while left > 0 {
            left -= 1;
            let wanted = if self.large { MAX_FRAME as u64 } else { u64::from(USUAL_FRAME) };
            if !self.post(&memory, wanted)? {
                more = false;
                break;
            }
            if let Some(limiter) = &self.shared.receive_limiter
                && let Err(wait) = limiter.ready(Instant::now())
            {
                self.receive_throttled = self.receive_timer.set(wait);
                more = false;
                break;
            }
            match self.take_frame(&memory)? {
                Some(0) => {}
                Some(len) => self.deliver(len, &memory)?,
                None => break,
            }
            if left.is_multiple_of(BATCH)
                && let Some(queue) = self.receive.working()
            {
                queue.notify(&memory)?;
            }
        }
        if let Some(queue) = self.receive.working() {
            if more {
                // Buffers are there: new ones are found when they are needed.
                queue.queue.disable_notification(&*memory)?;
            }
            queue.notify(&memory)?;
            if left == 0 {
                signal(&queue.kick);
            }
        }
        Ok(more)
    }

    /// Takes buffers until `wanted` bytes are there, or there are no more. Says whether there is any.
    fn post(&mut self, memory: &GuestMemoryView, wanted: u64) -> Result<bool, QueueError> {
        let Some(queue) = self.receive.working() else { return Ok(false) };
        let one = !features_have(self.context.features, features::MRG_RXBUF);
        while (self.posted.is_empty() || !one) && self.posted_len < wanted {
            let chain = match queue.queue.pop(memory)? {
                Some(chain) => chain,
                // Nothing there: the driver is asked to kick, and looked at once more.
                None if queue.queue.enable_notification(memory)? => continue,
                None => break,
            };
            self.posted_len += u64::from(chain.writable_len());
            self.posted.push_back(chain);
        }
        Ok(!self.posted.is_empty())
    }

    /// Reads a frame into the posted buffers and the tail. Its length with header; none if there is none.
    fn take_frame(&mut self, memory: &GuestMemoryView) -> Result<Option<usize>, QueueError> {
        let count = if self.mergeable() { self.posted.len() } else { 1 };
        let mut vectors = Vectors::new();
        for chain in self.posted.iter().take(count) {
            vectors.add_chain(chain, Part::Writable, chain.writable_len(), memory)?;
        }
        vectors.add_bytes(&mut self.tail);
        match vectors.receive(&self.backend) {
            Ok(len) => Ok(Some(len)),
            Err(error) => {
                if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) {
                    // Ready for ever with nothing to give: somebody removed the interface.
                    log::warn!("{}: queue pair {}: receive: {error}", self.shared.id, self.pair);
                    self.failed = true;
                }
                Ok(None)
            }
        }
    }

    /// Hands the buffers that hold a frame of `len` bytes to the driver.
    fn deliver(&mut self, len: usize, memory: &GuestMemoryView) -> Result<(), QueueError> {
        let offered = usize::try_from(self.posted_len).unwrap_or(usize::MAX);
        self.large = len > USUAL_FRAME as usize;
        if len > offered && !self.spill(len, offered, memory)? {
            // It does not fit: dropped, as a full network card does.
            return Ok(());
        }
        let Some(queue) = self.receive.working() else { return Ok(()) };
        let mut filled = Vec::new();
        let mut rest = u32::try_from(len).unwrap_or(u32::MAX);
        while rest > 0
            && let Some(chain) = self.posted.pop_front()
        {
            let part = rest.min(chain.writable_len());
            self.posted_len -= u64::from(chain.writable_len());
            mark_written(&chain, part, memory)?;
            rest -= part;
            filled.push((chain, part));
        }
        if let Some((first, _)) = filled.first() {
            // The back end does not know how many buffers there are.
            let count = u16::try_from(filled.len()).unwrap_or(u16::MAX);
            first.write(memory, 10, &count.to_le_bytes())?;
        }
        for (chain, part) in filled {
            queue.queue.put_used(memory, chain, part)?;
        }
        queue.queue.publish_used(memory)?;
        let bytes = len.saturating_sub(HEADER) as u64;
        self.shared.counters.receive_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.shared.counters.receive_frames.fetch_add(1, Ordering::Relaxed);
        if let Some(limiter) = &self.shared.receive_limiter {
            limiter.charge(bytes);
        }
        Ok(())
    }

    /// Moves what is in the tail to further buffers, if there are enough.
    fn spill(&mut self, len: usize, offered: usize, memory: &GuestMemoryView) -> Result<bool, QueueError> {
        if !self.mergeable() || !self.post(memory, len as u64)? || self.posted_len < len as u64 {
            return Ok(false);
        }
        let mut rest = self.tail.get(..len - offered).unwrap_or_default();
        let mut before = 0u64;
        for chain in &self.posted {
            if before >= offered as u64 && !rest.is_empty() {
                let count = rest.len().min(usize::try_from(chain.writable_len()).unwrap_or(0));
                let (part, more) = rest.split_at(count);
                chain.write(memory, 0, part)?;
                rest = more;
            }
            before += u64::from(chain.writable_len());
        }
        Ok(true)
    }

    /// Frames from the guest, until there is none, or they are not taken now.
    fn transmit(&mut self) -> Result<(), QueueError> {
        if self.transmit_throttled || self.backend_full {
            return Ok(());
        }
        let memory = Arc::clone(self.memory.get());
        let Some(queue) = self.transmit.working() else { return Ok(()) };
        let mut left = BUDGET;
        loop {
            queue.queue.disable_notification(&*memory)?;
            while left > 0 {
                left -= 1;
                let Some(chain) = queue.queue.pop(&*memory)? else { break };
                let len = chain.readable_len();
                let bytes = u64::from(len).saturating_sub(HEADER as u64);
                if let Some(wait) = refused(self.shared.transmit_limiter.as_deref(), bytes) {
                    queue.queue.give_back(chain);
                    self.transmit_throttled = self.transmit_timer.set(wait);
                    return queue.notify(&memory);
                }
                let mut vectors = Vectors::new();
                vectors.add_chain(&chain, Part::Readable, len, &memory)?;
                match vectors.send(&self.backend) {
                    Ok(_) => {
                        self.shared.counters.transmit_bytes.fetch_add(bytes, Ordering::Relaxed);
                        self.shared.counters.transmit_frames.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        queue.queue.give_back(chain);
                        self.backend_full = true;
                        return queue.notify(&memory);
                    }
                    // A frame that makes no sense to the host is lost, as on a wire.
                    Err(error) => log::debug!("{}: transmit: {error}", self.shared.id),
                }
                queue.queue.add_used(&*memory, chain, 0)?;
                if left.is_multiple_of(BATCH) {
                    queue.notify(&memory)?;
                }
            }
            if left == 0 {
                signal(&queue.kick);
                break;
            }
            if !queue.queue.enable_notification(&*memory)? {
                break;
            }
        }
        queue.notify(&memory)
    }

    fn serve(&mut self, poller: &Poller) {
        if let Err(error) = self.transmit()
            && let Some(queue) = self.transmit.working_or_broken()
        {
            queue.fail(&self.shared.id, &self.context.config, &error);
        }
        let more = match self.receive() {
            Ok(more) => more,
            Err(error) => {
                if let Some(queue) = self.receive.working_or_broken() {
                    queue.fail(&self.shared.id, &self.context.config, &error);
                }
                self.give_back();
                false
            }
        };
        let mut wanted = EventSet::empty();
        wanted.set(EventSet::IN, more);
        wanted.set(EventSet::OUT, self.backend_full);
        if self.failed {
            // It would be ready for ever.
            if self.polled.take().is_some() {
                poller.remove(&*self.backend);
            }
        } else if let Some(polled) = &mut self.polled
            && *polled != wanted
        {
            *polled = wanted;
            if let Err(error) = poller.modify(&*self.backend, BACKEND, wanted) {
                self.fail(&error);
            }
        }
    }
}

fn features_have(features: u64, bit: u64) -> bool {
    features & bit != 0
}

fn refused(limiter: Option<&RateLimiter>, bytes: u64) -> Option<Duration> {
    limiter?.take(bytes, Instant::now()).err()
}

impl Job for PairJob {
    fn start(&mut self, poller: &Poller) -> io::Result<()> {
        self.receive.begin();
        self.transmit.begin();
        self.polled = Some(EventSet::empty());
        poller.add_for(&*self.backend, BACKEND, EventSet::empty())?;
        self.receive_timer.watch(poller, RECEIVE_TIMER)?;
        self.transmit_timer.watch(poller, TRANSMIT_TIMER)
    }

    fn look(&mut self, poller: &Poller) {
        for slot in [&mut self.receive, &mut self.transmit] {
            if let Err(error) = slot.watch(poller) {
                self.context.config.needs_reset(&self.shared.id, &error);
            }
        }
        self.backend_full = false;
        self.serve(poller);
    }

    fn ready(&mut self, source: u32, poller: &Poller) {
        match source {
            RECEIVE_KICK => self.receive.consume_kick(),
            TRANSMIT_KICK => self.transmit.consume_kick(),
            RECEIVE_TIMER => {
                self.receive_timer.take();
                self.receive_throttled = false;
            }
            TRANSMIT_TIMER => {
                self.transmit_timer.take();
                self.transmit_throttled = false;
            }
            _ => self.backend_full = false,
        }
        self.serve(poller);
    }

    fn quiesce(&mut self) -> bool {
        self.give_back();
        true
    }

    fn fail(&mut self, why: &io::Error) {
        self.context.config.needs_reset(&self.shared.id, why);
    }
}
