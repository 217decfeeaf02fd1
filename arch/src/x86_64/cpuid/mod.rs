//! The CPU identification of a guest: what the hypervisor offers, less what is hidden, with the
//! guest's own topology.
//!
//! [`CpuidTemplate::new`] makes the table that all vCPUs share; [`CpuidTemplate::for_vcpu`] fills in
//! what differs: APIC ids. What a saved guest needs of another host is [`compat`](super::compat)'s
//! business.
//!
//! Frequencies (leaves 0x15 and 0x16) and the hypervisor's own leaves (from 0x4000_0000) are passed
//! on as they are offered.

#[cfg(test)]
pub(super) mod sample;
mod xsave;

use hypervisor::x86_64::CpuidEntry;
use thiserror::Error;

use super::{
    feature::{self, FeatureSet, Register, Word},
    layout::MIN_PHYS_BITS,
    topology::Topology,
};

/// The leaves this module knows.
pub(super) mod leaf {
    pub const VENDOR: u32 = 0;
    pub const FEATURES: u32 = 1;
    pub const CACHES: u32 = 4;
    pub const TOPOLOGY: u32 = 0xb;
    pub const XSAVE: u32 = 0xd;
    pub const SGX: u32 = 0x12;
    pub const PROCESSOR_TRACE: u32 = 0x14;
    pub const TILES: u32 = 0x1d;
    pub const TILE_MULTIPLY: u32 = 0x1e;
    pub const TOPOLOGY_V2: u32 = 0x1f;
    pub const AVX10: u32 = 0x24;
    pub const HYPERVISOR_FEATURES: u32 = 0x4000_0001;
    pub const EXTENDED_FEATURES: u32 = 0x8000_0001;
    pub const ADDRESS_SIZES: u32 = 0x8000_0008;
    pub const SVM: u32 = 0x8000_000a;
    pub const AMD_CACHES: u32 = 0x8000_001d;
    pub const AMD_TOPOLOGY: u32 = 0x8000_001e;
    pub const AMD_TOPOLOGY_V2: u32 = 0x8000_0026;
}

/// Local APIC ids that fit into the 8 bits outside x2APIC mode; 255 is the broadcast id.
const MAX_XAPIC_ID: u32 = 254;

/// What the table is made of.
#[derive(Clone, Debug)]
pub struct CpuidConfig<'a> {
    /// What the hypervisor offers.
    pub supported: &'a [CpuidEntry],
    /// The arrangement of the greatest number of vCPUs the guest can have.
    pub topology: Topology,
    /// Upper limit of the guest's physical address bits.
    pub max_phys_bits: u8,
    /// Whether the guest may run guests of its own.
    pub nested: bool,
    /// Whether the guest may use AMX.
    pub amx: bool,
    /// Whether local APIC timers have TSC deadline mode. Hypervisors offer it apart from the table.
    pub tsc_deadline_timer: bool,
    /// Whether MSIs and IOAPIC entries carry 15-bit destinations. Only a split interrupt controller
    /// understands them everywhere; without, Linux uses no CPU whose APIC id is above 254.
    pub extended_destination_id: bool,
    /// Features the guest is not to see.
    pub hidden: &'a FeatureSet,
}

/// Why no table can be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CpuidError {
    /// The hypervisor's table lacks something no guest can do without.
    #[error("the hypervisor offers no CPUID leaf {leaf:#x}")]
    NoLeaf {
        /// The leaf.
        leaf: u32,
    },

    /// More vCPUs than can be addressed without x2APIC.
    #[error("APIC id {apic_id} needs x2APIC, which the guest does not have")]
    NoX2Apic {
        /// The greatest APIC id.
        apic_id: u32,
    },
}

/// Who made the CPU, as far as tables differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// Intel, and those who follow it.
    Intel,
    /// AMD and Hygon.
    Amd,
}

/// The vendor a table names.
pub fn vendor(table: &[CpuidEntry]) -> Vendor {
    match vendor_string(table).as_str() {
        "AuthenticAMD" | "HygonGenuine" => Vendor::Amd,
        _ => Vendor::Intel,
    }
}

/// The twelve characters of leaf 0.
pub fn vendor_string(table: &[CpuidEntry]) -> String {
    table.iter().find(|entry| entry.leaf == leaf::VENDOR).map_or_else(String::new, |entry| {
        [entry.ebx, entry.edx, entry.ecx]
            .iter()
            .flat_map(|register| register.to_le_bytes())
            .flat_map(|byte| byte.escape_ascii())
            .map(char::from)
            .collect()
    })
}

/// Physical address bits of a guest on this host: what is offered, but no more than `max`.
pub fn phys_bits(supported: &[CpuidEntry], max: u8) -> u8 {
    let [offered, ..] =
        Word { leaf: leaf::ADDRESS_SIZES, subleaf: 0, register: Register::Eax }.of(supported).to_le_bytes();
    // A processor without the leaf has 36 bits (Intel SDM volume 3, 4.1.4).
    let offered = if offered == 0 { MIN_PHYS_BITS } else { offered };
    offered.min(max)
}

/// The table that all vCPUs of a guest share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuidTemplate {
    entries: Vec<CpuidEntry>,
    topology: Topology,
    vendor: Vendor,
}

impl CpuidTemplate {
    /// Makes the table.
    ///
    /// # Errors
    /// The hypervisor offers no usable table, or the topology needs x2APIC and the guest has none.
    pub fn new(config: &CpuidConfig<'_>) -> Result<Self, CpuidError> {
        for leaf in [leaf::VENDOR, leaf::FEATURES, leaf::EXTENDED_FEATURES] {
            if !config.supported.iter().any(|entry| entry.leaf == leaf) {
                return Err(CpuidError::NoLeaf { leaf });
            }
        }
        let topology_leaves = [leaf::TOPOLOGY, leaf::TOPOLOGY_V2, leaf::AMD_TOPOLOGY_V2];
        let mut template = Self {
            entries: config
                .supported
                .iter()
                .copied()
                .filter(|entry| !topology_leaves.contains(&entry.leaf))
                .collect(),
            topology: config.topology,
            vendor: vendor(config.supported),
        };
        template.set_flags(config);
        template.hide(config);
        template.clamp_phys_bits(config.max_phys_bits);
        template.add_topology();
        let apic_id = config.topology.max_apic_id();
        if apic_id > MAX_XAPIC_ID && !feature::has(&template.entries, "x2apic") {
            return Err(CpuidError::NoX2Apic { apic_id });
        }
        Ok(template)
    }

    /// The table of one vCPU.
    pub fn for_vcpu(&self, vcpu: u32) -> Vec<CpuidEntry> {
        let apic_id = self.topology.apic_id(vcpu);
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            match entry.leaf {
                leaf::FEATURES => entry.ebx = entry.ebx & 0x00ff_ffff | (apic_id & 0xff) << 24,
                leaf::TOPOLOGY | leaf::TOPOLOGY_V2 => entry.edx = apic_id,
                leaf::AMD_TOPOLOGY if self.vendor == Vendor::Amd => {
                    let core = apic_id >> self.topology.core_shift();
                    let node = apic_id >> self.topology.die_shift();
                    entry.eax = apic_id;
                    entry.ebx = (core & 0xff) | ((self.topology.threads_per_core() - 1) & 0xff) << 8;
                    entry.ecx = (node & 0xff) | (self.topology.dies_per_package() - 1).min(7) << 8;
                }
                _ => {}
            }
        }
        entries
    }

    /// The table before APIC ids are filled in.
    pub fn entries(&self) -> &[CpuidEntry] {
        &self.entries
    }

    /// Flags that depend on the machine, not on the host's processor.
    fn set_flags(&mut self, config: &CpuidConfig<'_>) {
        let several = self.topology.vcpus_per_package() > 1;
        let amd = self.vendor == Vendor::Amd;
        for entry in &mut self.entries {
            match entry.leaf {
                leaf::FEATURES => {
                    set(&mut entry.ecx, 31, true); // hypervisor
                    set(&mut entry.ecx, 24, config.tsc_deadline_timer);
                    set(&mut entry.ecx, 27, false); // osxsave: the guest's CR4 decides
                    set(&mut entry.edx, 28, several); // ht: EBX 23..16 is valid
                }
                7 if entry.subleaf == 0 => set(&mut entry.ecx, 4, false), // ospke: the guest's CR4 decides
                leaf::EXTENDED_FEATURES => set(&mut entry.ecx, 1, several && amd), // cmp_legacy
                leaf::HYPERVISOR_FEATURES if config.extended_destination_id => set(&mut entry.eax, 15, true),
                _ => {}
            }
        }
    }

    fn hide(&mut self, config: &CpuidConfig<'_>) {
        let mut hidden = config.hidden.clone();
        let by_option = [(!config.nested, "vmx"), (!config.nested, "svm"), (!config.amx, "amx_tile")];
        for (_, name) in by_option.iter().filter(|(hide, _)| *hide) {
            hidden.insert(name).expect("a name of the feature table");
        }
        hidden.hide_from(&mut self.entries);

        let described_by = [
            (leaf::XSAVE, "xsave"),
            (leaf::SGX, "sgx"),
            (leaf::PROCESSOR_TRACE, "intel_pt"),
            (leaf::TILES, "amx_tile"),
            (leaf::TILE_MULTIPLY, "amx_tile"),
            (leaf::AVX10, "avx10"),
            (leaf::SVM, "svm"),
        ];
        for (leaf, name) in described_by {
            if !feature::has(&self.entries, name) {
                self.entries.retain(|entry| entry.leaf != leaf);
            }
        }
        xsave::restrict(&mut self.entries);
    }

    fn clamp_phys_bits(&mut self, max: u8) {
        let bits = phys_bits(&self.entries, max);
        for entry in self.entries.iter_mut().filter(|entry| entry.leaf == leaf::ADDRESS_SIZES) {
            let [_, linear, guest, reserved] = entry.eax.to_le_bytes();
            // The third byte, if not zero, is what a guest of this guest may use at most.
            entry.eax = u32::from_le_bytes([bits, linear, guest.min(bits), reserved]);
        }
    }

    /// Topology as each vendor's software reads it: leaves 1, 4, 0xb and 0x1f (Intel), 0x8000_0008,
    /// 0x8000_001d and 0x8000_001e (AMD).
    fn add_topology(&mut self) {
        let topology = self.topology;
        let amd = self.vendor == Vendor::Amd;
        let in_package = topology.vcpus_per_package();
        let ids = |shift: u32| 1u32 << shift;
        for entry in &mut self.entries {
            match entry.leaf {
                leaf::FEATURES => {
                    let count = if amd { in_package } else { ids(topology.package_shift()) };
                    entry.ebx = entry.ebx & 0x0000_ffff | count.min(255) << 16;
                }
                leaf::CACHES | leaf::AMD_CACHES if entry.eax & 0x1f != 0 => {
                    let level = entry.eax >> 5 & 7;
                    let sharing =
                        if level <= 2 { ids(topology.core_shift()) } else { ids(topology.die_shift()) };
                    let cores = ids(topology.package_shift() - topology.core_shift());
                    let cores = if entry.leaf == leaf::CACHES { (cores - 1).min(63) } else { 0 };
                    entry.eax = entry.eax & 0x3fff | (sharing - 1).min(4095) << 14 | cores << 26;
                }
                leaf::ADDRESS_SIZES if amd => {
                    let count = (in_package - 1).min(255);
                    entry.ecx = entry.ecx & !0xf0ff | count | topology.package_shift().min(15) << 12;
                }
                _ => {}
            }
        }
        self.add_topology_leaves();
    }

    fn add_topology_leaves(&mut self) {
        const THREAD: u32 = 1;
        const CORE: u32 = 2;
        const DIE: u32 = 5;
        let topology = self.topology;
        let threads = (THREAD, topology.core_shift(), topology.threads_per_core());
        let in_package = topology.vcpus_per_package();
        let cores_of_package = (CORE, topology.package_shift(), in_package);
        let cores_of_die = (CORE, topology.die_shift(), topology.vcpus_per_die());
        let dies = (DIE, topology.package_shift(), in_package);

        let offered =
            self.entries.iter().find(|entry| entry.leaf == leaf::VENDOR).map_or(0, |entry| entry.eax);
        let mut last = offered.max(leaf::TOPOLOGY);
        self.entries.extend(levels(leaf::TOPOLOGY, &[threads, cores_of_package]));
        // Leaf 0xb has no dies. Software that finds leaf 0x1f reads nothing else.
        if topology.dies_per_package() > 1 && self.vendor == Vendor::Intel {
            last = last.max(leaf::TOPOLOGY_V2);
            self.entries.extend(levels(leaf::TOPOLOGY_V2, &[threads, cores_of_die, dies]));
        }
        for entry in self.entries.iter_mut().filter(|entry| entry.leaf == leaf::VENDOR) {
            entry.eax = last;
        }
    }
}

/// The subleaves of a topology leaf, the last with the invalid level type 0.
fn levels(leaf: u32, levels: &[(u32, u32, u32)]) -> Vec<CpuidEntry> {
    (0..)
        .zip(levels.iter().chain([&(0, 0, 0)]))
        .map(|(subleaf, &(kind, shift, count))| CpuidEntry {
            leaf,
            subleaf,
            subleaf_significant: true,
            eax: shift,
            ebx: count & 0xffff,
            ecx: subleaf | kind << 8,
            edx: 0,
        })
        .collect()
}

fn set(register: &mut u32, bit: u32, value: bool) {
    *register = *register & !(1 << bit) | u32::from(value) << bit;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(table: &[CpuidEntry], leaf: u32, subleaf: u32) -> CpuidEntry {
        *table
            .iter()
            .find(|e| e.leaf == leaf && e.subleaf == subleaf)
            .unwrap_or_else(|| panic!("{leaf:#x}.{subleaf}"))
    }

    fn table(host: &[CpuidEntry], topology: Topology, vcpu: u32) -> Vec<CpuidEntry> {
        CpuidTemplate::new(&CpuidConfig { topology, ..sample::config(host) }).unwrap().for_vcpu(vcpu)
    }

    #[test]
    fn topology_as_intel_software_reads_it() {
        let topology = Topology::new(2, 3, 2, 2).unwrap();
        let table = table(&sample::intel(), topology, 23);
        let id = topology.apic_id(23);
        let features = entry(&table, 1, 0);
        assert_eq!((features.ebx >> 24, features.ebx >> 16 & 0xff, features.ebx >> 8 & 0xff), (id, 16, 8));
        assert_ne!(features.edx & 1 << 28, 0);

        let thread = entry(&table, 0xb, 0);
        assert_eq!((thread.eax, thread.ebx, thread.ecx, thread.edx), (1, 2, 0x100, id));
        let core = entry(&table, 0xb, 1);
        assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (4, 12, 0x201, id));
        let end = entry(&table, 0xb, 2);
        assert_eq!((end.eax, end.ebx, end.ecx, end.edx), (0, 0, 2, id));

        let core = entry(&table, 0x1f, 1);
        assert_eq!((core.eax, core.ebx, core.ecx), (3, 6, 0x201));
        let die = entry(&table, 0x1f, 2);
        assert_eq!((die.eax, die.ebx, die.ecx, die.edx), (4, 12, 0x502, id));
        assert_eq!(entry(&table, 0, 0).eax, 0x1f);

        let l1 = entry(&table, 4, 0);
        assert_eq!((l1.eax & 0x1f, l1.eax >> 14 & 0xfff, l1.eax >> 26), (1, 1, 7));
        let l3 = entry(&table, 4, 3);
        assert_eq!((l3.eax & 0x1f, l3.eax >> 14 & 0xfff, l3.eax >> 26), (3, 7, 7));
        assert_eq!(entry(&table, 4, 4).eax, 0);
    }

    #[test]
    fn topology_as_amd_software_reads_it() {
        let topology = Topology::new(2, 4, 2, 1).unwrap();
        let table = table(&sample::amd(), topology, 13);
        assert_eq!(entry(&table, 1, 0).ebx >> 16 & 0xff, 16);
        assert_eq!(entry(&table, 0x8000_0008, 0).ecx & 0xf0ff, 0x400f);
        let ids = entry(&table, 0x8000_001e, 0);
        assert_eq!((ids.eax, ids.ebx, ids.ecx), (13, 0x106, 0x101));
        let l3 = entry(&table, 0x8000_001d, 3);
        assert_eq!((l3.eax >> 14 & 0xfff, l3.eax >> 26), (7, 0));
        assert!(table.iter().all(|e| e.leaf != 0x1f));
        assert_eq!(entry(&table, 0xb, 1).ebx, 16);
    }

    #[test]
    fn a_single_vcpu_has_no_siblings() {
        let table = table(&sample::amd(), Topology::flat(1).unwrap(), 0);
        let features = entry(&table, 1, 0);
        assert_eq!((features.ebx >> 16, features.edx & 1 << 28), (1, 0));
        assert_eq!(entry(&table, 0x8000_0001, 0).ecx & 2, 0);
        assert_eq!(entry(&table, 0xb, 0).ebx, 1);
    }

    #[test]
    fn apic_ids_above_254_need_x2apic() {
        let topology = Topology::flat(300).unwrap();
        let table = table(&sample::intel(), topology, 299);
        assert_eq!(entry(&table, 0xb, 0).edx, 299);
        assert_eq!(entry(&table, 1, 0).ebx >> 24, 299 & 0xff);

        let hidden = FeatureSet::parse(["x2apic"]).unwrap();
        let host = sample::intel();
        let config = CpuidConfig { topology, hidden: &hidden, ..sample::config(&host) };
        assert_eq!(
            CpuidTemplate::new(&config).unwrap_err().to_string(),
            "APIC id 299 needs x2APIC, which the guest does not have"
        );
        let config = CpuidConfig { topology: Topology::flat(255).unwrap(), ..config };
        assert!(CpuidTemplate::new(&config).is_ok());
    }

    #[test]
    fn options_hide_what_they_say() {
        for host in [sample::intel(), sample::amd()] {
            let config = sample::config(&host);
            let of = |config: CpuidConfig<'_>| CpuidTemplate::new(&config).unwrap().entries().to_vec();
            let nested = of(CpuidConfig { nested: true, ..config.clone() });
            assert!(feature::has(&nested, "vmx") || feature::has(&nested, "svm"));
            let plain = of(CpuidConfig { nested: false, ..config.clone() });
            assert!(!feature::has(&plain, "vmx") && !feature::has(&plain, "svm"));
            assert!(plain.iter().all(|e| e.leaf != 0x8000_000a));
            assert!(feature::has(&plain, "hypervisor") && feature::has(&plain, "tsc_deadline_timer"));
            assert!(!feature::has(&plain, "amx_tile"));
        }
        let host = sample::intel();
        let amx = CpuidTemplate::new(&CpuidConfig { amx: true, ..sample::config(&host) }).unwrap();
        assert!(feature::has(amx.entries(), "amx_tile") && feature::has(amx.entries(), "amx_bf16"));
        assert!(amx.entries().iter().any(|e| e.leaf == 0x1d));
        assert_eq!(entry(amx.entries(), 0xd, 0).eax & 0x6_0000, 0x6_0000);
    }

    #[test]
    fn hidden_xsave_takes_its_leaf_with_it() {
        let hidden = FeatureSet::parse(["xsave", "cx16"]).unwrap();
        let host = sample::intel();
        let template = CpuidTemplate::new(&CpuidConfig { hidden: &hidden, ..sample::config(&host) }).unwrap();
        assert!(template.entries().iter().all(|e| e.leaf != 0xd));
        for name in ["cx16", "xsave", "avx", "avx2", "avx512f", "pku"] {
            assert!(!feature::has(template.entries(), name), "{name}");
        }
        assert!(feature::has(template.entries(), "sse4_2"));
    }

    #[test]
    fn address_bits_are_clamped() {
        let host = sample::intel();
        assert_eq!((phys_bits(&host, 46), phys_bits(&host, 39), phys_bits(&[], 46)), (46, 39, 36));
        let config = CpuidConfig { max_phys_bits: 40, ..sample::config(&host) };
        let template = CpuidTemplate::new(&config).unwrap();
        assert_eq!(entry(template.entries(), 0x8000_0008, 0).eax, 0x0000_3028);
    }

    #[test]
    fn tables_without_the_basics_are_refused() {
        assert_eq!(
            CpuidTemplate::new(&sample::config(&[])).unwrap_err().to_string(),
            "the hypervisor offers no CPUID leaf 0x0"
        );
    }

    #[test]
    fn hypervisor_leaves_are_passed_on() {
        let host = sample::amd();
        let template = CpuidTemplate::new(&sample::config(&host)).unwrap();
        assert_eq!(entry(template.entries(), 0x4000_0000, 0), entry(&host, 0x4000_0000, 0));
        assert_eq!(entry(template.entries(), 0x4000_0001, 0), entry(&host, 0x4000_0001, 0));
        let config = CpuidConfig { extended_destination_id: true, ..sample::config(&host) };
        let template = CpuidTemplate::new(&config).unwrap();
        assert_ne!(entry(template.entries(), 0x4000_0001, 0).eax & 1 << 15, 0);
    }

    proptest! {
        #[test]
        fn any_table_makes_one_or_an_error(
            entries in prop::collection::vec((0u32..0x30, 0u32..20, any::<[u32; 4]>(), 0usize..3), 0..60),
            cores in 1u16..600,
            bits: u8,
        ) {
            let base = [0, 0x4000_0000, 0x8000_0000];
            let host: Vec<CpuidEntry> = entries
                .into_iter()
                .map(|(leaf, subleaf, [eax, ebx, ecx, edx], range)| CpuidEntry {
                    leaf: base[range] + leaf, subleaf, subleaf_significant: true, eax, ebx, ecx, edx,
                })
                .chain(sample::amd().into_iter().take(2))
                .collect();
            let config = CpuidConfig {
                topology: Topology::new(2, cores, 1, 3).unwrap(),
                max_phys_bits: bits,
                ..sample::config(&host)
            };
            if let Ok(template) = CpuidTemplate::new(&config) {
                let guest = template.for_vcpu(config.topology.vcpus() - 1);
                prop_assert_eq!(crate::x86_64::compat::missing(&guest, &host), []);
            }
        }
    }
}
