//! The control queue (virtio 1.3 section 5.1.6.5).

use std::{io, sync::Arc};

use address_manager::{GuestMemoryView, MemoryReader};

use super::{
    device::{Context, GUEST_OFFLOADS, Shared},
    features,
};
use crate::{
    device::{ActiveQueue, StoppedQueue},
    interrupt::ConfigInterrupt,
    queue::{Chain, QueueError, QueueState},
    worker::{Job, Poller, QueueSlot},
};

const KICK: u32 = 0;

const OK: u8 = 0;
const ERR: u8 = 1;

pub(super) struct ControlJob {
    shared: Arc<Shared>,
    features: u64,
    memory: MemoryReader,
    config: ConfigInterrupt,
    queue: QueueSlot,
}

impl ControlJob {
    pub(super) fn new(shared: &Arc<Shared>, context: &Context) -> Self {
        Self {
            shared: Arc::clone(shared),
            features: context.features,
            memory: context.memory.reader(),
            config: context.config.clone(),
            queue: QueueSlot::new(KICK, None),
        }
    }

    pub(super) fn start_queue(&mut self, queue: ActiveQueue) {
        self.queue.start(queue);
    }

    pub(super) fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        self.queue.stop(index)
    }

    pub(super) fn states(&self) -> Vec<StoppedQueue> {
        self.queue.state().into_iter().collect()
    }
}

impl Job for ControlJob {
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
        let (shared, features) = (&self.shared, self.features);
        if let Err(error) = queue.serve(memory, |chain| answer(chain, memory, shared, features)) {
            queue.fail(&self.shared.id, &self.config, &error);
        }
    }

    fn ready(&mut self, _source: u32, poller: &Poller) {
        self.queue.consume_kick();
        self.look(poller);
    }

    fn fail(&mut self, why: &io::Error) {
        self.config.needs_reset(&self.shared.id, why);
    }
}

/// Carries a command out and acknowledges it.
fn answer(
    chain: &Chain,
    memory: &GuestMemoryView,
    shared: &Shared,
    features: u64,
) -> Result<u32, QueueError> {
    let [class, command] = chain.read_array(memory, 0)?;
    let done = match (class, command) {
        (1, 0) if features & features::CTRL_MAC_ADDR != 0 => {
            // A table of addresses to be received: all are.
            true
        }
        (1, 1) if features & features::CTRL_MAC_ADDR != 0 => {
            shared.choose_mac(chain.read_array(memory, 2)?);
            true
        }
        (3, 0) if features & features::GUEST_ANNOUNCE != 0 => {
            shared.announced();
            true
        }
        (4, 0) if features & features::MQ != 0 => {
            let pairs = u16::from_le_bytes(chain.read_array(memory, 2)?);
            (1..=shared.pairs).contains(&pairs) && succeeded(shared, shared.set_active_pairs(pairs))
        }
        (5, 0) if features & features::CTRL_GUEST_OFFLOADS != 0 => {
            let bits = u64::from_le_bytes(chain.read_array(memory, 2)?);
            let allowed = features & GUEST_OFFLOADS;
            bits & !allowed == 0 && succeeded(shared, shared.choose_offloads(bits))
        }
        _ => false,
    };
    chain.write(memory, 0, &[if done { OK } else { ERR }])?;
    Ok(1)
}

fn succeeded(shared: &Shared, result: io::Result<()>) -> bool {
    if let Err(error) = &result {
        log::debug!("{}: control: {error}", shared.id);
    }
    result.is_ok()
}
