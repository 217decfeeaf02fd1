//! The saved state of a whole machine: one section for each vCPU, the interrupt controllers, the clock
//! and each device.

use std::collections::BTreeMap;

use hypervisor::{
    HypervisorError,
    x86_64::{CpuidEntry, IrqchipState, VcpuState, VmClock},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_migration::{LoadError, SaveError, Section, State};

use super::{Machine, NamedDevice, clock, flash, sections::Kind};
use crate::{cpu::VcpuError, layout::Layout};

const IRQCHIP: &str = "__irqchip";
const CLOCK: &str = "__clock";

/// A machine could not be saved.
#[derive(Debug, Error)]
pub enum StateError {
    /// A vCPU does not answer, or its state cannot be had.
    #[error("processors")]
    Vcpu(#[from] VcpuError),
    /// The interrupt controllers do not hand their state out.
    #[error("interrupt controllers")]
    Irqchip(#[source] HypervisorError),
    /// A state cannot be written.
    #[error("cannot write the state")]
    Write(#[from] SaveError),
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct SavedVcpu(VcpuState);

impl State for SavedVcpu {
    const KIND: &'static str = "vcpu";
    const VERSION: u32 = 1;
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct SavedIrqchip(IrqchipState);

impl State for SavedIrqchip {
    const KIND: &'static str = "irqchip";
    const VERSION: u32 = 1;
}

/// The guest's clock while it stood still; none where the hypervisor hands none out.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct SavedClock(Option<VmClock>);

impl State for SavedClock {
    const KIND: &'static str = "clock";
    const VERSION: u32 = 1;
}

fn vcpu_id(index: u32) -> String {
    format!("__vcpu{index}")
}

/// The sections of what the hypervisor has of a machine of that layout.
pub(super) fn hypervisors_own(layout: &Layout) -> impl Iterator<Item = (String, Kind)> {
    fn of<S: State>(id: String) -> (String, Kind) {
        (id, (S::KIND, S::VERSION))
    }
    let present = layout.vcpus.iter().filter(|vcpu| vcpu.present);
    let vcpus = present.map(|vcpu| of::<SavedVcpu>(vcpu_id(vcpu.index)));
    vcpus.chain([of::<SavedIrqchip>(IRQCHIP.to_owned()), of::<SavedClock>(CLOCK.to_owned())])
}

impl Machine {
    /// The state of a paused machine, and the CPU identification that its guest was given.
    ///
    /// # Errors
    /// A vCPU does not answer, or the hypervisor does not hand something out. The machine is as before.
    pub fn save(&self) -> Result<(Vec<Section>, Vec<CpuidEntry>), StateError> {
        let mut sections = Vec::new();
        let mut cpu = Vec::new();
        // As it was before the first counter is read: no more than that is taken off.
        let paused = self.stopped_at.elapsed();
        for (index, mut state) in (0..).zip(self.vcpus.save()?) {
            clock::rewind(&mut state, paused);
            if index == 0 {
                cpu.clone_from(&state.cpuid);
            }
            sections.push(Section::save(&vcpu_id(index), &SavedVcpu(state))?);
        }
        let irqchip = self.vm.save_irqchip().map_err(StateError::Irqchip)?;
        sections.push(Section::save(IRQCHIP, &SavedIrqchip(irqchip))?);
        sections.push(Section::save(CLOCK, &SavedClock(self.stopped_clock))?);
        if let Some(flash) = &self.flash {
            sections.push(Section::save(flash::ID, flash)?);
        }
        for NamedDevice { id, device, .. } in self.all_devices() {
            sections.push(device.lock().save_section(id)?);
        }
        Ok((sections, cpu))
    }
}

/// A saved state on its way into a machine.
#[derive(Debug)]
pub struct MachineState {
    sections: BTreeMap<String, Section>,
}

impl MachineState {
    /// Of those sections, by id.
    pub fn new(sections: BTreeMap<String, Section>) -> Self {
        Self { sections }
    }

    /// The section of a device.
    ///
    /// # Errors
    /// There is none.
    pub fn section(&self, id: &str) -> Result<&Section, LoadError> {
        self.sections.get(id).ok_or_else(|| LoadError::Missing { id: id.to_owned() })
    }

    /// The state of a vCPU.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn vcpu(&self, index: u32) -> Result<VcpuState, LoadError> {
        Self::vcpu_of(&self.sections, index)
    }

    /// The state of a vCPU, by the sections of those that are not a machine's yet.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn vcpu_of(sections: &BTreeMap<String, Section>, index: u32) -> Result<VcpuState, LoadError> {
        let id = vcpu_id(index);
        let section = sections.get(&id).ok_or(LoadError::Missing { id })?;
        section.load::<SavedVcpu>().map(|SavedVcpu(state)| state)
    }

    /// The state of the interrupt controllers.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn irqchip(&self) -> Result<IrqchipState, LoadError> {
        self.section(IRQCHIP)?.load::<SavedIrqchip>().map(|SavedIrqchip(state)| state)
    }

    /// The guest's clock.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn clock(&self) -> Result<Option<VmClock>, LoadError> {
        Self::read_clock(self.section(CLOCK)?)
    }

    /// The guest's clock, by a section of those that are not a machine's yet; none where there is no such section.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn clock_of(sections: &BTreeMap<String, Section>) -> Result<Option<VmClock>, LoadError> {
        sections.get(CLOCK).map_or(Ok(None), Self::read_clock)
    }

    fn read_clock(section: &Section) -> Result<Option<VmClock>, LoadError> {
        section.load::<SavedClock>().map(|SavedClock(clock)| clock)
    }

    /// Checks that the states of the hypervisor's parts can be read.
    ///
    /// # Errors
    /// One is missing or cannot be read.
    pub fn check(&self, layout: &Layout) -> Result<(), LoadError> {
        for vcpu in layout.vcpus.iter().filter(|vcpu| vcpu.present) {
            self.vcpu(vcpu.index)?;
        }
        self.irqchip()?;
        self.clock().map(|_| ())
    }
}
