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

/// With memory that another process can map.
fn shared(mut value: Value) -> Value {
    value["memory"] = json!({ "size": 512 << 20, "shared": true });
    value
}

/// What is said is a mistake, as clients see it at once, though there is no machinery for what is right.
fn invalid(value: Value, expected: &str) {
    let (message, class) = refused(value.clone());
    assert!(message.contains(expected), "{value}: {message}");
    assert_eq!(class, ErrorClass::Invalid, "{value}: {message}");
}

/// What is said is no mistake.
fn merely_absent(value: Value) {
    let (message, class) = refused(value.clone());
    assert_eq!(class, ErrorClass::Absent, "{value}: {message}");
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
        (net(json!({ "mac": "2f:00:00:00:00:01" })), "_net0: mac 2f:00:00:00:00:01: the address of a group"),
        (net(json!({ "mac": "00:00:00:00:00:00" })), "_net0: mac 00:00:00:00:00:00: no station's"),
        (
            net(json!({ "host_mac": "ff:ff:ff:ff:ff:ff" })),
            "_net0: host_mac ff:ff:ff:ff:ff:ff: the address of a group",
        ),
        (net(json!({ "host_mac": "00:00:00:00:00:00" })), "_net0: host_mac 00:00:00:00:00:00: no station's"),
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
        (shared(json!({ "fs": [{ "tag": "t", "socket": "/s" }] })), "virtio-fs"),
        (json!({ "devices": [{ "path": "/d" }] }), "VFIO"),
        (json!({ "watchdog": true }), "watchdog"),
        (json!({ "iommu": true }), "virtual IOMMU"),
        (json!({ "rng": { "src": "/r", "iommu": true } }), "virtual IOMMU"),
        (json!({ "platform": { "num_pci_segments": 2, "iommu_segments": [1] } }), "virtual IOMMU"),
        (json!({ "platform": { "sev_snp": true } }), "confidential guests"),
        (json!({ "landlock_enable": true }), "Landlock"),
        (json!({ "debug_console": { "mode": "Tty" } }), "debug console"),
        (
            json!({ "disks": [{ "path": "/d", "image_type": "Qcow2" }] }),
            "_disk0: image_type: this version has no",
        ),
        (shared(json!({ "disks": [{ "vhost_user": true, "vhost_socket": "/s" }] })), "_disk0: vhost_user"),
        (shared(json!({ "net": [{ "vhost_user": true, "vhost_socket": "/s" }] })), "_net0: vhost_user"),
        (shared(json!({ "user_devices": [{ "socket": "/s" }] })), "vfio-user"),
        (
            shared(
                json!({ "generic_vhost_user": [{ "socket": "/s", "queue_sizes": [64], "device_type": 26 }] }),
            ),
            "vhost-user",
        ),
        (json!({ "vdpa": [{ "path": "/dev/vhost-vdpa-0" }] }), "vDPA"),
        (json!({ "tpm": { "socket": "/s" } }), "TPM"),
        (json!({ "rtc": {} }), "virtio clock"),
        (json!({ "payload": { "igvm": "/i" } }), "IGVM"),
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

#[test]
fn persistent_memory_has_whole_huge_pages() {
    let config = resolve(json!({ "pmem": [
        { "file": "/a", "pci_device_id": 9 },
        { "id": "b", "file": "/b", "size": 4u64 << 20, "discard_writes": true },
    ] }))
    .unwrap();
    assert_eq!(ids(&config), ["__console", "__rng", "_pmem0", "b"]);
    let [.., DeviceConfig::Pmem(a), DeviceConfig::Pmem(b)] = &config.devices[..] else {
        panic!("{config:?}")
    };
    assert_eq!((a.file.to_str(), a.size, a.discard_writes, a.place.slot), (Some("/a"), None, false, Some(9)));
    assert_eq!((b.file.to_str(), b.size, b.discard_writes), (Some("/b"), Some(4 << 20), true));
    for size in [0, 4096, (2 << 20) + 1, u64::MAX] {
        let (message, class) = refused(json!({ "pmem": [{ "file": "/f", "size": size }] }));
        assert_eq!(message, format!("_pmem0: size {size}: a multiple of 2 MiB above 0"));
        assert_eq!(class, ErrorClass::Invalid);
    }
}

/// Every kind of PCI device, with what it needs, in a machine where it could be.
fn any_device(common: &Value) -> Vec<(&'static str, Value)> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let listed = [
        ("_disk0", "disks", json!({ "path": "/d" })),
        ("_net0", "net", json!({})),
        (
            "_generic_vhost_user0",
            "generic_vhost_user",
            json!({ "socket": "/s", "queue_sizes": [64], "device_type": 1 }),
        ),
        ("_fs0", "fs", json!({ "tag": "t", "socket": "/s" })),
        ("_pmem0", "pmem", json!({ "file": "/f" })),
        ("_vdpa0", "vdpa", json!({ "path": "/v" })),
        ("_vfio0", "devices", json!({ "path": "/p" })),
        ("_vfio_user0", "user_devices", json!({ "socket": "/s" })),
    ];
    let single = [
        ("__console", "console", json!({ "mode": "Null" })),
        ("__rng", "rng", json!({ "src": "/r" })),
        ("__balloon", "balloon", json!({ "size": 0 })),
        ("__rtc", "rtc", json!({})),
        ("_vsock0", "vsock", json!({ "cid": 3, "socket": "/s" })),
        ("__ivshmem", "ivshmem", json!({ "path": file, "size": 64 })),
    ];
    let with = |mut device: Value| {
        for (key, value) in common.as_object().unwrap() {
            device[key] = value.clone();
        }
        device
    };
    let listed = listed.into_iter().map(|(id, kind, device)| (id, shared(json!({ kind: [with(device)] }))));
    let single = single.into_iter().map(|(id, kind, device)| (id, shared(json!({ kind: with(device) }))));
    listed.chain(single).collect()
}

#[test]
fn every_device_has_a_place_that_there_is() {
    for (common, expected) in [
        (json!({ "pci_segment": 1 }), "pci_segment 1 of 1"),
        (json!({ "pci_device_id": 32 }), "pci_device_id 32"),
        (json!({ "pci_device_id": 0 }), "pci_device_id 0 is the host bridge's"),
    ] {
        for (id, value) in any_device(&common) {
            invalid(value, &format!("{id}: {expected}"));
        }
    }
    for (_, mut value) in any_device(&json!({ "pci_segment": 1, "pci_device_id": 0 })) {
        value["platform"] = json!({ "num_pci_segments": 2 });
        assert!(refused_as_mistake(value.clone()).is_none(), "{value}");
    }
}

/// Why something is a mistake, if it is one.
fn refused_as_mistake(value: Value) -> Option<String> {
    let error = resolve(value).err()?;
    (error.class() != ErrorClass::Absent).then(|| crate::error::chain(&error))
}

#[test]
fn only_devices_that_the_iommu_can_translate_for_are_behind_it() {
    let cannot = ["_generic_vhost_user0", "_fs0", "_vfio_user0", "__ivshmem"];
    for (id, value) in any_device(&json!({ "iommu": true })) {
        if cannot.contains(&id) {
            invalid(value, &format!("{id}: iommu: a device of this kind cannot be behind"));
        } else {
            merely_absent(value);
        }
    }
    let behind = json!({ "vhost_user": true, "vhost_socket": "/s", "iommu": true });
    invalid(shared(json!({ "disks": [behind] })), "_disk0: iommu");
    invalid(shared(json!({ "net": [behind] })), "_net0: iommu");
}

#[test]
fn a_segment_behind_the_iommu_has_only_devices_behind_it() {
    let platform = json!({ "num_pci_segments": 2, "iommu_segments": [1] });
    invalid(
        json!({ "platform": { "num_pci_segments": 2, "iommu_segments": [0, 2] } }),
        "iommu_segments 2, of 2",
    );
    for (id, mut value) in any_device(&json!({ "pci_segment": 1 })) {
        value["platform"] = platform.clone();
        invalid(value, &format!("{id}: pci_segment 1 is one of iommu_segments: it needs iommu"));
    }
    merely_absent(
        json!({ "platform": platform, "disks": [{ "path": "/d", "pci_segment": 1, "iommu": true }] }),
    );
    // Those on other segments need not be, and what is off is nowhere.
    let off = json!({ "mode": "Off" });
    let rng = json!({ "src": "/r", "iommu": true });
    merely_absent(json!({ "platform": { "iommu_segments": [0] }, "console": off, "rng": rng }));
    merely_absent(json!({ "platform": platform, "disks": [{ "path": "/d" }] }));
}

#[test]
fn an_iommufd_needs_that_it_is_used() {
    invalid(json!({ "platform": { "iommufd_fd": 3 } }), "iommufd_fd needs iommufd");
    merely_absent(json!({ "platform": { "iommufd_fd": 3, "iommufd": true } }));
}

#[test]
fn a_balloon_is_smaller_than_memory() {
    let balloon = |size: u64| json!({ "memory": { "size": 1 << 20 }, "balloon": { "size": size } });
    merely_absent(balloon((1 << 20) - 1));
    invalid(balloon(1 << 20), "__balloon: size 1048576: less than the 1048576 bytes of memory");
    let zones =
        json!({ "size": 0, "zones": [{ "id": "a", "size": 1 << 20 }, { "id": "b", "size": 1 << 20 }] });
    merely_absent(json!({ "memory": zones, "balloon": { "size": 1 << 20 } }));
    invalid(json!({ "memory": zones, "balloon": { "size": 2 << 20 } }), "less than the 2097152 bytes");
}

#[test]
fn shared_file_systems() {
    let fs = |more: Value| {
        let mut fs = json!({ "tag": "t", "socket": "/s" });
        fs.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
        shared(json!({ "cpus": { "boot_vcpus": 2, "max_vcpus": 2 }, "fs": [fs] }))
    };
    merely_absent(fs(json!({ "num_queues": 2, "queue_size": 64, "tag": "t".repeat(36) })));
    invalid(fs(json!({ "tag": "t".repeat(37) })), "_fs0: tag of 37 bytes: 36 at most");
    invalid(fs(json!({ "num_queues": 0 })), "_fs0: num_queues 0");
    invalid(fs(json!({ "num_queues": 3 })), "_fs0: num_queues 3: 1 to the number of vCPUs (2)");
    invalid(fs(json!({ "num_queues": u64::MAX })), "_fs0: num_queues 18446744073709551615");
    invalid(fs(json!({ "queue_size": 3 })), "_fs0: queue_size 3: a power of two");
    invalid(fs(json!({ "queue_size": 0 })), "_fs0: queue_size 0: a power of two");
}

#[test]
fn back_ends_need_memory_that_they_can_map() {
    let zones = |second: Value| json!({ "size": 0, "zones": [{ "id": "a", "size": 1 << 21, "shared": true }, second] });
    for device in [
        json!({ "fs": [{ "tag": "t", "socket": "/s" }] }),
        json!({ "user_devices": [{ "socket": "/s" }] }),
        json!({ "generic_vhost_user": [{ "socket": "/s", "queue_sizes": [64], "device_type": 26 }] }),
        json!({ "disks": [{ "vhost_user": true, "vhost_socket": "/s" }] }),
        json!({ "net": [{ "vhost_user": true, "vhost_socket": "/s" }] }),
    ] {
        let on = |memory: Value| {
            let mut value = device.clone();
            value["memory"] = memory;
            value
        };
        invalid(device.clone(), "0: its back end needs the guest's memory");
        invalid(on(zones(json!({ "id": "b", "size": 1 << 21 }))), "0: its back end needs the guest's memory");
        merely_absent(on(json!({ "size": 1 << 21, "shared": true })));
        merely_absent(on(json!({ "size": 1 << 21, "hugepages": true })));
        merely_absent(on(zones(json!({ "id": "b", "size": 1 << 21, "hugepages": true }))));
    }
}

#[test]
fn disks_and_nets_on_back_ends_follow_the_rules_of_all_and_some_more() {
    let limit = json!({ "ops": { "size": 1, "refill_time": 1 } });
    let device = |more: Value| {
        let mut device = json!({ "vhost_user": true, "vhost_socket": "/s" });
        for (key, value) in more.as_object().unwrap() {
            device[key] = value.clone();
        }
        device
    };
    let disk = |more: Value| shared(json!({ "disks": [device(more)] }));
    let net = |more: Value| shared(json!({ "net": [device(more)] }));
    invalid(disk(json!({ "vhost_socket": null })), "_disk0: vhost_user needs a vhost_socket");
    invalid(disk(json!({ "vhost_socket": null, "path": "/d" })), "_disk0: vhost_user needs a vhost_socket");
    invalid(disk(json!({ "path": "/d" })), "_disk0: path and vhost_socket exclude each other");
    invalid(disk(json!({ "rate_limiter_config": limit })), "_disk0: vhost_user and a rate limit");
    invalid(disk(json!({ "rate_limit_group": "g" })), "_disk0: vhost_user and a rate limit");
    invalid(disk(json!({ "num_queues": 2 })), "_disk0: num_queues 2");
    invalid(disk(json!({ "queue_size": 3 })), "_disk0: queue_size 3");
    invalid(net(json!({ "vhost_socket": null })), "_net0: vhost_user needs a vhost_socket");
    invalid(net(json!({ "rate_limiter_config": limit })), "_net0: vhost_user and a rate limit");
    invalid(net(json!({ "num_queues": 3 })), "_net0: num_queues 3");
    invalid(net(json!({ "num_queues": 4 })), "_net0: 2 queue pairs");
    invalid(net(json!({ "queue_size": 3 })), "_net0: queue_size 3");
    invalid(net(json!({ "mtu": 1 })), "_net0: mtu 1");
    invalid(json!({ "disks": [{ "vhost_socket": "/s" }] }), "_disk0: vhost_socket needs vhost_user");
    invalid(json!({ "net": [{ "vhost_socket": "/s" }] }), "_net0: vhost_socket needs vhost_user");
}

#[test]
fn devices_of_the_host() {
    let device = |device: Value, platform: Value| json!({ "devices": [device], "platform": platform });
    merely_absent(device(
        json!({ "path": "/p/", "x_nv_gpudirect_clique": 1, "x_exclude_mmap_bars": [0, 5] }),
        json!({}),
    ));
    invalid(device(json!({}), json!({})), "_vfio0: a device of the host needs a path or fd");
    invalid(device(json!({ "fd": 3 }), json!({ "iommufd": true })), "_vfio0: fd needs platform: iommufd_fd");
    let iommufd = json!({ "iommufd": true, "iommufd_fd": 4 });
    merely_absent(device(json!({ "fd": 3 }), iommufd.clone()));
    invalid(device(json!({ "fd": 3, "path": "/p" }), iommufd), "_vfio0: path and fd exclude each other");
    invalid(
        device(json!({ "path": "/p", "x_nv_gpudirect_clique": 1 }), json!({ "vfio_p2p_dma": false })),
        "_vfio0: x_nv_gpudirect_clique needs platform: vfio_p2p_dma",
    );
    invalid(
        device(json!({ "path": "/p", "x_exclude_mmap_bars": [6] }), json!({})),
        "_vfio0: x_exclude_mmap_bars 6",
    );
    let twice = json!({ "devices": [{ "path": "/sys/a" }, { "path": "/sys/a/" }] });
    assert_eq!(refused(twice).1, ErrorClass::Conflict, "a slash at the end makes no other device");
}

#[test]
fn context_ids() {
    let vsock = |cid: u32| json!({ "vsock": { "cid": cid, "socket": "/s" } });
    for cid in [0, 1, 2, u32::MAX] {
        invalid(vsock(cid), &format!("_vsock0: cid {cid}: it is reserved"));
    }
    for cid in [3, u32::MAX - 1] {
        let config = resolve(vsock(cid)).unwrap();
        assert_eq!(ids(&config), ["__console", "__rng", "_vsock0"]);
        let Some(DeviceConfig::Vsock(vsock)) = config.devices.last() else { panic!("{config:?}") };
        assert_eq!((vsock.cid, vsock.socket.to_str()), (cid, Some("/s")));
    }
    let named = |socket: &str| json!({ "vsock": { "cid": 3, "socket": socket } });
    resolve(named(&"s".repeat(107))).unwrap();
    invalid(named(&"s".repeat(108)), "108 bytes, at most 107");
    invalid(named("a\0b"), "none of them 0");
    invalid(named(""), "_vsock0: socket: it is empty");
}

#[test]
fn memory_that_is_shared_between_machines_is_there() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let memory = |size: u64| json!({ "ivshmem": { "path": file.path(), "size": size } });
    merely_absent(memory(4096));
    invalid(memory(4095), "__ivshmem: size 4095: a power of two");
    invalid(memory(0), "__ivshmem: size 0: a power of two");
    invalid(memory(8192), "4096 bytes of 8192");
    invalid(
        json!({ "ivshmem": { "path": "/nowhere", "size": 4096 } }),
        "__ivshmem: path /nowhere: No such file",
    );
}

#[test]
fn a_node_is_a_device_or_has_processors_and_memory() {
    let node = |node: Value| json!({ "numa": [node] });
    merely_absent(node(json!({ "guest_numa_id": 0, "device_id": "d" })));
    for more in [json!({ "cpus": [0] }), json!({ "memory_zones": ["mem0"] })] {
        let mut value = json!({ "guest_numa_id": 0, "device_id": "d" });
        value.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
        invalid(node(value), "guest_numa_id 0: device_id excludes cpus and memory_zones");
    }
    // Beside a node of a device, the rules of the others hold.
    let beside = |other: Value| json!({ "numa": [{ "guest_numa_id": 1, "device_id": "d" }, other] });
    merely_absent(beside(json!({ "guest_numa_id": 0, "cpus": [0], "memory_zones": ["mem0"],
        "distances": [{ "destination": 1, "distance": 30 }] })));
    invalid(beside(json!({ "guest_numa_id": 0, "cpus": [7], "memory_zones": ["mem0"] })), "cpus 7, of 1");
}

#[test]
fn what_landlock_shall_let_through_is_there() {
    let rule = |path: &str, access: &str| json!({ "landlock_rules": [{ "path": path, "access": access }] });
    for access in ["r", "w", "rw", "wr"] {
        assert!(resolve(rule("/", access)).is_ok(), "{access}");
    }
    for access in ["", "x", "rx", "R"] {
        invalid(rule("/", access), &format!("access {access:?}: letters out of r and w"));
    }
    invalid(rule("/nowhere", "r"), "landlock_rules: path /nowhere: there is no such file");
}

#[test]
fn payloads_without_machinery() {
    let payload = |value: Value| json!({ "payload": value });
    invalid(payload(json!({ "igvm": "/i", "firmware": "/f" })), "igvm and firmware exclude each other");
    merely_absent(payload(json!({ "igvm": "/i", "host_data": "0aF".repeat(21) + "0" })));
    for data in ["0".repeat(63), "0".repeat(65), "g".repeat(64), String::new()] {
        invalid(payload(json!({ "igvm": "/i", "host_data": data })), "64 hexadecimal digits");
    }
    let offered = |config: Value| payload(json!({ "kernel": "/k", "cmdline": "c", "fw_cfg_config": config }));
    invalid(offered(json!({})), "fw_cfg_config: initramfs is on, and there is none");
    merely_absent(offered(json!({ "initramfs": false })));
    let item = |item: Value| offered(json!({ "initramfs": false, "items": { "item_list": [item] } }));
    merely_absent(item(json!({ "name": "n", "string": "s" })));
    invalid(item(json!({ "name": "n" })), "item \"n\" needs either a file or a string");
    invalid(item(json!({ "name": "n", "file": "/f", "string": "s" })), "item \"n\" needs either");
    for (without, missing) in [("kernel", "kernel"), ("cmdline", "cmdline")] {
        let mut value = json!({ "kernel": "/k", "cmdline": "c", "fw_cfg_config": { "initramfs": false } });
        value.as_object_mut().unwrap().remove(without);
        if without == "kernel" {
            value["firmware"] = json!("/f");
        }
        invalid(payload(value), &format!("fw_cfg_config: {missing} is on"));
    }
}

#[test]
fn a_debug_console_in_a_file_names_it() {
    invalid(json!({ "debug_console": { "mode": "File" } }), "debug_console: mode File needs a file");
    merely_absent(json!({ "debug_console": { "mode": "File", "file": "/f" } }));
}
