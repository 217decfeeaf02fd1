//! How snapshots and restores went. Cumulet's own: clients of other servers do not ask for it.
//!
//! A newer server may say more than is read here.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{
    is_default,
    migration::{BackgroundFill, RestoreVerify, RestoredNetConfig},
};

/// What a snapshot came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaveReport {
    /// Where it is.
    pub directory: PathBuf,
    /// The checksum over all.
    pub root: u32,
    /// Bytes of guest memory that were stored.
    pub memory_bytes: u64,
    /// What it was held against, if it is a snapshot of differences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<SaveDifference>,
    /// Whether writes to memory are tracked from now on.
    pub tracking: bool,
    /// Where the time went.
    pub phases: Vec<ReportPhase>,
    /// All of it, in nanoseconds.
    pub total_ns: u64,
}

/// What a snapshot of differences was held against.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaveDifference {
    /// The snapshot that it builds on.
    pub parent: PathBuf,
    /// That one's checksum over all.
    pub parent_root: u32,
    /// Bytes of guest memory that differ; those that are zero now are not stored.
    pub changed_bytes: u64,
    /// How that was found out.
    pub ways: Vec<ZoneChanges>,
}

/// How it was found out what changed in one memory zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneChanges {
    /// The zone.
    pub zone: String,
    /// How.
    pub way: ChangesWay,
}

/// How it was found out what changed since another snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangesWay {
    /// Writes were tracked.
    Tracked,
    /// The zone was mapped from it: what was written since are pages of its own.
    Mapped,
    /// The zone is paged in from it: what has not come in was left out, the rest compared.
    Paged,
    /// All that was touched was compared with it.
    Compared,
}

/// What a restore came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// Where from.
    pub directory: PathBuf,
    /// How the memory of each zone came back.
    pub memory: Vec<ZoneReport>,
    /// Bytes of guest memory that were read before the guest could run.
    pub memory_bytes: u64,
    /// What was checked. Memory of zones in mode `kept` never is.
    pub verified: RestoreVerify,
    /// Whether memory is checked as it comes in.
    #[serde(default)]
    pub lazily_checked: bool,
    /// What is brought in beside what the guest touches.
    #[serde(default)]
    pub fill: FillReport,
    /// Whether the guest has a new generation id.
    pub new_generation: bool,
    /// Members of the configuration that were edited since the snapshot.
    pub edited: Vec<String>,
    /// What the request has laid over it, as id and key.
    pub overridden: Vec<String>,
    /// Taps that were not there, and that it made. They go with the VM.
    #[serde(default)]
    pub made_taps: Vec<MadeTap>,
    /// Where the time went.
    pub phases: Vec<ReportPhase>,
    /// From the request until the machine ran, or, if it stays paused, could run; in nanoseconds.
    pub total_ns: u64,
    /// Whether it ran.
    pub running: bool,
    /// The one commit; with a commit for each change, the first.
    pub commit: CommitReport,
    /// All commits.
    pub totals: CommitTotals,
}

/// What a restore would do, that is only tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreRehearsal {
    /// Where from.
    pub directory: PathBuf,
    /// How the memory of each zone would come back.
    pub memory: Vec<ZoneReport>,
    /// Bytes of guest memory that would be read before the guest could run.
    pub memory_bytes: u64,
    /// What was checked of the snapshot, which has no checksums of zones in mode `kept`.
    pub verified: RestoreVerify,
    /// What would be brought in beside what the guest touches.
    #[serde(default)]
    pub fill: FillReport,
    /// Members of the configuration that were edited since the snapshot.
    pub edited: Vec<String>,
    /// What the request lays over it.
    pub overridden: Vec<String>,
    /// Taps that are not there, and that it would make.
    #[serde(default)]
    pub made_taps: Vec<MadeTap>,
    /// Network devices that it would have to be given descriptors for.
    #[serde(default)]
    pub net_fds: Vec<RestoredNetConfig>,
    /// Processors that the guest has.
    pub vcpus: usize,
    /// Its PCI devices, in layout order.
    pub devices: Vec<String>,
}

/// A tap that is made for a network device, as there is none of its name, or as it has no name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeTap {
    /// The device.
    pub id: String,
    /// The tap's name; none before it is made, if the configuration gives it none.
    #[serde(default)]
    pub tap: Option<String>,
}

/// How the memory of one zone comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneReport {
    /// The zone.
    pub zone: String,
    /// How its content comes.
    pub mode: ZoneMemoryMode,
    /// Why it is not the mode that is used where nothing speaks against it, or why the zone's file is not used; none
    /// where all is as it is said.
    #[serde(default)]
    pub why: Option<String>,
    /// Bytes of a zone in mode `cow` that were copied in all the same: a chain of snapshots has more runs of
    /// pages than are mapped.
    #[serde(default, skip_serializing_if = "is_default")]
    pub copied_bytes: u64,
}

/// A way for memory to come back, as a report has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ZoneMemoryMode {
    /// All of it is read before the guest runs.
    Copy,
    /// The snapshot's file is mapped copy-on-write.
    Cow,
    /// Pages are read as they are touched.
    OnDemand,
    /// The zone's own file still has it. Nothing of it is checked.
    Kept,
}

impl ZoneMemoryMode {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Cow => "cow",
            Self::OnDemand => "ondemand",
            Self::Kept => "kept",
        }
    }
}

/// What is brought into memory beside what the guest touches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FillReport {
    /// What is brought in.
    pub background_fill: BackgroundFill,
    /// Bytes a second at most, with `all`.
    pub bytes_per_second: Option<u64>,
    /// What is read ahead of each zone; only those of which anything is.
    pub read_ahead: Vec<ZoneFill>,
    /// Why the recorded working set is not used, where one was expected or is there.
    pub working_set_ignored: Option<String>,
    /// For how many milliseconds it is noted what the guest touches, if it is.
    pub record_working_set_ms: Option<u64>,
}

impl Default for FillReport {
    fn default() -> Self {
        Self {
            background_fill: BackgroundFill::None,
            bytes_per_second: None,
            read_ahead: Vec::new(),
            working_set_ignored: None,
            record_working_set_ms: None,
        }
    }
}

/// What is read ahead of a zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneFill {
    /// The zone.
    pub zone: String,
    /// Bytes that are there before the guest runs.
    pub before_bytes: u64,
    /// Bytes that are brought in while it runs.
    pub background_bytes: u64,
}

/// One step of long work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportPhase {
    /// What was done.
    pub name: String,
    /// When it began, in nanoseconds from the beginning of all.
    pub start_ns: u64,
    /// How long it took, in nanoseconds.
    pub ns: u64,
}

/// What one commit of the guest's wiring did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitReport {
    /// Number of the commit, from 1.
    pub sequence: u64,
    /// What it was for.
    pub label: String,
    /// The operations it made.
    #[serde(flatten)]
    pub operations: CommitOperations,
    /// Entries of the routing table that was written; 0 if none was.
    pub routing_entries: u64,
    /// Ranges in the dispatch table.
    pub dispatch_entries: u64,
    /// Doorbells left unregistered, to be armed later.
    pub doorbells_late: u64,
    /// From begin to commit, in nanoseconds: device code ran in it.
    pub staging_ns: u64,
    /// Comparing the live and the staged wiring, in nanoseconds.
    pub diff_ns: u64,
    /// The whole commit, in nanoseconds, without staging.
    pub total_ns: u64,
}

/// What all commits did together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitTotals {
    /// Commits that took effect.
    pub commits: u64,
    /// Commits that failed and were undone. Their operations are not counted.
    pub failed: u64,
    /// The operations they made.
    #[serde(flatten)]
    pub operations: CommitOperations,
    /// Entries of all routing tables that were written.
    pub routing_entries: u64,
    /// Time of all commits, in nanoseconds, without staging.
    pub total_ns: u64,
}

/// Operations of commits by kind. Each is one system call, except the last two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitOperations {
    /// Memory slots removed.
    pub slots_removed: OperationCount,
    /// Memory slots added.
    pub slots_added: OperationCount,
    /// Memory slots whose flags were changed.
    pub slot_flags: OperationCount,
    /// Irqfds disconnected.
    pub irqfds_removed: OperationCount,
    /// Doorbells taken away.
    pub doorbells_removed: OperationCount,
    /// Interrupt routing tables written: one a commit at most.
    pub routing_writes: OperationCount,
    /// Irqfds connected.
    pub irqfds_added: OperationCount,
    /// Doorbells registered.
    pub doorbells_added: OperationCount,
    /// Dispatch tables and memory views published.
    pub published: OperationCount,
    /// Listeners that were told.
    pub listeners: OperationCount,
}

/// How often an operation was made, and how long all of them took together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationCount {
    /// How many.
    pub count: u64,
    /// Time of all together, in nanoseconds.
    pub ns: u64,
}

impl CommitOperations {
    /// Each kind by its name, in the order in which a commit makes them.
    pub fn kinds(&self) -> [(&'static str, OperationCount); 10] {
        let Self {
            slots_removed,
            slots_added,
            slot_flags,
            irqfds_removed,
            doorbells_removed,
            routing_writes,
            irqfds_added,
            doorbells_added,
            published,
            listeners,
        } = *self;
        [
            ("slots removed", slots_removed),
            ("slots added", slots_added),
            ("slot flags", slot_flags),
            ("irqfds removed", irqfds_removed),
            ("doorbells removed", doorbells_removed),
            ("routing writes", routing_writes),
            ("irqfds added", irqfds_added),
            ("doorbells added", doorbells_added),
            ("tables published", published),
            ("listeners told", listeners),
        ]
    }

    /// Number of calls of the hypervisor.
    pub fn kernel_calls(&self) -> u64 {
        let none = OperationCount::default();
        let calls = Self { published: none, listeners: none, ..*self };
        // What a server says may be anything.
        calls.kinds().iter().fold(0, |sum, (_, kind)| sum.saturating_add(kind.count))
    }
}
