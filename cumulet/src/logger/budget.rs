//! How often one place of the program may warn. What a guest has brought about once, it can bring about for ever, and
//! the log is a file of the host.

use std::{collections::BTreeMap, time::Duration};

use log::Level;
use parking_lot::Mutex;

/// Lines that a place may log at once.
const BURST: u64 = 32;
/// After so long, one more.
const REFILL: Duration = Duration::from_secs(1);

/// A place of the program: file and line.
type Place = (&'static str, u32);

/// What every place has logged.
#[derive(Debug, Default)]
pub struct Budget {
    // As many as there are warnings in the program.
    places: Mutex<BTreeMap<Place, Spent>>,
}

#[derive(Debug, Default)]
struct Spent {
    /// Lines that are not paid back yet.
    lines: u64,
    /// Whole periods since the start, up to which they were paid back.
    paid: u64,
    left_out: u64,
}

impl Budget {
    /// Whether a line may be logged that comes `since_start`; if so, how many of its place were left out before it. What
    /// is asked for with `-v` is never left out.
    pub fn admit(&self, level: Level, place: Place, since_start: Duration) -> Option<u64> {
        if level > Level::Warn {
            return Some(0);
        }
        let mut places = self.places.lock();
        let spent = places.entry(place).or_default();
        let periods = since_start.as_secs() / REFILL.as_secs();
        spent.lines = spent.lines.saturating_sub(periods.saturating_sub(spent.paid));
        spent.paid = periods;
        if spent.lines == BURST {
            spent.left_out = spent.left_out.saturating_add(1);
            return None;
        }
        spent.lines += 1;
        Some(std::mem::take(&mut spent.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Place = ("here.rs", 1);

    fn admitted(budget: &Budget, place: Place, at: u64) -> Option<u64> {
        budget.admit(Level::Warn, place, Duration::from_secs(at))
    }

    #[test]
    fn a_place_that_warns_all_the_time_is_heard_once_a_second() {
        let budget = Budget::default();
        assert!((0..BURST).all(|_| admitted(&budget, HERE, 0) == Some(0)));
        for second in 1..100 {
            assert!((0..7).all(|_| admitted(&budget, HERE, second - 1).is_none()));
            assert_eq!(admitted(&budget, HERE, second), Some(7));
        }
        // Another place has a budget of its own.
        assert_eq!(admitted(&budget, ("here.rs", 2), 0), Some(0));
    }

    #[test]
    fn a_budget_comes_back_and_does_not_grow() {
        let budget = Budget::default();
        while admitted(&budget, HERE, 0).is_some() {}
        assert_eq!(admitted(&budget, HERE, 1_000_000), Some(1));
        assert_eq!((0..2 * BURST).filter(|_| admitted(&budget, HERE, 1_000_000).is_some()).count(), 31);
    }

    #[test]
    fn what_was_asked_for_is_told_whole() {
        let budget = Budget::default();
        for _ in 0..10 * BURST {
            assert_eq!(budget.admit(Level::Info, HERE, Duration::ZERO), Some(0));
        }
        // And takes nothing from the warnings of the same place.
        assert_eq!(admitted(&budget, HERE, 0), Some(0));
    }
}
