//! Requests out of commands.

use std::{
    fs,
    io::{self, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use api_client::{
    Method,
    wire::{self, JobKind},
};
use clap::ArgMatches;
use serde::Serialize;
use thiserror::Error;
use vmm::control::{CommandError, check};

use super::{
    migration,
    report::Shape,
    table::{ARGUMENT, REPORT},
};
use crate::options::{descriptor, device, disk, grammar::GrammarError, net, passthrough, restore, values};

/// What the user said makes no request.
#[derive(Debug, Error)]
pub enum RequestError {
    /// It does not read.
    #[error("{command}")]
    Grammar {
        /// The command.
        command: String,
        /// What is wrong, by key.
        #[source]
        source: GrammarError,
    },
    /// A value of an option does not read.
    #[error("--{option}: {what}")]
    Value {
        /// Which option.
        option: &'static str,
        /// What is wrong.
        what: String,
    },
    /// The configuration cannot be read.
    #[error("cannot read {}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It reads, and cannot be: the server would say the same.
    #[error("{command}")]
    Check {
        /// The command.
        command: String,
        /// What is wrong.
        #[source]
        source: Box<CommandError>,
    },
    /// A path that is no text.
    #[error("the request cannot be written down")]
    Json(#[from] serde_json::Error),
    /// A command that no table lists.
    #[error("{0} is no command")]
    Unknown(String),
}

/// A request.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) endpoint: &'static str,
    pub(super) body: Option<Vec<u8>>,
    pub(super) descriptors: Vec<Arc<OwnedFd>>,
    /// Whether its progress is of interest.
    pub(super) work: Work,
    /// Whether the answer's body is a report, which is not printed unless it was asked for.
    pub(super) is_reported: bool,
}

/// How long a request takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Not long.
    Short,
    /// Long, and so long it waits for its answer.
    Long,
    /// It is answered when a job of that kind has begun.
    Begun(JobKind),
}

impl Request {
    fn get(endpoint: &'static str) -> Self {
        Self {
            method: Method::Get,
            endpoint,
            body: None,
            descriptors: Vec::new(),
            work: Work::Short,
            is_reported: false,
        }
    }

    fn put(endpoint: &'static str) -> Self {
        Self { method: Method::Put, ..Self::get(endpoint) }
    }

    fn with(endpoint: &'static str, body: &impl Serialize) -> Result<Self, RequestError> {
        Ok(Self { body: Some(serde_json::to_vec(body)?), ..Self::put(endpoint) })
    }

    fn long(self) -> Self {
        Self { work: Work::Long, ..self }
    }

    fn reported(self) -> Self {
        Self { is_reported: true, ..self }
    }
}

/// Makes the request of a command.
///
/// # Errors
/// Its arguments do not read, or a file does not.
pub(super) fn make(name: &str, arguments: &ArgMatches) -> Result<Request, RequestError> {
    let given = |name: &str| arguments.get_one::<String>(name).cloned();
    let text = || given(ARGUMENT).unwrap_or_default();
    let wrong = |source| RequestError::Grammar { command: name.to_owned(), source };
    let mistaken = |source| RequestError::Check { command: name.to_owned(), source: Box::new(source) };
    match name {
        "add-device" => add_device(&text()).map_err(wrong)?,
        "add-disk" => Request::with("vm.add-disk", &disk::parse(&text()).map_err(wrong)?),
        "add-fs" => Request::with("vm.add-fs", &device::fs(&text()).map_err(wrong)?),
        "add-generic-vhost-user" => {
            let device = passthrough::generic_vhost_user(&text()).map_err(wrong)?;
            Request::with("vm.add-generic-vhost-user", &device)
        }
        "add-net" => add_net(net::parse(&text()).map_err(wrong)?),
        "add-pmem" => Request::with("vm.add-pmem", &device::pmem(&text()).map_err(wrong)?),
        "add-user-device" => {
            Request::with("vm.add-user-device", &passthrough::user_device(&text()).map_err(wrong)?)
        }
        "add-vdpa" => Request::with("vm.add-vdpa", &device::vdpa(&text()).map_err(wrong)?),
        "add-vsock" => Request::with("vm.add-vsock", &device::vsock(&text()).map_err(wrong)?),
        "boot" => Ok(Request::put("vm.boot").long()),
        "cancel-job" => {
            let id = values::number(&text()).map_err(|what| wrong(GrammarError::Whole(what)))?;
            Request::with("vm.cancel-job", &wire::VmCancelJob { id })
        }
        "coredump" => {
            let said = wire::VmCoredumpData { destination_url: text() };
            Request::with("vm.coredump", &said).map(Request::long)
        }
        "counters" => Ok(Request::get("vm.counters")),
        "create" => Ok(Request { body: Some(read(text().as_ref())?), ..Request::put("vm.create") }),
        "delete" => Ok(Request::put("vm.delete")),
        "info" => Ok(Request::get("vm.info")),
        "jobs" => Ok(Request::get("vm.jobs")),
        "metrics" => Ok(Request::get("metrics")),
        "nmi" => Ok(Request::put("vm.nmi")),
        "pause" => Ok(Request::put("vm.pause")),
        "ping" => Ok(Request::get("vmm.ping")),
        "power-button" => Ok(Request::put("vm.power-button")),
        "reboot" => Ok(Request::put("vm.reboot").long()),
        "receive-migration" => {
            let (said, descriptors) = migration::receive(&text()).map_err(wrong)?;
            check::receive(&said).map_err(mistaken)?;
            Ok(Request { descriptors, ..Request::with("vm.receive-migration", &said)?.long() })
        }
        "remove-device" => Request::with("vm.remove-device", &wire::VmRemoveDevice { id: text() }),
        "resize" => {
            let vcpus = given("cpus").map(|text| values::number(&text).map_err(value("cpus"))).transpose()?;
            Request::with(
                "vm.resize",
                &wire::VmResize {
                    desired_vcpus: vcpus,
                    desired_ram: size("memory", given("memory"))?,
                    desired_balloon: size("balloon", given("balloon"))?,
                },
            )
        }
        "resize-disk" => {
            let desired_size = size("size", given("size"))?.unwrap_or_default();
            let id = given("disk").unwrap_or_default();
            Request::with("vm.resize-disk", &wire::VmResizeDisk { id, desired_size })
        }
        "resize-zone" => {
            let desired_ram = size("size", given("size"))?.unwrap_or_default();
            let id = given("id").unwrap_or_default();
            Request::with("vm.resize-zone", &wire::VmResizeZone { id, desired_ram })
        }
        "restore" => {
            let restore = restore::parse(&text()).map_err(wrong)?;
            let request = Request::with("vm.restore", &restore.config)?.long();
            let request = Request { descriptors: restore.descriptors, ..request };
            if restore.config.dry_run && matches!(arguments.try_get_one::<Shape>(REPORT), Ok(Some(_))) {
                let what =
                    "a restore that is only tried has none: the answer says what it would do".to_owned();
                return Err(RequestError::Value { option: REPORT, what });
            }
            // What a restore would do is the answer itself.
            Ok(if restore.config.dry_run { request } else { request.reported() })
        }
        "resume" => Ok(Request::put("vm.resume")),
        "send-migration" => {
            let said = migration::send(&text()).map_err(wrong)?;
            check::send(&said).map_err(mistaken)?;
            let request = Request::with("vm.send-migration", &said)?;
            Ok(Request { work: Work::Begun(JobKind::SendMigration), ..request })
        }
        "shutdown" => Ok(Request::put("vm.shutdown")),
        "shutdown-vmm" => Ok(Request::put("vmm.shutdown")),
        "snapshot" => {
            let track_changes = given("track-changes");
            let said = wire::VmSnapshotConfig {
                parent: given("parent"),
                track_changes: track_changes
                    .map(|text| values::toggle(&text).map_err(value("track-changes")))
                    .transpose()?,
                ..wire::VmSnapshotConfig::to(text())
            };
            Request::with("vm.snapshot", &said).map(|request| request.long().reported())
        }
        _ => Err(RequestError::Unknown(name.to_owned())),
    }
}

fn add_net(mut net: wire::NetConfig) -> Result<Request, RequestError> {
    // Their numbers mean nothing to the server.
    net.fds = None;
    let descriptors = std::mem::take(&mut net.descriptors).0;
    Ok(Request { descriptors, ..Request::with("vm.add-net", &net)? })
}

fn add_device(text: &str) -> Result<Result<Request, RequestError>, GrammarError> {
    let mut device = passthrough::device(text)?;
    let descriptor = device.fd.take().map(|fd| descriptor::inherited("fd", fd)).transpose()?;
    let request = Request::with("vm.add-device", &device);
    Ok(request.map(|request| Request { descriptors: descriptor.into_iter().collect(), ..request }))
}

fn size(option: &'static str, text: Option<String>) -> Result<Option<u64>, RequestError> {
    text.map(|text| values::size(&text).map_err(value(option))).transpose()
}

fn value(option: &'static str) -> impl Fn(String) -> RequestError {
    move |what| RequestError::Value { option, what }
}

/// A file, or standard input, unchanged.
fn read(path: &Path) -> Result<Vec<u8>, RequestError> {
    let read = match path.to_str() {
        Some("-") => {
            let mut bytes = Vec::new();
            io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
        }
        _ => fs::read(path),
    };
    read.map_err(|source| RequestError::File { path: path.to_path_buf(), source })
}
