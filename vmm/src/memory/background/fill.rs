//! Brings memory in before it is touched, while the guest runs.

use std::{
    num::NonZeroU64,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use api_client::wire::JobKind;
use vm_migration::snapshot::ZoneContent;

use super::{Ground, MappedZone, switch::Switch};
use crate::{
    error::messages,
    jobs::Job,
    memory::{
        ahead::{Piece, ReadAhead},
        content::ContentError,
        mapping,
        pagemap::Pages,
    },
};

/// Longest that a wish to give up goes unnoticed.
const NOTICE: Duration = Duration::from_millis(100);

/// Brings in what is left of a recorded working set. What is damaged of it is left alone: it is found if the guest
/// uses it.
pub(super) fn ahead(ground: &Ground, switch: &Switch, ahead: &ReadAhead) {
    let mut buffer = ground.buffer();
    for zone in &ahead.zones {
        let first = ground.saved.chunks_of(&zone.zone).start;
        let mapped = ground.mapped.iter().find(|mapped| mapped.zone == zone.zone);
        for piece in &zone.pieces {
            if !switch.go_on() {
                return;
            }
            let brought = match mapped {
                Some(mapped) => touch(ground, mapped, piece, &mut buffer),
                None => bring(ground, first.saturating_add(piece.chunk), &mut buffer),
            };
            if let Err(error) = brought {
                log::warn!("what was recorded is not read ahead: {}", crate::error::chain(&error));
            }
        }
    }
}

/// Brings in everything, at that many bytes of the snapshot a second at most.
pub(super) fn all(ground: &Ground, switch: &Switch, rate: NonZeroU64) {
    let job = ground.watch.jobs.begin(JobKind::Fill, "memory");
    let filled = try_all(ground, switch, rate, &job);
    if let Err(error) = &filled {
        log::warn!("memory is not filled: {}", crate::error::chain(error));
    }
    job.end(filled.map_err(|error| messages(&error)));
}

fn try_all(ground: &Ground, switch: &Switch, rate: NonZeroU64, job: &Job) -> Result<(), ContentError> {
    let table = ground.saved.table();
    let chunks = |content: &ZoneContent| ground.saved.chunks_of(&content.zone);
    let mapped_as = |content: &ZoneContent| ground.mapped.iter().find(|zone| zone.zone == content.zone);
    let pages_in = |content: &ZoneContent| {
        ground.filler.as_ref().is_some_and(|filler| filler.has(chunks(content).start))
    };
    let zones: Vec<_> =
        table.zones.iter().filter(|zone| mapped_as(zone).is_some() || pages_in(zone)).collect();
    let stored =
        zones.iter().flat_map(|zone| chunks(zone)).filter(|chunk| table.chunks.get(*chunk).is_some());
    let total = (stored.count() as u64).saturating_mul(table.chunk_size);
    job.progress().phase("memory", Some(total));
    let mut budget = Budget { rate, next: Instant::now() };
    let mut buffer = ground.buffer();
    for zone in zones {
        let mapped = mapped_as(zone);
        for chunk in chunks(zone) {
            let is_stored = table.chunks.get(chunk).is_some();
            // What is zero need not be read; where it is a hole of a mapped file there is nothing to do at all.
            if mapped.is_some() && !is_stored {
                continue;
            }
            if !budget.wait(switch, job) {
                return Err(ContentError::Cancelled);
            }
            match mapped {
                Some(mapped) => touch(ground, mapped, &whole(mapped, chunk, table.chunk_size), &mut buffer)?,
                None => bring(ground, chunk, &mut buffer)?,
            }
            if is_stored {
                budget.spend(table.chunk_size);
                job.progress().add(table.chunk_size);
            }
        }
    }
    Ok(())
}

/// All of a chunk of the snapshot's memory, to be read.
fn whole(zone: &MappedZone, chunk: u64, size: u64) -> Piece {
    let chunk = chunk.saturating_sub(zone.first);
    let start = chunk.saturating_mul(size);
    let end = start.saturating_add(size).min(zone.mapping.size() as u64);
    Piece { chunk, pages: vec![Pages { range: start..end, own: false }] }
}

/// Bytes that may be read by now.
struct Budget {
    rate: NonZeroU64,
    /// When the next may be.
    next: Instant,
}

impl Budget {
    /// Waits until something may be read; false if nothing is to be any more.
    fn wait(&self, switch: &Switch, job: &Job) -> bool {
        loop {
            if job.progress().is_cancelled() || !switch.go_on() {
                return false;
            }
            let left = self.next.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            switch.wait_while_running(left.min(NOTICE));
        }
    }

    /// That much was read. Time in which nothing was read is not made up for.
    fn spend(&mut self, bytes: u64) {
        let ns = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate.get());
        let time = Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX));
        self.next = self.next.max(Instant::now()).checked_add(time).unwrap_or(self.next);
    }
}

/// Brings in a chunk that is missing.
fn bring(ground: &Ground, chunk: u64, buffer: &mut [u8]) -> Result<(), ContentError> {
    let Some(filler) = &ground.filler else { return Ok(()) };
    if filler.bring(chunk, buffer)? {
        ground.counters.filled.fetch_add(ground.saved.table().chunk_size, Ordering::Relaxed);
    }
    Ok(())
}

/// Has pages of a mapped zone be there, and be the process's own where they will be written.
fn touch(ground: &Ground, zone: &MappedZone, piece: &Piece, buffer: &mut [u8]) -> Result<(), ContentError> {
    ground.check(zone, piece.chunk, buffer)?;
    for Pages { range, own } in &piece.pages {
        mapping::populate_part(&zone.mapping, range.clone(), *own)
            .map_err(|source| ContentError::Place { zone: zone.zone.clone(), source })?;
        ground.counters.filled.fetch_add(range.end.saturating_sub(range.start), Ordering::Relaxed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{events::Events, jobs::Jobs, memory::background::State};

    #[test]
    fn no_more_is_read_than_the_rate_allows() {
        let jobs = Jobs::new(Events::default());
        let (switch, job) = (Switch::new(), jobs.begin(JobKind::Fill, "memory"));
        let begun = Instant::now();
        let rate = NonZeroU64::new(1 << 20).unwrap();
        let mut budget = Budget { rate, next: begun };
        for _ in 0..5 {
            assert!(budget.wait(&switch, &job));
            budget.spend(100 << 10);
        }
        // The first is free, each other one waits for the one before.
        assert!(begun.elapsed() >= Duration::from_micros(4 * 97_656));
        // At the slowest it takes longer than there is time; that is no hindrance for the end.
        let mut slowest = Budget { rate: NonZeroU64::MIN, next: begun };
        (0..4).for_each(|_| slowest.spend(u64::MAX / 4));
        jobs.cancel(1).unwrap();
        assert!(!slowest.wait(&switch, &job));
        switch.set(State::Stopped);
        assert!(!budget.wait(&switch, &jobs.begin(JobKind::Fill, "memory")));
    }
}
