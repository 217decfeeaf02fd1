//! What a configuration must satisfy before anything is opened or allocated.

use std::{
    collections::BTreeSet,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use arch::x86_64::{feature::UnknownFeature, topology::TopologyError};
use thiserror::Error;

use super::{DeviceConfig, MemoryZoneConfig, PAGE_SIZE, PMEM_ALIGNMENT, PciPlace, VmConfig};

/// What kind of mistake a [`ConfigError`] is: the REST API answers each with another code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// Something is there twice.
    Conflict,
    /// A value cannot be.
    Invalid,
    /// Clients learn of it only when the machine is built.
    Build,
    /// It could be, but this version has no machinery for it.
    Absent,
}

/// A configuration that cannot be. Each names the thing and the value.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// No vCPU.
    #[error("cpus: a machine needs at least 1 vCPU")]
    NoVcpu,
    /// More vCPUs than the hypervisor, or the maximum, allows.
    #[error("cpus: {asked} vCPUs are more than {limit}, {whose}")]
    TooManyVcpus {
        /// What was asked for.
        asked: u32,
        /// What is possible.
        limit: u32,
        /// Whose limit that is.
        whose: &'static str,
    },
    /// Threads, cores, dies and packages do not multiply to the number of vCPUs.
    #[error("cpus: a topology of {product} vCPUs does not fit {max}")]
    Topology {
        /// Their product.
        product: u64,
        /// The maximum number of vCPUs.
        max: u32,
    },
    /// An affinity names a vCPU that does not exist.
    #[error("cpus: affinity of vCPU {vcpu}, of {max}")]
    Affinity {
        /// The vCPU named.
        vcpu: u32,
        /// The maximum number of vCPUs.
        max: u32,
    },
    /// No memory.
    #[error("memory: size is 0")]
    NoMemory,
    /// A size that pages do not divide.
    #[error("memory zone {zone}: size {size} is not a multiple of the page size {page}")]
    MemorySize {
        /// Which zone.
        zone: String,
        /// Its size.
        size: u64,
        /// The page size in use.
        page: u64,
    },
    /// A huge page size that is none.
    #[error("memory zone {zone}: huge page size {size} is not a power of two above {PAGE_SIZE}")]
    HugePage {
        /// Which zone.
        zone: String,
        /// What was asked for.
        size: u64,
    },
    /// Options of a zone that exclude each other.
    #[error("memory zone {zone}: {what}")]
    Zone {
        /// Which zone.
        zone: String,
        /// Which options.
        what: &'static str,
    },
    /// The same id twice.
    #[error("identifier {0} is not unique")]
    DuplicateId(String),
    /// The same device of the host twice.
    #[error("device {} is there twice", .0.display())]
    DuplicatePath(PathBuf),
    /// An id that is reserved.
    #[error("identifier {0} begins with __, which is reserved")]
    ReservedId(String),
    /// A device option out of its range.
    #[error("{id}: {what}")]
    Device {
        /// Which device.
        id: String,
        /// The option, its value and what is wrong.
        what: String,
    },
    /// Neither a kernel nor firmware.
    #[error("payload: neither a kernel nor firmware is given")]
    NoPayload,
    /// A number of PCI segments that cannot be.
    #[error("platform: {0} PCI segments, 1 to 96 are possible")]
    Segments(u16),
    /// Processors that cannot be arranged so.
    #[error("cpus")]
    Arrangement(#[from] TopologyError),
    /// A feature that is to be hidden and has no name.
    #[error("cpus: hide")]
    Feature(#[from] UnknownFeature),
    /// Something of the machine as a whole is out of its range.
    #[error("{section}: {what}")]
    Machine {
        /// The part of the configuration.
        section: &'static str,
        /// The option, its value and what is wrong.
        what: String,
    },
    /// The same of what is only found out when the machine is built.
    #[error("{section}: {what}")]
    Build {
        /// The part of the configuration.
        section: &'static str,
        /// The option, its value and what is wrong.
        what: String,
    },
    /// A valid wish that this version cannot fulfil.
    #[error("{section}: this version has no {what}")]
    Absent {
        /// The part of the configuration.
        section: String,
        /// What it lacks.
        what: &'static str,
    },
}

impl ConfigError {
    /// What kind of mistake it is.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::DuplicateId(_) | Self::DuplicatePath(_) => ErrorClass::Conflict,
            Self::NoMemory | Self::MemorySize { .. } | Self::Build { .. } => ErrorClass::Build,
            Self::Absent { .. } => ErrorClass::Absent,
            Self::NoVcpu
            | Self::TooManyVcpus { .. }
            | Self::Topology { .. }
            | Self::Affinity { .. }
            | Self::HugePage { .. }
            | Self::Zone { .. }
            | Self::ReservedId(_)
            | Self::Device { .. }
            | Self::NoPayload
            | Self::Segments(_)
            | Self::Arrangement(_)
            | Self::Feature(_)
            | Self::Machine { .. } => ErrorClass::Invalid,
        }
    }
}

/// Bytes of a socket's name, without the zero at its end (unix(7)).
const LONGEST_SOCKET: usize = 107;

/// Ids that the machine itself gives begin with this.
const RESERVED: &str = "__";
const FIXED_IDS: [&str; 3] = ["__console", "__rng", "__serial"];

impl VmConfig {
    /// Checks everything that does not need the host to be asked.
    ///
    /// # Errors
    /// The first thing that cannot be.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.check_cpus()?;
        self.check_memory()?;
        if !(1..=96).contains(&self.pci_segments) {
            return Err(ConfigError::Segments(self.pci_segments));
        }
        let zones = self.memory.iter().map(|zone| zone.id.as_str());
        let groups = self.rate_limit_groups.iter().map(|group| group.id.as_str());
        let devices = self.devices.iter().map(DeviceConfig::id);
        let mut seen = BTreeSet::new();
        for id in zones.chain(groups).chain(devices) {
            if id.starts_with(RESERVED) && !FIXED_IDS.contains(&id) {
                return Err(ConfigError::ReservedId(id.to_owned()));
            }
            if !seen.insert(id) {
                return Err(ConfigError::DuplicateId(id.to_owned()));
            }
        }
        self.devices.iter().try_for_each(|device| self.check_device(device))?;
        self.check_numa()
    }

    fn check_cpus(&self) -> Result<(), ConfigError> {
        let cpus = &self.cpus;
        if cpus.boot == 0 {
            return Err(ConfigError::NoVcpu);
        }
        if cpus.boot > cpus.max {
            let whose = "the maximum given";
            return Err(ConfigError::TooManyVcpus { asked: cpus.boot, limit: cpus.max, whose });
        }
        let product = u64::from(cpus.topology.vcpus());
        if product != u64::from(cpus.max) {
            return Err(ConfigError::Topology { product, max: cpus.max });
        }
        match cpus.affinity.iter().find(|(vcpu, _)| *vcpu >= cpus.max) {
            Some((vcpu, _)) => Err(ConfigError::Affinity { vcpu: *vcpu, max: cpus.max }),
            None => Ok(()),
        }
    }

    fn check_memory(&self) -> Result<(), ConfigError> {
        if self.memory_size() == 0 {
            return Err(ConfigError::NoMemory);
        }
        self.memory.iter().try_for_each(check_zone)
    }

    fn check_device(&self, device: &DeviceConfig) -> Result<(), ConfigError> {
        let bad = |what: String| Err(ConfigError::Device { id: device.id().to_owned(), what });
        device.place().check(self.pci_segments).or_else(bad)?;
        match device {
            DeviceConfig::Block(block) => {
                if block.num_queues == 0 || u32::from(block.num_queues) > self.cpus.boot {
                    let boot = self.cpus.boot;
                    return bad(format!(
                        "num_queues {}: 1 to the number of vCPUs ({boot})",
                        block.num_queues
                    ));
                }
                if !block.queue_size.is_power_of_two() || !(4..=32768).contains(&block.queue_size) {
                    return bad(format!("queue_size {}: a power of two from 4 to 32768", block.queue_size));
                }
                if block.serial.as_ref().is_some_and(|serial| serial.len() > 20) {
                    return bad("serial is longer than 20 bytes".into());
                }
                Ok(())
            }
            DeviceConfig::Net(net) => {
                let pairs = net.queue_pairs;
                if !(1..=16).contains(&pairs) || u32::from(pairs) > self.cpus.boot {
                    let boot = self.cpus.boot;
                    return bad(format!("{pairs} queue pairs: 1 to 16, and to the number of vCPUs ({boot})"));
                }
                if !net.queue_size.is_power_of_two() || !(4..=32768).contains(&net.queue_size) {
                    return bad(format!("queue_size {}: a power of two from 4 to 32768", net.queue_size));
                }
                if net.mtu.is_some_and(|mtu| mtu < 1280) {
                    return bad(format!("mtu {}: 1280 at least", net.mtu.unwrap_or_default()));
                }
                if (net.offload_tso || net.offload_ufo) && !net.offload_csum {
                    return bad("offload_tso and offload_ufo need offload_csum".into());
                }
                if !net.fds.is_empty() && net.fds.len() != usize::from(pairs) {
                    return bad(format!("{} descriptors for {pairs} queue pairs", net.fds.len()));
                }
                Ok(())
            }
            DeviceConfig::Pmem(pmem) => match pmem.size {
                Some(size) if size == 0 || !size.is_multiple_of(PMEM_ALIGNMENT) => {
                    bad(format!("size {size}: a multiple of 2 MiB above 0"))
                }
                _ => Ok(()),
            },
            DeviceConfig::Vsock(vsock) => check_socket(&vsock.socket).or_else(bad),
            DeviceConfig::Console(_) | DeviceConfig::Rng(_) => Ok(()),
        }
    }
}

/// Whether a Unix socket can have that name (unix(7)); if not, why.
fn check_socket(path: &Path) -> Result<(), String> {
    let name = path.as_os_str().as_bytes();
    // The kernel would make up a name.
    if name.is_empty() {
        return Err("socket: it is empty".into());
    }
    if name.len() > LONGEST_SOCKET || name.contains(&0) {
        let len = name.len();
        return Err(format!(
            "socket {}: {len} bytes, at most {LONGEST_SOCKET} and none of them 0",
            path.display()
        ));
    }
    Ok(())
}

impl PciPlace {
    /// Whether it is a place in a machine with so many segments; if not, why.
    pub(super) fn check(&self, segments: u16) -> Result<(), String> {
        if self.segment >= segments {
            return Err(format!("pci_segment {} of {segments}", self.segment));
        }
        match self.slot {
            Some(slot) if slot >= 32 => Err(format!("pci_device_id {slot}: slots are 0 to 31")),
            Some(0) if self.segment == 0 => Err("pci_device_id 0 is the host bridge's".into()),
            _ => Ok(()),
        }
    }
}

fn check_zone(zone: &MemoryZoneConfig) -> Result<(), ConfigError> {
    if let Some(size) = zone.hugepage_size
        && (!size.is_power_of_two() || size <= PAGE_SIZE)
    {
        return Err(ConfigError::HugePage { zone: zone.id.clone(), size });
    }
    let page = zone.hugepage_size.unwrap_or(PAGE_SIZE);
    if zone.size == 0 || !zone.size.is_multiple_of(page) || !zone.hotplug_size.is_multiple_of(page) {
        return Err(ConfigError::MemorySize { zone: zone.id.clone(), size: zone.size, page });
    }
    let conflict = match zone {
        MemoryZoneConfig { shared: true, mergeable: true, .. } => "shared memory cannot be mergeable",
        MemoryZoneConfig { hugepage_size: Some(_), mergeable: true, .. } => "huge pages cannot be mergeable",
        MemoryZoneConfig { file: Some(_), hugepage_size: Some(_), .. } => {
            "a file brings its own page size: hugepages cannot be asked for"
        }
        _ => return Ok(()),
    };
    Err(ConfigError::Zone { zone: zone.id.clone(), what: conflict })
}
