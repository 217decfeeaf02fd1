//! The device side of a virtqueue, in both formats: split (virtio 1.3 section 2.7) and packed (2.8).
//!
//! A [`Queue`] takes buffers that the driver made available ([`Queue::pop`]) and hands them back used
//! ([`Queue::add_used`]). It knows nothing of eventfds, interrupts or threads: whoever serves the queue
//! asks [`Queue::needs_notification`] and rings. Everything in the rings is written by the guest and may be
//! wrong: whatever breaks the rules is a [`QueueError`], after which the queue is broken and its device asks
//! for a reset. Guest memory is reached through vm-memory only, address by address.
//!
//! Called by the devices of this crate; made by the transport, out of what the driver configured
//! ([`QueueConfig`]) and, after a restore, of how far the queue had come ([`QueueState`]).

mod chain;
mod packed;
mod split;
mod state;
#[cfg(test)]
mod tests;
mod traffic;

use std::sync::Arc;

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

pub use self::{
    chain::{Chain, Segment},
    state::{QueueState, RingProgress},
    traffic::Traffic,
};
use self::{packed::PackedRing, split::SplitRing};
use crate::features;

/// Largest queue of either format (virtio 1.3 sections 2.7 and 2.8).
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// Longest indirect table that is accepted even where the queue is shorter. The specification bounds it by
/// the queue size, stock drivers with small queues go beyond that.
const MIN_INDIRECT_LIMIT: u32 = 1024;

const DESCRIPTOR_SIZE: u64 = 16;
const F_NEXT: u16 = 1 << 0;
const F_WRITE: u16 = 1 << 1;
const F_INDIRECT: u16 = 1 << 2;

/// Why a queue cannot be used, or cannot be used any longer.
#[derive(Debug, Error)]
pub enum QueueError {
    /// The size is zero, too large, or no power of two (split format).
    #[error("queue size {size} is not valid")]
    Size {
        /// The size.
        size: u16,
    },
    /// A ring address is not aligned as its format wants it.
    #[error("{what} at {address:#x} is not aligned to {align}")]
    Alignment {
        /// Which ring area.
        what: &'static str,
        /// Its address.
        address: u64,
        /// What it has to be a multiple of.
        align: u64,
    },
    /// A ring area or a buffer is not all in guest memory.
    #[error("{what} {address:#x}+{len:#x} is not in guest memory")]
    Outside {
        /// Ring area, buffer or indirect table.
        what: &'static str,
        /// Its address.
        address: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// An access to a ring failed.
    #[error("cannot access the ring at {address:#x}")]
    Access {
        /// Where.
        address: u64,
        /// Why.
        #[source]
        source: GuestMemoryError,
    },
    /// The driver made more buffers available than the queue holds.
    #[error("available index {index} is too far from {expected} for a queue of {size}")]
    AvailableIndex {
        /// What the ring says.
        index: u16,
        /// The next index to be taken.
        expected: u16,
        /// The queue's size.
        size: u16,
    },
    /// A descriptor index is beyond its table.
    #[error("descriptor {index} is beyond a table of {len}")]
    DescriptorIndex {
        /// The index.
        index: u16,
        /// The table's length in descriptors.
        len: u32,
    },
    /// A chain loops, or is longer than allowed.
    #[error("descriptor chain is longer than {limit}")]
    ChainLength {
        /// The limit in descriptors.
        limit: u32,
    },
    /// The buffers of a chain have more bytes than 32 bits count.
    #[error("descriptor chain has more than 4 GiB")]
    ChainBytes,
    /// A device-readable buffer follows a device-writable one.
    #[error("device-readable buffer after a device-writable one")]
    Order,
    /// An indirect descriptor that breaks a rule.
    #[error("indirect descriptor: {why}")]
    Indirect {
        /// Which rule.
        why: &'static str,
    },
    /// A request is shorter than its kind needs.
    #[error("buffer ends before byte {end}")]
    Short {
        /// Bytes that were to be there.
        end: u64,
    },
    /// A saved state that does not fit.
    #[error("{field}: {why}")]
    State {
        /// The field of the state.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// More chains are out than the queue has descriptors: the driver reuses what it does not own.
    #[error("more than {size} chains in flight")]
    InFlight {
        /// The queue's size.
        size: u16,
    },
    /// An earlier error broke the queue.
    #[error("the queue is broken")]
    Broken,
}

impl QueueError {
    fn access(address: u64) -> impl FnOnce(GuestMemoryError) -> Self {
        move |source| Self::Access { address, source }
    }
}

/// Where a queue is, as the driver configured it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueConfig {
    /// Number of descriptors.
    pub size: u16,
    /// Descriptor area: the descriptor table, or the packed ring.
    pub descriptors: u64,
    /// Driver area: the available ring, or the driver event suppression structure.
    pub driver: u64,
    /// Device area: the used ring, or the device event suppression structure.
    pub device: u64,
}

/// What of the negotiated features shapes a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// Packed format instead of split.
    pub packed: bool,
    /// Notifications suppressed by index.
    pub event_idx: bool,
    /// Indirect descriptors allowed.
    pub indirect: bool,
}

impl RingFeatures {
    /// The part of a negotiated feature set.
    pub fn of(negotiated: u64) -> Self {
        Self {
            packed: negotiated & features::RING_PACKED != 0,
            event_idx: negotiated & features::RING_EVENT_IDX != 0,
            indirect: negotiated & features::RING_INDIRECT_DESC != 0,
        }
    }
}

/// One virtqueue, seen by the device.
#[derive(Debug)]
pub struct Queue {
    ring: Ring,
    config: QueueConfig,
    features: RingFeatures,
    /// Chains popped and not yet handed back.
    in_flight: u16,
    /// Chains were handed back since the last decision about an interrupt.
    undecided: bool,
    broken: bool,
    /// Segment lists of chains that were handed back, to be filled again.
    spare: Vec<Vec<Segment>>,
    traffic: Arc<Traffic>,
}

#[derive(Debug)]
enum Ring {
    Split(SplitRing),
    Packed(PackedRing),
}

impl Queue {
    /// A queue that the driver has just enabled.
    ///
    /// # Errors
    /// Size, alignment or place of a ring area are not valid.
    pub fn new<M: GuestMemoryBackend>(
        config: QueueConfig,
        features: RingFeatures,
        memory: &M,
    ) -> Result<Self, QueueError> {
        let progress = RingProgress::start(features.packed);
        Self::from_state(config, features, &QueueState { progress }, memory)
    }

    /// A queue that goes on where it was stopped. The state is checked as untrusted input; the rings
    /// themselves are not read, since the memory that holds them may not have arrived yet.
    ///
    /// # Errors
    /// As for [`new`](Self::new), or a field of the state does not fit the queue.
    pub fn from_state<M: GuestMemoryBackend>(
        config: QueueConfig,
        features: RingFeatures,
        state: &QueueState,
        memory: &M,
    ) -> Result<Self, QueueError> {
        config.check(features, memory)?;
        state.check(config.size, features)?;
        let ring = match state.progress {
            RingProgress::Split { next_avail, next_used, signalled } => {
                Ring::Split(SplitRing::new(&config, features, next_avail, next_used, signalled))
            }
            RingProgress::Packed { next_avail, avail_wrap, next_used, used_wrap, unsignalled } => {
                let avail = packed::Cursor { slot: next_avail, wrap: avail_wrap };
                let used = packed::Cursor { slot: next_used, wrap: used_wrap };
                Ring::Packed(PackedRing::new(&config, features, avail, used, unsignalled))
            }
        };
        Ok(Self {
            ring,
            config,
            features,
            in_flight: 0,
            undecided: false,
            broken: false,
            spare: Vec::new(),
            traffic: Arc::default(),
        })
    }

    /// Counts there what goes through.
    #[must_use]
    pub fn counted(self, traffic: &Arc<Traffic>) -> Self {
        Self { traffic: Arc::clone(traffic), ..self }
    }

    /// How far the queue has come. Complete once nothing is in flight.
    pub fn state(&self) -> QueueState {
        let progress = match &self.ring {
            Ring::Split(ring) => ring.progress(),
            Ring::Packed(ring) => ring.progress(),
        };
        QueueState { progress }
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.config.size
    }

    /// Chains popped and not handed back.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Whether the driver broke the rules. A broken queue yields nothing more.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Breaks the queue: the device found that the driver broke a rule of its own, or cannot reach its buffers.
    pub fn set_broken(&mut self) {
        self.broken = true;
    }

    /// Takes the next available chain, if there is one.
    ///
    /// # Errors
    /// The driver broke a rule; the queue is broken from then on.
    pub fn pop<M: GuestMemoryBackend>(&mut self, memory: &M) -> Result<Option<Chain>, QueueError> {
        self.guard()?;
        let mut builder = chain::Builder::new(self.spare.pop().unwrap_or_default());
        let popped = match &mut self.ring {
            Ring::Split(ring) => ring.pop(memory, self.features, &mut builder),
            Ring::Packed(ring) => ring.pop(memory, self.features, &mut builder),
        };
        match popped {
            Ok(Some(_)) if self.in_flight >= self.config.size => {
                Err(self.fail(QueueError::InFlight { size: self.config.size }))
            }
            Ok(Some(head)) => {
                self.in_flight += 1;
                Ok(Some(builder.finish(head)))
            }
            Ok(None) => {
                self.recycle(builder.discard());
                Ok(None)
            }
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Takes back a [`pop`](Self::pop): the chain is the next one again. Only for the chain that was popped
    /// last, or for several in the reverse order.
    pub fn give_back(&mut self, chain: Chain) {
        match &mut self.ring {
            Ring::Split(ring) => ring.give_back(),
            Ring::Packed(ring) => ring.give_back(chain.head().descriptors),
        }
        self.in_flight = self.in_flight.saturating_sub(1);
        self.recycle(chain.into_segments());
    }

    /// Hands a chain back to the driver; `written` bytes of its writable part were written.
    ///
    /// # Errors
    /// The ring cannot be written; the queue is broken from then on.
    pub fn add_used<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
        chain: Chain,
        written: u32,
    ) -> Result<(), QueueError> {
        self.put_used(memory, chain, written)?;
        self.publish_used(memory)
    }

    /// Like [`add_used`](Self::add_used), but the driver sees the chain only after
    /// [`publish_used`](Self::publish_used): several chains appear at once.
    ///
    /// # Errors
    /// The ring cannot be written; the queue is broken from then on.
    pub fn put_used<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
        chain: Chain,
        written: u32,
    ) -> Result<(), QueueError> {
        self.guard()?;
        self.undecided = true;
        let put = match &mut self.ring {
            Ring::Split(ring) => ring.put_used(memory, chain.head(), written),
            Ring::Packed(ring) => ring.put_used(memory, chain.head(), written),
        };
        self.traffic.add(u64::from(chain.readable_len()).saturating_add(u64::from(written)));
        self.in_flight = self.in_flight.saturating_sub(1);
        self.recycle(chain.into_segments());
        put.map_err(|error| self.fail(error))
    }

    /// Lets the driver see what [`put_used`](Self::put_used) put.
    ///
    /// # Errors
    /// The ring cannot be written; the queue is broken from then on.
    pub fn publish_used<M: GuestMemoryBackend>(&mut self, memory: &M) -> Result<(), QueueError> {
        self.guard()?;
        let published = match &mut self.ring {
            Ring::Split(ring) => ring.publish_used(memory),
            Ring::Packed(ring) => ring.publish_used(memory),
        };
        published.map_err(|error| self.fail(error))
    }

    /// Whether the driver wants an interrupt for what was used since the last call. A device decides before
    /// it stops: what is undecided is not saved.
    ///
    /// # Errors
    /// The ring cannot be read; the queue is broken from then on.
    pub fn needs_notification<M: GuestMemoryBackend>(&mut self, memory: &M) -> Result<bool, QueueError> {
        self.guard()?;
        if !std::mem::take(&mut self.undecided) {
            return Ok(false);
        }
        let needed = match &mut self.ring {
            Ring::Split(ring) => ring.needs_notification(memory),
            Ring::Packed(ring) => ring.needs_notification(memory),
        };
        needed.map_err(|error| self.fail(error))
    }

    /// Asks the driver to notify when it makes more available. True when more has come already, for which
    /// no notification may arrive: look again.
    ///
    /// # Errors
    /// The ring cannot be accessed; the queue is broken from then on.
    pub fn enable_notification<M: GuestMemoryBackend>(&mut self, memory: &M) -> Result<bool, QueueError> {
        self.guard()?;
        let more = match &mut self.ring {
            Ring::Split(ring) => ring.enable_notification(memory),
            Ring::Packed(ring) => ring.enable_notification(memory),
        };
        more.map_err(|error| self.fail(error))
    }

    /// Tells the driver that notifications are not needed for now. A hint: they may come all the same.
    ///
    /// # Errors
    /// The ring cannot be written; the queue is broken from then on.
    pub fn disable_notification<M: GuestMemoryBackend>(&mut self, memory: &M) -> Result<(), QueueError> {
        self.guard()?;
        let disabled = match &mut self.ring {
            Ring::Split(ring) => ring.disable_notification(memory),
            Ring::Packed(ring) => ring.disable_notification(memory),
        };
        disabled.map_err(|error| self.fail(error))
    }

    fn guard(&self) -> Result<(), QueueError> {
        if self.broken { Err(QueueError::Broken) } else { Ok(()) }
    }

    fn fail(&mut self, error: QueueError) -> QueueError {
        self.broken = true;
        error
    }

    fn recycle(&mut self, mut segments: Vec<Segment>) {
        // A few are enough: a served queue rarely has more chains out than that, and none grows without
        // bound because a chain's length is bounded.
        if self.spare.len() < 32 {
            segments.clear();
            self.spare.push(segments);
        }
    }
}

impl QueueConfig {
    /// Checks size, alignment and place of the ring areas.
    ///
    /// # Errors
    /// The first thing that is not valid.
    pub fn check<M: GuestMemoryBackend>(&self, features: RingFeatures, memory: &M) -> Result<(), QueueError> {
        let Self { size, descriptors, driver, device } = *self;
        let valid = size <= MAX_QUEUE_SIZE && if features.packed { size > 0 } else { size.is_power_of_two() };
        if !valid {
            return Err(QueueError::Size { size });
        }
        let entries = u64::from(size);
        let areas = if features.packed {
            [
                ("descriptor ring", descriptors, DESCRIPTOR_SIZE, DESCRIPTOR_SIZE * entries),
                ("driver event area", driver, 4, 4),
                ("device event area", device, 4, 4),
            ]
        } else {
            // Two flag and index fields, the ring, and one event index.
            [
                ("descriptor table", descriptors, DESCRIPTOR_SIZE, DESCRIPTOR_SIZE * entries),
                ("available ring", driver, 2, 6 + 2 * entries),
                ("used ring", device, 4, 6 + 8 * entries),
            ]
        };
        for (what, address, align, len) in areas {
            if address % align != 0 {
                return Err(QueueError::Alignment { what, address, align });
            }
            check_range(memory, what, address, len)?;
        }
        Ok(())
    }
}

fn check_range<M: GuestMemoryBackend>(
    memory: &M,
    what: &'static str,
    address: u64,
    len: u64,
) -> Result<(), QueueError> {
    // The end is checked here: a range that wraps around the address space must not reach vm-memory.
    let inside = address.checked_add(len).is_some()
        && usize::try_from(len).is_ok_and(|len| memory.check_range(GuestAddress(address), len));
    if inside { Ok(()) } else { Err(QueueError::Outside { what, address, len }) }
}

/// A descriptor of either format. `last` is `next` in the split format and the buffer id in the packed one;
/// `flags` is the field of that name.
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    last: u16,
}

impl Descriptor {
    /// Reads the 16 bytes once: what was checked is what is used.
    fn read<M: GuestMemoryBackend>(memory: &M, address: u64) -> Result<[u8; 16], QueueError> {
        let mut raw = [0; 16];
        memory.read_slice(&mut raw, GuestAddress(address)).map_err(QueueError::access(address))?;
        Ok(raw)
    }

    fn split<M: GuestMemoryBackend>(memory: &M, address: u64) -> Result<Self, QueueError> {
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = Self::read(memory, address)?;
        Ok(Self {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            last: u16::from_le_bytes([n0, n1]),
        })
    }

    fn packed<M: GuestMemoryBackend>(memory: &M, address: u64) -> Result<Self, QueueError> {
        let Self { address, len, flags: last, last: flags } = Self::split(memory, address)?;
        Ok(Self { address, len, flags, last })
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Length in descriptors of the indirect table that this descriptor names.
    fn indirect_len<M: GuestMemoryBackend>(
        &self,
        memory: &M,
        features: RingFeatures,
        queue_size: u16,
    ) -> Result<u32, QueueError> {
        if !features.indirect {
            return Err(QueueError::Indirect { why: "the feature was not negotiated" });
        }
        if self.has(F_NEXT) {
            return Err(QueueError::Indirect { why: "chained to a further descriptor" });
        }
        if self.len == 0 || !u64::from(self.len).is_multiple_of(DESCRIPTOR_SIZE) {
            return Err(QueueError::Indirect { why: "the table's length is no multiple of 16" });
        }
        let entries = self.len / 16;
        let limit = MIN_INDIRECT_LIMIT.max(u32::from(queue_size));
        if entries > limit {
            return Err(QueueError::ChainLength { limit });
        }
        check_range(memory, "indirect table", self.address, u64::from(self.len))?;
        Ok(entries)
    }
}

/// Whether going from `old` to `new` passed `event` (virtio 1.3 section 2.7.10.1: `vring_need_event`).
fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
