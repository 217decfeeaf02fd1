//! The published table of handlers, and a vCPU's way through it.
//!
//! A [`Dispatch`] is made at commit and never changes. Each vCPU thread has a [`Dispatcher`], which
//! keeps the table it saw last and the range it hit last: an exit costs one atomic load, and a
//! binary search when it goes elsewhere than the one before.
//!
//! A commit does not wait for accesses that are under way: a handler that was removed may still be
//! running on another vCPU, and is kept alive until that vCPU looks at the new table.

use std::{fmt, sync::Arc};

use hypervisor::IoSpace;

use crate::{
    publish::{Publication, Reader},
    wiring::Wiring,
};

/// Answers accesses to a range. Called on vCPU threads, concurrently, without a lock held.
///
/// A handler may open a transaction of its own (a guest moves a BAR by writing to it), but not
/// while it holds a lock that the commit needs.
pub trait Handler: Send + Sync {
    /// The guest reads `data.len()` bytes at `offset` from the base of the range.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` at `offset` from the base of the range.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Which handler answers which address. Immutable.
#[derive(Default)]
pub struct Dispatch {
    mmio: Vec<Entry>,
    ports: Vec<Entry>,
}

struct Entry {
    base: u64,
    end: u64,
    handler: Arc<dyn Handler>,
}

impl Dispatch {
    /// The table of a wiring.
    pub fn new(wiring: &Wiring) -> Self {
        let entries = |space| {
            let of_space = wiring.handlers().filter(move |range| range.space == space);
            of_space
                .map(|range| Entry {
                    base: range.base,
                    end: range.end(),
                    handler: Arc::clone(&range.handler),
                })
                .collect()
        };
        Self { mmio: entries(IoSpace::Mmio), ports: entries(IoSpace::Pio) }
    }

    /// Number of ranges.
    pub fn len(&self) -> usize {
        self.mmio.len() + self.ports.len()
    }

    /// Whether nobody answers anything.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn entries(&self, space: IoSpace) -> &[Entry] {
        match space {
            IoSpace::Mmio => &self.mmio,
            IoSpace::Pio => &self.ports,
        }
    }
}

impl fmt::Debug for Dispatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dispatch({} MMIO ranges, {} port ranges)", self.mmio.len(), self.ports.len())
    }
}

impl Entry {
    /// Offset of an access that lies in this range as a whole.
    fn offset(&self, address: u64, len: usize) -> Option<u64> {
        let end = address.checked_add(u64::try_from(len).ok()?)?;
        let inside = self.base <= address && end <= self.end && len != 0;
        inside.then(|| address - self.base)
    }
}

/// One vCPU's (or worker's) view of the published table.
#[derive(Clone, Debug)]
pub struct Dispatcher {
    table: Reader<Dispatch>,
    /// Index of the range that was hit last, by space. Only a hint: the range is checked.
    last_mmio: usize,
    last_port: usize,
}

impl Dispatcher {
    /// A view of what `publication` publishes.
    pub fn new(publication: &Arc<Publication<Dispatch>>) -> Self {
        Self { table: publication.reader(), last_mmio: 0, last_port: 0 }
    }

    /// Lets the owner of `address` answer a read. When nobody does, or the access does not lie in
    /// one range as a whole, `data` is all ones, as an undecoded read is on a PC, and the answer is
    /// `false`.
    pub fn read(&mut self, space: IoSpace, address: u64, data: &mut [u8]) -> bool {
        match self.find(space, address, data.len()) {
            Some((handler, offset)) => {
                handler.read(offset, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// Lets the owner of `address` have a write. When nobody owns it, or the access does not lie in
    /// one range as a whole, it is lost, and the answer is `false`.
    pub fn write(&mut self, space: IoSpace, address: u64, data: &[u8]) -> bool {
        match self.find(space, address, data.len()) {
            Some((handler, offset)) => {
                handler.write(offset, data);
                true
            }
            None => false,
        }
    }

    fn find(&mut self, space: IoSpace, address: u64, len: usize) -> Option<(&dyn Handler, u64)> {
        let entries = self.table.get().entries(space);
        let last = match space {
            IoSpace::Mmio => &mut self.last_mmio,
            IoSpace::Pio => &mut self.last_port,
        };
        let at = |index: usize| {
            let entry: &Entry = entries.get(index)?;
            Some((&*entry.handler, entry.offset(address, len)?))
        };
        if let Some(hit) = at(*last) {
            return Some(hit);
        }
        let index = entries.partition_point(|entry| entry.base <= address).checked_sub(1)?;
        let hit = at(index)?;
        *last = index;
        Some(hit)
    }
}

#[cfg(test)]
mod tests;
