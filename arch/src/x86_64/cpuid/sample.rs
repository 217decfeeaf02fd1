//! Tables as a hypervisor on two kinds of host offers them, reduced to what the tests look at.

use hypervisor::x86_64::CpuidEntry;

use super::CpuidConfig;
use crate::x86_64::{feature::FeatureSet, topology::Topology};

static NOTHING: FeatureSet = FeatureSet::new();

/// A guest of one vCPU with everything but AMX.
pub fn config(supported: &[CpuidEntry]) -> CpuidConfig<'_> {
    CpuidConfig {
        supported,
        topology: Topology::flat(1).unwrap(),
        max_phys_bits: 46,
        nested: true,
        amx: false,
        tsc_deadline_timer: true,
        extended_destination_id: false,
        hidden: &NOTHING,
    }
}

fn plain(leaf: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry { leaf, eax, ebx, ecx, edx, ..Default::default() }
}

fn indexed(leaf: u32, subleaf: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry { leaf, subleaf, subleaf_significant: true, eax, ebx, ecx, edx }
}

fn text(bytes: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*bytes)
}

/// KVM on a server with VMX, AVX-512, AMX and protection keys.
pub fn intel() -> Vec<CpuidEntry> {
    vec![
        plain(0, [0x1b, text(b"Genu"), text(b"ntel"), text(b"ineI")]),
        plain(1, [0x0008_06f8, 0x0010_0800, 0x77fa_3223, 0x0f8b_fbff]),
        indexed(4, 0, [0x7c00_4121, 0x02c0_003f, 0x3f, 0]),
        indexed(4, 1, [0x7c00_4122, 0x01c0_003f, 0x3f, 0]),
        indexed(4, 2, [0x7c00_4143, 0x03c0_003f, 0x7ff, 0]),
        indexed(4, 3, [0x7c1f_c163, 0x0380_003f, 0xdfff, 0]),
        indexed(4, 4, [0; 4]),
        indexed(7, 0, [2, 0xf1bf_27eb, 0x1b41_5f7e, 0xbfc0_4412]),
        indexed(7, 1, [0x0000_1c30, 0, 0, 0]),
        indexed(7, 2, [0, 0, 0, 0x17]),
        indexed(0xb, 0, [1, 2, 0x100, 6]),
        indexed(0xb, 1, [7, 112, 0x201, 6]),
        indexed(0xd, 0, [0x602e7, 2696, 11008, 0]),
        indexed(0xd, 1, [0x1f, 2568, 0, 0]),
        indexed(0xd, 2, [256, 576, 0, 0]),
        indexed(0xd, 5, [64, 1088, 0, 0]),
        indexed(0xd, 6, [512, 1152, 0, 0]),
        indexed(0xd, 7, [1024, 1664, 0, 0]),
        indexed(0xd, 9, [8, 2688, 0, 0]),
        indexed(0xd, 17, [64, 2752, 2, 0]),
        indexed(0xd, 18, [8192, 2816, 6, 0]),
        indexed(0x1d, 0, [1, 0, 0, 0]),
        indexed(0x1d, 1, [0x0400_2000, 0x0008_0040, 16, 0]),
        indexed(0x1e, 0, [0, 0x4010, 0, 0]),
        plain(0x4000_0000, [0x4000_0001, text(b"KVMK"), text(b"VMKV"), text(b"M\0\0\0")]),
        plain(0x4000_0001, [0x0100_7efb, 0, 0, 0]),
        plain(0x8000_0000, [0x8000_0008, 0, 0, 0]),
        plain(0x8000_0001, [0, 0, 0x121, 0x2c10_0800]),
        plain(0x8000_0008, [0x3034, 0, 0, 0]),
    ]
}

/// KVM on a server with SVM, AVX2 and protection keys.
pub fn amd() -> Vec<CpuidEntry> {
    vec![
        plain(0, [0x10, text(b"Auth"), text(b"cAMD"), text(b"enti")]),
        plain(0x8000_0001, [0x00a0_0f11, 0x4000_0000, 0x0044_03f7, 0x2fd3_fbff]),
        plain(1, [0x00a0_0f11, 0x0008_0800, 0x76fa_3203, 0x078b_fbff]),
        indexed(7, 0, [0, 0x219c_07ab, 0x0040_069c, 0x10]),
        indexed(0xd, 0, [0x207, 2440, 2440, 0]),
        indexed(0xd, 1, [0xf, 576, 0, 0]),
        indexed(0xd, 2, [256, 576, 0, 0]),
        indexed(0xd, 9, [8, 2432, 0, 0]),
        plain(0x4000_0000, [0x4000_0001, text(b"KVMK"), text(b"VMKV"), text(b"M\0\0\0")]),
        plain(0x4000_0001, [0x0100_7efb, 0, 0, 0]),
        plain(0x8000_0000, [0x8000_001f, text(b"Auth"), text(b"cAMD"), text(b"enti")]),
        plain(0x8000_0008, [0x0030_3030, 0x0211_d205, 0x703f, 0]),
        plain(0x8000_000a, [1, 8, 0, 0x101b_bcff]),
        indexed(0x8000_001d, 0, [0x0000_4121, 0x01c0_003f, 0x3f, 0]),
        indexed(0x8000_001d, 3, [0x0003_c163, 0x03c0_003f, 0x7fff, 1]),
        plain(0x8000_001e, [0; 4]),
    ]
}
