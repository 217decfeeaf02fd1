//! The lab, a whole Linux host of its own to run a command in: `cargo xtask lab`, and the tests that need it.
//!
//! What the lab is and how it is built stands in `tests/lab`; here it is only called.

use std::process::ExitCode;

use crate::{
    install,
    test::{Tally, Verdict},
    workspace::Workspace,
};

const PROGRAM: &str = "tests/lab/lab.py";

/// Hands the arguments to the lab's own program.
pub fn run(args: &[String]) -> Result<ExitCode, String> {
    let workspace = Workspace::find()?;
    present(&workspace)?;
    install::ensure(&workspace, install::LAB)?;
    let lab = args.iter().fold(workspace.program("python3").arg(PROGRAM), |lab, arg| lab.arg(arg));
    let status = lab.hand_over()?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The step `lab`.
pub fn tests(workspace: &Workspace, tally: &mut Tally) {
    tally.check("present", || match present(workspace) {
        Ok(()) => Verdict::Passed,
        Err(reason) => Verdict::Skipped(reason),
    });
}

fn present(workspace: &Workspace) -> Result<(), String> {
    if workspace.root.join(PROGRAM).is_file() { Ok(()) } else { Err(format!("there is no {PROGRAM} yet")) }
}
