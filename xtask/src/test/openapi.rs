//! The step `openapi`: the document of the API against a VMM that runs, by schemathesis.
//!
//! Schemathesis is no package of Debian's: it is installed with pip into the target directory. Where that cannot
//! be done, for want of a network say, the step is skipped and says so.

use std::path::Path;

use super::{Tally, Verdict};
use crate::workspace::Workspace;

const VERSION: &str = "schemathesis==4.32.5";
const FOLDER: &str = "target/schemathesis";

pub fn run(workspace: &Workspace, tally: &mut Tally) {
    if workspace.without_kvm {
        let reason = "a VMM needs a hypervisor".to_owned();
        return tally.check("schemathesis", || Verdict::Skipped(reason));
    }
    let built = workspace.cargo().words("build --release --quiet -p cumulet -p test-guest").run();
    if !built.success {
        return tally.check("release binaries", || Verdict::Failed(built.in_full()));
    }
    let program = workspace.root.join(FOLDER).join("bin/schemathesis");
    if let Err(reason) = install(workspace, &program) {
        return tally.check("schemathesis", || Verdict::Skipped(reason));
    }
    for state in ["none", "created", "running", "paused"] {
        let check = workspace
            .program("python3")
            .words("-B tests/openapi/check.py target/release/cumulet target/release/test-guest")
            .arg(program.display().to_string())
            .arg(state);
        tally.check(state, || {
            let finished = check.run();
            if finished.success { Verdict::Passed } else { Verdict::Failed(finished.in_full()) }
        });
    }
}

fn install(workspace: &Workspace, program: &Path) -> Result<(), String> {
    if program.is_file() {
        return Ok(());
    }
    let pip = workspace.root.join(FOLDER).join("bin/pip").display().to_string();
    let steps = [
        workspace.program("python3").words("-m venv").arg(FOLDER),
        workspace.program(&pip).words("install --quiet").arg(VERSION),
    ];
    for step in steps {
        let finished = step.run();
        if !finished.success {
            let last = finished.output.lines().last().unwrap_or_default();
            return Err(format!("{VERSION} cannot be installed: {last}"));
        }
    }
    Ok(())
}
