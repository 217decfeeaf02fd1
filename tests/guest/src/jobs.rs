//! What runs in the background while the boot processor listens: dirtying memory, and watching for gaps in time.
//!
//! Each processor has one job at most. A job is plain words in memory, so it goes on where it was after a restore. The
//! boot processor sets jobs; the loop in smp.rs carries them out (the boot processor's own while it waits for orders).

use core::sync::atomic::{AtomicU64, Ordering};

use crate::boot::MAX_CPUS;
use crate::cpu::{self, Width};
use crate::{apic, smp};

const PAGE: u64 = 4096;

const KIND_NONE: u64 = 0;
const KIND_DIRTY: u64 = 1;
const KIND_WATCH: u64 = 2;
/// Told to stop, and not yet stopped.
const KIND_STOPPING: u64 = 3;

/// Pages between two looks at the clock and at the order to stop.
const BATCH: u64 = 32;
/// Rounds of the watch between two looks at the order to stop.
const WATCH_ROUNDS: u64 = 10_000;
/// How long a job that is ahead of its rate sleeps: a millisecond.
const NAP_COUNTS: u64 = apic::TIMER_HZ / 1000;

/// The job of one processor.
struct Job {
    kind: AtomicU64,
    address: AtomicU64,
    pages: AtomicU64,
    /// Pages a second, in units of 1 / 2^16; 0 is no limit.
    rate: AtomicU64,
    tsc_hz: AtomicU64,
    start_tsc: AtomicU64,
    /// End, as ticks after the start; 0 is never.
    duration_tsc: AtomicU64,
    /// Pages written so far.
    written: AtomicU64,
    /// Largest gap seen, and where it began.
    gap_tsc: AtomicU64,
    gap_at_tsc: AtomicU64,
    rounds: AtomicU64,
}

static JOBS: [Job; MAX_CPUS] = [const { Job::none() }; MAX_CPUS];

/// When a processor shall look at its job again.
pub enum Next {
    Again,
    After(u64),
    WhenWoken,
}

/// A request to dirty memory.
#[derive(Clone, Copy, Debug)]
pub struct Dirty {
    pub address: u64,
    pub pages: u64,
    pub bytes_per_second: u64,
    pub duration_tsc: u64,
    pub tsc_hz: u64,
}

/// What a watch has seen.
#[derive(Clone, Copy, Debug)]
pub struct Gap {
    pub max_tsc: u64,
    pub at_tsc: u64,
    pub rounds: u64,
}

impl Job {
    const fn none() -> Self {
        Self {
            kind: AtomicU64::new(KIND_NONE),
            address: AtomicU64::new(0),
            pages: AtomicU64::new(0),
            rate: AtomicU64::new(0),
            tsc_hz: AtomicU64::new(0),
            start_tsc: AtomicU64::new(0),
            duration_tsc: AtomicU64::new(0),
            written: AtomicU64::new(0),
            gap_tsc: AtomicU64::new(0),
            gap_at_tsc: AtomicU64::new(0),
            rounds: AtomicU64::new(0),
        }
    }

    /// Writes the next pages that the rate allows.
    fn dirty(&self) -> Next {
        let elapsed = cpu::tsc().wrapping_sub(self.start_tsc.load(Ordering::Relaxed));
        let duration = self.duration_tsc.load(Ordering::Relaxed);
        if duration != 0 && elapsed >= duration {
            self.kind.store(KIND_NONE, Ordering::Release);
            return Next::WhenWoken;
        }
        let (address, pages) = (self.address.load(Ordering::Relaxed), self.pages.load(Ordering::Relaxed));
        let rate = self.rate.load(Ordering::Relaxed);
        let mut written = self.written.load(Ordering::Relaxed);
        let allowed = if rate == 0 {
            written.saturating_add(BATCH)
        } else {
            let hz = u128::from(self.tsc_hz.load(Ordering::Relaxed).max(1));
            u64::try_from((u128::from(elapsed) * u128::from(rate) / hz) >> 16).unwrap_or(u64::MAX)
        };
        if allowed <= written {
            return Next::After(NAP_COUNTS);
        }
        for _ in 0..(allowed - written).min(BATCH) {
            // The page first, then the count: a page that the count covers has been written.
            cpu::write(address + written % pages * PAGE, Width::Quad, written + 1);
            written += 1;
            self.written.store(written, Ordering::Release);
        }
        Next::Again
    }

    /// Reads the clock again and again, and keeps the largest gap between two readings.
    fn watch(&self) -> Next {
        let mut last = self.start_tsc.load(Ordering::Relaxed);
        let mut max = self.gap_tsc.load(Ordering::Relaxed);
        for _ in 0..WATCH_ROUNDS {
            let now = cpu::tsc();
            let gap = now.wrapping_sub(last);
            if gap > max {
                max = gap;
                self.gap_at_tsc.store(last, Ordering::Relaxed);
                self.gap_tsc.store(gap, Ordering::Relaxed);
            }
            last = now;
        }
        self.start_tsc.store(last, Ordering::Relaxed);
        self.rounds.fetch_add(WATCH_ROUNDS, Ordering::Relaxed);
        Next::Again
    }
}

/// Carries the job of processor `index`, which calls this, on for a little while.
pub fn step(index: usize) -> Next {
    let job = &JOBS[index];
    match job.kind.load(Ordering::Acquire) {
        KIND_DIRTY => job.dirty(),
        KIND_WATCH => job.watch(),
        KIND_STOPPING => {
            job.kind.store(KIND_NONE, Ordering::Release);
            Next::WhenWoken
        }
        _ => Next::WhenWoken,
    }
}

/// Returns whether processor `index` has a job.
pub fn is_busy(index: usize) -> bool {
    JOBS[index].kind.load(Ordering::Acquire) != KIND_NONE
}

/// Returns whether the last job of processor `index` dirties memory.
pub fn is_dirty(index: usize) -> bool {
    JOBS[index].pages.load(Ordering::Relaxed) != 0
}

/// Starts to dirty memory on an idle processor.
pub fn start_dirty(index: usize, dirty: Dirty) {
    let job = &JOBS[index];
    job.address.store(dirty.address, Ordering::Relaxed);
    job.pages.store(dirty.pages, Ordering::Relaxed);
    let rate = (u128::from(dirty.bytes_per_second) << 16) / u128::from(PAGE);
    job.rate.store(u64::try_from(rate).unwrap_or(u64::MAX), Ordering::Relaxed);
    job.tsc_hz.store(dirty.tsc_hz, Ordering::Relaxed);
    job.duration_tsc.store(dirty.duration_tsc, Ordering::Relaxed);
    job.written.store(0, Ordering::Relaxed);
    job.start_tsc.store(cpu::tsc(), Ordering::Relaxed);
    job.kind.store(KIND_DIRTY, Ordering::Release);
    smp::wake(index);
}

/// Starts a watch on an idle processor.
pub fn start_watch(index: usize) {
    let job = &JOBS[index];
    for word in [&job.pages, &job.written, &job.gap_tsc, &job.gap_at_tsc, &job.rounds] {
        word.store(0, Ordering::Relaxed);
    }
    job.start_tsc.store(cpu::tsc(), Ordering::Relaxed);
    job.kind.store(KIND_WATCH, Ordering::Release);
    smp::wake(index);
}

/// Stops the jobs of some processors, and waits until they have stopped. Called by the boot processor, number 0.
pub fn stop(indices: impl Iterator<Item = usize> + Clone) {
    // All are told before the first is waited for: with more processors than the host has, each wait is long.
    for index in indices.clone().filter(|index| is_busy(*index)) {
        JOBS[index].kind.store(KIND_STOPPING, Ordering::Release);
        smp::wake(index);
    }
    for index in indices {
        while is_busy(index) {
            if index == 0 {
                step(0);
            }
            core::hint::spin_loop();
        }
    }
}

/// Returns how many pages the last dirty job of processor `index` has written.
pub fn pages_written(index: usize) -> u64 {
    JOBS[index].written.load(Ordering::Acquire)
}

/// Returns what the last watch of processor `index` has seen.
pub fn gap(index: usize) -> Gap {
    let job = &JOBS[index];
    Gap {
        max_tsc: job.gap_tsc.load(Ordering::Relaxed),
        at_tsc: job.gap_at_tsc.load(Ordering::Relaxed),
        rounds: job.rounds.load(Ordering::Relaxed),
    }
}

/// Counts the pages of a stopped dirty job that do not hold what the job wrote last; also returns how many hold it.
pub fn check(index: usize) -> (u64, u64) {
    let job = &JOBS[index];
    let (address, pages) = (job.address.load(Ordering::Relaxed), job.pages.load(Ordering::Relaxed));
    let written = pages_written(index);
    let (mut good, mut bad) = (0, 0);
    for page in 0..pages.min(written) {
        let last = page + (written - 1 - page) / pages * pages;
        if cpu::read(address + page * PAGE, Width::Quad) == last + 1 {
            good += 1;
        } else {
            bad += 1;
        }
    }
    (good, bad)
}
