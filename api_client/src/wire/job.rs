//! Long work and how far it is. Cumulet's own: no client of another server knows it.

use serde::{Deserialize, Serialize};

/// What a piece of long work is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// A VM boots, or boots again.
    Boot,
    /// A snapshot is taken.
    Snapshot,
    /// A VM is restored from a snapshot.
    Restore,
    /// Memory of a restored VM is filled while it runs.
    Fill,
    /// The VM moves to another host.
    SendMigration,
    /// A VM moves here.
    ReceiveMigration,
    /// The guest's memory is dumped.
    Coredump,
}

impl JobKind {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Snapshot => "snapshot",
            Self::Restore => "restore",
            Self::Fill => "fill",
            Self::SendMigration => "send-migration",
            Self::ReceiveMigration => "receive-migration",
            Self::Coredump => "coredump",
        }
    }
}

/// What became of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// It is being worked on.
    Running,
    /// It is to be given up, and is not yet.
    Cancelling,
    /// It succeeded.
    Done,
    /// It did not.
    Failed,
    /// It was given up because somebody asked for that.
    Cancelled,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobInfo {
    /// Its number, different for every job of a process.
    pub id: u64,
    /// What it is for.
    pub kind: JobKind,
    /// What became of it.
    pub state: JobState,
    /// What it is doing, or did last.
    pub phase: String,
    /// Bytes that this phase has worked through.
    pub bytes_done: u64,
    /// Bytes that this phase has to work through, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// Bytes a second, on average over this phase.
    pub bytes_per_second: u64,
    /// Estimated milliseconds until this phase is over; only while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_ms: Option<u64>,
    /// Milliseconds since the job began, or that it took.
    pub elapsed_ms: u64,
    /// Why it failed, the outermost message first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Vec<String>>,
}

/// Asks for a job to be given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmCancelJob {
    /// The job.
    pub id: u64,
}
