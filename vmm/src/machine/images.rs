//! The locks on the images of a machine's disks: taken when the machine is built, given back and taken again
//! when it is handed over to another process of the same host.

use thiserror::Error;

use super::{
    Machine, NamedDevice,
    attach::{AttachError, Control, block::Disk},
};

/// An image could not be locked or unlocked.
#[derive(Debug, Error)]
#[error("device {id}")]
pub struct ImageLockError {
    /// Which device.
    pub id: String,
    /// Why.
    #[source]
    pub source: AttachError,
}

impl Machine {
    /// Locks the images of all disks. What is locked already stays so.
    ///
    /// # Errors
    /// Somebody else uses one of them: none is locked then.
    pub fn lock_images(&self) -> Result<(), ImageLockError> {
        for (id, disk) in disks(&self.devices) {
            if let Err(source) = disk.lock() {
                if let Err(error) = self.unlock_images() {
                    log::warn!("{}", crate::error::chain(&error));
                }
                return Err(ImageLockError { id: id.to_owned(), source });
            }
        }
        Ok(())
    }

    /// Lets others use the images of all disks. The machine must be paused, and must not run again before
    /// [`lock_images`](Self::lock_images) has succeeded.
    ///
    /// # Errors
    /// The host refuses one of them; the others are unlocked all the same.
    pub fn unlock_images(&self) -> Result<(), ImageLockError> {
        let mut result = Ok(());
        for (id, disk) in disks(&self.devices) {
            if let Err(source) = disk.unlock() {
                result = Err(ImageLockError { id: id.to_owned(), source });
            }
        }
        result
    }
}

fn disks(devices: &[NamedDevice]) -> impl Iterator<Item = (&str, &Disk)> {
    devices.iter().filter_map(|device| match &device.control {
        Control::Disk(disk) => Some((device.id.as_str(), disk)),
        Control::None | Control::Window(_) | Control::Tap(_) => None,
    })
}
