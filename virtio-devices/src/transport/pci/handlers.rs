//! Who answers the BAR: the registers, under the function's lock, and the notification addresses, without.

use std::sync::{Arc, Weak};

use address_manager::{AddressManager, Handler};
use devices::{
    SharedDevice,
    pci::{ConfigEffect, root},
};
use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use super::{
    VirtioPci,
    layout::{ISR, ISR_SIZE, NOTIFY_MULTIPLIER},
};
use crate::{interrupt::Interrupts, worker::signal};

/// Common configuration, interrupt status and device configuration.
pub(super) struct RegisterHandler {
    // The function's BAR holds this handler: a strong reference would be a cycle.
    pub(super) function: Weak<Mutex<VirtioPci>>,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) manager: Weak<AddressManager>,
}

impl Handler for RegisterHandler {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if (ISR..ISR + ISR_SIZE).contains(&offset) {
            data.fill(0);
            if let Some(first) = data.first_mut() {
                *first = self.interrupts.take_isr();
            }
        } else if let Some(function) = self.function.upgrade() {
            function.lock().read_register(offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(function) = self.function.upgrade() else { return };
        let effect = function.lock().write_register(offset, data);
        if effect == ConfigEffect::Rewire
            && let Some(manager) = self.manager.upgrade()
        {
            // All doorbells of the activation in one transaction, opened before the function is locked.
            root::rewire(&manager, &SharedDevice::from_arc(function), "doorbells");
        }
    }
}

/// The notification addresses. A queue whose doorbell is armed never comes here; until then its kicks do,
/// and are served by the same eventfd.
pub(super) struct NotifyHandler {
    pub(super) kicks: Arc<[Arc<EventFd>]>,
}

impl NotifyHandler {
    fn kick(&self, offset: u64) {
        let multiplier = u64::from(NOTIFY_MULTIPLIER);
        if offset.is_multiple_of(multiplier)
            && let Ok(queue) = usize::try_from(offset / multiplier)
            && let Some(kick) = self.kicks.get(queue)
        {
            signal(kick);
        }
    }
}

impl Handler for NotifyHandler {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, _data: &[u8]) {
        self.kick(offset);
    }
}
