//! A machine out of a saved state: the same preparation as for a boot, with a layout that is given and a
//! state that is loaded before the one commit.

use std::collections::BTreeMap;

use arch::x86_64::compat;
use hypervisor::x86_64::{CpuidEntry, IrqchipState, VcpuState, VmClock};
use vm_migration::Section;

use super::{
    BuildError, Commits, Host, Machine, MachineState,
    builder::Prepared,
    clock::{ClockPolicy, Shift},
    processors::{host_caps, irqchip_mode, vcpu_plans},
    sections,
};
use crate::{
    config::VmConfig, cpu::VcpuStart, layout::Layout, memory::GuestMemory, parallel, phases::Phases,
};

/// vCPU states for which a thread of its own is worth it when they are read.
const VCPUS_PER_THREAD: usize = 8;

/// What a machine is restored from.
#[derive(Debug)]
pub struct Restored {
    /// The map that the guest knows.
    pub layout: Layout,
    /// Its memory, with its content.
    pub memory: GuestMemory,
    /// Everything else.
    pub state: MachineState,
    /// CPU identification that this host can give, as [`check_restore`](Machine::check_restore) tells.
    pub supported: Vec<CpuidEntry>,
    /// How often its wiring is reconfigured.
    pub commits: Commits,
    /// What its clocks show.
    pub clock: ClockPolicy,
}

/// Saved state of what the hypervisor has but for the vCPUs.
pub(super) struct SavedChips {
    pub(super) irqchip: IrqchipState,
    pub(super) clock: Option<VmClock>,
}

impl Machine {
    /// Checks that this host can have a machine of a saved layout whose guest was given that CPU identification, and
    /// that there is a state for all of it; nothing is opened. Returns what CPU identification the host can give.
    ///
    /// # Errors
    /// It cannot, or configuration, layout and state are of different machines.
    pub fn check_restore(
        config: &VmConfig,
        host: &Host,
        layout: &Layout,
        cpu: &[CpuidEntry],
        saved: &BTreeMap<String, Section>,
    ) -> Result<Vec<CpuidEntry>, BuildError> {
        sections::check(saved, layout, irqchip_mode(host, layout))?;
        config.check()?;
        let supported = host.hypervisor.supported_cpuid()?;
        layout.check(config, &host_caps(host, &supported))?;
        let missing: Vec<String> = compat::missing(cpu, &supported).iter().map(ToString::to_string).collect();
        if !missing.is_empty() {
            return Err(BuildError::Processor { missing: missing.join(", ") });
        }
        Ok(supported)
    }

    /// Builds the machine of a saved state that [`check_restore`](Self::check_restore) has seen, in one commit. It is paused, where the saved one stood; its clocks
    /// run from now on, from where `restored.clock` has them begin.
    ///
    /// # Errors
    /// See [`BuildError`]; whatever was opened or made is gone again.
    pub fn restore(
        config: &VmConfig,
        host: &Host,
        restored: Restored,
        phases: &mut Phases,
    ) -> Result<Self, BuildError> {
        let Restored { layout, memory, state, supported, commits, clock } = restored;
        let prepared = phases.time("prepare", || Prepared::new(config, host, layout, memory, "restore"))?;
        let present = prepared.layout.vcpus.iter().filter(|vcpu| vcpu.present);
        let indices: Vec<u32> = present.map(|vcpu| vcpu.index).collect();
        let ids = prepared.platform.devices.iter().chain(&prepared.devices).map(|named| named.id.as_str());
        state.check_all_known(u32::try_from(indices.len()).unwrap_or(u32::MAX), ids)?;
        let saved = phases.time("load", || {
            prepared.load(&state)?;
            parallel::map(&indices, VCPUS_PER_THREAD, |index| state.vcpu(*index))
        })?;
        let mut saved: BTreeMap<u32, VcpuState> = indices.into_iter().zip(saved).collect();
        let stopped = state.clock()?;
        let shift = Shift::new(clock, stopped.as_ref())?;
        saved.values_mut().try_for_each(|vcpu| shift.counter(vcpu))?;
        let vcpus = vcpu_plans(config, &prepared.layout, &supported, |index| match saved.get(&index) {
            Some(state) => VcpuStart::Saved(Box::new(state.clone())),
            None => VcpuStart::Waiting,
        })?;
        let chips =
            SavedChips { irqchip: state.irqchip()?, clock: stopped.map(|stopped| shift.clock(stopped)) };
        phases.time("commit", || prepared.commit(host, vcpus, Some(chips), commits))
    }
}
