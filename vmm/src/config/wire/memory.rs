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

/// The zone of that id, if there is one. Memory without zones becomes the one zone that it is, if that is meant.
///
/// # Errors
/// That zone cannot be, as one of the user's; why.
pub fn memory_zone<'said>(
    said: &'said mut wire::MemoryConfig,
    id: &str,
) -> Result<Option<&'said mut wire::MemoryZoneConfig>, &'static str> {
    if id == DEFAULT_ZONE && said.zones.as_ref().is_none_or(Vec::is_empty) {
        if said.hotplug_size.is_some() && said.hotplug_method == wire::HotplugMethod::Acpi {
            return Err("memory that more can be added to by ACPI has nothing of its own");
        }
        *said = in_a_zone(said);
    }
    Ok(said.zones.iter_mut().flatten().find(|zone| zone.id == id))
}

/// The same memory, as a zone.
fn in_a_zone(said: &wire::MemoryConfig) -> wire::MemoryConfig {
    let wire::MemoryConfig {
        size,
        mergeable,
        hotplug_method,
        hotplug_size,
        hotplugged_size,
        shared,
        hugepages,
        hugepage_size,
        prefault,
        reserve,
        zones: _,
        thp,
    } = *said;
    let zone = wire::MemoryZoneConfig {
        id: DEFAULT_ZONE.to_owned(),
        size,
        file: None,
        shared,
        hugepages,
        hugepage_size,
        host_numa_node: None,
        hotplug_size,
        hotplugged_size,
        prefault,
        reserve,
        mergeable,
    };
    // What is the memory's and not a zone's; the rest as if nothing had been said.
    wire::MemoryConfig {
        size: 0,
        hotplug_method,
        thp,
        zones: Some(vec![zone]),
        ..wire::MemoryConfig::default()
    }
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn said(said: Value) -> wire::MemoryConfig {
        serde_json::from_value(said).unwrap()
    }

    #[test]
    fn plain_memory_is_the_zone_that_it_becomes() {
        for plain in [
            json!({ "size": 1 << 21 }),
            json!({ "size": 1 << 21, "shared": true, "prefault": true, "reserve": true, "thp": false }),
            json!({ "size": 1 << 22, "hugepages": true, "hugepage_size": 1 << 21 }),
            json!({ "size": 1 << 21, "mergeable": true, "zones": [],
                "hotplug_method": "VirtioMem", "hotplug_size": 1 << 30 }),
        ] {
            let mut zone = said(plain.clone());
            assert_eq!(memory_zone(&mut zone, "z").unwrap(), None);
            assert_eq!(zone, said(plain.clone()), "it is another's");
            assert_eq!(memory_zone(&mut zone, "mem0").unwrap().unwrap().id, "mem0");
            assert_eq!(zone.size, 0);
            assert_eq!(resolve(&zone).unwrap(), resolve(&said(plain)).unwrap());
            // The second time it is one.
            let before = zone.clone();
            memory_zone(&mut zone, "mem0").unwrap().unwrap();
            assert_eq!(zone, before);
        }
        let mut zone = said(json!({ "size": 1 << 21, "hotplug_size": 1 << 30 }));
        let before = zone.clone();
        assert!(memory_zone(&mut zone, "mem0").unwrap_err().contains("ACPI"));
        assert_eq!(zone, before);
        let mut zone = said(json!({ "size": 0, "zones": [{ "id": "z", "size": 4096 }] }));
        assert!(memory_zone(&mut zone, "mem0").unwrap().is_none());
        assert!(memory_zone(&mut zone, "z").unwrap().is_some());
    }
}
