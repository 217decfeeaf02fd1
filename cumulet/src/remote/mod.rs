//! The client program: one command, one request, one answer. Commands on the directory of a snapshot ask nobody
//! (`local`).
//!
//! `table` lists the commands, `request` makes a request of each, `output` tells what came of it, and
//! `progress` shows meanwhile how far it is. Called by the name `ch-remote`, by a link say, the program
//! speaks as those expect that know it. What is absent: HTTP, which is `api_client`'s.

mod local;
mod migration;
mod output;
mod progress;
mod report;
mod request;
mod table;
#[cfg(test)]
mod tests;

use std::{
    ffi::{OsStr, OsString},
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    process::ExitCode,
};

use api_client::{
    Answer, Client, ClientError,
    wire::{JobInfo, JobState, REFERENCE_VERSION},
};
use clap::ArgMatches;
use thiserror::Error;

use self::{
    local::{LocalError, Told},
    output::Form,
    report::{ReportError, Shape},
    request::{Request, RequestError, Work},
};

/// The name that the program is called by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Called {
    /// Its own.
    Cumulet,
    /// That which existing scripts use.
    Reference,
}

impl Called {
    fn by(argument: Option<&OsStr>) -> Self {
        let name = argument.and_then(|path| Path::new(path).file_name());
        if name == Some(OsStr::new(Self::Reference.name())) { Self::Reference } else { Self::Cumulet }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Cumulet => "cumulet-remote",
            Self::Reference => "ch-remote",
        }
    }

    fn version(self) -> String {
        match self {
            Self::Cumulet => format!("{} v{}\n", self.name(), env!("CARGO_PKG_VERSION")),
            Self::Reference => format!("{} v{REFERENCE_VERSION}\n", self.name()),
        }
    }
}

/// A command that did not succeed.
#[derive(Debug, Error)]
pub enum RemoteError {
    /// There is nobody to send it to.
    #[error("no server: --api-socket PATH is needed")]
    NoSocket,
    /// What the user said makes no request.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The snapshot is none that can be used, or not here.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// How a restore went cannot be told.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// What was begun did not succeed.
    #[error("{kind} (job {id}) did not succeed: {}", .messages.join(": "))]
    Job {
        /// Kind of the job.
        kind: &'static str,
        /// Its number.
        id: u64,
        /// Why, the outermost first.
        messages: Vec<String>,
    },
    /// The server does not answer, or refuses.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Runs the program; returns its exit code. 2 is a usage error, 1 any other.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let called = Called::by(arguments.first().map(OsString::as_os_str));
    let matches = match table::command(called.name()).try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(usage) => usage.exit(),
    };
    if matches.get_flag("version") {
        return print(called.version().as_bytes());
    }
    if let Some(shell) = matches.get_one::<clap_complete::Shell>("completions").copied() {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut table::command(called.name()), called.name(), &mut script);
        return print(&script);
    }
    let Some((name, arguments)) = matches.subcommand() else {
        let what = "a command is needed";
        table::command(called.name()).error(clap::error::ErrorKind::MissingSubcommand, what).exit();
    };
    let form = Form::of(called, matches.get_flag("json") || local::wants_json(arguments));
    let told = match local::run(name, arguments) {
        Some(told) => told.map(|told| form.told(told)).map_err(RemoteError::from),
        None => send(&matches, called, (name, arguments)).and_then(|told| tell(&told, arguments, form)),
    };
    match told {
        Ok(text) => print(&text),
        Err(error) => {
            let (text, to_output) = form.error(&error);
            // What cannot be told has nowhere to be told.
            let _ = match to_output {
                true => io::stdout().write_all(text.as_bytes()),
                false => io::stderr().write_all(text.as_bytes()),
            };
            ExitCode::FAILURE
        }
    }
}

/// An answer, and whether its body is a report.
#[derive(Debug)]
struct Answered {
    answer: Answer,
    is_reported: bool,
}

fn send(
    matches: &ArgMatches,
    called: Called,
    (name, arguments): (&str, &ArgMatches),
) -> Result<Answered, RemoteError> {
    let Request { method, endpoint, body, descriptors, work, is_reported } = request::make(name, arguments)?;
    let socket = matches.get_one::<PathBuf>("api-socket").ok_or(RemoteError::NoSocket)?;
    let mut client = Client::connect(socket)?;
    let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let shown = (work == Work::Long).then(|| progress::show(socket)).flatten();
    let answer = client.request(method, endpoint, body.as_deref(), &descriptors);
    drop(shown);
    let answer = answer?;
    if let Work::Begun(kind) = work
        && called == Called::Cumulet
        && progress::is_shown()
        && let Some(ended) = progress::show_to_the_end(socket, kind)
    {
        succeeded(ended)?;
    }
    Ok(Answered { answer, is_reported })
}

/// # Errors
/// The job has failed, or was given up.
fn succeeded(job: JobInfo) -> Result<(), RemoteError> {
    match job.state {
        JobState::Failed | JobState::Cancelled => Err(RemoteError::Job {
            kind: job.kind.name(),
            id: job.id,
            messages: job.error.unwrap_or_default(),
        }),
        JobState::Running | JobState::Cancelling | JobState::Done => Ok(()),
    }
}

/// What is printed of an answer: the report that it carries, if that was asked for, or else the answer as
/// those know it who ask for no report.
fn tell(answered: &Answered, arguments: &ArgMatches, form: Form) -> Result<Vec<u8>, RemoteError> {
    let Answered { answer, is_reported } = answered;
    match arguments.try_get_one::<Shape>(table::REPORT) {
        Ok(Some(shape)) => {
            let (text, value) = report::tell(answer, shape)?;
            Ok(form.told(Told { text, value }))
        }
        _ => Ok(form.answer(answer.body().filter(|_| !is_reported))),
    }
}

fn print(text: &[u8]) -> ExitCode {
    match io::stdout().write_all(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
