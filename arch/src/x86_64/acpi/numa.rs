//! The SRAT and the SLIT (ACPI 6.5, 5.2.16 and 5.2.17): which vCPUs and memory belong together, and
//! how far apart nodes are.

use std::collections::{BTreeMap, BTreeSet};

use super::{AcpiConfig, AcpiError, NumaMemory, NumaNode, table};

/// More nodes than a machine has; the SLIT grows with the square.
const MAX_NODES: usize = 256;

const LOCAL_APIC_AFFINITY: u8 = 0;
const MEMORY_AFFINITY: u8 = 1;
const LOCAL_X2APIC_AFFINITY: u8 = 2;

const ENABLED: u32 = 1 << 0;
const HOTPLUGGABLE: u32 = 1 << 1;

const DISTANCE_TO_ITSELF: u8 = 10;
const DISTANCE_TO_OTHERS: u8 = 20;

/// Both tables, or nothing for a machine without NUMA.
pub(super) fn build(config: &AcpiConfig) -> Result<Vec<Vec<u8>>, AcpiError> {
    if config.nodes.is_empty() {
        return Ok(Vec::new());
    }
    check(config)?;
    Ok(vec![srat(config), slit(&config.nodes)?])
}

fn check(config: &AcpiConfig) -> Result<(), AcpiError> {
    if config.nodes.len() > MAX_NODES {
        return Err(AcpiError::TooManyNodes { nodes: config.nodes.len(), max: MAX_NODES });
    }
    let mut ids = BTreeSet::new();
    let mut vcpus = BTreeSet::new();
    for node in &config.nodes {
        if !ids.insert(node.id) {
            return Err(AcpiError::NodeTwice { id: node.id });
        }
        for &vcpu in &node.vcpus {
            if vcpu >= config.topology.vcpus() || !vcpus.insert(vcpu) {
                return Err(AcpiError::NodeVcpu { node: node.id, vcpu });
            }
        }
    }
    Ok(())
}

fn srat(config: &AcpiConfig) -> Vec<u8> {
    let mut body = vec![0; 12];
    body[0] = 1; // reserved, to be 1
    for node in &config.nodes {
        for &vcpu in &node.vcpus {
            body.extend(processor(config.topology.apic_id(vcpu), node.id));
        }
        for memory in &node.memory {
            body.extend(memory_affinity(memory, node.id));
        }
    }
    table::table(b"SRAT", 3, &body)
}

fn processor(apic_id: u32, node: u32) -> Vec<u8> {
    let node_bytes = node.to_le_bytes();
    match u8::try_from(apic_id) {
        Ok(id) if id != u8::MAX => {
            let [low, high @ ..] = node_bytes;
            let mut bytes = vec![LOCAL_APIC_AFFINITY, 16, low, id];
            bytes.extend_from_slice(&ENABLED.to_le_bytes());
            bytes.push(0); // local SAPIC EID
            bytes.extend_from_slice(&high);
            bytes.extend_from_slice(&0u32.to_le_bytes()); // clock domain
            bytes
        }
        _ => {
            let mut bytes = vec![LOCAL_X2APIC_AFFINITY, 24, 0, 0];
            for word in [node, apic_id, ENABLED, 0, 0] {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
            bytes
        }
    }
}

fn memory_affinity(memory: &NumaMemory, node: u32) -> Vec<u8> {
    let flags = if memory.hotpluggable { ENABLED | HOTPLUGGABLE } else { ENABLED };
    let mut bytes = vec![MEMORY_AFFINITY, 40];
    bytes.extend_from_slice(&node.to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&memory.range.start.to_le_bytes());
    bytes.extend_from_slice(&memory.range.size.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&flags.to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes
}

/// The distances, by position: Linux takes row and column numbers for proximity domains, so rows are
/// made for every domain up to the greatest when that is small, as it is for nodes numbered from 0.
fn slit(nodes: &[NumaNode]) -> Result<Vec<u8>, AcpiError> {
    let mut given = BTreeMap::new();
    for node in nodes {
        for &(to, distance) in &node.distances {
            let refused = AcpiError::Distance { from: node.id, to, distance };
            if !nodes.iter().any(|known| known.id == to) {
                return Err(AcpiError::NoNode { what: "NUMA node", number: node.id, node: to });
            }
            if (to == node.id) != (distance == DISTANCE_TO_ITSELF) || distance < DISTANCE_TO_ITSELF {
                return Err(refused);
            }
            given.insert((node.id, to), distance);
        }
    }
    let greatest = nodes.iter().map(|node| node.id).max().unwrap_or_default();
    let count = u32::try_from(MAX_NODES).unwrap_or(u32::MAX);
    if greatest >= count {
        return Err(AcpiError::TooManyNodes {
            nodes: usize::try_from(greatest).unwrap_or(usize::MAX).saturating_add(1),
            max: MAX_NODES,
        });
    }
    let mut body = u64::from(greatest + 1).to_le_bytes().to_vec();
    for from in 0..=greatest {
        for to in 0..=greatest {
            let distance = given.get(&(from, to)).or_else(|| given.get(&(to, from))).copied();
            body.push(match distance {
                _ if from == to => DISTANCE_TO_ITSELF,
                Some(distance) => distance,
                None => DISTANCE_TO_OTHERS,
            });
        }
    }
    Ok(table::table(b"SLIT", 1, &body))
}
