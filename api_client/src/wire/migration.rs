//! Bodies of the requests that restore a VM or move it.

use std::{
    num::{NonZeroU32, NonZeroU64},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use super::{console::ConsoleMode, cpus::CpuAffinity, net::MacAddress};

/// Restores a VM from a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreConfig {
    /// Where from: `file://` and a directory.
    pub source_url: String,
    /// Whether all memory is populated first.
    #[serde(default)]
    pub prefault: bool,
    /// How memory comes back. Not given, each zone has the fastest way that it can have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_restore_mode: Option<MemoryRestoreMode>,
    /// What is checked against its checksums before the VM runs. Not given, all of what is read by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<RestoreVerify>,
    /// What is brought in beside what the VM touches. Not given, the recorded working set, where there is one.
    /// Cumulet's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub background_fill: Option<BackgroundFill>,
    /// Bytes a second that are brought in at most, with `background_fill` all. Cumulet's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fill_bytes_per_second: Option<NonZeroU64>,
    /// For how many milliseconds from its first instruction on it is noted what the VM touches, to be read ahead at
    /// the next restore; at most 600,000. Not given, that is not noted. Cumulet's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record_working_set_ms: Option<NonZeroU32>,
    /// How often the guest's wiring is reconfigured; once if not given. Cumulet's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<RestoreCommit>,
    /// Whether the VM learns that it is a copy; it does if not given. Cumulet's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation_id: Option<GenerationId>,
    /// Which of the VM's clocks have gone on; the real-time clock alone if not given. Cumulet's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<RestoreClock>,
    /// At which frequency the VM's time stamp counters count; at the saved one if not given, which a host that can
    /// neither count nor scale so refuses. Cumulet's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tsc: Option<RestoreTsc>,
    /// Network devices whose taps are handed over, and how many each takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_fds: Option<Vec<RestoredNetConfig>>,
    /// VFIO devices that are handed over, one descriptor each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vfio_fds: Option<Vec<RestoredVfioConfig>>,
    /// Whether the VM then runs.
    #[serde(default)]
    pub resume: bool,
    /// Memory zones that come from another node of this host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub zone_updates: Vec<ZoneUpdate>,
    /// Resources of this host that take the place of those in the snapshot's configuration. Cumulet's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<RestoreOverride>,
    /// Whether the restore is only tried: the answer says what it would do, and nothing is done. Cumulet's own.
    #[serde(default, skip_serializing_if = "is_false")]
    pub dry_run: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Resources of this host for one thing that the snapshot's configuration has. Cumulet's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RestoreOverride {
    /// The device or memory zone; `__serial` for the serial port, `__console` for a console without an id,
    /// `__cpus` for the processors.
    pub id: String,
    /// A disk's image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// A network device's tap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// The MAC address that a network device shows. A driver that runs has read the old one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// The MAC address of its tap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_mac: Option<MacAddress>,
    /// A console's other end; with it come the file or the socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<ConsoleMode>,
    /// The file of a console's mode `File`, of a memory zone, or of persistent memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The socket of a console's mode `Socket`, or of the socket device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// The guest's context id, of the socket device. The guest is told to read it anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cid: Option<u32>,
    /// NUMA node of the host that a memory zone comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_numa_node: Option<u32>,
    /// On which host CPUs each vCPU runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Vec<CpuAffinity>>,
}

/// How the memory of a restored VM comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemoryRestoreMode {
    /// All of it is read before the VM runs.
    Copy,
    /// The snapshot's file is mapped; a page is copied when it is written. Cumulet's own.
    Cow,
    /// Pages are read as they are touched.
    OnDemand,
}

/// What of a snapshot is checked against its checksums before the VM runs. Cumulet's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RestoreVerify {
    /// The manifest alone.
    Off,
    /// Besides, the state of processors and devices.
    State,
    /// Besides, memory.
    Full,
}

/// What is brought into the memory of a restored VM beside what it touches. Cumulet's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackgroundFill {
    /// Nothing.
    None,
    /// What was recorded of an earlier restore: read ahead.
    WorkingSet,
    /// All of it, while it runs.
    All,
}

/// How often the wiring of a restored VM is reconfigured. Cumulet's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RestoreCommit {
    /// Once.
    Once,
    /// After each change of a device, as is done where there is no transaction: for the comparison.
    Each,
}

/// What becomes of the VM generation id, by which a guest sees that it is a copy. Cumulet's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GenerationId {
    /// It is another one, and the guest is told.
    New,
    /// It stays what it is: of all that are restored from this snapshot, this one goes on as the original.
    Keep,
}

/// Which of a restored VM's clocks have gone on since it was paused. Cumulet's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RestoreClock {
    /// The real-time clock of the board; the time stamp counters and the paravirtual clock go on from where they
    /// stood.
    Wall,
    /// None: all go on from where they stood.
    Frozen,
    /// All of them.
    Advance,
}

/// At which frequency the time stamp counters of a restored VM count. Cumulet's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RestoreTsc {
    /// At the one that the VM has measured.
    Saved,
    /// At this host's, which a guest that goes by another clock, such as kvmclock, can stand.
    Host,
}

/// A network device whose taps are handed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredNetConfig {
    /// The device.
    pub id: String,
    /// How many of the descriptors are its own.
    #[serde(default)]
    pub num_fds: usize,
}

/// A VFIO device that is handed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredVfioConfig {
    /// The device.
    pub id: String,
}

/// A memory zone's new node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneUpdate {
    /// The zone.
    pub id: String,
    /// NUMA node of the host that it comes from.
    pub host_numa_node: u32,
}

/// When the memory of a moved VM is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemoryMode {
    /// Before it runs at the destination.
    #[default]
    Precopy,
    /// When it is touched there.
    Postcopy,
}

/// Waits for a VM that moves here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiveMigrationData {
    /// Where to listen.
    pub receiver_url: String,
    /// Directory with certificates and key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_dir: Option<PathBuf>,
    /// When memory is sent.
    #[serde(default)]
    pub memory_mode: MemoryMode,
    /// VFIO devices that are handed over, one descriptor each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vfio_fds: Option<Vec<RestoredVfioConfig>>,
    /// Memory zones that come from another node of this host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub zone_updates: Vec<ZoneUpdate>,
}

/// What happens when a migration does not end in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimeoutStrategy {
    /// It is given up.
    #[default]
    Cancel,
    /// The downtime may be longer.
    Ignore,
}

/// Moves the VM to another host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendMigrationData {
    /// Where the receiver listens.
    pub destination_url: String,
    /// Whether memory is handed over on one host, not copied.
    #[serde(default)]
    pub local: bool,
    /// Whether the source stays, paused.
    #[serde(default)]
    pub preserve_source: bool,
    /// Milliseconds for which the VM may stand still.
    #[serde(default = "default_downtime_ms")]
    pub downtime_ms: NonZeroU64,
    /// Seconds that all may take.
    #[serde(default = "default_timeout_s")]
    pub timeout_s: NonZeroU64,
    /// What happens after that.
    #[serde(default)]
    pub timeout_strategy: TimeoutStrategy,
    /// Number of connections, 1 to 128.
    #[serde(default = "default_connections")]
    pub connections: NonZeroU32,
    /// Directory with certificates and key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_dir: Option<PathBuf>,
    /// When memory is sent.
    #[serde(default)]
    pub memory_mode: MemoryMode,
}

fn default_downtime_ms() -> NonZeroU64 {
    NonZeroU64::MIN.saturating_add(299)
}

fn default_timeout_s() -> NonZeroU64 {
    NonZeroU64::MIN.saturating_add(3599)
}

fn default_connections() -> NonZeroU32 {
    NonZeroU32::MIN
}

impl SendMigrationData {
    /// A migration to `destination_url` with nothing else said.
    pub fn to(destination_url: impl Into<String>) -> Self {
        Self {
            destination_url: destination_url.into(),
            local: false,
            preserve_source: false,
            downtime_ms: default_downtime_ms(),
            timeout_s: default_timeout_s(),
            timeout_strategy: TimeoutStrategy::default(),
            connections: default_connections(),
            tls_dir: None,
            memory_mode: MemoryMode::default(),
        }
    }
}
