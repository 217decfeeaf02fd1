//! What is no file in the place of one: it is refused by name, and keeps nobody waiting.

use std::{
    os::unix::{fs::symlink, net::UnixListener},
    path::PathBuf,
    sync::mpsc,
    thread,
    time::Duration,
};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::*;

/// Something that is no file: what it is, and what makes it.
type Put = (&'static str, fn(&Path));

/// What comes of it; a test that would wait for ever is ended.
fn in_time<T: Send + 'static>(what: &str, ask: impl FnOnce() -> T + Send + 'static) -> T {
    let (answer, answered) = mpsc::channel();
    thread::spawn(move || answer.send(ask()));
    answered
        .recv_timeout(Duration::from_secs(60))
        .unwrap_or_else(|_| panic!("{what}: no answer for a minute"))
}

fn pipe(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

/// Puts things that are no files in the place of `path`, one after the other, and the file back in the end.
fn is_refused_by_name(path: &Path, open: fn(PathBuf) -> Result<(), SnapshotError>, directory: &Path) {
    let kept = path.with_extension("kept");
    let was_there = fs::rename(path, &kept).is_ok();
    let put: [Put; 4] = [
        ("a pipe", pipe),
        ("a socket", |path| drop(UnixListener::bind(path).unwrap())),
        ("a device", |path| symlink("/dev/zero", path).unwrap()),
        ("a link to a pipe", |path| {
            let pipe_itself = path.with_extension("pipe");
            pipe(&pipe_itself);
            symlink(pipe_itself, path).unwrap();
        }),
    ];
    for (what, put) in put {
        put(path);
        let of = directory.to_owned();
        let mut error = &in_time(what, move || open(of)).expect_err(what);
        while let SnapshotError::Ancestor { source, .. } = error {
            error = source;
        }
        let SnapshotError::NotFile { path: found } = error else { panic!("{what}: {error}") };
        assert_eq!(fs::canonicalize(found.parent().unwrap()).unwrap(), path.parent().unwrap(), "{what}");
        assert_eq!(found.file_name(), path.file_name(), "{what}");
        fs::remove_file(path).unwrap();
    }
    fs::create_dir(path).unwrap();
    let error = open(directory.to_owned()).expect_err("a directory");
    assert!(
        error.to_string().contains("is no regular file") || error.to_string().contains("builds on"),
        "{error}"
    );
    fs::remove_dir(path).unwrap();
    if was_there {
        fs::rename(kept, path).unwrap();
        open(directory.to_owned()).unwrap();
    }
}

fn open(directory: PathBuf) -> Result<(), SnapshotError> {
    Snapshot::open(&directory, true)?.open_memory().map(drop)
}

fn read_working_set(directory: PathBuf) -> Result<(), SnapshotError> {
    WorkingSet::read(&directory, 0, &table()).map(drop)
}

#[test]
fn pipes_sockets_and_devices_are_refused_by_name() {
    let target = written();
    let place = fs::canonicalize(target.path()).unwrap();
    for name in [CONFIG, STATE, MEMORY, MANIFEST] {
        is_refused_by_name(&place.join(name), open, &place);
    }
    is_refused_by_name(&place.join(WORKING_SET), read_working_set, &place);
}

#[test]
fn so_are_those_in_the_snapshots_below() {
    let all = chain::three();
    let place = fs::canonicalize(all.path()).unwrap();
    for below in ["a", "b"] {
        for name in [MEMORY, MANIFEST] {
            is_refused_by_name(&place.join(below).join(name), open, &place.join("c"));
        }
    }
}

#[test]
fn a_snapshot_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let directory = TempDir::new().unwrap();
    write(directory.path(), &[section("a")]).unwrap();
    for file in fs::read_dir(directory.path()).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", file.path());
    }
}
