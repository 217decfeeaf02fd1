//! `cargo xtask demo`: a guest of ours runs on the host's KVM, and the reader sees what happened.

use std::process::ExitCode;

use crate::{kvm, workspace::Workspace};

/// Builds the monitor and the test guest, runs one in the other, and tells what happened.
pub fn run(args: &[String]) -> Result<ExitCode, String> {
    if let Some(arg) = args.first() {
        return Err(format!("demo takes no argument: {arg}"));
    }
    kvm::check()?;
    let workspace = Workspace::find()?;
    println!("building cumulet and the test guest in {}", workspace.root.display());
    let build = workspace.cargo().words("build --release -p cumulet -p test-guest").run();
    if !build.success {
        return Err(build.in_full());
    }
    Err("the demo is not finished".to_owned())
}
