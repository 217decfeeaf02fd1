//! NUMA nodes: which processors, memory and PCI segments belong together, and how far apart they are.

use std::collections::{BTreeMap, BTreeSet};

use super::{ConfigError, VmConfig};

/// A NUMA node of the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NumaNode {
    /// Its number, the proximity domain of ACPI.
    pub id: u32,
    /// Its vCPUs.
    pub cpus: Vec<u32>,
    /// Its memory zones, by id.
    pub memory_zones: Vec<String>,
    /// Its PCI segments.
    pub pci_segments: Vec<u16>,
    /// Its distance to each node, itself included; the same both ways.
    pub distances: BTreeMap<u32, u8>,
}

impl NumaNode {
    /// Distance of a node to itself (ACPI 6.5, 5.2.17).
    pub const LOCAL: u8 = 10;
    /// Distance of two nodes of which nothing is said.
    pub const REMOTE: u8 = 20;
}

impl VmConfig {
    /// Whether the nodes share nothing, and have only what there is.
    pub(super) fn check_numa(&self) -> Result<(), ConfigError> {
        let wrong = |node: &NumaNode, what: String| {
            let what = format!("guest_numa_id {}: {what}", node.id);
            Err(ConfigError::Machine { section: "numa", what })
        };
        let (mut ids, mut cpus) = (BTreeSet::new(), BTreeSet::new());
        let (mut zones, mut segments) = (BTreeSet::new(), BTreeSet::new());
        for node in &self.numa {
            if !ids.insert(node.id) {
                return wrong(node, "there are two of it".into());
            }
            if node.cpus.is_empty() && node.memory_zones.is_empty() {
                return wrong(node, "cpus or memory_zones are needed".into());
            }
            for cpu in &node.cpus {
                if *cpu >= self.cpus.max {
                    return wrong(node, format!("cpus {cpu}, of {}", self.cpus.max));
                }
                if !cpus.insert(*cpu) {
                    return wrong(node, format!("cpus {cpu}: it is in two nodes"));
                }
            }
            for zone in &node.memory_zones {
                if !self.memory.iter().any(|known| known.id == *zone) {
                    return wrong(node, format!("memory_zones {zone}: there is no such zone"));
                }
                if !zones.insert(zone) {
                    return wrong(node, format!("memory_zones {zone}: it is in two nodes"));
                }
            }
            for segment in &node.pci_segments {
                if *segment >= self.pci_segments {
                    return wrong(node, format!("pci_segments {segment}, of {}", self.pci_segments));
                }
                if *segment == 0 && node.id != 0 {
                    return wrong(node, "pci_segments 0: it can be in node 0 only".into());
                }
                if !segments.insert(*segment) {
                    return wrong(node, format!("pci_segments {segment}: it is in two nodes"));
                }
            }
        }
        // A guest that is not told of all memory takes no notice of the nodes.
        match self.memory.iter().find(|zone| !self.numa.is_empty() && !zones.contains(&zone.id)) {
            Some(zone) => Err(ConfigError::Machine {
                section: "numa",
                what: format!("memory zone {} is in no node", zone.id),
            }),
            None => Ok(()),
        }
    }
}
