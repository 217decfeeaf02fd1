//! The device: its configuration space, its life, and its threads.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    },
};

use address_manager::Transaction;
use devices::{PauseError, Stateful};
use parking_lot::Mutex;
use vm_migration::LoadError;

use super::{NetBackend, NetState, control::ControlJob, features, queue::PairJob};
use crate::{
    device::{
        ActivateError, Activation, ActiveQueue, DeviceType, FeatureRule, Queues, StoppedQueue, VirtioDevice,
    },
    host::{
        rate_limiter::RateLimiter,
        tap::{HEADER, Offloads},
    },
    interrupt::ConfigInterrupt,
    queue::QueueState,
    worker::{Spawn, Worker, pause_all},
};

/// Size of the control queue.
const CONTROL_SIZE: u16 = 64;

/// Offload features of frames to the guest.
pub(super) const GUEST_OFFLOADS: u64 = features::GUEST_CSUM
    | features::GUEST_TSO4
    | features::GUEST_TSO6
    | features::GUEST_ECN
    | features::GUEST_UFO;

const STATUS_LINK_UP: u16 = 1;
const STATUS_ANNOUNCE: u16 = 2;

/// Rules of virtio 1.3 section 5.1.3.1.
const RULES: [FeatureRule; 13] = [
    (features::GUEST_TSO4, features::GUEST_CSUM),
    (features::GUEST_TSO6, features::GUEST_CSUM),
    (features::GUEST_ECN, features::GUEST_TSO4 | features::GUEST_TSO6),
    (features::GUEST_UFO, features::GUEST_CSUM),
    (features::HOST_TSO4, features::CSUM),
    (features::HOST_TSO6, features::CSUM),
    (features::HOST_ECN, features::HOST_TSO4 | features::HOST_TSO6),
    (features::HOST_UFO, features::CSUM),
    (features::GUEST_ANNOUNCE, features::CTRL_VQ),
    (features::GUEST_ANNOUNCE, features::STATUS),
    (features::MQ, features::CTRL_VQ),
    (features::CTRL_MAC_ADDR, features::CTRL_VQ),
    (features::CTRL_GUEST_OFFLOADS, features::CTRL_VQ),
];

/// What a network device is built from.
#[derive(Debug)]
pub struct NetConfig {
    /// Its id.
    pub id: String,
    /// The guest's MAC address.
    pub mac: [u8; 6],
    /// The MTU that the guest is told.
    pub mtu: Option<u16>,
    /// Pairs of queues, 1 to 16.
    pub pairs: u16,
    /// Size of each queue but the control queue.
    pub queue_size: u16,
    /// Checksums are left unfinished.
    pub offload_csum: bool,
    /// TCP is left unsegmented.
    pub offload_tso: bool,
    /// UDP is left unfragmented.
    pub offload_ufo: bool,
    /// Limit of what the guest receives.
    pub receive_limiter: Option<Arc<RateLimiter>>,
    /// Limit of what the guest sends.
    pub transmit_limiter: Option<Arc<RateLimiter>>,
}

/// Frames and bytes, headers left out.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) receive_bytes: AtomicU64,
    pub(super) receive_frames: AtomicU64,
    pub(super) transmit_bytes: AtomicU64,
    pub(super) transmit_frames: AtomicU64,
}

/// What the threads have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) id: String,
    pub(super) backend: Arc<dyn NetBackend>,
    pub(super) counters: Counters,
    pub(super) receive_limiter: Option<Arc<RateLimiter>>,
    pub(super) transmit_limiter: Option<Arc<RateLimiter>>,
    /// Most pairs.
    pub(super) pairs: u16,
    configured_mac: [u8; 6],
    chosen_mac: Mutex<Option<[u8; 6]>>,
    announce: AtomicBool,
    active_pairs: AtomicU16,
    chosen_offloads: Mutex<Option<u64>>,
    /// Features and configuration interrupt of the driver; present while the device is active.
    driver: Mutex<Option<(u64, ConfigInterrupt)>>,
}

impl Shared {
    /// The MAC address that the guest has.
    fn mac(&self) -> [u8; 6] {
        (*self.chosen_mac.lock()).unwrap_or(self.configured_mac)
    }

    pub(super) fn choose_mac(&self, mac: [u8; 6]) {
        *self.chosen_mac.lock() = Some(mac);
    }

    pub(super) fn announced(&self) {
        self.announce.store(false, Ordering::Release);
    }

    /// The driver chooses how frames for it may be left unfinished.
    pub(super) fn choose_offloads(&self, bits: u64) -> io::Result<()> {
        self.set_offloads(bits)?;
        *self.chosen_offloads.lock() = Some(bits);
        Ok(())
    }

    fn set_offloads(&self, bits: u64) -> io::Result<()> {
        let has = |bit| bits & bit != 0;
        self.backend.set_offloads(Offloads {
            checksum: has(features::GUEST_CSUM),
            tso4: has(features::GUEST_TSO4),
            tso6: has(features::GUEST_TSO6),
            ecn: has(features::GUEST_ECN),
            ufo: has(features::GUEST_UFO),
        })
    }

    pub(super) fn set_active_pairs(&self, pairs: u16) -> io::Result<()> {
        self.backend.enable_queues(pairs)?;
        self.active_pairs.store(pairs, Ordering::Release);
        Ok(())
    }
}

/// Tells a network device what happens to it.
#[derive(Clone, Debug)]
pub struct NetControl {
    shared: Arc<Shared>,
}

impl NetControl {
    /// The guest lives in another place now: lets the network know. The driver is asked to announce itself,
    /// if it can; and a frame that bears its address is sent in its name, for switches to learn from.
    pub fn announce(&self) {
        if let Some((features, config)) = &*self.shared.driver.lock()
            && features & features::GUEST_ANNOUNCE != 0
        {
            self.shared.announce.store(true, Ordering::Release);
            config.changed();
        }
        if let Some(queue) = self.shared.backend.queue(0)
            && let Err(error) = send_announcement(queue, self.shared.mac())
        {
            log::warn!("{}: announcement: {error}", self.shared.id);
        }
    }
}

/// Sends a reverse ARP request (RFC 903) from and for `mac`, to everybody.
fn send_announcement(mut queue: &File, mac: [u8; 6]) -> io::Result<()> {
    let mut frame = vec![0; HEADER];
    frame.extend([0xff; 6]);
    frame.extend(mac);
    frame.extend([0x80, 0x35]);
    // Ethernet and IPv4, lengths of their addresses, request reverse.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 3]);
    frame.extend(mac);
    frame.extend([0; 4]);
    frame.extend(mac);
    frame.extend([0; 4]);
    frame.resize(HEADER + 60, 0);
    queue.write_all(&frame)
}

/// A network device.
#[derive(Debug)]
pub struct Net {
    shared: Arc<Shared>,
    features: u64,
    mtu: u16,
    queue_sizes: Vec<u16>,
    spawn: Arc<dyn Spawn>,
    pairs: Vec<Worker<PairJob>>,
    control: Option<Worker<ControlJob>>,
    /// Present while the device is active.
    context: Option<Context>,
}

impl Net {
    /// A device in front of `backend`.
    pub fn new(config: NetConfig, backend: Arc<dyn NetBackend>, spawn: Arc<dyn Spawn>) -> Self {
        let NetConfig {
            id,
            mac,
            mtu,
            pairs,
            queue_size,
            offload_csum,
            offload_tso,
            offload_ufo,
            receive_limiter,
            transmit_limiter,
        } = config;
        let pairs = pairs.max(1);
        let mut offered = features::MAC
            | features::MRG_RXBUF
            | features::STATUS
            | features::CTRL_VQ
            | features::GUEST_ANNOUNCE
            | features::CTRL_MAC_ADDR;
        let tso = features::GUEST_TSO4
            | features::GUEST_TSO6
            | features::GUEST_ECN
            | features::HOST_TSO4
            | features::HOST_TSO6
            | features::HOST_ECN;
        for (wanted, bits) in [
            (offload_csum, features::CSUM | features::GUEST_CSUM | features::CTRL_GUEST_OFFLOADS),
            (offload_csum && offload_tso, tso),
            (offload_csum && offload_ufo, features::GUEST_UFO | features::HOST_UFO),
            (mtu.is_some(), features::MTU),
            (pairs > 1, features::MQ),
        ] {
            if wanted {
                offered |= bits;
            }
        }
        let mut queue_sizes = vec![queue_size; usize::from(pairs) * 2];
        queue_sizes.push(CONTROL_SIZE);
        let shared = Shared {
            id,
            backend,
            counters: Counters::default(),
            receive_limiter,
            transmit_limiter,
            pairs,
            configured_mac: mac,
            chosen_mac: Mutex::new(None),
            announce: AtomicBool::new(false),
            active_pairs: AtomicU16::new(1),
            chosen_offloads: Mutex::new(None),
            driver: Mutex::new(None),
        };
        Self {
            shared: Arc::new(shared),
            features: offered,
            mtu: mtu.unwrap_or(0),
            queue_sizes,
            spawn,
            pairs: Vec::new(),
            control: None,
            context: None,
        }
    }

    /// A handle to tell it what happens to it.
    pub fn control(&self) -> NetControl {
        NetControl { shared: Arc::clone(&self.shared) }
    }

    /// Gives a queue to the thread that serves it, which is made if there is none.
    fn place(&mut self, queue: ActiveQueue, activation: &Context) -> Result<(), ActivateError> {
        let failed = |error| ActivateError::host("cannot make an eventfd or timer", error);
        if queue.index == activation.control {
            let job = ControlJob::new(&self.shared, activation);
            let worker = match self.control.take() {
                Some(worker) => worker,
                None => Worker::new(format!("{}_ctrl", self.shared.id), job, &self.spawn).map_err(failed)?,
            };
            worker.job().start_queue(queue);
            self.control = Some(worker);
            return Ok(());
        }
        let pair = queue.index / 2;
        if queue.index > activation.control || self.shared.backend.queue(pair).is_none() {
            // Beyond what the driver negotiated: nothing is there.
            return Ok(());
        }
        let at = self.pairs.iter().position(|worker| worker.job().pair() == pair);
        let worker = match at.and_then(|at| self.pairs.get(at)) {
            Some(worker) => worker,
            None => {
                let job = PairJob::new(&self.shared, pair, activation).map_err(failed)?;
                let name = format!("{}_qp{pair}", self.shared.id);
                let worker = Worker::new(name, job, &self.spawn).map_err(failed)?;
                self.pairs.push(worker);
                let Some(worker) = self.pairs.last() else { return Ok(()) };
                worker
            }
        };
        worker.job().start_queue(queue);
        Ok(())
    }

    fn states(&self) -> Vec<StoppedQueue> {
        let mut states: Vec<_> = self.pairs.iter().flat_map(|worker| worker.job().states()).collect();
        states.extend(self.control.iter().flat_map(|worker| worker.job().states()));
        states.sort_unstable_by_key(|(index, _)| *index);
        states
    }

    fn pause_workers(&self) -> Result<(), PauseError> {
        // The control thread first: it changes what the others work with.
        if let Some(control) = &self.control {
            control.pause()?;
        }
        pause_all(self.pairs.iter())
    }
}

/// What the threads of an activation are built with.
#[derive(Clone, Debug)]
pub(super) struct Context {
    pub(super) features: u64,
    pub(super) memory: devices::DmaMemory,
    pub(super) config: ConfigInterrupt,
    /// Number of the control queue.
    control: u16,
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::NET
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn feature_rules(&self) -> &'static [FeatureRule] {
        &RULES
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let announce = self.shared.announce.load(Ordering::Acquire);
        let status = STATUS_LINK_UP | if announce { STATUS_ANNOUNCE } else { 0 };
        let halves = [status, self.shared.pairs, self.mtu];
        let space: Vec<u8> =
            self.shared.mac().into_iter().chain(halves.into_iter().flat_map(u16::to_le_bytes)).collect();
        crate::device::read_config_bytes(&space, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { features, memory, queues, config } = activation;
        let multi_queue = features & features::MQ != 0;
        // Without several pairs the control queue follows the first (virtio 1.3 section 5.1.2).
        let control = if multi_queue { self.shared.pairs * 2 } else { 2 };
        let context = Context { features, memory, config: config.clone(), control };
        let pairs = self.shared.active_pairs.load(Ordering::Acquire);
        let chosen = *self.shared.chosen_offloads.lock();
        let offloads = chosen.unwrap_or(features & GUEST_OFFLOADS);
        let host = |what: &'static str| move |error| ActivateError::host(what, error);
        self.shared.set_active_pairs(pairs).map_err(host("cannot choose the tap's queues"))?;
        self.shared.set_offloads(offloads).map_err(host("cannot set the tap's offloads"))?;
        for queue in queues {
            self.place(queue, &context)?;
        }
        *self.shared.driver.lock() = Some((features, config));
        self.context = Some(context);
        Ok(())
    }

    fn reset(&mut self) {
        *self.shared.chosen_mac.lock() = None;
        self.shared.announce.store(false, Ordering::Release);
        self.shared.active_pairs.store(1, Ordering::Release);
        *self.shared.chosen_offloads.lock() = None;
    }

    fn counters(&self) -> BTreeMap<&'static str, u64> {
        let Counters { receive_bytes, receive_frames, transmit_bytes, transmit_frames } =
            &self.shared.counters;
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BTreeMap::from([
            ("rx_bytes", value(receive_bytes)),
            ("rx_frames", value(receive_frames)),
            ("tx_bytes", value(transmit_bytes)),
            ("tx_frames", value(transmit_frames)),
        ])
    }
}

impl Queues for Net {
    fn start_queue(&mut self, queue: ActiveQueue) -> Result<(), ActivateError> {
        let Some(context) = self.context.clone() else { return Ok(()) };
        self.place(queue, &context)?;
        self.pairs.iter_mut().for_each(Worker::wake_or_resume);
        self.control.iter_mut().for_each(Worker::wake_or_resume);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Result<Option<QueueState>, PauseError> {
        let in_pairs = self.pairs.iter().find_map(|worker| worker.job().stop_queue(index));
        Ok(in_pairs.or_else(|| self.control.as_ref().and_then(|worker| worker.job().stop_queue(index))))
    }

    fn stop(&mut self) -> Result<Vec<StoppedQueue>, PauseError> {
        self.pause_workers()?;
        let states = self.states();
        self.pairs.clear();
        self.control = None;
        *self.shared.driver.lock() = None;
        self.context = None;
        Ok(states)
    }

    fn ask_to_pause(&self) {
        self.control.iter().for_each(Worker::ask_to_pause);
        self.pairs.iter().for_each(Worker::ask_to_pause);
    }

    fn pause(&mut self) -> Result<Vec<StoppedQueue>, PauseError> {
        self.pause_workers()?;
        Ok(self.states())
    }

    fn resume(&mut self) {
        self.pairs.iter_mut().for_each(Worker::resume);
        self.control.iter_mut().for_each(Worker::resume);
    }
}

impl Stateful for Net {
    type State = NetState;

    fn save(&self) -> NetState {
        NetState {
            chosen_mac: *self.shared.chosen_mac.lock(),
            announce: self.shared.announce.load(Ordering::Acquire),
            pairs: self.shared.active_pairs.load(Ordering::Acquire),
            chosen_offloads: *self.shared.chosen_offloads.lock(),
        }
    }

    fn load(&mut self, state: NetState, _transaction: &Transaction<'_>) -> Result<(), LoadError> {
        let NetState { chosen_mac, announce, pairs, chosen_offloads } = state;
        if pairs == 0 || pairs > self.shared.pairs {
            let why = format!("{pairs}, the device has {}", self.shared.pairs);
            return Err(LoadError::field("device.pairs", why));
        }
        if let Some(bits) = chosen_offloads.filter(|bits| bits & !(self.features & GUEST_OFFLOADS) != 0) {
            let why = format!("{bits:#x} has bits that the device does not offer");
            return Err(LoadError::field("device.chosen_offloads", why));
        }
        *self.shared.chosen_mac.lock() = chosen_mac;
        self.shared.announce.store(announce, Ordering::Release);
        self.shared.active_pairs.store(pairs, Ordering::Release);
        *self.shared.chosen_offloads.lock() = chosen_offloads;
        Ok(())
    }
}
