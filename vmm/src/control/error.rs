//! Why a command was refused or failed.

use api_client::wire::VmState;
use thiserror::Error;
use vm_migration::snapshot::SnapshotError;

use crate::{
    config::{ConfigError, ErrorClass},
    cpu::VcpuError,
    jobs::CancelError,
    machine::{BuildError, LifeError, payload::PayloadError},
    memory::{BackingError, content::ContentError},
    snapshot::{RestoreError, SaveError, UrlError},
};

/// A command that was refused, or failed. Clients match some of these words.
#[derive(Debug, Error)]
pub enum CommandError {
    /// There is no configuration.
    #[error("VM is not created")]
    NotCreated,
    /// The same, where it is needed to boot.
    #[error("VM config is missing")]
    ConfigMissing,
    /// There is one already, or a machine.
    #[error("VM is already created")]
    AlreadyCreated,
    /// There is no machine.
    #[error("VM is not running")]
    NotRunning,
    /// The machine is in a state from which that does not lead on.
    #[error("Invalid VM state transition from {from:?} to {to:?}")]
    Transition {
        /// What it does.
        from: VmState,
        /// What it was to do.
        to: VmState,
    },
    /// A snapshot of a VM that is not paused.
    #[error("Trying to snapshot while VM is running")]
    SnapshotWhileRunning,
    /// The configuration cannot be.
    #[error("Failed to validate config")]
    Config(#[source] ConfigError),
    /// The machine cannot be built.
    #[error("Cannot build the VM")]
    Build(#[source] BuildError),
    /// What the guest writes to its consoles has nowhere to go.
    #[error("Cannot open the {console}")]
    Console {
        /// Which.
        console: &'static str,
        /// Why.
        #[source]
        source: crate::machine::attach::AttachError,
    },
    /// A console cannot be what it shall be.
    #[error("Cannot open the consoles")]
    ConsoleConfig(#[source] ConfigError),
    /// The machine does not come to a standstill.
    #[error("Cannot stop the VM")]
    Stop(#[from] LifeError),
    /// The processors do not do what they are asked.
    #[error("Cannot reach the processors")]
    Vcpu(#[from] VcpuError),
    /// There is no such device.
    #[error("Device {0} is not known")]
    UnknownDevice(String),
    /// There is no such disk.
    #[error("Disk {0} is not known")]
    UnknownDisk(String),
    /// A disk's image cannot have that size.
    #[error("Disk {id} cannot have {size} bytes")]
    Disk {
        /// Which.
        id: String,
        /// The size.
        size: u64,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is no such memory zone.
    #[error("Memory zone {0} is not known")]
    UnknownZone(String),
    /// A device that is part of the board.
    #[error("Device {0} cannot be removed")]
    NotRemovable(String),
    /// A second socket device.
    #[error("Too many virtio-vsock devices")]
    TooManyVsock,
    /// A size that the machine cannot have.
    #[error("{0}")]
    Size(String),
    /// The request says something that cannot be.
    #[error("{0}")]
    Request(String),
    /// A migration that cannot be. Clients know this as a failure, not as a mistake.
    #[error("{0}")]
    Migration(String),
    /// Not as many descriptors came as the request says.
    #[error("The request announces {announced} descriptors, {received} came with it")]
    Descriptors {
        /// What it says.
        announced: usize,
        /// What came.
        received: usize,
    },
    /// The address of a snapshot is none.
    #[error("Cannot find the snapshot")]
    Url(#[from] UrlError),
    /// No snapshot could be taken.
    #[error("Cannot save the VM")]
    Save(#[from] SaveError),
    /// The snapshot cannot be restored.
    #[error("Cannot restore the VM")]
    Restore(#[from] RestoreError),
    /// It could be, but this version has no machinery for it.
    #[error("This version has no {0}")]
    Unavailable(&'static str),
    /// A job that cannot be given up.
    #[error(transparent)]
    Job(#[from] CancelError),
    /// The process is on its way out.
    #[error("The VMM is ending")]
    Ending,
}

/// What kind of failure it is; clients see it as the status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureClass {
    /// What it is about does not exist.
    NotFound,
    /// What it says cannot be.
    Invalid,
    /// It would be there twice.
    Conflict,
    /// It did not work, or not in this state.
    Failed,
}

impl CommandError {
    /// Whether nothing was wrong with it: somebody asked for the job to be given up.
    pub fn is_cancelled(&self) -> bool {
        let build = |error: &BuildError| {
            use BuildError::{Cancelled, Memory, Payload};
            matches!(error, Cancelled | Memory(BackingError::Cancelled) | Payload(PayloadError::Cancelled))
        };
        match self {
            Self::Build(error) | Self::Restore(RestoreError::Build(error)) => build(error),
            Self::Save(SaveError::Memory(error)) | Self::Restore(RestoreError::Content(error)) => {
                matches!(error, ContentError::Cancelled)
            }
            Self::Save(SaveError::Directory(error)) => matches!(error, SnapshotError::Cancelled),
            Self::Restore(RestoreError::Backing(error)) => matches!(error, BackingError::Cancelled),
            _ => false,
        }
    }

    /// What kind of failure it is.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::NotCreated
            | Self::ConfigMissing
            | Self::UnknownDevice(_)
            | Self::UnknownDisk(_)
            | Self::Job(CancelError::Unknown(_)) => FailureClass::NotFound,
            Self::Config(error) | Self::Build(BuildError::Config(error)) => class_of(error),
            Self::Restore(RestoreError::Config(error) | RestoreError::Build(BuildError::Config(error))) => {
                class_of(error)
            }
            Self::Request(_) | Self::Descriptors { .. } | Self::Restore(RestoreError::Override(_)) => {
                FailureClass::Invalid
            }
            Self::AlreadyCreated
            | Self::NotRunning
            | Self::Transition { .. }
            | Self::SnapshotWhileRunning
            | Self::Build(_)
            | Self::Console { .. }
            | Self::ConsoleConfig(_)
            | Self::Stop(_)
            | Self::Vcpu(_)
            | Self::UnknownZone(_)
            | Self::NotRemovable(_)
            | Self::TooManyVsock
            | Self::Size(_)
            | Self::Disk { .. }
            | Self::Migration(_)
            | Self::Url(_)
            | Self::Save(_)
            | Self::Restore(_)
            | Self::Unavailable(_)
            | Self::Job(CancelError::Ended(_))
            | Self::Ending => FailureClass::Failed,
        }
    }

    /// A word for it that does not change from version to version.
    pub fn code(&self) -> &'static str {
        if self.is_cancelled() {
            return "cancelled";
        }
        match self {
            Self::NotCreated | Self::ConfigMissing => "vm-not-created",
            Self::AlreadyCreated => "vm-already-created",
            Self::NotRunning => "vm-not-running",
            Self::Transition { .. } => "invalid-transition",
            Self::SnapshotWhileRunning => "vm-running",
            Self::Config(error) | Self::Build(BuildError::Config(error)) => match error.class() {
                ErrorClass::Conflict => "config-conflict",
                ErrorClass::Invalid | ErrorClass::Build => "config-invalid",
                ErrorClass::Absent => "unsupported",
            },
            Self::Build(_) => "build-failed",
            Self::Console { .. } | Self::ConsoleConfig(_) => "console-failed",
            Self::Stop(_) => "pause-failed",
            Self::Vcpu(_) => "vcpu-failed",
            Self::UnknownDevice(_) | Self::UnknownDisk(_) => "unknown-device",
            Self::UnknownZone(_) => "unknown-zone",
            Self::NotRemovable(_) => "not-removable",
            Self::TooManyVsock => "too-many-vsock",
            Self::Size(_) | Self::Disk { .. } => "size-invalid",
            Self::Migration(_) => "migration-invalid",
            Self::Request(_) => "request-invalid",
            Self::Descriptors { .. } => "descriptors-mismatch",
            Self::Url(_) => "snapshot-url",
            Self::Save(SaveError::Parent(_)) => "parent-unusable",
            Self::Save(_) => "snapshot-failed",
            Self::Restore(error) => error.code(),
            Self::Unavailable(_) => "unsupported",
            Self::Job(CancelError::Unknown(_)) => "unknown-job",
            Self::Job(CancelError::Ended(_)) => "job-ended",
            Self::Ending => "vmm-ending",
        }
    }
}

fn class_of(error: &ConfigError) -> FailureClass {
    match error.class() {
        ErrorClass::Conflict => FailureClass::Conflict,
        ErrorClass::Invalid => FailureClass::Invalid,
        ErrorClass::Build | ErrorClass::Absent => FailureClass::Failed,
    }
}
