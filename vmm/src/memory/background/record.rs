//! Notes which pages a restored guest touches first, and keeps them beside the snapshot for the next restore.

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use vm_migration::snapshot::{PageRun, WorkingSet, ZonePages};

use super::{
    Ground, MappedZone,
    switch::{State, Switch},
};
use crate::{
    config::PAGE_SIZE,
    memory::{
        demand::Touch,
        pagemap::{Pagemap, Pages},
    },
};

/// What is to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// For how long from the guest's first instruction on.
    pub window: Duration,
    /// The snapshot's directory, where it is kept.
    pub directory: PathBuf,
    /// The checksum of the snapshot's manifest.
    pub root: u32,
}

/// Does it.
pub(super) struct Recorder {
    recording: Recording,
    ground: Arc<Ground>,
    progress: Mutex<Progress>,
}

enum Progress {
    Waiting,
    Since(Instant),
    Seen(io::Result<WorkingSet>),
    Done,
}

impl Recorder {
    pub(super) fn new(recording: Recording, ground: Arc<Ground>) -> Self {
        Self { recording, ground, progress: Mutex::new(Progress::Waiting) }
    }

    /// The guest begins to run.
    pub(super) fn begin(&self) {
        *self.progress.lock() = Progress::Since(Instant::now());
    }

    /// Waits for the end of the window, or for the pause that ends it before, and writes what was touched. A machine
    /// that is gone before is not recorded.
    pub(super) fn run(&self, switch: &Switch) {
        if switch.wait_while_running(self.recording.window) != State::Stopped {
            self.look();
        }
        let seen = std::mem::replace(&mut *self.progress.lock(), Progress::Done);
        match seen {
            Progress::Seen(seen) => self.keep(seen),
            _ => log::info!("the VM was gone before its working set was recorded"),
        }
    }

    /// Finds out what has been touched by now, unless that was done.
    pub(super) fn look(&self) {
        let mut progress = self.progress.lock();
        if let Progress::Since(begun) = *progress {
            *progress = Progress::Seen(self.touched(begun.elapsed()));
        }
    }

    fn keep(&self, seen: io::Result<WorkingSet>) {
        let events = &self.ground.watch.events;
        match self.write(seen) {
            Ok((pages, window_ms)) => {
                log::info!("the working set is recorded: {pages} pages in {window_ms} ms");
                let (pages, window_ms) = (pages.to_string(), window_ms.to_string());
                let properties = [("pages", pages.as_str()), ("window_ms", &window_ms)];
                events.tell_with("vm", "working-set-recorded", &properties);
            }
            Err(error) => {
                log::warn!("the working set is not recorded: {error}");
                events.tell_with("vm", "working-set-failed", &[("error", &error)]);
            }
        }
    }

    fn write(&self, seen: io::Result<WorkingSet>) -> Result<(u64, u32), String> {
        let set = seen.map_err(|error| format!("cannot find out what was touched: {error}"))?;
        let said = (set.pages(), set.window_ms);
        set.write(&self.recording.directory).map_err(|error| crate::error::chain(&error))?;
        Ok(said)
    }

    fn touched(&self, time: Duration) -> io::Result<WorkingSet> {
        let mut zones = self.ground.mapped.iter().map(mapped).collect::<io::Result<Vec<_>>>()?;
        if let Some(filler) = &self.ground.filler {
            zones.extend(self.paged_in(filler.take_touched()));
        }
        zones.retain(|pages| !pages.written.is_empty() || !pages.read.is_empty());
        let window_ms = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        Ok(WorkingSet { root: self.recording.root, window_ms, zones })
    }

    /// Chunks that were touched, as pages of their zones. One that was first written is taken for written, all of it.
    fn paged_in(&self, mut touched: Vec<Touch>) -> Vec<ZonePages> {
        let saved = &self.ground.saved;
        let pages_of = saved.table().chunk_size / PAGE_SIZE;
        // Several who touch a chunk at the same time are each noted; who wrote counts.
        touched.sort_unstable_by_key(|touch| (touch.chunk, !touch.written));
        touched.dedup_by_key(|touch| touch.chunk);
        let zones = saved.table().zones.iter().map(|content| {
            let chunks = saved.chunks_of(&content.zone);
            let mut pages = ZonePages { zone: content.zone.clone(), ..ZonePages::default() };
            for touch in touched.iter().filter(|touch| chunks.contains(&touch.chunk)) {
                let first = (touch.chunk - chunks.start).saturating_mul(pages_of);
                let count = pages_of.min((content.size / PAGE_SIZE).saturating_sub(first));
                let list = if touch.written { &mut pages.written } else { &mut pages.read };
                match list.last_mut() {
                    Some(last) if last.end() == first => last.1 = last.1.saturating_add(count),
                    _ => list.push(PageRun(first, count)),
                }
            }
            pages
        });
        zones.collect()
    }
}

/// The pages of a mapped zone that are there: what is the process's own was written.
fn mapped(zone: &MappedZone) -> io::Result<ZonePages> {
    let present = Pagemap::open()?.present(&zone.mapping, 0..zone.mapping.size() as u64)?;
    let run = |pages: &Pages| {
        let (first, end) = (pages.range.start / PAGE_SIZE, pages.range.end / PAGE_SIZE);
        PageRun(first, end.saturating_sub(first))
    };
    let of = |own: bool| present.iter().filter(|pages| pages.own == own).map(run).collect();
    Ok(ZonePages { zone: zone.zone.clone(), written: of(true), read: of(false) })
}
