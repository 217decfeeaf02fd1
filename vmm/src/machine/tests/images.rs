//! Who may use a disk image at the same time, and limits that disks share.

use std::path::Path;

use serde_json::{Value, json};

use super::{
    super::{BuildError, attach},
    Bench, image, text,
};

fn disk(path: &std::path::Path, readonly: bool, granularity: &str) -> Value {
    json!({ "disks": [{ "path": path, "readonly": readonly, "lock_granularity": granularity, "image_type": "Raw" }] })
}

#[test]
fn an_image_has_one_writer_or_any_number_of_readers() {
    let bench = Bench::new();
    let image = image(1 << 20);
    for granularity in ["ByteRange", "Full"] {
        let writer = bench.boot(disk(image.path(), false, granularity)).unwrap();
        for (readonly, other) in [(false, "ByteRange"), (false, "Full"), (true, "ByteRange"), (true, "Full")]
        {
            let said = bench.refusal(disk(image.path(), readonly, other));
            for expected in ["_disk0", text(image.path()), "in use", "write lock"] {
                assert!(said.contains(expected), "{said:?} has no {expected:?}");
            }
        }
        drop(writer);
        let readers = [(); 2].map(|()| bench.boot(disk(image.path(), true, granularity)).unwrap());
        let said = bench.refusal(disk(image.path(), false, granularity));
        assert!(said.contains("read lock"), "{said}");
        drop(readers);
    }
}

#[test]
fn one_machine_cannot_have_an_image_twice() {
    let image = image(1 << 20);
    let twice = json!({ "disks": [{ "path": image.path() }, { "path": image.path() }] });
    let said = Bench::new().refusal(twice);
    assert!(said.contains("_disk1") && said.contains("in use"), "{said}");
}

#[test]
fn whoever_looks_says_of_an_image_that_is_there_twice_what_locking_it_does() {
    let bench = Bench::new();
    let (image, other) = (image(2 << 20), image(2 << 20));
    let place = tempfile::tempdir().unwrap();
    let (link, hard, missing) =
        (place.path().join("link"), place.path().join("hard"), place.path().join("no"));
    std::os::unix::fs::symlink(image.path(), &link).unwrap();
    std::fs::hard_link(image.path(), &hard).unwrap();
    let disk =
        |path: &Path, readonly: bool| json!({ "path": path, "readonly": readonly, "image_type": "Raw" });
    let pmem = |path: &Path, discard: bool| json!({ "file": path, "discard_writes": discard });
    let nameless = json!({ "file": place.path(), "size": 2 << 20 });
    for (disks, pmem) in [
        (json!([disk(image.path(), false), disk(image.path(), false)]), json!([])),
        (json!([disk(image.path(), false), disk(&link, true)]), json!([])),
        (json!([disk(&hard, true), disk(image.path(), false)]), json!([])),
        (json!([disk(image.path(), true), disk(&hard, true)]), json!([])),
        (json!([disk(image.path(), true), disk(other.path(), true), disk(&link, false)]), json!([])),
        (json!([disk(image.path(), false)]), json!([pmem(&link, true)])),
        (json!([disk(image.path(), true)]), json!([pmem(&link, false)])),
        (json!([disk(image.path(), true)]), json!([pmem(&link, true), pmem(other.path(), false)])),
        (json!([]), json!([nameless, nameless])),
    ] {
        let said = json!({ "disks": disks, "pmem": pmem });
        let config = bench.config(said.clone());
        let looked = attach::locked_twice(&config.devices)
            .into_iter()
            .map(|(id, source)| crate::error::chain(&BuildError::Attach { id: id.to_owned(), source }));
        let real = bench.boot(said).err().map(|error| crate::error::chain(&error));
        assert_eq!(looked.collect::<Vec<_>>(), Vec::from_iter(real), "{disks} {pmem}");
    }
    // That one is told of for another reason.
    let config = bench.config(json!({ "disks": [disk(&missing, false), disk(&missing, false)] }));
    assert!(attach::locked_twice(&config.devices).is_empty());
}

#[test]
fn images_are_handed_over() {
    let bench = Bench::new();
    let (first, second) = (image(1 << 20), image(1 << 20));
    let both = json!({ "disks": [{ "path": first.path() }, { "path": second.path() }] });
    let source = bench.boot(both.clone()).unwrap();
    source.lock_images().unwrap();
    source.unlock_images().unwrap();
    let destination = bench.boot(both).unwrap();
    let error = source.lock_images().unwrap_err();
    assert!(crate::error::chain(&error).contains("_disk0"), "{error}");
    destination.unlock_images().unwrap();
    source.lock_images().unwrap();

    // If one cannot be had, none is kept.
    source.unlock_images().unwrap();
    let other = bench.boot(disk(second.path(), false, "Full")).unwrap();
    assert!(source.lock_images().unwrap_err().id == "_disk1");
    drop(bench.boot(disk(first.path(), false, "Full")).unwrap());
    drop(other);
}

#[test]
fn disks_can_share_limits() {
    let (first, second) = (image(1 << 20), image(1 << 20));
    let limited = json!({
        "rate_limit_groups": [{
            "id": "slow",
            "rate_limiter_config": { "ops": { "size": 10, "refill_time": 1000 } },
        }],
        "disks": [
            { "path": first.path(), "rate_limit_group": "slow" },
            { "path": second.path(), "rate_limit_group": "slow" },
        ],
    });
    Bench::new().boot(limited).unwrap();
}
