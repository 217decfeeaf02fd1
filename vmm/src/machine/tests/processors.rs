//! Where the threads of processors and queues run.

use serde_json::json;

use super::{Bench, image};

#[test]
fn threads_run_where_they_shall() {
    let bench = Bench::new();
    // Host CPU 1023 is on no machine that this is tested on.
    let pinned = |cpus: &[usize]| json!({ "cpus": { "boot_vcpus": 2, "max_vcpus": 2, "affinity": [{ "vcpu": 1, "host_cpus": cpus }] } });
    let usable = rustix::thread::sched_getaffinity(None).unwrap();
    let cpu = (0..1024).find(|cpu| usable.is_set(*cpu)).unwrap();
    let machine = bench.boot(pinned(&[cpu])).unwrap();
    drop(machine);
    let said = bench.refusal(pinned(&[cpu, 1023]));
    assert!(said.contains("vCPU 1: affinity: host CPU 1023 is not there"), "{said}");

    let image = image(1 << 20);
    let said = bench.refusal(json!({ "disks": [{
        "path": image.path(), "num_queues": 1, "queue_affinity": [{ "queue_index": 0, "host_cpus": [1023] }],
    }] }));
    assert!(said.contains("_disk0: queue 0: affinity: host CPU 1023"), "{said}");
}
