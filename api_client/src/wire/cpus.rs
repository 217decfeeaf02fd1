//! Processors.

use serde::{Deserialize, Serialize};

use super::on;

/// Processors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpusConfig {
    /// How many there are at boot.
    pub boot_vcpus: u32,
    /// How many there may be; `boot_vcpus` at least.
    pub max_vcpus: u32,
    /// How they are arranged; the parts multiply to `max_vcpus`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<CpuTopology>,
    /// Whether the guest sees Hyper-V's interface.
    #[serde(default)]
    pub kvm_hyperv: bool,
    /// Greatest number of physical address bits.
    #[serde(default = "default_max_phys_bits")]
    pub max_phys_bits: u8,
    /// On which host CPUs each vCPU runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Vec<CpuAffinity>>,
    /// Features that have to be asked for.
    #[serde(default)]
    pub features: CpuFeatures,
    /// Whether the guest may run virtual machines of its own.
    #[serde(default = "on")]
    pub nested: bool,
    /// Who may share a core of the host.
    #[serde(default)]
    pub core_scheduling: CoreScheduling,
    /// What processor the guest sees.
    #[serde(default)]
    pub profile: CpuProfile,
    /// Features to hide from the guest, by the names of `/proc/cpuinfo`. Cumulet's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hide: Vec<String>,
}

fn default_max_phys_bits() -> u8 {
    46
}

impl Default for CpusConfig {
    fn default() -> Self {
        Self {
            boot_vcpus: 1,
            max_vcpus: 1,
            topology: None,
            kvm_hyperv: false,
            max_phys_bits: default_max_phys_bits(),
            affinity: None,
            features: CpuFeatures::default(),
            nested: true,
            core_scheduling: CoreScheduling::default(),
            profile: CpuProfile::default(),
            hide: Vec::new(),
        }
    }
}

/// How vCPUs are arranged. No part is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuTopology {
    /// Threads of a core, at most 2.
    pub threads_per_core: u16,
    /// Cores of a die.
    pub cores_per_die: u16,
    /// Dies of a package.
    pub dies_per_package: u16,
    /// Packages.
    pub packages: u16,
}

/// On which host CPUs a vCPU runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuAffinity {
    /// The vCPU.
    pub vcpu: u32,
    /// The host's CPUs.
    pub host_cpus: Vec<usize>,
}

/// Processor features that have to be asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuFeatures {
    /// Advanced matrix extensions.
    pub amx: bool,
}

/// Who may share a core of the host with a vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CoreScheduling {
    /// The other threads of the VM.
    #[default]
    Vm,
    /// Nobody.
    Vcpu,
    /// Everybody.
    Off,
}

/// What processor the guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CpuProfile {
    /// The host's.
    #[default]
    Host,
}
