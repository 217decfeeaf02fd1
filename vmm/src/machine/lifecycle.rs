//! Stopping and starting a machine as a whole: processors first, then devices, both times.

use std::time::Instant;

use devices::PauseError;
use thiserror::Error;

use super::{
    Machine, NamedDevice,
    arming::{self, Arming},
};
use crate::{cpu::VcpuError, memory::demand::Pager};

/// A machine could not be stopped.
#[derive(Debug, Error)]
pub enum LifeError {
    /// A vCPU did not answer.
    #[error("processors")]
    Vcpu(#[from] VcpuError),
    /// A device did not stop.
    #[error("device {id}")]
    Device {
        /// Which device.
        id: String,
        /// Why.
        #[source]
        source: PauseError,
    },
}

impl Machine {
    /// Brings everything to a standstill. Idempotent.
    ///
    /// However many processors and devices there are, it takes [`ANSWER_TIMEOUT`](crate::cpu::ANSWER_TIMEOUT) and the
    /// time of one device at most: all are asked before one is waited for.
    ///
    /// # Errors
    /// A thread or back end did not stop in time; the machine runs on.
    pub fn pause(&mut self) -> Result<(), LifeError> {
        let paused = self.try_pause();
        if paused.is_err() {
            self.resume();
        }
        paused
    }

    fn try_pause(&mut self) -> Result<(), LifeError> {
        self.vcpus.pause()?;
        // It would wake devices that are to stand still.
        self.arming = None;
        self.platform.let_input(false);
        if self.stopped_clock.is_none() {
            // A clock that cannot be read runs on: the guest sees the pause, as it would on hardware.
            self.stopped_clock = self.vm.clock().ok();
            self.stopped_at = Instant::now();
        }
        if let Some(background) = self.memory.background() {
            background.pause();
        }
        self.pause_devices()
    }

    fn pause_devices(&self) -> Result<(), LifeError> {
        self.all_devices().for_each(|named| named.device.lock().ask_to_pause());
        for NamedDevice { id, device, .. } in self.all_devices() {
            device.lock().pause().map_err(|source| LifeError::Device { id: id.clone(), source })?;
        }
        Ok(())
    }

    /// Whether it can be dropped. One of which pages are missing is brought to a standstill for that. If it does not come
    /// to one, or something of its memory cannot be had, somebody may wait for a page: let go, he would find zeros there,
    /// and a disk would be written with them. Such a machine has to be left as it is until the process ends.
    pub(crate) fn can_go(&mut self) -> bool {
        let Some(has_failed) = self.memory.pager().map(Pager::has_failed) else { return true };
        let stands = self.vcpus.pause().map_err(LifeError::from).and_then(|()| {
            if has_failed {
                // A device that waits would only be waited for.
                return Ok(false);
            }
            self.arming = None;
            self.platform.let_input(false);
            self.pause_devices().map(|()| true)
        });
        match stands {
            Ok(true) => {
                // What waits now is the kernel's, and would keep the VM from going.
                self.memory.end_paging();
                true
            }
            Ok(false) => false,
            Err(error) => {
                log::error!("a VM that does not stop is left as it is: {}", crate::error::chain(&error));
                false
            }
        }
    }

    /// Lets everything run.
    pub fn resume(&mut self) {
        self.resume_processors();
        self.resume_devices();
    }

    /// Lets the processors run, as the first of [`resume`](Self::resume): what they ask of a device that does not
    /// work yet waits for it.
    pub(crate) fn resume_processors(&mut self) {
        if let Some(clock) = self.stopped_clock.take()
            && let Err(error) = self.vm.set_clock(&clock)
        {
            log::warn!("the guest's clock has gone on during the pause: {}", crate::error::chain(&error));
        }
        self.vcpus.resume();
    }

    /// Lets the devices work, as the second of [`resume`](Self::resume).
    fn resume_devices(&mut self) {
        self.all_devices().for_each(arming::wake);
        self.platform.let_input(true);
        if let Some(background) = self.memory.background() {
            background.run();
        }
        if self.arming.is_none() {
            match Arming::start(&self.manager, Vec::new()) {
                Ok(arming) => self.arming = arming,
                Err(error) => {
                    log::warn!("doorbells are served by exits: no thread to register them: {error}")
                }
            }
        }
    }

    /// Lets the devices of a restored machine work, in the background: making the threads of many queues takes longer
    /// than all else in a restore.
    pub(crate) fn resume_devices_beside(&mut self) {
        self.platform.devices.iter().for_each(arming::wake);
        self.platform.let_input(true);
        match Arming::start(&self.manager, self.devices.clone()) {
            Ok(arming) => self.arming = arming,
            Err(error) => {
                log::warn!("no thread to let the devices work in the background: {error}");
                self.resume_devices();
            }
        }
        // The guest runs by now: nothing of this is in its way there.
        if let Some(background) = self.memory.background() {
            background.run();
        }
    }

    /// Presses the power button. What the guest makes of it is its own business.
    pub fn press_power_button(&self) {
        self.platform.events.lock().raise(arch::x86_64::acpi::event::POWER_BUTTON);
    }

    /// Platform devices, then PCI devices, in layout order.
    pub(super) fn all_devices(&self) -> impl Iterator<Item = &NamedDevice> {
        self.platform.devices.iter().chain(&self.devices)
    }
}
