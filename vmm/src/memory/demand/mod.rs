//! Memory that is paged in as it is touched.
//!
//! A [`Pager`] owns the faults of a restored machine's zones. Whoever touches a missing page, be it the guest,
//! a device or the kernel, waits until the pager has read the chunk around it out of the snapshot, checked
//! it, and put it there as a whole; a chunk that was zero costs no reading. A chunk that is not what was saved
//! is never put there: the machine stands where it touched it, and its owner is told.
//!
//! Not everybody who waits can be told to give up. A vCPU that is being set up waits inside the kernel (for the page of its
//! paravirtual clock, say), and so does a thread of the kernel's that fetches a page for a vCPU which does not wait; the VM
//! cannot go before that one has it. So whoever waits is let go where that does no harm: while the machine is being built,
//! which then fails, and when it stands still for good.

pub(super) mod uffd;

use std::{
    io,
    ops::Range,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use vm_memory::MmapRegion;
use vm_migration::snapshot::SavedMemory;

use self::uffd::{Fault, Userfaultfd};
use super::content::{ContentError, Tally};

/// Threads that serve faults: more than a few wait for the disk and for one another.
const THREADS: usize = 2;

const MISSING: u8 = 0;
const COMING: u8 = 1;
const PRESENT: u8 = 2;

/// One zone, and which of its chunks are there.
struct Zone {
    // Held for as long as its pages may be brought in.
    _mapping: Arc<MmapRegion>,
    start: u64,
    size: u64,
    /// Where it is in the file.
    offset: u64,
    chunks: Vec<AtomicU8>,
}

/// Called once with what keeps the machine from going on.
pub type OnFailure = Arc<dyn Fn(&ContentError) + Send + Sync>;

/// What the pages come out of.
pub struct Source {
    /// The snapshot's memory.
    pub saved: Arc<SavedMemory>,
    /// Whether chunks are checked.
    pub check: bool,
}

struct Shared {
    uffd: Userfaultfd,
    stop: OwnedFd,
    zones: Vec<Zone>,
    source: Source,
    stage: parking_lot::Mutex<Stage>,
    on_failure: OnFailure,
    brought: AtomicU64,
    /// What was touched, in order, while that is being noted.
    touched: parking_lot::Mutex<Option<Vec<Touch>>>,
}

/// What becomes of whoever waits for what cannot be brought in.
enum Stage {
    /// He is let go, and finds zeros: the machine that has touched it will not be. With the first that could not be.
    Building(Option<ContentError>),
    /// He waits for ever, and the machine's owner is told, once.
    Running { failed: bool },
    /// He is let go: nobody uses what he finds.
    Over,
}

/// The first touch of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// The chunk of the snapshot's memory.
    pub chunk: u64,
    /// Whether it was written.
    pub written: bool,
}

/// One zone to be paged in.
#[derive(Debug)]
pub struct DemandZone {
    /// Its memory.
    pub mapping: Arc<MmapRegion>,
    /// Where it is in the snapshot's memory, in bytes.
    pub offset: u64,
    /// Parts of it that are there already: offsets in bytes, whole chunks.
    pub present: Vec<Range<u64>>,
}

/// Brings in what has not been touched, from beside the pager.
#[derive(Clone)]
pub struct Filler(Arc<Shared>);

/// A machine that is being built.
pub struct Building(Arc<Shared>);

/// Pages memory in. Dropped, it leaves what is missing to be zero: only for a machine that is gone.
pub struct Pager {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pager {
    /// Begins to serve faults of those zones, of a machine that is being [built](Self::building). Nothing of them has been
    /// touched but what is said to be there. With `note`, what is touched is noted until it is [taken](Filler::take_touched).
    ///
    /// # Errors
    /// The host has no userfaultfd, no thread, or does not take the memory.
    pub fn start(
        zones: Vec<DemandZone>,
        source: Source,
        on_failure: OnFailure,
        note: bool,
    ) -> io::Result<Self> {
        let uffd = Userfaultfd::open()?;
        let chunk = source.saved.table().chunk_size;
        let zones = zones.into_iter().map(|DemandZone { mapping, offset, present }| {
            let (start, size) = (mapping.as_ptr() as u64, mapping.size() as u64);
            uffd.register(start, size)?;
            let state = |number: u64| {
                let at = number * chunk;
                if present.iter().any(|part| part.contains(&at)) { PRESENT } else { MISSING }
            };
            let chunks = (0..size.div_ceil(chunk)).map(|number| AtomicU8::new(state(number))).collect();
            Ok(Zone { _mapping: mapping, start, size, offset, chunks })
        });
        let zones = zones.collect::<io::Result<_>>()?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let shared = Arc::new(Shared {
            uffd,
            stop,
            zones,
            source,
            stage: parking_lot::Mutex::new(Stage::Building(None)),
            on_failure,
            brought: AtomicU64::new(0),
            touched: parking_lot::Mutex::new(note.then(Vec::new)),
        });
        let mut pager = Self { shared, threads: Vec::new() };
        for number in 0..THREADS {
            let shared = Arc::clone(&pager.shared);
            let thread = std::thread::Builder::new().name(format!("pager{number}"));
            pager.threads.push(thread.spawn(move || shared.serve())?);
        }
        Ok(pager)
    }

    /// Whether something of what is missing cannot be brought in: whoever touched it waits.
    pub fn has_failed(&self) -> bool {
        matches!(*self.shared.stage.lock(), Stage::Running { failed: true })
    }

    /// What is to be told that the machine is there.
    pub fn building(&self) -> Building {
        Building(Arc::clone(&self.shared))
    }

    /// Lets go of whoever waits: from now on what is missing is zero.
    fn let_go(&self) {
        *self.shared.stage.lock() = Stage::Over;
        self.shared.let_go();
    }

    /// Bytes that were brought in so far, zeros included.
    pub fn brought(&self) -> u64 {
        self.shared.brought.load(Ordering::Relaxed)
    }

    /// Brings in everything that is still missing and not zero. What is still missing then is what memory is that nobody
    /// has touched: zero, and no page of it there.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or somebody asked for it to be given up.
    pub fn fill(&self, tally: &dyn Tally) -> Result<(), ContentError> {
        let mut buffer = self.shared.buffer();
        let zones = self.shared.zones.iter();
        let all = zones.flat_map(|zone| (0..zone.chunks.len()).map(move |chunk| (zone, chunk)));
        let wanted = |(zone, chunk): &(&Zone, usize)| {
            zone.is(*chunk, MISSING) && !self.shared.is_zero(zone, *chunk as u64)
        };
        let missing: Vec<_> = all.filter(wanted).collect();
        let size = self.shared.source.saved.table().chunk_size;
        tally.phase("fill", Some((missing.len() as u64).saturating_mul(size)));
        for (zone, chunk) in missing {
            if tally.is_cancelled() {
                return Err(ContentError::Cancelled);
            }
            self.shared.bring_beside(zone, chunk, &mut buffer)?;
            tally.add(size);
        }
        self.shared.wait_for_coming();
        Ok(())
    }

    /// The parts of a zone that were brought in or are on their way; nothing where the zone is not paged in.
    pub fn brought_of(&self, mapping: &MmapRegion) -> Vec<Range<u64>> {
        let start = mapping.as_ptr() as u64;
        let Some(zone) = self.shared.zones.iter().find(|zone| zone.start == start) else { return Vec::new() };
        let size = self.shared.source.saved.table().chunk_size;
        let there = (0..zone.chunks.len()).filter(|chunk| !zone.is(*chunk, MISSING));
        there
            .map(|chunk| chunk as u64 * size..(chunk as u64 + 1).saturating_mul(size).min(zone.size))
            .collect()
    }

    /// What brings in more than is touched.
    pub fn filler(&self) -> Filler {
        Filler(Arc::clone(&self.shared))
    }

    /// Brings in what is missing of a range of a zone; nothing where the zone is not paged in.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub fn bring_in(&self, mapping: &MmapRegion, offset: u64, size: u64) -> Result<(), ContentError> {
        let start = mapping.as_ptr() as u64;
        let Some(zone) = self.shared.zones.iter().find(|zone| zone.start == start) else { return Ok(()) };
        let chunk = self.shared.source.saved.table().chunk_size;
        let mut buffer = self.shared.buffer();
        for number in offset / chunk..offset.saturating_add(size).div_ceil(chunk) {
            let Ok(number) = usize::try_from(number) else { return Ok(()) };
            self.shared.bring_beside(zone, number, &mut buffer)?;
        }
        Ok(())
    }
}

impl Filler {
    /// A buffer for [`bring`](Self::bring).
    pub fn buffer(&self) -> Vec<u8> {
        self.0.buffer()
    }

    /// Brings in a chunk of the snapshot's memory. False if it was there, was on its way, or is nobody's.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub fn bring(&self, chunk: u64, buffer: &mut [u8]) -> Result<bool, ContentError> {
        match self.0.at_file_chunk(chunk) {
            Some((zone, chunk)) => self.0.bring_beside(zone, chunk, buffer),
            None => Ok(false),
        }
    }

    /// Whether a chunk of the snapshot's memory is of a zone that is paged in.
    pub fn has(&self, chunk: u64) -> bool {
        self.0.at_file_chunk(chunk).is_some()
    }

    /// What was touched so far, in order; from now on nothing is noted.
    pub fn take_touched(&self) -> Vec<Touch> {
        self.0.touched.lock().take().unwrap_or_default()
    }
}

impl Building {
    /// The machine is there, if all could be brought in that was touched when it was built.
    ///
    /// # Errors
    /// The first that could not be: what has touched it has found zeros.
    pub fn end(self) -> Result<(), ContentError> {
        let mut stage = self.0.stage.lock();
        match std::mem::replace(&mut *stage, Stage::Over) {
            Stage::Building(Some(error)) => Err(error),
            Stage::Building(None) => {
                *stage = Stage::Running { failed: false };
                Ok(())
            }
            other => {
                *stage = other;
                Ok(())
            }
        }
    }
}

impl Shared {
    fn buffer(&self) -> Vec<u8> {
        vec![0; self.source.saved.chunk_length()]
    }

    /// Answers faults until it is to stop, or no more can be had.
    fn serve(&self) {
        if let Err(error) = self.answer() {
            self.fail(ContentError::Paging(error));
        }
    }

    fn answer(&self) -> io::Result<()> {
        let mut buffer = self.buffer();
        loop {
            if let Some(fault) = self.uffd.next_fault()? {
                self.resolve(&fault, &mut buffer);
            }
            let (faults, stop) = (self.uffd.as_fd(), self.stop.as_fd());
            let mut fds = [&faults, &stop].map(|fd| PollFd::new(fd, PollFlags::IN));
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [_, stopped] = fds;
            if !stopped.revents().is_empty() {
                return Ok(());
            }
        }
    }

    /// Answers a fault, unless that cannot be.
    fn resolve(&self, fault: &Fault, buffer: &mut [u8]) {
        let Fault { address, written } = *fault;
        let size = self.source.saved.table().chunk_size;
        let zone = self.zones.iter().find(|zone| address.wrapping_sub(zone.start) < zone.size);
        let Some(zone) = zone else { return };
        let within = address - zone.start;
        let Ok(chunk) = usize::try_from(within / size) else { return };
        if let Some(touched) = &mut *self.touched.lock() {
            touched.push(Touch { chunk: zone.offset / size + within / size, written });
        }
        match self.bring(zone, chunk, buffer) {
            Ok(_) => {
                let page = address & !(crate::config::PAGE_SIZE - 1);
                if zone.is(chunk, PRESENT)
                    && let Err(error) = self.uffd.wake(page, crate::config::PAGE_SIZE)
                {
                    log::warn!("a reader of guest memory at {page:#x} may wait: {error}");
                }
            }
            Err(error) => self.fail(error),
        }
    }

    /// Makes sure that a chunk is there or on its way. False if it was already.
    fn bring(&self, zone: &Zone, chunk: usize, buffer: &mut [u8]) -> Result<bool, ContentError> {
        let Some(state) = zone.chunks.get(chunk) else { return Ok(false) };
        if state.compare_exchange(MISSING, COMING, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return Ok(false);
        }
        let brought = self.put(zone, chunk, buffer);
        // What failed is tried again at the next touch: the file may have been restored.
        state.store(if brought.is_ok() { PRESENT } else { MISSING }, Ordering::Release);
        brought.map(|()| true)
    }

    /// The same for those who do not answer faults. Whoever touched it meanwhile has been passed over, as it was on its way;
    /// if it does not come he is sent to ask again.
    fn bring_beside(&self, zone: &Zone, chunk: usize, buffer: &mut [u8]) -> Result<bool, ContentError> {
        self.bring(zone, chunk, buffer).inspect_err(|_| self.send_again(zone, chunk))
    }

    fn send_again(&self, zone: &Zone, chunk: usize) {
        let size = self.source.saved.table().chunk_size;
        let within = (chunk as u64).saturating_mul(size).min(zone.size);
        let (start, length) = (zone.start + within, size.min(zone.size - within));
        if let Err(error) = self.uffd.wake(start, length) {
            log::warn!("a reader of guest memory at {start:#x} may wait: {error}");
        }
    }

    /// Whether the snapshot has nothing but zeros in a chunk of a zone.
    fn is_zero(&self, zone: &Zone, chunk: u64) -> bool {
        let table = self.source.saved.table();
        table.chunks.get(zone.offset / table.chunk_size + chunk).is_none()
    }

    fn put(&self, zone: &Zone, chunk: usize, buffer: &mut [u8]) -> Result<(), ContentError> {
        let Source { saved, check } = &self.source;
        let size = saved.table().chunk_size;
        let within = chunk as u64 * size;
        let len = size.min(zone.size - within);
        let offset = zone.offset + within;
        let zero = self.is_zero(zone, chunk as u64);
        if !zero {
            saved.read_chunk(offset / size, buffer, *check)?;
        }
        self.brought.fetch_add(len, Ordering::Relaxed);
        let put = if zero {
            self.uffd.zero(zone.start + within, len)
        } else {
            let len = usize::try_from(len).unwrap_or(usize::MAX).min(buffer.len());
            self.uffd.copy(zone.start + within, buffer.get(..len).unwrap_or_default())
        };
        let (operation, path) = ("page in", saved.newest().path.clone());
        put.map_err(|source| ContentError::File { operation, path, offset, source })
    }

    /// Something cannot be brought in.
    fn fail(&self, error: ContentError) {
        let mut stage = self.stage.lock();
        match &mut *stage {
            Stage::Building(first) => {
                first.get_or_insert(error);
                self.let_go();
            }
            Stage::Running { failed } => {
                let told = std::mem::replace(failed, true);
                drop(stage);
                if !told {
                    (self.on_failure)(&error);
                }
            }
            Stage::Over => {}
        }
    }

    /// Wakes whoever waits. Nobody waits any more for what is missing.
    fn let_go(&self) {
        for zone in &self.zones {
            if let Err(error) = self.uffd.unregister(zone.start, zone.size) {
                log::error!("whoever waits for guest memory at {:#x} waits on: {error}", zone.start);
            }
        }
    }

    /// The zone and the number in it of a chunk of the file.
    fn at_file_chunk(&self, number: u64) -> Option<(&Zone, usize)> {
        let at = number.checked_mul(self.source.saved.table().chunk_size)?;
        let zone = self.zones.iter().find(|zone| at.wrapping_sub(zone.offset) < zone.size)?;
        let chunk = usize::try_from((at - zone.offset) / self.source.saved.table().chunk_size).ok()?;
        Some((zone, chunk))
    }

    /// Waits until what others are bringing in is there.
    fn wait_for_coming(&self) {
        for zone in &self.zones {
            for chunk in 0..zone.chunks.len() {
                while zone.is(chunk, COMING) {
                    std::thread::yield_now();
                }
            }
        }
    }
}

impl Zone {
    fn is(&self, chunk: usize, state: u8) -> bool {
        self.chunks.get(chunk).is_some_and(|chunk| chunk.load(Ordering::Acquire) == state)
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        // An eventfd that cannot be written is signalled already.
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
        for thread in self.threads.drain(..) {
            // A panic aborts the process: there is nothing to learn from the result.
            let _ = thread.join();
        }
        self.let_go();
    }
}

impl std::fmt::Debug for Building {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Building")
    }
}

impl std::fmt::Debug for Pager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pager({} bytes brought in)", self.brought())
    }
}

impl std::fmt::Debug for Filler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Filler")
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Source({})", self.saved.newest().path.display())
    }
}

#[cfg(test)]
mod tests;
