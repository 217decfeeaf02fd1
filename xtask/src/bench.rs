//! `cargo xtask bench`: the benchmarks, as programs for people to read. Nothing is judged by time here.

use std::process::ExitCode;

use crate::workspace::Workspace;

const PACKAGE: &str = "cumulet-benches";

/// Runs all benchmarks, or the one that is named, with the arguments that follow.
pub fn run(args: &[String]) -> Result<ExitCode, String> {
    let workspace = Workspace::find()?;
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
