//! Ids: which the user may give, and which devices get that have none.

use std::collections::BTreeSet;

use api_client::wire::{PciDevice, VmConfig};

use crate::config::ConfigError;

/// Numbers the ids that a VM gives: one counter for all kinds of devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdCounter(u64);

impl IdCounter {
    /// Gives every device an id that has none and is not the only one of its kind.
    pub(super) fn assign(&mut self, said: &mut VmConfig) {
        let taken: BTreeSet<String> = given(said).into_iter().map(str::to_owned).collect();
        // The order of slots, which clients see in the numbers.
        self.assign_all("_disk", said.disks.as_deref_mut().unwrap_or_default(), &taken);
        self.assign_all("_net", said.net.as_deref_mut().unwrap_or_default(), &taken);
        self.assign_all(
            "_generic_vhost_user",
            said.generic_vhost_user.as_deref_mut().unwrap_or_default(),
            &taken,
        );
        self.assign_all("_fs", said.fs.as_deref_mut().unwrap_or_default(), &taken);
        self.assign_all("_pmem", said.pmem.as_deref_mut().unwrap_or_default(), &taken);
        self.assign_all("_vsock", said.vsock.as_mut_slice(), &taken);
        self.assign_all("_vdpa", said.vdpa.as_deref_mut().unwrap_or_default(), &taken);
        self.assign_all("_vfio", said.devices.as_deref_mut().unwrap_or_default(), &taken);
        self.assign_all("_vfio_user", said.user_devices.as_deref_mut().unwrap_or_default(), &taken);
    }

    fn assign_all(&mut self, prefix: &str, devices: &mut [impl PciDevice], taken: &BTreeSet<String>) {
        for device in devices.iter_mut().filter(|device| device.id().is_none()) {
            device.set_id(self.next(prefix, taken));
        }
    }

    fn next(&mut self, prefix: &str, taken: &BTreeSet<String>) -> String {
        loop {
            let id = format!("{prefix}{}", self.0);
            self.0 += 1;
            if !taken.contains(&id) {
                return id;
            }
        }
    }
}

/// Every id that the user gave, in one order: devices, rate limit groups, memory zones.
fn given(said: &VmConfig) -> Vec<&str> {
    fn of<D: PciDevice>(devices: &Option<Vec<D>>) -> impl Iterator<Item = &str> {
        devices.iter().flatten().filter_map(PciDevice::id)
    }
    fn one<D: PciDevice>(device: Option<&D>) -> Option<&str> {
        device.and_then(PciDevice::id)
    }
    let mut ids = Vec::new();
    ids.extend(one(Some(&said.console)));
    ids.extend(of(&said.disks));
    ids.extend(of(&said.net));
    ids.extend(one(Some(&said.rng)));
    ids.extend(of(&said.generic_vhost_user));
    ids.extend(of(&said.fs));
    ids.extend(of(&said.pmem));
    ids.extend(one(said.vsock.as_ref()));
    ids.extend(one(said.balloon.as_ref()));
    ids.extend(of(&said.vdpa));
    ids.extend(one(said.rtc.as_ref()));
    ids.extend(of(&said.devices));
    ids.extend(of(&said.user_devices));
    ids.extend(one(said.ivshmem.as_ref()));
    ids.extend(said.rate_limit_groups.iter().flatten().map(|group| group.id.as_str()));
    ids.extend(said.memory.zones.iter().flatten().map(|zone| zone.id.as_str()));
    ids
}

/// Whether the user gave ids that are the user's to give, and each once.
pub(super) fn check(said: &VmConfig) -> Result<(), ConfigError> {
    let mut seen = BTreeSet::new();
    for id in given(said) {
        if id.is_empty() {
            return Err(ConfigError::Machine { section: "configuration", what: "an id is empty".into() });
        }
        if id.starts_with("__") {
            return Err(ConfigError::ReservedId(id.to_owned()));
        }
        if !seen.insert(id) {
            return Err(ConfigError::DuplicateId(id.to_owned()));
        }
    }
    let paths = said.devices.iter().flatten().filter_map(|device| device.path.as_ref());
    let mut seen = BTreeSet::new();
    match paths.into_iter().find(|path| !seen.insert(*path)) {
        Some(path) => Err(ConfigError::DuplicatePath(path.clone())),
        None => Ok(()),
    }
}
