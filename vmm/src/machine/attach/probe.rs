//! Whether what a device needs could be opened, found out without making or changing anything. What only shows
//! when it is taken is not found out: that an image is locked, or a tap in use.

use std::{
    fs::{File, OpenOptions},
    io,
    path::Path,
};

use rustix::io::Errno;
use virtio_devices::host::tap::Taps;

use super::AttachError;
use crate::config::{ConsoleTarget, NetConfig};

const TUN: &str = "/dev/net/tun";

/// Whether a network device's tap could be opened or made.
///
/// # Errors
/// Something of it is not there, or may not be used.
pub fn net(config: &NetConfig) -> Result<(), AttachError> {
    if !config.fds.is_empty() {
        return Taps::check_descriptors(&config.fds).map_err(AttachError::Tap);
    }
    file(Path::new(TUN), true)?;
    config.tap.as_deref().map_or(Ok(()), tap)
}

/// Whether a console could go there.
///
/// # Errors
/// It could not.
pub fn console(target: &ConsoleTarget) -> Result<(), AttachError> {
    match target {
        ConsoleTarget::File(path) if path.exists() => file(path, true),
        ConsoleTarget::File(path) => directory_of(path),
        ConsoleTarget::Socket(path) if path.symlink_metadata().is_ok() => {
            Err(AttachError::Open { path: path.clone(), source: Errno::ADDRINUSE.into() })
        }
        ConsoleTarget::Socket(path) => directory_of(path),
        ConsoleTarget::Off | ConsoleTarget::Null | ConsoleTarget::Tty | ConsoleTarget::Pty => Ok(()),
    }
}

/// Whether a file can be opened.
///
/// # Errors
/// It cannot.
pub fn file(path: &Path, write: bool) -> Result<(), AttachError> {
    let opened: io::Result<File> = OpenOptions::new().read(true).write(write).open(path);
    opened.map(drop).map_err(|source| AttachError::Open { path: path.to_owned(), source })
}

/// A tap that is there must be one; one that is not is made.
fn tap(name: &str) -> Result<(), AttachError> {
    let interface = Path::new("/sys/class/net").join(name);
    if interface.exists() && !interface.join("tun_flags").exists() {
        return Err(failed(&interface, io::ErrorKind::InvalidInput));
    }
    Ok(())
}

/// Whether there is a directory for a file.
///
/// # Errors
/// There is none.
pub fn directory_of(path: &Path) -> Result<(), AttachError> {
    let directory = path.parent().filter(|directory| *directory != Path::new("")).unwrap_or(Path::new("."));
    if directory.is_dir() { Ok(()) } else { Err(failed(path, io::ErrorKind::NotFound)) }
}

fn failed(path: &Path, kind: io::ErrorKind) -> AttachError {
    AttachError::Open { path: path.to_owned(), source: kind.into() }
}
