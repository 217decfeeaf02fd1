//! Whether what a device needs could be opened, found out without making or changing anything. What a probe says against
//! it is what opening it would say.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::{fs::FileTypeExt, net::SocketAddr},
    path::Path,
};

use rustix::{
    fs::{Access, access},
    io::Errno,
};
use virtio_devices::host::{disk::DiskImage, tap::Taps};

use super::{AttachError, block, terminal};
use crate::config::{BlockConfig, ConsoleTarget, NetConfig};

/// Whether a network device's tap could be opened or made.
///
/// # Errors
/// Something of it is not there, may not be used, or is used by somebody else.
pub fn net(config: &NetConfig) -> Result<(), AttachError> {
    let usable = match config.fds.as_slice() {
        [] => Taps::check(config.tap.as_deref(), config.queue_pairs),
        fds => Taps::check_descriptors(fds),
    };
    usable.map_err(AttachError::Tap)
}

/// Whether a disk's image could be opened and locked. Returned opened; it is not locked.
///
/// # Errors
/// It could not.
pub fn image(config: &BlockConfig) -> Result<impl DiskImage + use<>, AttachError> {
    let image = block::open_image(config)?;
    image.check_lock().map_err(|source| AttachError::Locked { path: config.path.clone(), source })?;
    Ok(image)
}

/// Whether a console could go there.
///
/// # Errors
/// It could not.
pub fn console(target: &ConsoleTarget) -> Result<(), AttachError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| AttachError::Open { path, source }
    };
    match target {
        ConsoleTarget::File(path) if path.exists() => {
            let mut options = OpenOptions::new();
            options.append(true);
            terminal::open_output(path, options).map(drop).map_err(failed(path))
        }
        ConsoleTarget::File(path) => can_be_made(path).map_err(failed(path)),
        ConsoleTarget::Socket(path) => new_socket(path),
        ConsoleTarget::Off | ConsoleTarget::Null | ConsoleTarget::Tty | ConsoleTarget::Pty => Ok(()),
    }
}

/// Whether a socket could be made there.
///
/// # Errors
/// Something is there already, or the directory for it is not or cannot be written.
pub fn new_socket(path: &Path) -> Result<(), AttachError> {
    can_be_bound(path).map_err(|source| AttachError::Open { path: path.to_owned(), source })
}

/// Opens what entropy is read from: a device, or a file.
///
/// # Errors
/// It cannot be opened, or is nothing that can be read so.
pub fn entropy(path: &Path) -> Result<File, AttachError> {
    refuse_pipe(path)?;
    let failed = |source| AttachError::Open { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    // A directory can be opened, and gives an error only when it is read.
    if file.metadata().map_err(failed)?.is_dir() {
        return Err(failed(Errno::ISDIR.into()));
    }
    Ok(file)
}

/// Opening a pipe to read would keep this thread waiting for somebody to write to it. (With O_NONBLOCK it would not, and
/// io_uring would then fail requests that have to wait.)
///
/// # Errors
/// It is one.
pub fn refuse_pipe(path: &Path) -> Result<(), AttachError> {
    match fs::metadata(path) {
        Ok(found) if found.file_type().is_fifo() => {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it is a pipe");
            Err(AttachError::Open { path: path.to_path_buf(), source })
        }
        // Whatever else is wrong is found out when it is opened.
        _ => Ok(()),
    }
}

/// A place where there is anything, a socket that nobody listens on any more too, is taken (bind(2)).
fn can_be_bound(path: &Path) -> io::Result<()> {
    SocketAddr::from_pathname(path)?;
    if path.symlink_metadata().is_ok() {
        return Err(Errno::ADDRINUSE.into());
    }
    can_be_made(path)
}

/// Whether there is a directory for a file that is not there, and it may be written.
fn can_be_made(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|directory| *directory != Path::new("")).unwrap_or(Path::new("."));
    // With what makes it an error if it is no directory.
    Ok(access(directory.join("."), Access::WRITE_OK | Access::EXEC_OK)?)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::{
            fs::{OpenOptionsExt, PermissionsExt},
            net::UnixListener,
        },
    };

    use rustix::{
        fs::{CWD, FileType, Mode, mknodat},
        pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    };

    use super::*;
    use crate::{
        error::chain,
        machine::attach::terminal::{self, Existing},
    };

    #[test]
    fn what_keeps_a_console_from_its_place_is_what_opening_it_says() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path();
        let (file, taken) = (place.join("file"), place.join("taken"));
        fs::write(&file, "of another life").unwrap();
        let listener = UnixListener::bind(&taken).unwrap();
        for path in [
            taken.clone(),
            file.clone(),
            place.to_owned(),
            file.join("below"),
            place.join("missing/below"),
            place.join("x".repeat(200)),
        ] {
            let target = ConsoleTarget::Socket(path);
            let said = chain(&console(&target).unwrap_err());
            assert_eq!(chain(&terminal::open(&target, Existing::Append).unwrap_err()), said);
        }
        // Left by somebody who is gone.
        drop(listener);
        console(&ConsoleTarget::Socket(taken.clone())).unwrap_err();
        for path in [place.to_owned(), file.join("below"), place.join("missing/below")] {
            let target = ConsoleTarget::File(path);
            let said = chain(&console(&target).unwrap_err());
            assert_eq!(chain(&terminal::open(&target, Existing::Append).unwrap_err()), said);
        }
        // Nobody reads from the one pipe, somebody from the other.
        let (pipe, read) = (place.join("pipe"), place.join("read"));
        for path in [&pipe, &read] {
            mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        }
        let _reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&read).unwrap();
        for (path, kind) in [(pipe, "it is a pipe: "), (read, "it is a pipe: "), (taken, "it is a socket: ")]
        {
            let target = ConsoleTarget::File(path.clone());
            for existing in [Existing::Append, Existing::Truncate] {
                let said = chain(&terminal::open(&target, existing).unwrap_err());
                assert_eq!(said, chain(&console(&target).unwrap_err()));
                assert!(said.contains(path.to_str().unwrap()) && said.contains(kind), "{said}");
            }
        }
        let before = fs::read_dir(place).unwrap().count();
        console(&ConsoleTarget::Socket(place.join("socket"))).unwrap();
        console(&ConsoleTarget::File(place.join("new"))).unwrap();
        // It is only written to.
        fs::set_permissions(&file, Permissions::from_mode(0o200)).unwrap();
        console(&ConsoleTarget::File(file.clone())).unwrap();
        assert_eq!(fs::read_dir(place).unwrap().count(), before);
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "of another life");
    }

    #[test]
    fn a_device_in_the_place_of_a_file_keeps_no_guest_waiting() {
        let null = ConsoleTarget::File("/dev/null".into());
        console(&null).unwrap();
        let opened = terminal::open(&null, Existing::Truncate).unwrap().unwrap();
        opened.terminal.write(&[b'x'; 100_000]);
        assert_eq!((opened.terminal.kept(), opened.made), (0, None));
        // Whose other side nobody reads.
        let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&main).unwrap();
        unlockpt(&main).unwrap();
        let name = ptsname(&main, Vec::new()).unwrap().into_string().unwrap();
        let target = ConsoleTarget::File(name.into());
        console(&target).unwrap();
        let opened = terminal::open(&target, Existing::Append).unwrap().unwrap();
        opened.terminal.write(&[b'x'; 100_000]);
        assert!(opened.terminal.kept() > 0);
        assert!(opened.terminal.watch().output.is_some());
    }
}
