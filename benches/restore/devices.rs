//! Device sets: where the time goes until the guest runs, with one commit and with a commit for each change, beside QEMU; and
//! how many calls change the guest's wiring, as strace and as the report count them.

use std::{fs, path::Path, time::Duration};

use cumulet_benches::vm::{Calls, Contender, Restored, Result, Saved, Shape, Taps, shown};

use super::{COW, EACH, Q35};

/// The sets of the design: network devices and their queue pairs, disks and their queues.
const SETS: [((u32, u32), (u32, u32)); 3] = [((8, 16), (16, 4)), ((8, 1), (16, 1)), ((1, 16), (1, 4))];
const CONTENDERS: [Contender; 3] = [COW, EACH, Q35];

/// Prints three tables.
pub fn measure(runs: usize, place: &Path) -> Result<()> {
    let mut times = Vec::new();
    let mut phases = Vec::new();
    let mut calls = Vec::new();
    for (nets, disks) in SETS {
        let _taps = Taps::make(nets.0, nets.1)?;
        let shape = Shape { vcpus: 32, memory_mib: 1024, nets, disks };
        let set = format!("{} x {}-queue net, {} x {}-queue block", nets.0, nets.1, disks.0, disks.1);
        let mut saved = Vec::new();
        for (number, contender) in CONTENDERS.iter().enumerate() {
            saved.push(Saved::make(contender, &shape, 64, &place.join(number.to_string()), 1)?);
        }
        let mut restored: [Vec<Restored>; 3] = Default::default();
        for run in 0..runs {
            for (saved, restored) in saved.iter().zip(&mut restored) {
                restored.push(saved.restore("ping")?);
            }
            eprintln!("{shape:?}: run {} of {runs}", run + 1);
        }
        let [once, each, qemu] = &restored;
        let column = |of: &[Restored], figure: fn(&Restored) -> Option<Duration>| {
            shown(&mut of.iter().filter_map(figure).collect::<Vec<_>>())
        };
        let whole = |restored: &Restored| Some(restored.time);
        times.push(format!(
            "| {set} | {} | {} | {} | {} | {} | {} |",
            column(once, whole),
            column(each, whole),
            column(qemu, whole),
            column(once, running),
            column(each, running),
            column(qemu, |restored| restored.loading),
        ));
        phases.push(format!(
            "| {set} | {} | {} | {} | {} |",
            column(once, loading),
            column(each, loading),
            column(once, committed),
            column(each, committed),
        ));
        for (who, saved) in ["once", "each", "QEMU"].iter().zip(&saved) {
            let (counted, report) = saved.calls()?;
            let Calls([slots, doorbells, irqfds, routes]) = counted;
            let says = reported(&report).map_or_else(|| "-".to_owned(), |calls| calls.to_string());
            let sum = counted.sum();
            calls.push(format!(
                "| {set}, {who} | {slots} | {doorbells} | {irqfds} | {routes} | {sum} | {says} |"
            ));
        }
        for number in 0..CONTENDERS.len() {
            fs::remove_dir_all(place.join(number.to_string()))?;
        }
    }
    table(
        "| devices, 32 vCPUs | once | each | QEMU q35 | request to running: once | each | QEMU, its devices made before |",
        &times,
    );
    table(
        "| devices, 32 vCPUs | load and commit: once | each | first byte of state to committed: once | each |",
        &phases,
    );
    table(
        "| calls until a processor runs | slots | doorbells | irqfds | routing tables | all, by strace | by the report |",
        &calls,
    );
    Ok(())
}

fn table(head: &str, rows: &[String]) {
    let columns = head.matches(" | ").count() + 1;
    println!("\n{head}\n|{}", " --- |".repeat(columns));
    for row in rows {
        println!("{row}");
    }
}

/// From the request until the machine ran.
pub fn running(restored: &Restored) -> Option<Duration> {
    let line = restored.report.lines().find(|line| line.starts_with("restored "))?;
    milliseconds(line.rsplit_once(" in ")?.1)
}

/// Loading all devices, and the commit.
fn loading(restored: &Restored) -> Option<Duration> {
    Some(phase(restored, "load")?.1 + phase(restored, "commit")?.1)
}

/// From the first byte of state that was read until all devices were loaded and the wiring was committed.
fn committed(restored: &Restored) -> Option<Duration> {
    let (begun, (start, took)) = (phase(restored, "read state")?.0, phase(restored, "commit")?);
    Some((start + took).saturating_sub(begun))
}

/// When a phase began, and how long it took.
pub fn phase(restored: &Restored, name: &str) -> Option<(Duration, Duration)> {
    let (took, start) = restored.report.lines().find_map(|line| {
        let (took, start) = line.trim().strip_prefix(name)?.split_once(" from ")?;
        Some((took, start))
    })?;
    Some((milliseconds(start)?, milliseconds(took)?))
}

/// The calls of all commits until the guest ran.
fn reported(report: &str) -> Option<usize> {
    let of = |line: &str, mark: &str| line.split_once(mark)?.1.split(' ').next()?.parse().ok();
    let all = report.lines().find_map(|line| of(line, " commits in all: "));
    all.or_else(|| report.lines().find_map(|line| of(line, "commit 1 (restore): ")))
}

fn milliseconds(text: &str) -> Option<Duration> {
    let number: f64 = text.trim().strip_suffix(" ms")?.parse().ok()?;
    Some(Duration::from_secs_f64(number / 1e3))
}
