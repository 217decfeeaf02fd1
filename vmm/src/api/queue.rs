//! How many commands wait or are being carried out: bounded, whether or not the clients that sent them still listen.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Most commands. Each waits for those before it, so there is no use in more; each holds what its body came to.
pub(super) const MAX_COMMANDS: usize = 10;

/// Places for commands. Copies are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue(Arc<AtomicUsize>);

/// A command's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<AtomicUsize>);

impl Queue {
    /// A place, if there is one. The command to end everything has one when the others are taken.
    pub(super) fn take(&self, is_last: bool) -> Option<Place> {
        let most = if is_last { MAX_COMMANDS + 1 } else { MAX_COMMANDS };
        let more = |taken| (taken < most).then_some(taken + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Place(Arc::clone(&self.0)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_taken_and_given_back() {
        let queue = Queue::default();
        let mut places: Vec<Place> = (0..MAX_COMMANDS).filter_map(|_| queue.take(false)).collect();
        assert_eq!(places.len(), MAX_COMMANDS);
        assert!(queue.clone().take(false).is_none());
        let last = queue.take(true).unwrap();
        assert!(queue.take(true).is_none());
        drop(last);
        drop(places.pop());
        assert!(queue.take(false).is_some());
    }
}
