//! How vCPUs are arranged in packages, dies, cores and threads, and the APIC id that follows.
//!
//! An APIC id is a bit field: thread, core, die, package, from the lowest bit up, each as wide as
//! its number of members needs (Intel SDM volume 3, 9.9.1). Ids are therefore not contiguous when a
//! number is no power of two. The CPU identification ([`cpuid`](super::cpuid)) and the ACPI tables
//! both take ids from here.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Greatest number of vCPUs of a guest.
pub const MAX_VCPUS: u32 = 8192;

/// Why an arrangement is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TopologyError {
    /// A level without members.
    #[error("CPU topology {threads}:{cores}:{dies}:{packages} has a part that is 0")]
    Zero {
        /// Threads of a core.
        threads: u16,
        /// Cores of a die.
        cores: u16,
        /// Dies of a package.
        dies: u16,
        /// Packages.
        packages: u16,
    },

    /// More vCPUs than a guest can have, or none.
    #[error("{vcpus} vCPUs: expected 1 to {MAX_VCPUS}")]
    Vcpus {
        /// The number asked for.
        vcpus: u64,
    },
}

/// An arrangement of vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    threads: u16,
    cores: u16,
    dies: u16,
    packages: u16,
}

impl Topology {
    /// `threads` of a core, `cores` of a die, `dies` of a package, and packages.
    ///
    /// # Errors
    /// A part is zero, or the product is more than [`MAX_VCPUS`].
    pub fn new(threads: u16, cores: u16, dies: u16, packages: u16) -> Result<Self, TopologyError> {
        if [threads, cores, dies, packages].contains(&0) {
            return Err(TopologyError::Zero { threads, cores, dies, packages });
        }
        let vcpus = [threads, cores, dies, packages].into_iter().map(u64::from).product();
        if vcpus > u64::from(MAX_VCPUS) {
            return Err(TopologyError::Vcpus { vcpus });
        }
        Ok(Self { threads, cores, dies, packages })
    }

    /// What a guest gets that asks for nothing: one package of single-threaded cores. APIC ids are
    /// then the vCPU numbers.
    ///
    /// # Errors
    /// Zero or more than [`MAX_VCPUS`] vCPUs.
    pub fn flat(vcpus: u32) -> Result<Self, TopologyError> {
        let cores = u16::try_from(vcpus).ok().filter(|cores| (1..=MAX_VCPUS).contains(&u32::from(*cores)));
        match cores {
            Some(cores) => Self::new(1, cores, 1, 1),
            None => Err(TopologyError::Vcpus { vcpus: vcpus.into() }),
        }
    }

    /// Number of vCPUs.
    pub fn vcpus(&self) -> u32 {
        self.vcpus_per_package() * u32::from(self.packages)
    }

    /// Threads of a core.
    pub fn threads_per_core(&self) -> u32 {
        self.threads.into()
    }

    /// Dies of a package.
    pub fn dies_per_package(&self) -> u32 {
        self.dies.into()
    }

    /// vCPUs of a die.
    pub fn vcpus_per_die(&self) -> u32 {
        u32::from(self.threads) * u32::from(self.cores)
    }

    /// vCPUs of a package.
    pub fn vcpus_per_package(&self) -> u32 {
        self.vcpus_per_die() * u32::from(self.dies)
    }

    /// Where the core field starts in an APIC id.
    pub fn core_shift(&self) -> u32 {
        width(self.threads)
    }

    /// Where the die field starts in an APIC id.
    pub fn die_shift(&self) -> u32 {
        self.core_shift() + width(self.cores)
    }

    /// Where the package field starts in an APIC id.
    pub fn package_shift(&self) -> u32 {
        self.die_shift() + width(self.dies)
    }

    /// The APIC id of a vCPU. Threads of a core are neighbours in vCPU numbers, then its cores.
    pub fn apic_id(&self, vcpu: u32) -> u32 {
        let thread = vcpu % u32::from(self.threads);
        let core = vcpu / u32::from(self.threads) % u32::from(self.cores);
        let die = vcpu / self.vcpus_per_die() % u32::from(self.dies);
        let package = vcpu / self.vcpus_per_package();
        thread | core << self.core_shift() | die << self.die_shift() | package << self.package_shift()
    }

    /// The greatest APIC id of the guest.
    pub fn max_apic_id(&self) -> u32 {
        self.apic_id(self.vcpus() - 1)
    }
}

/// Bits that number `count` members.
fn width(count: u16) -> u32 {
    u16::BITS - (count - 1).leading_zeros()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn flat_ids_are_vcpu_numbers() {
        for vcpus in [1, 2, 3, 255, 8192] {
            let topology = Topology::flat(vcpus).unwrap();
            assert_eq!(topology.vcpus(), vcpus);
            assert!((0..vcpus).all(|vcpu| topology.apic_id(vcpu) == vcpu));
        }
        for vcpus in [0, 8193, 65536, u32::MAX] {
            assert_eq!(Topology::flat(vcpus), Err(TopologyError::Vcpus { vcpus: vcpus.into() }));
        }
    }

    #[test]
    fn fields_are_powers_of_two() {
        let topology = Topology::new(2, 3, 2, 2).unwrap();
        assert_eq!((topology.core_shift(), topology.die_shift(), topology.package_shift()), (1, 3, 4));
        let ids: Vec<u32> = (0..24).map(|vcpu| topology.apic_id(vcpu)).collect();
        assert_eq!(
            ids,
            [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 16, 17, 18, 19, 20, 21, 24, 25, 26, 27, 28, 29]
        );
    }

    #[test]
    fn impossible_topologies_are_refused() {
        assert!(matches!(Topology::new(2, 0, 1, 1), Err(TopologyError::Zero { .. })));
        assert_eq!(
            Topology::new(u16::MAX, u16::MAX, u16::MAX, u16::MAX),
            Err(TopologyError::Vcpus { vcpus: 0xfffc_0005_fffc_0001 })
        );
        assert_eq!(Topology::new(2, 4097, 1, 1), Err(TopologyError::Vcpus { vcpus: 8194 }));
    }

    proptest! {
        #[test]
        fn ids_are_distinct_and_bounded(threads in 1u16..5, cores in 1u16..70, dies in 1u16..5, packages in 1u16..5) {
            let topology = Topology::new(threads, cores, dies, packages).unwrap();
            let ids: BTreeSet<u32> = (0..topology.vcpus()).map(|vcpu| topology.apic_id(vcpu)).collect();
            prop_assert_eq!(ids.len() as u64, u64::from(topology.vcpus()));
            prop_assert_eq!(ids.last().copied(), Some(topology.max_apic_id()));
            prop_assert!(topology.max_apic_id() < 1 << 16);
        }
    }
}
