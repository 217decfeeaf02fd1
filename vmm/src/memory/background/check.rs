//! Checks what has come in of a mapped file.
//!
//! Nobody is told when the guest touches a page of a mapped file, so damage cannot be kept from it: it is found soon
//! after. The kernel is asked which pages are there, and what is new is read once more from the snapshot and held
//! against its checksum. What is never touched is never read.

use std::{ops::Range, time::Duration};

use super::{Ground, MappedZone, switch::Switch};
use crate::{
    memory::{
        content::{self, ContentError, Tally},
        mapping,
        pagemap::{Pagemap, Pages},
    },
    parallel,
};

/// How long it waits before it looks again: the least, after something new was found, and the most.
const WAIT_MIN: Duration = Duration::from_millis(10);
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Chunks for which a thread of its own is worth it.
const CHUNKS_PER_THREAD: usize = 16;

/// Waits for the guest, and works until all is checked, or it is stopped.
pub(super) fn run(ground: &Ground, switch: &Switch, pagemap: &Pagemap) {
    if !switch.go_on() {
        return;
    }
    if let Err(error) = mapping::give_way() {
        log::debug!("checks of memory have the priority of everything else: {error}");
    }
    let mut wait = WAIT_MIN;
    let mut buffer = ground.buffer();
    while switch.rest(wait) && ground.mapped.iter().any(|zone| !zone.unchecked().is_empty()) {
        match look(ground, switch, pagemap, &mut buffer) {
            Ok(0) => wait = wait.saturating_mul(2).min(WAIT_MAX),
            Ok(_) => wait = WAIT_MIN,
            Err(error) => {
                (ground.watch.on_failure)(&error);
                return;
            }
        }
    }
}

/// Checks what has come in and has not been checked: what the guest made of it is saved with checksums of its own.
///
/// # Errors
/// As for [`rest`].
pub(super) fn touched(ground: &Ground, tally: &dyn Tally) -> Result<(), ContentError> {
    if !ground.check || ground.mapped.is_empty() {
        return Ok(());
    }
    let pagemap = Pagemap::open().map_err(ContentError::Unchecked)?;
    let size = ground.saved.table().chunk_size;
    let mut work = Vec::new();
    for zone in &ground.mapped {
        for part in zone.unchecked() {
            let come = zone.come_in(part, size, &pagemap)?;
            work.extend(
                come.into_iter()
                    .flatten()
                    .filter(|chunk| !zone.is_checked(*chunk))
                    .map(|chunk| (zone, chunk)),
            );
        }
    }
    all_of(ground, &work, tally)
}

/// Checks all that has not been: what is saved again with checksums of its own must not be damaged already.
///
/// # Errors
/// A chunk cannot be read, is damaged, or somebody asked for it to be given up.
pub(super) fn rest(ground: &Ground, tally: &dyn Tally) -> Result<(), ContentError> {
    if !ground.check || ground.mapped.is_empty() {
        return Ok(());
    }
    let unchecked = |zone| MappedZone::unchecked(zone).into_iter().flatten().map(move |chunk| (zone, chunk));
    let stored = |(zone, chunk): &(&MappedZone, u64)| {
        ground.saved.table().chunks.get(zone.first.saturating_add(*chunk)).is_some()
    };
    let work: Vec<_> = ground.mapped.iter().flat_map(unchecked).filter(stored).collect();
    all_of(ground, &work, tally)?;
    // The others were zero.
    content::verify(&ground.saved, false, tally)
}

fn all_of(ground: &Ground, work: &[(&MappedZone, u64)], tally: &dyn Tally) -> Result<(), ContentError> {
    let size = ground.saved.table().chunk_size;
    tally.phase("check", Some((work.len() as u64).saturating_mul(size)));
    parallel::for_each(work, CHUNKS_PER_THREAD, ground.saved.chunk_length(), |(zone, chunk), buffer| {
        if tally.is_cancelled() {
            return Err(ContentError::Cancelled);
        }
        tally.add(size);
        ground.check(zone, *chunk, buffer).map(|()| None::<()>)
    })?;
    Ok(())
}

/// Checks what is new; returns how many chunks that were.
fn look(ground: &Ground, switch: &Switch, pagemap: &Pagemap, buffer: &mut [u8]) -> Result<u64, ContentError> {
    let size = ground.saved.table().chunk_size;
    let mut found = 0;
    for zone in &ground.mapped {
        for part in zone.unchecked() {
            for chunk in zone.come_in(part, size, pagemap)?.into_iter().flatten() {
                if !switch.go_on() {
                    return Ok(found);
                }
                if !zone.is_checked(chunk) {
                    ground.check(zone, chunk, buffer)?;
                    found += 1;
                }
            }
        }
    }
    Ok(found)
}

impl MappedZone {
    /// Chunks among some, of `size` bytes, of which something is there. One may be there twice.
    fn come_in(
        &self,
        chunks: Range<u64>,
        size: u64,
        pagemap: &Pagemap,
    ) -> Result<Vec<Range<u64>>, ContentError> {
        let bytes = chunks.start.saturating_mul(size)..chunks.end.saturating_mul(size);
        let present = pagemap.present(&self.mapping, bytes);
        let present = present.map_err(|source| ContentError::Scan { zone: self.zone.clone(), source })?;
        let of = |pages: Pages| pages.range.start / size..pages.range.end.div_ceil(size);
        Ok(present.into_iter().map(of).collect())
    }

    /// The chunks that have not been checked, those that follow one another together.
    fn unchecked(&self) -> Vec<Range<u64>> {
        let mut parts: Vec<Range<u64>> = Vec::new();
        for chunk in (0..self.checked.len() as u64).filter(|chunk| !self.is_checked(*chunk)) {
            match parts.last_mut() {
                Some(part) if part.end == chunk => part.end += 1,
                _ => parts.push(chunk..chunk + 1),
            }
        }
        parts
    }
}
