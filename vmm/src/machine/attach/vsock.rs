//! Virtio socket device: makes the socket that programs of the host connect to, and knows where those that listen have
//! theirs.

use std::{
    ffi::OsString,
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::MetadataExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use virtio_devices::{
    host::vsock::{Dial, HostSocket},
    vsock::{self, Vsock},
    worker::PlainThreads,
};

use super::{AttachError, Attached, Context, virtio};
use crate::{config::VsockConfig, layout::DeviceLayout};

/// Makes the socket and builds the device.
///
/// # Errors
/// Something is there already, or the socket cannot be made.
pub fn attach(
    config: &VsockConfig,
    layout: &DeviceLayout,
    context: &Context<'_>,
) -> Result<Attached, AttachError> {
    let (listener, place) =
        listen(&config.socket).map_err(|source| AttachError::Open { path: config.socket.clone(), source })?;
    log::info!("{}: context id {}, programs connect to {}", config.id, config.cid, config.socket.display());
    let host = HostSocket::new(listener, Box::new(place)).map_err(AttachError::Function)?;
    let parts = vsock::VsockConfig { id: config.id.clone(), cid: config.cid };
    let device = Vsock::new(parts, host, Arc::new(PlainThreads));
    virtio::function(Box::new(device), layout, context, true)
        .map(Attached::plain)
        .map_err(AttachError::Function)
}

/// The socket, and the place that it has until the device is gone.
fn listen(path: &Path) -> io::Result<(UnixListener, Place)> {
    let listener = UnixListener::bind(path)?;
    let made = path.symlink_metadata()?;
    Ok((listener, Place { path: path.to_owned(), file: (made.dev(), made.ino()) }))
}

/// The file of the socket, and those beside it of programs that listen.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    /// Device and number of the file that we made.
    file: (u64, u64),
}

impl Dial for Place {
    fn dial(&self, port: u32) -> io::Result<UnixStream> {
        let mut name = OsString::from(&self.path);
        name.push(format!("_{port}"));
        // With this flag it does not wait for a program that is slow to accept.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket: OwnedFd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(name.as_os_str())?)?;
        Ok(UnixStream::from(socket))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Somebody may have put another one there.
        let is_ours = match self.path.symlink_metadata() {
            Ok(there) => (there.dev(), there.ino()) == self.file,
            Err(_) => false,
        };
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("{} stays: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_goes_with_its_device_and_what_is_anothers_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let (listener, place) = listen(&path).unwrap();
        assert_eq!(listen(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(path.exists());
        UnixStream::connect(&path).unwrap();
        drop((listener, place));
        assert!(!path.exists());
        // Moved away, and another's in its place.
        let (_listener, place) = listen(&path).unwrap();
        fs::rename(&path, directory.path().join("moved")).unwrap();
        fs::write(&path, "another's").unwrap();
        drop(place);
        assert_eq!(fs::read_to_string(&path).unwrap(), "another's");
        // Gone already.
        fs::remove_file(&path).unwrap();
        let (_listener, place) = listen(&path).unwrap();
        fs::remove_file(&path).unwrap();
        drop(place);
    }

    #[test]
    fn programs_that_listen_are_found_by_their_port() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let (_listener, place) = listen(&path).unwrap();
        assert_eq!(place.dial(52).unwrap_err().kind(), io::ErrorKind::NotFound);
        let program = UnixListener::bind(directory.path().join("socket_52")).unwrap();
        place.dial(52).unwrap();
        assert!(place.dial(5).is_err() && place.dial(520).is_err());
        // One that has more callers than it takes is no reason to wait.
        rustix::net::listen(&program, 1).unwrap();
        let waiting: Vec<UnixStream> = std::iter::from_fn(|| place.dial(52).ok()).take(9).collect();
        assert!(waiting.len() < 9, "{}", waiting.len());
        drop(program);
        assert_eq!(place.dial(52).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
