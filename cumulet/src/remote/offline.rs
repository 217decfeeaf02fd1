//! Commands on directories of snapshots, for which no server is needed.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command, value_parser};
use thiserror::Error;
use vmm::snapshot::{MergeError, merge};

/// What one cannot do.
#[derive(Debug, Error)]
pub enum OfflineError {
    /// Snapshots cannot be merged.
    #[error("cannot merge {}", .from.display())]
    Merge {
        /// The one on top.
        from: PathBuf,
        /// Why.
        #[source]
        source: MergeError,
    },
    /// The outcome cannot be told.
    #[error("the outcome cannot be written down")]
    Json(#[from] serde_json::Error),
}

/// The commands below `snapshot`; `program` is how the user calls us.
pub(super) fn commands(program: &str) -> Vec<Command> {
    let directory = |id: &'static str, shown: &'static str, help: &'static str| {
        Arg::new(id).value_name(shown).required(true).value_parser(value_parser!(PathBuf)).help(help)
    };
    let merge = Command::new("merge")
        .about("Make one snapshot that stands alone of one and those that it builds on")
        .after_help(format!("Example: {program} snapshot merge /var/snapshots/c /var/snapshots/whole"))
        .arg(directory("from", "FROM", "Directory of the snapshot on top"))
        .arg(directory("to", "TO", "A directory that is there and holds no snapshot"));
    vec![merge]
}

/// Carries one out; returns its outcome as JSON.
///
/// # Errors
/// It did not succeed.
pub(super) fn run(arguments: &ArgMatches) -> Result<Vec<u8>, OfflineError> {
    let path = |id: &str| arguments.get_one::<PathBuf>(id).map_or(Path::new(""), PathBuf::as_path);
    let (from, to) = (path("from"), path("to"));
    let report = merge(from, to).map_err(|source| OfflineError::Merge { from: from.to_owned(), source })?;
    Ok(serde_json::to_vec(&report)?)
}
