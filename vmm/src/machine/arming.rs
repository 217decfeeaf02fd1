//! What a restore leaves for later, done while the guest runs: first the devices are let work, then their doorbells are
//! registered.
//!
//! A device that does not work yet is one that a kick has not reached yet: the kick waits in its eventfd, and every queue
//! is looked at when its thread begins.
//!
//! Until its doorbell is registered a kick leaves the guest, is dispatched to the function's handler and
//! signals the same eventfd; so nothing is lost, whenever this happens and however far it comes.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use address_manager::AddressManager;

use super::{NamedDevice, attach::Control};

/// Doorbells that one commit registers. A guest that changes its wiring waits for one commit at most.
const BATCH: usize = 16;

/// The thread that does it. Stops when dropped.
#[derive(Debug)]
pub struct Arming {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Arming {
    /// Begins, with devices that do not work yet; `None` if there is nothing to do.
    ///
    /// # Errors
    /// The host has no thread left. Doorbells are not needed: without, the machine is a little slower.
    pub fn start(manager: &Arc<AddressManager>, asleep: Vec<NamedDevice>) -> io::Result<Option<Self>> {
        if asleep.is_empty() && manager.live().late_doorbells() == 0 {
            return Ok(None);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (manager, stopped) = (Arc::clone(manager), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("arm-doorbells".into()).spawn(move || {
            let goes_on = || !stopped.load(Ordering::Relaxed);
            asleep.iter().take_while(|_| goes_on()).for_each(wake);
            // What they are made of goes with the machine, and not later.
            drop(asleep);
            while goes_on() && arm(&manager) {}
        })?;
        Ok(Some(Self { stop, thread: Some(thread) }))
    }
}

/// Lets a device work.
pub(super) fn wake(NamedDevice { device, control, .. }: &NamedDevice) {
    device.lock().resume();
    if let Control::Window(window) = control {
        window.refresh();
    }
}

/// Registers a few; false when there are none left, or none can be.
fn arm(manager: &AddressManager) -> bool {
    let transaction = manager.begin_labelled("late doorbells");
    if transaction.arm_late(BATCH) == 0 {
        return false;
    }
    match transaction.commit() {
        Ok(report) => {
            log::debug!("{report}");
            true
        }
        Err(error) => {
            log::warn!("doorbells are served by exits: {}", crate::error::chain(&error));
            false
        }
    }
}

impl Drop for Arming {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic aborts the process: there is nothing to learn from the result.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::AtomicUsize,
        time::{Duration, Instant},
    };

    use address_manager::{
        Arm, Dispatcher, Doorbell, DoorbellSpec, Handler, HandlerRange, IoSpace, Owner, Windows,
    };
    use hypervisor::fake::{FakeVm, Fault};
    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    /// Two whole batches, and some.
    const QUEUES: usize = 2 * BATCH + 8;

    /// One queue's notification address: a write that leaves the guest signals what the doorbell would.
    struct Notify(Arc<EventFd>);

    impl Handler for Notify {
        fn read(&self, _offset: u64, _data: &mut [u8]) {}

        fn write(&self, _offset: u64, _data: &[u8]) {
            self.0.write(1).unwrap();
        }
    }

    struct Restored {
        vm: Arc<FakeVm>,
        manager: Arc<AddressManager>,
        events: Vec<Arc<EventFd>>,
    }

    fn address(queue: usize) -> u64 {
        0x1000 + 4 * u64::try_from(queue).unwrap()
    }

    impl Restored {
        /// A machine after its one commit: every queue has a handler, and a doorbell that is left for later.
        fn new() -> Self {
            let vm = FakeVm::new();
            let manager = AddressManager::new(Arc::clone(&vm) as Arc<_>, 32, Windows::new());
            let events: Vec<_> =
                (0..QUEUES).map(|_| Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap())).collect();
            let transaction = manager.begin();
            for (queue, event) in events.iter().enumerate() {
                let (space, base, owner) = (IoSpace::Mmio, address(queue), Owner::new("dev"));
                let handler = Arc::new(Notify(Arc::clone(event)));
                let range = HandlerRange { space, base, size: 4, handler, owner: owner.clone() };
                transaction.add_handler(range).unwrap();
                let spec = DoorbellSpec { space, address: base, width: 2, data_match: None };
                let doorbell = Doorbell { spec, event: Arc::clone(event), arm: Arm::Late, owner };
                transaction.add_doorbell(doorbell).unwrap();
            }
            transaction.commit().unwrap();
            assert_eq!((vm.wiring_state().doorbells.len(), manager.live().late_doorbells()), (0, QUEUES));
            Self { vm, manager, events }
        }

        fn armed(&self) -> usize {
            self.vm.wiring_state().doorbells.len()
        }

        /// The guest's write: the kernel's business where a doorbell is registered, else an exit that is dispatched.
        fn kick(&self, dispatcher: &mut Dispatcher, queue: usize) {
            let data = u16::try_from(queue).unwrap().to_le_bytes();
            let rung = self.vm.wiring_state().rung_by(IoSpace::Mmio, address(queue), &data);
            match rung {
                Some(descriptor) => {
                    let of = |event: &&Arc<EventFd>| std::os::fd::AsRawFd::as_raw_fd(&***event) == descriptor;
                    self.events.iter().find(of).expect("it is one of theirs").write(1).unwrap();
                }
                None => assert!(dispatcher.write(IoSpace::Mmio, address(queue), &data), "nobody answers"),
            }
        }

        /// Arms, and kicks every queue in turns meanwhile and afterwards; `stop` decides when the arming is dropped.
        /// Then every kick of every queue has been seen.
        fn every_kick_is_seen(&self, stop: impl Fn(&Arming) -> bool) {
            let (rounds, over) = (AtomicUsize::new(0), AtomicBool::new(false));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut dispatcher = self.manager.dispatcher();
                    // One more round when all is over.
                    let mut last = false;
                    while !last {
                        last = over.load(Ordering::Acquire);
                        (0..QUEUES).for_each(|queue| self.kick(&mut dispatcher, queue));
                        rounds.fetch_add(1, Ordering::Relaxed);
                    }
                });
                let arming =
                    Arming::start(&self.manager, Vec::new()).unwrap().expect("there is something to arm");
                let deadline = Instant::now() + Duration::from_secs(20);
                while !stop(&arming) {
                    assert!(Instant::now() < deadline, "{} are armed", self.armed());
                    std::thread::yield_now();
                }
                drop(arming);
                over.store(true, Ordering::Release);
            });
            let kicks = u64::try_from(rounds.into_inner()).unwrap();
            for (queue, event) in self.events.iter().enumerate() {
                assert_eq!(event.read().unwrap_or(0), kicks, "queue {queue}, {} are armed", self.armed());
            }
        }
    }

    fn is_over(arming: &Arming) -> bool {
        arming.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }

    #[test]
    fn no_kick_is_lost_wherever_arming_fails() {
        for step in 0..=QUEUES {
            let restored = Restored::new();
            restored.vm.inject(Fault::Wiring(step));
            restored.every_kick_is_seen(is_over);
            // A batch is registered as a whole or not at all, and the first that fails is the last.
            let expected = if step < QUEUES { step / BATCH * BATCH } else { QUEUES };
            assert_eq!(restored.armed(), expected, "step {step}");
            assert_eq!(restored.manager.live().late_doorbells(), QUEUES - expected);
            // What failed once does not for ever.
            restored.vm.recorder().clear_fault();
            if expected < QUEUES {
                restored.every_kick_is_seen(is_over);
            }
            assert_eq!(restored.armed(), QUEUES);
        }
    }

    #[test]
    fn no_kick_is_lost_wherever_arming_is_stopped() {
        for step in 0..=QUEUES {
            let restored = Restored::new();
            restored.every_kick_is_seen(|_| restored.armed() >= step);
            assert!(restored.armed() >= step);
            assert_eq!(restored.armed() + restored.manager.live().late_doorbells(), QUEUES);
        }
    }

    #[test]
    fn there_is_no_thread_without_late_doorbells() {
        let restored = Restored::new();
        restored.every_kick_is_seen(is_over);
        assert!(Arming::start(&restored.manager, Vec::new()).unwrap().is_none());
    }
}
