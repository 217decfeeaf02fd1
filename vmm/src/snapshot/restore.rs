//! A directory into a machine: everything is checked before anything is built.

use std::{fmt, io, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use api_client::wire;
use arch::x86_64::layout::GENERATION_ID_SIZE;
use hypervisor::{HypervisorError, x86_64::CpuidEntry};
use serde::de::DeserializeOwned;
use thiserror::Error;
use vm_migration::snapshot::{CONFIG, ChunkError, SavedMemory, Snapshot, SnapshotError};

use super::{EditError, OverrideError, RestoreReport, edits::edits, filling::Filling, overrides};
use crate::{
    config::{ConfigError, VmConfig, wire::IdCounter},
    jobs::Progress,
    layout::Layout,
    machine::{
        Blank, BuildError, ClockPolicy, Commits, Host, Machine, MachineState, Restored, TscFrequency,
        flash::Flash, generation,
    },
    memory::{
        BackingError, GuestMemory, Locking, OwnFiles,
        background::{Fill, Watch},
        content::{self, ContentError, MemoryMode, RestorePlan},
        demand::{Building, Source},
    },
    phases::Phases,
};

/// What of a snapshot is checked against its checksums before the guest runs. The manifest always is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Nothing else.
    Off,
    /// The state.
    State,
    /// State and memory, but that of zones that are kept in their own files.
    Full,
}

impl fmt::Display for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "the manifest",
            Self::State => "manifest and state",
            Self::Full => "manifest, state and stored memory",
        })
    }
}

impl FromStr for Verify {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        match word {
            "off" => Ok(Self::Off),
            "state" => Ok(Self::State),
            "full" => Ok(Self::Full),
            _ => Err(()),
        }
    }
}

/// What is to be restored, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// The snapshot's directory.
    pub source: PathBuf,
    /// How memory comes back; the fastest way that each zone can have if not given.
    pub memory: Option<MemoryMode>,
    /// What is checked; all of what is read if not given.
    pub verify: Option<Verify>,
    /// What is brought in beside what the guest touches; what was recorded, if not given.
    pub fill: Option<Fill>,
    /// For how long it is noted what the guest touches, if it is.
    pub record: Option<Duration>,
    /// Whether all memory is populated at once, whatever the configuration says.
    pub prefault: bool,
    /// How often the wiring is reconfigured.
    pub commits: Commits,
    /// Whether the guest gets a new generation id, and is told.
    pub new_generation: bool,
    /// What its clocks show.
    pub clock: ClockPolicy,
    /// At which frequency its time stamp counters count.
    pub tsc: TscFrequency,
}

/// A machine could not be restored. Nothing is left of it.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The directory holds no snapshot that can be used.
    #[error("snapshot")]
    Snapshot(#[from] SnapshotError),
    /// The configuration was edited where it must not be.
    #[error("config.json of the snapshot")]
    Edited(#[from] EditError),
    /// What the request lays over the configuration cannot be.
    #[error(transparent)]
    Override(#[from] OverrideError),
    /// The configuration cannot be read.
    #[error("{what} of the snapshot cannot be understood")]
    Form {
        /// Which part.
        what: &'static str,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// The configuration cannot be.
    #[error("configuration")]
    Config(#[from] ConfigError),
    /// Memory cannot be had.
    #[error("guest memory")]
    Backing(#[from] BackingError),
    /// The content of memory cannot be had, or is damaged.
    #[error("guest memory")]
    Content(#[from] ContentError),
    /// The host gives no random numbers.
    #[error("generation id")]
    Generation(#[source] io::Error),
    /// The machine cannot be built.
    #[error("machine")]
    Build(#[from] BuildError),
}

impl RestoreError {
    /// What clients know it by.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Snapshot(_) | Self::Form { .. } => "snapshot-unusable",
            Self::Content(ContentError::Saved(ChunkError::Damaged { .. })) => "snapshot-unusable",
            Self::Edited(_) => "config-edited",
            Self::Override(_) => "override-invalid",
            _ => "restore-failed",
        }
    }
}

/// A snapshot that has been read and checked; nothing has been built.
#[derive(Debug)]
pub struct Opened {
    pub(super) request: Request,
    phases: Phases,
    pub(super) snapshot: Snapshot,
    pub(super) edited: Vec<String>,
    overridden: Vec<String>,
    /// Network devices that descriptors are still to come for, and how many.
    awaiting: Vec<wire::RestoredNetConfig>,
    /// The configuration, as clients know it.
    pub said: wire::VmConfig,
}

/// A snapshot that this host can have, as far as that can be known without opening anything for it.
#[derive(Debug)]
pub struct Checked {
    pub(super) request: Request,
    phases: Phases,
    pub(super) snapshot: Snapshot,
    pub(super) edited: Vec<String>,
    pub(super) overridden: Vec<String>,
    pub(super) awaiting: Vec<wire::RestoredNetConfig>,
    said: wire::VmConfig,
    pub(super) config: VmConfig,
    ids: IdCounter,
    /// The firmware in the guest's flash.
    flash: Option<Flash>,
    pub(super) layout: Layout,
    supported: Vec<CpuidEntry>,
    pub(super) plan: RestorePlan,
}

/// A machine that was restored, paused.
#[derive(Debug)]
pub struct Revived {
    /// The machine.
    pub machine: Machine,
    /// Its configuration, as clients know it.
    pub said: wire::VmConfig,
    /// What that came to.
    pub config: VmConfig,
    /// Numbers the ids that are given from now on.
    pub ids: IdCounter,
    /// How it went so far.
    pub report: RestoreReport,
    /// The clock that runs since the request.
    pub phases: Phases,
}

impl Opened {
    /// Reads and checks all of a snapshot but its memory.
    ///
    /// # Errors
    /// There is none, it is damaged, or its configuration was edited where that cannot be.
    pub fn open(request: Request) -> Result<Self, RestoreError> {
        let mut phases = Phases::begin();
        let verify = request.verify != Some(Verify::Off);
        let snapshot = phases.time("read state", || Snapshot::open(&request.source, verify))?;
        let (said, edited) = phases.time("configuration", || configuration(&snapshot))?;
        Ok(Self { request, phases, snapshot, edited, overridden: Vec::new(), awaiting: Vec::new(), said })
    }

    /// Lays other resources of the host over the configuration.
    ///
    /// # Errors
    /// One of them cannot be; none is laid over it then.
    pub fn lay_over(&mut self, overrides: &[wire::RestoreOverride]) -> Result<(), RestoreError> {
        self.overridden = overrides::apply(&mut self.said, overrides)?;
        Ok(())
    }

    /// For a restore that is only tried where nobody can hand anything over: network devices are taken to have the
    /// descriptors that they still need. What comes of it can be rehearsed; to be restored it would lack them.
    pub fn await_descriptors(&mut self) {
        for net in self.said.net.iter_mut().flatten().filter(|net| net.descriptors.0.is_empty()) {
            let Some(fds) = net.fds.take().filter(|fds| !fds.is_empty()) else { continue };
            // Of no account with descriptors, and so not checked either.
            (net.ip, net.mask) = (None, None);
            let id = net.id.clone().unwrap_or_default();
            self.awaiting.push(wire::RestoredNetConfig { id, num_fds: fds.len() });
        }
    }

    /// Holds configuration, layout, state and the host's processors against each other. What `said` was changed to in
    /// the meantime counts. Nothing is opened or made, but
    /// that firmware in flash is read again.
    ///
    /// # Errors
    /// They are of different machines, there is a state of a newer version, or this host cannot run the guest.
    pub fn check(self, host: &Host, ids: IdCounter) -> Result<Checked, RestoreError> {
        self.check_with(host, ids, || host.hypervisor.supported_cpuid())
    }

    /// Does the same, with `supported` to say what CPU identification the host can give.
    ///
    /// # Errors
    /// As for [`check`](Self::check).
    pub fn check_with(
        self,
        host: &Host,
        mut ids: IdCounter,
        supported: impl FnOnce() -> Result<Vec<CpuidEntry>, HypervisorError>,
    ) -> Result<Checked, RestoreError> {
        let Self { request, mut phases, snapshot, edited, overridden, awaiting, mut said } = self;
        let checked = phases.time("check", || {
            let config = VmConfig::from_wire(&mut said, &mut ids)?;
            let manifest = &snapshot.manifest;
            let layout: Layout = read("the layout", manifest.layout.get())?;
            let cpu: Vec<CpuidEntry> = read("CPU identification", manifest.cpu.get())?;
            let supported = supported().map_err(BuildError::from)?;
            Machine::check_restore(&config, host, &layout, &cpu, &supported, snapshot.sections())?;
            let flash = Flash::again(&config, &layout, snapshot.sections()).map_err(BuildError::from)?;
            let plan = RestorePlan::new(&config.memory, &manifest.memory, request.memory)?;
            Ok::<_, RestoreError>((config, flash, layout, supported, plan))
        });
        let (config, flash, layout, supported, plan) = checked?;
        Ok(Checked {
            request,
            phases,
            snapshot,
            edited,
            overridden,
            awaiting,
            said,
            config,
            ids,
            flash,
            layout,
            supported,
            plan,
        })
    }
}

impl Checked {
    /// Builds the machine.
    ///
    /// # Errors
    /// See [`RestoreError`]; nothing is left of what was opened and made.
    pub fn revive(
        self,
        host: &Host,
        blank: Blank<'_>,
        progress: &Progress,
        watch: Watch,
    ) -> Result<Revived, RestoreError> {
        let Self { request, mut phases, snapshot, edited, overridden, said, .. } = self;
        let Self { mut config, ids, flash, layout, supported, mut plan, .. } = self;
        for zone in &mut config.memory {
            zone.prefault = request.prefault && request.memory != Some(MemoryMode::OnDemand);
        }
        let saved = Arc::new(snapshot.open_memory()?);
        plan.look_at(&saved);
        // Given up last: nobody may use memory whose file has become shorter.
        let mut files = OwnFiles::open(&config.memory, &plan, Locking::Take, progress)?;
        let filling = Filling::new(&request, &config.memory, &plan, &snapshot, &saved)?;
        let fill = filling.report.clone();
        let memory = phases.time("memory", || {
            bring_back(&request, &config, &plan, &saved, (filling, &mut files), progress, watch)
        })?;
        let (mut memory, verified, memory_bytes) = memory;
        let lazily_checked = verified == Verify::State && plan.zones.iter().any(|zone| zone.mode.is_lazy());
        if !request.prefault {
            memory.came_from(snapshot.root(), &plan);
        }
        let new_generation = request.new_generation && give_generation(&layout, &memory)?;
        if progress.is_cancelled() {
            return Err(ContentError::Cancelled.into());
        }
        progress.phase("machine", None);
        let state = MachineState::new(snapshot.into_sections());
        let (vm, beside) = blank.vm().map_err(BuildError::from)?;
        let (commits, clock, tsc) = (request.commits, request.clock, request.tsc);
        let building = memory.building();
        let restored = Restored { vm, beside, layout, memory, flash, state, supported, commits, clock, tsc };
        let machine = Machine::restore(&config, host, restored, &mut phases);
        // First: where memory could not be had, whatever else went wrong may have gone wrong for that.
        building.map_or(Ok(()), Building::end)?;
        let machine = machine?;
        if new_generation {
            machine.tell_new_generation();
        }
        files.keep();
        let report = RestoreReport {
            new_generation,
            made_taps: machine.made_taps(),
            directory: request.source,
            memory: plan.zones,
            memory_bytes,
            verified,
            lazily_checked,
            fill,
            edited,
            overridden,
            total_ns: phases.total_ns(),
            phases: phases.done().to_vec(),
            running: false,
            commit: machine.report().clone(),
            totals: machine.manager().totals(),
        };
        Ok(Revived { machine, said, config, ids, report, phases })
    }
}

/// Maps memory, and reads and checks as much of it as is to be read and checked now.
fn bring_back(
    request: &Request,
    config: &VmConfig,
    plan: &RestorePlan,
    saved: &Arc<SavedMemory>,
    (filling, files): (Filling, &mut OwnFiles),
    progress: &Progress,
    watch: Watch,
) -> Result<(GuestMemory, Verify, u64), RestoreError> {
    let copied = |zone: &str| plan.mode(zone) == Some(MemoryMode::Copy);
    let all_copied = plan.zones.iter().all(|zone| zone.mode == MemoryMode::Copy);
    let default = if all_copied { Verify::Full } else { Verify::State };
    let verify = request.verify.unwrap_or(default);
    let Filling { fill, ahead, recording, .. } = filling;
    let bytes = plan.bytes_to_read(saved.table()).saturating_add(ahead.placed_bytes());
    if verify == Verify::Full {
        // What is copied is checked on its way.
        content::verify(saved, !all_copied, progress)?;
    }
    let mut memory = GuestMemory::map_restored(&config.memory, plan, saved, &ahead, files, progress)?;
    progress.phase("memory", Some(bytes));
    let check = verify != Verify::Off;
    memory.place(plan, &ahead, saved, check, progress)?;
    let source = Source { saved: Arc::clone(saved), check };
    memory.page_in(plan, source, &ahead, recording.is_some(), Arc::clone(&watch.on_failure))?;
    let to_copy: Vec<_> = memory.zones().into_iter().filter(|(zone, _)| copied(zone)).collect();
    content::load(&to_copy, saved, check, progress)?;
    // With everything else, mapped memory was checked above.
    memory.look_after(plan, saved, verify == Verify::State, (fill, ahead, recording), watch)?;
    Ok((memory, verify, bytes))
}

/// Writes a new generation id where the guest looks for it. `false` if it does not look for any.
fn give_generation(layout: &Layout, memory: &GuestMemory) -> Result<bool, RestoreError> {
    let place = layout.generation_id.and_then(|at| layout.in_ram(at, GENERATION_ID_SIZE));
    let Some((zone, offset)) = place else { return Ok(false) };
    let id = generation::fresh().map_err(RestoreError::Generation)?;
    memory.write(zone, offset, &id)?;
    Ok(true)
}

/// The configuration now, and what was edited of it.
fn configuration(snapshot: &Snapshot) -> Result<(wire::VmConfig, Vec<String>), RestoreError> {
    let said: wire::VmConfig = read(CONFIG, &snapshot.config)?;
    let saved = snapshot.manifest.config.get();
    if snapshot.config == saved {
        return Ok((said, Vec::new()));
    }
    let saved: wire::VmConfig = read("the configuration in manifest.json", saved)?;
    if said == saved {
        return Ok((said, Vec::new()));
    }
    let form = |source| RestoreError::Form { what: CONFIG, source };
    let value = |config: &wire::VmConfig| serde_json::to_value(config).map_err(form);
    let edited = edits(&value(&saved)?, &value(&said)?)?;
    log::info!("{CONFIG}: edited since the snapshot: {}", edited.join(", "));
    Ok((said, edited))
}

/// A part of a snapshot: lists are no structures, as in a request.
pub(super) fn read<T: DeserializeOwned>(what: &'static str, text: &str) -> Result<T, RestoreError> {
    let wire::Objects(part) =
        serde_json::from_str(text).map_err(|source| RestoreError::Form { what, source })?;
    Ok(part)
}
