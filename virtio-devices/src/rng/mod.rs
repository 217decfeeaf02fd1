//! The entropy device (virtio 1.3 section 5.4): fills the driver's buffers with random bytes from an opened
//! source.

mod device;
mod queue;
#[cfg(test)]
mod tests;

pub use device::Rng;
