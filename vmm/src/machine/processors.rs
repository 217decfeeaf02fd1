//! Processors and their interrupt controllers: what this host can give, and what each vCPU starts from.

use std::sync::Arc;

use arch::x86_64::cpuid::{self, CpuidConfig, CpuidError, CpuidTemplate};
use hypervisor::{HypervisorKind, IrqchipMode, x86_64::CpuidEntry};

use super::Host;
use crate::{
    config::CpusConfig,
    cpu::{Cookie, VcpuPlan, VcpuStart},
    layout::{HostCaps, Layout},
};

/// What the layout must know of the host.
pub(super) fn host_caps(host: &Host, supported: &[CpuidEntry]) -> HostCaps {
    let capabilities = host.hypervisor.capabilities();
    HostCaps {
        phys_bits: cpuid::phys_bits(supported, u8::MAX),
        max_vcpus: capabilities.max_vcpus,
        max_apic_id: if capabilities.x2apic_ids && capabilities.split_irqchip && capabilities.signal_msi {
            capabilities.max_vcpu_id.min(MAX_DESTINATIONS)
        } else {
            255
        },
    }
}

/// What a processor has in EDX after a reset; 0 where the hypervisor tells no leaf 1.
pub(super) fn signature(supported: &[CpuidEntry]) -> u32 {
    supported.iter().find(|entry| entry.leaf == 1).map_or(0, |entry| entry.eax)
}

/// APIC ids that a message with an extended destination can name.
const MAX_DESTINATIONS: u32 = 1 << 15;

/// The kernel's controllers are the quickest; the destinations of its IOAPIC have eight bits. Other hypervisors have
/// none.
pub(super) fn irqchip_mode(host: &Host, layout: &Layout) -> IrqchipMode {
    if layout.has_wide_apic_ids() || host.hypervisor.kind() == HypervisorKind::Mshv {
        IrqchipMode::Split
    } else {
        IrqchipMode::Kernel
    }
}

/// The processors that are present, each with what it starts from.
pub(super) fn vcpu_plans(
    cpus: &CpusConfig,
    layout: &Layout,
    supported: &[CpuidEntry],
    mut start: impl FnMut(u32) -> VcpuStart,
) -> Result<Vec<VcpuPlan>, CpuidError> {
    let present = layout.vcpus.iter().filter(|vcpu| vcpu.present);
    let started: Vec<_> = present.map(|vcpu| (vcpu, start(vcpu.index))).collect();
    // A saved one has its own, and a restore does not wait for what it does not need.
    let template = if started.iter().all(|(_, start)| matches!(start, VcpuStart::Saved(_))) {
        None
    } else {
        Some(CpuidTemplate::new(&CpuidConfig {
            supported,
            topology: cpus.topology,
            max_phys_bits: layout.phys_bits,
            nested: cpus.nested,
            amx: cpus.amx,
            tsc_deadline_timer: true,
            extended_destination_id: layout.has_wide_apic_ids(),
            hidden: &cpus.hide,
        })?)
    };
    let cookie = Arc::new(Cookie::new(cpus.core_scheduling));
    let plans = started.into_iter().map(|(vcpu, start)| {
        let affinity = cpus.affinity.iter().find(|(index, _)| *index == vcpu.index);
        let cpuid = match (&start, &template) {
            (VcpuStart::Ready(_) | VcpuStart::Waiting, Some(template)) => template.for_vcpu(vcpu.index),
            (VcpuStart::Saved(_), _) | (_, None) => Vec::new(),
        };
        VcpuPlan {
            index: vcpu.index,
            apic_id: vcpu.apic_id,
            cpuid,
            start,
            affinity: affinity.map(|(_, cpus)| cpus.clone()).unwrap_or_default(),
            cookie: Arc::clone(&cookie),
        }
    });
    Ok(plans.collect())
}
