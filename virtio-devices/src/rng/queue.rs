//! Serving the request queue.

use std::{
    fs::File,
    io::{self, Read},
    sync::Arc,
};

use address_manager::{GuestMemoryView, MemoryReader};

use crate::{
    device::{Activation, ActiveQueue, StoppedQueue},
    interrupt::ConfigInterrupt,
    one_worker::DeviceJob,
    queue::{Chain, QueueError, QueueState},
    worker::{Job, Poller, QueueSlot},
};

const KICK: u32 = 0;

/// Most bytes that one request is filled with. A driver that asked for more asks again.
const MAX_BYTES: usize = 4096;

#[derive(Debug)]
pub(crate) struct RequestJob {
    id: String,
    source: Arc<File>,
    memory: MemoryReader,
    config: ConfigInterrupt,
    queue: QueueSlot,
    /// The source failed before, and that was logged.
    failed: bool,
}

impl RequestJob {
    pub(super) fn new(id: &str, source: &Arc<File>, activation: Activation) -> Self {
        let Activation { features: _, memory, queues, config } = activation;
        let queue = QueueSlot::new(KICK, queues.into_iter().next());
        let source = Arc::clone(source);
        Self { id: id.to_owned(), source, memory: memory.reader(), config, queue, failed: false }
    }
}

impl DeviceJob for RequestJob {
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

impl Job for RequestJob {
    fn start(&mut self, _poller: &Poller) -> io::Result<()> {
        self.queue.begin();
        Ok(())
    }

    fn look(&mut self, poller: &Poller) {
        if let Err(error) = self.queue.watch(poller) {
            self.fail(&error);
        }
        let Some(queue) = self.queue.working() else { return };
        let memory = self.memory.get();
        let (source, failed) = (&*self.source, &mut self.failed);
        if let Err(error) = queue.serve(memory, |chain| fill(chain, source, failed, memory)) {
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

/// Fills the writable part of a request; returns how much of it.
fn fill(
    chain: &Chain,
    mut source: &File,
    failed: &mut bool,
    memory: &GuestMemoryView,
) -> Result<u32, QueueError> {
    let mut bytes = [0; MAX_BYTES];
    let wanted = usize::try_from(chain.writable_len()).unwrap_or(MAX_BYTES).min(MAX_BYTES);
    let Some(part) = bytes.get_mut(..wanted) else { return Ok(0) };
    match source.read_exact(part) {
        Ok(()) => {
            chain.write(memory, 0, part)?;
            Ok(u32::try_from(wanted).unwrap_or(0))
        }
        Err(error) => {
            // The guest can ask as often as it likes.
            if !std::mem::replace(failed, true) {
                log::warn!("entropy source: {error}");
            }
            Ok(0)
        }
    }
}
