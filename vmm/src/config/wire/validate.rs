//! What must hold of a configuration beyond what a single machine with this version's devices needs: the
//! rules of devices that have no machinery yet, and of how devices, segments and memory go together.
//!
//! A mistake is told as one whether or not the device could be had, so that clients find theirs before the
//! machinery is there. What is named in the host is not looked at, except where the rule itself is that
//! it be there.

use std::{fs, path::Path};

use api_client::wire::{
    self, ConsoleMode, DiskConfig, FwCfgConfig, IvshmemConfig, LandlockConfig, NetConfig, NumaConfig,
    PciDevice, PlatformConfig, VmConfig,
};

use super::{place, wrong};
use crate::config::ConfigError;

/// Longest name of a shared file system, in bytes (virtio 1.2, 5.11.4).
const MAX_TAG: usize = 36;
/// Context ids that mean something else: the hypervisor, the local host, the host, anybody (virtio 1.2, 5.10.4).
const RESERVED_CIDS: [u32; 4] = [0, 1, 2, u32::MAX];
/// Highest BAR of a PCI function.
const LAST_BAR: u8 = 5;
/// Hexadecimal digits of the data that is bound to a confidential guest.
const HOST_DATA: usize = 64;

/// Looks for the first mistake.
pub(super) fn check(said: &VmConfig) -> Result<(), ConfigError> {
    let platform = said.platform.clone().unwrap_or_default();
    check_platform(&platform)?;
    said.payload.as_ref().map_or(Ok(()), payload)?;
    devices(said).into_iter().try_for_each(|device| device.check(&platform))?;
    let machine = Machine {
        vcpus: said.cpus.boot_vcpus,
        ram: ram(said),
        is_shared: is_shared(said),
        platform: &platform,
    };
    machine.check(said)?;
    said.numa.iter().flatten().try_for_each(node)?;
    said.landlock_rules.iter().flatten().try_for_each(landlock)?;
    let debug = &said.debug_console;
    if debug.mode == ConsoleMode::File && debug.file.is_none() {
        return Err(section("debug_console", "mode File needs a file"));
    }
    Ok(())
}

fn section(section: &'static str, what: impl Into<String>) -> ConfigError {
    ConfigError::Machine { section, what: what.into() }
}

fn check_platform(said: &PlatformConfig) -> Result<(), ConfigError> {
    let segments = said.num_pci_segments;
    if !(1..=96).contains(&segments) {
        return Err(ConfigError::Segments(segments));
    }
    if let Some(segment) = said.iommu_segments.iter().flatten().find(|segment| **segment >= segments) {
        return Err(section("platform", format!("iommu_segments {segment}, of {segments}")));
    }
    if said.iommufd_fd.is_some() && !said.iommufd {
        return Err(section("platform", "iommufd_fd needs iommufd"));
    }
    Ok(())
}

fn payload(said: &wire::PayloadConfig) -> Result<(), ConfigError> {
    if said.igvm.is_some() && said.firmware.is_some() {
        return Err(section("payload", "igvm and firmware exclude each other"));
    }
    if let Some(data) = &said.host_data
        && (data.len() != HOST_DATA || !data.bytes().all(|digit| digit.is_ascii_hexdigit()))
    {
        return Err(section("payload", format!("host_data: {HOST_DATA} hexadecimal digits are expected")));
    }
    said.fw_cfg_config.as_ref().map_or(Ok(()), |config| firmware_config(said, config))
}

/// What the guest shall find must be there.
fn firmware_config(said: &wire::PayloadConfig, config: &FwCfgConfig) -> Result<(), ConfigError> {
    for (name, wished, is_there) in [
        ("kernel", config.kernel, said.kernel.is_some()),
        ("cmdline", config.cmdline, said.cmdline.is_some()),
        ("initramfs", config.initramfs, said.initramfs.is_some()),
    ] {
        if wished && !is_there {
            return Err(section("payload", format!("fw_cfg_config: {name} is on, and there is none")));
        }
    }
    let items = config.items.iter().flat_map(|items| &items.item_list);
    match items.into_iter().find(|item| item.file.is_some() == item.string.is_some()) {
        Some(item) => {
            let name = &item.name;
            Err(section("payload", format!("fw_cfg_config: item {name:?} needs either a file or a string")))
        }
        None => Ok(()),
    }
}

/// A PCI device of whatever kind.
struct Device<'said> {
    device: &'said dyn PciDevice,
    /// Its id if the user gave it none: there is one of the kind.
    fixed: &'static str,
    /// Whether it can be behind the virtual IOMMU.
    translates: bool,
}

/// Every PCI device that is asked for.
fn devices(said: &VmConfig) -> Vec<Device<'_>> {
    fn one<'said, D: PciDevice>(device: &'said D, fixed: &'static str, translates: bool) -> Device<'said> {
        Device { device, fixed, translates }
    }
    fn all<D: PciDevice>(list: &Option<Vec<D>>, translates: bool) -> impl Iterator<Item = Device<'_>> {
        list.iter().flatten().map(move |device| one(device, "", translates))
    }
    let mut devices = Vec::new();
    // One that is off is no device.
    let console = (said.console.mode != ConsoleMode::Off).then_some(&said.console);
    devices.extend(console.map(|console| one(console, "__console", true)));
    devices.extend(said.disks.iter().flatten().map(|disk| one(disk, "", !disk.vhost_user)));
    devices.extend(said.net.iter().flatten().map(|net| one(net, "", !net.vhost_user)));
    devices.push(one(&said.rng, "__rng", true));
    devices.extend(all(&said.generic_vhost_user, false));
    devices.extend(all(&said.fs, false));
    devices.extend(all(&said.pmem, true));
    devices.extend(said.vsock.iter().map(|vsock| one(vsock, "", true)));
    devices.extend(said.balloon.iter().map(|balloon| one(balloon, "__balloon", true)));
    devices.extend(all(&said.vdpa, true));
    devices.extend(said.rtc.iter().map(|rtc| one(rtc, "__rtc", true)));
    devices.extend(all(&said.devices, true));
    devices.extend(all(&said.user_devices, false));
    devices.extend(said.ivshmem.iter().map(|memory| one(memory, "__ivshmem", false)));
    devices
}

impl Device<'_> {
    fn check(&self, platform: &PlatformConfig) -> Result<(), ConfigError> {
        let Self { device, fixed, translates } = self;
        let id = device.id().unwrap_or(fixed);
        place(*device).check(platform.num_pci_segments).map_err(|what| wrong(id, what))?;
        if device.iommu() && !translates {
            return Err(wrong(id, "iommu: a device of this kind cannot be behind the virtual IOMMU"));
        }
        let segment = device.pci_segment();
        if platform.iommu_segments.iter().flatten().any(|behind| *behind == segment) && !device.iommu() {
            return Err(wrong(id, format!("pci_segment {segment} is one of iommu_segments: it needs iommu")));
        }
        Ok(())
    }
}

/// What devices are held against.
struct Machine<'said> {
    vcpus: u32,
    /// In bytes.
    ram: u64,
    /// Whether another process can map all of memory.
    is_shared: bool,
    platform: &'said PlatformConfig,
}

fn ram(said: &VmConfig) -> u64 {
    let zones = said.memory.zones.iter().flatten();
    zones.fold(said.memory.size, |sum, zone| sum.saturating_add(zone.size))
}

/// Huge pages are shared by the way they are made.
fn is_shared(said: &VmConfig) -> bool {
    let memory = &said.memory;
    match memory.zones.as_ref().filter(|zones| !zones.is_empty()) {
        Some(zones) => zones.iter().all(|zone| zone.shared || zone.hugepages),
        None => memory.shared || memory.hugepages,
    }
}

impl Machine<'_> {
    fn check(&self, said: &VmConfig) -> Result<(), ConfigError> {
        said.disks.iter().flatten().try_for_each(|disk| self.disk(disk))?;
        said.net.iter().flatten().try_for_each(|net| self.net(net))?;
        said.generic_vhost_user.iter().flatten().try_for_each(|device| self.needs_shared_memory(device))?;
        said.fs.iter().flatten().try_for_each(|fs| self.fs(fs))?;
        said.user_devices.iter().flatten().try_for_each(|device| self.needs_shared_memory(device))?;
        said.devices.iter().flatten().try_for_each(|device| self.vfio(device))?;
        if let Some(balloon) = &said.balloon
            && balloon.size >= self.ram
        {
            let what = format!("size {}: less than the {} bytes of memory", balloon.size, self.ram);
            return Err(wrong(name(balloon, "__balloon"), what));
        }
        if let Some(vsock) = said.vsock.as_ref().filter(|vsock| RESERVED_CIDS.contains(&vsock.cid)) {
            return Err(wrong(name(vsock, ""), format!("cid {}: it is reserved", vsock.cid)));
        }
        said.ivshmem.as_ref().map_or(Ok(()), ivshmem)
    }

    fn needs_shared_memory(&self, device: &dyn PciDevice) -> Result<(), ConfigError> {
        if self.is_shared {
            return Ok(());
        }
        let what = "its back end needs the guest's memory: shared or hugepages must be on";
        Err(wrong(name(device, ""), what))
    }

    fn disk(&self, said: &DiskConfig) -> Result<(), ConfigError> {
        if !said.vhost_user {
            return Ok(());
        }
        if said.vhost_socket.is_none() {
            return Err(wrong(name(said, ""), "vhost_user needs a vhost_socket"));
        }
        if said.rate_limiter_config.is_some() || said.rate_limit_group.is_some() {
            return Err(wrong(name(said, ""), "vhost_user and a rate limit exclude each other"));
        }
        self.needs_shared_memory(said)
    }

    fn net(&self, said: &NetConfig) -> Result<(), ConfigError> {
        if !said.vhost_user {
            return Ok(());
        }
        if said.vhost_socket.is_none() {
            return Err(wrong(name(said, ""), "vhost_user needs a vhost_socket"));
        }
        if said.rate_limiter_config.is_some() {
            return Err(wrong(name(said, ""), "vhost_user and a rate limit exclude each other"));
        }
        self.needs_shared_memory(said)
    }

    fn fs(&self, said: &wire::FsConfig) -> Result<(), ConfigError> {
        let wrong = |what: String| Err(wrong(name(said, ""), what));
        if said.tag.len() > MAX_TAG {
            return wrong(format!("tag of {} bytes: {MAX_TAG} at most", said.tag.len()));
        }
        if said.num_queues == 0
            || u32::try_from(said.num_queues).ok().is_none_or(|queues| queues > self.vcpus)
        {
            let (queues, vcpus) = (said.num_queues, self.vcpus);
            return wrong(format!("num_queues {queues}: 1 to the number of vCPUs ({vcpus})"));
        }
        if !said.queue_size.is_power_of_two() {
            return wrong(format!("queue_size {}: a power of two", said.queue_size));
        }
        self.needs_shared_memory(said)
    }

    fn vfio(&self, said: &wire::DeviceConfig) -> Result<(), ConfigError> {
        let wrong = |what: &str| Err(wrong(name(said, ""), what));
        match (&said.path, said.fd) {
            (Some(_), None) => {}
            (None, Some(_)) if self.platform.iommufd_fd.is_some() => {}
            (None, Some(_)) => return wrong("fd needs platform: iommufd_fd"),
            (Some(_), Some(_)) => return wrong("path and fd exclude each other"),
            (None, None) => return wrong("a device of the host needs a path or fd"),
        }
        if said.x_nv_gpudirect_clique.is_some() && !self.platform.vfio_p2p_dma {
            return wrong("x_nv_gpudirect_clique needs platform: vfio_p2p_dma");
        }
        match said.x_exclude_mmap_bars.iter().find(|bar| **bar > LAST_BAR) {
            Some(bar) => wrong(&format!("x_exclude_mmap_bars {bar}: BARs are 0 to {LAST_BAR}")),
            None => Ok(()),
        }
    }
}

/// A device's id, or the one that all of its kind have.
fn name<'id>(device: &'id (impl PciDevice + ?Sized), fixed: &'id str) -> &'id str {
    device.id().unwrap_or(fixed)
}

fn ivshmem(said: &IvshmemConfig) -> Result<(), ConfigError> {
    let wrong = |what: String| Err(wrong(name(said, "__ivshmem"), what));
    let (size, path) = (said.size, said.path.display());
    if !size.is_power_of_two() {
        return wrong(format!("size {size}: a power of two"));
    }
    match fs::metadata(&said.path) {
        Ok(file) if file.len() >= size => Ok(()),
        Ok(file) => wrong(format!("path {path}: {} bytes of {size}", file.len())),
        Err(error) => wrong(format!("path {path}: {error}")),
    }
}

/// A node consists of a device, or of processors and memory; of which `NumaNode` has the rules.
fn node(said: &NumaConfig) -> Result<(), ConfigError> {
    if said.device_id.is_some() && (said.cpus.is_some() || said.memory_zones.is_some()) {
        let what = format!("guest_numa_id {}: device_id excludes cpus and memory_zones", said.guest_numa_id);
        return Err(section("numa", what));
    }
    Ok(())
}

fn landlock(said: &LandlockConfig) -> Result<(), ConfigError> {
    let (path, access) = (said.path.display(), &said.access);
    if access.is_empty() || !access.bytes().all(|letter| matches!(letter, b'r' | b'w')) {
        return Err(section(
            "landlock_rules",
            format!("path {path}: access {access:?}: letters out of r and w"),
        ));
    }
    match Path::try_exists(&said.path) {
        Ok(true) => Ok(()),
        Ok(false) => Err(section("landlock_rules", format!("path {path}: there is no such file"))),
        Err(error) => Err(section("landlock_rules", format!("path {path}: {error}"))),
    }
}
