//! The device's thread: packets from and to the guest's queues, streams of the host's.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use address_manager::{GuestMemoryView, MemoryReader};
use vmm_sys_util::epoll::EventSet;

use super::{
    clock::Clock,
    connection::BUFFER,
    device::Shared,
    packet::{HEADER, Header, operation},
    switch::{MAX_PAYLOAD, Switch},
};
use crate::{
    device::{Activation, ActiveQueue, BUDGET, StoppedQueue},
    host::vsock::HostSocket,
    interrupt::ConfigInterrupt,
    one_worker::DeviceJob,
    queue::{Chain, QueueError, QueueState},
    worker::{Job, Poller, QueueSlot, signal},
};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const EVENT: u16 = 2;

const RECEIVE_KICK: u32 = 0;
const TRANSMIT_KICK: u32 = 1;
const EVENT_KICK: u32 = 2;
const LISTENER: u32 = 3;
/// The stream of place 0; the others follow.
const FIRST_PLACE: u32 = 4;

const HEADER_LEN: u32 = 44;
const _: () = assert!(HEADER == 44);

/// Event: the connections are gone, and the context id may be another (virtio 1.3 section 5.10.6.7).
const TRANSPORT_RESET: u32 = 0;

/// Programs that are let in at a time.
const ACCEPTED_AT_ONCE: usize = 16;

/// After a program could not be let in, how long until it is tried again: a short time for the program, and a long one for
/// the processor.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

pub(crate) struct SocketJob {
    shared: Arc<Shared>,
    memory: MemoryReader,
    config: ConfigInterrupt,
    receive: QueueSlot,
    transmit: QueueSlot,
    event: QueueSlot,
    switch: Switch<Arc<HostSocket>>,
    /// Bytes of one packet, either way.
    bytes: Vec<u8>,
    clock: Clock,
    /// Whether the listener is waited for.
    listening: bool,
    /// Before that time it is not.
    listen_from: Duration,
    /// No program could be let in, and that was logged.
    told_of_failure: bool,
    /// The guest's packets wait until it has taken some resets.
    held_up: bool,
}

impl SocketJob {
    pub(super) fn new(shared: &Arc<Shared>, activation: Activation) -> Self {
        let Activation { features: _, memory, queues, config } = activation;
        let mut job = Self {
            shared: Arc::clone(shared),
            memory: memory.reader(),
            config,
            receive: QueueSlot::new(RECEIVE_KICK, None),
            transmit: QueueSlot::new(TRANSMIT_KICK, None),
            event: QueueSlot::new(EVENT_KICK, None),
            switch: Switch::new(
                shared.cid,
                Arc::clone(&shared.host),
                Arc::clone(&shared.tally),
                shared.answer_limit,
            ),
            bytes: Vec::new(),
            clock: Clock::new(Instant::now()),
            listening: false,
            listen_from: Duration::ZERO,
            told_of_failure: false,
            held_up: false,
        };
        queues.into_iter().for_each(|queue| job.start_queue(queue));
        job
    }

    fn slots_mut(&mut self) -> [&mut QueueSlot; 3] {
        [&mut self.receive, &mut self.transmit, &mut self.event]
    }

    fn serve(&mut self, poller: &Poller) {
        // Before any packet: what the guest hears first is that its connections are gone.
        self.tell();
        self.deliver();
        self.collect();
        self.switch.give_up();
        self.deliver();
        self.go_on();
        self.watch_streams(poller);
        self.listen(poller);
        let again = (!self.listening).then_some(self.listen_from);
        let next = [self.switch.next_limit(), again].into_iter().flatten().min();
        poller.set_alarm(next.and_then(|time| self.clock.when(time)));
    }

    /// The time that the device has run.
    fn time(&self) -> Duration {
        self.clock.time(Instant::now())
    }

    /// The event, if there is one to tell and a buffer for it. Without a buffer it waits.
    fn tell(&mut self) {
        if !self.shared.transport_reset.load(Ordering::Acquire) {
            return;
        }
        let Some(queue) = self.event.working() else { return };
        let memory = self.memory.get();
        match tell_reset(queue, memory) {
            Ok(told) => {
                if told {
                    self.shared.transport_reset.store(false, Ordering::Release);
                }
            }
            Err(error) => queue.fail(&self.shared.id, &self.config, &error),
        }
    }

    fn deliver(&mut self) {
        let Some(queue) = self.receive.working() else { return };
        self.bytes.resize(BUFFER as usize, 0);
        let memory = self.memory.get();
        if let Err(error) = send_all(queue, memory, &mut self.switch, &mut self.bytes) {
            queue.fail(&self.shared.id, &self.config, &error);
        }
    }

    fn collect(&mut self) {
        let Some(queue) = self.transmit.working() else { return };
        self.bytes.resize(BUFFER as usize, 0);
        let memory = self.memory.get();
        if let Err(error) = receive_all(queue, memory, &mut self.switch, &mut self.bytes) {
            queue.fail(&self.shared.id, &self.config, &error);
        }
        self.held_up = !self.switch.takes_packets();
    }

    /// Packets were left in the queue because of resets that the guest has taken now: the driver will not kick for them.
    fn go_on(&mut self) {
        if self.held_up
            && self.switch.takes_packets()
            && let Some(queue) = self.transmit.working()
        {
            self.held_up = false;
            signal(&queue.kick);
        }
    }

    /// Waits for streams that are new. Each tells once when it becomes readable, writable, or is hung up.
    fn watch_streams(&mut self, poller: &Poller) {
        for at in self.switch.take_new() {
            let Some(source) = source_of(at) else { continue };
            let Some(stream) = self.switch.stream(at) else { continue };
            let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
            if let Err(error) = poller.add_for(stream, source, events) {
                log::warn!("{}: a program of the host's cannot be waited for: {error}", self.shared.id);
            }
        }
    }

    /// Waits for programs, if that was given up and its time has come.
    fn listen(&mut self, poller: &Poller) {
        if self.listening || self.time() < self.listen_from {
            return;
        }
        match poller.add(&*self.shared.host, LISTENER) {
            Ok(()) => self.listening = true,
            Err(error) => self.listen_later(&error),
        }
    }

    /// No program can be let in now, most likely because no descriptor is left.
    fn listen_later(&mut self, why: &io::Error) {
        if !std::mem::replace(&mut self.told_of_failure, true) {
            log::warn!("{}: a program of the host's cannot be let in: {why}", self.shared.id);
        }
        self.listening = false;
        self.listen_from = self.time().saturating_add(ACCEPT_AGAIN);
    }

    fn accept(&mut self, poller: &Poller) {
        for _ in 0..ACCEPTED_AT_ONCE {
            match self.switch.accept() {
                Ok(()) => self.told_of_failure = false,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // The listener is ready all the while: it would be told again and again.
                    poller.remove(&*self.shared.host);
                    self.listen_later(&error);
                    return;
                }
            }
        }
    }
}

fn source_of(at: usize) -> Option<u32> {
    u32::try_from(at).ok()?.checked_add(FIRST_PLACE)
}

/// The next buffer; if there is none, the driver was asked to kick.
fn next(queue: &mut ActiveQueue, memory: &GuestMemoryView) -> Result<Option<Chain>, QueueError> {
    match queue.queue.pop(memory)? {
        None if queue.queue.enable_notification(memory)? => queue.queue.pop(memory),
        other => Ok(other),
    }
}

fn tell_reset(queue: &mut ActiveQueue, memory: &GuestMemoryView) -> Result<bool, QueueError> {
    let Some(chain) = next(queue, memory)? else { return Ok(false) };
    chain.write(memory, 0, &TRANSPORT_RESET.to_le_bytes())?;
    queue.queue.add_used(memory, chain, 4)?;
    queue.notify(memory)?;
    Ok(true)
}

/// Gives the guest what there is for it, as far as it has buffers.
fn send_all(
    queue: &mut ActiveQueue,
    memory: &GuestMemoryView,
    switch: &mut Switch<Arc<HostSocket>>,
    bytes: &mut [u8],
) -> Result<(), QueueError> {
    let mut left = BUDGET;
    while left > 0 && switch.has_packets() {
        let Some(chain) = next(queue, memory)? else { break };
        let room = usize::try_from(chain.writable_len().saturating_sub(HEADER_LEN)).unwrap_or(0);
        let data = bytes.get_mut(..room.min(MAX_PAYLOAD)).unwrap_or_default();
        let Some(header) = switch.next_packet(data) else {
            queue.queue.give_back(chain);
            break;
        };
        chain.write(memory, 0, &header.to_bytes())?;
        let len = usize::try_from(header.len).unwrap_or(0);
        chain.write(memory, HEADER_LEN, data.get(..len).unwrap_or_default())?;
        queue.queue.add_used(memory, chain, HEADER_LEN.saturating_add(header.len))?;
        left -= 1;
    }
    if left == 0 {
        signal(&queue.kick);
    }
    queue.notify(memory)
}

/// Takes what the guest sends, as long as it takes its resets.
fn receive_all(
    queue: &mut ActiveQueue,
    memory: &GuestMemoryView,
    switch: &mut Switch<Arc<HostSocket>>,
    bytes: &mut [u8],
) -> Result<(), QueueError> {
    let mut left = BUDGET;
    while switch.takes_packets() {
        if left == 0 {
            signal(&queue.kick);
            break;
        }
        left -= 1;
        let Some(chain) = next(queue, memory)? else { break };
        let header = Header::from_bytes(&chain.read_array(memory, 0)?);
        let there = chain.readable_len().saturating_sub(HEADER_LEN);
        match usize::try_from(header.len).ok().and_then(|len| bytes.get_mut(..len)) {
            _ if header.operation != operation::RW => switch.receive(&header, &[]),
            Some(bytes) if header.len <= there => {
                chain.read(memory, HEADER_LEN, bytes)?;
                switch.receive(&header, bytes);
            }
            // More than it has, or than anybody was promised room for.
            _ => switch.break_off(&header),
        }
        queue.queue.add_used(memory, chain, 0)?;
    }
    queue.notify(memory)
}

impl DeviceJob for SocketJob {
    fn start_queue(&mut self, queue: ActiveQueue) {
        match queue.index {
            RECEIVE => self.receive.start(queue),
            TRANSMIT => self.transmit.start(queue),
            EVENT => self.event.start(queue),
            _ => {}
        }
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        self.slots_mut().into_iter().find_map(|slot| slot.stop(index))
    }

    fn states(&self) -> Vec<StoppedQueue> {
        [&self.receive, &self.transmit, &self.event].into_iter().filter_map(QueueSlot::state).collect()
    }
}

impl Job for SocketJob {
    fn start(&mut self, poller: &Poller) -> io::Result<()> {
        // The thread's poller is a new one.
        self.slots_mut().into_iter().for_each(QueueSlot::begin);
        self.listening = false;
        self.switch.renew();
        poller.add(&*self.shared.host, LISTENER)?;
        self.listening = true;
        Ok(())
    }

    fn look(&mut self, poller: &Poller) {
        for slot in [&mut self.receive, &mut self.transmit, &mut self.event] {
            if let Err(error) = slot.watch(poller) {
                self.config.needs_reset(&self.shared.id, &error);
            }
        }
        self.clock.go_on(Instant::now());
        self.switch.set_time(self.time());
        for at in self.switch.all() {
            self.switch.ready(at);
        }
        self.serve(poller);
    }

    fn ready(&mut self, source: u32, poller: &Poller) {
        self.switch.set_time(self.time());
        match source {
            RECEIVE_KICK => self.receive.consume_kick(),
            TRANSMIT_KICK => self.transmit.consume_kick(),
            EVENT_KICK => self.event.consume_kick(),
            LISTENER => self.accept(poller),
            place => {
                if let Ok(at) = usize::try_from(place.saturating_sub(FIRST_PLACE)) {
                    self.switch.ready(at);
                }
            }
        }
        self.serve(poller);
    }

    fn alarm(&mut self, poller: &Poller) {
        self.switch.set_time(self.time());
        self.serve(poller);
    }

    fn quiesce(&mut self) -> bool {
        self.clock.stop(Instant::now());
        true
    }

    fn fail(&mut self, why: &io::Error) {
        self.config.needs_reset(&self.shared.id, why);
    }
}
