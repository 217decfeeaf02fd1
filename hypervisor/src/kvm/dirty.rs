//! Which pages the guest wrote, by bitmap or by ring.
//!
//! *Bitmap*: KVM keeps one bit a page and protects a page again when its bit is read. Where the host
//! can (`KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`), reading and protecting are two calls: the protection
//! goes in chunks, and skips what is clean, so that the MMU lock is never held for a whole slot.
//!
//! *Ring*: every vCPU has a ring of the pages it wrote. A ring that is full stops its vCPU, whose
//! thread then harvests all rings into one bitmap per slot, which [`DirtyTracking::take`] hands out.

use std::{collections::BTreeMap, sync::Arc};

use kvm_bindings::{KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, kvm_dirty_gfn};
use kvm_ioctls::VcpuFd;
use parking_lot::Mutex;

use super::{Host, call, invalid, ioctl, ring::DirtyRing, vm::VmShared};
use crate::{HypervisorError, MemorySlot, SlotFlags};

const PAGE: u64 = 4096;
/// Pages of one bitmap word.
const WORD: u64 = 64;
/// Words of one re-protection: 64 Ki pages, 256 MiB.
const CHUNK_WORDS: usize = 1024;

type Slots = BTreeMap<u32, MemorySlot>;

/// How a VM tracks dirty pages.
#[derive(Debug)]
pub(super) enum DirtyTracking {
    Bitmap { manual: bool },
    Ring { capability: u32, entries: u32, state: Mutex<Rings> },
}

/// The rings, and what was harvested from them and not handed out yet.
#[derive(Debug, Default)]
pub(super) struct Rings {
    rings: Vec<DirtyRing>,
    written: BTreeMap<u32, Vec<u64>>,
}

impl DirtyTracking {
    /// Chooses the way that the options and the host allow.
    pub(super) fn new(host: &Arc<Host>, ring_entries: u32) -> Result<Self, HypervisorError> {
        if ring_entries == 0 {
            return Ok(Self::Bitmap { manual: host.details.manual_dirty_log });
        }
        let limit = host.capabilities.dirty_ring_entries;
        if limit == 0 {
            return Err(HypervisorError::Missing { what: "a dirty ring (KVM_CAP_DIRTY_LOG_RING)" });
        }
        if !ring_entries.is_power_of_two() || ring_entries > limit {
            let detail = format!("{ring_entries} entries; need a power of two of at most {limit}");
            return Err(invalid("dirty ring size", detail));
        }
        Ok(Self::Ring {
            capability: host.details.dirty_ring_capability,
            entries: ring_entries,
            state: Mutex::default(),
        })
    }

    /// Tells a new VM. Before its first vCPU.
    pub(super) fn enable(&self, vm: &VmShared) -> Result<(), HypervisorError> {
        match self {
            Self::Bitmap { manual: false } => Ok(()),
            Self::Bitmap { manual: true } => {
                let flags = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE.into();
                vm.enable("manual dirty log protection", KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, [flags, 0])
            }
            Self::Ring { capability, entries, .. } => {
                let bytes = u64::from(*entries) * size_of::<kvm_dirty_gfn>() as u64;
                vm.enable("dirty rings", *capability, [bytes, 0])
            }
        }
    }

    /// Takes the ring of a new vCPU into account.
    pub(super) fn add_vcpu(&self, vcpu: &VcpuFd) -> Result<(), HypervisorError> {
        if let Self::Ring { entries, state, .. } = self {
            let ring = DirtyRing::map(vcpu, *entries)
                .map_err(|error| call("cannot map", format!("a dirty ring of {entries} entries"), error))?;
            state.lock().rings.push(ring);
        }
        Ok(())
    }

    /// A slot is gone or not tracked any more.
    pub(super) fn forget(&self, slot: u32) {
        if let Self::Ring { state, .. } = self {
            state.lock().written.remove(&slot);
        }
    }

    /// Empties the rings, so that a vCPU that ran into its end can go on.
    pub(super) fn harvest(&self, vm: &VmShared) -> Result<(), HypervisorError> {
        match self {
            Self::Bitmap { .. } => Ok(()),
            Self::Ring { state, .. } => {
                let slots = vm.slots.lock();
                state.lock().harvest(vm, &slots)
            }
        }
    }

    /// The pages of a slot written since the last call, and a new period for them.
    pub(super) fn take(
        &self,
        vm: &VmShared,
        slots: &Slots,
        slot: &MemorySlot,
    ) -> Result<Vec<u64>, HypervisorError> {
        if !slot.flags.contains(SlotFlags::LOG_DIRTY) {
            return Err(invalid("dirty log request", format!("slot {} is not tracked", slot.slot)));
        }
        let words = bitmap_words(slot.size)?;
        match self {
            Self::Bitmap { manual } => take_bitmap(vm, slot, *manual),
            Self::Ring { state, .. } => {
                let mut state = state.lock();
                state.harvest(vm, slots)?;
                let mut bitmap = state.written.remove(&slot.slot).unwrap_or_default();
                bitmap.resize(words, 0);
                Ok(bitmap)
            }
        }
    }
}

fn take_bitmap(vm: &VmShared, slot: &MemorySlot, manual: bool) -> Result<Vec<u64>, HypervisorError> {
    let size = usize::try_from(slot.size).map_err(|_| invalid("memory slot size", slot.size.to_string()))?;
    let bitmap = vm
        .fd
        .get_dirty_log(slot.slot, size)
        .map_err(|error| call("cannot read the dirty log of", format!("slot {}", slot.slot), error))?;
    if !manual {
        return Ok(bitmap);
    }
    let pages = slot.size / PAGE;
    let mut first_page = 0;
    for chunk in bitmap.chunks(CHUNK_WORDS) {
        let covered = chunk.len() as u64 * WORD;
        if chunk.iter().any(|word| *word != 0) {
            // The last chunk ends with the slot, which is the one case where KVM takes a number that
            // is no multiple of 64.
            let count = u32::try_from(covered.min(pages - first_page)).unwrap_or(u32::MAX);
            ioctl::clear_dirty_log(&vm.fd, slot.slot, first_page, count, chunk).map_err(|error| {
                let detail = format!("slot {}, pages {first_page:#x}+{count:#x}", slot.slot);
                call("cannot protect again", detail, error)
            })?;
        }
        first_page += covered;
    }
    Ok(bitmap)
}

impl Rings {
    fn harvest(&mut self, vm: &VmShared, slots: &Slots) -> Result<(), HypervisorError> {
        let written = &mut self.written;
        let mut found = 0;
        for ring in &mut self.rings {
            found += ring.drain(|slot, page| {
                // A slot may have been removed, or made anew, since the page was written.
                let Some(memory) = slots.get(&slot) else { return };
                if page >= memory.size / PAGE || !memory.flags.contains(SlotFlags::LOG_DIRTY) {
                    return;
                }
                let words = bitmap_words(memory.size).unwrap_or(0);
                let bitmap = written.entry(slot).or_default();
                bitmap.resize(words, 0);
                if let Some(word) = usize::try_from(page / WORD).ok().and_then(|at| bitmap.get_mut(at)) {
                    *word |= 1 << (page % WORD);
                }
            });
        }
        if found == 0 {
            return Ok(());
        }
        ioctl::reset_dirty_rings(&vm.fd)
            .map_err(|error| call("cannot reset", format!("{} dirty rings", self.rings.len()), error))
    }
}

fn bitmap_words(size: u64) -> Result<usize, HypervisorError> {
    usize::try_from(size.div_ceil(PAGE * WORD)).map_err(|_| invalid("memory slot size", size.to_string()))
}
