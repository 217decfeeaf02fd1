//! Two builds of the program on the same snapshots, in turns: whether a change has made restoring slower.

use std::{fs, path::Path, time::Duration};

use cumulet_benches::vm::{PROGRAM, Restored, Result, Saved, Shape, Taps, shown};

use super::COW;

/// Prints a table: medians and the least of both, and of each phase of their reports.
pub fn measure(runs: usize, other: &Path, place: &Path) -> Result<()> {
    let small = |memory_mib| Shape { vcpus: 1, memory_mib, ..Shape::default() };
    let many = Shape { vcpus: 32, memory_mib: 1024, nets: (8, 16), disks: (16, 4) };
    println!("| | {} | {PROGRAM} |\n| --- | --- | --- |", other.display());
    for (shape, dirty) in [(small(128), 64), (small(1024), 512), (small(4096), 512), (many, 64)] {
        let _taps = Taps::make(shape.nets.0, shape.nets.1)?;
        let saved = Saved::make(&COW, &shape, dirty, place, 1)?;
        let mut both: [Vec<Restored>; 2] = Default::default();
        for run in 0..runs {
            // Neither is always the one that comes after the other.
            for turn in [run % 2, (run + 1) % 2] {
                both[turn].push(saved.restore_by([other, Path::new(PROGRAM)][turn], "ping")?);
            }
        }
        fs::remove_dir_all(place)?;
        let row = |name: &str, figure: &dyn Fn(&Restored) -> Option<Duration>| {
            let [old, new] =
                both.each_ref().map(|of| shown(&mut of.iter().filter_map(figure).collect::<Vec<_>>()));
            println!("| {name} | {old} | {new} |");
        };
        let Shape { vcpus, memory_mib, .. } = shape;
        row(&format!("**{memory_mib} MiB, {vcpus} vCPUs**, process start to answer"), &|restored| {
            Some(restored.time)
        });
        for name in names(&both) {
            row(&name, &|restored| super::devices::phase(restored, &name).map(|(_, took)| took));
        }
        row("request to running", &super::devices::running);
    }
    Ok(())
}

/// The phases of either's reports, in their order.
fn names(both: &[Vec<Restored>; 2]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for line in both.iter().rev().filter_map(|of| of.first()).flat_map(|restored| restored.report.lines()) {
        let name = line.split_once(" from ").and_then(|(before, _)| {
            let words: Vec<&str> = before.split_whitespace().collect();
            Some(words.split_last_chunk::<2>()?.0.join(" "))
        });
        if let Some(name) = name
            && !names.contains(&name)
        {
            names.push(name);
        }
    }
    names
}
