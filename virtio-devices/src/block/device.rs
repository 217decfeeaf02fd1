//! The device: its configuration space, its life, and the threads of its queues.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use address_manager::Transaction;
use devices::{PauseError, Stateful};
use log::warn;
use parking_lot::Mutex;
use vm_migration::LoadError;

use super::{
    BlockState,
    counters::Counters,
    features,
    queue::QueueJob,
    request::{ID_LENGTH, Limits, MAX_DISCARD_SECTORS, MAX_ZEROES_SECTORS},
};
use crate::{
    device::{ActivateError, Activation, ActiveQueue, DeviceType, Queues, StoppedQueue, VirtioDevice},
    host::{
        disk::{DiskImage, Geometry, SECTOR},
        rate_limiter::RateLimiter,
    },
    interrupt::ConfigInterrupt,
    queue::QueueState,
    worker::{Spawn, Worker, pause_all},
};

/// What a block device is built from.
#[derive(Debug)]
pub struct BlockConfig {
    /// Its id.
    pub id: String,
    /// The guest may not write.
    pub read_only: bool,
    /// Writes to sector 0 are refused: of an image whose format was guessed, so that a guest cannot make
    /// it look like another.
    pub protect_first_sector: bool,
    /// Identification string, of which 20 bytes count.
    pub serial: String,
    /// Number of queues; 1 at least.
    pub queues: u16,
    /// Size of each.
    pub queue_size: u16,
    /// Limits, possibly shared with other disks.
    pub limiter: Option<Arc<RateLimiter>>,
    /// Host CPUs of the threads of some queues.
    pub affinity: BTreeMap<u16, Vec<usize>>,
}

/// What the queues have in common.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) id: String,
    pub(super) image: Arc<dyn DiskImage>,
    pub(super) read_only: bool,
    protect_first_sector: bool,
    pub(super) serial: [u8; ID_LENGTH as usize],
    pub(super) limiter: Option<Arc<RateLimiter>>,
    pub(super) counters: Counters,
    block_size: u32,
    capacity_sectors: AtomicU64,
    /// Writes are stable only after a flush.
    writeback: AtomicBool,
    /// Present while the device is active.
    config: Mutex<Option<ConfigInterrupt>>,
    /// The driver is to be told of a new configuration once it can be.
    changed: AtomicBool,
}

impl Disk {
    pub(super) fn limits(&self) -> Limits {
        Limits {
            capacity_sectors: self.capacity_sectors.load(Ordering::Acquire),
            block_size: self.block_size,
            read_only: self.read_only,
            protect_first_sector: self.protect_first_sector,
            can_discard: self.image.can_discard(),
        }
    }

    pub(super) fn writeback(&self) -> bool {
        self.writeback.load(Ordering::Acquire)
    }
}

/// A block device.
#[derive(Debug)]
pub struct Block {
    disk: Arc<Disk>,
    features: u64,
    queue_sizes: Vec<u16>,
    affinity: BTreeMap<u16, Vec<usize>>,
    spawn: Arc<dyn Spawn>,
    workers: Vec<Worker<QueueJob>>,
    activation: Option<Activation>,
}

/// Changes a block device while it works.
#[derive(Clone, Debug)]
pub struct BlockControl {
    disk: Arc<Disk>,
}

impl BlockControl {
    /// Changes the size of the disk, and tells the driver.
    ///
    /// # Errors
    /// The image cannot be resized.
    pub fn resize(&self, size_bytes: u64) -> io::Result<()> {
        self.disk.image.resize(size_bytes)?;
        self.disk.capacity_sectors.store(size_bytes / SECTOR, Ordering::Release);
        if let Some(config) = &*self.disk.config.lock() {
            config.changed();
        }
        Ok(())
    }

    /// The image, for its lock.
    pub fn image(&self) -> &dyn DiskImage {
        &*self.disk.image
    }
}

impl Block {
    /// A disk with that image.
    pub fn new(config: BlockConfig, image: Arc<dyn DiskImage>, spawn: Arc<dyn Spawn>) -> Self {
        let BlockConfig {
            id,
            read_only,
            protect_first_sector,
            serial,
            queues,
            queue_size,
            limiter,
            affinity,
        } = config;
        let mut offered = features::SEG_MAX
            | features::BLK_SIZE
            | features::FLUSH
            | features::TOPOLOGY
            | features::CONFIG_WCE;
        if read_only {
            offered |= features::RO;
        } else {
            offered |= features::WRITE_ZEROES;
        }
        if image.can_discard() && !read_only {
            offered |= features::DISCARD;
        }
        if queues > 1 {
            offered |= features::MQ;
        }
        let mut identification = [0; ID_LENGTH as usize];
        for (byte, character) in identification.iter_mut().zip(serial.bytes()) {
            *byte = character;
        }
        let disk = Disk {
            id,
            read_only,
            protect_first_sector,
            serial: identification,
            limiter,
            counters: Counters::new(),
            block_size: image.geometry().logical_block,
            capacity_sectors: AtomicU64::new(image.size_bytes() / SECTOR),
            writeback: AtomicBool::new(true),
            config: Mutex::new(None),
            changed: AtomicBool::new(false),
            image,
        };
        Self {
            disk: Arc::new(disk),
            features: offered,
            queue_sizes: vec![queue_size; usize::from(queues.max(1))],
            affinity,
            spawn,
            workers: Vec::new(),
            activation: None,
        }
    }

    /// A handle to change it while it works.
    pub fn control(&self) -> BlockControl {
        BlockControl { disk: Arc::clone(&self.disk) }
    }

    /// The engine that serves it, for reports.
    pub fn engine(&self) -> &'static str {
        self.disk.image.engine_name()
    }

    fn config_space(&self) -> [u8; 96] {
        let Geometry { logical_block, physical_block, minimum_io, optimal_io } = self.disk.image.geometry();
        let blocks = |bytes: u32| bytes / logical_block.max(1);
        let exponent = blocks(physical_block).max(1).trailing_zeros();
        let largest = u32::from(self.queue_sizes.first().copied().unwrap_or(0));
        let mut space = ConfigSpace([0; 96]);
        space.put(0, &self.disk.limits().capacity_sectors.to_le_bytes());
        // Header and status take two descriptors.
        space.put(12, &largest.saturating_sub(2).max(1).to_le_bytes());
        space.put(20, &logical_block.to_le_bytes());
        space.put(24, &[u8::try_from(exponent).unwrap_or(0), 0]);
        space.put(26, &u16::try_from(blocks(minimum_io)).unwrap_or(u16::MAX).to_le_bytes());
        space.put(28, &blocks(optimal_io).to_le_bytes());
        space.put(32, &[u8::from(self.disk.writeback())]);
        space.put(34, &u16::try_from(self.queue_sizes.len()).unwrap_or(u16::MAX).to_le_bytes());
        if self.features & features::DISCARD != 0 {
            space.put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
            space.put(40, &1u32.to_le_bytes());
            space.put(44, &(physical_block / 512).to_le_bytes());
        }
        if self.features & features::WRITE_ZEROES != 0 {
            space.put(48, &MAX_ZEROES_SECTORS.to_le_bytes());
            space.put(52, &1u32.to_le_bytes());
            space.put(56, &[u8::from(self.disk.image.can_discard())]);
        }
        space.0
    }

    fn worker(&self, queue: ActiveQueue, activation: &Activation) -> Result<Worker<QueueJob>, ActivateError> {
        let name = format!("{}_q{}", self.disk.id, queue.index);
        let cpus = self.affinity.get(&queue.index).cloned().unwrap_or_default();
        let job =
            QueueJob::new(&self.disk, queue, activation.memory.reader(), activation.config.clone(), cpus);
        let job = job.map_err(|error| ActivateError::host("cannot make a timer", error))?;
        Worker::new(name, job, &self.spawn)
            .map_err(|error| ActivateError::host("cannot make an eventfd", error))
    }

    fn states(&self) -> Vec<StoppedQueue> {
        self.workers.iter().map(|worker| worker.job().state()).collect()
    }
}

struct ConfigSpace([u8; 96]);

impl ConfigSpace {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (old, new) in self.0.iter_mut().skip(at).zip(bytes) {
            *old = *new;
        }
    }
}

/// Offset of the write cache mode in the configuration space.
const WRITEBACK: u64 = 32;

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::BLOCK
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::device::read_config_bytes(&self.config_space(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let chosen =
            self.activation.as_ref().is_none_or(|activation| activation.features & features::CONFIG_WCE != 0);
        if let (WRITEBACK, &[value @ (0 | 1)]) = (offset, data)
            && chosen
        {
            self.disk.writeback.store(value == 1, Ordering::Release);
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        if activation.features & features::CONFIG_WCE == 0 {
            // A driver that knows neither flush nor the choice relies on writes that are stable when done
            // (virtio 1.3 section 5.2.6.2).
            let writeback = activation.features & features::FLUSH != 0;
            self.disk.writeback.store(writeback, Ordering::Release);
        }
        let queues = std::mem::take(&mut activation.queues);
        let workers: Result<_, _> = queues.into_iter().map(|queue| self.worker(queue, &activation)).collect();
        self.workers = workers?;
        *self.disk.config.lock() = Some(activation.config.clone());
        self.activation = Some(activation);
        Ok(())
    }

    fn reset(&mut self) {
        self.disk.writeback.store(true, Ordering::Release);
    }

    fn counters(&self) -> BTreeMap<&'static str, u64> {
        self.disk.counters.values()
    }
}

impl Queues for Block {
    fn start_queue(&mut self, queue: ActiveQueue) -> Result<(), ActivateError> {
        if let Some(activation) = &self.activation {
            let mut worker = self.worker(queue, activation)?;
            worker.resume();
            self.workers.push(worker);
        }
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Result<Option<QueueState>, PauseError> {
        let at = self.workers.iter().position(|worker| worker.job().state().0 == index);
        let Some(worker) = at.and_then(|at| self.workers.get_mut(at)) else { return Ok(None) };
        worker.stop()?;
        let (_, state) = worker.job().state();
        self.workers.retain(|worker| worker.job().state().0 != index);
        Ok(Some(state))
    }

    fn stop(&mut self) -> Result<Vec<StoppedQueue>, PauseError> {
        pause_all(self.workers.iter())?;
        let states = self.states();
        self.workers.clear();
        *self.disk.config.lock() = None;
        self.activation = None;
        Ok(states)
    }

    fn ask_to_pause(&self) {
        self.workers.iter().for_each(Worker::ask_to_pause);
    }

    fn pause(&mut self) -> Result<Vec<StoppedQueue>, PauseError> {
        pause_all(self.workers.iter())?;
        Ok(self.states())
    }

    fn resume(&mut self) {
        if self.disk.changed.swap(false, Ordering::AcqRel)
            && let Some(config) = &*self.disk.config.lock()
        {
            config.changed();
        }
        self.workers.iter_mut().for_each(Worker::resume);
    }
}

impl Stateful for Block {
    type State = BlockState;

    fn save(&self) -> BlockState {
        BlockState {
            capacity_sectors: self.disk.limits().capacity_sectors,
            block_size: self.disk.block_size,
            writeback: self.disk.writeback(),
        }
    }

    fn load(&mut self, state: BlockState, _transaction: &Transaction<'_>) -> Result<(), LoadError> {
        state.check(&*self.disk.image)?;
        let BlockState { capacity_sectors, block_size: _, writeback } = state;
        let now = self.disk.limits().capacity_sectors;
        if capacity_sectors < now {
            warn!("{}: the image grew from {capacity_sectors} to {now} sectors", self.disk.id);
            self.disk.changed.store(true, Ordering::Release);
        }
        self.disk.writeback.store(writeback, Ordering::Release);
        Ok(())
    }
}
