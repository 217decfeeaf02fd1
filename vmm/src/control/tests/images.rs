//! A restore that is only tried finds what the locks on images would refuse.

use super::{super::Restore, *};

#[test]
fn two_disks_on_one_image_are_refused_by_a_look_as_by_a_restore() {
    let images = [(); 2].map(|()| NamedTempFile::new().unwrap());
    for image in &images {
        image.as_file().set_len(1 << 20).unwrap();
    }
    let place = tempfile::tempdir().unwrap();
    let url = format!("file://{}", place.path().display());
    let bench = Bench::new();
    let disk = |image: &NamedTempFile| json!({ "path": image.path(), "image_type": "Raw" });
    bench.create(&json!({ "disks": images.each_ref().map(disk) })).unwrap();
    bench.handle.call(Command::Boot).unwrap();
    bench.handle.call(Command::Pause).unwrap();
    bench.handle.call(Command::Snapshot(wire::VmSnapshotConfig::to(&url))).unwrap();
    bench.handle.call(Command::Delete).unwrap();

    let restore = |overrides: Value, dry_run: bool| {
        let said = wire::RestoreConfig {
            source_url: url.clone(),
            overrides: serde_json::from_value(overrides).unwrap(),
            dry_run,
            ..Default::default()
        };
        bench.handle.call(Command::Restore(Box::new(Restore { said, descriptors: vec![] })))
    };
    let twice = || json!([{ "id": "_disk1", "path": images[0].path() }]);
    let [(_, tried), (_, real)] = [true, false].map(|dry_run| refusal(restore(twice(), dry_run)));
    assert_eq!(tried, real);
    let expected = format!("device _disk1: cannot lock {}: it is in use: ", images[0].path().display());
    assert!(tried.contains(&expected), "{tried}");

    // What the configuration says does not count where it is laid over.
    let swapped =
        json!([{ "id": "_disk0", "path": images[1].path() }, { "id": "_disk1", "path": images[0].path() }]);
    restore(swapped.clone(), true).unwrap();
    restore(swapped, false).unwrap();
}
