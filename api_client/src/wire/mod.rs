//! The objects that travel over the API, as JSON: configurations, requests, answers.
//!
//! They say what was said, not what it comes to: whether a value makes sense, and what stands for one
//! that is absent, is decided where a machine is configured. What existing clients rely on:
//!
//! * Unknown keys are ignored, except in the limits of a rate limiter.
//! * `null` means absent where a value is optional, and is an error where it merely has a default.
//! * What is absent is left out of the output; the limits of a rate limiter print it as `null`.
//! * Names of choices are capitalized, and case matters. Sizes are bytes.
//!
//! No type of a request uses serde's `flatten`: an unknown key can then still be told by whoever wants to
//! know.

mod action;
mod console;
mod cpus;
mod device;
mod disk;
mod info;
mod job;
mod memory;
mod migration;
mod net;
mod numa;
mod objects;
mod payload;
mod pci;
mod platform;
mod rate_limit;
mod report;
mod vm;

#[cfg(test)]
mod tests;

pub use self::{
    action::{VmCoredumpData, VmRemoveDevice, VmResize, VmResizeDisk, VmResizeZone, VmSnapshotConfig},
    console::{ConsoleConfig, ConsoleMode, DebugConsoleConfig, SerialConfig},
    cpus::{CoreScheduling, CpuAffinity, CpuFeatures, CpuProfile, CpuTopology, CpusConfig},
    device::{
        BalloonConfig, DeviceConfig, FsConfig, GenericVhostUserConfig, IvshmemConfig, PmemConfig, RngConfig,
        RtcConfig, TpmConfig, UserDeviceConfig, VdpaConfig, VsockConfig,
    },
    disk::{DiskConfig, ImageType, LockGranularity, VirtQueueAffinity},
    info::{
        DeviceNode, MsiIrqType, PciBarType, PciDeviceInfo, REFERENCE_VERSION, Resource, VmCounters, VmInfo,
        VmState, VmmPingResponse,
    },
    job::{JobInfo, JobKind, JobState, VmCancelJob},
    memory::{HotplugMethod, MemoryConfig, MemoryZoneConfig},
    migration::{
        BackgroundFill, GenerationId, MemoryMode, MemoryRestoreMode, ReceiveMigrationData, RestoreClock,
        RestoreCommit, RestoreConfig, RestoreOverride, RestoreTsc, RestoreVerify, RestoredNetConfig,
        RestoredVfioConfig, SendMigrationData, TimeoutStrategy, ZoneUpdate,
    },
    net::{BadMacAddress, Descriptors, MacAddress, NetConfig, VhostMode},
    numa::{NumaConfig, NumaDistance},
    objects::Objects,
    payload::{FwCfgConfig, FwCfgItem, FwCfgItemList, PayloadConfig},
    pci::{PciDevice, PciSegmentConfig},
    platform::{LandlockConfig, PlatformConfig},
    rate_limit::{RateLimitGroupConfig, RateLimiterConfig, TokenBucket},
    report::{
        ChangesWay, CommitOperations, CommitReport, CommitTotals, FillReport, MadeTap, OperationCount,
        ReportPhase, RestoreRehearsal, RestoreReport, SaveDifference, SaveReport, ZoneChanges, ZoneFill,
        ZoneMemoryMode, ZoneReport,
    },
    vm::VmConfig,
};

/// For members that are printed only if they differ from what they are without being given.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The default of members that are on unless they are switched off.
fn on() -> bool {
    true
}
