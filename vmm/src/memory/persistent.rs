//! Persistent memory: a file that is mapped to be shown to the guest in a window of its own.
//!
//! It is no RAM: no part of a zone, of the memory map or of a snapshot's memory. Its content is the host's, as that of a
//! disk image is. What is absent: where the window lies (the layout has that), and who answers the driver.

use std::{fs::File, io, sync::Arc};

use address_manager::{Owner, Slot, SlotFlags, SlotRole};
use virtio_devices::pmem::{Nowhere, Store};
use vm_memory::{FileOffset, MmapRegion, mmap::MmapRegionError};

use super::{HUGE_PAGE, content, mapping, pagemap::Pagemap};

/// What becomes of what the guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeping {
    /// It is in the file.
    File,
    /// It is in a file that has no name: gone with the process.
    Nameless,
    /// It is in no file: gone with the process, and the file is as it was.
    Discarded,
}

/// A file, mapped.
#[derive(Debug)]
pub struct PersistentMemory {
    file: Arc<File>,
    mapping: Arc<MmapRegion>,
    keeping: Keeping,
}

impl PersistentMemory {
    /// Maps the first `size` bytes of a file that has as many at least. It was opened for reading alone if what is written
    /// is discarded, and else for writing too.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn map(file: File, size: u64, keeping: Keeping) -> Result<Self, MmapRegionError> {
        let length = usize::try_from(size)
            .map_err(|_| MmapRegionError::Mmap(io::Error::from_raw_os_error(libc::ENOMEM)))?;
        let file = Arc::new(file);
        let flags = match keeping {
            Keeping::File | Keeping::Nameless => libc::MAP_SHARED,
            Keeping::Discarded => libc::MAP_PRIVATE | libc::MAP_NORESERVE,
        };
        // Huge pages of the file can be huge pages of the guest if they begin at the same places. Without, they are small.
        let gap = mapping::Gap::make(length, HUGE_PAGE).ok();
        let behind = FileOffset::from_arc(Arc::clone(&file), 0);
        let mapping = MmapRegion::build(Some(behind), length, libc::PROT_READ | libc::PROT_WRITE, flags);
        drop(gap);
        Ok(Self { file, mapping: Arc::new(mapping?), keeping })
    }

    /// What becomes of what the guest writes.
    pub fn keeping(&self) -> Keeping {
        self.keeping
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What makes stable what is written.
    pub fn store(&self) -> Arc<dyn Store> {
        match self.keeping {
            Keeping::File => Arc::clone(&self.file) as _,
            Keeping::Nameless | Keeping::Discarded => Arc::new(Nowhere),
        }
    }

    /// The slot that shows all of it at a guest-physical address.
    pub fn slot(&self, base: u64, owner: &str) -> Slot {
        Slot {
            base,
            size: self.mapping.size() as u64,
            mapping: Arc::clone(&self.mapping),
            offset: 0,
            flags: SlotFlags::empty(),
            role: SlotRole::Persistent,
            owner: Owner::new(owner),
        }
    }

    /// Where the first of what was written begins that would be gone with the process; `None` if nothing would.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn first_unkept(&self) -> io::Result<Option<u64>> {
        let size = self.mapping.size() as u64;
        match self.keeping {
            Keeping::File => Ok(None),
            Keeping::Nameless => {
                let parts = content::data(&self.file, 0, size)?;
                Ok(parts.first().map(|part| part.start))
            }
            Keeping::Discarded => {
                let pages = Pagemap::open()?.present(&self.mapping, 0..size)?;
                Ok(pages.iter().find(|pages| pages.own).map(|pages| pages.range.start))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, VolatileMemory};

    use super::*;

    const SIZE: u64 = 2 << 20;

    fn file() -> (tempfile::NamedTempFile, File) {
        let named = tempfile::NamedTempFile::new().unwrap();
        named.as_file().set_len(SIZE + 5).unwrap();
        let file = named.reopen().unwrap();
        (named, file)
    }

    fn write(memory: &PersistentMemory, at: usize) {
        memory.mapping.as_volatile_slice().write_obj(7u8, at).unwrap();
    }

    fn read(memory: &PersistentMemory, at: usize) -> u8 {
        memory.mapping.as_volatile_slice().read_obj(at).unwrap()
    }

    #[test]
    fn what_is_written_is_in_the_file_or_is_not() {
        let (named, file) = file();
        let memory = PersistentMemory::map(file, SIZE, Keeping::File).unwrap();
        write(&memory, 5000);
        assert_eq!(std::fs::read(named.path()).unwrap()[5000], 7);
        assert_eq!(memory.first_unkept().unwrap(), None);
        let slot = memory.slot(4 << 30, "p");
        assert_eq!((slot.base, slot.size, slot.role), (4 << 30, SIZE, SlotRole::Persistent));
        assert_eq!(slot.host_address() % SIZE, 0, "huge pages would not fit");

        let read_only = File::open(named.path()).unwrap();
        let memory = PersistentMemory::map(read_only, SIZE, Keeping::Discarded).unwrap();
        assert_eq!((read(&memory, 5000), read(&memory, 0)), (7, 0));
        assert_eq!(memory.first_unkept().unwrap(), None, "what was only read is the file's");
        write(&memory, 3 * 4096 + 1);
        write(&memory, 9 * 4096);
        assert_eq!(memory.first_unkept().unwrap(), Some(3 * 4096));
        assert_eq!(std::fs::read(named.path()).unwrap()[3 * 4096 + 1], 0);
    }

    #[test]
    fn a_nameless_file_keeps_nothing() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        let memory = PersistentMemory::map(file, SIZE, Keeping::Nameless).unwrap();
        assert_eq!(memory.first_unkept().unwrap(), None);
        write(&memory, 4096);
        assert!(memory.first_unkept().unwrap().is_some());
    }

    #[test]
    fn a_window_that_no_process_can_have_is_refused() {
        for size in [1 << 60, u64::MAX] {
            let (_named, file) = file();
            assert!(PersistentMemory::map(file, size, Keeping::File).is_err(), "{size:#x}");
        }
    }
}
