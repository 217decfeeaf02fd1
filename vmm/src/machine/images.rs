//! The locks on the images of a machine's disks and persistent memory: taken when the machine is built, given back and taken again
//! when it is handed over to another process of the same host.

use thiserror::Error;

use super::{Machine, NamedDevice, attach::AttachError};

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
    /// Locks the images of all devices. What is locked already stays so.
    ///
    /// # Errors
    /// Somebody else uses one of them: none is locked then.
    pub fn lock_images(&self) -> Result<(), ImageLockError> {
        for NamedDevice { id, control, .. } in &self.devices {
            if let Err(source) = control.lock_image() {
                if let Err(error) = self.unlock_images() {
                    log::warn!("{}", crate::error::chain(&error));
                }
                return Err(ImageLockError { id: id.clone(), source });
            }
        }
        Ok(())
    }

    /// Lets others use the images of all devices. The machine must be paused, and must not run again before
    /// [`lock_images`](Self::lock_images) has succeeded.
    ///
    /// # Errors
    /// The host refuses one of them; the others are unlocked all the same.
    pub fn unlock_images(&self) -> Result<(), ImageLockError> {
        let mut result = Ok(());
        for NamedDevice { id, control, .. } in &self.devices {
            if let Err(source) = control.unlock_image() {
                result = Err(ImageLockError { id: id.clone(), source });
            }
        }
        result
    }
}
