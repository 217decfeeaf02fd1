//! What can be said, and this version has no machinery for. Each is refused by name: a wish that is
//! passed over in silence is found out in production.

use api_client::wire::{
    ConsoleMode, DiskConfig, ImageType, NetConfig, NumaConfig, PayloadConfig, PlatformConfig, VmConfig,
};

use crate::config::ConfigError;

/// Refuses the first wish that cannot be fulfilled.
pub(super) fn refuse(said: &VmConfig) -> Result<(), ConfigError> {
    let listed = [
        ("balloon", said.balloon.is_some(), "memory balloon"),
        ("fs", some(&said.fs), "virtio-fs"),
        ("generic_vhost_user", some(&said.generic_vhost_user), "vhost-user front end"),
        ("debug_console", said.debug_console.mode != ConsoleMode::Off, "debug console"),
        ("devices", some(&said.devices), "VFIO"),
        ("user_devices", some(&said.user_devices), "vfio-user"),
        ("vdpa", some(&said.vdpa), "vDPA"),
        ("iommu", said.iommu, "virtual IOMMU"),
        ("watchdog", said.watchdog, "watchdog"),
        ("rtc", said.rtc.is_some(), "virtio clock"),
        ("tpm", said.tpm.is_some(), "TPM"),
        ("landlock_enable", said.landlock_enable, "Landlock confinement"),
        ("gdb", said.gdb, "debugger stub"),
        ("pvmemcontrol", said.pvmemcontrol.is_some(), "memory control device"),
        ("ivshmem", said.ivshmem.is_some(), "memory shared between VMs"),
    ];
    first(&listed)?;
    cpus(said)?;
    said.payload.as_ref().map_or(Ok(()), payload)?;
    said.platform.as_ref().map_or(Ok(()), platform)?;
    said.numa.iter().flatten().try_for_each(node)?;
    said.disks.iter().flatten().try_for_each(disk_image)?;
    said.net.iter().flatten().try_for_each(back_end)
}

/// An empty list is none.
fn some<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_some_and(|list| !list.is_empty())
}

fn first(listed: &[(&str, bool, &'static str)]) -> Result<(), ConfigError> {
    match listed.iter().find(|(_, wished, _)| *wished) {
        Some((section, _, what)) => Err(ConfigError::Absent { section: (*section).to_owned(), what }),
        None => Ok(()),
    }
}

fn cpus(said: &VmConfig) -> Result<(), ConfigError> {
    let plugged = said.memory.hotplugged_size.is_some_and(|size| size > 0);
    let zone_plugged =
        said.memory.zones.iter().flatten().any(|zone| zone.hotplugged_size.is_some_and(|size| size > 0));
    first(&[
        ("cpus: kvm_hyperv", said.cpus.kvm_hyperv, "Hyper-V interface"),
        ("memory: hotplugged_size", plugged, "virtio-mem"),
        ("memory zones: hotplugged_size", zone_plugged, "virtio-mem"),
    ])
}

fn payload(said: &PayloadConfig) -> Result<(), ConfigError> {
    first(&[
        ("payload: igvm", said.igvm.is_some(), "IGVM loader"),
        ("payload: host_data", said.host_data.is_some(), "confidential guests"),
        ("payload: fw_cfg_config", said.fw_cfg_config.is_some(), "fw_cfg device"),
    ])
}

fn platform(said: &PlatformConfig) -> Result<(), ConfigError> {
    first(&[
        ("platform: iommufd_fd", said.iommufd_fd.is_some(), "VFIO"),
        ("platform: tdx", said.tdx, "confidential guests"),
        ("platform: sev_snp", said.sev_snp, "confidential guests"),
    ])
}

fn node(said: &NumaConfig) -> Result<(), ConfigError> {
    if said.device_id.is_some() {
        let section = format!("numa: guest_numa_id {}: device_id", said.guest_numa_id);
        return Err(ConfigError::Absent { section, what: "NUMA node of a device" });
    }
    Ok(())
}

fn disk_image(said: &DiskConfig) -> Result<(), ConfigError> {
    let absent = |option, what| {
        let section = format!("{}: {option}", said.id.as_deref().unwrap_or_default());
        Err(ConfigError::Absent { section, what })
    };
    if said.vhost_user {
        return absent("vhost_user", "vhost-user front end");
    }
    match said.image_type {
        ImageType::Unknown | ImageType::Raw => {}
        ImageType::Qcow2 => return absent("image_type", "support for qcow2"),
        ImageType::FixedVhd => return absent("image_type", "support for VHD"),
        ImageType::Vhdx => return absent("image_type", "support for VHDX"),
        ImageType::FlatVmdk => return absent("image_type", "support for VMDK"),
    }
    if said.backing_files {
        return absent("backing_files", "support for qcow2");
    }
    Ok(())
}

fn back_end(said: &NetConfig) -> Result<(), ConfigError> {
    if said.vhost_user {
        let section = format!("{}: vhost_user", said.id.as_deref().unwrap_or_default());
        return Err(ConfigError::Absent { section, what: "vhost-user front end" });
    }
    Ok(())
}
