//! Registers, while the guest runs, the doorbells that a restore left for later.
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

/// Doorbells that one commit registers. A guest that changes its wiring waits for one commit at most.
const BATCH: usize = 16;

/// The thread that does it. Stops when dropped.
#[derive(Debug)]
pub struct Arming {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Arming {
    /// Begins; `None` if there is nothing to do.
    ///
    /// # Errors
    /// The host has no thread left. The machine works without, a little slower.
    pub fn start(manager: &Arc<AddressManager>) -> io::Result<Option<Self>> {
        if manager.live().late_doorbells() == 0 {
            return Ok(None);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (manager, stopped) = (Arc::clone(manager), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("arm-doorbells".into())
            .spawn(move || while !stopped.load(Ordering::Relaxed) && arm(&manager) {})?;
        Ok(Some(Self { stop, thread: Some(thread) }))
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
