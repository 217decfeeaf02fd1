//! Snapshots: a paused machine into a directory, and a directory into a machine.
//!
//! The directory and its checksums are `vm-migration`'s; memory's content is [`memory::content`]'s; the
//! machine saves and builds itself. Here these are put in their order, and the configuration, which may have
//! been edited meanwhile, is held against the one that was saved.
//!
//! [`memory::content`]: crate::memory::content

mod edits;
mod filling;
mod inspect;
mod merge;
mod overrides;
mod parent;
mod rehearsal;
mod report;
mod restore;
mod save;
#[cfg(test)]
mod tests;
mod told;

use std::path::PathBuf;

use thiserror::Error;

pub use self::{
    edits::EditError,
    filling::{FillReport, ZoneFill},
    inspect::{Device, FileInfo, Inspection, Link, Memory, Processors, SectionInfo, Zone},
    merge::{MergeError, MergeReport, merge},
    overrides::OverrideError,
    parent::ParentError,
    rehearsal::Rehearsal,
    report::{Difference, RestoreReport, SaveReport},
    restore::{Checked, Opened, Request, RestoreError, Revived, Verify},
    save::{SaveError, SaveRequest, save},
};

/// An address of a snapshot that is none.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{url:?} is no snapshot's address: file:// and the path of a directory")]
pub struct UrlError {
    /// What was given.
    pub url: String,
}

/// The directory that a URL names. Everything behind `file://` is the path, as it is.
///
/// # Errors
/// Another scheme, or no path.
pub fn directory(url: &str) -> Result<PathBuf, UrlError> {
    match url.strip_prefix("file://") {
        Some(path) if !path.is_empty() && !path.contains('\0') => Ok(PathBuf::from(path)),
        _ => Err(UrlError { url: url.to_owned() }),
    }
}
