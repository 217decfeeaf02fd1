//! Whether a host can go on running a guest that was started elsewhere.
//!
//! A saved or migrating guest has seen a table of CPU features and holds on to it. [`missing`]
//! compares that table with what this host's hypervisor offers, and names each thing that is not
//! there. Called before anything is restored.

use std::fmt;

use hypervisor::x86_64::CpuidEntry;

use super::{
    cpuid::{self, leaf},
    feature::{self, Register, Word},
};

/// Something the guest has that the host does not offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Processors of another maker.
    Vendor {
        /// What the guest has.
        guest: String,
        /// What the host has.
        host: String,
    },
    /// A feature, by its name.
    Feature(&'static str),
    /// A feature bit without a name.
    Bit {
        /// The register.
        word: Word,
        /// The bit.
        bit: u32,
    },
    /// Physical address bits.
    PhysBits {
        /// What the guest has.
        guest: u8,
        /// What the host offers.
        host: u8,
    },
    /// A component of the extended state, or one that is laid out otherwise.
    XsaveComponent {
        /// Its number in XCR0 or IA32_XSS.
        component: u32,
    },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vendor { guest, host } => write!(f, "CPU vendor {guest} (this host is {host})"),
            Self::Feature(name) => f.write_str(name),
            Self::Bit { word: Word { leaf, subleaf, register }, bit } => {
                write!(f, "CPUID leaf {leaf:#x}.{subleaf} {register} bit {bit}")
            }
            Self::PhysBits { guest, host } => {
                write!(f, "{guest} physical address bits (this host has {host})")
            }
            Self::XsaveComponent { component } => write!(f, "XSAVE component {component} as saved"),
        }
    }
}

/// Bits that this process or the guest sets, whatever the host offers.
const NOT_OF_THE_HOST: &[&str] =
    &["hypervisor", "ht", "cmp_legacy", "osxsave", "ospke", "tsc_deadline_timer", "kvm_msi_ext_dest_id"];

/// What `guest`, the table of a guest that ran elsewhere, has and `offered`, what this host's
/// hypervisor offers, has not. Empty when the guest can go on here.
pub fn missing(guest: &[CpuidEntry], offered: &[CpuidEntry]) -> Vec<Missing> {
    let mut missing = Vec::new();
    let (guest_vendor, host_vendor) = (cpuid::vendor_string(guest), cpuid::vendor_string(offered));
    if guest_vendor != host_vendor {
        missing.push(Missing::Vendor { guest: guest_vendor, host: host_vendor });
    }
    for word in feature::words() {
        let lost = word.of(guest) & !word.of(offered);
        for bit in (0..32).filter(|bit| lost & (1 << bit) != 0) {
            match feature::name(&word, bit) {
                Some(name) if NOT_OF_THE_HOST.contains(&name) => {}
                Some(name) if missing.contains(&Missing::Feature(name)) => {}
                Some(name) => missing.push(Missing::Feature(name)),
                None => missing.push(Missing::Bit { word, bit }),
            }
        }
    }
    let (guest_bits, host_bits) = (cpuid::phys_bits(guest, u8::MAX), cpuid::phys_bits(offered, u8::MAX));
    if guest_bits > host_bits {
        missing.push(Missing::PhysBits { guest: guest_bits, host: host_bits });
    }
    missing.extend(
        (0..64)
            .filter(|component| !has_component(guest, offered, *component))
            .map(|component| Missing::XsaveComponent { component }),
    );
    missing
}

/// Whether a component that the guest has is offered, at the same place in the standard format.
fn has_component(guest: &[CpuidEntry], offered: &[CpuidEntry], component: u32) -> bool {
    let xsave = |subleaf, register| Word { leaf: leaf::XSAVE, subleaf, register };
    let bit = |table: &[CpuidEntry], low: Word, high: Word| {
        let word = if component < 32 { low } else { high };
        word.of(table) & (1 << (component % 32)) != 0
    };
    let user = |table| bit(table, xsave(0, Register::Eax), xsave(0, Register::Edx));
    let supervisor = |table| bit(table, xsave(1, Register::Ecx), xsave(1, Register::Edx));
    if !user(guest) && !supervisor(guest) {
        return true;
    }
    if user(guest) != user(offered) || supervisor(guest) != supervisor(offered) {
        return false;
    }
    // The first two components have a fixed place and no subleaf of their own.
    component < 2
        || [Register::Eax, Register::Ebx].into_iter().all(|register| {
            let word = xsave(component, register);
            word.of(guest) == word.of(offered)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86_64::{
        cpuid::{CpuidConfig, CpuidTemplate, sample},
        feature::FeatureSet,
        topology::Topology,
    };

    fn words(missing: &[Missing]) -> Vec<String> {
        missing.iter().map(ToString::to_string).collect()
    }

    fn guest_of(host: &[CpuidEntry], hidden: &[&str]) -> Vec<CpuidEntry> {
        let hidden = FeatureSet::parse(hidden.iter().copied()).unwrap();
        CpuidTemplate::new(&CpuidConfig {
            topology: Topology::new(2, 2, 1, 1).unwrap(),
            hidden: &hidden,
            ..sample::config(host)
        })
        .unwrap()
        .for_vcpu(3)
    }

    #[test]
    fn a_guest_can_go_on_where_it_was_started() {
        for host in [sample::intel(), sample::amd()] {
            assert_eq!(missing(&guest_of(&host, &[]), &host), []);
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let host = sample::intel();
        let mut lesser = host.clone();
        FeatureSet::parse(["avx512f", "cx16"]).unwrap().hide_from(&mut lesser);
        for entry in &mut lesser {
            match (entry.leaf, entry.subleaf) {
                (0xd, 0) => entry.eax &= !0xe0,
                (0x8000_0008, _) => entry.eax = entry.eax & !0xff | 39,
                _ => {}
            }
        }
        let guest = guest_of(&host, &[]);
        let found = words(&missing(&guest, &lesser));
        for expected in [
            "cx16",
            "avx512f",
            "avx512vl",
            "XSAVE component 5 as saved",
            "XSAVE component 7 as saved",
            "46 physical address bits (this host has 39)",
        ] {
            assert!(found.iter().any(|word| word == expected), "{expected} in {found:?}");
        }
        // Started with the same features hidden, the guest can move, but for its address bits.
        let guest = guest_of(&host, &["avx512f", "cx16"]);
        assert_eq!(words(&missing(&guest, &lesser)), ["46 physical address bits (this host has 39)"]);
    }

    #[test]
    fn another_vendor_and_unnamed_bits() {
        let found = words(&missing(&guest_of(&sample::amd(), &[]), &sample::intel()));
        assert_eq!(found[0], "CPU vendor AuthenticAMD (this host is GenuineIntel)");
        let mut guest = sample::intel();
        guest.iter_mut().find(|entry| entry.leaf == 1).unwrap().edx |= 1 << 20;
        assert_eq!(words(&missing(&guest, &sample::intel())), ["CPUID leaf 0x1.0 EDX bit 20"]);
    }

    #[test]
    fn a_component_at_another_place_is_missing() {
        let guest = guest_of(&sample::intel(), &[]);
        let mut host = sample::intel();
        host.iter_mut().find(|entry| (entry.leaf, entry.subleaf) == (0xd, 9)).unwrap().ebx = 832;
        assert_eq!(words(&missing(&guest, &host)), ["XSAVE component 9 as saved"]);
    }
}
