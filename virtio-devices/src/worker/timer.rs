//! A timer that a job waits for while a rate limit lets nothing pass. Without a limit there is none: a machine has
//! hundreds of queues, and most of them no limit.

use std::{io, time::Duration};

use log::{debug, warn};
use vmm_sys_util::timerfd::TimerFd;

use super::Poller;

/// Rings when a limit lets something pass again.
#[derive(Debug, Default)]
pub struct LimitTimer(Option<TimerFd>);

impl LimitTimer {
    /// A timer, if there is a limit to wait for.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(limited: bool) -> io::Result<Self> {
        limited.then(TimerFd::new).transpose().map(Self).map_err(io::Error::from)
    }

    /// Has the poller wait for it.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn watch(&self, poller: &Poller, source: u32) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |timer| poller.add(timer, source))
    }

    /// Sets it; says whether it will ring.
    pub fn set(&mut self, wait: Duration) -> bool {
        let Some(timer) = &mut self.0 else { return false };
        let set = timer.reset(wait, None);
        if let Err(error) = &set {
            warn!("a rate limit is not kept: {error}");
        }
        set.is_ok()
    }

    /// Takes its signal.
    pub fn take(&mut self) {
        if let Some(Err(error)) = self.0.as_mut().map(TimerFd::wait) {
            debug!("timer: {error}");
        }
    }
}
