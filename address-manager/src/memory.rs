//! Guest memory as devices see it: main memory and persistent memory, by guest-physical address.
//!
//! A [`GuestMemoryView`] is made at commit from their slots and never changes; it works with all
//! of `vm_memory`'s traits. It is no owner of memory policy: zones, files and huge pages are
//! `vmm`'s. A view keeps its host memory mapped, so a worker that has not looked at a newer one
//! writes to memory that the guest no longer sees, never to memory that is gone.

use std::sync::Arc;

use vm_memory::{
    Address, FileOffset, GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestRegionCollection, MemoryRegionAddress, MmapRegion, VolatileMemory, VolatileSlice,
};

use crate::{
    publish::{Publication, Reader},
    slots::{MemoryRange, merge_reachable},
    wiring::Wiring,
};

/// All memory that devices may reach.
pub type GuestMemoryView = GuestRegionCollection<RamRegion>;

/// A stretch of it that is contiguous for the guest and in this process.
#[derive(Clone, Debug)]
pub struct RamRegion {
    base: GuestAddress,
    size: u64,
    mapping: Arc<MmapRegion>,
    offset: u64,
    file: Option<FileOffset>,
}

impl RamRegion {
    /// The region of `size` bytes at `base` that shows `mapping` from `offset` on; `None` if it is
    /// empty, or larger than the mapping or the address space.
    pub fn new(base: GuestAddress, size: u64, mapping: Arc<MmapRegion>, offset: u64) -> Option<Self> {
        let end = offset.checked_add(size)?;
        let fits = size != 0 && end <= mapping.size() as u64 && base.checked_add(size - 1).is_some();
        // The file's offset counts from the region, not from the mapping.
        let file = match mapping.file_offset() {
            Some(file) => {
                Some(FileOffset::from_arc(Arc::clone(file.arc()), file.start().checked_add(offset)?))
            }
            None => None,
        };
        fits.then_some(Self { base, size, mapping, offset, file })
    }

    /// The host memory, and where in it the region begins.
    pub fn mapping(&self) -> (&Arc<MmapRegion>, u64) {
        (&self.mapping, self.offset)
    }

    fn of(range: MemoryRange) -> Option<Self> {
        Self::new(GuestAddress(range.base), range.size, range.mapping, range.offset)
    }
}

impl GuestMemoryRegion for RamRegion {
    type B = ();

    fn len(&self) -> u64 {
        self.size
    }

    fn start_addr(&self) -> GuestAddress {
        self.base
    }

    fn bitmap(&self) {}

    fn get_host_address(&self, address: MemoryRegionAddress) -> Result<*mut u8, GuestMemoryError> {
        let address = self.check_address(address).ok_or(GuestMemoryError::InvalidBackendAddress)?;
        let offset = usize::try_from(self.offset + address.raw_value())
            .map_err(|_| GuestMemoryError::InvalidBackendAddress)?;
        Ok(self.mapping.as_ptr().wrapping_add(offset))
    }

    fn file_offset(&self) -> Option<&FileOffset> {
        self.file.as_ref()
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_>, GuestMemoryError> {
        let end = offset.raw_value().checked_add(count as u64);
        if end.is_none_or(|end| end > self.size) {
            return Err(GuestMemoryError::InvalidBackendAddress);
        }
        let start = usize::try_from(self.offset + offset.raw_value())
            .map_err(|_| GuestMemoryError::InvalidBackendAddress)?;
        Ok(self.mapping.get_slice(start, count)?)
    }

    fn is_hugetlbfs(&self) -> Option<bool> {
        self.mapping.is_hugetlbfs()
    }
}

impl GuestMemoryRegionBytes for RamRegion {}

/// The view of what devices may reach in a wiring. Neighbouring pieces of one mapping are one region.
pub fn view_of(wiring: &Wiring) -> GuestMemoryView {
    let regions: Vec<RamRegion> =
        merge_reachable(wiring.slots()).into_iter().filter_map(RamRegion::of).collect();
    // What a wiring holds is sorted and without overlap, so this fails for an empty one alone.
    GuestMemoryView::from_regions(regions).unwrap_or_default()
}

/// A way to the published view, to be given to devices.
#[derive(Clone, Debug)]
pub struct MemoryHandle {
    publication: Arc<Publication<GuestMemoryView>>,
}

impl MemoryHandle {
    pub(crate) fn new(publication: Arc<Publication<GuestMemoryView>>) -> Self {
        Self { publication }
    }

    /// A handle whose view never changes: for tests of devices.
    pub fn fixed(view: GuestMemoryView) -> Self {
        Self { publication: Publication::new(view) }
    }

    /// A view for one thread that looks often.
    pub fn reader(&self) -> MemoryReader {
        MemoryReader { reader: self.publication.reader() }
    }

    /// The view of now.
    pub fn view(&self) -> Arc<GuestMemoryView> {
        self.publication.latest()
    }
}

/// One thread's view of that memory. Costs one atomic load while nothing changed.
#[derive(Clone, Debug)]
pub struct MemoryReader {
    reader: Reader<GuestMemoryView>,
}

impl MemoryReader {
    /// The view of now.
    #[inline]
    pub fn get(&mut self) -> &Arc<GuestMemoryView> {
        self.reader.get()
    }
}

#[cfg(test)]
mod tests;
