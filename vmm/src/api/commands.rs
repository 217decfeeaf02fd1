//! Commands out of bodies, and whose descriptors are whose.
//!
//! A number in the body is never taken for a descriptor: it is one of the client's, not of this process.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

use api_client::wire;
use serde::de::DeserializeOwned;

use super::{
    answer,
    body::{self, Unknown},
    http::Response,
};
use crate::control::{Addition, Command, Receive, Restore, check};

/// Reads a command out of a body and the descriptors beside it; strictly, or not.
///
/// # Errors
/// The answer that says what is wrong.
pub(super) type Read = fn(&[u8], Vec<OwnedFd>, bool) -> Result<(Command, Unknown), Response>;

/// A body of one object that is all there is to a command.
fn plain<T: DeserializeOwned>(
    bytes: &[u8],
    strict: bool,
    command: fn(T) -> Command,
) -> Result<(Command, Unknown), Response> {
    let (said, unknown) = body::read(bytes, strict)?;
    Ok((command(said), unknown))
}

/// A device without descriptors.
fn addition<T: DeserializeOwned>(
    bytes: &[u8],
    strict: bool,
    addition: fn(T) -> Addition,
) -> Result<(Command, Unknown), Response> {
    let (said, unknown) = body::read(bytes, strict)?;
    Ok((Command::Add(Box::new(addition(said))), unknown))
}

type Outcome = Result<(Command, Unknown), Response>;

pub(super) fn create(bytes: &[u8], _: Vec<OwnedFd>, strict: bool) -> Outcome {
    let (mut said, unknown) = body::read::<wire::VmConfig>(bytes, strict)?;
    for net in said.net.iter_mut().flatten() {
        forget("net: fds", &mut net.fds);
    }
    for device in said.devices.iter_mut().flatten() {
        forget("devices: fd", &mut device.fd);
    }
    if let Some(platform) = &mut said.platform {
        forget("platform: iommufd_fd", &mut platform.iommufd_fd);
    }
    Ok((Command::Create(Box::new(said)), unknown))
}

pub(super) fn add_net(bytes: &[u8], descriptors: Vec<OwnedFd>, strict: bool) -> Outcome {
    let (mut said, unknown) = body::read::<wire::NetConfig>(bytes, strict)?;
    forget("fds", &mut said.fds);
    if !descriptors.is_empty() {
        said.fds = Some(descriptors.iter().map(AsRawFd::as_raw_fd).collect());
        said.descriptors = wire::Descriptors(descriptors.into_iter().map(Arc::new).collect());
    }
    Ok((Command::Add(Box::new(Addition::Net(said))), unknown))
}

pub(super) fn add_device(bytes: &[u8], descriptors: Vec<OwnedFd>, strict: bool) -> Outcome {
    let (mut said, unknown) = body::read::<wire::DeviceConfig>(bytes, strict)?;
    if descriptors.len() > 1 {
        return Err(answer::bad_request("descriptor-count"));
    }
    forget("fd", &mut said.fd);
    let descriptor = descriptors.into_iter().next();
    said.fd = descriptor.as_ref().map(AsRawFd::as_raw_fd);
    Ok((Command::Add(Box::new(Addition::Device(said, descriptor))), unknown))
}

pub(super) fn restore(bytes: &[u8], descriptors: Vec<OwnedFd>, strict: bool) -> Outcome {
    let (said, unknown) = body::read::<wire::RestoreConfig>(bytes, strict)?;
    if descriptors.len() != check::announced(&said) {
        return Err(answer::bad_request("descriptor-count"));
    }
    Ok((Command::Restore(Box::new(Restore { said, descriptors })), unknown))
}

pub(super) fn receive_migration(bytes: &[u8], descriptors: Vec<OwnedFd>, strict: bool) -> Outcome {
    let (said, unknown) = body::read::<wire::ReceiveMigrationData>(bytes, strict)?;
    if descriptors.len() != check::passed_through(said.vfio_fds.as_deref()) {
        return Err(answer::bad_request("descriptor-count"));
    }
    Ok((Command::ReceiveMigration(Box::new(Receive { said, descriptors })), unknown))
}

/// Drops numbers that mean nothing here.
fn forget<T>(what: &str, numbers: &mut Option<T>) {
    if numbers.take().is_some() {
        log::warn!("{what}: numbers in a request are no descriptors; those come beside it");
    }
}

/// Endpoints whose body is all there is, by the object in it.
macro_rules! plainly {
    ($($name:ident: $kind:ident($argument:path) $make:expr;)*) => {
        $(pub(super) fn $name(bytes: &[u8], _: Vec<OwnedFd>, strict: bool) -> Outcome {
            $kind::<$argument>(bytes, strict, $make)
        })*
    };
}

plainly! {
    add_disk: addition(wire::DiskConfig) Addition::Disk;
    add_fs: addition(wire::FsConfig) Addition::Fs;
    add_generic_vhost_user: addition(wire::GenericVhostUserConfig) Addition::GenericVhostUser;
    add_pmem: addition(wire::PmemConfig) Addition::Pmem;
    add_user_device: addition(wire::UserDeviceConfig) Addition::UserDevice;
    add_vdpa: addition(wire::VdpaConfig) Addition::Vdpa;
    add_vsock: addition(wire::VsockConfig) Addition::Vsock;
    coredump: plain(wire::VmCoredumpData) Command::Coredump;
    remove_device: plain(wire::VmRemoveDevice) Command::Remove;
    resize: plain(wire::VmResize) Command::Resize;
    resize_disk: plain(wire::VmResizeDisk) Command::ResizeDisk;
    resize_zone: plain(wire::VmResizeZone) Command::ResizeZone;
    send_migration: plain(wire::SendMigrationData) |said| Command::SendMigration(Box::new(said));
    snapshot: plain(wire::VmSnapshotConfig) Command::Snapshot;
}
