//! Whether those who work beside the guest may go on.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// What they are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Work.
    Running,
    /// Stand still, as the guest does.
    Paused,
    /// End.
    Stopped,
}

/// Read by each of them between two steps.
#[derive(Debug)]
pub struct Switch {
    state: Mutex<State>,
    changed: Condvar,
}

impl Switch {
    /// Set to running.
    pub fn new() -> Self {
        Self { state: Mutex::new(State::Running), changed: Condvar::new() }
    }

    /// Sets it, and wakes whoever waits. What was stopped stays so.
    pub fn set(&self, state: State) {
        let mut now = self.state.lock();
        if *now != State::Stopped {
            *now = state;
            self.changed.notify_all();
        }
    }

    /// Waits for as long as it is paused; whether to go on.
    pub fn go_on(&self) -> bool {
        let mut state = self.state.lock();
        while *state == State::Paused {
            self.changed.wait(&mut state);
        }
        *state == State::Running
    }

    /// Waits for so long while it runs, and for as long as it is paused; whether to go on.
    pub fn rest(&self, time: Duration) -> bool {
        self.wait_while_running(time);
        self.go_on()
    }

    /// Waits for so long, or until it does not run any more; what it is then.
    pub fn wait_while_running(&self, time: Duration) -> State {
        let end = Instant::now() + time;
        let mut state = self.state.lock();
        while *state == State::Running && !self.changed.wait_until(&mut state, end).timed_out() {}
        *state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_is_woken_by_each_change() {
        let switch = Switch::new();
        assert!(switch.go_on() && switch.rest(Duration::from_millis(1)));
        std::thread::scope(|scope| {
            let resting = scope.spawn(|| switch.wait_while_running(Duration::from_mins(10)));
            switch.set(State::Paused);
            assert_eq!(resting.join().unwrap(), State::Paused);
            let paused = scope.spawn(|| switch.go_on());
            switch.set(State::Running);
            assert!(paused.join().unwrap());
            let resting = scope.spawn(|| switch.rest(Duration::from_mins(10)));
            switch.set(State::Stopped);
            assert!(!resting.join().unwrap());
        });
        switch.set(State::Running);
        assert!(!switch.go_on());
    }
}
