//! Model-specific registers: which to save, in which order to set them, and what they are called.
//!
//! KVM names the registers that it keeps (`KVM_GET_MSR_INDEX_LIST`), but for memory types and machine
//! checks, which are added here. Whether a vCPU has one is known when it is read; the list that
//! remains is kept for the VM, so that every vCPU but the first is read with one call.

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::{call, invalid, vcpu::KvmVcpu};
use crate::{HypervisorError, x86_64::Msr};

const TSC: u32 = 0x10;
pub(super) const FEATURE_CONTROL: u32 = 0x3a;
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;
const MCG_CAP: u32 = 0x179;
const MISC_ENABLE: u32 = 0x1a0;
const MTRR_VARIABLE: u32 = 0x200;
pub(super) const MTRR_DEF_TYPE: u32 = 0x2ff;
const PERF_GLOBAL_CTRL: u32 = 0x38f;
const MC0_CTL: u32 = 0x400;
const TSC_DEADLINE: u32 = 0x6e0;
const HYPERV: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4000_01ff;
const KVM_ASYNC_PF_EN: u32 = 0x4b56_4d02;
const KVM_ASYNC_PF_INT: u32 = 0x4b56_4d06;
const KVM_ASYNC_PF_ACK: u32 = 0x4b56_4d07;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const SYSCALL_MASK: u32 = 0xc000_0084;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const AMD_PERF_GLOBAL_CTRL: u32 = 0xc000_0301;

/// What a boot protocol finds in the registers that are not 0 after reset, or that it must not find
/// left over: fast strings on. It says itself what [`MTRR_DEF_TYPE`] is.
pub(super) const READY: [(u32, u64); 9] = [
    (SYSENTER_CS, 0),
    (SYSENTER_ESP, 0),
    (SYSENTER_EIP, 0),
    (STAR, 0),
    (LSTAR, 0),
    (CSTAR, 0),
    (SYSCALL_MASK, 0),
    (KERNEL_GS_BASE, 0),
    (MISC_ENABLE, 1),
];

/// Most registers in one saved state. Hosts of today have some 250.
pub(super) const SAVED_MAX: usize = 1024;

/// Banks of machine-check registers, at most (`KVM_MAX_MCE_BANKS`), and registers of a bank.
const MC_BANKS: u32 = 32;
const MC_BANK_REGISTERS: u32 = 4;

const MTRR_FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
/// Eight pairs of base and mask.
const MTRR_VARIABLE_COUNT: u32 = 16;

/// Which registers the vCPUs of a VM have.
#[derive(Clone, Debug)]
pub(super) struct SavedMsrs {
    hyperv: bool,
    indices: Vec<u32>,
}

/// All registers of a vCPU, in the order in which they are to be set.
pub(super) fn read(vcpu: &KvmVcpu) -> Result<Vec<Msr>, HypervisorError> {
    let hyperv = offers_hyperv(vcpu);
    let known = vcpu.vm.msrs.lock().clone().filter(|saved| saved.hyperv == hyperv);
    let wanted = match known {
        Some(saved) => saved.indices,
        None => candidates(vcpu, hyperv)?,
    };
    let mut msrs = Vec::with_capacity(wanted.len());
    let mut refused = false;
    let mut rest = wanted.as_slice();
    while !rest.is_empty() {
        let batch = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
        let got = read_batch(&vcpu.fd, batch)
            .map_err(|error| vcpu.failed("cannot save", "the model-specific registers", error))?;
        let read = got.len().min(batch.len());
        msrs.extend(got);
        // KVM stops at the first register that this vCPU has not.
        let skipped = usize::from(read < batch.len());
        refused |= skipped != 0;
        rest = &rest[read + skipped..];
    }
    if refused || vcpu.vm.msrs.lock().is_none() {
        let indices = msrs.iter().map(|msr| msr.index).collect();
        *vcpu.vm.msrs.lock() = Some(SavedMsrs { hyperv, indices });
    }
    msrs.retain(|msr| !is_idle_machine_check(*msr));
    Ok(msrs)
}

/// Sets registers in the order given.
pub(super) fn write(vcpu: &KvmVcpu, msrs: &[Msr]) -> Result<(), HypervisorError> {
    for (number, batch) in msrs.chunks(KVM_MAX_MSR_ENTRIES).enumerate() {
        let entries: Vec<_> = batch
            .iter()
            .map(|msr| kvm_msr_entry { index: msr.index, data: msr.value, ..kvm_msr_entry::default() })
            .collect();
        let request = Msrs::from_entries(&entries)
            .map_err(|error| invalid("model-specific registers", format!("{error:?}")))?;
        let done = vcpu
            .fd
            .set_msrs(&request)
            .map_err(|error| vcpu.failed("cannot set", "the model-specific registers", error))?;
        if let Some(refused) = batch.get(done) {
            return Err(HypervisorError::Partial {
                operation: "setting model-specific registers",
                done: number * KVM_MAX_MSR_ENTRIES + done,
                asked: msrs.len(),
                refused: format!("{} = {:#x}, on vCPU {}", name(refused.index), refused.value, vcpu.index),
            });
        }
    }
    Ok(())
}

fn read_batch(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<Msr>, kvm_ioctls::Error> {
    let entries: Vec<_> =
        indices.iter().map(|&index| kvm_msr_entry { index, ..kvm_msr_entry::default() }).collect();
    let mut request = Msrs::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))?;
    let done = fd.get_msrs(&mut request)?;
    let msr = |entry: &kvm_msr_entry| Msr { index: entry.index, value: entry.data };
    Ok(request.as_slice().iter().take(done).map(msr).collect())
}

/// Every register that a vCPU may have, in the order in which they are to be set.
fn candidates(vcpu: &KvmVcpu, hyperv: bool) -> Result<Vec<u32>, HypervisorError> {
    let host = &vcpu.vm.host;
    let listed = match host.msr_indices.get() {
        Some(listed) => listed,
        None => {
            let list = host.kvm.get_msr_index_list().map_err(|error| {
                call("cannot ask for", "the list of model-specific registers".to_owned(), error)
            })?;
            host.msr_indices.get_or_init(|| list.as_slice().to_vec())
        }
    };
    // KVM makes its Hyper-V part of a vCPU the first time one of these is looked at. Asynchronous page
    // faults need a local APIC: without one their registers can be read but not set.
    let has_lapic = vcpu.vm.irqchip.get().is_some();
    let mut all = listed.clone();
    all.retain(|index| hyperv || !HYPERV.contains(index));
    all.retain(|index| has_lapic || ![KVM_ASYNC_PF_EN, KVM_ASYNC_PF_INT, KVM_ASYNC_PF_ACK].contains(index));
    all.extend(MTRR_FIXED);
    all.extend(MTRR_VARIABLE..MTRR_VARIABLE + MTRR_VARIABLE_COUNT);
    all.push(MTRR_DEF_TYPE);
    // MCG_CAP says how many banks there are; without it there are none.
    let banks = match read_batch(&vcpu.fd, &[MCG_CAP]).unwrap_or_default().first() {
        Some(cap) => u32::from(cap.value.to_le_bytes()[0]).min(MC_BANKS),
        None => 0,
    };
    all.extend(MC0_CTL..MC0_CTL + banks * MC_BANK_REGISTERS);
    all.sort_by_key(|&index| (rank(index), index));
    all.dedup();
    Ok(all)
}

/// Registers that others depend on come first, and those that start something come last.
///
/// The feature control decides which other registers there are. The TSC comes before everything
/// that is measured in it. Asynchronous page faults are switched on when their vector is known,
/// counters when they are set up, and the deadline is armed when the TSC is right.
fn rank(index: u32) -> u8 {
    match index {
        FEATURE_CONTROL => 0,
        TSC => 1,
        KVM_ASYNC_PF_EN | PERF_GLOBAL_CTRL | AMD_PERF_GLOBAL_CTRL => 3,
        TSC_DEADLINE => 4,
        _ => 2,
    }
}

/// A machine-check register as it is after reset. There are 128 of them, and to leave them out makes
/// half a saved state; a new vCPU has them so.
fn is_idle_machine_check(msr: Msr) -> bool {
    let last = MC0_CTL + MC_BANKS * MC_BANK_REGISTERS;
    if !(MC0_CTL..last).contains(&msr.index) {
        return false;
    }
    let is_control = (msr.index - MC0_CTL).is_multiple_of(MC_BANK_REGISTERS);
    msr.value == if is_control { u64::MAX } else { 0 }
}

/// Whether the guest was offered Hyper-V's interface (leaf 0x4000_0001 says "Hv#1").
fn offers_hyperv(vcpu: &KvmVcpu) -> bool {
    vcpu.cpuid.iter().any(|entry| entry.leaf == 0x4000_0001 && entry.eax == u32::from_le_bytes(*b"Hv#1"))
}

/// The register's name in the manuals, for messages.
fn name(index: u32) -> String {
    let known = match index {
        TSC => "IA32_TIME_STAMP_COUNTER",
        0x12 => "KVM_SYSTEM_TIME (old)",
        0x11 => "KVM_WALL_CLOCK (old)",
        0x1b => "IA32_APIC_BASE",
        FEATURE_CONTROL => "IA32_FEATURE_CONTROL",
        0x3b => "IA32_TSC_ADJUST",
        0x48 => "IA32_SPEC_CTRL",
        0x8b => "IA32_BIOS_SIGN_ID",
        0x9e => "IA32_SMBASE",
        0xce => "MSR_PLATFORM_INFO",
        0xe1 => "IA32_UMWAIT_CONTROL",
        0x10a => "IA32_ARCH_CAPABILITIES",
        0x122 => "IA32_TSX_CTRL",
        0x140 => "MSR_MISC_FEATURES_ENABLES",
        SYSENTER_CS => "IA32_SYSENTER_CS",
        SYSENTER_ESP => "IA32_SYSENTER_ESP",
        SYSENTER_EIP => "IA32_SYSENTER_EIP",
        MCG_CAP => "IA32_MCG_CAP",
        0x17a => "IA32_MCG_STATUS",
        0x17b => "IA32_MCG_CTL",
        MISC_ENABLE => "IA32_MISC_ENABLE",
        0x1c4 => "IA32_XFD",
        0x1c5 => "IA32_XFD_ERR",
        0x1d9 => "IA32_DEBUGCTL",
        0x250..=0x26f => "IA32_MTRR_FIX",
        MTRR_VARIABLE..=0x20f => "IA32_MTRR_PHYS",
        0x277 => "IA32_PAT",
        MTRR_DEF_TYPE => "IA32_MTRR_DEF_TYPE",
        0x345 => "IA32_PERF_CAPABILITIES",
        PERF_GLOBAL_CTRL => "IA32_PERF_GLOBAL_CTRL",
        MC0_CTL..=0x47f => "IA32_MC",
        0x480..=0x491 => "IA32_VMX",
        TSC_DEADLINE => "IA32_TSC_DEADLINE",
        0xd90 => "IA32_BNDCFGS",
        0xda0 => "IA32_XSS",
        0x4000_0000..=0x4000_01ff => "HV_X64",
        0x4b56_4d00 => "KVM_WALL_CLOCK",
        0x4b56_4d01 => "KVM_SYSTEM_TIME",
        KVM_ASYNC_PF_EN => "KVM_ASYNC_PF_EN",
        0x4b56_4d03 => "KVM_STEAL_TIME",
        0x4b56_4d04 => "KVM_PV_EOI_EN",
        0x4b56_4d05 => "KVM_POLL_CONTROL",
        KVM_ASYNC_PF_INT => "KVM_ASYNC_PF_INT",
        KVM_ASYNC_PF_ACK => "KVM_ASYNC_PF_ACK",
        0xc000_0080 => "IA32_EFER",
        STAR => "IA32_STAR",
        LSTAR => "IA32_LSTAR",
        CSTAR => "IA32_CSTAR",
        SYSCALL_MASK => "IA32_FMASK",
        0xc000_0100 => "IA32_FS_BASE",
        0xc000_0101 => "IA32_GS_BASE",
        KERNEL_GS_BASE => "IA32_KERNEL_GS_BASE",
        0xc000_0103 => "IA32_TSC_AUX",
        0xc000_0104 => "AMD64_TSC_RATIO",
        0xc001_0015 => "MSR_K7_HWCR",
        0xc001_0117 => "MSR_VM_HSAVE_PA",
        0xc001_011f => "AMD64_VIRT_SPEC_CTRL",
        _ => "MSR",
    };
    format!("{known} ({index:#x})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_depend_on_is_set_first() {
        let mut order =
            [TSC_DEADLINE, KVM_ASYNC_PF_EN, LSTAR, KVM_ASYNC_PF_INT, TSC, PERF_GLOBAL_CTRL, FEATURE_CONTROL];
        order.sort_by_key(|&index| (rank(index), index));
        assert_eq!(
            order,
            [FEATURE_CONTROL, TSC, KVM_ASYNC_PF_INT, LSTAR, PERF_GLOBAL_CTRL, KVM_ASYNC_PF_EN, TSC_DEADLINE]
        );
    }

    #[test]
    fn only_idle_machine_check_registers_are_left_out() {
        let idle = |index, value| is_idle_machine_check(Msr { index, value });
        assert!(idle(MC0_CTL, u64::MAX) && idle(MC0_CTL + 1, 0) && idle(0x47f, 0));
        assert!(!idle(MC0_CTL, 0) && !idle(MC0_CTL + 1, 1));
        assert!(!idle(TSC, 0) && !idle(0x480, 0));
    }

    #[test]
    fn messages_name_the_register() {
        assert_eq!(name(0x4b56_4d01), "KVM_SYSTEM_TIME (0x4b564d01)");
        assert_eq!(name(0x1234), "MSR (0x1234)");
    }
}
