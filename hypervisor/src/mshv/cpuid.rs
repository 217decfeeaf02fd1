//! CPU identification: what the host can give a guest, and how the hypervisor is told what a guest
//! was given.
//!
//! The Microsoft Hypervisor answers CPUID itself, out of the partition's features; results can be
//! registered per vCPU and leaf (HvCallRegisterInterceptResult), each with a mask of the bits that
//! replace its own. There is no call for the table before a vCPU exists, so [`supported`] reads the
//! processor and leaves out what the partition does not have. Pure, but for [`host`].

use std::arch::x86_64::__cpuid_count;

use mshv_bindings::{
    hv_register_x64_cpuid_result_parameters, hv_register_x64_cpuid_result_parameters__bindgen_ty_1,
    hv_register_x64_cpuid_result_parameters__bindgen_ty_2,
};

use super::partition::Features;
use crate::x86_64::CpuidEntry;

/// Leaves that a table can have at most; a hostile one would otherwise be a hypercall each.
pub(super) const MAX_ENTRIES: usize = 256;

/// Subleaves of one leaf at most.
const MAX_SUBLEAVES: u32 = 64;

/// Leaves that a guest may see. The others tell of things that the partition has not: performance
/// monitoring, power management, resource allocation, enclaves, tracing, MWAIT.
const LEAVES: &[u32] = &[
    0,
    1,
    2,
    4,
    7,
    0xb,
    0xd,
    0x15,
    0x1f,
    0x8000_0000,
    0x8000_0001,
    0x8000_0002,
    0x8000_0003,
    0x8000_0004,
    0x8000_0005,
    0x8000_0006,
    0x8000_0007,
    0x8000_0008,
    0x8000_001d,
    0x8000_001e,
];

/// An output register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

use Output::{Eax, Ebx, Ecx, Edx};

/// Leaf, subleaf, register, and the number of a bit in it.
type FeatureBit = (u32, u32, Output, u32);

/// Registers whose bits are features: leaf, subleaf, register, and the bits that every partition
/// has. All others must be allowed by [`GOVERNED`] or [`GOVERNED_XSAVE`].
const FEATURE_REGISTERS: &[(u32, u32, Output, u32)] = &[
    // x2APIC.
    (1, 0, Ecx, 1 << 21),
    // All of the base set; not DTS, ACPI, TM, PBE, PSN.
    (1, 0, Edx, 0x178b_fbff),
    // x87 details.
    (7, 0, Ebx, 1 << 6 | 1 << 13),
    (7, 0, Ecx, 0),
    (7, 0, Edx, 0),
    (7, 1, Eax, 0),
    (7, 1, Ebx, 0),
    (7, 1, Ecx, 0),
    (7, 1, Edx, 0),
    (7, 2, Edx, 0),
    (0xd, 1, Eax, 0),
    // CMP_LEGACY, topology extensions.
    (0x8000_0001, 0, Ecx, 1 << 1 | 1 << 22),
    // SYSCALL, NX, FFXSR, long mode, and AMD's copies of leaf 1.
    (0x8000_0001, 0, Edx, 1 << 11 | 1 << 20 | 1 << 25 | 1 << 29 | 0x0183_f3ff),
    (0x8000_0007, 0, Ebx, 0),
    (0x8000_0007, 0, Ecx, 0),
    (0x8000_0007, 0, Edx, 0),
    // XSAVEERPTR.
    (0x8000_0008, 0, Ebx, 1 << 2),
];

/// Processor feature of the partition, and the CPUID bit that may be shown if it has it.
const GOVERNED: &[(u32, FeatureBit)] = &[
    (0, (1, 0, Ecx, 0)),             // SSE3
    (1, (0x8000_0001, 0, Ecx, 0)),   // LAHF
    (2, (1, 0, Ecx, 9)),             // SSSE3
    (3, (1, 0, Ecx, 19)),            // SSE4.1
    (4, (1, 0, Ecx, 20)),            // SSE4.2
    (5, (0x8000_0001, 0, Ecx, 6)),   // SSE4A
    (6, (0x8000_0001, 0, Ecx, 11)),  // XOP
    (7, (1, 0, Ecx, 23)),            // POPCNT
    (8, (1, 0, Ecx, 13)),            // CMPXCHG16B
    (9, (0x8000_0001, 0, Ecx, 4)),   // AltMovCr8
    (10, (0x8000_0001, 0, Ecx, 5)),  // LZCNT
    (11, (0x8000_0001, 0, Ecx, 7)),  // misaligned SSE
    (12, (0x8000_0001, 0, Edx, 22)), // MMX extensions
    (13, (0x8000_0001, 0, Edx, 31)), // 3DNow!
    (14, (0x8000_0001, 0, Edx, 30)), // 3DNow! extensions
    (15, (0x8000_0001, 0, Edx, 26)), // 1 GiB pages
    (16, (1, 0, Ecx, 25)),           // AES
    (17, (1, 0, Ecx, 1)),            // PCLMULQDQ
    (18, (1, 0, Ecx, 17)),           // PCID
    (19, (0x8000_0001, 0, Ecx, 16)), // FMA4
    (20, (1, 0, Ecx, 29)),           // F16C
    (21, (1, 0, Ecx, 30)),           // RDRAND
    (22, (7, 0, Ebx, 0)),            // FSGSBASE
    (23, (7, 0, Ebx, 7)),            // SMEP
    (24, (7, 0, Ebx, 9)),            // ERMS
    (25, (7, 0, Ebx, 3)),            // BMI1
    (26, (7, 0, Ebx, 8)),            // BMI2
    (29, (1, 0, Ecx, 22)),           // MOVBE
    (32, (7, 0, Ebx, 18)),           // RDSEED
    (33, (7, 0, Ebx, 19)),           // ADX
    (34, (0x8000_0001, 0, Ecx, 8)),  // PREFETCHW
    (35, (7, 0, Ebx, 20)),           // SMAP
    (36, (7, 0, Ebx, 4)),            // HLE
    (37, (7, 0, Ebx, 11)),           // RTM
    (38, (0x8000_0001, 0, Edx, 27)), // RDTSCP
    (39, (7, 0, Ebx, 23)),           // CLFLUSHOPT
    (40, (7, 0, Ebx, 24)),           // CLWB
    (41, (7, 0, Ebx, 29)),           // SHA
    (43, (7, 0, Ebx, 10)),           // INVPCID
    (44, (7, 0, Edx, 26)),           // IBRS and IBPB
    (44, (0x8000_0008, 0, Ebx, 14)),
    (45, (7, 0, Edx, 27)), // STIBP
    (45, (0x8000_0008, 0, Ebx, 15)),
    (46, (0x8000_0008, 0, Ebx, 12)), // IBPB
    (48, (7, 0, Edx, 31)),           // SSBD
    (48, (0x8000_0008, 0, Ebx, 24)),
    (49, (7, 0, Edx, 4)),            // FSRM
    (50, (7, 0, Edx, 28)),           // L1D_FLUSH
    (51, (7, 0, Edx, 29)),           // ARCH_CAPABILITIES, for RDCL_NO
    (52, (7, 0, Edx, 29)),           // ARCH_CAPABILITIES, for IBRS_ALL
    (57, (7, 0, Ecx, 22)),           // RDPID
    (58, (7, 0, Ecx, 2)),            // UMIP
    (60, (7, 0, Edx, 10)),           // MD_CLEAR
    (65, (0x8000_0007, 0, Edx, 8)),  // invariant TSC
    (66, (0x8000_0008, 0, Ebx, 0)),  // CLZERO
    (67, (0x8000_0008, 0, Ebx, 4)),  // RDPRU
    (68, (7, 0, Ecx, 16)),           // five-level paging
    (72, (7, 0, Ecx, 7)),            // CET shadow stacks
    (73, (7, 0, Edx, 20)),           // CET indirect branches
    (75, (7, 0, Ecx, 29)),           // ENQCMD
    (76, (7, 0, Ecx, 5)),            // UMWAIT
    (77, (7, 0, Ecx, 27)),           // MOVDIRI
    (78, (7, 0, Ecx, 28)),           // MOVDIR64B
    (79, (7, 0, Ecx, 25)),           // CLDEMOTE
    (80, (7, 0, Edx, 14)),           // SERIALIZE
    (81, (1, 0, Ecx, 24)),           // TSC deadline
    (82, (7, 0, Ebx, 1)),            // TSC_ADJUST
    (83, (7, 1, Eax, 10)),           // fast zero-length REP MOVSB
    (84, (7, 1, Eax, 11)),           // fast short REP STOSB
    (85, (7, 1, Eax, 12)),           // fast short REP CMPSB
    (95, (0x8000_0008, 0, Ebx, 17)), // STIBP always on
    (104, (7, 1, Eax, 7)),           // CMPccXADD
    (108, (7, 2, Edx, 4)),           // BHI_CTRL
];

/// The same for the extended-state features.
const GOVERNED_XSAVE: &[(u32, FeatureBit)] = &[
    (0, (1, 0, Ecx, 26)),   // XSAVE
    (1, (0xd, 1, Eax, 0)),  // XSAVEOPT
    (2, (1, 0, Ecx, 28)),   // AVX
    (3, (7, 0, Ebx, 5)),    // AVX2
    (4, (1, 0, Ecx, 12)),   // FMA
    (11, (0xd, 1, Eax, 1)), // XSAVEC
    (12, (0xd, 1, Eax, 3)), // XSAVES
];

/// The identification that a partition with `features` can show on this processor.
pub(super) fn supported(features: &Features) -> Vec<CpuidEntry> {
    table(features, host)
}

fn host(leaf: u32, subleaf: u32) -> [u32; 4] {
    let result = __cpuid_count(leaf, subleaf);
    [result.eax, result.ebx, result.ecx, result.edx]
}

/// As [`supported`], on a processor that answers as `read` does.
fn table(features: &Features, read: impl Fn(u32, u32) -> [u32; 4]) -> Vec<CpuidEntry> {
    let [basic, ..] = read(0, 0);
    let [extended, ..] = read(0x8000_0000, 0);
    let there = |leaf: u32| if leaf < 0x8000_0000 { leaf <= basic } else { leaf <= extended };
    let mut entries = Vec::new();
    for leaf in LEAVES.iter().copied().filter(|leaf| there(*leaf)) {
        for subleaf in 0..MAX_SUBLEAVES {
            let [eax, ebx, ecx, edx] = read(leaf, subleaf);
            let Some(more) = subleaf_follows(leaf, subleaf, [eax, ebx, ecx, edx]) else { break };
            let entry =
                CpuidEntry { leaf, subleaf, subleaf_significant: has_subleaves(leaf), eax, ebx, ecx, edx };
            if let Some(entry) = permitted(entry, features) {
                entries.push(entry);
            }
            if !more {
                break;
            }
        }
    }
    // What was left out at the end is not announced at the beginning.
    let last =
        |range: std::ops::Range<u32>| LEAVES.iter().rev().copied().find(|l| range.contains(l) && there(*l));
    for entry in &mut entries {
        match entry.leaf {
            0 => entry.eax = last(0..0x8000_0000).unwrap_or(0),
            0x8000_0000 => entry.eax = last(0x8000_0000..u32::MAX).unwrap_or(0x8000_0000),
            _ => {}
        }
    }
    entries
}

fn has_subleaves(leaf: u32) -> bool {
    matches!(leaf, 4 | 7 | 0xb | 0xd | 0x1f | 0x8000_001d)
}

/// Whether this subleaf exists (`None`: it does not) and another one may follow.
fn subleaf_follows(leaf: u32, subleaf: u32, [eax, _, ecx, _]: [u32; 4]) -> Option<bool> {
    match leaf {
        // Cache type 0 ends the list.
        4 | 0x8000_001d => (eax & 0x1f != 0).then_some(true),
        7 => Some(subleaf == 0 && eax > 0 || subleaf == 1),
        // Level type 0 ends the list.
        0xb | 0x1f => (subleaf == 0 || ecx >> 8 & 0xff != 0).then_some(true),
        0xd => Some(true),
        _ => Some(false),
    }
}

/// An entry without what the partition has not; `None` if nothing is left that means anything.
fn permitted(mut entry: CpuidEntry, features: &Features) -> Option<CpuidEntry> {
    match (entry.leaf, entry.subleaf) {
        (7, 0) => entry.eax = entry.eax.min(2),
        (0xd, subleaf) => return extended_state(entry, subleaf, features),
        _ => {}
    }
    let outputs =
        [(Eax, &mut entry.eax), (Ebx, &mut entry.ebx), (Ecx, &mut entry.ecx), (Edx, &mut entry.edx)];
    for (output, value) in outputs {
        if let Some(allowed) = allowed((entry.leaf, entry.subleaf, output), features) {
            *value &= allowed;
        }
    }
    if entry.leaf == 1 {
        // A hypervisor is present; the x2APIC is there whatever the host uses.
        entry.ecx |= 1 << 31 | 1 << 21;
    }
    Some(entry)
}

/// The bits that may be shown of a register that holds features; `None` for the others.
fn allowed(register: (u32, u32, Output), features: &Features) -> Option<u32> {
    let always =
        FEATURE_REGISTERS.iter().find(|(leaf, subleaf, output, _)| (*leaf, *subleaf, *output) == register)?.3;
    let bits = |list: &[(u32, FeatureBit)], has: &dyn Fn(u32) -> bool| {
        list.iter()
            .filter(|(number, (leaf, subleaf, output, _))| {
                (*leaf, *subleaf, *output) == register && has(*number)
            })
            .fold(0, |all, (_, (.., bit))| all | 1 << bit)
    };
    Some(always | bits(GOVERNED, &|n| features.has(n)) | bits(GOVERNED_XSAVE, &|n| features.has_xsave(n)))
}

/// Leaf 0xd: x87 and SSE state always, AVX state with AVX, nothing else (Intel SDM volume 1, 13.2).
fn extended_state(mut entry: CpuidEntry, subleaf: u32, features: &Features) -> Option<CpuidEntry> {
    if !features.has_xsave(0) {
        return None;
    }
    let components = if features.has_xsave(2) { 0b111 } else { 0b11 };
    match subleaf {
        0 => {
            entry.eax &= components;
            entry.edx = 0;
            // Size with all components: legacy area and header, and 256 bytes of AVX behind them.
            entry.ecx = if entry.eax & 0b100 != 0 { 576 + 256 } else { 576 };
            entry.ebx = entry.ecx;
        }
        1 => {
            entry.eax &= allowed((0xd, 1, Eax), features)?;
            entry.ebx = 0;
            entry.ecx = 0;
            entry.edx = 0;
        }
        2 if components & 0b100 != 0 && entry.eax != 0 => {}
        _ => return None,
    }
    Some(entry)
}

/// What to register for an entry of a guest's table; `None` where the hypervisor's own answer
/// stands: its identification (TLFS, "Feature and interface discovery"), and the sizes of the
/// extended state, which follow the partition's features and the guest's XCR0.
pub(super) fn registration(entry: &CpuidEntry) -> Option<hv_register_x64_cpuid_result_parameters> {
    if matches!(entry.leaf, 0x4000_0000..=0x4fff_ffff | 0xd) {
        return None;
    }
    // OSXSAVE and OSPKE show the guest's own CR4 and must not stand still.
    let moving = match (entry.leaf, entry.subleaf) {
        (1, _) => 1 << 27,
        (7, 0) => 1 << 4,
        _ => 0,
    };
    Some(hv_register_x64_cpuid_result_parameters {
        input: hv_register_x64_cpuid_result_parameters__bindgen_ty_1 {
            eax: entry.leaf,
            ecx: entry.subleaf,
            subleaf_specific: entry.subleaf_significant.into(),
            always_override: 1,
            padding: 0,
        },
        // mshv-ioctls takes the value for the mask, which can set bits and clear none.
        result: hv_register_x64_cpuid_result_parameters__bindgen_ty_2 {
            eax: entry.eax,
            eax_mask: u32::MAX,
            ebx: entry.ebx,
            ebx_mask: u32::MAX,
            ecx: entry.ecx & !moving,
            ecx_mask: !moving,
            edx: entry.edx,
            edx_mask: u32::MAX,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERYTHING: Features = Features { processor: [u64::MAX; 2], xsave: u64::MAX, synthetic: 0 };

    /// A processor that has every feature and four subleaves of everything.
    fn full(leaf: u32, subleaf: u32) -> [u32; 4] {
        match leaf {
            0 => [0x24, 1, 2, 3],
            0x8000_0000 => [0x8000_0028, 1, 2, 3],
            4 | 0x8000_001d if subleaf > 3 => [0; 4],
            0xb | 0x1f => [1, 1, if subleaf < 2 { (subleaf + 1) << 8 } else { 0 } | subleaf, 0],
            7 if subleaf == 0 => [9, u32::MAX, u32::MAX, u32::MAX],
            _ => [u32::MAX; 4],
        }
    }

    fn find(table: &[CpuidEntry], leaf: u32, subleaf: u32) -> CpuidEntry {
        *table.iter().find(|e| (e.leaf, e.subleaf) == (leaf, subleaf)).expect("the leaf is in the table")
    }

    #[test]
    fn a_feature_the_partition_lacks_is_hidden() {
        let with = table(&EVERYTHING, full);
        assert_ne!(find(&with, 1, 0).ecx & 1 << 13, 0);
        // Each governed bit follows its own feature.
        for (number, (leaf, subleaf, output, bit)) in GOVERNED {
            if [51, 52].contains(number) {
                continue; // either of the two is enough
            }
            let mut without = EVERYTHING;
            without.processor[*number as usize / 64] &= !(1 << (number % 64));
            let entry = find(&table(&without, full), *leaf, *subleaf);
            let all = find(&with, *leaf, *subleaf);
            let read = |e: &CpuidEntry| match output {
                Eax => e.eax,
                Ebx => e.ebx,
                Ecx => e.ecx,
                Edx => e.edx,
            };
            assert_eq!(read(&all) & !read(&entry), 1 << bit, "feature {number}");
        }
    }

    #[test]
    fn what_is_not_known_is_hidden() {
        let table = table(&EVERYTHING, full);
        let one = find(&table, 1, 0);
        assert_eq!(one.ecx & (1 << 3 | 1 << 5 | 1 << 15 | 1 << 27), 0, "MONITOR, VMX, PDCM, OSXSAVE");
        assert_eq!(one.edx & (1 << 21 | 1 << 22 | 1 << 29), 0, "DS, ACPI, TM");
        assert_eq!(find(&table, 7, 0).ebx & 0xf000_0000 & !(1 << 29), 0, "AVX-512");
        assert_eq!(find(&table, 0x8000_0001, 0).ecx & 1 << 2, 0, "SVM");
        assert_eq!(find(&table, 7, 0).ecx & 1 << 4, 0, "OSPKE");
        assert!(table.iter().all(|e| ![5, 6, 0xa, 0x12, 0x14, 0x4000_0000, 0x8000_000a].contains(&e.leaf)));
    }

    #[test]
    fn a_hypervisor_is_announced() {
        let entries = table(&Features::default(), |leaf, _| [if leaf == 0 { 1 } else { 0 }, 0, 0, 0]);
        assert_eq!(find(&entries, 1, 0).ecx, 1 << 31 | 1 << 21);
    }

    #[test]
    fn the_ends_of_the_lists_are_announced_right() {
        let table = table(&EVERYTHING, full);
        assert_eq!(find(&table, 0, 0).eax, 0x1f);
        assert_eq!(find(&table, 0x8000_0000, 0).eax, 0x8000_001e);
        let of = |leaf| table.iter().filter(|e| e.leaf == leaf).map(|e| e.subleaf).collect::<Vec<_>>();
        assert_eq!(of(4), [0, 1, 2, 3]);
        assert_eq!(of(7), [0, 1, 2]);
        assert_eq!(find(&table, 7, 0).eax, 2);
        assert_eq!(of(0xb), [0, 1]);
        assert_eq!(of(0xd), [0, 1, 2]);
        assert!(table.len() <= MAX_ENTRIES);
    }

    #[test]
    fn a_short_list_stays_short() {
        let entries = table(&EVERYTHING, |leaf, _| match leaf {
            0 => [7, 0, 0, 0],
            0x8000_0000 => [0x8000_0004, 0, 0, 0],
            _ => [0; 4],
        });
        assert!(entries.iter().all(|e| e.leaf <= 7 || (0x8000_0000..=0x8000_0004).contains(&e.leaf)));
        assert_eq!(find(&entries, 0, 0).eax, 7);
        assert_eq!(find(&entries, 0x8000_0000, 0).eax, 0x8000_0004);
    }

    #[test]
    fn extended_state_follows_avx() {
        let without_avx = Features { xsave: 1, ..EVERYTHING };
        let entries = table(&without_avx, full);
        assert_eq!((find(&entries, 0xd, 0).eax, find(&entries, 0xd, 0).ecx), (0b11, 576));
        assert!(entries.iter().all(|e| e.leaf != 0xd || e.subleaf < 2));
        let none = Features { xsave: 0, ..EVERYTHING };
        assert!(table(&none, full).iter().all(|e| e.leaf != 0xd));
    }

    #[test]
    fn this_processor_gives_a_table() {
        let table = supported(&EVERYTHING);
        assert!(find(&table, 0, 0).eax >= 1);
        assert!(table.len() <= MAX_ENTRIES);
        let mut sorted = table.clone();
        sorted.sort_by_key(|e| (e.leaf, e.subleaf));
        sorted.dedup_by_key(|e| (e.leaf, e.subleaf));
        assert_eq!(sorted, table, "in order, each once");
    }

    #[test]
    fn registration_replaces_every_bit_that_stands_still() {
        let entry = CpuidEntry { leaf: 1, eax: 1, ebx: 2, ecx: u32::MAX, edx: 4, ..Default::default() };
        let registered = registration(&entry).unwrap();
        let (input, result) = (registered.input, registered.result);
        assert_eq!(
            ({ input.eax }, { input.ecx }, input.subleaf_specific, input.always_override),
            (1, 0, 0, 1)
        );
        assert_eq!(
            ({ result.eax_mask }, { result.ebx_mask }, { result.edx_mask }),
            (u32::MAX, u32::MAX, u32::MAX)
        );
        assert_eq!(({ result.ecx }, { result.ecx_mask }), (!(1 << 27), !(1 << 27)));
        assert_eq!(({ result.eax }, { result.ebx }, { result.edx }), (1, 2, 4));

        let topology = CpuidEntry { leaf: 0xb, subleaf: 1, subleaf_significant: true, ..Default::default() };
        let input = registration(&topology).unwrap().input;
        assert_eq!(({ input.ecx }, input.subleaf_specific), (1, 1));
    }

    #[test]
    fn the_hypervisors_own_leaves_stand() {
        for leaf in [0x4000_0000, 0x4000_0006, 0x4fff_ffff, 0xd] {
            assert_eq!(registration(&CpuidEntry { leaf, ..Default::default() }), None, "{leaf:#x}");
        }
        assert!(registration(&CpuidEntry { leaf: 0x3fff_ffff, ..Default::default() }).is_some());
    }
}
