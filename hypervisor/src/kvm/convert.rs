//! Between our plain data and KVM's structures. Field by field, no policy.

use kvm_bindings::{
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2, kvm_dtable, kvm_fpu, kvm_segment, kvm_sregs,
};

use crate::x86_64::{CpuidEntry, DescriptorTable, ReadyRegisters, Segment};

pub(super) fn cpuid_from_kvm(entry: &kvm_cpuid_entry2) -> CpuidEntry {
    CpuidEntry {
        leaf: entry.function,
        subleaf: entry.index,
        subleaf_significant: entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    }
}

pub(super) fn cpuid_to_kvm(entry: &CpuidEntry) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: entry.leaf,
        index: entry.subleaf,
        flags: if entry.subleaf_significant { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
        padding: [0; 3],
    }
}

pub(super) fn segment(segment: &Segment) -> kvm_segment {
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.kind,
        present: segment.present.into(),
        dpl: segment.dpl,
        db: segment.big.into(),
        s: segment.code_or_data.into(),
        l: segment.long.into(),
        g: segment.granularity.into(),
        avl: 0,
        // KVM's word for a segment that was never loaded.
        unusable: (!segment.present).into(),
        padding: 0,
    }
}

fn table(table: &DescriptorTable) -> kvm_dtable {
    kvm_dtable { base: table.base, limit: table.limit, padding: [0; 3] }
}

/// Puts what a boot protocol fixes over the registers that a vCPU came up with, of which the local
/// APIC's base and the LDT are left.
pub(super) fn ready_sregs(fresh: kvm_sregs, ready: &ReadyRegisters) -> kvm_sregs {
    let data = segment(&ready.data);
    kvm_sregs {
        cs: segment(&ready.cs),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: segment(&ready.tr),
        gdt: table(&ready.gdt),
        idt: table(&ready.idt),
        cr0: ready.cr0,
        cr2: 0,
        cr3: ready.cr3,
        cr4: ready.cr4,
        cr8: 0,
        efer: ready.efer,
        ..fresh
    }
}

/// The floating-point unit after `FNINIT`, with all SSE exceptions masked (Intel SDM volume 1,
/// 8.1.5 and 10.2.3).
pub(super) fn ready_fpu() -> kvm_fpu {
    kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..kvm_fpu::default() }
}
