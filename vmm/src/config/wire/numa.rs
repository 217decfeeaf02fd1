//! NUMA nodes.

use std::collections::BTreeMap;

use api_client::wire;

use crate::config::{ConfigError, NumaNode};

/// The nodes, with the distance of each to each.
pub(super) fn resolve(said: &[wire::NumaConfig]) -> Result<Vec<NumaNode>, ConfigError> {
    let mut distances = BTreeMap::new();
    for node in said {
        for given in node.distances.iter().flatten() {
            let (from, to) = (node.guest_numa_id, given.destination);
            let wrong = |what: &str| ConfigError::Machine {
                section: "numa",
                what: format!("guest_numa_id {from}: distance {} to node {to}: {what}", given.distance),
            };
            if !said.iter().any(|known| known.guest_numa_id == to) {
                return Err(wrong("there is no such node"));
            }
            if given.distance < NumaNode::LOCAL || (from == to) != (given.distance == NumaNode::LOCAL) {
                return Err(wrong("10 is a node's to itself, all others are above"));
            }
            // What is said the other way round counts only as long as nothing is said this way.
            distances.insert((from, to), given.distance);
        }
    }
    let distance = |from: u32, to: u32| {
        let given = distances.get(&(from, to)).or_else(|| distances.get(&(to, from)));
        given.copied().unwrap_or(if from == to { NumaNode::LOCAL } else { NumaNode::REMOTE })
    };
    // A node that consists of a device has nothing of what the others share out.
    let nodes = said.iter().filter(|node| node.device_id.is_none()).map(|node| {
        let from = node.guest_numa_id;
        NumaNode {
            id: from,
            cpus: node.cpus.clone().unwrap_or_default(),
            memory_zones: node.memory_zones.clone().unwrap_or_default(),
            pci_segments: node.pci_segments.clone().unwrap_or_default(),
            distances: said.iter().map(|to| (to.guest_numa_id, distance(from, to.guest_numa_id))).collect(),
        }
    });
    Ok(nodes.collect())
}
