//! Where the time of a long piece of work went.

use std::time::Instant;

/// One step of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// What was done.
    pub name: &'static str,
    /// When it began, in nanoseconds from the beginning of all.
    pub start_ns: u64,
    /// How long it took, in nanoseconds.
    pub ns: u64,
}

/// The steps so far, in the order in which they began.
#[derive(Debug)]
pub struct Phases {
    begun: Instant,
    done: Vec<Phase>,
}

impl Phases {
    /// Begins now.
    pub fn begin() -> Self {
        Self { begun: Instant::now(), done: Vec::new() }
    }

    /// Does `work` and notes how long it took.
    pub fn time<T>(&mut self, name: &'static str, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let done = work();
        let start_ns = nanoseconds(self.begun, started);
        self.done.push(Phase { name, start_ns, ns: nanoseconds(started, Instant::now()) });
        done
    }

    /// Notes what was done beside the steps that were timed. Steps are in the order in which they began.
    pub fn add(&mut self, name: &'static str, began: Instant, ended: Instant) {
        let phase = Phase { name, start_ns: nanoseconds(self.begun, began), ns: nanoseconds(began, ended) };
        let at = self.done.partition_point(|other| other.start_ns <= phase.start_ns);
        self.done.insert(at, phase);
    }

    /// Time since the beginning, in nanoseconds.
    pub fn total_ns(&self) -> u64 {
        nanoseconds(self.begun, Instant::now())
    }

    /// The steps, in order.
    pub fn done(&self) -> &[Phase] {
        &self.done
    }
}

fn nanoseconds(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_nanos()).unwrap_or(u64::MAX)
}
