//! What configurations come to, and which are refused in which words.

use std::path::PathBuf;

use api_client::wire;
use serde_json::{Value, json};

use super::IdCounter;
use crate::config::{
    BucketConfig, ConfigError, ConsoleTarget, DeviceConfig, ErrorClass, HotplugMethod, Payload, RateLimit,
    SegmentWeights, VmConfig,
};

fn said(value: Value) -> wire::VmConfig {
    serde_json::from_value(value).unwrap()
}

fn resolve(value: Value) -> Result<VmConfig, ConfigError> {
    VmConfig::from_wire(&mut said(value), &mut IdCounter::default())
}

fn refused(value: Value) -> (String, ErrorClass) {
    let error = resolve(value).unwrap_err();
    (crate::error::chain(&error), error.class())
}

fn ids(config: &VmConfig) -> Vec<&str> {
    config.devices.iter().map(DeviceConfig::id).collect()
}

#[test]
fn nothing_said_is_a_machine_with_console_and_entropy() {
    let config = resolve(json!({})).unwrap();
    assert_eq!((config.cpus.boot, config.cpus.max, config.cpus.max_phys_bits), (1, 1, 46));
    assert_eq!((config.memory_size(), config.memory[0].id.as_str()), (512 << 20, "mem0"));
    assert!(config.memory[0].thp && !config.memory[0].shared);
    assert_eq!(ids(&config), ["__console", "__rng"]);
    assert_eq!(config.serial, ConsoleTarget::Null);
    assert_eq!(config.segment_weights, [SegmentWeights { mmio32: 1, mmio64: 1 }]);
    assert_eq!(config.payload, None);
}

#[test]
fn ids_are_given_once_by_one_counter_in_slot_order() {
    let mut said = said(json!({
        "net": [{}, { "id": "mine" }],
        "disks": [{ "path": "/a" }, { "path": "/b", "id": "_net2" }, { "path": "/c" }],
        "cpus": { "boot_vcpus": 1, "max_vcpus": 1 },
    }));
    let mut counter = IdCounter::default();
    let config = VmConfig::from_wire(&mut said, &mut counter).unwrap();
    // `_net2` is taken.
    let expected = ["__console", "_disk0", "_net2", "_disk1", "_net3", "mine", "__rng"];
    assert_eq!(ids(&config), expected);

    // What was given stays, and is not given again.
    let before = said.clone();
    VmConfig::from_wire(&mut said, &mut counter).unwrap();
    assert_eq!(said, before);
    said.disks.as_mut().unwrap().push(wire::DiskConfig { path: Some("/d".into()), ..Default::default() });
    let config = VmConfig::from_wire(&mut said, &mut counter).unwrap();
    assert!(ids(&config).contains(&"_disk4"));
}

#[test]
fn addresses_are_given_once() {
    let mut said = said(json!({ "net": [{}, {}] }));
    VmConfig::from_wire(&mut said, &mut IdCounter::default()).unwrap();
    let given: Vec<[u8; 6]> = said.net.iter().flatten().map(|net| net.mac.unwrap().0).collect();
    assert!(given.iter().all(|address| address[0] == 0x2e) && given[0] != given[1]);
    let config = VmConfig::from_wire(&mut said, &mut IdCounter::default()).unwrap();
    let kept = config.devices.iter().filter_map(|device| match device {
        DeviceConfig::Net(net) => net.mac,
        _ => None,
    });
    assert_eq!(kept.collect::<Vec<_>>(), given);
}

#[test]
fn disks() {
    let config = resolve(json!({
        "cpus": { "boot_vcpus": 2, "max_vcpus": 2 },
        "platform": { "num_pci_segments": 2 },
        "rate_limit_groups": [{ "id": "g", "rate_limiter_config": {
            "bandwidth": { "size": 1, "refill_time": 2 }, "ops": { "size": 0, "refill_time": 2 } } }],
        "disks": [{ "path": "/d", "num_queues": 2, "queue_size": 256, "pci_segment": 1, "pci_device_id": 9,
            "readonly": true, "image_type": "Raw", "rate_limit_group": "g", "serial": "s",
            "queue_affinity": [{ "queue_index": 1, "host_cpus": [4, 5] }] },
            { "path": "/e", "rate_limiter_config": {
                "ops": { "size": 5, "one_time_burst": 6, "refill_time": 7 } } }],
    }))
    .unwrap();
    let DeviceConfig::Block(disk) = &config.devices[1] else { panic!("{:?}", config.devices) };
    assert_eq!((disk.num_queues, disk.queue_size, disk.readonly), (2, 256, true));
    assert_eq!((disk.place.segment, disk.place.slot), (1, Some(9)));
    assert_eq!(disk.queue_affinity, [(1, vec![4, 5])]);
    let bandwidth = Some(BucketConfig { size: 1, one_time_burst: 0, refill_ms: 2 });
    assert_eq!(config.rate_limit_groups[0].limit, RateLimit { bandwidth, ops: None });
    let DeviceConfig::Block(disk) = &config.devices[2] else { panic!("{:?}", config.devices) };
    let ops = Some(BucketConfig { size: 5, one_time_burst: 6, refill_ms: 7 });
    assert_eq!(disk.rate_limit, Some(RateLimit { bandwidth: None, ops }));
}

#[test]
fn zones_and_nodes() {
    let config = resolve(json!({
        "cpus": { "boot_vcpus": 2, "max_vcpus": 4 },
        "memory": { "size": 0, "hotplug_size": 1 << 30, "thp": false,
            "zones": [{ "id": "a", "size": 1 << 20 }, { "id": "b", "size": 2 << 20, "hugepages": true }] },
        "platform": { "num_pci_segments": 2 },
        "pci_segments": [{ "pci_segment": 1, "mmio64_aperture_weight": 3 }],
        "numa": [
            { "guest_numa_id": 0, "cpus": [0, 1], "memory_zones": ["a"], "pci_segments": [0],
                "distances": [{ "destination": 1, "distance": 30 }] },
            { "guest_numa_id": 1, "cpus": [2, 3], "memory_zones": ["b"], "pci_segments": [1] },
            { "guest_numa_id": 2, "memory_zones": [], "cpus": [] },
        ],
    }));
    // A node of nothing is none.
    assert!(config.unwrap_err().to_string().contains("guest_numa_id 2"));

    let config = resolve(json!({
        "cpus": { "boot_vcpus": 2, "max_vcpus": 4 },
        "memory": { "size": 0, "hotplug_size": 1 << 30, "thp": false,
            "zones": [{ "id": "a", "size": 1 << 20 }, { "id": "b", "size": 2 << 20, "hugepages": true }] },
        "platform": { "num_pci_segments": 2 },
        "pci_segments": [{ "pci_segment": 1, "mmio64_aperture_weight": 3 }],
        "numa": [
            { "guest_numa_id": 0, "cpus": [0, 1], "memory_zones": ["a"], "pci_segments": [0],
                "distances": [{ "destination": 1, "distance": 30 }] },
            { "guest_numa_id": 1, "cpus": [2, 3], "memory_zones": ["b"], "pci_segments": [1] },
        ],
    }))
    .unwrap();
    assert_eq!(config.memory_size(), 3 << 20);
    assert_eq!(config.memory[1].hugepage_size, Some(2 << 20));
    assert!(config.memory.iter().all(|zone| !zone.thp && zone.hotplug_size == 0));
    assert_eq!(config.segment_weights[1], SegmentWeights { mmio32: 1, mmio64: 3 });
    // Said one way, it holds both ways.
    assert_eq!(config.numa[0].distances, [(0, 10), (1, 30)].into());
    assert_eq!(config.numa[1].distances, [(0, 30), (1, 10)].into());
}

#[test]
fn hotplug_is_laid_out() {
    let config = resolve(json!({ "memory": { "size": 1 << 30, "hotplug_size": 2_u64 << 30 } })).unwrap();
    assert_eq!((config.memory[0].hotplug_size, config.hotplug_method), (2 << 30, HotplugMethod::Acpi));
    let config = resolve(json!({ "memory": { "size": 1 << 30, "hotplug_size": 2_u64 << 30,
        "hotplug_method": "VirtioMem", "hotplugged_size": 0 } }))
    .unwrap();
    assert_eq!(config.hotplug_method, HotplugMethod::VirtioMem);
}

#[test]
fn payloads() {
    let payload = |value| resolve(json!({ "payload": value })).map(|config| config.payload);
    let kernel = payload(json!({ "kernel": "/k", "cmdline": "c", "initramfs": "/i" })).unwrap();
    let initramfs = Some(PathBuf::from("/i"));
    assert_eq!(kernel, Some(Payload::Kernel { kernel: "/k".into(), initramfs, cmdline: "c".into() }));
    let firmware = payload(json!({ "firmware": "/f", "cmdline": "c" })).unwrap();
    assert_eq!(firmware, Some(Payload::Firmware { firmware: "/f".into() }));
    assert_eq!(payload(json!({})).unwrap(), None);
    assert!(payload(json!({ "firmware": "/f", "kernel": "/k" })).is_err());
}

#[test]
fn descriptors_are_what_was_announced() {
    let (reader, writer) = std::io::pipe().unwrap();
    let descriptors: Vec<std::os::fd::OwnedFd> = vec![reader.into(), writer.into()];
    let descriptors = wire::Descriptors(descriptors.into_iter().map(Into::into).collect());
    let mut said = said(json!({ "cpus": { "boot_vcpus": 2, "max_vcpus": 2 },
        "net": [{ "fds": [-1, -1], "num_queues": 4, "ip": "10.0.0.1", "mask": "255.0.0.0" }] }));
    let refused = VmConfig::from_wire(&mut said, &mut IdCounter::default()).unwrap_err();
    assert_eq!(refused.to_string(), "_net0: fds: 2 are announced, 0 were received");

    said.net.as_mut().unwrap()[0].descriptors = descriptors;
    let config = VmConfig::from_wire(&mut said, &mut IdCounter::default()).unwrap();
    let DeviceConfig::Net(net) = &config.devices[1] else { panic!("{:?}", config.devices) };
    assert_eq!((net.fds.len(), net.queue_pairs, net.address), (2, 2, None));

    said.net.as_mut().unwrap()[0].num_queues = 2;
    assert!(VmConfig::from_wire(&mut said, &mut IdCounter::default()).is_err());
}

#[test]
fn what_is_there_twice_is_a_conflict() {
    for twice in [
        json!({ "disks": [{ "id": "a", "path": "/a" }, { "id": "a", "path": "/b" }] }),
        json!({ "disks": [{ "id": "a", "path": "/a" }], "net": [{ "id": "a" }] }),
        json!({ "disks": [{ "id": "a", "path": "/a" }],
            "memory": { "size": 0, "zones": [{ "id": "a", "size": 4096 }] } }),
        json!({ "net": [{ "id": "a" }], "rate_limit_groups": [{ "id": "a", "rate_limiter_config": {} }] }),
        json!({ "devices": [{ "path": "/sys/a" }, { "path": "/sys/a" }] }),
    ] {
        assert_eq!(refused(twice.clone()).1, ErrorClass::Conflict, "{twice}");
    }
}

#[test]
fn what_is_invalid_is_named() {
    let disk = |disk: Value| json!({ "disks": [disk] });
    let net = |net: Value| json!({ "net": [net] });
    let cpus = |cpus: Value| json!({ "cpus": cpus });
    let node = |node: Value| json!({ "numa": [node] });
    for (value, expected) in [
        (cpus(json!({ "boot_vcpus": 0, "max_vcpus": 0 })), "at least 1 vCPU"),
        (cpus(json!({ "boot_vcpus": 3, "max_vcpus": 2 })), "3 vCPUs"),
        (cpus(json!({ "boot_vcpus": 1, "max_vcpus": 100_000 })), "100000 vCPUs"),
        (cpus(json!({ "boot_vcpus": 1, "max_vcpus": 1, "hide": ["avx9"] })), "avx9"),
        (
            cpus(json!({ "boot_vcpus": 4, "max_vcpus": 4, "topology": { "threads_per_core": 4,
                "cores_per_die": 1, "dies_per_package": 1, "packages": 1 } })),
            "4 threads of a core",
        ),
        (
            cpus(json!({ "boot_vcpus": 4, "max_vcpus": 4, "topology": { "threads_per_core": 1,
                "cores_per_die": 1, "dies_per_package": 0, "packages": 1 } })),
            "a part that is 0",
        ),
        (
            cpus(json!({ "boot_vcpus": 4, "max_vcpus": 4, "topology": { "threads_per_core": 1,
                "cores_per_die": 2, "dies_per_package": 1, "packages": 1 } })),
            "2 vCPUs does not fit 4",
        ),
        (
            cpus(json!({ "boot_vcpus": 1, "max_vcpus": 1, "affinity": [{ "vcpu": 1, "host_cpus": [0] }] })),
            "affinity of vCPU 1",
        ),
        (disk(json!({})), "_disk0: a disk needs a path"),
        (disk(json!({ "path": "/d", "id": "__d" })), "__d"),
        (disk(json!({ "path": "/d", "id": "" })), "an id is empty"),
        (disk(json!({ "path": "/d", "vhost_socket": "/s" })), "exclude each other"),
        (disk(json!({ "path": "/d", "num_queues": 2 })), "_disk0: num_queues 2"),
        (disk(json!({ "path": "/d", "num_queues": 0 })), "_disk0: num_queues 0"),
        (disk(json!({ "path": "/d", "num_queues": 65537 })), "_disk0: num_queues 65537"),
        (disk(json!({ "path": "/d", "queue_size": 100 })), "_disk0: queue_size 100"),
        (disk(json!({ "path": "/d", "queue_size": 2 })), "_disk0: queue_size 2"),
        (disk(json!({ "path": "/d", "serial": "123456789012345678901" })), "serial"),
        (disk(json!({ "path": "/d", "rate_limit_group": "g" })), "rate_limit_group g"),
        (disk(json!({ "path": "/d", "pci_segment": 1 })), "pci_segment 1"),
        (disk(json!({ "path": "/d", "pci_device_id": 32 })), "pci_device_id 32"),
        (disk(json!({ "path": "/d", "pci_device_id": 0 })), "pci_device_id 0"),
        (
            disk(json!({ "path": "/d", "queue_affinity": [{ "queue_index": 1, "host_cpus": [0] }] })),
            "queue_affinity of queue 1",
        ),
        (net(json!({ "ip": "10.0.0.1" })), "_net0: ip needs a mask"),
        (net(json!({ "mask": "255.0.0.0" })), "_net0: mask needs an ip"),
        (net(json!({ "ip": "10.0.0.1", "mask": "ff::" })), "families"),
        (net(json!({ "num_queues": 1 })), "num_queues 1"),
        (net(json!({ "num_queues": 3 })), "num_queues 3"),
        (net(json!({ "num_queues": 4 })), "2 queue pairs"),
        (net(json!({ "mtu": 1279 })), "mtu 1279"),
        (net(json!({ "tap": "a-name-that-is-too-long" })), "a-name-that-is-too-long"),
        (net(json!({ "offload_csum": false })), "offload_csum"),
        (json!({ "serial": { "mode": "File" } }), "serial: mode File needs a file"),
        (json!({ "serial": { "mode": "Socket" } }), "serial: mode Socket needs a socket"),
        (json!({ "platform": { "num_pci_segments": 0 } }), "0 PCI segments"),
        (json!({ "platform": { "num_pci_segments": 97 } }), "97 PCI segments"),
        (json!({ "platform": { "iommu_address_width_bits": 65 } }), "iommu_address_width_bits 65"),
        (json!({ "platform": { "system_uuid": "x" } }), "system_uuid"),
        (json!({ "pci_segments": [{ "pci_segment": 1 }] }), "pci_segment 1, of 1"),
        (json!({ "pci_segments": [{ "mmio32_aperture_weight": 0 }] }), "weight is 0"),
        (json!({ "rate_limit_groups": [{ "id": "g", "rate_limiter_config": {} }] }), "g: a rate limit"),
        (json!({ "memory": { "size": 4096, "hugepage_size": 4096 } }), "needs hugepages"),
        (json!({ "memory": { "size": 4096, "shared": true, "mergeable": true } }), "mergeable"),
        (node(json!({ "guest_numa_id": 0, "cpus": [1] })), "cpus 1, of 1"),
        (node(json!({ "guest_numa_id": 0, "memory_zones": ["x"] })), "memory_zones x"),
        (node(json!({ "guest_numa_id": 1, "cpus": [0], "pci_segments": [0] })), "node 0 only"),
        (
            node(json!({ "guest_numa_id": 0, "cpus": [0],
                "distances": [{ "destination": 9, "distance": 20 }] })),
            "to node 9",
        ),
        (
            node(json!({ "guest_numa_id": 0, "cpus": [0],
                "distances": [{ "destination": 0, "distance": 20 }] })),
            "distance 20 to node 0",
        ),
    ] {
        let (message, class) = refused(value.clone());
        assert!(message.contains(expected), "{value}: {message}");
        assert_eq!(class, ErrorClass::Invalid, "{value}: {message}");
    }
}

#[test]
fn what_clients_learn_of_at_boot() {
    let zone = |zone: Value| json!({ "memory": { "size": 0, "zones": [zone] } });
    for value in [
        json!({ "memory": { "size": 0 } }),
        json!({ "memory": { "size": 4097 } }),
        json!({ "memory": { "size": 4096, "zones": [{ "id": "a", "size": 4096 }] } }),
        json!({ "memory": { "size": 4096, "hotplug_size": 0 } }),
        json!({ "memory": { "size": 4096, "hotplugged_size": 0 } }),
        json!({ "memory": { "size": 4096, "hotplug_size": 4096, "hotplugged_size": 0 } }),
        zone(json!({ "id": "a", "size": 0 })),
        zone(json!({ "id": "a", "size": 4096, "hotplug_size": 4096 })),
        zone(json!({ "id": "a", "size": 4096, "file": "/f", "shared": true, "host_numa_node": 0 })),
        json!({ "console": { "mode": "Socket", "socket": "/s" } }),
    ] {
        assert_eq!(refused(value.clone()).1, ErrorClass::Build, "{value}");
    }
}

#[test]
fn what_this_version_lacks_is_refused_by_name() {
    for (value, expected) in [
        (json!({ "balloon": { "size": 0 } }), "balloon: this version has no memory balloon"),
        (json!({ "vsock": { "cid": 3, "socket": "/s" } }), "virtio socket device"),
        (json!({ "fs": [{ "tag": "t", "socket": "/s" }] }), "virtio-fs"),
        (json!({ "pmem": [{ "file": "/f" }] }), "persistent memory"),
        (json!({ "devices": [{ "path": "/d" }] }), "VFIO"),
        (json!({ "watchdog": true }), "watchdog"),
        (json!({ "iommu": true }), "virtual IOMMU"),
        (json!({ "rng": { "src": "/r", "iommu": true } }), "virtual IOMMU"),
        (json!({ "platform": { "iommu_segments": [0] } }), "virtual IOMMU"),
        (json!({ "platform": { "sev_snp": true } }), "confidential guests"),
        (json!({ "landlock_enable": true }), "Landlock"),
        (json!({ "debug_console": { "mode": "Tty" } }), "debug console"),
        (
            json!({ "disks": [{ "path": "/d", "image_type": "Qcow2" }] }),
            "disk 0: image_type: this version has no",
        ),
        (json!({ "disks": [{ "vhost_user": true, "vhost_socket": "/s" }] }), "vhost-user"),
        (json!({ "net": [{ "vhost_user": true, "vhost_socket": "/s" }] }), "vhost-user"),
        (
            json!({ "memory": { "size": 4096, "hotplug_method": "VirtioMem", "hotplug_size": 4096,
                "hotplugged_size": 4096 } }),
            "virtio-mem",
        ),
        (json!({ "cpus": { "boot_vcpus": 1, "max_vcpus": 1, "kvm_hyperv": true } }), "Hyper-V"),
        (json!({ "numa": [{ "guest_numa_id": 0, "device_id": "d" }] }), "NUMA node of a device"),
    ] {
        let (message, class) = refused(value.clone());
        assert!(message.contains(expected), "{value}: {message}");
        assert_eq!(class, ErrorClass::Absent, "{value}: {message}");
    }
    // An empty list asks for nothing, and a device that is off is none.
    let config = resolve(json!({ "fs": [], "devices": [], "console": { "mode": "Off" } })).unwrap();
    assert_eq!(ids(&config), ["__rng"]);
}

#[test]
fn an_iommu_that_a_device_asks_for_is_written_down() {
    let mut said = said(json!({ "disks": [{ "path": "/d", "iommu": true }] }));
    VmConfig::from_wire(&mut said, &mut IdCounter::default()).unwrap_err();
    assert!(said.iommu);
}
