//! Back ends that keep a table of guest memory are sent it once in a restore, and all of it.

use std::{
    error::Error,
    sync::Arc,
    time::{Duration, Instant},
};

use address_manager::{GuestMemoryView, MemoryTable, MemoryTableBackend, MemoryTableListener};
use hypervisor::fake::Call;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::{Bench, image, text};
use crate::machine::Commits;

/// Ends tests that hang only.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a vhost device's back end is sent.
#[derive(Default)]
struct BackEnd(Mutex<Vec<MemoryTable>>);

impl MemoryTableBackend for BackEnd {
    fn name(&self) -> &str {
        "back end"
    }

    fn max_regions(&self) -> usize {
        64
    }

    fn takes_files(&self) -> bool {
        false
    }

    fn set_memory_table(
        &self,
        table: &MemoryTable,
        _deadline: Instant,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.0.lock().push(table.clone());
        Ok(())
    }
}

/// What must be in the tables of a machine with memory in two pieces: where each is for the guest, how long it is, and
/// where it is in this process.
fn pieces(memory: &GuestMemoryView) -> Vec<(u64, u64, u64)> {
    const HOLE: u64 = 3 << 30;
    const BEHIND: u64 = 4 << 30;
    let at = |guest: u64| memory.get_host_address(GuestAddress(guest)).unwrap() as u64;
    vec![(0, HOLE, at(0)), (BEHIND, 2 << 30, at(BEHIND))]
}

/// A machine of that many disks, each of which has a back end of its own, restored: what the back ends were sent is
/// checked. How many calls of the hypervisor set memory.
fn restored(disks: usize, commits: Commits) -> usize {
    let images: Vec<NamedTempFile> = (0..disks).map(|_| image(1 << 20)).collect();
    let disk =
        |image: &NamedTempFile| json!({ "path": text(image.path()), "image_type": "Raw", "num_queues": 4 });
    let cpus = json!({ "boot_vcpus": 4, "max_vcpus": 4 });
    let disks: Vec<Value> = images.iter().map(disk).collect();
    let bench = Bench::new();
    let saved = bench.saved(json!({ "cpus": cpus, "memory": { "size": 5_u64 << 30 }, "disks": disks }));
    let back_ends: Vec<Arc<BackEnd>> = disks.iter().map(|_| Arc::default()).collect();
    for back_end in &back_ends {
        let listener = MemoryTableListener::new(Arc::clone(back_end) as _, PATIENCE);
        saved.ground.transaction.add_listener(listener);
    }
    let recorder = bench.hypervisor.recorder();
    recorder.take();
    saved.load();
    for back_end in &back_ends {
        assert!(back_end.0.lock().is_empty(), "nothing is sent before the commit");
    }
    let machine = saved.commit(&bench.host, Vec::new(), commits);
    let expected = pieces(&machine.manager().memory().view());
    for back_end in back_ends {
        let tables = back_end.0.lock();
        let [table] = &tables[..] else { panic!("{commits:?}: {} tables", tables.len()) };
        let regions = table.regions().iter();
        let regions: Vec<_> =
            regions.map(|region| (region.guest_address, region.size, region.host_address)).collect();
        assert_eq!(regions, expected);
    }
    recorder.calls().iter().filter(|call| matches!(call, Call::SetSlot(_))).count()
}

#[test]
fn each_back_end_gets_one_table_whatever_the_number_of_devices() {
    for commits in [Commits::Once, Commits::Each] {
        for disks in [1, 12] {
            assert_eq!(restored(disks, commits), 2, "{commits:?}, {disks} disks");
        }
    }
}
