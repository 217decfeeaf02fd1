//! What clients rely on, by example.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::*;

/// `vm.info` of a VM that was created from `{}`, as a client received it.
const EMPTY_VM: &str = r#"{"config":{"cpus":{"boot_vcpus":1,"max_vcpus":1,"kvm_hyperv":false,"max_phys_bits":46,"features":{"amx":false},"nested":true,"core_scheduling":"Vm","profile":"Host"},"memory":{"size":536870912,"mergeable":false,"hotplug_method":"Acpi","shared":false,"hugepages":false,"prefault":false,"reserve":false,"thp":true},"rng":{"pci_segment":0,"src":"/dev/urandom"},"serial":{"mode":"Null"},"console":{"mode":"Tty","pci_segment":0},"debug_console":{"mode":"Off","iobase":233},"pvpanic":false,"iommu":false,"watchdog":false,"landlock_enable":false},"state":"Created","memory_actual_size":536870912}"#;

/// What the document says of an object, followed to the end of its references.
fn described<'doc>(document: &'doc Value, schema: &'doc Value) -> &'doc Value {
    match (schema.get("$ref"), schema.get("anyOf")) {
        (Some(name), _) => {
            let place = name.as_str().unwrap().strip_prefix('#').unwrap();
            let schema = document.pointer(place);
            described(document, schema.unwrap_or_else(|| panic!("{place} is not there")))
        }
        (None, Some(choices)) => described(document, &choices[0]),
        (None, None) => schema,
    }
}

/// Checks that every member of `value` is described, and of the type that it has.
fn check_described(document: &Value, schema: &Value, value: &Value, place: &str) {
    let schema = described(document, schema);
    let types = match &schema["type"] {
        Value::Array(types) => types.clone(),
        one => vec![one.clone()],
    };
    let kind = match value {
        // What may be null is a choice that was followed above.
        Value::Null => return,
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    assert!(types.contains(&kind.into()), "{place}: {kind}, not {types:?}");
    if let (Some(names), Some(name)) = (schema["enum"].as_array(), value.as_str()) {
        assert!(names.contains(&name.into()), "{place}: {name} is not described");
    }
    for (index, member) in value.as_array().into_iter().flatten().enumerate() {
        check_described(document, &schema["items"], member, &format!("{place}.{index}"));
    }
    for (name, member) in value.as_object().into_iter().flatten() {
        if let Some(properties) = schema.get("properties") {
            assert!(properties.get(name).is_some(), "{place}.{name} is not described");
            check_described(document, &properties[name], member, &format!("{place}.{name}"));
        }
    }
}

#[test]
fn the_document_describes_a_configuration_with_every_member() {
    let document: Value = serde_json::from_str(crate::OPENAPI).unwrap();
    let schema = json!({ "$ref": "#/components/schemas/VmConfig" });
    let everything: Value = serde_json::from_str(EVERYTHING).unwrap();
    check_described(&document, &schema, &everything, "VmConfig");
    // And nothing that is not there.
    let members = document["components"]["schemas"]["VmConfig"]["properties"].as_object().unwrap();
    for name in members.keys() {
        assert!(everything.get(name).is_some(), "{name} is described and does not exist");
    }
}

#[test]
fn everything_that_the_document_refers_to_is_there() {
    fn walk(document: &Value, value: &Value) {
        if value.get("$ref").is_some() {
            described(document, value);
        }
        value.as_array().into_iter().flatten().for_each(|member| walk(document, member));
        value.as_object().into_iter().flatten().for_each(|(_, member)| walk(document, member));
    }
    let document: Value = serde_json::from_str(crate::OPENAPI).unwrap();
    walk(&document, &document);
}

#[test]
fn reports_are_described_and_come_back_as_they_were() {
    let phases = json!([{ "name": "commit", "start_ns": 1, "ns": 2 }]);
    let fill = json!({
        "background_fill": "all", "bytes_per_second": 5, "working_set_ignored": "why", "record_working_set_ms": 6,
        "read_ahead": [{ "zone": "mem0", "before_bytes": 7, "background_bytes": 8 }],
    });
    let memory = json!([{ "zone": "mem0", "mode": "cow", "why": "is shared", "copied_bytes": 9 }]);
    let mut commit = json!({
        "sequence": 1, "label": "restore", "routing_entries": 2, "dispatch_entries": 3, "doorbells_late": 4,
        "staging_ns": 5, "diff_ns": 6, "total_ns": 8,
    });
    let mut totals = json!({ "commits": 1, "failed": 2, "routing_entries": 3, "total_ns": 4 });
    let kinds = [
        "slots_removed",
        "slots_added",
        "slot_flags",
        "irqfds_removed",
        "doorbells_removed",
        "routing_writes",
        "irqfds_added",
        "doorbells_added",
        "published",
        "listeners",
    ];
    for (count, kind) in kinds.into_iter().enumerate() {
        commit[kind] = json!({ "count": count, "ns": 1 });
        totals[kind] = json!({ "count": count, "ns": 1 });
    }
    let restored = json!({
        "directory": "/s", "memory": memory, "memory_bytes": 1, "verified": "state", "lazily_checked": true,
        "fill": fill, "new_generation": true, "edited": ["a"], "overridden": ["b"],
        "made_taps": [{ "id": "n", "tap": "t" }], "phases": phases,
        "total_ns": 2, "running": true, "commit": commit, "totals": totals,
    });
    let tried = json!({
        "directory": "/s", "memory": memory, "memory_bytes": 1, "verified": "full", "fill": fill,
        "edited": ["a"], "overridden": ["b"], "made_taps": [{ "id": "n", "tap": null }],
        "net_fds": [{ "id": "m", "num_fds": 2 }], "vcpus": 2, "devices": ["_disk0"],
    });
    let saved = json!({
        "directory": "/s", "root": 1, "memory_bytes": 2, "tracking": true, "phases": phases, "total_ns": 3,
        "difference": {
            "parent": "/p", "parent_root": 4, "changed_bytes": 5, "ways": [{ "zone": "mem0", "way": "tracked" }],
        },
    });
    fn comes_back<T: Serialize + DeserializeOwned>(name: &str, whole: &Value) -> T {
        let document: Value = serde_json::from_str(crate::OPENAPI).unwrap();
        let schema = json!({ "$ref": format!("#/components/schemas/{name}") });
        check_described(&document, &schema, whole, name);
        let members = document["components"]["schemas"][name]["properties"].as_object().unwrap();
        assert!(members.keys().eq(whole.as_object().unwrap().keys()), "{members:?}");
        let read: T = serde_json::from_value(whole.clone()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), *whole);
        read
    }
    let report: RestoreReport = comes_back("RestoreReport", &restored);
    // 0 to 7; publishing and telling listeners are no calls.
    assert_eq!(report.commit.operations.kernel_calls(), 28);
    comes_back::<RestoreRehearsal>("RestoreRehearsal", &tried);
    comes_back::<SaveReport>("SaveReport", &saved);
    // What an older server does not tell.
    let mut older = restored;
    for name in ["lazily_checked", "fill", "made_taps"] {
        older.as_object_mut().unwrap().remove(name);
    }
    let report: RestoreReport = serde_json::from_value(older).unwrap();
    assert_eq!((report.lazily_checked, report.fill), (false, FillReport::default()));
}

/// A configuration with every member, none of them as it would be without being given.
const EVERYTHING: &str = r#"{
    "cpus": { "boot_vcpus": 2, "max_vcpus": 4, "kvm_hyperv": true, "max_phys_bits": 39, "nested": false,
        "topology": { "threads_per_core": 2, "cores_per_die": 2, "dies_per_package": 1, "packages": 1 },
        "affinity": [{ "vcpu": 0, "host_cpus": [0, 2] }], "features": { "amx": true },
        "core_scheduling": "Vcpu", "profile": "Host", "hide": ["avx2"] },
    "memory": { "size": 0, "mergeable": true, "hotplug_method": "VirtioMem", "hotplug_size": 1,
        "hotplugged_size": 1, "shared": true, "hugepages": true, "hugepage_size": 2097152,
        "prefault": true, "reserve": true, "thp": false,
        "zones": [{ "id": "m0", "size": 4096, "file": "/f", "shared": true, "hugepages": true,
            "hugepage_size": 4096, "host_numa_node": 1, "hotplug_size": 1, "hotplugged_size": 0,
            "prefault": true, "reserve": true, "mergeable": true }] },
    "payload": { "firmware": "/fw", "kernel": "/k", "cmdline": "c", "initramfs": "/i", "igvm": "/g",
        "host_data": "00", "fw_cfg_config": { "e820": false, "kernel": true, "cmdline": false,
            "initramfs": true, "acpi_tables": false,
            "items": { "item_list": [{ "name": "n", "file": "/f" }, { "name": "m", "string": "s" }] } } },
    "rate_limit_groups": [{ "id": "g", "rate_limiter_config": {
        "bandwidth": { "size": 1, "one_time_burst": 2, "refill_time": 3 }, "ops": null } }],
    "disks": [{ "id": "d", "iommu": true, "pci_segment": 1, "pci_device_id": 5, "path": "/d",
        "readonly": true, "direct": true, "num_queues": 2, "queue_size": 64, "vhost_user": true,
        "vhost_socket": "/s", "rate_limit_group": "g", "serial": "x", "backing_files": true,
        "rate_limiter_config": { "bandwidth": null,
            "ops": { "size": 1, "one_time_burst": null, "refill_time": 3 } },
        "queue_affinity": [{ "queue_index": 1, "host_cpus": [3] }], "sparse": false,
        "image_type": "FixedVhd", "lock_granularity": "Full", "packed": false, "disable_io_uring": true,
        "disable_aio": true }],
    "net": [{ "id": "n", "iommu": true, "pci_segment": 1, "pci_device_id": 6, "tap": "t",
        "ip": "192.168.249.1", "mask": "255.255.255.0", "mac": "2e:00:00:00:00:0a",
        "host_mac": "2e:00:00:00:00:0b", "mtu": 1500, "num_queues": 4, "queue_size": 128,
        "vhost_user": true, "vhost_socket": "/s", "vhost_mode": "Server", "fds": [7, 8],
        "rate_limiter_config": { "bandwidth": null, "ops": null }, "offload_tso": false,
        "offload_ufo": false, "offload_csum": false, "packed": false }],
    "rng": { "id": "r", "pci_segment": 0, "src": "/dev/hwrng" },
    "balloon": { "pci_segment": 0, "size": 1, "deflate_on_oom": true, "free_page_reporting": true },
    "fs": [{ "pci_segment": 0, "tag": "t", "socket": "/s", "num_queues": 2, "queue_size": 512 }],
    "generic_vhost_user": [{ "pci_segment": 0, "socket": "/s", "queue_sizes": [1, 2], "device_type": 9 }],
    "pmem": [{ "pci_segment": 0, "file": "/p", "size": 1, "discard_writes": true }],
    "serial": { "mode": "Socket", "socket": "/s" },
    "console": { "mode": "File", "file": "/c", "pci_segment": 0, "pci_device_id": 7 },
    "debug_console": { "mode": "File", "file": "/c", "iobase": 1 },
    "devices": [{ "pci_segment": 0, "path": "/sys/x", "x_nv_gpudirect_clique": 1,
        "x_exclude_mmap_bars": [0, 5] }],
    "user_devices": [{ "pci_segment": 0, "socket": "/s" }],
    "vdpa": [{ "pci_segment": 0, "path": "/dev/v", "num_queues": 2 }],
    "vsock": { "pci_segment": 0, "cid": 3, "socket": "/s" },
    "pvpanic": true, "iommu": true,
    "numa": [{ "guest_numa_id": 1, "cpus": [0], "distances": [{ "destination": 0, "distance": 20 }],
        "memory_zones": ["m0"], "pci_segments": [1], "device_id": "d" }],
    "watchdog": true,
    "rtc": { "pci_segment": 0 },
    "pci_segments": [{ "pci_segment": 1, "mmio32_aperture_weight": 2, "mmio64_aperture_weight": 3 }],
    "platform": { "num_pci_segments": 2, "iommu_segments": [1], "iommu_address_width_bits": 48,
        "system_serial_number": "a", "system_uuid": "b", "oem_strings": ["c"],
        "system_manufacturer": "d", "system_product_name": "e", "system_version": "f",
        "system_family": "g", "system_sku_number": "h", "chassis_asset_tag": "i", "iommufd": true,
        "iommufd_fd": 9, "vfio_p2p_dma": false, "tdx": true, "sev_snp": true },
    "tpm": { "socket": "/t" },
    "landlock_enable": true,
    "landlock_rules": [{ "path": "/l", "access": "rw" }],
    "gdb": true,
    "pvmemcontrol": {},
    "ivshmem": { "pci_segment": 0, "path": "/i", "size": 4096 },
    "debug_exit": 1281
}"#;

fn read<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    // Through text, as it arrives: a `Value` is read by other code.
    serde_json::from_str(&value.to_string()).map_err(|error| error.to_string())
}

fn print<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap()
}

/// Reads, prints and reads again: nothing may get lost.
fn round_trip<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(value: Value) -> Value {
    let read_once: T = read(value).unwrap();
    let printed = print(&read_once);
    assert_eq!(read::<T>(printed.clone()).unwrap(), read_once);
    printed
}

#[test]
fn a_vm_created_from_nothing() {
    let config: VmConfig = read(json!({})).unwrap();
    let memory_actual_size = config.memory.size;
    let info =
        VmInfo { config: Box::new(config), state: VmState::Created, memory_actual_size, device_tree: None };
    assert_eq!(serde_json::to_string(&info).unwrap(), EMPTY_VM);
    assert_eq!(serde_json::from_str::<VmInfo>(EMPTY_VM).unwrap(), info);
}

#[test]
fn everything_survives_a_round_trip() {
    let everything: Value = serde_json::from_str(EVERYTHING).unwrap();
    // What was read is also all that is printed: no member is missing, none is added.
    assert_eq!(round_trip::<VmConfig>(everything.clone()), everything);
}

#[test]
fn null_is_absent_only_where_a_value_is_optional() {
    for optional in [
        json!({ "payload": null, "disks": null, "platform": null, "vsock": null, "numa": null }),
        json!({ "serial": { "mode": "Off", "file": null, "socket": null } }),
        json!({ "devices": [{ "path": "/d", "id": null, "fd": null, "pci_device_id": null }] }),
        json!({ "disks": [{ "rate_limiter_config": { "bandwidth": null } }] }),
        json!({ "net": [{ "mac": null, "ip": null, "fds": null }] }),
        json!({ "cpus": { "boot_vcpus": 1, "max_vcpus": 1, "topology": null, "affinity": null } }),
    ] {
        assert!(read::<VmConfig>(optional.clone()).is_ok(), "{optional}");
    }
    for defaulted in [
        json!({ "cpus": null }),
        json!({ "memory": null }),
        json!({ "serial": null }),
        json!({ "console": null }),
        json!({ "rng": null }),
        json!({ "iommu": null }),
        json!({ "disks": [{ "readonly": null }] }),
        json!({ "disks": [{ "iommu": null }] }),
        json!({ "disks": [{ "pci_segment": null }] }),
        json!({ "net": [{ "num_queues": null }] }),
        json!({ "memory": { "size": 1, "shared": null } }),
    ] {
        assert!(read::<VmConfig>(defaulted.clone()).is_err(), "{defaulted}");
    }
}

#[test]
fn integers_have_their_width() {
    for fits in [
        json!({ "cpus": { "boot_vcpus": u32::MAX, "max_vcpus": u32::MAX } }),
        json!({ "memory": { "size": u64::MAX } }),
        json!({ "disks": [{ "queue_size": u16::MAX, "pci_device_id": u8::MAX }] }),
    ] {
        assert!(read::<VmConfig>(fits.clone()).is_ok(), "{fits}");
    }
    for too_wide in [
        json!({ "cpus": { "boot_vcpus": u64::from(u32::MAX) + 1, "max_vcpus": 1 } }),
        json!({ "cpus": { "boot_vcpus": -1, "max_vcpus": 1 } }),
        json!({ "cpus": { "boot_vcpus": 1, "max_vcpus": 1, "max_phys_bits": 256 } }),
        json!({ "memory": { "size": -1 } }),
        json!({ "memory": { "size": 1.5 } }),
        json!({ "disks": [{ "queue_size": 65536 }] }),
        json!({ "disks": [{ "pci_device_id": 256 }] }),
        json!({ "disks": [{ "pci_segment": 65536 }] }),
        json!({ "net": [{ "mtu": 65536 }] }),
        json!({ "vsock": { "cid": 4_294_967_296_u64, "socket": "/s" } }),
    ] {
        assert!(read::<VmConfig>(too_wide.clone()).is_err(), "{too_wide}");
    }
    assert!(serde_json::from_str::<VmConfig>(r#"{"memory":{"size":18446744073709551616}}"#).is_err());
}

#[test]
fn unknown_keys_pass_except_in_limits() {
    // Kata sends this one.
    let serial: SerialConfig = read(json!({ "mode": "Tty", "iommu": false })).unwrap();
    assert_eq!(serial, SerialConfig::new(ConsoleMode::Tty));
    assert!(read::<VmConfig>(json!({ "tea": { "milk": [1, { "no": null }] } })).is_ok());
    assert!(read::<DiskConfig>(json!({ "path": "/d", "tea": 1 })).is_ok());

    let bucket = json!({ "size": 1, "refill_time": 1, "tea": 1 });
    assert!(read::<DiskConfig>(json!({ "rate_limiter_config": { "tea": 1 } })).is_err());
    assert!(read::<DiskConfig>(json!({ "rate_limiter_config": { "ops": bucket } })).is_err());
}

#[test]
fn what_is_required_is_missed() {
    for incomplete in [
        json!({ "cpus": { "boot_vcpus": 1 } }),
        json!({ "cpus": { "max_vcpus": 1 } }),
        json!({ "cpus": { "boot_vcpus": 1, "max_vcpus": 1, "topology": { "packages": 1 } } }),
        json!({ "memory": {} }),
        json!({ "memory": { "size": 0, "zones": [{ "size": 1 }] } }),
        json!({ "rng": {} }),
        json!({ "serial": {} }),
        json!({ "console": {} }),
        json!({ "balloon": {} }),
        json!({ "fs": [{ "tag": "t" }] }),
        json!({ "vsock": { "cid": 3 } }),
        json!({ "numa": [{}] }),
        json!({ "disks": [{ "rate_limiter_config": { "ops": { "size": 1 } } }] }),
        json!({ "rate_limit_groups": [{ "id": "g" }] }),
    ] {
        assert!(read::<VmConfig>(incomplete.clone()).is_err(), "{incomplete}");
    }
    // What may be left out, and what stands for it then.
    let fs: FsConfig = read(json!({ "tag": "t", "socket": "/s" })).unwrap();
    assert_eq!((fs.num_queues, fs.queue_size), (1, 1024));
    let limits: RateLimitGroupConfig = read(json!({ "rate_limiter_config": {} })).unwrap();
    assert_eq!(limits.id, "");
}

#[test]
fn names_of_choices_are_exact() {
    assert!(read::<ConsoleMode>(json!("Pty")).is_ok());
    for wrong in ["pty", "PTY", "pTy"] {
        assert!(read::<ConsoleMode>(json!(wrong)).is_err(), "{wrong}");
    }
    assert_eq!(print(&HotplugMethod::VirtioMem), json!("VirtioMem"));
    assert_eq!(print(&MemoryRestoreMode::OnDemand), json!("OnDemand"));
    assert_eq!(print(&LockGranularity::ByteRange), json!("ByteRange"));
}

#[test]
fn deprecated_names_are_read() {
    let platform: PlatformConfig = read(json!({ "serial_number": "a", "uuid": "b" })).unwrap();
    assert_eq!(platform.system_serial_number.as_deref(), Some("a"));
    assert_eq!(platform.system_uuid.as_deref(), Some("b"));
}

#[test]
fn the_iommu_member_is_printed_only_when_true() {
    let plain = print(&VsockConfig { cid: 3, socket: "/s".into(), ..VsockConfig::default() });
    assert_eq!(plain, json!({ "pci_segment": 0, "cid": 3, "socket": "/s" }));
    let behind = print(&RtcConfig { iommu: true, ..RtcConfig::default() });
    assert_eq!(behind, json!({ "iommu": true, "pci_segment": 0 }));
}

#[test]
fn mac_addresses() {
    let address: MacAddress = "12:34:56:78:9A:bc".parse().unwrap();
    assert_eq!(address, MacAddress([0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc]));
    assert_eq!(address.to_string(), "12:34:56:78:9a:bc");
    for wrong in [
        "",
        "12:34:56:78:9a",
        "12:34:56:78:9a:bc:de",
        "1:2:3:4:5:6",
        "12-34-56-78-9a-bc",
        "+1:34:56:78:9a:bc",
    ] {
        assert!(wrong.parse::<MacAddress>().is_err(), "{wrong}");
    }
    assert!(read::<NetConfig>(json!({ "mac": "12:34" })).unwrap_err().contains("12:34"));
}

#[test]
fn descriptors_stay_out_of_the_json() {
    let (reader, _writer) = std::io::pipe().unwrap();
    let descriptors = Descriptors(vec![std::sync::Arc::new(reader.into())]);
    let net = NetConfig { fds: Some(vec![7]), descriptors: descriptors.clone(), ..NetConfig::default() };
    assert_eq!(net, net.clone());
    let back: NetConfig = read(print(&net)).unwrap();
    assert_eq!((back.fds.as_deref(), back.descriptors.0.len()), (Some(&[7][..]), 0));
    assert_ne!(back.descriptors, descriptors);
}

#[test]
fn actions() {
    // As the known client sends it: all members, null for what is not asked for.
    let resize: VmResize =
        read(json!({ "desired_vcpus": 2, "desired_ram": null, "desired_balloon": null })).unwrap();
    assert_eq!(resize, VmResize { desired_vcpus: Some(2), ..VmResize::default() });
    assert!(read::<VmResizeZone>(json!({ "id": "m0" })).is_err());
    assert!(read::<VmRemoveDevice>(json!({})).is_err());

    let restore: RestoreConfig = read(json!({ "source_url": "file:///s",
        "net_fds": [{ "id": "net_0", "num_fds": 1 }], "vfio_fds": null }))
    .unwrap();
    assert_eq!((restore.memory_restore_mode, restore.verify), (None, None));
    assert_eq!(restore.net_fds, Some(vec![RestoredNetConfig { id: "net_0".into(), num_fds: 1 }]));
    assert!(!restore.resume && !restore.prefault && restore.zone_updates.is_empty());

    let send: SendMigrationData = read(json!({ "destination_url": "tcp:a:1" })).unwrap();
    assert_eq!(send, SendMigrationData::to("tcp:a:1"));
    assert_eq!((send.downtime_ms.get(), send.timeout_s.get(), send.connections.get()), (300, 3600, 1));
    assert!(read::<SendMigrationData>(json!({ "destination_url": "u", "downtime_ms": 0 })).is_err());
    let receive: ReceiveMigrationData =
        read(json!({ "receiver_url": "unix:/s", "memory_mode": "Postcopy" })).unwrap();
    assert_eq!(receive.memory_mode, MemoryMode::Postcopy);
}

#[test]
fn answers() {
    let info = PciDeviceInfo { id: "_disk2".into(), bdf: "0000:00:08.0".into() };
    assert_eq!(serde_json::to_string(&info).unwrap(), r#"{"id":"_disk2","bdf":"0000:00:08.0"}"#);

    let ping = VmmPingResponse {
        build_version: "v53.0".into(),
        version: "53.0.0".into(),
        pid: 1234,
        features: vec!["io_uring".into(), "kvm".into()],
    };
    let text = r#"{"build_version":"v53.0","version":"53.0.0","pid":1234,"features":["io_uring","kvm"]}"#;
    assert_eq!(serde_json::to_string(&ping).unwrap(), text);

    let node = json!({ "id": "_virtio-pci-_disk0", "children": ["_disk0"], "pci_bdf": "0000:00:02.0",
        "resources": [
            { "PciBar": { "index": 0, "base": 1, "size": 2, "type_": "Mmio64", "prefetchable": false } },
            { "PioAddressRange": { "base": 1, "size": 2 } }, { "MmioAddressRange": { "base": 1, "size": 2 } },
            { "LegacyIrq": 4 }, { "MsiIrq": { "ty": "PciMsix", "base": 24, "size": 2 } },
            { "MacAddress": "2e:00:00:00:00:01" }, { "KvmMemSlot": 1 }
        ] });
    assert_eq!(round_trip::<DeviceNode>(node.clone()), node);

    let counters = json!({ "_disk0": { "read_bytes": 1, "read_latency_min": u64::MAX } });
    assert_eq!(round_trip::<VmCounters>(counters.clone()), counters);
}
