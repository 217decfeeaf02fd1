//! Commands that change what a VM consists of. While it is not booted they edit its configuration; while
//! it is, the machine would have to change too, and where it cannot they say so.

use api_client::wire::{self, PciDevice};

use super::{
    command::{Addition, Answer},
    error::CommandError,
    life::{Booted, Life, Outcome, Stored},
    tree,
};
use crate::machine::attach::Control;

/// What cannot be done to a machine that is booted, yet.
const HOTPLUG: CommandError = CommandError::Unavailable("hotplug: devices can be added before boot");
const UNPLUG: CommandError = CommandError::Unavailable("hotplug: devices can be removed before boot");
const RESIZE: CommandError =
    CommandError::Unavailable("hotplug: processors and memory can be changed before boot");

impl Life {
    /// Adds a device to the configuration.
    pub(super) fn add(&mut self, addition: Addition) -> Outcome {
        let stored = self.stored.as_mut().ok_or(CommandError::NotCreated)?;
        let mut said = stored.said.clone();
        insert(&mut said, addition)?;
        super::check::size(&said)?;
        // On a copy: what is assigned now would be assigned again at boot.
        let mut copy = Stored { said: said.clone(), ids: stored.ids.clone() };
        copy.effective()?;
        if self.booted.is_some() {
            return Err(HOTPLUG);
        }
        stored.said = said;
        Ok(Answer::Done)
    }

    /// Removes a device from the configuration.
    pub(super) fn remove(&mut self, id: &str) -> Outcome {
        let stored = self.stored.as_mut().ok_or(CommandError::NotCreated)?;
        if let Some(booted) = &self.booted {
            let tree = tree::device_tree(booted.machine.layout());
            let node = tree.get(id).ok_or_else(|| CommandError::UnknownDevice(id.to_owned()))?;
            let function = node.parent.as_ref().and_then(|parent| tree.get(parent)).unwrap_or(node);
            if function.pci_bdf.is_none() || node.id.starts_with("__") {
                return Err(CommandError::NotRemovable(id.to_owned()));
            }
            return Err(UNPLUG);
        }
        let id = id.strip_prefix(&tree::function_id("")).unwrap_or(id);
        if !take_out(&mut stored.said, id) {
            return Err(CommandError::UnknownDevice(id.to_owned()));
        }
        Ok(Answer::Done)
    }

    /// Changes processors, then memory, then the balloon. What came before a failure stays changed.
    pub(super) fn resize(&mut self, said: wire::VmResize) -> Outcome {
        self.events().tell("vm", "resizing");
        let stored = self.stored.as_mut().ok_or(CommandError::NotCreated)?;
        match &self.booted {
            None => stored.resize(said),
            Some(booted) => stored.resize_booted(booted, said)?,
        }
        self.events().tell("vm", "resized");
        Ok(Answer::Done)
    }

    /// Changes the size of a disk's image, and tells the guest.
    pub(super) fn resize_disk(&mut self, said: wire::VmResizeDisk) -> Outcome {
        self.stored.as_ref().ok_or(CommandError::NotCreated)?;
        let booted = self.booted.as_ref().ok_or(CommandError::NotRunning)?;
        let wire::VmResizeDisk { id, desired_size } = said;
        let device = booted.machine.devices().iter().find(|device| device.id == id);
        let Some(Control::Disk(disk)) = device.map(|device| &device.control) else {
            return Err(CommandError::UnknownDisk(id));
        };
        let resized = disk.control().resize(desired_size);
        resized.map_err(|source| CommandError::Disk { id, size: desired_size, source })?;
        Ok(Answer::Done)
    }

    /// Changes a memory zone's size.
    pub(super) fn resize_zone(&mut self, said: &wire::VmResizeZone) -> Outcome {
        let stored = self.stored.as_mut().ok_or(CommandError::NotCreated)?;
        let mut zones = stored.said.memory.zones.iter_mut().flatten();
        let zone = zones
            .find(|zone| zone.id == said.id)
            .ok_or_else(|| CommandError::UnknownZone(said.id.clone()))?;
        if self.booted.is_none() {
            zone.size = said.desired_ram;
            return Ok(Answer::Done);
        }
        if said.desired_ram < zone.size {
            let what =
                format!("Zone {}: {} bytes are below its {} at boot", zone.id, said.desired_ram, zone.size);
            return Err(CommandError::Size(what));
        }
        Err(CommandError::Unavailable("virtio-mem: memory zones can be changed before boot"))
    }
}

impl Stored {
    /// Nothing is checked: the next boot does that.
    fn resize(&mut self, said: wire::VmResize) {
        let wire::VmResize { desired_vcpus, desired_ram, desired_balloon } = said;
        if let Some(vcpus) = desired_vcpus {
            self.said.cpus.boot_vcpus = vcpus;
        }
        if let Some(ram) = desired_ram {
            self.set_memory(ram);
        }
        if let (Some(size), Some(balloon)) = (desired_balloon, &mut self.said.balloon) {
            balloon.size = size;
        }
    }

    /// At the next boot, memory shall be so large.
    fn set_memory(&mut self, ram: u64) {
        let memory = &mut self.said.memory;
        match memory.hotplug_method {
            wire::HotplugMethod::Acpi => memory.size = ram,
            wire::HotplugMethod::VirtioMem => memory.hotplugged_size = ram.checked_sub(memory.size),
        }
    }

    /// What needs no new hardware is done; the rest would.
    fn resize_booted(&mut self, booted: &Booted, said: wire::VmResize) -> Result<(), CommandError> {
        let wire::VmResize { desired_vcpus, desired_ram, desired_balloon } = said;
        if let Some(vcpus) = desired_vcpus {
            let max = self.said.cpus.max_vcpus;
            if !(1..=max).contains(&vcpus) {
                return Err(CommandError::Size(format!("{vcpus} vCPUs: 1 to {max} are possible")));
            }
            if usize::try_from(vcpus) != Ok(booted.machine.vcpus().count()) {
                return Err(RESIZE);
            }
        }
        if let Some(ram) = desired_ram {
            self.resize_booted_memory(booted, ram)?;
        }
        match (desired_balloon, &self.said.balloon) {
            (None, _) => Ok(()),
            (Some(_), None) => Err(CommandError::Size("The VM has no balloon".to_owned())),
            (Some(_), Some(_)) => Err(CommandError::Unavailable("memory balloon")),
        }
    }

    fn resize_booted_memory(&mut self, booted: &Booted, ram: u64) -> Result<(), CommandError> {
        let memory = &self.said.memory;
        if memory.zones.iter().flatten().next().is_some() {
            return Err(CommandError::Size(
                "Memory that consists of zones is resized zone by zone".to_owned(),
            ));
        }
        match memory.hotplug_method {
            // Takes effect at the next boot, as clients know it; until then there is what was booted.
            wire::HotplugMethod::Acpi if ram <= booted.config.memory_size() => {
                self.set_memory(ram);
                Ok(())
            }
            wire::HotplugMethod::VirtioMem if ram < memory.size => {
                let what = format!("{ram} bytes of memory are below the {} at boot", memory.size);
                Err(CommandError::Size(what))
            }
            wire::HotplugMethod::VirtioMem if ram == memory.size => Ok(()),
            _ => Err(RESIZE),
        }
    }
}

/// Puts a device into a configuration.
fn insert(said: &mut wire::VmConfig, addition: Addition) -> Result<(), CommandError> {
    fn push<T>(list: &mut Option<Vec<T>>, device: T) {
        list.get_or_insert_default().push(device);
    }
    match addition {
        Addition::Device(device, _descriptor) => push(&mut said.devices, device),
        Addition::Disk(disk) => push(&mut said.disks, disk),
        Addition::Fs(fs) => push(&mut said.fs, fs),
        Addition::GenericVhostUser(device) => push(&mut said.generic_vhost_user, device),
        Addition::Net(net) => push(&mut said.net, net),
        Addition::Pmem(pmem) => push(&mut said.pmem, pmem),
        Addition::UserDevice(device) => push(&mut said.user_devices, device),
        Addition::Vdpa(device) => push(&mut said.vdpa, device),
        Addition::Vsock(_) if said.vsock.is_some() => return Err(CommandError::TooManyVsock),
        Addition::Vsock(vsock) => said.vsock = Some(vsock),
    }
    Ok(())
}

/// Takes the device out of a configuration that has this id; false if there is none.
fn take_out(said: &mut wire::VmConfig, id: &str) -> bool {
    fn take<T: PciDevice>(list: &mut Option<Vec<T>>, id: &str) -> bool {
        let Some(devices) = list else { return false };
        let before = devices.len();
        devices.retain(|device| device.id() != Some(id));
        before != devices.len()
    }
    if said.vsock.as_ref().is_some_and(|vsock| vsock.id() == Some(id)) {
        said.vsock = None;
        return true;
    }
    take(&mut said.devices, id)
        || take(&mut said.disks, id)
        || take(&mut said.fs, id)
        || take(&mut said.generic_vhost_user, id)
        || take(&mut said.net, id)
        || take(&mut said.pmem, id)
        || take(&mut said.user_devices, id)
        || take(&mut said.vdpa, id)
}
