//! Back ends that keep a table of guest memory are told of it once in a restore, and of all of it.

use std::sync::Arc;

use address_manager::{ListenerError, WiringChange, WiringListener};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::{Bench, image, text};
use crate::{
    cpu::Vcpus,
    machine::{Commits, Machine},
};

/// What a vhost device's back end is told.
#[derive(Default)]
struct BackEnd {
    /// Bytes of memory in each table that it was sent.
    tables: Mutex<Vec<u64>>,
    finished: Mutex<usize>,
}

impl WiringListener for BackEnd {
    fn name(&self) -> &str {
        "back end"
    }

    fn start(&self, change: &WiringChange) -> Result<(), ListenerError> {
        assert!(change.removed.is_empty(), "nothing was there before");
        self.tables.lock().push(change.added.iter().map(|range| range.size).sum());
        Ok(())
    }

    fn finish(&self) -> Result<(), ListenerError> {
        *self.finished.lock() += 1;
        Ok(())
    }

    fn undo(&self, _change: &WiringChange) {
        panic!("nothing of it fails");
    }
}

/// A machine of that many disks, each of which has a back end of its own, restored; what the back ends were told, and
/// how many calls of the hypervisor set memory.
fn restored(disks: usize, commits: Commits) -> (Vec<Arc<BackEnd>>, u64) {
    let images: Vec<NamedTempFile> = (0..disks).map(|_| image(1 << 20)).collect();
    let disk =
        |image: &NamedTempFile| json!({ "path": text(image.path()), "image_type": "Raw", "num_queues": 4 });
    let cpus = json!({ "boot_vcpus": 4, "max_vcpus": 4 });
    let said = json!({ "cpus": cpus, "disks": images.iter().map(disk).collect::<Vec<Value>>() });
    let bench = Bench::new();
    let (prepared, state) = bench.saved(said);
    let back_ends: Vec<Arc<BackEnd>> = (0..disks).map(|_| Arc::default()).collect();
    for back_end in &back_ends {
        prepared.transaction.add_listener(Arc::clone(back_end) as Arc<_>);
    }
    prepared.load(&state).unwrap();
    for back_end in &back_ends {
        assert!(back_end.tables.lock().is_empty(), "nothing is told before the commit");
    }
    let machine: Machine =
        prepared.commit(&bench.host, Vcpus::start(&[]).unwrap(), Vec::new(), None, commits).unwrap();
    (back_ends, machine.manager().totals().operations.slots_added.count)
}

#[test]
fn each_back_end_gets_one_table_whatever_the_number_of_devices() {
    for commits in [Commits::Once, Commits::Each] {
        for disks in [1, 12] {
            let (back_ends, slots) = restored(disks, commits);
            for back_end in back_ends {
                assert_eq!(*back_end.tables.lock(), [64 << 20], "{commits:?}, {disks} disks");
                assert_eq!(*back_end.finished.lock(), 1);
            }
            assert_eq!(slots, 1);
        }
    }
}
