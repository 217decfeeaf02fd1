//! Memory that the boot processor alone uses: statics (`BootCell`) and tables on the heap.

#![expect(unsafe_code, reason = "raw memory becomes values that one processor uses")]

use core::cell::UnsafeCell;

use crate::memory::{Memory, MemoryError};

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

/// Returns a table of `len` empty places on the heap, for ever. Not a static, so that the image does not carry it.
pub fn table<T>(memory: &mut Memory, len: usize) -> Result<&'static mut [Option<T>], MemoryError> {
    let len_bytes = (len * size_of::<Option<T>>()) as u64;
    let address = memory.allocate_raw(len_bytes, align_of::<Option<T>>() as u64)?;
    let first = core::ptr::with_exposed_provenance_mut::<Option<T>>(usize::try_from(address).unwrap_or(0));
    for index in 0..len {
        // SAFETY: the place is inside memory that the heap gave out just now, for nobody else.
        unsafe { first.wrapping_add(index).write(None) };
    }
    // SAFETY: all `len` places were written, and this is the only reference to them.
    Ok(unsafe { core::slice::from_raw_parts_mut(first, len) })
}
