//! The dirty ring of one vCPU (KVM API 8.29): an array shared with KVM, which fills it from one end
//! while we collect from the other. Who owns an entry is written in its flags.
#![expect(unsafe_code, reason = "memory shared with the kernel")]

use std::{
    io,
    sync::atomic::{AtomicU32, Ordering},
};

use kvm_bindings::{KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn};
use kvm_ioctls::VcpuFd;

use super::mapping::Mapping;

const PAGE_SIZE: i64 = 4096;
const ENTRY_SIZE: usize = size_of::<kvm_dirty_gfn>();
/// The entry names a page and waits to be collected (`KVM_DIRTY_GFN_F_DIRTY`).
const DIRTY: u32 = 1 << 0;
/// The entry was collected and waits for `KVM_RESET_DIRTY_RINGS` (`KVM_DIRTY_GFN_F_RESET`).
const COLLECTED: u32 = 1 << 1;
/// The slot number in the entry's slot field; above it is the address space, always 0 without SMM.
const SLOT_MASK: u32 = 0xffff;

#[derive(Debug)]
pub(super) struct DirtyRing {
    mapping: Mapping,
    entries: usize,
    next: usize,
}

impl DirtyRing {
    pub(super) fn map(vcpu: &VcpuFd, entries: u32) -> io::Result<Self> {
        let too_large = || io::Error::from_raw_os_error(libc::E2BIG);
        let entries = usize::try_from(entries).map_err(|_| too_large())?;
        let len = entries.checked_mul(ENTRY_SIZE).ok_or_else(too_large)?;
        let offset = i64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE_SIZE;
        Ok(Self { mapping: Mapping::new(vcpu, offset, len)?, entries, next: 0 })
    }

    /// Hands over every page that was collected: slot number, and page in the slot. At most one
    /// round, while the vCPU may go on writing. Says how many there were.
    pub(super) fn drain(&mut self, mut page: impl FnMut(u32, u64)) -> usize {
        for done in 0..self.entries {
            let flags = self.flags(self.next);
            if flags.load(Ordering::Acquire) & DIRTY == 0 {
                return done;
            }
            let entry = self.entry(self.next);
            if entry.slot & !SLOT_MASK == 0 {
                page(entry.slot, entry.offset);
            }
            self.flags(self.next).store(COLLECTED, Ordering::Release);
            self.next = (self.next + 1) % self.entries;
        }
        self.entries
    }

    fn flags(&self, index: usize) -> &AtomicU32 {
        assert!(index < self.entries);
        // SAFETY: entry `index` is inside the mapping.
        let entry = unsafe { self.mapping.start().add(index * ENTRY_SIZE) };
        // SAFETY: mapped while `self` lives and aligned, as the flags are an entry's first field;
        // both sides access them atomically.
        unsafe { AtomicU32::from_ptr(entry.as_ptr().cast()) }
    }

    /// The entry's content, which KVM has finished writing when its flags say [`DIRTY`].
    fn entry(&self, index: usize) -> kvm_dirty_gfn {
        assert!(index < self.entries);
        // SAFETY: entry `index` is inside the mapping.
        let entry = unsafe { self.mapping.start().add(index * ENTRY_SIZE) };
        // SAFETY: aligned, plain integers; volatile, as the memory is shared with the kernel.
        unsafe { entry.cast::<kvm_dirty_gfn>().read_volatile() }
    }
}

const _: () = assert!(std::mem::offset_of!(kvm_dirty_gfn, flags) == 0);
