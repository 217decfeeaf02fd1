//! `cargo xtask bench`: the benchmarks, as programs for people to read. Nothing is judged by time here.

use std::process::ExitCode;

use crate::{lab, workspace::Workspace};

const PACKAGE: &str = "cumulet-benches";

/// Benchmarks that boot Linux guests: programs that run in the lab, where there is a host for them.
const IN_THE_LAB: &[&str] = &["boot"];

/// Benchmarks that start the programs on this host's own KVM.
const PROGRAMS: &[&str] = &["block", "cycles", "restore"];

/// Runs all benchmarks, or the one that is named, with the arguments that follow.
pub fn run(args: &[String]) -> Result<ExitCode, String> {
    let workspace = Workspace::find()?;
    if let Some((name, rest)) = args.split_first()
        && IN_THE_LAB.contains(&name.as_str())
    {
        let program = format!("bench-{name}");
        let built =
            workspace.cargo().words("build --release --quiet -p").arg(PACKAGE).words("--bin").arg(&program);
        let built = built.run();
        if !built.success {
            return Err(built.in_full());
        }
        let lab = ["run", "--alone", "--stats", "--timeout", "3600", "--"].map(str::to_owned).into_iter();
        let lab = lab.chain([format!("/vmm/{program}")]).chain(rest.iter().cloned());
        return lab::run(&lab.collect::<Vec<_>>());
    }
    if let Some((name, rest)) = args.split_first()
        && PROGRAMS.contains(&name.as_str())
    {
        for words in ["cumulet", "test-guest", PACKAGE] {
            let built = workspace.cargo().words("build --release --quiet -p").arg(words).run();
            if !built.success {
                return Err(built.in_full());
            }
        }
        let program = workspace.program(&format!("target/release/bench-{name}"));
        let status = rest.iter().fold(program, |program, arg| program.arg(arg)).hand_over()?;
        return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let mut cargo = workspace.cargo().words("bench -p").arg(PACKAGE);
    if let Some((name, rest)) = args.split_first() {
        cargo = cargo.arg("--bench").arg(name);
        if !rest.is_empty() {
            cargo = rest.iter().fold(cargo.arg("--"), |cargo, arg| cargo.arg(arg));
        }
    }
    let status = cargo.hand_over()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
