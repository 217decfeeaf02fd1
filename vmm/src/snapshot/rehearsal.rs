//! A restore that is only tried: everything is read and checked that can be without building a machine, and
//! nothing is made, changed or kept.

use super::{FillReport, RestoreError, Verify, filling::Filling, restore::Checked};
use crate::{
    config::VmConfig,
    machine::{
        self, BuildError, Host, MachineState,
        attach::{self, probe},
    },
    memory::{
        BackingError, OwnFiles,
        content::{self, ZoneMode},
    },
};

/// What a restore would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rehearsal {
    /// Where from.
    pub directory: std::path::PathBuf,
    /// How the memory of each zone would come back.
    pub memory: Vec<ZoneMode>,
    /// Bytes of guest memory that would be read before the guest could run.
    pub memory_bytes: u64,
    /// What was checked of the snapshot.
    pub verified: Verify,
    /// What would be brought in beside what the guest touches.
    pub fill: FillReport,
    /// Members of the configuration that were edited since the snapshot.
    pub edited: Vec<String>,
    /// What the request lays over it.
    pub overridden: Vec<String>,
    /// Processors that the guest has.
    pub vcpus: usize,
    /// Its PCI devices, in layout order.
    pub devices: Vec<String>,
}

impl Checked {
    /// All that this host does not have for it, of what can be found out without taking it.
    pub fn obstacles(&self, host: &Host) -> Vec<RestoreError> {
        let memory = self.snapshot.open_memory().err().map(RestoreError::from);
        let files = OwnFiles::obstacles(&self.config.memory, &self.plan);
        let files = files.into_iter().map(|error| BackingError::from(error).into());
        let clocks = self.check_clocks(host).err();
        let built = clocks.into_iter().chain(resources(&self.config)).map(RestoreError::from);
        memory.into_iter().chain(files).chain(built).collect()
    }

    fn check_clocks(&self, host: &Host) -> Result<(), BuildError> {
        let (clock, tsc) = (self.request.clock, self.request.tsc);
        let vcpus = self.layout.present_vcpus();
        machine::check_clocks(self.snapshot.sections(), &vcpus, &*host.hypervisor, clock, tsc)
    }

    /// Tries the restore.
    ///
    /// # Errors
    /// What would keep it from succeeding, as far as that can be known.
    pub fn rehearse(self, host: &Host) -> Result<Rehearsal, RestoreError> {
        self.check_clocks(host)?;
        let Self { request, snapshot, edited, overridden, config, layout, mut plan, .. } = self;
        let saved = snapshot.open_memory()?;
        plan.look_at(&saved);
        OwnFiles::open(&config.memory, &plan, &()).map_err(BackingError::from)?;
        let verified = request.verify.unwrap_or(Verify::State);
        if verified == Verify::Full {
            content::verify(&saved, true, &())?;
        }
        if let Some(first) = resources(&config).into_iter().next() {
            return Err(first.into());
        }
        let filling = Filling::new(&request, &config.memory, &plan, &snapshot, &saved)?;
        let memory_bytes =
            plan.bytes_to_read(&snapshot.manifest.memory).saturating_add(filling.ahead.placed_bytes());
        MachineState::new(snapshot.into_sections()).check(&layout).map_err(BuildError::State)?;
        Ok(Rehearsal {
            directory: request.source,
            memory: plan.zones,
            memory_bytes,
            verified,
            fill: filling.report,
            edited,
            overridden,
            vcpus: layout.vcpus.iter().filter(|vcpu| vcpu.present).count(),
            devices: layout.devices.into_iter().map(|device| device.id).collect(),
        })
    }
}

/// What of the host's is not there.
fn resources(config: &VmConfig) -> Vec<BuildError> {
    let of = |id: &str| {
        let id = id.to_owned();
        move |source| BuildError::Attach { id, source }
    };
    let serial = probe::console(&config.serial).map_err(of(crate::machine::platform::SERIAL_ID));
    let devices = config.devices.iter().map(|device| attach::probe(device).map_err(of(device.id())));
    std::iter::once(serial).chain(devices).filter_map(Result::err).collect()
}
