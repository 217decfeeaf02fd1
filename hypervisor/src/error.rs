//! Why an operation of the hypervisor failed.

use std::{io, path::PathBuf};

use thiserror::Error;

/// Failure of a hypervisor operation. Names the operation and the value that was refused; the
/// operating system's reason is the source.
#[derive(Debug, Error)]
pub enum HypervisorError {
    /// No hypervisor device is there.
    #[error("no hypervisor: {} is not there", .tried.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" and "))]
    NoDevice {
        /// The device nodes that were looked for.
        tried: Vec<PathBuf>,
    },

    /// The device is there and cannot be opened.
    #[error("cannot open hypervisor device {}", .path.display())]
    Open {
        /// The device node.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },

    /// The device speaks another version of its interface.
    #[error("hypervisor interface version {found}, need {expected}")]
    Version {
        /// What the device says.
        found: i32,
        /// What this back end speaks.
        expected: i32,
    },

    /// The host lacks an ability that this operation cannot do without.
    #[error("the hypervisor lacks {what}")]
    Missing {
        /// The ability, in words.
        what: &'static str,
    },

    /// The binary was built without this back end.
    #[error("this build has no {kind} back end")]
    NotBuilt {
        /// Name of the back end.
        kind: &'static str,
    },

    /// A request to the hypervisor failed.
    #[error("{operation} {detail}")]
    Call {
        /// What was asked for, in words.
        operation: &'static str,
        /// On what: slot, GSI, vCPU, with its values.
        detail: String,
        /// Why.
        #[source]
        source: io::Error,
    },

    /// The hypervisor accepted only a part of what it was given.
    #[error("{operation}: {done} of {asked} accepted; refused: {refused}")]
    Partial {
        /// What was asked for.
        operation: &'static str,
        /// How many were accepted.
        done: usize,
        /// How many were given.
        asked: usize,
        /// The first that was refused.
        refused: String,
    },

    /// A value handed to the hypervisor (often out of saved state) is not valid.
    #[error("invalid {what}: {detail}")]
    Invalid {
        /// What kind of value.
        what: &'static str,
        /// The value and what is wrong with it.
        detail: String,
    },
}
