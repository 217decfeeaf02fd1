//! The socket that clients connect to: whose it is, and when a path may be taken over.
//!
//! Who serves a path holds a lock on a file beside it. The kernel lets go of the lock when the process ends,
//! however it ends, so the file itself is in nobody's way; it stays, because removing it would open a gap.
//! A server that knows nothing of the lock is found out by connecting to it.

use std::{
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt};
use thiserror::Error;

/// The API cannot be served there.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Another process serves it.
    #[error("API socket {}: another process serves it", .0.display())]
    Taken(PathBuf),
    /// Something is there that is no socket.
    #[error("API socket {}: there is something else at this path", .0.display())]
    Occupied(PathBuf),
    /// The host refuses.
    #[error("API socket {}: cannot {what}", .path.display())]
    Host {
        /// Which.
        path: PathBuf,
        /// What it refuses.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A descriptor that is no listening Unix socket.
    #[error("API socket: the descriptor is no Unix socket that listens")]
    Descriptor(#[source] Option<io::Error>),
}

/// A socket that listens. Its file stays unless it is [removed](Self::remove).
#[derive(Debug)]
pub struct ApiSocket {
    listener: UnixListener,
    path: Option<(PathBuf, (u64, u64))>,
    // Held as long as the path is ours.
    _lock: Option<File>,
}

impl ApiSocket {
    /// Listens at a path, which must not be served by anybody. Only this user can connect.
    ///
    /// # Errors
    /// Another process serves it, something else is there, or the host refuses.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let host = |what| move |source| SocketError::Host { path: path.to_path_buf(), what, source };
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(host("open the lock file beside it"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => SocketError::Taken(path.to_path_buf()),
            TryLockError::Error(source) => host("lock the file beside it")(source),
        })?;
        make_way(path)?;
        let listener = UnixListener::bind(path).map_err(host("listen"))?;
        fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(host("set its mode"))?;
        listener.set_nonblocking(true).map_err(host("make it non-blocking"))?;
        let file = identity(path).map_err(host("look at it"))?;
        Ok(Self { listener, path: Some((path.to_path_buf(), file)), _lock: Some(lock) })
    }

    /// Takes over a descriptor of a socket that listens.
    ///
    /// # Errors
    /// It is none.
    pub fn from_descriptor(descriptor: OwnedFd) -> Result<Self, SocketError> {
        let listens = sockopt::socket_acceptconn(&descriptor)
            .and_then(|listens| Ok(listens && sockopt::socket_domain(&descriptor)? == AddressFamily::UNIX));
        match listens {
            Ok(true) => {}
            Ok(false) => return Err(SocketError::Descriptor(None)),
            Err(error) => return Err(SocketError::Descriptor(Some(error.into()))),
        }
        let listener = UnixListener::from(descriptor);
        listener.set_nonblocking(true).map_err(|error| SocketError::Descriptor(Some(error)))?;
        Ok(Self { listener, path: None, _lock: None })
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Removes its file, if it is still ours: after a normal end nothing is left to connect to.
    pub fn remove(self) {
        let Some((path, file)) = self.path else { return };
        if identity(&path).is_ok_and(|there| there == file)
            && let Err(error) = fs::remove_file(&path)
        {
            log::warn!("{} stays: {error}", path.display());
        }
    }
}

impl AsFd for ApiSocket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// Removes what a process left that has ended.
fn make_way(path: &Path) -> Result<(), SocketError> {
    let host = |what| move |source| SocketError::Host { path: path.to_path_buf(), what, source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(host("look at what is there")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::Occupied(path.to_path_buf()));
        }
        Ok(_) => {}
    }
    if is_served(path) {
        return Err(SocketError::Taken(path.to_path_buf()));
    }
    fs::remove_file(path).map_err(host("remove the one that its owner left behind"))
}

/// Whether somebody listens there. Does not wait for a server that is too busy to accept.
fn is_served(path: &Path) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = || {
        let address = SocketAddrUnix::new(path)?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &address)
    };
    match probe() {
        // Nobody is there, or it went away just now.
        Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOENT) => false,
        // It answers, its queue is full, or there is no telling.
        Ok(()) | Err(_) => true,
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_live_owner_is_never_displaced_and_a_dead_one_always() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api");
        let first = ApiSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(matches!(ApiSocket::bind(&path), Err(SocketError::Taken(_))));
        // As after a kill: the lock is gone, the files stay.
        drop(first);
        assert!(UnixStream::connect(&path).is_err() && path.exists());
        let second = ApiSocket::bind(&path).unwrap();
        second.remove();
        assert!(!path.exists());

        // Somebody who knows nothing of our lock.
        let foreign = UnixListener::bind(&path).unwrap();
        assert!(matches!(ApiSocket::bind(&path), Err(SocketError::Taken(_))));
        drop(foreign);
        ApiSocket::bind(&path).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(ApiSocket::bind(&path), Err(SocketError::Occupied(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        assert!(matches!(ApiSocket::bind(&directory.path().join("a/b")), Err(SocketError::Host { .. })));
        let file = File::open(&path).unwrap();
        assert!(matches!(ApiSocket::from_descriptor(file.into()), Err(SocketError::Descriptor(_))));
        let (one, _other) = UnixStream::pair().unwrap();
        assert!(matches!(ApiSocket::from_descriptor(one.into()), Err(SocketError::Descriptor(None))));
    }

    #[test]
    fn a_file_that_is_not_ours_any_more_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api");
        let socket = ApiSocket::bind(&path).unwrap();
        fs::rename(&path, directory.path().join("moved")).unwrap();
        fs::write(&path, "another's").unwrap();
        socket.remove();
        assert!(path.exists());
    }
}
