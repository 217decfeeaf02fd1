//! Saving and loading a device.
//!
//! [`Stateful`] is what a device implements: typed, with its own [`State`]. [`Persist`] is the
//! erased form that the machine sees, implemented once, here, for every `Stateful`.

use address_manager::Transaction;
use vm_migration::{LoadError, SaveError, Section, State};

/// A device whose state can be saved and loaded.
pub trait Stateful {
    /// Its saved form. `NoState` where there is none: saving nothing is a decision.
    type State: State;

    /// The state now. The device is paused, so this cannot fail.
    fn save(&self) -> Self::State;

    /// Takes over a saved state. Checks every field: the state may come from a hostile file. Wiring
    /// that the state implies is staged in `transaction`; nothing else outside the device changes.
    ///
    /// # Errors
    /// A field does not fit this device; the error names it. The device is then unusable and the
    /// machine is dropped.
    fn load(&mut self, state: Self::State, transaction: &Transaction<'_>) -> Result<(), LoadError>;
}

/// [`Stateful`] without its type.
pub trait Persist {
    /// Kind and version of the state that [`save_section`](Self::save_section) writes.
    fn state_kind(&self) -> (&'static str, u32);

    /// The state now, as the section of `id`.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    fn save_section(&self, id: &str) -> Result<Section, SaveError>;

    /// Takes over the state in a section.
    ///
    /// # Errors
    /// Kind, version or a field do not fit; the error names the device and the field.
    fn load_section(&mut self, section: &Section, transaction: &Transaction<'_>) -> Result<(), LoadError>;
}

impl<D: Stateful> Persist for D {
    fn state_kind(&self) -> (&'static str, u32) {
        (D::State::KIND, D::State::VERSION)
    }

    fn save_section(&self, id: &str) -> Result<Section, SaveError> {
        Section::save(id, &self.save())
    }

    fn load_section(&mut self, section: &Section, transaction: &Transaction<'_>) -> Result<(), LoadError> {
        let state = section.load::<D::State>()?;
        self.load(state, transaction).map_err(|error| error.in_device(&section.id))
    }
}
