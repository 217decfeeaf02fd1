//! The body of a request of the REST API other than `vm.create`: one byte says of which, the rest is the body.
//!
//! What is read and written down again reads the same. A device makes a configuration with it in, or is refused; a
//! restore or a migration is possible as far as its parameters go, or is refused.

#![no_main]

use std::fmt::Debug;

use api_client::wire;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use vmm::{
    config::{VmConfig, wire::IdCounter},
    control::check,
};

fuzz_target!(|input: &[u8]| {
    let Some((kind, body)) = input.split_first() else { return };
    match kind % 20 {
        0 => device::<wire::DiskConfig>(body, |said, disk| said.disks = Some(vec![disk])),
        1 => device::<wire::NetConfig>(body, |said, net| said.net = Some(vec![net])),
        2 => device::<wire::FsConfig>(body, |said, fs| said.fs = Some(vec![fs])),
        3 => device::<wire::PmemConfig>(body, |said, pmem| said.pmem = Some(vec![pmem])),
        4 => device::<wire::VdpaConfig>(body, |said, vdpa| said.vdpa = Some(vec![vdpa])),
        5 => device::<wire::VsockConfig>(body, |said, vsock| said.vsock = Some(vsock)),
        6 => device::<wire::DeviceConfig>(body, |said, device| said.devices = Some(vec![device])),
        7 => device::<wire::UserDeviceConfig>(body, |said, device| said.user_devices = Some(vec![device])),
        8 => device::<wire::GenericVhostUserConfig>(body, |said, device| {
            said.generic_vhost_user = Some(vec![device]);
        }),
        9 => checked::<wire::RestoreConfig>(body, |said| drop(check::restore(said))),
        10 => checked::<wire::SendMigrationData>(body, |said| drop(check::send(said))),
        11 => checked::<wire::ReceiveMigrationData>(body, |said| drop(check::receive(said))),
        12 => checked::<wire::VmSnapshotConfig>(body, |said| {
            drop(vmm::snapshot::directory(&said.destination_url));
        }),
        13 => checked::<wire::VmResize>(body, |_| ()),
        14 => checked::<wire::VmResizeDisk>(body, |_| ()),
        15 => checked::<wire::VmResizeZone>(body, |_| ()),
        16 => checked::<wire::VmRemoveDevice>(body, |_| ()),
        17 => checked::<wire::VmCoredumpData>(body, |_| ()),
        18 => checked::<wire::VmCancelJob>(body, |_| ()),
        // Not a request, but read by a client that did not write it.
        _ => checked::<wire::RestoreReport>(body, |report| {
            let calls = report.commit.operations.kernel_calls();
            assert!(
                report.totals.operations.kinds().len() == 10
                    && calls >= report.commit.operations.slots_added.count
            );
        }),
    }
});

/// Reads a body; what it comes to does not change by being written down.
fn read<T>(body: &[u8]) -> Option<T>
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + Debug,
{
    let wire::Objects(said) = serde_json::from_slice::<wire::Objects<T>>(body).ok()?;
    let written = serde_json::to_value(&said).expect("a body of JSON has text alone");
    assert_eq!(serde_json::from_value::<T>(written).expect("it was read before"), said);
    Some(said)
}

fn checked<T>(body: &[u8], check: impl FnOnce(&T))
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + Debug,
{
    if let Some(said) = read(body) {
        check(&said);
    }
}

/// Puts a device into a configuration that could be booted without it.
fn device<T>(body: &[u8], put: impl FnOnce(&mut wire::VmConfig, T))
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + Debug,
{
    let Some(device) = read(body) else { return };
    let whole: Value = json!({ "payload": { "kernel": "/k" }, "platform": { "num_pci_segments": 2 } });
    let mut said: wire::VmConfig = serde_json::from_value(whole).expect("it is a configuration");
    put(&mut said, device);
    if let Ok(config) = VmConfig::from_wire(&mut said, &mut IdCounter::default()) {
        // A configuration is one still when it is read back with the names that it was given.
        assert_eq!(config.memory_size(), 512 << 20);
        assert!(VmConfig::from_wire(&mut said, &mut IdCounter::default()).is_ok());
    }
}
