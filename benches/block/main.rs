//! A disk and a start beside QEMU, on this host's KVM, with the test guest. `cargo xtask bench block`; docs/boot.md has
//! the results. Prints Markdown tables, and judges nothing.
//!
//! The guest drives the disk itself, with requests of 4 KiB at random places, and measures with its own counter; both
//! programs serve the same image through io_uring and the page cache. Starting is from just before the process is
//! started to the first instructions of a guest that only says that it has begun (`cumulet_benches::kernel`), and to the
//! test guest's first line. The contenders take turns.

#![expect(clippy::print_stdout, reason = "its output is what the program is for")]
#![expect(clippy::print_stderr, reason = "progress and errors of a command-line program")]

use std::{path::PathBuf, process::ExitCode};

use cumulet_benches::vm::{Contender, Result, Shape, Vm, shown};

const CONTENDERS: [Contender; 2] = [
    Contender::Cumulet { keys: "", options: &[] },
    Contender::Qemu { machine: "microvm,auto-kernel-cmdline=off,pcie=on" },
];
/// Direction, requests at a time, and their number.
const LOADS: [(&str, u32, u32); 4] =
    [("read", 1, 20_000), ("write", 1, 20_000), ("read", 32, 100_000), ("write", 32, 100_000)];
/// QEMU's microvm gives PCI devices no addresses: what the guest needs to be told there.
const MICROVM_PCI: [&str; 2] = ["pci-ecam 0xe0000000 1", "pci-assign 0xc0000000 256M"];

fn main() -> ExitCode {
    let runs = std::env::args().nth(1).map_or(Ok(5), |runs| runs.parse());
    let measured = match runs {
        Ok(runs) if runs > 0 => measure(runs),
        _ => Err("usage: bench-block [RUNS]".into()),
    };
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-block: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(runs: usize) -> Result<()> {
    let place = PathBuf::from(format!("/dev/shm/bench-block-{}", std::process::id()));
    let shape = Shape { vcpus: 1, memory_mib: 256, nets: (0, 0), disks: (1, 1) };
    let mut begins = [const { Vec::new() }; CONTENDERS.len()];
    let mut starts = [const { Vec::new() }; CONTENDERS.len()];
    let mut loads = [const { [const { Vec::new() }; LOADS.len()] }; CONTENDERS.len()];
    let measured = (0..runs).try_for_each(|run| {
        let all = CONTENDERS.iter().zip(&mut begins).zip(&mut starts).zip(&mut loads);
        for (((contender, begins), starts), loads) in all {
            begins.push(Vm::first_instruction(contender, &shape, &place)?);
            let (mut vm, start) = Vm::boot(contender, &shape, &place)?;
            starts.push(start);
            if matches!(contender, Contender::Qemu { .. }) {
                for order in MICROVM_PCI {
                    vm.obey(order)?;
                }
            }
            let devices = vm.set_up_devices()?;
            let disk = devices.iter().find(|(_, kind)| kind == "2").ok_or("the guest finds no disk")?;
            // Filled once, so that nobody reads holes.
            vm.obey(&format!("vblk-bench {} 0 write 65536 4 512", disk.0))?;
            for ((direction, depth, count), measured) in LOADS.iter().zip(loads) {
                let said = vm.obey(&format!("vblk-bench {} 0 {direction} 4096 {depth} {count} 7", disk.0))?;
                let field = |name: &str| -> Option<u64> {
                    said.split_whitespace().find_map(|field| field.strip_prefix(name)?.parse().ok())
                };
                let (ticks, bad) = (field("ticks="), field("bad="));
                let ticks =
                    ticks.filter(|_| bad == Some(0)).ok_or_else(|| format!("the guest says {said}"))?;
                measured.push(ticks as f64 / f64::from(*count));
            }
            vm.end()?;
            eprintln!("run {} of {runs}: {contender:?}", run + 1);
        }
        Ok::<(), Box<dyn std::error::Error>>(())
    });
    let _ = std::fs::remove_dir_all(&place);
    measured?;

    println!("| | Cumulet | QEMU microvm | ratio |\n| --- | --- | --- | --- |");
    for (until, times) in [("instructions", &mut begins), ("line", &mut starts)] {
        let [ours, theirs] = times;
        let ratio = median(ours.iter().map(std::time::Duration::as_secs_f64).collect())
            / median(theirs.iter().map(std::time::Duration::as_secs_f64).collect());
        println!(
            "| start to the guest's first {until}, ms | {} | {} | {ratio:.2} |",
            shown(ours),
            shown(theirs)
        );
    }
    let [ours, theirs] = loads;
    for (((direction, depth, _), ours), theirs) in LOADS.iter().zip(ours).zip(theirs) {
        let (ours, theirs) = (median(ours), median(theirs));
        println!(
            "| 4 KiB random {direction}, {depth} at a time, thousand ticks each | {:.1} | {:.1} | {:.2} |",
            ours / 1e3,
            theirs / 1e3,
            ours / theirs
        );
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
