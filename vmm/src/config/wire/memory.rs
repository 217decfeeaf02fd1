//! Memory: one zone out of the general options, or those that the user defines.

use api_client::wire;

use crate::config::{ConfigError, HotplugMethod, MemoryZoneConfig};

/// Id of the zone of a machine whose user defines none.
const DEFAULT_ZONE: &str = "mem0";

/// Size of huge pages of which only is said that they shall be huge.
const DEFAULT_HUGE_PAGE: u64 = 2 << 20;

pub(super) fn resolve(said: &wire::MemoryConfig) -> Result<Vec<MemoryZoneConfig>, ConfigError> {
    let Some(zones) = said.zones.as_ref().filter(|zones| !zones.is_empty()) else {
        return Ok(vec![general(said)?]);
    };
    if said.size != 0 {
        return Err(built(format!("size {} with zones: it must be 0, the zones have their own", said.size)));
    }
    if said.hotplug_size.is_some() {
        log::warn!("memory: hotplug_size has no effect with zones, which have their own");
    }
    zones.iter().map(|zone| user_zone(said, zone)).collect()
}

pub(super) fn hotplug_method(said: wire::HotplugMethod) -> HotplugMethod {
    match said {
        wire::HotplugMethod::Acpi => HotplugMethod::Acpi,
        wire::HotplugMethod::VirtioMem => HotplugMethod::VirtioMem,
    }
}

fn general(said: &wire::MemoryConfig) -> Result<MemoryZoneConfig, ConfigError> {
    if said.size == 0 {
        return Err(ConfigError::NoMemory);
    }
    check_hotplug("size", said.hotplug_method, said.hotplug_size, said.hotplugged_size)?;
    Ok(MemoryZoneConfig {
        id: DEFAULT_ZONE.to_owned(),
        size: said.size,
        file: None,
        shared: said.shared,
        hugepage_size: huge_page(DEFAULT_ZONE, said.hugepages, said.hugepage_size)?,
        host_numa_node: None,
        prefault: said.prefault,
        reserve: said.reserve,
        mergeable: said.mergeable,
        thp: said.thp,
        hotplug_size: said.hotplug_size.unwrap_or(0),
    })
}

fn user_zone(
    memory: &wire::MemoryConfig,
    said: &wire::MemoryZoneConfig,
) -> Result<MemoryZoneConfig, ConfigError> {
    let id = &said.id;
    check_hotplug(id, memory.hotplug_method, said.hotplug_size, said.hotplugged_size)?;
    if said.hotplug_size.is_some() && memory.hotplug_method == wire::HotplugMethod::Acpi {
        return Err(built(format!("zone {id}: hotplug_size needs hotplug_method VirtioMem")));
    }
    if said.host_numa_node.is_some() && said.shared && said.file.is_some() {
        return Err(built(format!("zone {id}: host_numa_node cannot be chosen for a shared file")));
    }
    Ok(MemoryZoneConfig {
        id: id.clone(),
        size: said.size,
        file: said.file.clone(),
        shared: said.shared,
        hugepage_size: huge_page(id, said.hugepages, said.hugepage_size)?,
        host_numa_node: said.host_numa_node,
        prefault: said.prefault,
        reserve: said.reserve,
        mergeable: said.mergeable,
        thp: memory.thp,
        hotplug_size: said.hotplug_size.unwrap_or(0),
    })
}

fn huge_page(zone: &str, huge: bool, size: Option<u64>) -> Result<Option<u64>, ConfigError> {
    match (huge, size) {
        (false, None) => Ok(None),
        (false, Some(_)) => {
            Err(ConfigError::Zone { zone: zone.to_owned(), what: "hugepage_size needs hugepages" })
        }
        (true, size) => Ok(Some(size.unwrap_or(DEFAULT_HUGE_PAGE))),
    }
}

/// What is plugged must fit what can be plugged, and ACPI plugs nothing at boot.
fn check_hotplug(
    name: &str,
    method: wire::HotplugMethod,
    size: Option<u64>,
    plugged: Option<u64>,
) -> Result<(), ConfigError> {
    if size == Some(0) {
        return Err(built(format!("{name}: hotplug_size is 0")));
    }
    let Some(plugged) = plugged else { return Ok(()) };
    match size {
        None => Err(built(format!("{name}: hotplugged_size needs hotplug_size"))),
        Some(size) if plugged > size => {
            Err(built(format!("{name}: hotplugged_size {plugged} is above hotplug_size {size}")))
        }
        Some(_) if method == wire::HotplugMethod::Acpi => {
            Err(built(format!("{name}: hotplugged_size needs hotplug_method VirtioMem")))
        }
        Some(_) => Ok(()),
    }
}

fn built(what: String) -> ConfigError {
    ConfigError::Build { section: "memory", what }
}
