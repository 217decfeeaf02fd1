//! How other threads talk to a vCPU thread: whether it shall run, and jobs for it to do.
//!
//! The vCPU looks at one atomic flag after every exit; the lock is taken only when that flag says
//! that there is something to see.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Instant,
};

use hypervisor::{Vcpu, VcpuKicker};
use parking_lot::{Condvar, Mutex};

/// Something for the vCPU's own thread to do between two runs.
pub(super) type Job = Box<dyn FnOnce(&mut dyn Vcpu) + Send>;

/// What the vCPU thread finds when it looks.
pub(super) enum Next {
    /// Enter the guest.
    Run,
    /// Do this, then look again.
    Job(Job),
    /// End the thread.
    Stop,
}

#[derive(Default)]
struct Content {
    running: bool,
    stop: bool,
    /// The thread stands still: it is waiting here, or has ended.
    parked: bool,
    /// The thread was last sent into its guest. Only then it must be got out of there to look.
    entered: bool,
    jobs: VecDeque<Job>,
    kicker: Option<Box<dyn VcpuKicker>>,
}

/// One vCPU's mailbox.
pub(super) struct Mailbox {
    index: u32,
    attention: AtomicBool,
    content: Mutex<Content>,
    /// Signalled to the vCPU thread: there is something to see.
    work: Condvar,
    /// Signalled by the vCPU thread: it stands still.
    parked: Condvar,
}

impl Mailbox {
    pub(super) fn new(index: u32) -> Self {
        Self {
            index,
            attention: AtomicBool::new(true),
            content: Mutex::default(),
            work: Condvar::new(),
            parked: Condvar::new(),
        }
    }

    /// From now on the thread can be got out of its guest.
    pub(super) fn set_kicker(&self, kicker: Box<dyn VcpuKicker>) {
        self.content.lock().kicker = Some(kicker);
    }

    /// Whether the thread must [`look`](Self::look) before it enters the guest again.
    pub(super) fn wants_attention(&self) -> bool {
        self.attention.load(Ordering::Acquire)
    }

    /// What to do next; waits while there is nothing. Called by the vCPU thread.
    pub(super) fn look(&self) -> Next {
        let mut content = self.content.lock();
        content.entered = false;
        loop {
            if content.stop {
                return Next::Stop;
            }
            if let Some(job) = content.jobs.pop_front() {
                return Next::Job(job);
            }
            if content.running {
                content.parked = false;
                content.entered = true;
                self.attention.store(false, Ordering::Release);
                return Next::Run;
            }
            content.parked = true;
            self.parked.notify_all();
            self.work.wait(&mut content);
        }
    }

    /// The thread ends: nobody shall wait for it.
    pub(super) fn ended(&self) {
        let mut content = self.content.lock();
        content.parked = true;
        content.stop = true;
        content.jobs.clear();
        content.kicker = None;
        self.parked.notify_all();
    }

    /// The guest cannot go on: stand still until told otherwise.
    pub(super) fn park(&self) {
        let mut content = self.content.lock();
        content.running = false;
        self.attention.store(true, Ordering::Release);
    }

    pub(super) fn set_running(&self, running: bool) {
        self.change(|content| content.running = running);
    }

    pub(super) fn stop(&self) {
        self.change(|content| content.stop = true);
    }

    /// Waits until the thread stands still; false if it does not by `deadline`.
    pub(super) fn wait_parked(&self, deadline: Instant) -> bool {
        let mut content = self.content.lock();
        while !content.parked {
            if self.parked.wait_until(&mut content, deadline).timed_out() {
                return content.parked;
            }
        }
        true
    }

    /// Has the vCPU thread do something and hands back its answer.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce(&dyn Vcpu) -> T + Send + 'static,
    ) -> Answer<T> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.change(|content| {
            if !content.stop {
                content.jobs.push_back(Box::new(move |vcpu| {
                    // Nobody may be waiting any more.
                    let _ = reply.send(job(vcpu));
                }));
            }
        });
        Answer(answer)
    }

    fn change(&self, change: impl FnOnce(&mut Content)) {
        let mut content = self.content.lock();
        change(&mut content);
        self.attention.store(true, Ordering::Release);
        self.work.notify_all();
        if let (true, Some(kicker)) = (content.entered, &content.kicker) {
            kicker.kick();
        }
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mailbox(vCPU {})", self.index)
    }
}

/// The answer to a job, when it comes.
#[derive(Debug)]
pub struct Answer<T>(mpsc::Receiver<T>);

impl<T> Answer<T> {
    /// Waits for it; `None` if it does not come by `deadline`, or never will.
    pub fn wait(&self, deadline: Instant) -> Option<T> {
        self.0.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
    }
}

/// Keeps [`Mailbox::ended`] from being forgotten.
pub(super) struct EndGuard(pub(super) Arc<Mailbox>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.ended();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Debug, Default)]
    struct Kicks(Arc<AtomicUsize>);

    impl VcpuKicker for Kicks {
        fn kick(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn only_a_vcpu_that_was_sent_into_its_guest_is_got_out_of_there() {
        let (mailbox, kicks) = (Mailbox::new(0), Arc::new(AtomicUsize::new(0)));
        let kicks_so_far = || kicks.load(Ordering::SeqCst);
        mailbox.set_kicker(Box::new(Kicks(Arc::clone(&kicks))));
        // It has not come so far as to wait for this.
        mailbox.set_running(true);
        assert_eq!(kicks_so_far(), 0);
        assert!(matches!(mailbox.look(), Next::Run));
        assert!(!mailbox.wants_attention());
        mailbox.set_running(false);
        assert_eq!(kicks_so_far(), 1);
        assert!(mailbox.wants_attention());
        // It does one job, and sees the next when it looks again.
        let _ = mailbox.ask(|_: &dyn Vcpu| ());
        assert_eq!(kicks_so_far(), 2);
        assert!(matches!(mailbox.look(), Next::Job(_)));
        let _ = mailbox.ask(|_: &dyn Vcpu| ());
        mailbox.set_running(true);
        assert_eq!(kicks_so_far(), 2);
        assert!(matches!(mailbox.look(), Next::Job(_)));
        assert!(matches!(mailbox.look(), Next::Run));
        mailbox.stop();
        assert_eq!(kicks_so_far(), 3);
        assert!(matches!(mailbox.look(), Next::Stop));
    }
}
