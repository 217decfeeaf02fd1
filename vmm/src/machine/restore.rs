//! A machine out of a saved state: the same preparation as for a boot, with a layout that is given and a
//! state that is loaded before the one commit.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    thread::{Builder, ScopedJoinHandle},
};

use arch::x86_64::compat;
use hypervisor::{
    Vm,
    x86_64::{CpuidEntry, IrqchipState, VcpuState, VmClock},
};
use vm_migration::Section;

use super::{
    BuildError, Commits, Host, Machine, MachineState,
    builder::Prepared,
    clock::{ClockPolicy, Shift, TscFrequency},
    descriptors,
    flash::Flash,
    processors::{host_caps, irqchip_mode, vcpu_plans},
    sections,
};
use crate::{
    config::VmConfig,
    cpu::{VcpuStart, Vcpus},
    layout::Layout,
    memory::GuestMemory,
    parallel,
    phases::Phases,
};

/// vCPU states for which a thread of its own is worth it when they are read.
const VCPUS_PER_THREAD: usize = 8;
/// vCPUs whose threads are not worth another thread to start them.
const VCPUS_STARTED_ALONE: usize = 4;

/// What a machine is restored from.
pub struct Restored {
    /// The VM, with nothing in it.
    pub vm: Arc<dyn Vm>,
    /// The map that the guest knows.
    pub layout: Layout,
    /// Its memory, with its content.
    pub memory: GuestMemory,
    /// Its firmware, if that is in flash, as [`Flash::again`] has it.
    pub flash: Option<Flash>,
    /// Everything else.
    pub state: MachineState,
    /// CPU identification that this host can give, as [`check_restore`](Machine::check_restore) tells.
    pub supported: Vec<CpuidEntry>,
    /// How often its wiring is reconfigured.
    pub commits: Commits,
    /// What its clocks show.
    pub clock: ClockPolicy,
    /// At which frequency its time stamp counters count.
    pub tsc: TscFrequency,
}

impl fmt::Debug for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Restored")
            .field("layout", &self.layout)
            .field("memory", &self.memory)
            .finish_non_exhaustive()
    }
}

/// Saved state of what the hypervisor has but for the vCPUs.
pub(super) struct SavedChips {
    pub(super) irqchip: IrqchipState,
    pub(super) clock: Option<VmClock>,
}

impl Machine {
    /// Checks that this host can have a machine of a saved layout whose guest was given that CPU identification, and
    /// that there is a state for all of it; nothing is opened. `supported` is what the host can give.
    ///
    /// # Errors
    /// It cannot, or configuration, layout and state are of different machines.
    pub fn check_restore(
        config: &VmConfig,
        host: &Host,
        layout: &Layout,
        cpu: &[CpuidEntry],
        supported: &[CpuidEntry],
        saved: &BTreeMap<String, Section>,
    ) -> Result<(), BuildError> {
        sections::check(saved, layout, irqchip_mode(host, layout))?;
        config.check()?;
        layout.check(config, &host_caps(host, supported))?;
        let missing: Vec<String> = compat::missing(cpu, supported).iter().map(ToString::to_string).collect();
        if !missing.is_empty() {
            return Err(BuildError::Processor { missing: missing.join(", ") });
        }
        Ok(())
    }

    /// Builds the machine of a saved state that [`check_restore`](Self::check_restore) has seen, in one commit. It is
    /// paused, where the saved one stood; its clocks run from now on, from where `restored.clock` has them begin.
    ///
    /// # Errors
    /// See [`BuildError`]; whatever was opened or made is gone again.
    pub fn restore(
        config: &VmConfig,
        host: &Host,
        restored: Restored,
        phases: &mut Phases,
    ) -> Result<Self, BuildError> {
        let Restored { vm, layout, memory, flash, state, supported, commits, clock, tsc } = restored;
        let indices = layout.present_vcpus();
        let (prepared, saved, threads) = std::thread::scope(|scope| {
            // With many of them it takes as long as all the devices.
            let threads = Builder::new().name("start-vcpus".into());
            let threads = (indices.len() > VCPUS_STARTED_ALONE)
                .then(|| threads.spawn_scoped(scope, || Vcpus::start(&indices)).ok())
                .flatten();
            let prepared = phases
                .time("prepare", || Prepared::new(config, host, vm, layout, (memory, flash), "restore"))?;
            let saved = phases.time("load", || {
                prepared.load(&state)?;
                parallel::map(&indices, VCPUS_PER_THREAD, |index| state.vcpu(*index))
            })?;
            let threads = match threads.map(ScopedJoinHandle::join) {
                Some(Ok(started)) => started?,
                // There was no thread for it. (A panic aborts the process.)
                Some(Err(_)) | None => Vcpus::start(&indices)?,
            };
            Ok::<_, BuildError>((prepared, saved, threads))
        })?;
        let mut saved: BTreeMap<u32, VcpuState> = indices.into_iter().zip(saved).collect();
        let stopped = state.clock()?;
        let shift = Shift::new(clock, stopped.as_ref())?;
        prepared.platform.rtc.lock().shift(shift.real_time_ns());
        for vcpu in saved.values_mut() {
            shift.counter(vcpu)?;
            tsc.choose(vcpu);
        }
        let plans = vcpu_plans(config, &prepared.layout, &supported, |index| match saved.remove(&index) {
            Some(state) => VcpuStart::Saved(Box::new(state)),
            None => VcpuStart::Waiting,
        })?;
        let chips =
            SavedChips { irqchip: state.irqchip()?, clock: stopped.map(|stopped| shift.clock(stopped)) };
        let machine =
            phases.time("commit", || prepared.commit(host, threads, plans, Some(chips), commits))?;
        let needed = descriptors::taken_at_work(machine.layout());
        descriptors::check_room(needed).map_err(|source| BuildError::Descriptors { needed, source })?;
        machine.set_taps_up()?;
        Ok(machine)
    }
}
