//! Why an image cannot be booted.

use std::io;

use thiserror::Error;

/// Failure to plan a boot. Names what in the image is wrong and the value; whose image it is, the
/// caller knows.
#[derive(Debug, Error)]
pub enum BootError {
    /// The image could not be read.
    #[error("cannot read {len} bytes at offset {offset:#x}")]
    Read {
        /// Where in the image.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// Why.
        #[source]
        source: io::Error,
    },

    /// No byte at all.
    #[error("the image is empty")]
    Empty,

    /// Nothing that can be booted.
    #[error("neither an ELF file nor a Linux bzImage: begins with {seen}")]
    UnknownFormat {
        /// The first bytes, in hexadecimal.
        seen: String,
    },

    /// The image ends before something it promises.
    #[error("truncated: {what} ends at byte {end:#x}, the image has {size:#x} bytes")]
    Truncated {
        /// What is cut off.
        what: String,
        /// Where it should end.
        end: u64,
        /// Size of the image.
        size: u64,
    },

    /// A header field with a value that cannot be booted.
    #[error("{what} is {value:#x}, expected {expected}")]
    Field {
        /// Which field.
        what: &'static str,
        /// What it says.
        value: u64,
        /// What can be booted.
        expected: &'static str,
    },

    /// An ELF file without a PVH entry point.
    #[error("ELF file has no PVH entry point (a Xen note of type 18): not a kernel built with CONFIG_PVH")]
    NoPvhNote,

    /// A PVH note that does not hold an address.
    #[error("PVH note has {len} bytes, expected 4 or 8")]
    PvhNoteSize {
        /// Size of the note's content.
        len: u64,
    },

    /// Nothing to load.
    #[error("ELF file has no segment to load")]
    NoSegments,

    /// An entry point that is not part of what is loaded.
    #[error("entry point {entry:#x} is outside of what is loaded")]
    EntryOutside {
        /// The entry point.
        entry: u64,
    },

    /// Two parts of the image want the same memory.
    #[error(
        "segment {first} at {first_start:#x}..{first_end:#x} overlaps segment {second} at {second_start:#x}..{second_end:#x}"
    )]
    SegmentsOverlap {
        /// Number of the lower segment.
        first: usize,
        /// Its start.
        first_start: u64,
        /// Its end.
        first_end: u64,
        /// Number of the higher segment.
        second: usize,
        /// Its start.
        second_start: u64,
        /// Its end.
        second_end: u64,
    },

    /// More content in the file than room in memory.
    #[error("segment {index} has {file_size:#x} bytes in the file and {memory_size:#x} in memory")]
    SegmentSizes {
        /// Number of the segment.
        index: usize,
        /// Bytes in the file.
        file_size: u64,
        /// Bytes in memory.
        memory_size: u64,
    },

    /// An address range that wraps around.
    #[error("{what} at {start:#x} of {size:#x} bytes ends beyond the address space")]
    AddressOverflow {
        /// What is to be loaded.
        what: String,
        /// Where.
        start: u64,
        /// Number of bytes.
        size: u64,
    },

    /// The range of the boot data was asked for.
    #[error("{what} at {start:#x}..{end:#x} overlaps the boot data below {limit:#x}")]
    OverlapsBootData {
        /// What is to be loaded.
        what: String,
        /// Its start.
        start: u64,
        /// Its end.
        end: u64,
        /// End of the boot data.
        limit: u64,
    },

    /// The hole below 4 GiB was asked for.
    #[error(
        "{what} at {start:#x}..{end:#x} overlaps the memory hole {:#x}..{:#x}",
        crate::x86_64::layout::HOLE_START,
        crate::x86_64::layout::HOLE_END
    )]
    InHole {
        /// What is to be loaded.
        what: String,
        /// Its start.
        start: u64,
        /// Its end.
        end: u64,
    },

    /// More memory is needed than the guest has.
    #[error("{what} at {start:#x}..{end:#x} is beyond the end of guest memory at {ram_end:#x}")]
    BeyondMemory {
        /// What is to be loaded.
        what: String,
        /// Its start.
        start: u64,
        /// Its end.
        end: u64,
        /// Where the guest's memory ends.
        ram_end: u64,
    },

    /// A range between RAM ranges was asked for.
    #[error("{what} at {start:#x}..{end:#x} is not in RAM")]
    NotRam {
        /// What is to be loaded.
        what: String,
        /// Its start.
        start: u64,
        /// Its end.
        end: u64,
    },

    /// The command line does not fit.
    #[error("command line of {len} bytes: at most {limit}")]
    CmdlineTooLong {
        /// Its length.
        len: u64,
        /// The most that the kernel and the memory map allow.
        limit: u64,
    },

    /// The command line would end early.
    #[error("command line has a NUL byte at position {position}")]
    CmdlineNul {
        /// Where.
        position: usize,
    },

    /// An initial RAM file system without content.
    #[error("the initramfs is empty")]
    InitramfsEmpty,

    /// No room for the initial RAM file system.
    #[error("initramfs of {size:#x} bytes finds no room in RAM below {limit:#x} beside the kernel")]
    InitramfsNoRoom {
        /// Its size.
        size: u64,
        /// The address it has to end at or below.
        limit: u64,
    },

    /// A kernel that is too large for the memory it may be loaded to.
    #[error(
        "kernel needs {size:#x} bytes of RAM at {preferred:#x} or aligned to {alignment:#x} above 0x100000: there is none"
    )]
    KernelNoRoom {
        /// Bytes it needs while it unpacks itself.
        size: u64,
        /// Where it would like to be.
        preferred: u64,
        /// Its alignment.
        alignment: u64,
    },

    /// A kernel without a 64-bit entry point.
    #[error("bzImage has no 64-bit entry point (xloadflags is {flags:#x})")]
    No64BitEntry {
        /// The flags found.
        flags: u16,
    },

    /// An image that is given as firmware and is none.
    #[error("no firmware: {why}")]
    NotFirmware {
        /// What it is, or what it lacks.
        why: String,
    },

    /// A firmware image that cannot be placed.
    #[error(transparent)]
    Layout(#[from] crate::x86_64::layout::LayoutError),
}
