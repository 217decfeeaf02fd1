//! Saving and loading a vCPU: the calls, and their order.
//!
//! *Save* reads the activity state first: with it KVM takes in an INIT or SIPI that is still pending,
//! which changes other registers.
//!
//! *Load* sets, in this order: CPUID, which decides what the rest may be; the TSC's frequency, before
//! its value; segment and control registers, whose EFER and APIC base nested state and local APIC
//! need; nested state, after the feature control that allows it; general registers; XCR0, then the
//! state that it enables; the local APIC, in whose timer mode the TSC deadline is understood; the
//! other MSRs, deadline last; and what is pending, debug registers and the activity state at the end,
//! because the calls before may change them.

use kvm_bindings::{KVM_VCPUEVENT_VALID_SMM, nested::KvmNestedStateBuffer};
use zerocopy::IntoBytes;

use super::{
    invalid, ioctl, msr,
    parts::{self, Fpu, FpuState, ParsedVcpu, parse_vcpu, part},
    vcpu::KvmVcpu,
};
use crate::{
    HypervisorError, Vcpu,
    x86_64::{Msr, VcpuState},
};

/// How far two TSC frequencies may lie apart and still count as one, in parts per million: what NTP
/// corrects, and what KVM tolerates (`tsc_tolerance_ppm`).
const TSC_TOLERANCE_PPM: u64 = 250;

pub(super) fn save(vcpu: &KvmVcpu) -> Result<VcpuState, HypervisorError> {
    let fd = &vcpu.fd;
    let details = &vcpu.vm.host.details;
    let failed = |name: &'static str| move |error: kvm_ioctls::Error| vcpu.failed("cannot save", name, error);

    let mut state = VcpuState { cpuid: vcpu.cpuid.clone(), ..VcpuState::default() };
    let mp_state = fd.get_mp_state().map_err(failed(parts::MP_STATE))?;
    state.parts.push(part(parts::MP_STATE, mp_state.as_bytes()));
    let regs = fd.get_regs().map_err(failed(parts::REGS))?;
    state.parts.push(part(parts::REGS, regs.as_bytes()));
    let sregs = fd.get_sregs().map_err(failed(parts::SREGS))?;
    state.parts.push(part(parts::SREGS, sregs.as_bytes()));
    if details.xsave {
        let xsave = ioctl::get_xsave(fd, vcpu.vm.host.capabilities.xsave_size)
            .map_err(|error| vcpu.failed("cannot save", parts::XSAVE, error))?;
        state.parts.push(part(parts::XSAVE, &xsave));
    } else {
        let fpu = fd.get_fpu().map_err(failed(parts::FPU))?;
        state.parts.push(part(parts::FPU, Fpu::from_kvm(&fpu).as_bytes()));
    }
    if details.xcrs {
        let xcrs = fd.get_xcrs().map_err(failed(parts::XCRS))?;
        state.parts.push(part(parts::XCRS, xcrs.as_bytes()));
    }
    if vcpu.vm.irqchip.get().is_some() {
        let lapic = fd.get_lapic().map_err(failed(parts::LAPIC))?;
        state.parts.push(part(parts::LAPIC, lapic.as_bytes()));
    }
    if vcpu.vm.host.capabilities.nested_state_size != 0 {
        let mut nested = Box::new(KvmNestedStateBuffer::empty());
        fd.nested_state(&mut nested).map_err(failed(parts::NESTED))?;
        state.parts.push(part(parts::NESTED, parts::nested_bytes(&nested)));
    }
    let events = fd.get_vcpu_events().map_err(failed(parts::VCPU_EVENTS))?;
    state.parts.push(part(parts::VCPU_EVENTS, events.as_bytes()));
    let debugregs = fd.get_debug_regs().map_err(failed(parts::DEBUGREGS))?;
    state.parts.push(part(parts::DEBUGREGS, debugregs.as_bytes()));
    if details.tsc_khz {
        state.tsc_khz = Some(fd.get_tsc_khz().map_err(failed("the TSC frequency"))?);
    }
    state.msrs = msr::read(vcpu)?;
    Ok(state)
}

pub(super) fn load(vcpu: &mut KvmVcpu, state: &VcpuState) -> Result<(), HypervisorError> {
    let parsed = parse_vcpu(state)?;
    check_host(vcpu, &parsed)?;
    // KVM takes the same table again as well, but copies and checks it: 100 us a vCPU.
    if !state.cpuid.is_empty() && state.cpuid != vcpu.cpuid {
        vcpu.set_cpuid(&state.cpuid)?;
    }
    let vcpu = &*vcpu;
    if let Some(khz) = state.tsc_khz {
        load_tsc_khz(vcpu, khz)?;
    }
    load_parts(vcpu, &parsed, &state.msrs)
}

/// What this host or VM cannot hold, whatever KVM would say to it.
fn check_host(vcpu: &KvmVcpu, parsed: &ParsedVcpu) -> Result<(), HypervisorError> {
    let host = &vcpu.vm.host;
    let refuse = |detail: String| Err(invalid("vCPU state", detail));
    match (&parsed.lapic, vcpu.vm.irqchip.get()) {
        (None, Some(_)) => return refuse(format!("{} is missing", parts::LAPIC)),
        (Some(_), None) => return refuse(format!("{}: this VM has no local APICs", parts::LAPIC)),
        _ => {}
    }
    if let FpuState::Xsave(bytes) = &parsed.fpu {
        let size = usize::try_from(host.capabilities.xsave_size).unwrap_or(usize::MAX);
        if bytes.len() > size {
            return refuse(format!("{} has {} bytes, this host takes {size}", parts::XSAVE, bytes.len()));
        }
    }
    if parsed.xcrs.is_some() && !host.details.xcrs {
        return refuse(format!("{}: this host has none", parts::XCRS));
    }
    if parsed.nested.is_some() && host.capabilities.nested_state_size == 0 {
        return refuse(format!("{}: this host keeps no nested state", parts::NESTED));
    }
    if parsed.events.smi.smm != 0 && !host.capabilities.smm {
        return refuse(format!("{}: in system management mode, which this host lacks", parts::VCPU_EVENTS));
    }
    Ok(())
}

fn load_parts(vcpu: &KvmVcpu, parsed: &ParsedVcpu, msrs: &[Msr]) -> Result<(), HypervisorError> {
    let fd = &vcpu.fd;
    let host = &vcpu.vm.host;
    let failed = |name: &'static str| move |error: kvm_ioctls::Error| vcpu.failed("cannot load", name, error);

    fd.set_sregs(&parsed.sregs).map_err(failed(parts::SREGS))?;
    if let Some(nested) = &parsed.nested {
        if let Some(control) = msrs.iter().find(|msr| msr.index == msr::FEATURE_CONTROL) {
            msr::write(vcpu, std::slice::from_ref(control))?;
        }
        fd.set_nested_state(nested).map_err(failed(parts::NESTED))?;
    }
    fd.set_regs(&parsed.regs).map_err(failed(parts::REGS))?;
    if let Some(xcrs) = &parsed.xcrs {
        fd.set_xcrs(xcrs).map_err(failed(parts::XCRS))?;
    }
    match &parsed.fpu {
        FpuState::Xsave(bytes) => ioctl::set_xsave(fd, host.capabilities.xsave_size, bytes)
            .map_err(|error| vcpu.failed("cannot load", parts::XSAVE, error))?,
        FpuState::Legacy(fpu) => fd.set_fpu(fpu).map_err(failed(parts::FPU))?,
    }
    if let Some(lapic) = &parsed.lapic {
        fd.set_lapic(lapic).map_err(failed(parts::LAPIC))?;
    }
    msr::write(vcpu, msrs)?;
    let mut events = parsed.events;
    if !host.capabilities.smm {
        // Not in SMM (checked before); a host without it may not know the word.
        events.flags &= !KVM_VCPUEVENT_VALID_SMM;
    }
    fd.set_vcpu_events(&events).map_err(failed(parts::VCPU_EVENTS))?;
    fd.set_debug_regs(&parsed.debugregs).map_err(failed(parts::DEBUGREGS))?;
    fd.set_mp_state(parsed.mp_state).map_err(failed(parts::MP_STATE))
}

/// A guest must find the frequency that it has measured. A host that cannot scale the TSC will do if
/// its own is the same within what clocks drift.
fn load_tsc_khz(vcpu: &KvmVcpu, khz: u32) -> Result<(), HypervisorError> {
    let host = &vcpu.vm.host;
    let have = if host.details.tsc_khz {
        vcpu.fd.get_tsc_khz().map_err(|error| vcpu.failed("cannot read", "the TSC frequency", error))?
    } else {
        0
    };
    if have != khz && host.capabilities.tsc_control {
        return vcpu
            .fd
            .set_tsc_khz(khz)
            .map_err(|error| vcpu.failed("cannot load", &format!("the TSC frequency ({khz} kHz)"), error));
    }
    compare_tsc_khz(khz, have)
}

/// Holds the frequency that a guest has measured against that of a host that cannot scale it; 0 is one that the host
/// does not tell, with which nothing can be compared.
pub(super) fn compare_tsc_khz(khz: u32, have: u32) -> Result<(), HypervisorError> {
    let tolerated = u64::from(khz) * TSC_TOLERANCE_PPM / 1_000_000;
    if have == 0 || u64::from(have.abs_diff(khz)) <= tolerated {
        return Ok(());
    }
    let detail = format!("TSC of {khz} kHz; this host's has {have} kHz and cannot be scaled");
    Err(invalid("vCPU state", detail))
}
