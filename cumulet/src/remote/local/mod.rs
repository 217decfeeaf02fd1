//! Commands on the directory of a snapshot: they ask no server, and change nothing.
//!
//! What a snapshot is and whether a host can have it is `vmm`'s to know; here it is told.

mod inspect;
pub(super) mod merge;
#[cfg(test)]
mod tests;
mod verify;

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use api_client::wire::{self, Objects, RestoreOverride, RestoredNetConfig};
use clap::ArgMatches;
use hypervisor::HypervisorKind;
use serde_json::{Value, json};
use thiserror::Error;
use vmm::{
    config::wire::IdCounter,
    machine::{ClockPolicy, Commits, Host, TscFrequency, attach::net::MadeTap},
    memory::content::MemoryMode,
    snapshot::{MergeError, Opened, RestoreError, Verify},
};

use super::table::{ARGUMENT, JSON};

/// A command on a directory did not succeed.
#[derive(Debug, Error)]
pub enum LocalError {
    /// The snapshot cannot be used.
    #[error(transparent)]
    Snapshot(#[from] RestoreError),
    /// Snapshots cannot be merged.
    #[error("cannot merge {}", .from.display())]
    Merge {
        /// The one on top.
        from: PathBuf,
        /// Why.
        #[source]
        source: MergeError,
    },
    /// Things of this host's are missing.
    #[error("this host cannot restore it")]
    Missing(Vec<RestoreError>),
    /// The hypervisor cannot be had.
    #[error("this host cannot restore it")]
    Hypervisor(#[from] hypervisor::HypervisorError),
    /// The host has no descriptor left.
    #[error("this host cannot restore it")]
    Host(#[source] io::Error),
    /// The overrides cannot be read.
    #[error("--overrides: cannot read {}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The overrides are none.
    #[error("--overrides: a list as in the REST API is expected")]
    Overrides(#[source] serde_json::Error),
}

impl LocalError {
    /// The code that a server would refuse a restore with.
    pub(super) fn code(&self) -> Option<&'static str> {
        match self {
            Self::Snapshot(error) => Some(error.code()),
            Self::Missing(_) | Self::Hypervisor(_) | Self::Host(_) => Some("restore-failed"),
            Self::File { .. } | Self::Overrides(_) => Some("override-invalid"),
            Self::Merge { .. } => None,
        }
    }

    /// The same in one line.
    pub(super) fn line(&self) -> String {
        match self {
            Self::Missing(missing) => {
                let reasons: Vec<String> = missing.iter().map(|error| vmm::error::chain(error)).collect();
                format!("{self}: {}", reasons.join("; "))
            }
            other => other.messages().join(": "),
        }
    }

    /// What it says; where several things are missing, all of them.
    pub(super) fn messages(&self) -> Vec<String> {
        let mut messages = vmm::error::messages(self);
        if let Self::Missing(missing) = self {
            messages.extend(missing.iter().map(|error| vmm::error::chain(error)));
        }
        messages
    }
}

/// What came of one: as text, and as JSON.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) text: String,
    pub(super) value: Value,
}

/// Does what a command beneath another one asks for; none if it is no command of these.
pub(super) fn run(name: &str, arguments: &ArgMatches) -> Option<Result<Told, LocalError>> {
    let ("snapshot", Some((name, arguments))) = (name, arguments.subcommand()) else { return None };
    let directory = |arguments: &ArgMatches| {
        arguments.get_one::<String>(ARGUMENT).map_or_else(PathBuf::new, PathBuf::from)
    };
    let told = match name {
        "inspect" => inspect::tell(&directory(arguments)),
        "verify" => verify::tell(&directory(arguments)),
        "can-restore" => can_restore(&directory(arguments), arguments),
        "merge" => merge::tell(arguments),
        _ => return None,
    };
    Some(told.map(|(text, value)| Told { text, value }))
}

/// Whether a command, or one beneath it, shall tell JSON.
pub(super) fn wants_json(arguments: &ArgMatches) -> bool {
    let beneath = || arguments.subcommand().is_some_and(|(_, arguments)| wants_json(arguments));
    matches!(arguments.try_get_one::<bool>(JSON), Ok(Some(true))) || beneath()
}

/// The directory that is meant: a URL, as other commands have it, is as good as a path.
fn place(directory: &Path) -> PathBuf {
    directory
        .to_str()
        .and_then(|text| vmm::snapshot::directory(text).ok())
        .unwrap_or_else(|| directory.into())
}

/// Reads a snapshot, all of it checked but its memory.
fn open(
    directory: &Path,
    memory: Option<MemoryMode>,
    verify: Option<Verify>,
) -> Result<Opened, RestoreError> {
    Opened::open(vmm::snapshot::Request {
        source: place(directory),
        memory,
        verify,
        prefault: false,
        fill: None,
        record: None,
        commits: Commits::Once,
        new_generation: true,
        clock: ClockPolicy::Wall,
        tsc: TscFrequency::Saved,
    })
}

fn can_restore(directory: &Path, arguments: &ArgMatches) -> Result<(String, Value), LocalError> {
    let memory = arguments.get_one::<String>("memory-restore-mode").map(|mode| match mode.as_str() {
        "copy" => MemoryMode::Copy,
        "ondemand" => MemoryMode::OnDemand,
        _ => MemoryMode::Cow,
    });
    let verify = arguments.get_one::<String>("verify").and_then(|what| what.parse().ok());
    let kind = arguments.get_one::<HypervisorKind>("hypervisor").copied();
    let mut opened = open(directory, memory, verify)?;
    if let Some(path) = arguments.get_one::<String>("overrides") {
        opened.lay_over(&overrides(Path::new(path))?)?;
    }
    // None come with this command, and none are taken.
    opened.await_descriptors();
    let host = Host::new(hypervisor::open(kind)?).map_err(LocalError::Host)?;
    let checked = opened.check(&host, IdCounter::default())?;
    let missing = checked.obstacles(&host);
    if !missing.is_empty() {
        return Err(LocalError::Missing(missing));
    }
    let rehearsal = checked.rehearse(&host)?;
    let mut text = format!("{} can be restored here\n", rehearsal.directory.display());
    text += &format!("  {} processors; devices: {}\n", rehearsal.vcpus, rehearsal.devices.join(", "));
    for zone in &rehearsal.memory {
        let why = zone.why.map_or_else(String::new, |why| format!(" (it {why})"));
        text += &format!("  memory zone {}: {}{why}\n", zone.zone, zone.mode);
    }
    text += &format!("  checked: {}\n", rehearsal.verified);
    for (what, list) in
        [("edited since the snapshot", &rehearsal.edited), ("overridden", &rehearsal.overridden)]
    {
        if !list.is_empty() {
            text += &format!("  {what}: {}\n", list.join(", "));
        }
    }
    for MadeTap { id, tap } in &rehearsal.made_taps {
        let tap = tap.as_deref().map_or_else(String::new, |name| format!(" {name}"));
        text += &format!("  {id}: there is no tap{tap}: one would be made\n");
    }
    for RestoredNetConfig { id, num_fds } in &rehearsal.net_fds {
        text += &format!("  {id}: {num_fds} descriptors have to be handed over (net_fds)\n");
    }
    Ok((text, json!(wire::RestoreRehearsal::from(rehearsal))))
}

/// A list of overrides in a file, or on standard input.
fn overrides(path: &Path) -> Result<Vec<RestoreOverride>, LocalError> {
    let failed = |source| LocalError::File { path: path.to_owned(), source };
    let text = if path == Path::new("-") {
        let mut text = Vec::new();
        io::stdin().lock().read_to_end(&mut text).map(|_| text)
    } else {
        fs::read(path)
    };
    let Objects(overrides) = serde_json::from_slice(&text.map_err(failed)?).map_err(LocalError::Overrides)?;
    Ok(overrides)
}
