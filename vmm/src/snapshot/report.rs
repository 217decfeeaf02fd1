//! What a snapshot and a restore say of themselves.

use std::{fmt, path::PathBuf};

use super::{FillReport, Verify, ZoneFill};
use crate::{
    machine::attach::net::MadeTap,
    memory::{background::Fill, changes::ZoneWay, content::ZoneMode},
    phases::Phase,
};
use address_manager::{CommitReport, CommitTotals};

/// What a snapshot came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaveReport {
    /// Where it is.
    pub directory: PathBuf,
    /// The checksum over all.
    pub root: u32,
    /// Bytes of guest memory that were stored.
    pub memory_bytes: u64,
    /// What it was held against, if it is a snapshot of differences.
    pub difference: Option<Difference>,
    /// Whether writes to memory are tracked from now on.
    pub tracking: bool,
    /// Where the time went.
    pub phases: Vec<Phase>,
    /// All of it, in nanoseconds.
    pub total_ns: u64,
}

/// What a snapshot of differences was held against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The snapshot that it builds on.
    pub parent: PathBuf,
    /// That one's checksum over all.
    pub parent_root: u32,
    /// Bytes of guest memory that differ; those that are zero now are not stored.
    pub changed_bytes: u64,
    /// How that was found out.
    pub ways: Vec<ZoneWay>,
}

/// What a restore came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreReport {
    /// Where from.
    pub directory: PathBuf,
    /// How the memory of each zone came back.
    pub memory: Vec<ZoneMode>,
    /// Bytes of guest memory that were read before the guest could run.
    pub memory_bytes: u64,
    /// What was checked.
    pub verified: Verify,
    /// Whether memory is checked as it comes in.
    pub lazily_checked: bool,
    /// What is brought in beside what the guest touches.
    pub fill: FillReport,
    /// Whether the guest has a new generation id.
    pub new_generation: bool,
    /// Members of the configuration that were edited since the snapshot.
    pub edited: Vec<String>,
    /// What the request has laid over it, as id and key.
    pub overridden: Vec<String>,
    /// Taps that were not there, and that it made.
    pub made_taps: Vec<MadeTap>,
    /// Where the time went.
    pub phases: Vec<Phase>,
    /// From the request until the machine ran, or, if it stays paused, could run; in nanoseconds.
    pub total_ns: u64,
    /// Whether it ran.
    pub running: bool,
    /// The one commit; with a commit for each change, the first.
    pub commit: CommitReport,
    /// All commits.
    pub totals: CommitTotals,
}

impl fmt::Display for RestoreReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |ns: u64| Milliseconds(ns);
        let state = if self.running { "running" } else { "paused" };
        writeln!(f, "restored {}, {state} in {}", self.directory.display(), milliseconds(self.total_ns))?;
        for Phase { name, start_ns, ns } in &self.phases {
            writeln!(f, "  {name:<24} {:>12} from {}", milliseconds(*ns), milliseconds(*start_ns))?;
        }
        for ZoneMode { zone, mode, why, copied_bytes } in &self.memory {
            write!(f, "  memory zone {zone}: {mode}")?;
            if *copied_bytes > 0 {
                write!(f, ", {copied_bytes} bytes copied in")?;
            }
            match why {
                Some(why) => writeln!(f, " (it {why})")?,
                None => writeln!(f)?,
            }
        }
        let lazily = if self.lazily_checked { ", and memory as it comes in" } else { "" };
        writeln!(f, "  checked: {}{lazily}", self.verified)?;
        write!(f, "{}", self.fill)?;
        if !self.edited.is_empty() {
            writeln!(f, "  edited since the snapshot: {}", self.edited.join(", "))?;
        }
        if !self.overridden.is_empty() {
            writeln!(f, "  overridden: {}", self.overridden.join(", "))?;
        }
        for MadeTap { id, tap } in &self.made_taps {
            writeln!(f, "  {id}: tap {} was not there and was made", tap.as_deref().unwrap_or_default())?;
        }
        write!(f, "{}", self.commit)?;
        let CommitTotals { commits, operations, total_ns, .. } = &self.totals;
        if *commits > 1 {
            let calls = operations.kernel_calls();
            write!(f, "\n  {commits} commits in all: {calls} kernel calls, {}", milliseconds(*total_ns))?;
        }
        Ok(())
    }
}

impl fmt::Display for FillReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ZoneFill { zone, before_bytes, background_bytes } in &self.read_ahead {
            write!(f, "  read ahead of memory zone {zone}: {before_bytes} bytes")?;
            writeln!(f, ", {background_bytes} bytes in the background")?;
        }
        if let Fill::All { rate } = self.fill {
            writeln!(f, "  filled in the background: {rate} bytes a second at most")?;
        }
        if let Some(why) = &self.working_set_ignored {
            writeln!(f, "  nothing is read ahead: {why}")?;
        }
        if let Some(time) = self.record_working_set_ms {
            writeln!(f, "  the working set is recorded for {time} ms")?;
        }
        Ok(())
    }
}

impl fmt::Display for SaveReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { directory, root, memory_bytes, difference, tracking, phases, total_ns } = self;
        write!(f, "saved {} in {}", directory.display(), Milliseconds(*total_ns))?;
        write!(f, ": {memory_bytes} bytes of memory, checksum of all {root:#010x}")?;
        if let Some(Difference { parent, changed_bytes, ways, .. }) = difference {
            write!(f, ", {changed_bytes} bytes differ from {}", parent.display())?;
            ways.iter().try_for_each(|ZoneWay { zone, way }| write!(f, ", {zone} {way}"))?;
        }
        if *tracking {
            write!(f, ", writes are tracked from here on")?;
        }
        phases.iter().try_for_each(|Phase { name, ns, .. }| write!(f, ", {name} {}", Milliseconds(*ns)))
    }
}

struct Milliseconds(u64);

impl fmt::Display for Milliseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:03} ms", self.0 / 1_000_000, self.0 / 1_000 % 1_000);
        f.pad(&text)
    }
}
