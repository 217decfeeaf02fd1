//! Publication of an immutable table by pointer swap, without `unsafe`.
//!
//! One [`Publication`] is shared by a publisher and any number of [`Reader`]s. A reader keeps the
//! table it saw last. While nothing new was published, reading costs one atomic load; after a
//! publication each reader takes the new table once. No reader ever waits: it may find a place
//! being written, and then looks in the other one, where the table that is published by now is.
//!
//! ```text
//!   generation g:      place[g % 2] holds table g, the other place holds it too
//!   publish, step 1:   place[(g+1) % 2] <- table g+1       readers look at place[g % 2]
//!            step 2:   generation       <- g+1 (release)
//!            step 3:   place[g % 2]     <- table g+1       readers look at place[(g+1) % 2]
//! ```
//!
//! A reader that loaded a generation and was held up may find a later table in its place, even one
//! whose generation is not stored yet. So each table carries its generation, and a reader never goes
//! back from the one that it has.
//!
//! Step 3 lets go of the old table at once, so that memory which was unplugged is not held until
//! the next publication. Readers that have not looked since still hold it.
//!
//! What is absent: any order between several publishers. The commit that publishes holds the only
//! transaction; a lock here keeps the type sound on its own.

use std::{fmt, sync::Arc};

use self::primitives::{AtomicU64, Lock, Ordering, Place, pause};

/// A table and its generation. See the module's text.
pub struct Publication<T> {
    places: [Place<Numbered<T>>; 2],
    generation: AtomicU64,
    publishing: Lock<()>,
}

/// A table, and the generation that it is published as.
struct Numbered<T> {
    table: Arc<T>,
    generation: u64,
}

impl<T> Clone for Numbered<T> {
    fn clone(&self) -> Self {
        Self { table: Arc::clone(&self.table), generation: self.generation }
    }
}

impl<T> Publication<T> {
    /// The first table.
    pub fn new(first: T) -> Arc<Self> {
        let first = Numbered { table: Arc::new(first), generation: 0 };
        Arc::new(Self {
            places: [Place::new(first.clone()), Place::new(first)],
            generation: AtomicU64::new(0),
            publishing: Lock::new(()),
        })
    }

    /// Puts `table` in the place of the one that readers see. A read that begins after this returns
    /// sees `table` or a later one.
    pub fn publish(&self, table: Arc<T>) {
        let _serialised = self.publishing.lock();
        let now = self.generation.load(Ordering::Relaxed);
        let then = now + 1;
        let numbered = Numbered { table, generation: then };
        self.place(then).put(numbered.clone());
        // Pairs with the acquire in `latest`: who sees this generation finds its table in place.
        self.generation.store(then, Ordering::Release);
        self.place(now).put(numbered);
    }

    fn place(&self, generation: u64) -> &Place<Numbered<T>> {
        let [even, odd] = &self.places;
        if generation & 1 == 0 { even } else { odd }
    }

    /// The table that is published now.
    pub fn latest(&self) -> Arc<T> {
        self.numbered().table
    }

    fn numbered(&self) -> Numbered<T> {
        loop {
            let generation = self.generation.load(Ordering::Acquire);
            // A place is written only after the generation left it, so a failure means that a
            // newer one is published: look again.
            if let Some(numbered) = self.place(generation).try_get() {
                return numbered;
            }
            pause();
        }
    }

    /// A new reader, which has seen the table of now.
    pub fn reader(self: &Arc<Self>) -> Reader<T> {
        Reader { publication: Arc::clone(self), seen: self.numbered() }
    }
}

impl<T> fmt::Debug for Publication<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publication").finish_non_exhaustive()
    }
}

/// One thread's view of a [`Publication`].
pub struct Reader<T> {
    publication: Arc<Publication<T>>,
    seen: Numbered<T>,
}

impl<T> Reader<T> {
    /// The published table.
    #[inline]
    pub fn get(&mut self) -> &Arc<T> {
        // Usually equal. Less when the table was found before its generation was stored.
        if self.publication.generation.load(Ordering::Acquire) > self.seen.generation {
            self.seen = self.publication.numbered();
        }
        &self.seen.table
    }
}

impl<T> Clone for Reader<T> {
    fn clone(&self) -> Self {
        Self { publication: Arc::clone(&self.publication), seen: self.seen.clone() }
    }
}

impl<T> fmt::Debug for Reader<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("seen", &self.seen.generation).finish_non_exhaustive()
    }
}

/// What the protocol is built of, in its real form.
#[cfg(not(loom))]
mod primitives {
    pub(super) use std::{
        hint::spin_loop as pause,
        sync::atomic::{AtomicU64, Ordering},
    };

    pub(super) use parking_lot::Mutex as Lock;

    /// Holds a value that is replaced now and then.
    pub(super) struct Place<T>(parking_lot::RwLock<T>);

    impl<T: Clone> Place<T> {
        pub(super) fn new(value: T) -> Self {
            Self(parking_lot::RwLock::new(value))
        }

        pub(super) fn put(&self, value: T) {
            let old = std::mem::replace(&mut *self.0.write(), value);
            // The old value may be the last of its kind and long to drop: not under the lock.
            drop(old);
        }

        pub(super) fn try_get(&self) -> Option<T> {
            self.0.try_read().map(|value| value.clone())
        }
    }
}

/// The same, as loom runs it through every interleaving.
#[cfg(loom)]
mod primitives {
    pub(super) use loom::{
        sync::atomic::{AtomicU64, Ordering},
        thread::yield_now as pause,
    };

    pub(super) struct Lock<T>(loom::sync::Mutex<T>);

    impl<T> Lock<T> {
        pub(super) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(super) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
            self.0.lock().expect("no model panics while it holds a lock")
        }
    }

    pub(super) struct Place<T>(loom::sync::RwLock<T>);

    impl<T: Clone> Place<T> {
        pub(super) fn new(value: T) -> Self {
            Self(loom::sync::RwLock::new(value))
        }

        pub(super) fn put(&self, value: T) {
            let mut place = self.0.write().expect("no model panics while it holds a lock");
            let old = std::mem::replace(&mut *place, value);
            drop(place);
            drop(old);
        }

        pub(super) fn try_get(&self) -> Option<T> {
            self.0.try_read().ok().map(|value| value.clone())
        }
    }
}
