//! `--memory` and `--memory-zone`.

use api_client::wire::{HotplugMethod, MemoryConfig, MemoryZoneConfig};

use super::grammar::{GrammarError, Keys, Pairs};

/// The keys of `--memory`.
pub const KEYS: Keys = &[&[
    "size=512M",
    "mergeable=off",
    "hotplug_method=acpi",
    "hotplug_size=SIZE",
    "hotplugged_size=SIZE",
    "shared=off",
    "hugepages=off",
    "hugepage_size=SIZE",
    "prefault=off",
    "reserve=off",
    "thp=on",
    "file=PATH",
]];

/// The keys of `--memory-zone`.
pub const ZONE_KEYS: Keys = &[&[
    "id=ID",
    "size=512M",
    "file=PATH",
    "shared=off",
    "hugepages=off",
    "hugepage_size=SIZE",
    "host_numa_node=NODE",
    "hotplug_size=SIZE",
    "hotplugged_size=SIZE",
    "prefault=off",
    "reserve=off",
    "mergeable=MEMORY'S",
]];

const HOTPLUG_METHODS: [(&str, HotplugMethod); 2] =
    [("acpi", HotplugMethod::Acpi), ("virtio-mem", HotplugMethod::VirtioMem)];

/// Reads `--memory`.
///
/// # Errors
/// A key or value that is none.
pub fn parse(text: &str) -> Result<MemoryConfig, GrammarError> {
    let pairs = Pairs::parse(text, KEYS)?;
    let default = MemoryConfig::default();
    if let Some(file) = pairs.path("file") {
        log::warn!("--memory: file={} has no effect; that of --memory-zone has", file.display());
    }
    Ok(MemoryConfig {
        size: pairs.size("size")?.unwrap_or(default.size),
        mergeable: pairs.toggle("mergeable")?.unwrap_or(default.mergeable),
        hotplug_method: pairs.word("hotplug_method", &HOTPLUG_METHODS)?.unwrap_or_default(),
        hotplug_size: pairs.size("hotplug_size")?,
        hotplugged_size: pairs.size("hotplugged_size")?,
        shared: pairs.toggle("shared")?.unwrap_or(default.shared),
        hugepages: pairs.toggle("hugepages")?.unwrap_or(default.hugepages),
        hugepage_size: pairs.size("hugepage_size")?,
        prefault: pairs.toggle("prefault")?.unwrap_or(default.prefault),
        reserve: pairs.toggle("reserve")?.unwrap_or(default.reserve),
        zones: None,
        thp: pairs.toggle("thp")?.unwrap_or(default.thp),
    })
}

/// Reads a `--memory-zone` beside `memory`.
///
/// # Errors
/// A key or value that is none, or no id.
pub fn parse_zone(text: &str, memory: &MemoryConfig) -> Result<MemoryZoneConfig, GrammarError> {
    let pairs = Pairs::parse(text, ZONE_KEYS)?;
    Ok(MemoryZoneConfig {
        id: pairs.required("id")?,
        size: pairs.size("size")?.unwrap_or(MemoryConfig::default().size),
        file: pairs.path("file"),
        shared: pairs.toggle("shared")?.unwrap_or(false),
        hugepages: pairs.toggle("hugepages")?.unwrap_or(false),
        hugepage_size: pairs.size("hugepage_size")?,
        host_numa_node: pairs.number("host_numa_node")?,
        hotplug_size: pairs.size("hotplug_size")?,
        hotplugged_size: pairs.size("hotplugged_size")?,
        prefault: pairs.toggle("prefault")?.unwrap_or(false),
        reserve: pairs.toggle("reserve")?.unwrap_or(false),
        mergeable: pairs.toggle("mergeable")?.unwrap_or(memory.mergeable),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_arrives() {
        let text = "size=1G,mergeable=on,hotplug_method=virtio-mem,hotplug_size=2G,hotplugged_size=1M,shared=on,\
                    hugepages=on,hugepage_size=2M,prefault=on,reserve=on,thp=off,file=/of/no/effect";
        let expected = MemoryConfig {
            size: 1 << 30,
            mergeable: true,
            hotplug_method: HotplugMethod::VirtioMem,
            hotplug_size: Some(2 << 30),
            hotplugged_size: Some(1 << 20),
            shared: true,
            hugepages: true,
            hugepage_size: Some(2 << 20),
            prefault: true,
            reserve: true,
            zones: None,
            thp: false,
        };
        assert_eq!(parse(text), Ok(expected));
        assert_eq!(parse(""), Ok(MemoryConfig::default()));
    }

    #[test]
    fn every_key_of_a_zone_arrives() {
        let text = "id=z,size=1G,file=/f,shared=on,hugepages=on,hugepage_size=1G,host_numa_node=1,hotplug_size=2G,\
                    hotplugged_size=1G,prefault=on,reserve=on,mergeable=on";
        let expected = MemoryZoneConfig {
            id: "z".into(),
            size: 1 << 30,
            file: Some("/f".into()),
            shared: true,
            hugepages: true,
            hugepage_size: Some(1 << 30),
            host_numa_node: Some(1),
            hotplug_size: Some(2 << 30),
            hotplugged_size: Some(1 << 30),
            prefault: true,
            reserve: true,
            mergeable: true,
        };
        assert_eq!(parse_zone(text, &MemoryConfig::default()), Ok(expected));
    }

    #[test]
    fn a_zone_needs_an_id_and_takes_over_what_memory_says() {
        let memory = MemoryConfig { mergeable: true, ..MemoryConfig::default() };
        let zone = parse_zone("id=z", &memory).unwrap();
        assert_eq!((zone.size, zone.mergeable), (512 << 20, true));
        assert_eq!(parse_zone("size=1G", &memory), Err(GrammarError::Missing("id")));
    }

    #[test]
    fn wrong_values_are_refused_by_key() {
        assert_eq!(
            parse("hotplug_method=usb").unwrap_err().to_string(),
            r#"hotplug_method: "usb" is not one of acpi, virtio-mem"#
        );
        assert!(parse("size=1T").unwrap_err().to_string().starts_with("size: "));
    }
}
