//! The report that the answer to a restore carries (docs/snapshot-restore.md), as a table or as a picture.
//!
//! It is read as its text says, whatever else a newer server may add; what a restore does is not known here.

mod svg;
mod table;
#[cfg(test)]
mod tests;

use std::{fs, io, path::PathBuf, str::FromStr};

use api_client::{Answer, wire::RestoreReport};
use serde_json::Value;
use thiserror::Error;

/// How it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// As a table, on standard output.
    Table,
    /// As it came.
    Json,
    /// As a timeline, in a file.
    Svg(PathBuf),
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word.split_once(':') {
            None if word == "table" => Ok(Self::Table),
            None if word == "json" => Ok(Self::Json),
            Some(("svg", file)) if !file.is_empty() => Ok(Self::Svg(file.into())),
            _ => Err(format!("{word:?} is not table, json or svg:FILE")),
        }
    }
}

/// The VM is restored, and how that went cannot be told.
#[derive(Debug, Error)]
pub enum ReportError {
    /// There is no report.
    #[error("the answer carries no report")]
    None,
    /// It cannot be read.
    #[error("the VM is restored, but its report cannot be read")]
    Form(#[from] serde_json::Error),
    /// The file cannot be written.
    #[error("the VM is restored, but its report cannot be written to {}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// One line that says what it is of.
fn title(report: &RestoreReport) -> String {
    let state = if report.running { "running" } else { "paused" };
    format!("restored {}, {state} in {} ms", report.directory.display(), milliseconds(report.total_ns))
}

/// What the wiring took: of all commits together, as the title is of all of the restore.
fn wiring(report: &RestoreReport) -> String {
    let (commits, calls) = (report.totals.commits, report.totals.operations.kernel_calls());
    let commits = if commits == 1 { "1 commit".to_owned() } else { format!("{commits} commits") };
    let calls = if calls == 1 { "1 kernel call".to_owned() } else { format!("{calls} kernel calls") };
    format!("{commits}, {calls}, {} ms", milliseconds(report.totals.total_ns))
}

/// The operations that were made, with their number and their time in nanoseconds.
fn operations(report: &RestoreReport) -> impl Iterator<Item = (&'static str, u64, u64)> {
    let kinds = report.totals.operations.kinds().into_iter();
    kinds.filter(|(_, kind)| kind.count > 0).map(|(name, kind)| (name, kind.count, kind.ns))
}

/// Nanoseconds as milliseconds, to a thousandth, as everything else of ours tells them.
fn milliseconds(ns: u64) -> String {
    format!("{}.{:03}", ns / 1_000_000, ns / 1_000 % 1_000)
}

/// Tells the report of an answer in some shape: what is printed, and its value.
///
/// # Errors
/// There is none, it cannot be read, or the file cannot be written.
pub(super) fn tell(answer: &Answer, shape: &Shape) -> Result<(String, Value), ReportError> {
    let body = answer.body().filter(|body| !body.is_empty()).ok_or(ReportError::None)?;
    let value: Value = serde_json::from_slice(body)?;
    let report: RestoreReport = serde_json::from_slice(body)?;
    let printed = match shape {
        Shape::Table => table::of(&report),
        Shape::Json => format!("{}\n", String::from_utf8_lossy(body)),
        Shape::Svg(path) => {
            fs::write(path, svg::of(&report))
                .map_err(|source| ReportError::Write { path: path.clone(), source })?;
            String::new()
        }
    };
    Ok((printed, value))
}
