//! The report as a table.

use std::fmt::Write;

use api_client::wire::{ReportPhase, RestoreReport, RestoreVerify, ZoneFill, ZoneReport};

use super::{milliseconds, operations, title};

pub(super) fn of(report: &RestoreReport) -> String {
    let mut text = format!("{}\n\n", title(report));
    // A string takes whatever is written to it.
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{arguments}");
    };
    line(format_args!("  {:<24} {:>12} {:>12}", "phase", "from, ms", "for, ms"));
    for ReportPhase { name, start_ns, ns } in &report.phases {
        line(format_args!("  {name:<24} {:>12} {:>12}", milliseconds(*start_ns), milliseconds(*ns)));
    }
    line(format_args!(""));
    line(format_args!("  {:<24} {:>12} {:>12}", "wiring", "number", "for, ms"));
    for (name, count, ns) in operations(report) {
        line(format_args!("  {name:<24} {count:>12} {:>12}", milliseconds(ns)));
    }
    let totals = &report.totals;
    let calls = totals.operations.kernel_calls();
    line(format_args!("  {:<24} {calls:>12}", "kernel calls"));
    line(format_args!("  {:<24} {:>12} {:>12}", "commits", totals.commits, milliseconds(totals.total_ns)));
    line(format_args!("  {:<24} {:>12}", "doorbells for later", report.commit.doorbells_late));
    line(format_args!(""));
    for ZoneReport { zone, mode, why, .. } in &report.memory {
        let mode = mode.name();
        let why = why.as_ref().map_or_else(String::new, |why| format!(" (it {why})"));
        line(format_args!("  memory zone {zone}: {mode}{why}"));
    }
    let lazily = if report.lazily_checked { ", and memory as it comes in" } else { "" };
    let checked = match report.verified {
        RestoreVerify::Off => "off",
        RestoreVerify::State => "state",
        RestoreVerify::Full => "full",
    };
    line(format_args!("  memory read first: {} bytes; checked: {checked}{lazily}", report.memory_bytes));
    let fill = &report.fill;
    for ZoneFill { zone, before_bytes, background_bytes } in &fill.read_ahead {
        line(format_args!(
            "  read ahead of memory zone {zone}: {before_bytes} bytes, {background_bytes} in the background"
        ));
    }
    if let Some(rate) = fill.bytes_per_second {
        line(format_args!("  filled in the background: {rate} bytes a second at most"));
    }
    if let Some(why) = &fill.working_set_ignored {
        line(format_args!("  nothing is read ahead: {why}"));
    }
    if let Some(time) = fill.record_working_set_ms {
        line(format_args!("  the working set is recorded for {time} ms"));
    }
    let generation = if report.new_generation { "new" } else { "as it was" };
    line(format_args!("  generation id: {generation}"));
    for (what, list) in [("edited since the snapshot", &report.edited), ("overridden", &report.overridden)] {
        if !list.is_empty() {
            line(format_args!("  {what}: {}", list.join(", ")));
        }
    }
    for made in &report.made_taps {
        let tap = made.tap.as_deref().unwrap_or_default();
        line(format_args!("  {}: tap {tap} was not there and was made", made.id));
    }
    text
}
