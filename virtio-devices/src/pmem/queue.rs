//! Serving the request queue.

use std::{io, sync::Arc};

use address_manager::{GuestMemoryView, MemoryReader};

use super::{Store, counters::Counters};
use crate::{
    device::{Activation, ActiveQueue, StoppedQueue},
    interrupt::ConfigInterrupt,
    one_worker::DeviceJob,
    queue::{Chain, QueueError, QueueState},
    worker::{Job, Poller, QueueSlot, signal},
};

const KICK: u32 = 0;

/// Requests that are answered by one flush: all of them were made before it began.
const BATCH: usize = 64;

/// The type of the one request there is (virtio 1.3 section 5.19.6).
const FLUSH: u32 = 0;
/// Answers (virtio 1.3 section 5.19.7).
const DONE: i32 = 0;
const FAILED: i32 = -1;
/// Bytes of a request's type, and of an answer.
const WORD: u32 = 4;

#[derive(Debug)]
pub(crate) struct FlushJob {
    id: String,
    store: Arc<dyn Store>,
    counters: Arc<Counters>,
    memory: MemoryReader,
    config: ConfigInterrupt,
    queue: QueueSlot,
    /// A flush failed before, and that was logged.
    failed: bool,
}

impl FlushJob {
    pub(super) fn new(
        id: &str,
        store: Arc<dyn Store>,
        counters: Arc<Counters>,
        activation: Activation,
    ) -> Self {
        let Activation { features: _, memory, queues, config } = activation;
        let queue = QueueSlot::new(KICK, queues.into_iter().next());
        Self { id: id.to_owned(), store, counters, memory: memory.reader(), config, queue, failed: false }
    }
}

impl DeviceJob for FlushJob {
    fn start_queue(&mut self, queue: ActiveQueue) {
        self.queue.start(queue);
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        self.queue.stop(index)
    }

    fn states(&self) -> Vec<StoppedQueue> {
        self.queue.state().into_iter().collect()
    }
}

impl Job for FlushJob {
    fn start(&mut self, _poller: &Poller) -> io::Result<()> {
        self.queue.begin();
        Ok(())
    }

    fn look(&mut self, poller: &Poller) {
        if let Err(error) = self.queue.watch(poller) {
            self.fail(&error);
        }
        let Some(queue) = self.queue.working() else { return };
        let (id, store, failed) = (&self.id, &*self.store, &mut self.failed);
        let flush = || match store.flush() {
            Ok(()) => true,
            Err(error) => {
                // The guest can ask as often as it likes.
                if !std::mem::replace(failed, true) {
                    log::warn!("{id}: cannot flush: {error}");
                }
                false
            }
        };
        if let Err(error) = serve(queue, self.memory.get(), flush, &self.counters) {
            queue.fail(&self.id, &self.config, &error);
        }
    }

    fn ready(&mut self, _source: u32, poller: &Poller) {
        self.queue.consume_kick();
        self.look(poller);
    }

    fn fail(&mut self, why: &io::Error) {
        self.config.needs_reset(&self.id, why);
    }
}

/// Answers the requests that are there, as many as a batch has. A flush takes long, so the thread looks around before the
/// next batch: it may have been asked to come to a halt.
fn serve(
    queue: &mut ActiveQueue,
    memory: &GuestMemoryView,
    flush: impl FnOnce() -> bool,
    counters: &Counters,
) -> Result<(), QueueError> {
    queue.queue.disable_notification(memory)?;
    let mut requests = Vec::new();
    while requests.len() < BATCH
        && let Some(chain) = queue.queue.pop(memory)?
    {
        requests.push((is_flush(&chain, memory)?, chain));
    }
    let flushed = requests.iter().any(|(wanted, _)| *wanted) && flush();
    for (wanted, chain) in requests {
        let done = wanted && flushed;
        counters.add(done.into(), (!done).into());
        let answer = if done { DONE } else { FAILED };
        chain.write(memory, 0, &answer.to_le_bytes())?;
        queue.queue.add_used(memory, chain, WORD)?;
    }
    if queue.queue.enable_notification(memory)? {
        signal(&queue.kick);
    }
    queue.notify(memory)
}

/// Whether it is a request that the device knows.
fn is_flush(chain: &Chain, memory: &GuestMemoryView) -> Result<bool, QueueError> {
    if chain.readable_len() < WORD {
        return Ok(false);
    }
    Ok(u32::from_le_bytes(chain.read_array(memory, 0)?) == FLUSH)
}
