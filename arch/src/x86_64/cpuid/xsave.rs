//! The extended state a guest may have, leaf 0xd, kept in step with the features it sees.
//!
//! A component of the XSAVE area whose feature is hidden must vanish from the masks, else the guest
//! could enable it all the same (Intel SDM volume 1, 13.2).

use hypervisor::x86_64::CpuidEntry;

use super::leaf;
use crate::x86_64::feature;

/// Size of the legacy region and the header: an area without any component of its own.
const MIN_AREA: u32 = 576;

/// Components by bit of XCR0 or IA32_XSS, and the features that make use of them. A component that
/// is not listed is none that a guest is given.
const COMPONENTS: &[(u32, &[&str])] = &[
    (0, &["xsave"]),
    (1, &["xsave"]),
    (2, &["avx"]),
    (3, &["mpx"]),
    (4, &["mpx"]),
    (5, &["avx512f"]),
    (6, &["avx512f"]),
    (7, &["avx512f"]),
    (8, &["intel_pt"]),
    (9, &["pku"]),
    (10, &["enqcmd"]),
    (11, &["user_shstk", "ibt"]),
    (12, &["user_shstk", "ibt"]),
    (15, &["arch_lbr"]),
    (17, &["amx_tile"]),
    (18, &["amx_tile"]),
];

/// The mask of components whose features the table has.
fn allowed(table: &[CpuidEntry]) -> u64 {
    COMPONENTS
        .iter()
        .filter(|(_, features)| features.iter().any(|name| feature::has(table, name)))
        .fold(0, |mask, (bit, _)| mask | 1 << bit)
}

/// Takes out of leaf 0xd every component whose feature the table lacks.
pub(super) fn restrict(table: &mut Vec<CpuidEntry>) {
    let allowed = allowed(table);
    let halves = allowed.to_le_bytes();
    let [a, b, c, d, e, f, g, h] = halves;
    let (low, high) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));

    let gone = |subleaf: u32| subleaf < 64 && allowed & (1 << subleaf) == 0;
    table.retain(|entry| entry.leaf != leaf::XSAVE || entry.subleaf < 2 || !gone(entry.subleaf));
    let area = table
        .iter()
        .filter(|entry| entry.leaf == leaf::XSAVE && entry.subleaf >= 2 && entry.ecx & 1 == 0)
        .map(|entry| entry.ebx.saturating_add(entry.eax))
        .fold(MIN_AREA, u32::max);
    for entry in table.iter_mut().filter(|entry| entry.leaf == leaf::XSAVE) {
        match entry.subleaf {
            0 => {
                entry.eax &= low;
                entry.edx &= high;
                // EBX follows the guest's XCR0; the hypervisor keeps it. ECX is the most there can be.
                entry.ebx = entry.ebx.min(area);
                entry.ecx = area;
            }
            1 => {
                entry.ecx &= low;
                entry.edx &= high;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86_64::feature::FeatureSet;

    fn entry(subleaf: u32, eax: u32, ebx: u32, ecx: u32) -> CpuidEntry {
        CpuidEntry { leaf: 0xd, subleaf, subleaf_significant: true, eax, ebx, ecx, edx: 0 }
    }

    /// A processor with AVX, AVX-512, protection keys, AMX and shadow stacks.
    fn table() -> Vec<CpuidEntry> {
        vec![
            CpuidEntry { leaf: 1, ecx: 1 << 26 | 1 << 28, ..Default::default() },
            CpuidEntry {
                leaf: 7,
                subleaf_significant: true,
                ebx: 1 << 16,
                ecx: 1 << 3 | 1 << 7,
                edx: 1 << 24,
                ..Default::default()
            },
            entry(0, 0x602e7, 11008, 11008),
            entry(1, 0x1f, 0, 0x1800),
            entry(2, 256, 576, 0),
            entry(5, 64, 1088, 0),
            entry(6, 512, 1152, 0),
            entry(7, 1024, 1664, 0),
            entry(9, 8, 2688, 0),
            entry(11, 16, 0, 1),
            entry(17, 64, 2752, 2),
            entry(18, 8192, 2816, 6),
        ]
    }

    fn summary(table: &[CpuidEntry]) -> (u32, u32, u32, Vec<u32>) {
        let subleaves: Vec<u32> =
            table.iter().filter(|e| e.leaf == 0xd && e.subleaf > 1).map(|e| e.subleaf).collect();
        let find = |subleaf| table.iter().find(|e| e.leaf == 0xd && e.subleaf == subleaf).unwrap();
        (find(0).eax, find(0).ecx, find(1).ecx, subleaves)
    }

    fn without(names: &[&str]) -> Vec<CpuidEntry> {
        let mut table = table();
        FeatureSet::parse(names.iter().copied()).unwrap().hide_from(&mut table);
        restrict(&mut table);
        table
    }

    #[test]
    fn components_follow_features() {
        assert_eq!(summary(&without(&[])), (0x602e7, 11008, 0x1800, vec![2, 5, 6, 7, 9, 11, 17, 18]));
        assert_eq!(summary(&without(&["amx_tile"])), (0x2e7, 2696, 0x1800, vec![2, 5, 6, 7, 9, 11]));
        assert_eq!(summary(&without(&["avx512f", "amx_tile"])), (0x207, 2696, 0x1800, vec![2, 9, 11]));
        assert_eq!(summary(&without(&["avx", "pku", "amx_tile"])), (3, 576, 0x1800, vec![11]));
        assert_eq!(summary(&without(&["user_shstk"])).2, 0);
    }
}
