//! Restoring beside QEMU, on this host's KVM, with the test guest. `cargo xtask bench restore`; docs/snapshot-restore.md
//! has the results. Prints Markdown tables, and judges nothing.
//!
//! Time is from just before the process is started until the guest has answered its first order. The contenders take
//! turns, so that a slow phase of the machine meets all of them; each figure is a median, with the least in brackets.

#![expect(clippy::print_stdout, reason = "its output is what the program is for")]
#![expect(clippy::print_stderr, reason = "progress and errors of a command-line program")]

mod differences;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use cumulet_benches::vm::{Contender, Result, Saved, Shape, Taps, shown};

const COW: Contender = Contender::Cumulet { keys: "", options: &[] };
const DEMAND: Contender = Contender::Cumulet { keys: ",memory_restore_mode=ondemand", options: &[] };
const COPY: Contender = Contender::Cumulet { keys: ",memory_restore_mode=copy", options: &[] };
const EACH: Contender = Contender::Cumulet { keys: "", options: &["--restore-commit", "each"] };
const MICROVM: Contender = Contender::Qemu { machine: "microvm,auto-kernel-cmdline=off" };
const Q35: Contender = Contender::Qemu { machine: "q35" };

/// Memory and how much of it is written, in MiB.
const MEMORY: [(u64, u64); 5] = [(128, 64), (512, 64), (1024, 512), (4096, 512), (16384, 64)];
/// The device sets of the design: network devices and their queue pairs, disks and their queues.
const SETS: [((u32, u32), (u32, u32)); 3] = [((8, 16), (16, 4)), ((8, 1), (16, 1)), ((1, 16), (1, 4))];

const USAGE: &str = "usage: bench-restore [RUNS [memory|written|differences|devices]]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-restore: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let runs: usize = arguments.first().map_or(Ok(10), |runs| runs.parse())?;
    let part = arguments.get(1).map(String::as_str);
    if runs == 0 || !matches!(part, None | Some("memory" | "written" | "differences" | "devices")) {
        return Err(USAGE.into());
    }
    let place = PathBuf::from(format!("/dev/shm/bench-restore-{}", std::process::id()));
    let measured = measure(runs, part, &place);
    let _ = std::fs::remove_dir_all(&place);
    measured
}

fn measure(runs: usize, part: Option<&str>, place: &std::path::Path) -> Result<()> {
    if part.is_none_or(|part| part == "memory") {
        println!("| memory / written | cow | ondemand | copy | QEMU microvm | saving: Cumulet | QEMU |");
        println!("| --- | --- | --- | --- | --- | --- | --- |");
        for (memory_mib, dirty) in MEMORY {
            let shape = Shape { vcpus: 1, memory_mib, ..Shape::default() };
            let row = row(&[COW, DEMAND, COPY, MICROVM], &shape, dirty, "ping", runs, place)?;
            let [cow, demand, copy, qemu] = row.as_slice() else { return Err("a row of four".into()) };
            println!(
                "| {memory_mib} MiB / {dirty} MiB | {} | {} | {} | {} | {} | {} |",
                cow.time, demand.time, copy.time, qemu.time, cow.saving, qemu.saving
            );
        }
    }
    if part.is_none_or(|part| part == "written") {
        written(runs, place)?;
    }
    if part.is_none_or(|part| part == "differences") {
        differences::measure(runs, place)?;
    }
    if part.is_none_or(|part| part == "devices") {
        println!(
            "| devices, 32 vCPUs | once | each | QEMU q35 | request to running: once | each | load and commit: once | each |"
        );
        println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
        for (nets, disks) in SETS {
            let _taps = Taps::make(nets.0, nets.1)?;
            let shape = Shape { vcpus: 32, memory_mib: 1024, nets, disks };
            let row = row(&[COW, EACH, Q35], &shape, 64, "ping", runs, place)?;
            let [once, each, qemu] = row.as_slice() else { return Err("a row of three".into()) };
            println!(
                "| {} x {}-queue net, {} x {}-queue block | {} | {} | {} | {} | {} | {} | {} |",
                nets.0,
                nets.1,
                disks.0,
                disks.1,
                once.time,
                each.time,
                qemu.time,
                once.running,
                each.running,
                once.loading,
                each.loading
            );
        }
    }
    Ok(())
}

/// What a guest pays for memory that it writes right after its restore.
fn written(runs: usize, place: &std::path::Path) -> Result<()> {
    println!(
        "\n| 1 GiB, and then 64 MiB are written | cow | ondemand | copy | QEMU microvm | working set recorded: cow | ondemand |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let shape = Shape { vcpus: 1, memory_mib: 1024, ..Shape::default() };
    let order = "fill 0x2000000 64M 8";
    let row = row_with(&[COW, DEMAND, COPY, MICROVM], &[COW, DEMAND], &shape, 512, order, runs, place)?;
    let times: Vec<&str> = row.iter().map(|cell| cell.time.as_str()).collect();
    println!("| | {} |\n", times.join(" | "));
    Ok(())
}

/// What one contender came to.
struct Cell {
    time: String,
    saving: String,
    running: String,
    loading: String,
}

fn row(
    contenders: &[Contender],
    shape: &Shape,
    dirty: u64,
    order: &str,
    runs: usize,
    place: &std::path::Path,
) -> Result<Vec<Cell>> {
    row_with(contenders, &[], shape, dirty, order, runs, place)
}

/// The same, and then those that have recorded before what the guest touches as it obeys.
fn row_with(
    contenders: &[Contender],
    recorded: &[Contender],
    shape: &Shape,
    dirty: u64,
    order: &str,
    runs: usize,
    place: &std::path::Path,
) -> Result<Vec<Cell>> {
    let mut saved = Vec::new();
    for (number, contender) in contenders.iter().chain(recorded).enumerate() {
        let made = Saved::make(contender, shape, dirty, &place.join(number.to_string()))?;
        if number >= contenders.len() {
            made.record(order)?;
        }
        saved.push(made);
    }
    let mut times = vec![Vec::new(); saved.len()];
    let mut reports = vec![Vec::new(); saved.len()];
    for run in 0..runs {
        for ((saved, times), reports) in saved.iter().zip(&mut times).zip(&mut reports) {
            let (time, report) = saved.restore(order)?;
            times.push(time);
            reports.push(report);
        }
        eprintln!("{shape:?}: run {} of {runs}", run + 1);
    }
    let cells = saved.iter().zip(&mut times).zip(&reports).map(|((saved, times), reports)| Cell {
        time: shown(times),
        saving: shown(&mut [saved.saving]),
        running: shown(&mut reports.iter().filter_map(|report| running(report)).collect::<Vec<_>>()),
        loading: shown(&mut reports.iter().filter_map(|report| loading(report)).collect::<Vec<_>>()),
    });
    let cells: Vec<Cell> = cells.collect();
    for number in 0..cells.len() {
        std::fs::remove_dir_all(place.join(number.to_string()))?;
    }
    Ok(cells)
}

/// From the request until the machine ran, as the report has it.
fn running(report: &str) -> Option<Duration> {
    milliseconds(report.lines().find(|line| line.starts_with("restored "))?.rsplit_once(" in ")?.1)
}

/// Loading all devices and committing.
fn loading(report: &str) -> Option<Duration> {
    let phase = |name: &str| {
        let line = report.lines().find_map(|line| line.trim().strip_prefix(name))?;
        milliseconds(line.split_once(" from ")?.0)
    };
    Some(phase("load ")? + phase("commit ")?)
}

fn milliseconds(text: &str) -> Option<Duration> {
    let number: f64 = text.trim().strip_suffix(" ms")?.parse().ok()?;
    Some(Duration::from_secs_f64(number / 1e3))
}
