//! A pipe in the place of an image keeps nobody waiting for a writer, and a directory is no source of entropy.

use std::{path::Path, sync::mpsc, thread, time::Duration};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

use super::Bench;

/// Why there is no such machine; a test that would wait for ever is ended.
fn refusal(said: Value) -> String {
    let (answer, answered) = mpsc::channel();
    thread::spawn(move || answer.send(Bench::new().refusal(said)));
    answered.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|_| panic!("no answer for a minute"))
}

#[test]
fn a_directory_gives_no_entropy() {
    let place = tempfile::tempdir().unwrap();
    let said = refusal(json!({ "rng": { "src": place.path() } }));
    assert!(said.contains(place.path().to_str().unwrap()) && said.contains("Is a directory"), "{said}");
}

#[test]
fn images_that_are_pipes_are_refused_by_name() {
    let place = tempfile::tempdir().unwrap();
    let pipe = place.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let named = |said: String| {
        assert!(said.contains(pipe.to_str().unwrap()), "{said}");
        said
    };
    let kernel = Path::new("/proc/self/exe");
    assert!(named(refusal(json!({ "payload": { "kernel": pipe } }))).contains("kernel"));
    assert!(named(refusal(json!({ "payload": { "firmware": pipe } }))).contains("firmware"));
    let initramfs = json!({ "payload": { "kernel": kernel, "initramfs": pipe } });
    assert!(named(refusal(initramfs)).contains("initramfs"));
    assert!(named(refusal(json!({ "rng": { "src": pipe } }))).contains("it is a pipe"));
    for readonly in [true, false] {
        for image_type in ["Raw", "Unknown"] {
            let disk = json!({ "path": pipe, "readonly": readonly, "image_type": image_type });
            assert!(named(refusal(json!({ "disks": [disk] }))).contains("it is a pipe"));
        }
    }
}
