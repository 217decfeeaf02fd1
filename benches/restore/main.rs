//! Restoring beside QEMU, on this host's KVM, with the test guest. `cargo xtask bench restore`; docs/snapshot-restore.md
//! has the results. Prints Markdown tables, and judges nothing.
//!
//! Time is from just before the process is started until the guest has answered its first order. The contenders take
//! turns, so that a slow phase of the machine meets all of them; each figure is a median, with the least in brackets.

#![expect(clippy::print_stdout, reason = "its output is what the program is for")]
#![expect(clippy::print_stderr, reason = "progress and errors of a command-line program")]

mod builds;
mod devices;
mod differences;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use cumulet_benches::vm::{Contender, Result, Saved, Shape, shown};

const COW: Contender = Contender::Cumulet { keys: "", options: &[] };
const DEMAND: Contender = Contender::Cumulet { keys: ",memory_restore_mode=ondemand", options: &[] };
const COPY: Contender = Contender::Cumulet { keys: ",memory_restore_mode=copy", options: &[] };
const EACH: Contender = Contender::Cumulet { keys: "", options: &["--restore-commit", "each"] };
const MICROVM: Contender = Contender::Qemu { machine: "microvm,auto-kernel-cmdline=off" };
const Q35: Contender = Contender::Qemu { machine: "q35" };

/// Memory and how much of it is written, in MiB.
const MEMORY: [(u64, u64); 6] = [(128, 64), (512, 64), (1024, 64), (1024, 512), (4096, 512), (16384, 64)];
const USAGE: &str = "usage: bench-restore [RUNS [memory|written|differences|devices|builds OTHER]]";

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
    let place = PathBuf::from(format!("/dev/shm/bench-restore-{}", std::process::id()));
    let measured = match (part, arguments.get(2)) {
        _ if runs == 0 => return Err(USAGE.into()),
        (Some("builds"), Some(other)) => builds::measure(runs, Path::new(other), &place),
        (None | Some("memory" | "written" | "differences" | "devices"), None) => measure(runs, part, &place),
        _ => return Err(USAGE.into()),
    };
    let _ = std::fs::remove_dir_all(&place);
    measured
}

fn measure(runs: usize, part: Option<&str>, place: &Path) -> Result<()> {
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
        devices::measure(runs, place)?;
    }
    Ok(())
}

/// What a guest pays for memory that it writes right after its restore.
fn written(runs: usize, place: &Path) -> Result<()> {
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
}

fn row(
    contenders: &[Contender],
    shape: &Shape,
    dirty: u64,
    order: &str,
    runs: usize,
    place: &Path,
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
    place: &Path,
) -> Result<Vec<Cell>> {
    let mut saved = Vec::new();
    for (number, contender) in contenders.iter().chain(recorded).enumerate() {
        // Saving is the same whatever is to be done with it.
        let times = if contenders.iter().position(|other| same_program(other, contender)) == Some(number) {
            runs
        } else {
            1
        };
        let made = Saved::make(contender, shape, dirty, &place.join(number.to_string()), times)?;
        if number >= contenders.len() {
            made.record(order)?;
        }
        saved.push(made);
    }
    let mut restored = vec![Vec::new(); saved.len()];
    for run in 0..runs {
        for (saved, restored) in saved.iter().zip(&mut restored) {
            restored.push(saved.restore(order)?);
        }
        eprintln!("{shape:?}: run {} of {runs}", run + 1);
    }
    let cells = saved.iter_mut().zip(&restored).map(|(saved, restored)| Cell {
        time: shown(&mut restored.iter().map(|restored| restored.time).collect::<Vec<_>>()),
        saving: shown(&mut saved.saving),
    });
    let cells: Vec<Cell> = cells.collect();
    for number in 0..cells.len() {
        std::fs::remove_dir_all(place.join(number.to_string()))?;
    }
    Ok(cells)
}

fn same_program(one: &Contender, other: &Contender) -> bool {
    matches!(one, Contender::Cumulet { .. }) == matches!(other, Contender::Cumulet { .. })
}
