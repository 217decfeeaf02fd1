//! Serving one queue: requests go to an engine as they come and back to the driver as they are done.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use address_manager::{GuestMemoryView, MemoryReader};

use super::{
    device::Disk,
    request::{IOERR, Kind, OK, UNSUPP, WRITE_DATA},
};
use crate::{
    device::{ActiveQueue, BUDGET, StoppedQueue},
    host::{
        affinity::pin_current_thread,
        buffers::{Buffers, Part},
        disk::engine::{Completion, Engine, Operation, Request},
    },
    interrupt::ConfigInterrupt,
    queue::{Chain, QueueError},
    worker::{Job, LimitTimer, Poller, consume, signal},
};

const KICK: u32 = 0;
const ENGINE: u32 = 1;
const TIMER: u32 = 2;

/// Requests that are begun together, before those that are done are given back.
const BATCH: u32 = 32;

/// A request in flight.
#[derive(Debug)]
struct Pending {
    chain: Chain,
    kind: Kind,
    memory: Arc<GuestMemoryView>,
    begun: Instant,
    /// The data is written; what remains is to make it stable.
    flushing: bool,
    done: usize,
}

pub(super) struct QueueJob {
    disk: Arc<Disk>,
    queue: ActiveQueue,
    memory: MemoryReader,
    config: ConfigInterrupt,
    cpus: Vec<usize>,
    engine: Option<Box<dyn Engine>>,
    /// By tag.
    pending: Vec<Option<Pending>>,
    free: Vec<u16>,
    timer: LimitTimer,
    /// The rate limit lets nothing pass until the timer rings.
    throttled: bool,
    /// No new request is taken.
    quiet: bool,
}

impl QueueJob {
    pub(super) fn new(
        disk: &Arc<Disk>,
        queue: ActiveQueue,
        memory: MemoryReader,
        config: ConfigInterrupt,
        cpus: Vec<usize>,
    ) -> io::Result<Self> {
        let timer = LimitTimer::new(disk.limiter.is_some())?;
        Ok(Self {
            disk: Arc::clone(disk),
            queue,
            memory,
            config,
            cpus,
            engine: None,
            pending: Vec::new(),
            free: Vec::new(),
            timer,
            throttled: false,
            quiet: true,
        })
    }

    pub(super) fn state(&self) -> StoppedQueue {
        (self.queue.index, self.queue.queue.state())
    }

    /// Takes what the driver offers and gives back what is done, until there is neither.
    fn serve(&mut self) -> Result<(), QueueError> {
        let memory = Arc::clone(self.memory.get());
        let mut left = BUDGET;
        loop {
            self.queue.queue.disable_notification(&*memory)?;
            let mut batch = BATCH;
            while !self.quiet
                && !self.throttled
                && batch > 0
                && let Some(chain) = self.queue.queue.pop(&*memory)?
            {
                batch -= 1;
                self.begin(chain, &memory)?;
            }
            self.kick_engine();
            self.complete()?;
            left = left.saturating_sub(BATCH - batch);
            if left == 0 {
                // A driver that never rests must not keep the thread from coming to a halt.
                signal(&self.queue.kick);
                break;
            }
            if self.quiet || self.throttled {
                break;
            }
            if batch == 0 {
                self.queue.notify(&memory)?;
            } else if !self.queue.queue.enable_notification(&*memory)? {
                break;
            }
        }
        self.queue.notify(&memory)
    }

    fn begin(&mut self, chain: Chain, memory: &Arc<GuestMemoryView>) -> Result<(), QueueError> {
        let kind = Kind::parse(&chain, memory, self.disk.limits())?;
        let begun = Instant::now();
        if let Some(limiter) = &self.disk.limiter
            && let Err(wait) = limiter.take(kind.bytes(), begun)
        {
            self.queue.queue.give_back(chain);
            self.throttle(wait);
            return Ok(());
        }
        let pending = Pending { chain, kind, memory: Arc::clone(memory), begun, flushing: false, done: 0 };
        let align = self.disk.image.memory_alignment();
        let prepared = match kind {
            Kind::Read { offset, len } => Buffers::new(&pending.chain, Part::Writable, 0, len, memory, align)
                .map(|buffers| (Operation::Read { offset }, Some(buffers))),
            Kind::Write { offset, len } => {
                Buffers::new(&pending.chain, Part::Readable, WRITE_DATA, len, memory, align)
                    .map(|buffers| (Operation::Write { offset }, Some(buffers)))
            }
            Kind::Flush => Ok((Operation::Flush, None)),
            Kind::Discard { offset, len } => Ok((Operation::Discard { offset, len }, None)),
            Kind::WriteZeroes { offset, len, unmap } => {
                Ok((Operation::WriteZeroes { offset, len, unmap }, None))
            }
            Kind::GetId { len } => {
                let len = usize::try_from(len).unwrap_or(0);
                pending.chain.write(&**memory, 0, self.disk.serial.get(..len).unwrap_or_default())?;
                return self.finish(pending, OK);
            }
            Kind::Refused(status) => return self.finish(pending, status),
        };
        match prepared {
            Ok((operation, buffers)) => {
                self.submit(pending, operation, buffers);
                Ok(())
            }
            // A request that needs more memory of ours than it may have.
            Err(QueueError::ChainBytes) => self.finish(pending, IOERR),
            Err(error) => Err(error),
        }
    }

    fn submit(&mut self, pending: Pending, operation: Operation, buffers: Option<Buffers>) {
        let tag = self.insert(pending);
        if let Some(engine) = &mut self.engine {
            engine.submit(Request { tag, operation, buffers });
        }
    }

    fn insert(&mut self, pending: Pending) -> u16 {
        if let Some(tag) = self.free.pop()
            && let Some(slot) = self.pending.get_mut(usize::from(tag))
        {
            *slot = Some(pending);
            return tag;
        }
        self.pending.push(Some(pending));
        // No more are in flight than the queue has descriptors.
        u16::try_from(self.pending.len() - 1).unwrap_or(u16::MAX)
    }

    fn in_flight(&self) -> usize {
        self.pending.len() - self.free.len()
    }

    fn kick_engine(&mut self) {
        if let Some(engine) = &mut self.engine {
            engine.kick();
        }
    }

    /// Gives back what the engine has done.
    fn complete(&mut self) -> Result<(), QueueError> {
        while let Some(Completion { tag, result, buffers }) =
            self.engine.as_mut().and_then(|engine| engine.completion())
        {
            let Some(pending) = self.pending.get_mut(usize::from(tag)).and_then(Option::take) else {
                continue;
            };
            self.free.push(tag);
            self.completed(pending, result, buffers)?;
        }
        Ok(())
    }

    fn completed(
        &mut self,
        mut pending: Pending,
        result: io::Result<usize>,
        buffers: Option<Buffers>,
    ) -> Result<(), QueueError> {
        let count = match result {
            Ok(count) => count,
            Err(error) => {
                // The guest chooses how often this happens.
                log::debug!("{}: {:?}: {error}", self.disk.id, pending.kind);
                let known = error.raw_os_error() != Some(libc::EOPNOTSUPP);
                return self.finish(pending, if known { IOERR } else { UNSUPP });
            }
        };
        if let Some(mut buffers) = buffers {
            buffers.advance(count);
            pending.done += count;
            if buffers.remaining() > 0 {
                return self.go_on(pending, count, buffers);
            }
            if let Kind::Read { len, .. } = pending.kind {
                let memory = Arc::clone(&pending.memory);
                buffers.deliver(&pending.chain, 0, len, &memory)?;
            }
        }
        let writes = matches!(pending.kind, Kind::Write { .. } | Kind::WriteZeroes { .. });
        if writes && !pending.flushing && !self.disk.writeback() {
            pending.flushing = true;
            self.submit(pending, Operation::Flush, None);
            self.kick_engine();
            return Ok(());
        }
        self.finish(pending, OK)
    }

    /// The kernel did a part of a read or write: the rest is a request of its own.
    fn go_on(&mut self, pending: Pending, count: usize, buffers: Buffers) -> Result<(), QueueError> {
        let done = pending.done as u64;
        let operation = match pending.kind {
            Kind::Read { offset, .. } => Operation::Read { offset: offset.saturating_add(done) },
            Kind::Write { offset, .. } => Operation::Write { offset: offset.saturating_add(done) },
            _ => return self.finish(pending, IOERR),
        };
        if count == 0 {
            // The image ends before the disk does: somebody made it shorter.
            return self.finish(pending, IOERR);
        }
        self.submit(pending, operation, Some(buffers));
        self.kick_engine();
        Ok(())
    }

    fn finish(&mut self, pending: Pending, status: u8) -> Result<(), QueueError> {
        let Pending { chain, kind, memory, begun, .. } = pending;
        let mut written = 1;
        if status == OK {
            match kind {
                Kind::Read { len, .. } => {
                    written += len;
                    self.disk.counters.read(u64::from(len), begun.elapsed());
                }
                Kind::Write { len, .. } => self.disk.counters.written(u64::from(len), begun.elapsed()),
                Kind::GetId { len } => written += len,
                _ => {}
            }
        }
        chain.write(&*memory, chain.writable_len() - 1, &[status])?;
        self.queue.queue.add_used(&*memory, chain, written)
    }

    fn throttle(&mut self, wait: Duration) {
        self.throttled = self.timer.set(wait);
    }

    fn serve_or_break(&mut self) {
        if self.queue.queue.is_broken() {
            // What is in flight goes on to its end and is forgotten.
            while let Some(done) = self.engine.as_mut().and_then(|engine| engine.completion()) {
                if let Some(slot) = self.pending.get_mut(usize::from(done.tag))
                    && slot.take().is_some()
                {
                    self.free.push(done.tag);
                }
            }
        } else if let Err(error) = self.serve() {
            self.queue.fail(&self.disk.id, &self.config, &error);
        }
    }
}

impl Job for QueueJob {
    fn start(&mut self, poller: &Poller) -> io::Result<()> {
        if !self.cpus.is_empty()
            && let Err(error) = pin_current_thread(&self.cpus)
        {
            log::warn!("{}: queue {}: affinity: {error}", self.disk.id, self.queue.index);
        }
        // A thread that begins again has its engine.
        let engine = match self.engine.take() {
            Some(engine) => engine,
            None => self.disk.image.new_engine(self.queue.queue.size())?,
        };
        poller.add(&*self.queue.kick, KICK)?;
        if let Some(event) = engine.event() {
            poller.add(event, ENGINE)?;
        }
        self.timer.watch(poller, TIMER)?;
        self.engine = Some(engine);
        Ok(())
    }

    fn look(&mut self, _poller: &Poller) {
        self.quiet = false;
        self.serve_or_break();
    }

    fn ready(&mut self, source: u32, _poller: &Poller) {
        match source {
            KICK => consume(&self.queue.kick),
            ENGINE => {
                if let Some(event) = self.engine.as_ref().and_then(|engine| engine.event()) {
                    consume(event);
                }
            }
            _ => {
                self.timer.take();
                self.throttled = false;
            }
        }
        self.serve_or_break();
    }

    fn quiesce(&mut self) -> bool {
        self.quiet = true;
        self.in_flight() == 0
    }

    fn fail(&mut self, why: &io::Error) {
        self.config.needs_reset(&self.disk.id, why);
    }
}
