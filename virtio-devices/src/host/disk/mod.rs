//! Disk images, as a block device sees them.
//!
//! An image is made by whoever opened its file. [`DiskImage`] is what all formats have in common: a size, a
//! geometry, and [`Engine`]s that carry out requests, one for each queue. Formats other than
//! raw are recognised ([`probe`]), so that nobody takes one for a raw image by accident.

pub mod engine;
pub mod probe;
pub mod raw;

use std::{fmt, io};

use self::engine::Engine;
use super::lock::LockError;

/// The unit of the block device's addresses, in bytes (virtio 1.3 section 5.2.4).
pub const SECTOR: u64 = 512;

/// How a disk likes its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Smallest unit that can be addressed, in bytes: a power of two, 512 at least.
    pub logical_block: u32,
    /// Smallest unit that can be written without reading first, in bytes.
    pub physical_block: u32,
    /// Best multiple of small requests, in bytes.
    pub minimum_io: u32,
    /// Best size of large requests, in bytes; 0 if unknown.
    pub optimal_io: u32,
}

impl Default for Geometry {
    fn default() -> Self {
        Self { logical_block: 512, physical_block: 512, minimum_io: 512, optimal_io: 0 }
    }
}

/// An opened image.
pub trait DiskImage: Send + Sync + fmt::Debug {
    /// Size of the disk in bytes.
    fn size_bytes(&self) -> u64;

    /// How it likes its requests.
    fn geometry(&self) -> Geometry;

    /// What addresses and lengths of host memory have to be multiples of; 1 if anything will do.
    fn memory_alignment(&self) -> usize;

    /// Whether ranges can be given back to the host.
    fn can_discard(&self) -> bool;

    /// The engine that is used, by the name under which it is reported.
    fn engine_name(&self) -> &'static str;

    /// An engine for up to `depth` requests at a time.
    ///
    /// # Errors
    /// The host has no resources for it.
    fn new_engine(&self, depth: u16) -> io::Result<Box<dyn Engine>>;

    /// Makes sure that nobody else uses the image against our use of it. Once locked, it stays so until it
    /// is unlocked or closed.
    ///
    /// # Errors
    /// Somebody does.
    fn lock(&self) -> Result<(), LockError>;

    /// Whether [`lock`](Self::lock) would succeed. Nothing is locked.
    ///
    /// # Errors
    /// It would not.
    fn check_lock(&self) -> Result<(), LockError>;

    /// Lets others use it, before it is closed: for a migration to a process of the same host.
    ///
    /// # Errors
    /// The host refuses.
    fn unlock(&self) -> Result<(), LockError>;

    /// Changes the size of the disk.
    ///
    /// # Errors
    /// The image cannot be resized, or not to that size.
    fn resize(&self, size_bytes: u64) -> io::Result<()>;
}
