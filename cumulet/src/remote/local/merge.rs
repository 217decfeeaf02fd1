//! `snapshot merge`: one snapshot that stands alone of one and those that it builds on.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command, value_parser};
use serde_json::{Value, json};
use vmm::snapshot::merge;

use super::LocalError;

/// The command; `before` is what stands before its name in an example.
pub(in super::super) fn command(before: &str) -> Command {
    let directory = |id: &'static str, shown: &'static str, help: &'static str| {
        Arg::new(id).value_name(shown).required(true).value_parser(value_parser!(PathBuf)).help(help)
    };
    Command::new("merge")
        .about("Make one snapshot that stands alone of one and those that it builds on")
        .after_help(format!("Example: {before} merge /var/snapshots/c /var/snapshots/whole"))
        .arg(directory("from", "FROM", "Directory of the snapshot on top"))
        .arg(directory("to", "TO", "A directory that is there and holds no snapshot"))
}

/// Carries it out. Its outcome is told as JSON in every form.
pub(super) fn tell(arguments: &ArgMatches) -> Result<(String, Value), LocalError> {
    let path = |id: &str| arguments.get_one::<PathBuf>(id).map_or(Path::new(""), PathBuf::as_path);
    let (from, to) = (path("from"), path("to"));
    let report = merge(from, to).map_err(|source| LocalError::Merge { from: from.to_owned(), source })?;
    let value = json!(report);
    Ok((format!("{value}\n"), value))
}
