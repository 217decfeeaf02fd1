//! A restore that is only tried: everything is read and checked that can be without building a machine, and
//! nothing is made, changed or kept.

use api_client::wire::RestoredNetConfig;

use super::{FillReport, RestoreError, Verify, filling::Filling, restore::Checked};
use crate::{
    config::{DeviceConfig, VmConfig},
    cpu::VcpuError,
    host::check_cpus,
    machine::{
        self, BuildError, Host, MachineState,
        attach::{
            self,
            net::{MadeTap, would_make},
            probe,
        },
        platform::SERIAL_ID,
    },
    memory::{
        Backing, Locking, OwnFiles,
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
    /// Taps that are not there, and that it would make.
    pub made_taps: Vec<MadeTap>,
    /// Network devices that it would have to be given descriptors for.
    pub net_fds: Vec<RestoredNetConfig>,
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
        let files = files.into_iter().map(RestoreError::from);
        let clocks = self.check_clocks(host).err().map(RestoreError::from);
        memory.into_iter().chain(files).chain(clocks).chain(self.resources()).collect()
    }

    /// What of the host's is not there, is somebody else's, or is not what it was: what a restore opens first comes first.
    fn resources(&self) -> Vec<RestoreError> {
        let nodes = self.config.memory.iter().filter_map(|zone| Backing::of(zone, &()).check_node().err());
        let built = self.machine_resources().into_iter().map(RestoreError::from);
        self.consoles().chain(nodes.map(RestoreError::from)).chain(built).collect()
    }

    /// What keeps consoles from their places.
    fn consoles(&self) -> impl Iterator<Item = RestoreError> {
        let attach = |id: &str, source| BuildError::Attach { id: id.to_owned(), source }.into();
        let serial = probe::console(&self.config.serial).map_err(|source| attach(SERIAL_ID, source));
        let virtio = self.config.devices.iter().filter_map(|device| match device {
            DeviceConfig::Console(console) => Some(console),
            _ => None,
        });
        let virtio = virtio.map(move |console| {
            probe::console(&console.target).map_err(|source| attach(&console.id, source))
        });
        std::iter::once(serial).chain(virtio).filter_map(Result::err)
    }

    fn machine_resources(&self) -> Vec<BuildError> {
        let Self { config, snapshot, awaiting, .. } = self;
        let is_console = |device: &DeviceConfig| matches!(device, DeviceConfig::Console(_));
        let devices = config.devices.iter();
        let devices = devices.filter(|device| !is_console(device) && !awaits(awaiting, device.id()));
        // Persistent memory is mapped before any device is built.
        let (first, others): (Vec<_>, Vec<_>) =
            devices.partition(|device| matches!(device, DeviceConfig::Pmem(_)));
        let devices = first.into_iter().chain(others);
        let mut locked = attach::locked_twice(&config.devices);
        let devices = devices.map(|device| {
            attach::probe(device, snapshot.sections())?;
            let id = device.id();
            locked.remove(id).map_or(Ok(()), |source| Err(BuildError::Attach { id: id.to_owned(), source }))
        });
        let present = config.cpus.affinity.iter().filter(|(vcpu, _)| *vcpu < config.cpus.boot);
        let processors = present.map(|(index, cpus)| {
            let index = *index;
            check_cpus(cpus).map_err(|source| BuildError::Vcpu(VcpuError::Affinity { index, source }))
        });
        devices.chain(processors).filter_map(Result::err).collect()
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
        if let Some(first) = self.consoles().next() {
            return Err(first);
        }
        self.check_clocks(host)?;
        let first_missing = self.resources().into_iter().next();
        let Self { request, snapshot, edited, overridden, awaiting, config, layout, mut plan, .. } = self;
        let saved = snapshot.open_memory()?;
        plan.look_at(&saved);
        OwnFiles::open(&config.memory, &plan, Locking::Ask, &())?;
        let verified = request.verify.unwrap_or(Verify::State);
        if verified == Verify::Full {
            content::verify(&saved, true, &())?;
        }
        if let Some(first) = first_missing {
            return Err(first);
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
            made_taps: made_taps(&config, &awaiting),
            net_fds: awaiting,
            vcpus: layout.vcpus.iter().filter(|vcpu| vcpu.present).count(),
            devices: layout.devices.into_iter().map(|device| device.id).collect(),
        })
    }
}

/// Whether a device waits for its descriptors.
fn awaits(awaiting: &[RestoredNetConfig], id: &str) -> bool {
    awaiting.iter().any(|net| net.id == id)
}

/// Taps that would be made.
fn made_taps(config: &VmConfig, awaiting: &[RestoredNetConfig]) -> Vec<MadeTap> {
    let nets = config.devices.iter().filter_map(|device| match device {
        DeviceConfig::Net(net) if !awaits(awaiting, &net.id) => would_make(net),
        _ => None,
    });
    nets.collect()
}
