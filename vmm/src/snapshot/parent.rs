//! The snapshot that another is to be taken on top of.

use std::path::{Path, PathBuf};

use thiserror::Error;
use vm_migration::snapshot::{ChunkError, MemoryTable, SavedMemory, Snapshot, SnapshotError, ZoneContent};

use crate::layout::Layout;

/// A snapshot cannot be built on.
#[derive(Debug, Error)]
pub enum ParentError {
    /// There is none that can be used.
    #[error("parent")]
    Snapshot(#[from] SnapshotError),
    /// Its memory cannot be read, or is damaged.
    #[error("parent")]
    Memory(#[source] ChunkError),
    /// It is not one of this machine.
    #[error("parent {}: {why}", .path.display())]
    Unlike {
        /// Its directory.
        path: PathBuf,
        /// What differs.
        why: String,
    },
}

/// A snapshot of the same machine.
#[derive(Debug)]
pub(super) struct Parent {
    pub(super) snapshot: Snapshot,
    pub(super) memory: SavedMemory,
}

impl Parent {
    /// Opens it for a machine of that layout.
    ///
    /// # Errors
    /// There is none, it is damaged, or of another machine.
    pub(super) fn open(directory: &Path, layout: &Layout) -> Result<Self, ParentError> {
        let snapshot = Snapshot::open(directory, true)?;
        let memory = snapshot.open_memory()?;
        let parent = Self { snapshot, memory };
        let known: Layout = serde_json::from_str(parent.snapshot.manifest.layout.get())
            .map_err(|error| parent.unlike(format!("its layout cannot be understood: {error}")))?;
        if known.ram != layout.ram {
            return Err(parent.unlike("its memory is elsewhere in the guest than this machine's".to_owned()));
        }
        Ok(parent)
    }

    /// Whether it has the memory zones of `table`, and in the same places.
    ///
    /// # Errors
    /// It does not.
    pub(super) fn check(&self, table: &MemoryTable) -> Result<(), ParentError> {
        difference(self.memory.table(), table).map_or(Ok(()), |why| Err(self.unlike(why)))
    }

    fn unlike(&self, why: String) -> ParentError {
        ParentError::Unlike { path: self.snapshot.directory().to_owned(), why }
    }
}

/// How the memory that a parent knows differs from what is now.
fn difference(known: &MemoryTable, now: &MemoryTable) -> Option<String> {
    let differs = |zone: &&ZoneContent| now.zone(&zone.zone) != Some(*zone);
    if let Some(zone) = known.zones.iter().find(differs) {
        let Some(other) = now.zone(&zone.zone) else {
            return Some(format!("it has memory zone {}, and the machine has not", zone.zone));
        };
        let what = |zone: &ZoneContent| match zone.offset {
            Some(offset) => format!("{} bytes at {offset:#x} of its memory file", zone.size),
            None => format!("{} bytes in a file of their own", zone.size),
        };
        return Some(format!("memory zone {} has {} there, and {} now", zone.zone, what(zone), what(other)));
    }
    if let Some(zone) = now.zones.iter().find(|zone| known.zone(&zone.zone).is_none()) {
        return Some(format!("it has no memory zone {}", zone.zone));
    }
    let (theirs, ours) = (known.chunk_size, now.chunk_size);
    if theirs != ours {
        return Some(format!("each of its checksums is of {theirs} bytes, and of {ours} now"));
    }
    (known.size != now.size).then(|| format!("its memory has {} bytes, and {} now", known.size, now.size))
}

#[cfg(test)]
mod tests {
    use vm_migration::snapshot::CHUNK_SIZE;

    use super::*;

    #[test]
    fn memory_that_is_another_is_told_by_its_zone() {
        let table = |zones: &[(&str, u64, bool)]| MemoryTable::new(zones.iter().copied()).unwrap();
        let known = table(&[("a", CHUNK_SIZE, true), ("b", 4096, false)]);
        assert_eq!(difference(&known, &known), None);
        let cases: [(MemoryTable, &str); 5] = [
            (table(&[("a", CHUNK_SIZE, true)]), "it has memory zone b, and the machine has not"),
            (
                table(&[("a", 2 * CHUNK_SIZE, true), ("b", 4096, false)]),
                "memory zone a has 262144 bytes at 0x0 of its memory file there, and 524288 bytes at 0x0 of its memory file now",
            ),
            (
                table(&[("a", CHUNK_SIZE, true), ("b", 4096, true)]),
                "memory zone b has 4096 bytes in a file of their own there, and 4096 bytes at 0x40000 of its memory file now",
            ),
            (
                table(&[("a", CHUNK_SIZE, true), ("b", 4096, false), ("c", 4096, true)]),
                "it has no memory zone c",
            ),
            (
                MemoryTable { chunk_size: 4096, ..known.clone() },
                "each of its checksums is of 262144 bytes, and of 4096 now",
            ),
        ];
        for (now, expected) in cases {
            assert_eq!(difference(&known, &now).as_deref(), Some(expected));
        }
        let longer = MemoryTable { size: 2 * CHUNK_SIZE, ..known.clone() };
        assert_eq!(difference(&known, &longer).unwrap(), "its memory has 262144 bytes, and 524288 now");
    }
}
