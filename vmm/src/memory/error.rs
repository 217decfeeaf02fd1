//! What can be wrong with the memory of a zone, or with a file that it names.

use std::{io, path::PathBuf};

use thiserror::Error;
use virtio_devices::host::lock::LockError;
use vm_memory::mmap::MmapRegionError;

/// The memory of a zone could not be had.
#[derive(Debug, Error)]
pub enum BackingError {
    /// The zone is larger than the host.
    #[error("memory zone {zone}: {size} bytes are more than the host's memory and swap ({host} bytes)")]
    TooLarge {
        /// Which zone.
        zone: String,
        /// What was asked for.
        size: u64,
        /// What there is.
        host: u64,
    },
    /// The file cannot be opened.
    #[error("memory zone {zone}: cannot open {}", .path.display())]
    Open {
        /// Which zone.
        zone: String,
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another VM uses the file, or this one for another zone, and one of the two would see what the other writes.
    #[error("memory zone {zone}: cannot lock {}", .path.display())]
    Locked {
        /// Which zone.
        zone: String,
        /// Its file.
        path: PathBuf,
        /// Who does, or why not.
        #[source]
        source: LockError,
    },
    /// The file is a pipe, a directory or a device.
    #[error("memory zone {zone}: {} is no regular file", .path.display())]
    NotFile {
        /// Which zone.
        zone: String,
        /// What is there.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("memory zone {zone}: cannot read {}", .path.display())]
    Read {
        /// Which zone.
        zone: String,
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file does not have the content that a zone left in it.
    #[error("memory zone {zone}: its content was left in its file, and {} has {found} bytes of {size}", .path.display())]
    Short {
        /// Which zone.
        zone: String,
        /// Its file.
        path: PathBuf,
        /// Bytes of the file.
        found: u64,
        /// Bytes of the zone.
        size: u64,
    },
    /// The file has content, which reading the zone's into it would mix with.
    #[error(
        "memory zone {zone}: its content is read into {}, which has some at {offset:#x}: it must be empty or zero",
        .path.display()
    )]
    InUse {
        /// Which zone.
        zone: String,
        /// Its file.
        path: PathBuf,
        /// The first byte that is not zero.
        offset: u64,
    },
    /// Two zones have the same file.
    #[error("memory zone {zone}: {} is the file of memory zone {other}, too", .path.display())]
    Twice {
        /// Which zone.
        zone: String,
        /// Its file.
        path: PathBuf,
        /// The other zone.
        other: String,
    },
    /// The file cannot be made as long as the zone.
    #[error("memory zone {zone}: cannot make {} {size} bytes long", .path.display())]
    Length {
        /// Which zone.
        zone: String,
        /// Its file.
        path: PathBuf,
        /// Bytes of the zone.
        size: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A memfd cannot be made as long as the zone.
    #[error("memory zone {zone}: cannot provide {size} bytes")]
    Size {
        /// Which zone.
        zone: String,
        /// What was asked for.
        size: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host has no huge pages of that size, or too few that are free.
    #[error("memory zone {zone}: the host does not have {size} bytes in free huge pages of {page} bytes")]
    HugePages {
        /// Which zone.
        zone: String,
        /// What was asked for.
        size: u64,
        /// Size of a huge page.
        page: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The memory cannot be mapped.
    #[error("memory zone {zone}: cannot map {size} bytes")]
    Map {
        /// Which zone.
        zone: String,
        /// What was asked for.
        size: u64,
        /// Why.
        #[source]
        source: MmapRegionError,
    },
    /// A part of what a chain of snapshots has cannot be mapped or read.
    #[error("memory zone {zone}: cannot map or read {}", .path.display())]
    Layer {
        /// Which zone.
        zone: String,
        /// The memory file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The memory cannot be had from the node that is asked for.
    #[error("memory zone {zone}: cannot take memory of host NUMA node {node}")]
    Node {
        /// Which zone.
        zone: String,
        /// The node.
        node: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Pages cannot be brought in as they are touched.
    #[error("guest memory cannot be paged in on demand: userfaultfd")]
    Pager(#[source] io::Error),
    /// Somebody asked for it to be given up.
    #[error("given up, as was asked for")]
    Cancelled,
    /// The kernel does not take an advice about the mapping.
    #[error("memory zone {zone}: cannot {what}")]
    Advise {
        /// Which zone.
        zone: String,
        /// What the kernel was asked to do.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}
