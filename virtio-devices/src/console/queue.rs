//! Serving the two queues of the port.

use std::{io, os::fd::RawFd, sync::Arc};

use address_manager::MemoryReader;
use devices::terminal::{Terminal, Watch};
use vmm_sys_util::epoll::EventSet;

use crate::{
    device::{Activation, ActiveQueue, StoppedQueue},
    interrupt::ConfigInterrupt,
    one_worker::DeviceJob,
    queue::{Chain, QueueError, QueueState},
    worker::{Job, Poller, QueueSlot},
};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

const RECEIVE_KICK: u32 = 0;
const TRANSMIT_KICK: u32 = 1;
const TERMINAL: u32 = 2;

/// Bytes that are copied at a time.
const PIECE: usize = 4096;

/// Largest output request: no driver sends more, and the thread must come to a halt in bounded time.
const MAX_OUTPUT: u32 = 4 << 20;

pub(crate) struct PortJob {
    id: String,
    terminal: Arc<Terminal>,
    memory: MemoryReader,
    config: ConfigInterrupt,
    receive: QueueSlot,
    transmit: QueueSlot,
    polled: Polled,
}

impl PortJob {
    pub(super) fn new(id: &str, terminal: &Arc<Terminal>, activation: Activation) -> Self {
        let Activation { features: _, memory, queues, config } = activation;
        let mut job = Self {
            id: id.to_owned(),
            terminal: Arc::clone(terminal),
            memory: memory.reader(),
            config,
            receive: QueueSlot::new(RECEIVE_KICK, None),
            transmit: QueueSlot::new(TRANSMIT_KICK, None),
            polled: Polled::default(),
        };
        queues.into_iter().for_each(|queue| job.start_queue(queue));
        job
    }

    /// The guest's output.
    fn transmit(&mut self) {
        let Some(queue) = self.transmit.working() else { return };
        let memory = self.memory.get();
        let terminal = &self.terminal;
        let mut piece = [0; PIECE];
        let served = queue.serve(memory, |chain| {
            if chain.readable_len() > MAX_OUTPUT {
                return Err(QueueError::ChainBytes);
            }
            let mut offset = 0;
            while offset < chain.readable_len() {
                let count = (chain.readable_len() - offset).min(4096);
                let part = piece.get_mut(..usize::try_from(count).unwrap_or(0)).unwrap_or_default();
                chain.read(&**memory, offset, part)?;
                terminal.write(part);
                offset += count;
            }
            Ok(0)
        });
        if let Err(error) = served {
            queue.fail(&self.id, &self.config, &error);
        }
    }

    /// Input for the guest. Says whether the guest has room for more than there is.
    fn receive(&mut self) -> bool {
        let Some(queue) = self.receive.working() else { return false };
        match fill(queue, &mut self.memory, &self.terminal) {
            Ok(room) => room,
            Err(error) => {
                queue.fail(&self.id, &self.config, &error);
                false
            }
        }
    }

    fn serve(&mut self, poller: &Poller) {
        self.transmit();
        let room = self.receive();
        if let Err(error) = self.polled.update(poller, self.terminal.watch(), room) {
            log::warn!("{}: terminal: {error}", self.id);
        }
    }
}

fn fill(queue: &mut ActiveQueue, memory: &mut MemoryReader, terminal: &Terminal) -> Result<bool, QueueError> {
    let memory = memory.get();
    let mut piece = [0; PIECE];
    let room = loop {
        let Some(chain) = next(queue, memory)? else { break false };
        let room = usize::try_from(chain.writable_len()).unwrap_or(PIECE).min(PIECE);
        let count = terminal.read(piece.get_mut(..room).unwrap_or_default());
        if count == 0 && room > 0 {
            queue.queue.give_back(chain);
            break true;
        }
        chain.write(&**memory, 0, piece.get(..count).unwrap_or_default())?;
        queue.queue.add_used(&**memory, chain, u32::try_from(count).unwrap_or(0))?;
    };
    queue.notify(memory)?;
    Ok(room)
}

/// The next buffer; if there is none, the driver was asked to kick.
fn next(
    queue: &mut ActiveQueue,
    memory: &address_manager::GuestMemoryView,
) -> Result<Option<Chain>, QueueError> {
    match queue.queue.pop(memory)? {
        None if queue.queue.enable_notification(memory)? => queue.queue.pop(memory),
        other => Ok(other),
    }
}

impl DeviceJob for PortJob {
    fn start_queue(&mut self, queue: ActiveQueue) {
        match queue.index {
            RECEIVE => self.receive.start(queue),
            TRANSMIT => self.transmit.start(queue),
            _ => {}
        }
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        self.receive.stop(index).or_else(|| self.transmit.stop(index))
    }

    fn states(&self) -> Vec<StoppedQueue> {
        self.receive.state().into_iter().chain(self.transmit.state()).collect()
    }
}

impl Job for PortJob {
    fn start(&mut self, _poller: &Poller) -> io::Result<()> {
        // The thread's poller is a new one.
        self.polled = Polled::default();
        self.receive.begin();
        self.transmit.begin();
        Ok(())
    }

    fn look(&mut self, poller: &Poller) {
        for slot in [&mut self.receive, &mut self.transmit] {
            if let Err(error) = slot.watch(poller) {
                self.config.needs_reset(&self.id, &error);
            }
        }
        if self.terminal.tend() {
            self.polled.forget(poller);
        }
        self.serve(poller);
    }

    fn ready(&mut self, source: u32, poller: &Poller) {
        match source {
            RECEIVE_KICK => self.receive.consume_kick(),
            TRANSMIT_KICK => self.transmit.consume_kick(),
            _ => {
                if self.terminal.tend() {
                    self.polled.forget(poller);
                }
            }
        }
        self.serve(poller);
    }

    fn fail(&mut self, why: &io::Error) {
        self.config.needs_reset(&self.id, why);
    }
}

/// Descriptors of the terminal that are waited for, and how.
#[derive(Debug, Default)]
struct Polled(Vec<(RawFd, EventSet)>);

impl Polled {
    /// Waits for what the terminal wants, and for input only if it can be taken.
    fn update(&mut self, poller: &Poller, watch: Watch, room: bool) -> io::Result<()> {
        let Watch { input, output, listener } = watch;
        let mut wanted: Vec<(RawFd, EventSet)> = Vec::new();
        let sources =
            [(input.filter(|_| room), EventSet::IN), (output, EventSet::OUT), (listener, EventSet::IN)];
        for (fd, events) in sources {
            let Some(fd) = fd else { continue };
            match wanted.iter_mut().find(|(other, _)| *other == fd) {
                Some((_, already)) => *already |= events,
                None => wanted.push((fd, events)),
            }
        }
        if wanted == self.0 {
            return Ok(());
        }
        for (fd, _) in self.0.iter().filter(|(fd, _)| wanted.iter().all(|(other, _)| other != fd)) {
            poller.remove(fd);
        }
        self.0.retain(|(fd, _)| wanted.iter().any(|(other, _)| other == fd));
        // One that is refused keeps none of the others from being waited for, and is tried again.
        let mut refused = Ok(());
        for (fd, events) in wanted {
            let done = match self.0.iter_mut().find(|(other, _)| *other == fd) {
                Some((_, already)) if *already == events => Ok(()),
                Some((_, already)) => poller.modify(&fd, TERMINAL, events).map(|()| *already = events),
                None => poller.add_for(&fd, TERMINAL, events).map(|()| self.0.push((fd, events))),
            };
            refused = refused.and(done);
        }
        refused
    }

    /// Descriptors were closed: their numbers may mean others now.
    fn forget(&mut self, poller: &Poller) {
        for (fd, _) in self.0.drain(..) {
            poller.remove(&fd);
        }
    }
}
