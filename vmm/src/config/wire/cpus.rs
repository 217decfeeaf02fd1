//! Processors.

use std::collections::BTreeMap;

use api_client::wire;
use arch::x86_64::{feature::FeatureSet, topology::Topology};

use crate::config::{ConfigError, CoreScheduling, CpusConfig};

/// More threads of a core than any x86 processor has are not described to a guest.
const MAX_THREADS_PER_CORE: u16 = 2;

pub(super) fn resolve(said: &wire::CpusConfig) -> Result<CpusConfig, ConfigError> {
    // Said here, and not by a topology of no processors.
    if said.boot_vcpus == 0 {
        return Err(ConfigError::NoVcpu);
    }
    if said.boot_vcpus > said.max_vcpus {
        return Err(ConfigError::TooManyVcpus {
            asked: said.boot_vcpus,
            limit: said.max_vcpus,
            whose: "the maximum given",
        });
    }
    let affinity = said.affinity.iter().flatten();
    let affinity: BTreeMap<u32, Vec<usize>> =
        affinity.map(|entry| (entry.vcpu, entry.host_cpus.clone())).collect();
    if let Some((vcpu, _)) = affinity.iter().find(|(_, cpus)| cpus.is_empty()) {
        return Err(ConfigError::Machine {
            section: "cpus",
            what: format!("affinity of vCPU {vcpu}: no host CPU is given"),
        });
    }
    Ok(CpusConfig {
        boot: said.boot_vcpus,
        max: said.max_vcpus,
        topology: topology(said)?,
        hide: FeatureSet::parse(said.hide.iter().map(String::as_str))?,
        nested: said.nested,
        amx: said.features.amx,
        max_phys_bits: said.max_phys_bits,
        affinity: affinity.into_iter().collect(),
        core_scheduling: match said.core_scheduling {
            wire::CoreScheduling::Off => CoreScheduling::Off,
            wire::CoreScheduling::Vm => CoreScheduling::Vm,
            wire::CoreScheduling::Vcpu => CoreScheduling::Vcpu,
        },
    })
}

fn topology(said: &wire::CpusConfig) -> Result<Topology, ConfigError> {
    let Some(topology) = said.topology else {
        return Ok(Topology::flat(said.max_vcpus)?);
    };
    let wire::CpuTopology { threads_per_core, cores_per_die, dies_per_package, packages } = topology;
    if threads_per_core > MAX_THREADS_PER_CORE {
        return Err(ConfigError::Machine {
            section: "cpus",
            what: format!("topology: {threads_per_core} threads of a core, {MAX_THREADS_PER_CORE} at most"),
        });
    }
    Ok(Topology::new(threads_per_core, cores_per_die, dies_per_package, packages)?)
}
