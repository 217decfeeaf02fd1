//! What of a snapshot's memory is brought in beside what the guest touches: what was asked for, what was recorded, and
//! what comes of the two.

use std::time::Duration;

use vm_migration::snapshot::{SavedMemory, Snapshot, WorkingSet};

use super::{Request, RestoreError};
use crate::{
    config::MemoryZoneConfig,
    memory::{
        ahead::ReadAhead,
        background::{Fill, Recording},
        content::{ContentError, RestorePlan},
    },
};

/// What is done.
#[derive(Debug)]
pub(super) struct Filling {
    pub fill: Fill,
    pub ahead: ReadAhead,
    pub recording: Option<Recording>,
    pub report: FillReport,
}

/// What is said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FillReport {
    /// What is brought in.
    pub fill: Fill,
    /// What is read ahead of each zone; only those of which anything is.
    pub read_ahead: Vec<ZoneFill>,
    /// Why the recorded working set is not used, where one was expected or is there.
    pub working_set_ignored: Option<String>,
    /// For how many milliseconds it is noted what the guest touches, if it is.
    pub record_working_set_ms: Option<u64>,
}

/// What is read ahead of a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneFill {
    /// The zone.
    pub zone: String,
    /// Bytes that are there before the guest runs.
    pub before_bytes: u64,
    /// Bytes that are brought in while it runs.
    pub background_bytes: u64,
}

impl Filling {
    /// Decides. Reads what was recorded, if that may be of use.
    ///
    /// # Errors
    /// Something is to be recorded, and cannot be.
    pub(super) fn new(
        request: &Request,
        zones: &[MemoryZoneConfig],
        plan: &RestorePlan,
        snapshot: &Snapshot,
        saved: &SavedMemory,
    ) -> Result<Self, RestoreError> {
        let is_lazy = plan.zones.iter().any(|zone| zone.mode.is_lazy());
        if request.record.is_some() && !is_lazy {
            return Err(ContentError::NothingToRecord.into());
        }
        let (directory, root) = (&request.source, snapshot.root());
        let recording = request.record.map(|window| Recording { window, directory: directory.clone(), root });
        let default = if recording.is_some() || request.prefault { Fill::None } else { Fill::WorkingSet };
        let mut fill = request.fill.unwrap_or(default);
        let mut working_set_ignored = None;
        let mut ahead = ReadAhead::default();
        if fill == Fill::WorkingSet && is_lazy {
            match WorkingSet::read(directory, root, saved.table()) {
                Ok(Some(set)) => ahead = ReadAhead::new(&set, zones, plan, saved),
                Ok(None) => {
                    working_set_ignored = request.fill.map(|_| "none was recorded".to_owned());
                }
                Err(error) => {
                    let why = crate::error::chain(&error);
                    log::warn!("nothing is read ahead: {why}");
                    working_set_ignored = Some(why);
                }
            }
        }
        if !is_lazy || (fill == Fill::WorkingSet && ahead.zones.is_empty()) {
            fill = Fill::None;
        }
        let report = FillReport::new(fill, &ahead, working_set_ignored, request.record);
        Ok(Self { fill, ahead, recording, report })
    }
}

impl FillReport {
    fn new(
        fill: Fill,
        ahead: &ReadAhead,
        working_set_ignored: Option<String>,
        record: Option<Duration>,
    ) -> Self {
        let zones = ahead.zones.iter().map(|zone| ZoneFill {
            zone: zone.zone.clone(),
            before_bytes: zone.placed_bytes(),
            background_bytes: zone.background_bytes(),
        });
        Self {
            fill,
            read_ahead: zones.collect(),
            working_set_ignored,
            record_working_set_ms: record.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}
