//! The persistent memory device (virtio 1.3 section 5.19): tells the driver where a window of storage lies in its address
//! space, and makes what it wrote there stable when it asks for that.
//!
//! The window itself is nothing of the device's: whoever builds the machine maps the storage and shows it to the guest.
//! Absent is the feature by which the window would be a shared memory region of the function (section 5.19.3).

mod counters;
mod device;
mod queue;
mod state;
#[cfg(test)]
mod tests;

use std::{fmt, fs::File, io};

pub use device::{Pmem, PmemConfig};
pub use state::PmemState;

/// Where the content of the window is kept.
pub trait Store: Send + Sync + fmt::Debug {
    /// Makes stable what was written until now, by the guest or by devices.
    ///
    /// # Errors
    /// Some of it may not be stable.
    fn flush(&self) -> io::Result<()>;
}

/// A file that is mapped shared: the kernel knows what of it was written through the mapping.
impl Store for File {
    fn flush(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Nowhere: what is written is gone with the machine, as its user asked for, and there is nothing to make stable.
#[derive(Clone, Copy, Debug)]
pub struct Nowhere;

impl Store for Nowhere {
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
