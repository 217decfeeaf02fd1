//! A table of guest memory: plain data, made of the view that a commit publishes.

use std::{fs::File, sync::Arc};

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::{GuestMemoryView, RamRegion};

/// `MAP_SHARED` of <linux/mman.h>; `MAP_SHARED_VALIDATE` has this bit as well.
const MAP_SHARED: i32 = 1;

/// What devices may reach, in as few regions as it can be told in, by guest-physical address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryTable {
    regions: Vec<TableRegion>,
}

/// A stretch of memory that is contiguous for the guest, in this process, and in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRegion {
    /// First guest-physical address.
    pub guest_address: u64,
    /// Length in bytes.
    pub size: u64,
    /// Address of the first byte in this process.
    pub host_address: u64,
    /// The file that has the same memory for another process that maps it; none if the memory is this process's own.
    pub file: Option<RegionFile>,
}

/// Where in a file a region is.
#[derive(Clone, Debug)]
pub struct RegionFile {
    /// The file.
    pub file: Arc<File>,
    /// Where in it the region begins, in bytes.
    pub offset: u64,
}

impl PartialEq for RegionFile {
    fn eq(&self, other: &Self) -> bool {
        let Self { file, offset } = self;
        Arc::ptr_eq(file, &other.file) && *offset == other.offset
    }
}

impl Eq for RegionFile {}

impl MemoryTable {
    /// Of all memory that a view has.
    pub fn of(memory: &GuestMemoryView) -> Self {
        // A view has its regions by address.
        Self { regions: join(memory.iter().map(TableRegion::of)) }
    }

    /// The regions, by guest-physical address.
    pub fn regions(&self) -> &[TableRegion] {
        &self.regions
    }
}

impl TableRegion {
    fn of(region: &RamRegion) -> Self {
        let (mapping, offset) = region.mapping();
        // What is written to a private mapping is not in the file.
        let shared = mapping.flags() & MAP_SHARED != 0;
        let file = region.file_offset().filter(|_| shared);
        Self {
            guest_address: region.start_addr().raw_value(),
            size: region.len(),
            host_address: (mapping.as_ptr() as u64).wrapping_add(offset),
            file: file.map(|file| RegionFile { file: Arc::clone(file.arc()), offset: file.start() }),
        }
    }

    fn continues_with(&self, next: &Self) -> bool {
        let follows = |start: u64, next: u64| start.checked_add(self.size) == Some(next);
        follows(self.guest_address, next.guest_address)
            && follows(self.host_address, next.host_address)
            && match (&self.file, &next.file) {
                (None, None) => true,
                (Some(file), Some(next)) => {
                    Arc::ptr_eq(&file.file, &next.file) && follows(file.offset, next.offset)
                }
                _ => false,
            }
    }
}

/// Joins neighbours that are one region for everybody.
pub(super) fn join(pieces: impl IntoIterator<Item = TableRegion>) -> Vec<TableRegion> {
    let mut regions: Vec<TableRegion> = Vec::new();
    for piece in pieces {
        match regions.last_mut() {
            // Both lie in the address space, one behind the other.
            Some(last) if last.continues_with(&piece) => last.size = last.size.saturating_add(piece.size),
            _ => regions.push(piece),
        }
    }
    regions
}
