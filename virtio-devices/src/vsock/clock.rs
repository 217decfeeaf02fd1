//! The time that a device has run: a guest that is paused cannot answer, and no time passes for it. Whoever uses it says
//! what time it is.

use std::time::{Duration, Instant};

/// Counts from when it was made, and stands still whenever the device does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    /// When it would have begun if it had never stood still.
    begun: Instant,
    stopped: Option<Instant>,
}

impl Clock {
    /// One that stands still: a device begins to run when it is resumed.
    pub(super) fn new(now: Instant) -> Self {
        Self { begun: now, stopped: Some(now) }
    }

    /// Stands still from now on. Idempotent.
    pub(super) fn stop(&mut self, now: Instant) {
        self.stopped.get_or_insert(now);
    }

    /// Goes on where it stopped. Idempotent.
    pub(super) fn go_on(&mut self, now: Instant) {
        if let Some(stopped) = self.stopped.take() {
            self.begun += now.saturating_duration_since(stopped);
        }
    }

    /// The time that has passed.
    pub(super) fn time(&self, now: Instant) -> Duration {
        self.stopped.unwrap_or(now).saturating_duration_since(self.begun)
    }

    /// When so much time will have passed, unless it stands still until then. None if that is beyond all time.
    pub(super) fn when(&self, time: Duration) -> Option<Instant> {
        self.begun.checked_add(time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_only_while_it_runs() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let seconds = Duration::from_secs;
        let mut clock = Clock::new(begin);
        assert_eq!(clock.time(at(5)), seconds(0));
        clock.go_on(at(5));
        clock.go_on(at(6));
        assert_eq!(clock.time(at(8)), seconds(3));
        assert_eq!(clock.when(seconds(10)), Some(at(15)));
        clock.stop(at(8));
        clock.stop(at(9));
        assert_eq!(clock.time(at(100)), seconds(3));
        clock.go_on(at(100));
        assert_eq!(clock.time(at(101)), seconds(4));
        assert_eq!(clock.when(seconds(10)), Some(at(107)));
        assert_eq!(clock.when(Duration::MAX), None);
    }
}
