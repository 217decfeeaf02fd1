//! A machine out of a saved state: the same preparation as for a boot, with a layout that is given and a
//! state that is loaded before the one commit.

use std::{collections::BTreeMap, fmt, sync::Arc};

use arch::x86_64::compat;
use hypervisor::{
    Vm,
    x86_64::{CpuidEntry, VcpuState},
};
use vm_migration::Section;

use super::{
    BuildError, Commits, Host, Machine, MachineState,
    blank::{Beside, Made},
    builder::{Ground, Peripherals},
    clock::{ClockPolicy, Shift, TscFrequency},
    descriptors,
    flash::Flash,
    persistent::Files,
    processors::{host_caps, irqchip_mode, vcpu_plans},
    sections,
};
use crate::{
    config::VmConfig, cpu::VcpuStart, layout::Layout, memory::GuestMemory, parallel, phases::Phases,
};

/// vCPU states for which a thread of its own is worth it when they are read.
const VCPUS_PER_THREAD: usize = 8;

/// What a machine is restored from.
pub struct Restored<'scope> {
    /// The VM, with nothing in it.
    pub vm: Arc<dyn Vm>,
    /// Who makes its processors beside the devices.
    pub beside: Beside<'scope>,
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

impl fmt::Debug for Restored<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Restored")
            .field("layout", &self.layout)
            .field("memory", &self.memory)
            .finish_non_exhaustive()
    }
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
        restored: Restored<'_>,
        phases: &mut Phases,
    ) -> Result<Self, BuildError> {
        let Restored { vm, beside, layout, memory, flash, state, supported, commits, clock, tsc } = restored;
        let stopped = state.clock()?;
        let shift = Shift::new(clock, stopped.as_ref())?;
        let stopped = stopped.map(|stopped| shift.clock(stopped));
        let persistent = Files::open(config, Some(&layout))?.map()?;
        let held = (flash.as_ref(), persistent);
        let ground = Arc::new(Ground::new(host, vm, layout, &memory, held, "restore")?);
        let state = Arc::new(state);
        let processors = {
            let (ground, state, cpus) = (Arc::clone(&ground), Arc::clone(&state), config.cpus.clone());
            let requests = Arc::clone(&host.requests);
            beside.begin(Box::new(move || {
                let indices = ground.layout.present_vcpus();
                let states = parallel::map(&indices, VCPUS_PER_THREAD, |index| {
                    let mut vcpu = state.vcpu(*index)?;
                    shift.counter(&mut vcpu)?;
                    tsc.choose(&mut vcpu);
                    Ok::<_, BuildError>(vcpu)
                })?;
                let mut saved: BTreeMap<u32, VcpuState> = indices.into_iter().zip(states).collect();
                let plans =
                    vcpu_plans(&cpus, &ground.layout, &supported, |index| match saved.remove(&index) {
                        Some(state) => VcpuStart::Saved(Box::new(state)),
                        None => VcpuStart::Waiting,
                    })?;
                ground.make_processors(plans, &requests, Some(&state.irqchip()?))
            }))
        };
        let peripherals = phases.time("prepare", || Peripherals::new(config, host, &ground))?;
        phases.time("load", || peripherals.load(&state, &ground.transaction))?;
        peripherals.platform.rtc.lock().shift(shift.real_time_ns());
        let Made { vcpus, began, ended } = processors.made()?;
        phases.add("processors", began, ended);
        let vcpus = vcpus?;
        let flash = flash.as_ref().map(Flash::saved);
        let machine =
            phases.time("commit", || peripherals.commit(ground, vcpus, (memory, flash), stopped, commits))?;
        let needed = descriptors::taken_at_work(machine.layout());
        descriptors::check_room(needed).map_err(|source| BuildError::Descriptors { needed, source })?;
        phases.time("taps", || machine.set_taps_up())?;
        Ok(machine)
    }
}
