//! A paused machine into a directory.

use std::{io, path::PathBuf};

use api_client::wire;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use thiserror::Error;
use vm_migration::snapshot::{
    Chain, FORMAT, FORMAT_CHAIN, Manifest, MemoryTable, PAGE_SIZE, SnapshotError, SnapshotWriter,
};

use super::{
    SaveReport,
    parent::{Parent, ParentError},
    report::Difference,
};
use crate::{
    config::{MemoryZoneConfig, VmConfig},
    jobs::Progress,
    machine::{Machine, NamedDevice, StateError, attach::Control},
    memory::{
        GuestMemory,
        changes::{TrackError, ZoneWay},
        content::{self, ContentError, Stored, is_kept_in_snapshot},
    },
    phases::Phases,
};

/// A machine could not be saved. It is as it was, and can go on or be saved again.
#[derive(Debug, Error)]
pub enum SaveError {
    /// The directory cannot be used or written.
    #[error("snapshot directory")]
    Directory(#[from] SnapshotError),
    /// The other snapshot cannot be built on.
    #[error(transparent)]
    Parent(#[from] ParentError),
    /// Writes cannot be tracked.
    #[error("track_changes")]
    Track(#[from] TrackError),
    /// A device has content that the snapshot would not have.
    #[error(
        "device {id}: what the guest wrote at {offset:#x} of its memory is in no file that outlives the machine, and would \
         be missing from the snapshot"
    )]
    Unkept {
        /// Which device.
        id: String,
        /// The first of it, in bytes from the start.
        offset: u64,
    },
    /// It is not known whether it has.
    #[error("device {id}: cannot tell what the guest wrote to its memory")]
    Unknown {
        /// Which device.
        id: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A part of the machine does not hand out its state.
    #[error("machine state")]
    State(#[from] StateError),
    /// Memory cannot be read or written.
    #[error("guest memory")]
    Memory(#[from] ContentError),
    /// The memory is larger than a file can be.
    #[error("guest memory of {size} bytes is more than a file can hold")]
    Size {
        /// Bytes of memory.
        size: u64,
    },
    /// The configuration or layout cannot be written as JSON.
    #[error("cannot write the configuration")]
    Write(#[from] serde_json::Error),
}

/// What is to be saved, and how.
#[derive(Clone, Debug)]
pub struct SaveRequest {
    /// A directory that is there and holds no snapshot.
    pub target: PathBuf,
    /// The snapshot whose differences are saved; all is saved if not given.
    pub parent: Option<PathBuf>,
    /// Whether writes to memory are tracked from then on; if not given, that stays as it is.
    pub track: Option<bool>,
}

/// Saves a paused machine. `said` is the configuration as clients know it, `config` what it came to.
///
/// # Errors
/// See [`SaveError`]; the target then holds no snapshot.
pub fn save(
    machine: &mut Machine,
    said: &wire::VmConfig,
    config: &VmConfig,
    request: &SaveRequest,
    progress: &Progress,
) -> Result<SaveReport, SaveError> {
    let was_tracking = machine.memory_mut().tracker().is_some();
    let saved = save_tracking(machine, said, config, request, progress);
    let tracker = machine.memory_mut().tracker();
    match (&saved, request.track) {
        (Ok(report), Some(true)) => {
            if let Some(tracker) = tracker {
                tracker.begin_at(report.root);
            }
        }
        (Ok(_), Some(false)) => *tracker = None,
        // What was begun for a snapshot that is none tells nothing.
        (Err(_), _) if !was_tracking => *tracker = None,
        _ => {}
    }
    saved
}

fn save_tracking(
    machine: &mut Machine,
    said: &wire::VmConfig,
    config: &VmConfig,
    request: &SaveRequest,
    progress: &Progress,
) -> Result<SaveReport, SaveError> {
    let mut phases = Phases::begin();
    check_kept(machine)?;
    let writer = SnapshotWriter::create(&request.target)?;
    let zones = config.memory.iter().map(|zone| (zone.id.as_str(), zone.size, is_kept_in_snapshot(zone)));
    let mut table = MemoryTable::new(zones).ok_or(SaveError::Size { size: config.memory_size() })?;
    let parent = request.parent.as_ref().map(|directory| {
        phases.time("parent", || {
            let parent = Parent::open(directory, machine.layout())?;
            parent.check(&table).map(|()| parent)
        })
    });
    let parent = parent.transpose()?;
    let (sections, cpu) = phases.time("state", || machine.save())?;
    let kept: Vec<_> = config.memory.iter().filter(|zone| is_kept_in_snapshot(zone)).collect();
    let memory = machine.memory_mut();
    prepare(memory, &kept, parent.as_ref(), request.track, &mut phases, progress)?;
    progress.phase("scan", None);
    let (stored, ways) = phases.time("memory", || {
        let target = (writer.memory(), writer.memory_path());
        store(memory, &kept, parent.as_ref(), &mut table, target, progress)
    })?;
    if progress.is_cancelled() {
        return Err(ContentError::Cancelled.into());
    }
    progress.phase("write and sync", None);
    let difference = parent.as_ref().map(|parent| Difference {
        parent: parent.snapshot.directory().to_owned(),
        parent_root: parent.snapshot.root(),
        changed_bytes: stored.own.pages().saturating_mul(PAGE_SIZE),
        ways,
    });
    let chain =
        parent.map(|parent| Chain::over(&parent.snapshot, stored.own, &request.target)).transpose()?;
    let text = serde_json::to_string(said)?;
    let (cpu, layout, config) = (raw(&cpu)?, raw(machine.layout())?, RawValue::from_string(text.clone())?);
    let describe = |state, sections| Manifest {
        format: if chain.is_some() { FORMAT_CHAIN } else { FORMAT },
        program: concat!("cumulet ", env!("CARGO_PKG_VERSION")).to_owned(),
        cpu,
        layout,
        config,
        state,
        sections,
        memory: table,
        chain,
    };
    let manifest = phases.time("write and sync", || {
        content::write_out(writer.memory(), &writer.memory_path(), progress)?;
        Ok::<_, SaveError>(writer.finish(&text, &sections, describe, &|| progress.is_cancelled())?)
    })?;
    Ok(SaveReport {
        directory: request.target.clone(),
        root: manifest.root()?,
        memory_bytes: stored.bytes,
        difference,
        tracking: request.track.unwrap_or_else(|| machine.memory_mut().tracker().is_some()),
        total_ns: phases.total_ns(),
        phases: phases.done().to_vec(),
    })
}

/// Checks that no device has memory with content that would be lost. The machine stands still.
fn check_kept(machine: &Machine) -> Result<(), SaveError> {
    for NamedDevice { id, control, .. } in machine.devices() {
        let Control::Pmem(window) = control else { continue };
        match window.memory().first_unkept() {
            Ok(None) => {}
            Ok(Some(offset)) => return Err(SaveError::Unkept { id: id.clone(), offset }),
            Err(source) => return Err(SaveError::Unknown { id: id.clone(), source }),
        }
    }
    Ok(())
}

/// Brings in what must be there, and sees to it that what has been written is known.
fn prepare(
    memory: &mut GuestMemory,
    kept: &[&MemoryZoneConfig],
    parent: Option<&Parent>,
    track: Option<bool>,
    phases: &mut Phases,
    progress: &Progress,
) -> Result<(), SaveError> {
    let track = track == Some(true);
    // What is not known to be the parent's gets checksums of its own, and must not be damaged already; nor may that of which
    // the guest has made what it is now.
    let is_parents = parent.is_some_and(|parent| memory.is_from(parent.snapshot.root()));
    if let Some(background) = memory.background() {
        phases.time("check", || match is_parents {
            true => background.check_touched(progress),
            false => background.check_rest(progress),
        })?;
    }
    let can_be_missing = parent.is_some_and(|parent| memory.is_paged_from(parent.snapshot.root()));
    if memory.pager().is_some() && (track || !can_be_missing) {
        phases.time("fill", || memory.fill(progress))?;
    }
    if track {
        // A zone has one userfaultfd.
        memory.end_paging();
    }
    if track || memory.tracker().is_some() {
        phases.time("track", || memory.track(kept))?;
    }
    Ok(())
}

fn store(
    memory: &GuestMemory,
    kept: &[&MemoryZoneConfig],
    parent: Option<&Parent>,
    table: &mut MemoryTable,
    (file, path): (&std::fs::File, PathBuf),
    progress: &Progress,
) -> Result<(Stored, Vec<ZoneWay>), SaveError> {
    let (pages, ways) = match parent {
        Some(parent) => memory.changes(parent.snapshot.root(), &parent.memory)?,
        None => {
            let kept: Vec<_> = kept.iter().map(|zone| zone.id.as_str()).collect();
            (memory.pages(&kept)?, Vec::new())
        }
    };
    let below = parent.map(|parent| &parent.memory);
    match content::save(&pages, below, table, (file, &path), progress) {
        Ok(stored) => Ok((stored, ways)),
        // Nothing else is read.
        Err(ContentError::Saved(source)) => Err(ParentError::Memory(source).into()),
        Err(error) => Err(error.into()),
    }
}

fn raw(value: &impl Serialize) -> Result<Box<RawValue>, serde_json::Error> {
    to_raw_value(value)
}
