//! The machine: what a layout, opened host resources and, at a restore, a saved state come to.
//!
//! `builder` is the one path of boot, restore and migration; [`attach`] opens what each kind of
//! device needs; `lifecycle` stops and starts the whole. One thread owns a [`Machine`]; the API
//! sends that thread requests.

mod arming;
pub mod attach;
mod blank;
mod builder;
mod clock;
mod commit;
pub mod consoles;
mod descriptors;
mod error;
pub mod flash;
pub mod generation;
mod images;
mod lifecycle;
pub mod payload;
pub mod persistent;
pub mod platform;
mod processors;
mod restore;
mod sections;
pub mod sinks;
pub mod state;
mod tables;
mod taps;
#[cfg(test)]
pub(crate) mod tests;

use std::{io, sync::Arc, time::Instant};

use address_manager::{AddressManager, CommitReport};
use devices::{SharedDevice, pci::PciSegment};
use hypervisor::{Hypervisor, Vm, x86_64::VmClock};

use self::{arming::Arming, consoles::Consoles, flash::SavedFlash, platform::Platform, sinks::RequestQueue};
pub use self::{
    blank::{Beside, Blank},
    clock::{ClockPolicy, TscFrequency, check as check_clocks},
    commit::Commits,
    error::BuildError,
    lifecycle::LifeError,
    restore::Restored,
    state::{MachineState, StateError},
};
use crate::{cpu::Vcpus, events::Events, layout::Layout, memory::GuestMemory};

/// What a machine uses of its host.
#[derive(Clone)]
pub struct Host {
    /// The hypervisor.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Where the guest's requests go.
    pub requests: Arc<RequestQueue>,
    /// Where the consoles' other ends are.
    pub consoles: Arc<Consoles>,
    /// Who is told of what happens.
    pub events: Events,
}

impl Host {
    /// What a machine uses that has no console open yet, and whose events nobody hears.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(hypervisor: Arc<dyn Hypervisor>) -> io::Result<Self> {
        Ok(Self {
            hypervisor,
            requests: RequestQueue::new()?,
            consoles: Arc::default(),
            events: Events::default(),
        })
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Host({})", self.hypervisor.kind())
    }
}

/// A device and the id under which it is known.
#[derive(Clone, Debug)]
pub struct NamedDevice {
    /// Its id.
    pub id: String,
    /// The device.
    pub device: SharedDevice,
    /// What else can be asked of it.
    pub control: attach::Control,
}

/// A built machine. Made paused.
pub struct Machine {
    layout: Layout,
    // The order of the fields is the order in which they go: processors before what they reach.
    vcpus: Vcpus,
    /// Does what a restore left for later.
    arming: Option<Arming>,
    platform: Platform,
    devices: Vec<NamedDevice>,
    segments: Vec<Arc<PciSegment>>,
    manager: Arc<AddressManager>,
    vm: Arc<dyn Vm>,
    /// The guest's clock while it stands still.
    stopped_clock: Option<VmClock>,
    /// When it came to stand still; of one that runs, when it did so last.
    stopped_at: Instant,
    /// What its firmware's image is, if that is in flash.
    flash: Option<SavedFlash>,
    report: CommitReport,
    // Last: until nobody can touch it any more, missing pages are brought in.
    memory: GuestMemory,
}

impl Machine {
    /// What it was built from.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The report of the commit that put its wiring in place.
    pub fn report(&self) -> &CommitReport {
        &self.report
    }

    /// The owner of its wiring.
    pub fn manager(&self) -> &Arc<AddressManager> {
        &self.manager
    }

    /// Its PCI devices, in layout order.
    pub fn devices(&self) -> &[NamedDevice] {
        &self.devices
    }

    /// Its memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Its memory, to change how it is looked after.
    pub fn memory_mut(&mut self) -> &mut GuestMemory {
        &mut self.memory
    }

    /// Its processors.
    pub fn vcpus(&self) -> &Vcpus {
        &self.vcpus
    }
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("vcpus", &self.vcpus.count())
            .field("devices", &self.devices.len())
            .field("segments", &self.segments.len())
            .finish_non_exhaustive()
    }
}
