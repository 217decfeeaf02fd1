//! A paused machine into a directory.

use std::path::Path;

use api_client::wire;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use thiserror::Error;
use vm_migration::snapshot::{FORMAT, Manifest, MemoryTable, SnapshotError, SnapshotWriter};

use super::SaveReport;
use crate::{
    config::VmConfig,
    jobs::Progress,
    machine::{Machine, StateError},
    memory::content::{self, ContentError, is_kept_in_snapshot},
    phases::Phases,
};

/// A machine could not be saved. It is as it was, and can go on or be saved again.
#[derive(Debug, Error)]
pub enum SaveError {
    /// The directory cannot be used or written.
    #[error("snapshot directory")]
    Directory(#[from] SnapshotError),
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

/// Saves a paused machine into `target`, a directory that is there and holds no snapshot. `said` is the
/// configuration as clients know it, `config` what it came to.
///
/// # Errors
/// See [`SaveError`]; `target` then holds no snapshot.
pub fn save(
    machine: &Machine,
    said: &wire::VmConfig,
    config: &VmConfig,
    target: &Path,
    progress: &Progress,
) -> Result<SaveReport, SaveError> {
    let mut phases = Phases::begin();
    let writer = SnapshotWriter::create(target)?;
    let (sections, cpu) = phases.time("state", || machine.save())?;
    let zones = config.memory.iter().map(|zone| (zone.id.as_str(), zone.size, is_kept_in_snapshot(zone)));
    let mut table = MemoryTable::new(zones).ok_or(SaveError::Size { size: config.memory_size() })?;
    let memory = machine.memory().zones();
    progress.phase("memory", None);
    if let Some(pager) = machine.memory().pager() {
        phases.time("fill", || pager.fill(progress))?;
    }
    let memory_bytes = phases.time("memory", || {
        let path = writer.memory_path();
        content::save(&memory, &mut table, writer.memory(), &path, progress)
    })?;
    progress.phase("write and sync", None);
    let text = serde_json::to_string(said)?;
    let (cpu, layout, config) = (raw(&cpu)?, raw(machine.layout())?, RawValue::from_string(text.clone())?);
    let manifest = phases.time("write and sync", || {
        writer.finish(&text, &sections, |state, sections| Manifest {
            format: FORMAT,
            program: concat!("cumulet ", env!("CARGO_PKG_VERSION")).to_owned(),
            cpu,
            layout,
            config,
            state,
            sections,
            memory: table,
        })
    })?;
    Ok(SaveReport {
        directory: target.to_owned(),
        root: manifest.root()?,
        memory_bytes,
        total_ns: phases.total_ns(),
        phases: phases.done().to_vec(),
    })
}

fn raw(value: &impl Serialize) -> Result<Box<RawValue>, serde_json::Error> {
    to_raw_value(value)
}
