//! Windows: the ranges of addresses, ports and GSIs that devices are given their places in.
//!
//! [`Windows`] is a value like [`Wiring`](crate::Wiring): a transaction changes its own copy, which
//! takes effect at commit together with the wiring. What is absent is policy: which device goes
//! into which window is `vmm::layout`'s to say.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::wiring::Owner;

/// What a window is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum WindowKind {
    /// Guest-physical addresses below 4 GiB.
    Mmio32,
    /// Guest-physical addresses above 4 GiB.
    Mmio64,
    /// I/O ports.
    Port,
    /// Global system interrupts.
    Gsi,
}

/// Names a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Window {
    /// What it is made of.
    pub kind: WindowKind,
    /// PCI segment; 0 for ports and GSIs.
    pub segment: u16,
}

impl Window {
    /// The window of a kind and PCI segment.
    pub const fn new(kind: WindowKind, segment: u16) -> Self {
        Self { kind, segment }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, segment } = self;
        match kind {
            WindowKind::Mmio32 => write!(f, "32-bit MMIO window of segment {segment}"),
            WindowKind::Mmio64 => write!(f, "64-bit MMIO window of segment {segment}"),
            WindowKind::Port => write!(f, "port window"),
            WindowKind::Gsi => write!(f, "GSI window"),
        }
    }
}

/// Why a range was not given out or taken back.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum WindowError {
    /// There is no such window.
    #[error("there is no {window}")]
    Unknown {
        /// The window.
        window: Window,
    },
    /// Empty, or not aligned to a power of two.
    #[error("{size:#x} aligned to {align:#x}, asked for by {owner}, is no range")]
    Malformed {
        /// Length asked for.
        size: u64,
        /// Alignment asked for.
        align: u64,
        /// Who asked.
        owner: Owner,
    },
    /// No free range is large enough.
    #[error(
        "{window} has no {size:#x} free, aligned to {align:#x}, for {owner}; the largest free range has {largest:#x}"
    )]
    Full {
        /// The window.
        window: Window,
        /// Length asked for.
        size: u64,
        /// Alignment asked for.
        align: u64,
        /// Who asked.
        owner: Owner,
        /// Length of the largest free range.
        largest: u64,
    },
    /// The range is not inside the window.
    #[error("{base:#x}+{size:#x} of {owner} is not inside the {window}")]
    Outside {
        /// The window.
        window: Window,
        /// First address asked for.
        base: u64,
        /// Length asked for.
        size: u64,
        /// Who asked.
        owner: Owner,
    },
    /// A part of the range is given out.
    #[error(
        "{base:#x}+{size:#x} of {owner} overlaps {other_base:#x}+{other_size:#x} of {other} in the {window}"
    )]
    Taken {
        /// The window.
        window: Window,
        /// First address asked for.
        base: u64,
        /// Length asked for.
        size: u64,
        /// Who asked.
        owner: Owner,
        /// First address given out.
        other_base: u64,
        /// Length given out.
        other_size: u64,
        /// Who has it.
        other: Owner,
    },
    /// That owner was given no range there.
    #[error("{owner} has no range at {base:#x} in the {window}")]
    NotOwned {
        /// The window.
        window: Window,
        /// First address named.
        base: u64,
        /// Who named it.
        owner: Owner,
    },
}

/// All windows of a guest, and what is given out of them. A clone costs a counter; the first change
/// of a window copies that window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Windows(Arc<BTreeMap<Window, Arc<Pool>>>);

impl Windows {
    /// No window.
    pub fn new() -> Self {
        Self::default()
    }

    /// These windows and one more, all of it free. In the place of a window of that name, if there
    /// is one. What lies beyond 64 bits is left out.
    #[must_use]
    pub fn with(mut self, window: Window, base: u64, size: u64) -> Self {
        let pool = Pool::new(base, size.min(u64::MAX - base));
        Arc::make_mut(&mut self.0).insert(window, Arc::new(pool));
        self
    }

    /// First address and length of a window.
    pub fn range(&self, window: Window) -> Option<(u64, u64)> {
        self.0.get(&window).map(|pool| (pool.base, pool.size))
    }

    /// What is given out of a window, by address: first address, length, owner.
    pub fn given_out(&self, window: Window) -> impl Iterator<Item = (u64, u64, &Owner)> {
        let pools = self.0.get(&window).into_iter();
        pools.flat_map(|pool| pool.taken.iter().map(|(base, (size, owner))| (*base, *size, owner)))
    }

    /// Gives out `size` addresses, the first a multiple of `align`: out of the smallest free range
    /// that has them, so that large ones stay whole.
    ///
    /// # Errors
    /// There is no such window, the request is malformed, or no free range is large enough.
    pub fn allocate(
        &mut self,
        window: Window,
        size: u64,
        align: u64,
        owner: &Owner,
    ) -> Result<u64, WindowError> {
        if size == 0 || !align.is_power_of_two() {
            return Err(WindowError::Malformed { size, align, owner: owner.clone() });
        }
        let pool = self.0.get(&window).ok_or(WindowError::Unknown { window })?;
        let Some(base) = pool.find(size, align) else {
            let largest = pool.free_by_size.last().map_or(0, |(size, _)| *size);
            return Err(WindowError::Full { window, size, align, owner: owner.clone(), largest });
        };
        self.pool(window)?.take(base, size, owner);
        Ok(base)
    }

    /// Gives out a certain range.
    ///
    /// # Errors
    /// There is no such window, or the range is empty, not inside it, or given out in part.
    pub fn reserve(
        &mut self,
        window: Window,
        base: u64,
        size: u64,
        owner: &Owner,
    ) -> Result<(), WindowError> {
        let owned = || owner.clone();
        if size == 0 {
            return Err(WindowError::Malformed { size, align: 1, owner: owned() });
        }
        let pool = self.0.get(&window).ok_or(WindowError::Unknown { window })?;
        let Some(end) = base.checked_add(size).filter(|end| base >= pool.base && *end <= pool.end()) else {
            return Err(WindowError::Outside { window, base, size, owner: owned() });
        };
        if !pool.is_free(base, end)
            && let Some((other_base, (other_size, other))) = pool.taken.range(..end).next_back()
        {
            return Err(WindowError::Taken {
                window,
                base,
                size,
                owner: owned(),
                other_base: *other_base,
                other_size: *other_size,
                other: other.clone(),
            });
        }
        self.pool(window)?.take(base, size, owner);
        Ok(())
    }

    /// Takes back the range that begins at `base`.
    ///
    /// # Errors
    /// There is no such window, or `owner` has no range there.
    pub fn release(&mut self, window: Window, base: u64, owner: &Owner) -> Result<(), WindowError> {
        let pool = self.0.get(&window).ok_or(WindowError::Unknown { window })?;
        match pool.taken.get(&base) {
            Some((_, there)) if there == owner => {}
            _ => return Err(WindowError::NotOwned { window, base, owner: owner.clone() }),
        }
        self.pool(window)?.give_back(base);
        Ok(())
    }

    fn pool(&mut self, window: Window) -> Result<&mut Pool, WindowError> {
        let pool = Arc::make_mut(&mut self.0).get_mut(&window).ok_or(WindowError::Unknown { window })?;
        Ok(Arc::make_mut(pool))
    }
}

/// One window: what is given out and what is free make up the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pool {
    base: u64,
    size: u64,
    taken: BTreeMap<u64, (u64, Owner)>,
    /// Length of each free range by its first address; no two touch.
    free: BTreeMap<u64, u64>,
    /// The same, by length.
    free_by_size: BTreeSet<(u64, u64)>,
}

impl Pool {
    fn new(base: u64, size: u64) -> Self {
        let mut pool =
            Self { base, size, taken: BTreeMap::new(), free: BTreeMap::new(), free_by_size: BTreeSet::new() };
        pool.add_free(base, size);
        pool
    }

    fn end(&self) -> u64 {
        self.base + self.size
    }

    /// First address of `size` free ones, aligned. Looks at free ranges from the smallest that could
    /// do; one that is `align` larger always does.
    fn find(&self, size: u64, align: u64) -> Option<u64> {
        self.free_by_size.range((size, 0)..).find_map(|(free, base)| {
            let first = base.checked_next_multiple_of(align)?;
            let end = first.checked_add(size)?;
            (end <= base + free).then_some(first)
        })
    }

    fn is_free(&self, base: u64, end: u64) -> bool {
        let below = self.free.range(..=base).next_back();
        below.is_some_and(|(first, size)| end <= first + size)
    }

    /// Takes a range that is free as a whole.
    fn take(&mut self, base: u64, size: u64, owner: &Owner) {
        let Some((&free_base, &free_size)) = self.free.range(..=base).next_back() else { return };
        self.remove_free(free_base, free_size);
        self.add_free(free_base, base - free_base);
        let end = base + size;
        self.add_free(end, free_base + free_size - end);
        self.taken.insert(base, (size, owner.clone()));
    }

    fn give_back(&mut self, base: u64) {
        let Some((size, _)) = self.taken.remove(&base) else { return };
        let (mut first, mut end) = (base, base + size);
        if let Some((&below, &length)) = self.free.range(..base).next_back()
            && below + length == base
        {
            self.remove_free(below, length);
            first = below;
        }
        if let Some(&length) = self.free.get(&end) {
            self.remove_free(end, length);
            end += length;
        }
        self.add_free(first, end - first);
    }

    fn add_free(&mut self, base: u64, size: u64) {
        if size != 0 {
            self.free.insert(base, size);
            self.free_by_size.insert((size, base));
        }
    }

    fn remove_free(&mut self, base: u64, size: u64) {
        self.free.remove(&base);
        self.free_by_size.remove(&(size, base));
    }
}

#[cfg(test)]
mod tests;
