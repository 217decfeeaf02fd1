//! Options that read, and that this version has no machinery for: refused here and nowhere else, so that each goes
//! when its machinery comes. What a VM lacks is refused by `vmm::config`.

use thiserror::Error;

use crate::options::{OptionError, Options, Seccomp};

/// An option that would have no effect.
#[derive(Debug, Error)]
pub enum AbsentError {
    /// It does not even read.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// There is no machinery for it.
    #[error("--{option}: this version has no {what}")]
    Absent {
        /// Which option.
        option: &'static str,
        /// What it lacks.
        what: &'static str,
    },
    /// It would be of use only beside another.
    #[error("--landlock-rules: of no effect without --landlock")]
    RulesAlone,
    /// Nobody would read what comes of it.
    #[error("--restore: dry_run: only over the API, as by cumulet-remote restore")]
    DryRun,
}

/// Refuses what would have no effect.
///
/// # Errors
/// The first option that would have none, or that does not read.
pub fn refuse(options: &Options) -> Result<(), AbsentError> {
    let filters = match options.seccomp() {
        // What clients spell out that would otherwise leave it to the default.
        Some(Seccomp::Trap) => {
            log::warn!("--seccomp true: this version has no system call filters, and runs without");
            false
        }
        Some(Seccomp::Log | Seccomp::Errno) => true,
        Some(Seccomp::Off) | None => false,
    };
    let listed = [
        ("seccomp", filters, "system call filters: only false, and true with a warning, are possible"),
        ("landlock", options.landlock(), "Landlock confinement"),
    ];
    if let Some((option, _, what)) = listed.into_iter().find(|(_, asked, _)| *asked) {
        return Err(AbsentError::Absent { option, what });
    }
    if options.landlock_rules() {
        return Err(AbsentError::RulesAlone);
    }
    if options.boots() && options.restores() {
        log::warn!("--restore has no effect beside a VM to boot");
    }
    Ok(())
}
