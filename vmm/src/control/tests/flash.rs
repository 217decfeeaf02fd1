//! A machine with firmware in flash goes into a snapshot and comes back with the same image, and with no other.

use super::{super::Restore, *};

const SIZE: usize = 64 << 10;

#[test]
fn a_snapshot_comes_back_with_the_firmware_that_it_had() {
    let mut image = NamedTempFile::new().unwrap();
    image.write_all(&[0xf4; SIZE]).unwrap();
    let place = tempfile::tempdir().unwrap();
    let url = format!("file://{}", place.path().display());
    let bench = Bench::new();
    bench.create(&json!({ "payload": { "firmware": image.path() } })).unwrap();
    bench.handle.call(Command::Boot).unwrap();
    bench.handle.call(Command::Pause).unwrap();
    bench.handle.call(Command::Snapshot(wire::VmSnapshotConfig::to(&url))).unwrap();
    bench.handle.call(Command::Delete).unwrap();

    let restore = |dry_run: bool| {
        let said =
            wire::RestoreConfig { source_url: url.clone(), resume: !dry_run, dry_run, ..Default::default() };
        bench.handle.call(Command::Restore(Box::new(Restore { said, descriptors: vec![] })))
    };
    restore(true).unwrap();
    restore(false).unwrap();
    assert_eq!(bench.state(), Some(VmState::Running));
    // It begins anew, with what is in the file then.
    bench.guest_asks(GuestRequest::Reset);
    while !bench.events().contains(&"vm rebooted".to_owned()) {
        std::thread::sleep(Duration::from_millis(1));
    }
    bench.handle.call(Command::Delete).unwrap();

    let mut other = vec![0xf4; SIZE];
    other[7] = 0x90;
    std::fs::write(image.path(), other).unwrap();
    for dry_run in [true, false] {
        let (_, said) = refusal(restore(dry_run));
        let path = image.path().display().to_string();
        assert!(said.contains(&path) && said.contains("not what the guest was started with"), "{said}");
    }
    assert_eq!(bench.state(), None);
}
