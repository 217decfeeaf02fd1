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
}

/// Refuses what would have no effect. A socket for the API beside a VM is only warned about.
///
/// # Errors
/// The first option that would have none, or that does not read.
pub fn refuse(options: &Options) -> Result<(), AbsentError> {
    let boots = options.boots();
    let api = options.api_socket()?.is_some();
    let restores = options.restore()?.is_some();
    let filters = options.seccomp().is_some_and(|mode| mode != Seccomp::Off);
    let listed = [
        ("event-monitor", options.event_monitor()?.is_some(), "event monitor"),
        ("no-shutdown", options.no_shutdown(), "API that the program could stay for"),
        ("seccomp", filters, "system call filters: only false is possible"),
        ("landlock", options.landlock(), "Landlock confinement"),
        ("restore", restores && !boots, "restore"),
        ("api-socket", api && !boots, "API: it needs a VM to boot"),
    ];
    if let Some((option, _, what)) = listed.into_iter().find(|(_, asked, _)| *asked) {
        return Err(AbsentError::Absent { option, what });
    }
    if options.landlock_rules() {
        return Err(AbsentError::RulesAlone);
    }
    if api {
        log::warn!("--api-socket: this version serves no API yet");
    }
    if restores {
        log::warn!("--restore has no effect beside a VM to boot");
    }
    Ok(())
}
