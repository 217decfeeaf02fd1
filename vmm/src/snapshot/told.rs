//! Reports as the API tells them. What is told is what `api_client` says; a member that is new here does not
//! compile until it is decided whether it is told.

use address_manager::{CommitReport, CommitTotals, OperationCount, Operations};
use api_client::wire;

use super::{Difference, FillReport, Rehearsal, RestoreReport, SaveReport, Verify, ZoneFill};
use crate::{
    machine::attach::net::MadeTap,
    memory::{
        background::Fill,
        changes::{Way, ZoneWay},
        content::{MemoryMode, ZoneMode},
    },
    phases::Phase,
};

impl From<SaveReport> for wire::SaveReport {
    fn from(report: SaveReport) -> Self {
        let SaveReport { directory, root, memory_bytes, difference, tracking, phases, total_ns } = report;
        Self {
            directory,
            root,
            memory_bytes,
            difference: difference.map(difference_of),
            tracking,
            phases: all(phases, phase),
            total_ns,
        }
    }
}

impl From<RestoreReport> for wire::RestoreReport {
    fn from(report: RestoreReport) -> Self {
        let RestoreReport {
            directory,
            memory,
            memory_bytes,
            verified,
            lazily_checked,
            fill,
            new_generation,
            edited,
            overridden,
            made_taps,
            phases,
            total_ns,
            running,
            commit,
            totals,
        } = report;
        Self {
            directory,
            memory: all(memory, zone),
            memory_bytes,
            verified: checked(verified),
            lazily_checked,
            fill: filled(fill),
            new_generation,
            edited,
            overridden,
            made_taps: all(made_taps, made_tap),
            phases: all(phases, phase),
            total_ns,
            running,
            commit: commit_of(commit),
            totals: totals_of(totals),
        }
    }
}

impl From<Rehearsal> for wire::RestoreRehearsal {
    fn from(rehearsal: Rehearsal) -> Self {
        let Rehearsal {
            directory,
            memory,
            memory_bytes,
            verified,
            fill,
            edited,
            overridden,
            made_taps,
            net_fds,
            vcpus,
            devices,
        } = rehearsal;
        Self {
            directory,
            memory: all(memory, zone),
            memory_bytes,
            verified: checked(verified),
            fill: filled(fill),
            edited,
            overridden,
            made_taps: all(made_taps, made_tap),
            net_fds,
            vcpus,
            devices,
        }
    }
}

impl From<MemoryMode> for wire::ZoneMemoryMode {
    fn from(mode: MemoryMode) -> Self {
        match mode {
            MemoryMode::Copy => Self::Copy,
            MemoryMode::Cow => Self::Cow,
            MemoryMode::OnDemand => Self::OnDemand,
            MemoryMode::Kept => Self::Kept,
        }
    }
}

fn all<T, U>(list: Vec<T>, tell: fn(T) -> U) -> Vec<U> {
    list.into_iter().map(tell).collect()
}

fn difference_of(difference: Difference) -> wire::SaveDifference {
    let Difference { parent, parent_root, changed_bytes, ways } = difference;
    wire::SaveDifference { parent, parent_root, changed_bytes, ways: all(ways, changes) }
}

fn changes(ZoneWay { zone, way }: ZoneWay) -> wire::ZoneChanges {
    let way = match way {
        Way::Tracked => wire::ChangesWay::Tracked,
        Way::Mapped => wire::ChangesWay::Mapped,
        Way::Paged => wire::ChangesWay::Paged,
        Way::Compared => wire::ChangesWay::Compared,
    };
    wire::ZoneChanges { zone, way }
}

fn zone(ZoneMode { zone, mode, why, copied_bytes }: ZoneMode) -> wire::ZoneReport {
    wire::ZoneReport { zone, mode: mode.into(), why: why.map(str::to_owned), copied_bytes }
}

fn made_tap(MadeTap { id, tap }: MadeTap) -> wire::MadeTap {
    wire::MadeTap { id, tap }
}

fn checked(verified: Verify) -> wire::RestoreVerify {
    match verified {
        Verify::Off => wire::RestoreVerify::Off,
        Verify::State => wire::RestoreVerify::State,
        Verify::Full => wire::RestoreVerify::Full,
    }
}

fn filled(report: FillReport) -> wire::FillReport {
    let FillReport { fill, read_ahead, working_set_ignored, record_working_set_ms } = report;
    let (background_fill, bytes_per_second) = match fill {
        Fill::None => (wire::BackgroundFill::None, None),
        Fill::WorkingSet => (wire::BackgroundFill::WorkingSet, None),
        Fill::All { rate } => (wire::BackgroundFill::All, Some(rate.get())),
    };
    let read_ahead = all(read_ahead, |ZoneFill { zone, before_bytes, background_bytes }| wire::ZoneFill {
        zone,
        before_bytes,
        background_bytes,
    });
    wire::FillReport {
        background_fill,
        bytes_per_second,
        read_ahead,
        working_set_ignored,
        record_working_set_ms,
    }
}

fn phase(Phase { name, start_ns, ns }: Phase) -> wire::ReportPhase {
    wire::ReportPhase { name: name.to_owned(), start_ns, ns }
}

fn commit_of(report: CommitReport) -> wire::CommitReport {
    let CommitReport {
        sequence,
        label,
        operations,
        routing_entries,
        dispatch_entries,
        doorbells_late,
        staging_ns,
        diff_ns,
        total_ns,
    } = report;
    wire::CommitReport {
        sequence,
        label,
        operations: operations_of(operations),
        routing_entries,
        dispatch_entries,
        doorbells_late,
        staging_ns,
        diff_ns,
        total_ns,
    }
}

fn totals_of(totals: CommitTotals) -> wire::CommitTotals {
    let CommitTotals { commits, failed, operations, routing_entries, total_ns } = totals;
    wire::CommitTotals { commits, failed, operations: operations_of(operations), routing_entries, total_ns }
}

fn operations_of(operations: Operations) -> wire::CommitOperations {
    let Operations {
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
    } = operations;
    let count = |OperationCount { count, ns }| wire::OperationCount { count, ns };
    wire::CommitOperations {
        slots_removed: count(slots_removed),
        slots_added: count(slots_added),
        slot_flags: count(slot_flags),
        irqfds_removed: count(irqfds_removed),
        doorbells_removed: count(doorbells_removed),
        routing_writes: count(routing_writes),
        irqfds_added: count(irqfds_added),
        doorbells_added: count(doorbells_added),
        published: count(published),
        listeners: count(listeners),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_have_the_names_here_that_they_have_there() {
        let mut operations = Operations::default();
        let mut number = 0;
        let mut counted = || {
            number += 1;
            OperationCount { count: number, ns: 100 * number }
        };
        operations.slots_removed = counted();
        operations.slots_added = counted();
        operations.slot_flags = counted();
        operations.irqfds_removed = counted();
        operations.doorbells_removed = counted();
        operations.routing_writes = counted();
        operations.irqfds_added = counted();
        operations.doorbells_added = counted();
        operations.published = counted();
        operations.listeners = counted();
        let told = operations_of(operations);
        let kinds = |kinds: [(&'static str, OperationCount); 10]| {
            kinds.map(|(name, kind)| (name, kind.count, kind.ns))
        };
        assert_eq!(told.kinds().map(|(name, kind)| (name, kind.count, kind.ns)), kinds(operations.kinds()));
        assert_eq!(told.kernel_calls(), operations.kernel_calls());
    }
}
