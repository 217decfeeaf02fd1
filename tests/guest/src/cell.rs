//! `BootCell`: a static that the boot processor alone uses.

#![expect(unsafe_code, reason = "a static that only one processor touches needs a Sync promise")]

use core::cell::UnsafeCell;

/// A static value of which the boot processor's program is the only user.
pub struct BootCell<T>(UnsafeCell<T>);

// SAFETY: `BootCell::take` has one caller for each static, on the boot processor; nobody else gets a reference.
unsafe impl<T> Sync for BootCell<T> {}

impl<T> BootCell<T> {
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Returns the value, for ever.
    ///
    /// # Safety
    ///
    /// May be called once for each cell.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that it is the only one")]
    pub unsafe fn take(&'static self) -> &'static mut T {
        // SAFETY: the caller calls this once, so this is the only reference.
        unsafe { &mut *self.0.get() }
    }
}
