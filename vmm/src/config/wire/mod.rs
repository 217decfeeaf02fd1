//! What the user said, made into what it means: defaults filled in, ids given, references resolved,
//! values checked.
//!
//! The command line and the REST API both come through here, so both refuse the same things in the
//! same words. What can be said and has no machinery yet is refused by name, never passed over.
//! What is absent: whether the files, taps and sockets named can be opened, which is found out when
//! the machine is built.

mod absent;
mod cpus;
mod disk;
mod ids;
mod machine;
mod memory;
mod net;
mod numa;
#[cfg(test)]
mod tests;
mod validate;

use api_client::wire;

pub(crate) use self::machine::CONSOLE_ID;
pub use self::{ids::IdCounter, memory::memory_zone};
use super::{ConfigError, ConsoleTarget, DeviceConfig, Payload, PciPlace, VmConfig};

impl VmConfig {
    /// What a configuration comes to. What is assigned in the course of it (ids, MAC addresses, the IOMMU
    /// that a device asks for) is written into `said` too, so that it stays the same at the next boot.
    /// `ids` belongs to the VM: ids that it gave are not given again.
    ///
    /// # Errors
    /// The first thing that cannot be; nothing was opened.
    pub fn from_wire(said: &mut wire::VmConfig, ids: &mut IdCounter) -> Result<Self, ConfigError> {
        ids::check(said)?;
        machine::spread_iommu(said);
        ids.assign(said);
        net::give_addresses(said);
        validate::check(said)?;

        let cpus = cpus::resolve(&said.cpus)?;
        let memory = memory::resolve(&said.memory)?;
        let platform = said.platform.clone().unwrap_or_default();
        let rate_limit_groups = disk::groups(said.rate_limit_groups.as_deref().unwrap_or_default())?;
        let config = Self {
            cpus,
            memory,
            hotplug_method: memory::hotplug_method(said.memory.hotplug_method),
            payload: said.payload.as_ref().map(payload).transpose()?.flatten(),
            devices: devices(said, &rate_limit_groups)?,
            rate_limit_groups,
            serial: machine::serial(&said.serial)?,
            debug_exit: said.debug_exit,
            pci_segments: platform.num_pci_segments,
            segment_weights: machine::weights(said, platform.num_pci_segments)?,
            numa: numa::resolve(said.numa.as_deref().unwrap_or_default())?,
            pvpanic: said.pvpanic,
            platform: machine::platform(&platform)?,
        };
        config.check()?;
        // Last: a mistake is one whether or not there is machinery.
        absent::refuse(said)?;
        Ok(config)
    }
}

impl VmConfig {
    /// Where a configuration's serial port and virtio console end, of which clients learn before anything
    /// else is looked at.
    ///
    /// # Errors
    /// One of them, or the debug console, cannot be what it shall be.
    pub fn consoles_from_wire(said: &wire::VmConfig) -> Result<(ConsoleTarget, ConsoleTarget), ConfigError> {
        if said.debug_console.mode == wire::ConsoleMode::Socket {
            let what = "mode Socket: only the serial port can have a socket".to_owned();
            return Err(ConfigError::Build { section: "debug_console", what });
        }
        let console = machine::console(&said.console)?.map_or(ConsoleTarget::Off, |console| console.target);
        Ok((machine::serial(&said.serial)?, console))
    }
}

/// Whether a configuration names something to boot.
pub fn has_payload(said: &wire::VmConfig) -> bool {
    said.payload.as_ref().is_some_and(|payload| {
        payload.kernel.is_some() || payload.firmware.is_some() || payload.igvm.is_some()
    })
}

/// The PCI devices, in the order of their slots.
fn devices(
    said: &wire::VmConfig,
    groups: &[super::RateLimitGroup],
) -> Result<Vec<DeviceConfig>, ConfigError> {
    let mut devices = Vec::new();
    devices.extend(machine::console(&said.console)?.map(DeviceConfig::Console));
    for disk in said.disks.iter().flatten() {
        devices.push(DeviceConfig::Block(disk::resolve(disk, groups)?));
    }
    for net in said.net.iter().flatten() {
        devices.push(DeviceConfig::Net(net::resolve(net)?));
    }
    devices.push(DeviceConfig::Rng(machine::rng(&said.rng)));
    devices.extend(said.pmem.iter().flatten().map(|pmem| DeviceConfig::Pmem(machine::pmem(pmem))));
    devices.extend(said.vsock.as_ref().map(|vsock| DeviceConfig::Vsock(machine::vsock(vsock))));
    Ok(devices)
}

/// What is booted, if anything is named.
fn payload(said: &wire::PayloadConfig) -> Result<Option<Payload>, ConfigError> {
    match (&said.kernel, &said.firmware) {
        (Some(_), Some(_)) => Err(ConfigError::Machine {
            section: "payload",
            what: "kernel and firmware exclude each other".into(),
        }),
        (Some(kernel), None) => Ok(Some(Payload::Kernel {
            kernel: kernel.clone(),
            initramfs: said.initramfs.clone(),
            cmdline: said.cmdline.clone().unwrap_or_default(),
        })),
        (None, Some(firmware)) => {
            if said.cmdline.is_some() || said.initramfs.is_some() {
                log::warn!("payload: cmdline and initramfs have no effect with firmware");
            }
            Ok(Some(Payload::Firmware { firmware: firmware.clone() }))
        }
        (None, None) => Ok(None),
    }
}

fn place(device: &(impl wire::PciDevice + ?Sized)) -> PciPlace {
    PciPlace { segment: device.pci_segment(), slot: device.pci_device_id() }
}

/// A device's id, or the one that all of its kind have.
fn id(device: &impl wire::PciDevice, fixed: &str) -> String {
    device.id().unwrap_or(fixed).to_owned()
}

/// An error of a device.
fn wrong(id: &str, what: impl Into<String>) -> ConfigError {
    ConfigError::Device { id: id.to_owned(), what: what.into() }
}
