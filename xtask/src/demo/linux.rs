//! `cargo xtask demo --linux`: the main job with Debian's kernel, in the lab. So it needs no KVM of this host, and
//! seconds there are not those of hardware.
//!
//! `tests/lab/payload/demo.sh` does it, in the lab, and shows what it does; here the lab is started, and the two
//! reports that come back are put side by side.

use std::{fs, process::ExitCode};

use super::{clear, compare};
use crate::{install, lab, workspace::Workspace};

/// Where the reports come back to, below the workspace.
const PLACE: &str = "target/demo-linux";

/// Seconds after which the lab is given up. On an idle machine it needs a tenth of them.
const LIMIT_S: u32 = 900;

/// Prepares the lab, and has it show the main job.
///
/// # Errors
/// Something cannot be installed or built, or the guest that lives again is not the one that was saved.
pub fn run() -> Result<ExitCode, String> {
    let workspace = Workspace::find()?;
    install::ensure(&workspace, install::LAB)?;
    println!("building the monitor and its client (some minutes the first time) ...");
    let built = lab::build(&workspace).run();
    if !built.success {
        return Err(built.in_full());
    }
    let place = workspace.root.join(PLACE);
    clear(&place).map_err(|error| format!("{}: {error}", place.display()))?;
    println!(
        "starting the lab, a host in software emulation (built first, some minutes, if it is not there) ..."
    );
    let lab = lab::program(&workspace).words("run --alone --mem 3G --out").arg(PLACE);
    let lab = lab.words("--timeout").arg(LIMIT_S.to_string()).words("-- /payload/demo.sh");
    let status = lab.hand_over()?;
    if !status.success() {
        return Err(format!("`{lab}` ended with {status}"));
    }
    let told = ["each", "once"].map(|commits| {
        let path = place.join(format!("{commits}.report"));
        fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
    });
    let told: Vec<String> = told.into_iter().collect::<Result<_, _>>()?;
    compare(&told)?;
    println!(
        "\nThe same Debian, killed once and restored twice. Times of the lab are ten to twenty times those of \
         hardware; ratios mean something."
    );
    Ok(ExitCode::SUCCESS)
}
