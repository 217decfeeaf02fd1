//! How each zone of a restored machine gets its content.

use std::fmt;

use vm_migration::snapshot::{MemoryTable, SavedMemory};

use super::ContentError;
use crate::{config::MemoryZoneConfig, memory::overlays::Overlays};

/// A way for memory to come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemoryMode {
    /// All of it is read before the guest runs.
    Copy,
    /// The snapshot's file is mapped copy-on-write: pages come out of the page cache as they are touched,
    /// and many machines share them.
    Cow,
    /// Pages are read, and checked, as they are touched (userfaultfd).
    OnDemand,
    /// The zone's own file still has it. Nothing of it is checked.
    Kept,
}

impl MemoryMode {
    /// Whether content comes in as it is touched.
    pub fn is_lazy(self) -> bool {
        matches!(self, Self::Cow | Self::OnDemand)
    }
}

impl fmt::Display for MemoryMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Copy => "copy",
            Self::Cow => "cow",
            Self::OnDemand => "ondemand",
            Self::Kept => "kept",
        })
    }
}

/// The way of one zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneMode {
    /// The zone.
    pub zone: String,
    /// How its content comes.
    pub mode: MemoryMode,
    /// Why it is not the mode that is used where nothing speaks against it, or why the zone's file is not used; none
    /// where all is as it is said.
    pub why: Option<&'static str>,
    /// Bytes of a zone in mode `cow` that were copied in all the same: a chain of snapshots has more runs of
    /// pages than are mapped.
    pub copied_bytes: u64,
}

/// The ways of all zones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestorePlan {
    /// In the order of the zones.
    pub zones: Vec<ZoneMode>,
}

/// Whether a snapshot has to hold that zone's content. A shared zone in a file that has a name is
/// its own copy.
pub fn is_kept_in_snapshot(zone: &MemoryZoneConfig) -> bool {
    !(zone.shared && has_named_file(zone))
}

/// Whether a zone is backed by a file with a name; in a directory its file has none.
fn has_named_file(zone: &MemoryZoneConfig) -> bool {
    zone.file.as_ref().is_some_and(|path| !path.is_dir())
}

/// What speaks against mapping the snapshot's file for a zone, or paging it in.
fn against_private(zone: &MemoryZoneConfig) -> Option<&'static str> {
    if zone.shared {
        Some("is shared, and what other processes touch cannot be brought in")
    } else if zone.hugepage_size.is_some() {
        Some("is backed by huge pages, and the snapshot's file is not")
    } else if zone.file.is_some() && !has_named_file(zone) {
        Some("is backed by a file in a directory of its own")
    } else {
        None
    }
}

/// What is to be known of a zone that comes out of the snapshot although it names a file.
fn unused_file(zone: &MemoryZoneConfig) -> Option<&'static str> {
    let unused = !zone.shared && has_named_file(zone);
    unused.then_some("is private and all in the snapshot: its own file is not used before the guest is reset")
}

impl RestorePlan {
    /// Finds a way for each zone: `asked` for all of them, or else the fastest that each can have.
    ///
    /// # Errors
    /// A zone cannot have what was asked for, or is another one than was saved.
    pub fn new(
        zones: &[MemoryZoneConfig],
        table: &MemoryTable,
        asked: Option<MemoryMode>,
    ) -> Result<Self, ContentError> {
        let mismatch = |zone: &str, why: String| Err(ContentError::Zone { zone: zone.to_owned(), why });
        for saved in &table.zones {
            if !zones.iter().any(|zone| zone.id == saved.zone) {
                return mismatch(&saved.zone, "is in the snapshot, and not configured".to_owned());
            }
        }
        let mut plan = Self { zones: Vec::with_capacity(zones.len()) };
        for zone in zones {
            let Some(saved) = table.zone(&zone.id) else {
                return mismatch(&zone.id, "is not in the snapshot".to_owned());
            };
            if saved.size != zone.size {
                let why = format!("{} bytes in the snapshot, {} configured", saved.size, zone.size);
                return mismatch(&zone.id, why);
            }
            let against = against_private(zone);
            let (mode, why) = match (saved.offset, asked) {
                // Shared or, as with the template of many machines, mapped privately.
                (None, _) if has_named_file(zone) => {
                    (MemoryMode::Kept, Some("was left in its own file, of which there is no checksum"))
                }
                (None, _) => {
                    let why = "its content was left in its own file, which is not configured";
                    return mismatch(&zone.id, why.to_owned());
                }
                (Some(_), Some(mode @ (MemoryMode::Cow | MemoryMode::OnDemand)))
                    if let Some(why) = against =>
                {
                    return Err(ContentError::Mode { mode, zone: zone.id.clone(), why });
                }
                (Some(_), Some(mode)) => (mode, unused_file(zone)),
                (Some(_), None) if against.is_some() => (MemoryMode::Copy, against),
                (Some(_), None) => (MemoryMode::Cow, unused_file(zone)),
            };
            plan.zones.push(ZoneMode { zone: zone.id.clone(), mode, why, copied_bytes: 0 });
        }
        Ok(plan)
    }

    /// Looks at what is to be mapped: whether that are not too many parts.
    pub fn look_at(&mut self, saved: &SavedMemory) {
        for zone in self.zones.iter_mut().filter(|zone| zone.mode == MemoryMode::Cow) {
            zone.copied_bytes = Overlays::of(saved, &zone.zone).copied_bytes();
        }
    }

    /// Bytes of the memory file that are read before the guest runs, whole chunks.
    pub fn bytes_to_read(&self, table: &MemoryTable) -> u64 {
        let some = self.zones.iter().fold(0, |sum: u64, zone| sum.saturating_add(zone.copied_bytes));
        let size = table.chunk_size;
        let copied = self.zones.iter().filter(|zone| zone.mode == MemoryMode::Copy);
        let chunks = copied.filter_map(|zone| {
            let chunks = table.zone(&zone.zone)?.chunks(size)?;
            Some(table.chunks.iter().filter(|(chunk, _)| chunks.contains(chunk)).count() as u64)
        });
        chunks.fold(some, |sum, chunks| sum.saturating_add(chunks.saturating_mul(size)))
    }

    /// The mode of a zone.
    pub fn mode(&self, zone: &str) -> Option<MemoryMode> {
        self.zones.iter().find(|found| found.zone == zone).map(|found| found.mode)
    }
}
