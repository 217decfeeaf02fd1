//! The host's ends of network devices, set up as the last step of all: what fails before that has changed nothing of a
//! tap that was there.

use super::{
    BuildError, Machine,
    attach::{
        Control,
        net::{Before, MadeTap},
    },
};

impl Machine {
    /// Taps that were made for it, in the order of its devices.
    pub fn made_taps(&self) -> Vec<MadeTap> {
        let made = self.devices().iter().filter_map(|device| {
            let Control::Tap(tap) = &device.control else { return None };
            Some(MadeTap { id: device.id.clone(), tap: Some(tap.made()?.to_owned()) })
        });
        made.collect()
    }

    /// Gives every tap what the configuration says of its host end, and lets it carry frames.
    ///
    /// # Errors
    /// The host refuses; all of them are as they were.
    pub(super) fn set_taps_up(&self) -> Result<(), BuildError> {
        let mut done: Vec<Before> = Vec::new();
        for device in self.devices() {
            let Control::Tap(tap) = &device.control else { continue };
            match tap.set_up() {
                Ok(before) => done.push(before),
                Err(source) => {
                    done.into_iter().rev().for_each(Before::put_back);
                    return Err(BuildError::Attach { id: device.id.clone(), source });
                }
            }
        }
        Ok(())
    }
}
