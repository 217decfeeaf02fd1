//! A table of CPU features as a hypervisor might offer it, and one as a saved guest might bring it.
//!
//! Whatever is in them: a guest's table is made or refused, a guest that was made on a host lacks nothing there,
//! none of what was to be hidden is left, and comparing with a wild table ends.

#![no_main]

use arch::x86_64::{
    compat,
    cpuid::{CpuidConfig, CpuidTemplate},
    feature::{self, FeatureSet},
    topology::Topology,
};
use cumulet_fuzz::Bytes;
use hypervisor::x86_64::CpuidEntry;
use libfuzzer_sys::fuzz_target;

/// More would only repeat.
const MAX_ENTRIES: usize = 64;

/// What is hidden, by bits of the input.
const NAMES: [&str; 8] = ["xsave", "avx", "avx512f", "pku", "x2apic", "svm", "mtrr", "user_shstk"];

fuzz_target!(|input: &[u8]| {
    let _ = run(Bytes::new(input));
});

/// `None` when the input is used up, or the table was refused.
fn run(mut input: Bytes<'_>) -> Option<()> {
    let (flags, hidden, max_phys_bits) = (input.byte()?, input.byte()?, input.byte()?);
    let small = |byte: u8| u16::from(byte % 24);
    let topology =
        Topology::new(small(input.byte()?), small(input.byte()?), small(input.byte()?), small(input.byte()?))
            .ok()?;
    let count = usize::from(input.byte()?) % MAX_ENTRIES;
    let supported: Vec<CpuidEntry> = (0..count).map_while(|_| entry(&mut input)).collect();
    let saved: Vec<CpuidEntry> = (0..MAX_ENTRIES).map_while(|_| entry(&mut input)).collect();
    let _ = compat::missing(&saved, &supported);

    let names: Vec<&str> =
        (0..).zip(NAMES).filter(|(bit, _)| hidden & (1 << bit) != 0).map(|(_, name)| name).collect();
    let set = FeatureSet::parse(names.iter().copied()).expect("all are known names");
    let config = CpuidConfig {
        supported: &supported,
        topology,
        max_phys_bits,
        nested: flags & 1 != 0,
        amx: flags & 2 != 0,
        tsc_deadline_timer: flags & 4 != 0,
        extended_destination_id: flags & 8 != 0,
        hidden: &set,
    };
    let template = CpuidTemplate::new(&config).ok()?;
    let guest = template.for_vcpu(topology.vcpus() - 1);
    assert_eq!(compat::missing(&guest, &supported), []);
    for name in names {
        assert!(!feature::has(&guest, name), "{name}");
    }
    Some(())
}

/// Mostly leaves that are looked at.
fn entry(input: &mut Bytes<'_>) -> Option<CpuidEntry> {
    let base = [0, 0x4000_0000, 0x8000_0000, u32::MAX - 0x30];
    let place = input.byte()?;
    Some(CpuidEntry {
        leaf: base[usize::from(place >> 6)] + u32::from(place & 0x3f) % 0x30,
        subleaf: u32::from(input.byte()?),
        subleaf_significant: true,
        eax: input.word()?,
        ebx: input.word()?,
        ecx: input.word()?,
        edx: input.word()?,
    })
}
