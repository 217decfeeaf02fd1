//! The saved state of a vCPU as named parts, and back.
//!
//! Pure. The bytes come from a snapshot or from another host, so nothing is taken for granted: every
//! part has exactly its length, none is missing, none is unknown and none comes twice. What the
//! *values* may be is the hypervisor's to judge, which checks them as it does for any partition.

use std::collections::BTreeMap;

use mshv_bindings::*;

use super::{
    call::invalid,
    cpuid,
    registers::{GENERAL, Name, Value},
};
use crate::{
    HypervisorError,
    x86_64::{Msr, StatePart, VcpuState},
};

/// How much of a register is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Half,
    Whole,
}

use Width::{Half, Whole};

/// A part that is a list of registers, in this order, each 8 or 16 bytes, little-endian.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    pub part: &'static str,
    pub registers: &'static [(Name, Width)],
}

/// Delivery that is under way, and whether the vCPU is halted or waits for a start-up interrupt.
pub(super) const EVENTS: Group = Group {
    part: "mshv.events",
    registers: &[
        (hv_register_name_HV_REGISTER_PENDING_INTERRUPTION, Half),
        (hv_register_name_HV_REGISTER_INTERRUPT_STATE, Half),
        (hv_register_name_HV_REGISTER_INTERNAL_ACTIVITY_STATE, Half),
        (hv_register_name_HV_REGISTER_PENDING_EVENT0, Whole),
        (hv_register_name_HV_REGISTER_PENDING_EVENT1, Whole),
    ],
};

/// Segment and descriptor-table registers.
pub(super) const SEGMENTS: Group = Group {
    part: "mshv.segments",
    registers: &[
        (hv_register_name_HV_X64_REGISTER_CS, Whole),
        (hv_register_name_HV_X64_REGISTER_DS, Whole),
        (hv_register_name_HV_X64_REGISTER_ES, Whole),
        (hv_register_name_HV_X64_REGISTER_FS, Whole),
        (hv_register_name_HV_X64_REGISTER_GS, Whole),
        (hv_register_name_HV_X64_REGISTER_SS, Whole),
        (hv_register_name_HV_X64_REGISTER_TR, Whole),
        (hv_register_name_HV_X64_REGISTER_LDTR, Whole),
        (hv_register_name_HV_X64_REGISTER_GDTR, Whole),
        (hv_register_name_HV_X64_REGISTER_IDTR, Whole),
    ],
};

/// Control registers. CR8 is the task priority, which the local APIC's part lacks.
pub(super) const CONTROL: Group = Group {
    part: "mshv.control",
    registers: &[
        (hv_register_name_HV_X64_REGISTER_INTERMEDIATE_CR0, Half),
        (hv_register_name_HV_X64_REGISTER_CR2, Half),
        (hv_register_name_HV_X64_REGISTER_INTERMEDIATE_CR3, Half),
        (hv_register_name_HV_X64_REGISTER_INTERMEDIATE_CR4, Half),
        (hv_register_name_HV_X64_REGISTER_CR8, Half),
        (hv_register_name_HV_X64_REGISTER_EFER, Half),
        (hv_register_name_HV_X64_REGISTER_APIC_BASE, Half),
        (hv_register_name_HV_X64_REGISTER_XFEM, Half),
    ],
};

/// Debug registers.
pub(super) const DEBUG: Group = Group {
    part: "mshv.debug",
    registers: &[
        (hv_register_name_HV_X64_REGISTER_DR0, Half),
        (hv_register_name_HV_X64_REGISTER_DR1, Half),
        (hv_register_name_HV_X64_REGISTER_DR2, Half),
        (hv_register_name_HV_X64_REGISTER_DR3, Half),
        (hv_register_name_HV_X64_REGISTER_DR6, Half),
        (hv_register_name_HV_X64_REGISTER_DR7, Half),
    ],
};

/// The register groups, in the order in which they are set.
pub(super) const GROUPS: [Group; 4] = [EVENTS, SEGMENTS, CONTROL, DEBUG];

/// RAX to R15 in the order of their encoding, RIP, RFLAGS.
pub(super) const REGS: &str = "mshv.regs";
const REGS_BYTES: usize = (GENERAL.len() + 2) * 8;

/// The hypercall page's register, which the whole partition shares; then the interrupt vectors that
/// wait in the register page.
pub(super) const MISC: &str = "mshv.misc";
const MISC_BYTES: usize = 16;

/// A part that is a state page of the hypervisor's own layout.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    pub part: &'static str,
    pub kind: u8,
    pub bytes: usize,
}

/// The state pages, in the order in which they are set.
pub(super) const PAGES: [Page; 5] = [
    Page { part: "mshv.lapic", kind: 0, bytes: size_of::<hv_local_interrupt_controller_state>() },
    Page { part: "mshv.xsave", kind: 1, bytes: HV_PAGE_SIZE },
    Page { part: "mshv.simp", kind: 2, bytes: HV_PAGE_SIZE },
    Page { part: "mshv.siefp", kind: 3, bytes: HV_PAGE_SIZE },
    Page { part: "mshv.synthetic_timers", kind: 4, bytes: size_of::<hv_synthetic_timers_state>() },
];

/// A saved TSC frequency this much off the host's, in parts per million, is the same: crystals
/// differ, and guests discipline their clocks by more than this.
const TSC_TOLERANCE_PPM: u64 = 250;

/// Registers of a group as its part.
pub(super) fn encode(group: &Group, values: &[Value]) -> StatePart {
    let mut bytes = Vec::with_capacity(group_bytes(group));
    for ((_, width), value) in group.registers.iter().zip(values) {
        bytes.extend(value.low.to_le_bytes());
        if *width == Whole {
            bytes.extend(value.high.to_le_bytes());
        }
    }
    StatePart { name: group.part.into(), bytes }
}

/// Words as a part.
pub(super) fn encode_words(part: &str, words: &[u64]) -> StatePart {
    StatePart { name: part.into(), bytes: words.iter().flat_map(|word| word.to_le_bytes()).collect() }
}

/// A vCPU's state, each part there, once, and of its length. Only [`parse`] makes one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parsed<'a> {
    pub general: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    pub hypercall: u64,
    pub pending_vectors: u64,
    /// For each of [`GROUPS`].
    pub groups: Vec<Vec<(Name, Value)>>,
    /// For each of [`PAGES`].
    pub pages: Vec<&'a [u8]>,
}

/// Checks a saved state. `known_msrs` are the registers this host saves, `tsc_khz` its frequency.
pub(super) fn parse<'a>(
    state: &'a VcpuState,
    known_msrs: &[u32],
    tsc_khz: Option<u32>,
) -> Result<Parsed<'a>, HypervisorError> {
    if state.cpuid.len() > cpuid::MAX_ENTRIES {
        return Err(invalid(
            "CPUID table",
            format!("{} entries, the limit is {}", state.cpuid.len(), cpuid::MAX_ENTRIES),
        ));
    }
    check_msrs(&state.msrs, known_msrs)?;
    check_tsc(state.tsc_khz, tsc_khz)?;
    let mut parts: BTreeMap<&str, &[u8]> = BTreeMap::new();
    for part in &state.parts {
        if parts.insert(&part.name, &part.bytes).is_some() {
            return Err(invalid("vCPU state", format!("part {:?} comes twice", part.name)));
        }
    }
    let mut take = |name: &'static str, length: usize| {
        let bytes =
            parts.remove(name).ok_or_else(|| invalid("vCPU state", format!("part {name:?} is missing")))?;
        if bytes.len() == length {
            Ok(bytes)
        } else {
            Err(invalid("vCPU state", format!("part {name:?} has {} bytes, not {length}", bytes.len())))
        }
    };
    let regs = words(take(REGS, REGS_BYTES)?);
    let misc = words(take(MISC, MISC_BYTES)?);
    let mut groups = Vec::new();
    for group in &GROUPS {
        groups.push(decode(group, take(group.part, group_bytes(group))?));
    }
    let mut pages = Vec::new();
    for page in &PAGES {
        pages.push(take(page.part, page.bytes)?);
    }
    if let Some((name, _)) = parts.first_key_value() {
        return Err(invalid("vCPU state", format!("part {name:?} is unknown")));
    }
    let word = |list: &[u64], at: usize| list.get(at).copied().unwrap_or(0);
    Ok(Parsed {
        general: std::array::from_fn(|n| word(&regs, n)),
        rip: word(&regs, GENERAL.len()),
        rflags: word(&regs, GENERAL.len() + 1),
        hypercall: word(&misc, 0),
        pending_vectors: word(&misc, 1),
        groups,
        pages,
    })
}

fn check_msrs(msrs: &[Msr], known: &[u32]) -> Result<(), HypervisorError> {
    if msrs.len() > MAX_MSR_ENTRIES {
        return Err(invalid("MSRs", format!("{} of them, the limit is {MAX_MSR_ENTRIES}", msrs.len())));
    }
    match msrs.iter().find(|msr| !known.contains(&msr.index)) {
        Some(msr) => Err(invalid("MSR", format!("{:#x}, which this host's partitions have not", msr.index))),
        None => Ok(()),
    }
}

pub(super) fn check_tsc(saved: Option<u32>, host: Option<u32>) -> Result<(), HypervisorError> {
    let (Some(saved), Some(host)) = (saved, host) else { return Ok(()) };
    let off = u64::from(saved.abs_diff(host)) * 1_000_000;
    if off <= u64::from(host) * TSC_TOLERANCE_PPM {
        return Ok(());
    }
    Err(invalid(
        "TSC frequency",
        format!("the guest knows {saved} kHz, this host runs at {host} kHz, and mshv cannot scale it"),
    ))
}

fn group_bytes(group: &Group) -> usize {
    group.registers.iter().map(|(_, width)| if *width == Whole { 16 } else { 8 }).sum()
}

/// The registers of a part whose length was checked.
fn decode(group: &Group, bytes: &[u8]) -> Vec<(Name, Value)> {
    let mut words = words(bytes).into_iter();
    let mut next = || words.next().unwrap_or(0);
    group
        .registers
        .iter()
        .map(|(name, width)| {
            let low = next();
            let high = if *width == Whole { next() } else { 0 };
            (*name, Value { low, high })
        })
        .collect()
}

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect()
}

/// The MSRs to save: all of the partition's that are state. Writing EOM asks for the next message
/// instead of setting anything (TLFS, "SynIC MSRs").
pub(super) fn saved_msrs(supported: &[u32]) -> Vec<u32> {
    let mut list: Vec<u32> = supported
        .iter()
        .copied()
        .filter(|msr| *msr != HV_X64_MSR_EOM && msr_to_hv_reg_name(*msr).is_ok())
        .collect();
    // mshv-ioctls names some of them twice.
    list.sort_unstable();
    list.dedup();
    list
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(name: &str, bytes: usize, fill: u8) -> StatePart {
        StatePart { name: name.into(), bytes: vec![fill; bytes] }
    }

    fn whole() -> VcpuState {
        let mut parts = vec![part(REGS, REGS_BYTES, 1), part(MISC, MISC_BYTES, 2)];
        parts.extend(GROUPS.iter().map(|group| part(group.part, group_bytes(group), 3)));
        parts.extend(PAGES.iter().map(|page| part(page.part, page.bytes, 4)));
        VcpuState {
            msrs: vec![Msr { index: 0x10, value: 5 }],
            tsc_khz: Some(2_000_000),
            parts,
            ..Default::default()
        }
    }

    fn refused(change: impl FnOnce(&mut VcpuState)) -> String {
        let mut state = whole();
        change(&mut state);
        parse(&state, &[0x10], Some(2_000_000)).unwrap_err().to_string()
    }

    #[test]
    fn groups_come_back() {
        for group in &GROUPS {
            let values: Vec<Value> = (1..)
                .zip(group.registers)
                .map(|(n, (_, width))| Value { low: n, high: if *width == Whole { n << 32 } else { 0 } })
                .collect();
            let part = encode(group, &values);
            assert_eq!(part.bytes.len(), group_bytes(group));
            let back = decode(group, &part.bytes);
            assert!(back.iter().map(|(_, value)| *value).eq(values), "{}", group.part);
            assert!(back.iter().map(|(name, _)| *name).eq(group.registers.iter().map(|(name, _)| *name)));
        }
    }

    #[test]
    fn a_whole_state_is_taken() {
        let mut state = whole();
        state.parts[0] = encode_words(REGS, &(0..18).collect::<Vec<_>>());
        state.parts[1] = encode_words(MISC, &[7, 8]);
        state.parts.reverse();
        let parsed = parse(&state, &[0x10], Some(2_000_100)).unwrap();
        assert_eq!(parsed.general, std::array::from_fn(|n| n as u64));
        assert_eq!((parsed.rip, parsed.rflags, parsed.hypercall, parsed.pending_vectors), (16, 17, 7, 8));
        assert_eq!(parsed.groups.len(), GROUPS.len());
        assert!(parsed.pages.iter().zip(&PAGES).all(|(bytes, page)| bytes.len() == page.bytes));
    }

    #[test]
    fn a_bad_state_is_refused_by_name() {
        for n in 0..whole().parts.len() {
            let name = whole().parts[n].name.clone();
            assert_eq!(
                refused(|s| drop(s.parts.remove(n))),
                format!("invalid vCPU state: part {name:?} is missing")
            );
            assert!(refused(|s| s.parts[n].bytes.push(0)).contains(&format!("part {name:?} has")));
            assert!(refused(|s| s.parts[n].bytes.truncate(1)).contains(&format!("part {name:?} has")));
            assert_eq!(
                refused(|s| s.parts.push(s.parts[n].clone())),
                format!("invalid vCPU state: part {name:?} comes twice")
            );
        }
        assert_eq!(
            refused(|s| s.parts.push(part("kvm.regs", 8, 0))),
            "invalid vCPU state: part \"kvm.regs\" is unknown"
        );
        assert!(refused(|s| s.msrs.push(Msr { index: 0x11, value: 0 })).starts_with("invalid MSR: 0x11"));
        assert!(refused(|s| s.msrs = vec![Msr { index: 0x10, value: 0 }; 257]).contains("257 of them"));
        assert!(refused(|s| s.cpuid = vec![Default::default(); 257]).contains("257 entries"));
        assert_eq!(
            refused(|s| s.tsc_khz = Some(2_001_000)),
            "invalid TSC frequency: the guest knows 2001000 kHz, this host runs at 2000000 kHz, and mshv cannot scale it"
        );
    }

    #[test]
    fn an_unknown_frequency_is_no_obstacle() {
        let mut state = whole();
        assert!(parse(&state, &[0x10], None).is_ok());
        state.tsc_khz = None;
        assert!(parse(&state, &[0x10], Some(1)).is_ok());
    }

    #[test]
    fn the_pages_are_the_drivers() {
        let kinds = [
            MSHV_VP_STATE_LAPIC,
            MSHV_VP_STATE_XSAVE,
            MSHV_VP_STATE_SIMP,
            MSHV_VP_STATE_SIEFP,
            MSHV_VP_STATE_SYNTHETIC_TIMERS,
        ];
        assert_eq!(PAGES.map(|page| u32::from(page.kind)), kinds);
        assert_eq!(PAGES.map(|page| page.bytes), [176, 4096, 4096, 4096, 200]);
        assert_eq!(PAGES.len(), MSHV_VP_STATE_COUNT as usize);
    }

    #[test]
    fn saved_msrs_are_known_and_no_commands() {
        let mut supported = MSRS_COMMON.to_vec();
        supported.extend(MSRS_SYNIC);
        supported.extend(MSRS_OTHER);
        supported.extend([0x1234_5678, IA32_MSR_TSC]);
        let saved = saved_msrs(&supported);
        assert!(saved.contains(&IA32_MSR_TSC) && saved.contains(&HV_X64_MSR_SIMP));
        assert!(!saved.contains(&HV_X64_MSR_EOM) && !saved.contains(&0x1234_5678));
        assert!(saved.is_sorted_by(|a, b| a < b));
        assert!(saved.len() <= MAX_MSR_ENTRIES);
    }

    proptest! {
        #[test]
        fn a_hostile_state_is_answered(
            names in proptest::collection::vec(0..14_usize, 0..16),
            lengths in proptest::collection::vec(0..5000_usize, 16),
            cut in any::<bool>(),
            tsc in any::<Option<u32>>(),
            msrs in proptest::collection::vec(any::<(u32, u64)>(), 0..4),
        ) {
            let model = whole();
            let parts = names.iter().zip(&lengths).map(|(n, length)| match model.parts.get(*n) {
                Some(part) if cut => StatePart { bytes: part.bytes[..part.bytes.len().min(*length)].to_vec(), ..part.clone() },
                Some(part) => part.clone(),
                None => part("?", *length, 0),
            });
            let state = VcpuState {
                parts: parts.collect(),
                tsc_khz: tsc,
                msrs: msrs.iter().map(|(index, value)| Msr { index: *index, value: *value }).collect(),
                ..Default::default()
            };
            let _ = parse(&state, &[0x10], Some(1));
        }
    }
}
