//! What is brought in ahead of the guest: the recorded working set of an earlier restore.
//!
//! A restored guest pays for each page that it touches first: where a private mapping of a file is written, with a
//! fault of its own for every 4 KiB. So what it will write is put into place before, in blocks of the size of a huge
//! page ([`place()`]): one fault each is left. Blocks of which only little was written are not worth that much memory:
//! these, and what was only read, is for the background once the guest runs. All of it is checked before it is used.

mod place;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, ops::Range};

use vm_migration::snapshot::{SavedMemory, WorkingSet, ZonePages};

pub use self::place::place;
use super::{
    content::{MemoryMode, RestorePlan},
    pagemap::Pages,
};
use crate::config::{MemoryZoneConfig, PAGE_SIZE};

/// Bytes of a block: a huge page.
pub const BLOCK: u64 = 2 << 20;

/// Pages of a block, of 512, for which it is worth it that all of it becomes memory of its own.
const PAGES_MIN: u64 = 128;

/// Bytes that are placed before the guest runs at most: more than the guest would like to wait for. What is over is left
/// to the background.
const PLACED_MAX: u64 = 256 << 20;

/// What is brought in, zone by zone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadAhead {
    /// Only zones with something to bring in.
    pub zones: Vec<ZoneAhead>,
}

/// What is brought in of a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneAhead {
    /// The zone.
    pub zone: String,
    /// Before the guest runs: where each [`BLOCK`] begins in the zone, in bytes, in order.
    pub blocks: Vec<u64>,
    /// While it runs, in order.
    pub pieces: Vec<Piece>,
}

/// What is brought in of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Number of the chunk in its zone.
    pub chunk: u64,
    /// What of it is touched; the guest's own is what it will write.
    pub pages: Vec<Pages>,
}

impl ReadAhead {
    /// Finds out what of a working set is brought in how.
    pub fn new(
        set: &WorkingSet,
        zones: &[MemoryZoneConfig],
        plan: &RestorePlan,
        saved: &SavedMemory,
    ) -> Self {
        let chunk = saved.table().chunk_size;
        let mut room = PLACED_MAX / BLOCK;
        let ahead = zones.iter().filter_map(|zone| {
            let mode = plan.mode(&zone.id).filter(|mode| mode.is_lazy())?;
            let pages = set.zone(&zone.id)?;
            let mut blocks = if can_have_blocks(zone, mode, chunk) {
                worthwhile(pages, mode, zone.size)
            } else {
                Vec::new()
            };
            blocks.truncate(usize::try_from(room).unwrap_or(usize::MAX));
            room = room.saturating_sub(blocks.len() as u64);
            let pieces = pieces(pages, &blocks, chunk);
            let ahead = ZoneAhead { zone: zone.id.clone(), blocks, pieces };
            (!ahead.blocks.is_empty() || !ahead.pieces.is_empty()).then_some(ahead)
        });
        Self { zones: ahead.collect() }
    }

    /// What is brought in of a zone.
    pub fn zone(&self, id: &str) -> Option<&ZoneAhead> {
        self.zones.iter().find(|ahead| ahead.zone == id)
    }

    /// Bytes that are placed before the guest runs.
    pub fn placed_bytes(&self) -> u64 {
        self.zones.iter().map(ZoneAhead::placed_bytes).sum()
    }
}

impl ZoneAhead {
    /// Bytes that are placed before the guest runs.
    pub fn placed_bytes(&self) -> u64 {
        (self.blocks.len() as u64).saturating_mul(BLOCK)
    }

    /// Bytes that are brought in while it runs.
    pub fn background_bytes(&self) -> u64 {
        let pages = self.pieces.iter().flat_map(|piece| &piece.pages);
        pages.fold(0, |sum, pages| sum.saturating_add(pages.range.end.saturating_sub(pages.range.start)))
    }

    /// The blocks as parts of the zone, those that touch joined.
    pub fn placed(&self) -> Vec<Range<u64>> {
        let mut parts: Vec<Range<u64>> = Vec::new();
        for block in &self.blocks {
            match parts.last_mut() {
                Some(last) if last.end == *block => last.end = block.saturating_add(BLOCK),
                _ => parts.push(*block..block.saturating_add(BLOCK)),
            }
        }
        parts
    }
}

/// Whether a part of the zone can be replaced by huge pages of its own. What the zone's configuration says of where
/// pages come from would have to be said of each part again: there, small pages do.
fn can_have_blocks(zone: &MemoryZoneConfig, mode: MemoryMode, chunk: u64) -> bool {
    let plain = mode == MemoryMode::OnDemand || (zone.host_numa_node.is_none() && !zone.mergeable);
    zone.thp && plain && BLOCK.is_multiple_of(chunk)
}

/// Where the blocks begin of which enough is touched.
fn worthwhile(pages: &ZonePages, mode: MemoryMode, size: u64) -> Vec<u64> {
    let per_block = BLOCK / PAGE_SIZE;
    let mut touched: BTreeMap<u64, u64> = BTreeMap::new();
    // Where chunks are brought in as a whole, what is read becomes memory of its own just as well.
    let read = pages.read.iter().filter(|_| mode == MemoryMode::OnDemand);
    for run in pages.written.iter().chain(read) {
        let mut page = run.0;
        while page < run.end() {
            let block = page / per_block;
            let next = ((block + 1) * per_block).min(run.end());
            *touched.entry(block).or_default() += next - page;
            page = next;
        }
    }
    let enough = touched.into_iter().filter(|(_, pages)| *pages >= PAGES_MIN);
    let whole = size / BLOCK;
    enough.filter(|(block, _)| *block < whole).map(|(block, _)| block * BLOCK).collect()
}

/// What is left beside the blocks, by chunk.
fn pieces(pages: &ZonePages, blocks: &[u64], chunk: u64) -> Vec<Piece> {
    let mut by_chunk: BTreeMap<u64, Vec<Pages>> = BTreeMap::new();
    for (runs, own) in [(&pages.written, true), (&pages.read, false)] {
        for run in runs {
            let (mut at, end) = (run.0.saturating_mul(PAGE_SIZE), run.end().saturating_mul(PAGE_SIZE));
            while at < end {
                let number = at / chunk;
                let next = ((number + 1).saturating_mul(chunk)).min(end);
                if blocks.binary_search(&(at / BLOCK * BLOCK)).is_err() {
                    by_chunk.entry(number).or_default().push(Pages { range: at..next, own });
                }
                at = next;
            }
        }
    }
    by_chunk.into_iter().map(|(chunk, pages)| Piece { chunk, pages }).collect()
}
