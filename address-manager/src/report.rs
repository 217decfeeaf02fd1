//! What a commit did, and how long each kind of operation took.

use std::{fmt, time::Instant};

use serde::{Deserialize, Serialize};

/// How often an operation was made, and how long all of them took together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationCount {
    /// How many.
    pub count: u64,
    /// Time of all together, in nanoseconds.
    pub ns: u64,
}

impl OperationCount {
    /// Counts `count` operations that began at `since` and are done.
    pub(crate) fn add(&mut self, count: usize, since: Instant) {
        self.count += count as u64;
        self.ns = self.ns.saturating_add(nanoseconds(since));
    }

    fn absorb(&mut self, other: Self) {
        self.count += other.count;
        self.ns = self.ns.saturating_add(other.ns);
    }
}

/// Time since an instant.
pub(crate) fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Operations by kind, in the order in which a commit makes them. Each is one system call, except
/// the last two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operations {
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

impl Operations {
    /// Each kind by its name, in order.
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
        let Self { published, listeners, .. } = self;
        self.kinds().iter().map(|(_, kind)| kind.count).sum::<u64>() - published.count - listeners.count
    }

    pub(crate) fn absorb(&mut self, other: &Self) {
        self.slots_removed.absorb(other.slots_removed);
        self.slots_added.absorb(other.slots_added);
        self.slot_flags.absorb(other.slot_flags);
        self.irqfds_removed.absorb(other.irqfds_removed);
        self.doorbells_removed.absorb(other.doorbells_removed);
        self.routing_writes.absorb(other.routing_writes);
        self.irqfds_added.absorb(other.irqfds_added);
        self.doorbells_added.absorb(other.doorbells_added);
        self.published.absorb(other.published);
        self.listeners.absorb(other.listeners);
    }
}

/// What one commit did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitReport {
    /// Number of the commit, from 1.
    pub sequence: u64,
    /// What it was for.
    pub label: String,
    /// The operations it made.
    #[serde(flatten)]
    pub operations: Operations,
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

impl fmt::Display for CommitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls = self.operations.kernel_calls();
        write!(f, "commit {} ({}): {calls} kernel calls", self.sequence, self.label)?;
        writeln!(f, ", {} after {} of staging", Micro(self.total_ns), Micro(self.staging_ns))?;
        writeln!(f, "  {:<18} {:>7} {:>12}", "difference", "", Micro(self.diff_ns))?;
        for (name, kind) in self.operations.kinds() {
            if kind.count != 0 {
                writeln!(f, "  {name:<18} {:>7} {:>12}", kind.count, Micro(kind.ns))?;
            }
        }
        write!(
            f,
            "  routing entries {}, dispatch ranges {}, doorbells left for later {}",
            self.routing_entries, self.dispatch_entries, self.doorbells_late
        )
    }
}

/// Nanoseconds, shown as microseconds.
struct Micro(u64);

impl fmt::Display for Micro {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{} us", self.0 / 1000, self.0 % 1000 / 100))
    }
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
    pub operations: Operations,
    /// Entries of all routing tables that were written.
    pub routing_entries: u64,
    /// Time of all commits, in nanoseconds, without staging.
    pub total_ns: u64,
}

impl CommitTotals {
    pub(crate) fn absorb(&mut self, report: &CommitReport) {
        self.commits += 1;
        self.operations.absorb(&report.operations);
        self.routing_entries += report.routing_entries;
        self.total_ns = self.total_ns.saturating_add(report.total_ns);
    }
}
