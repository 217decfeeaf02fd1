//! From a kernel image to the bytes and registers a guest starts with.
//!
//! [`plan`] looks at an image, finds out what it is, checks every address in it against the guest's
//! memory map, and answers with a [`BootPlan`]: which parts of which file, and which generated
//! bytes, go where, and the registers of the boot CPU. Nothing is copied here; `vmm::machine` copies
//! the pieces and sets the registers. Images are untrusted input.
//!
//! * An ELF file with a Xen PVH note is entered in 32-bit mode ([`pvh`]). Firmware built for Cloud
//!   Hypervisor is such a file too.
//! * A Linux bzImage is entered in 64-bit mode ([`bzimage`]).
//! * A firmware image that is neither is mapped below 4 GiB as it is; see [`firmware`].

pub mod bzimage;
pub mod elf;
mod error;
pub mod firmware;
pub mod image;
pub mod initramfs;
pub mod pvh;
pub mod registers;
#[cfg(test)]
mod sample;

pub use error::BootError;
use hypervisor::x86_64::ReadyRegisters;
pub use image::ReadAt;

use super::{
    layout::{self, Range},
    memory_map::MemoryMap,
};

/// What is to be booted, and into what.
#[derive(Clone, Copy)]
pub struct BootRequest<'a> {
    /// The kernel or firmware image.
    pub kernel: &'a dyn ReadAt,
    /// Size in bytes of the initial RAM file system, if there is one.
    pub initramfs_size: Option<u64>,
    /// The command line, without a NUL.
    pub cmdline: &'a [u8],
    /// The guest's memory.
    pub memory: &'a MemoryMap,
    /// Address of the ACPI root pointer, or 0 when there are no tables.
    pub rsdp: u64,
}

impl std::fmt::Debug for BootRequest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BootRequest")
            .field("kernel_size", &self.kernel.size())
            .field("initramfs_size", &self.initramfs_size)
            .field("cmdline", &self.cmdline.escape_ascii().to_string())
            .field("rsdp", &self.rsdp)
            .finish_non_exhaustive()
    }
}

/// How the guest is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootProtocol {
    /// Xen PVH: 32-bit protected mode, start info in EBX.
    Pvh,
    /// Linux 64-bit boot protocol: long mode, zero page in RSI.
    Linux64,
}

/// Everything the guest starts with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootPlan {
    /// How it is entered.
    pub protocol: BootProtocol,
    /// What goes where. No two pieces overlap, and all lie in RAM.
    pub pieces: Vec<Piece>,
    /// Registers of the boot CPU.
    pub entry: ReadyRegisters,
}

/// One range of guest memory and what it is to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First guest-physical address.
    pub at: u64,
    /// The content.
    pub source: PieceSource,
}

impl Piece {
    /// The range of guest memory.
    pub fn range(&self) -> Range {
        let size = match &self.source {
            PieceSource::Kernel { len, .. } | PieceSource::Initramfs { len } | PieceSource::Zero { len } => {
                *len
            }
            PieceSource::Bytes(bytes) => bytes.len() as u64,
        };
        Range { start: self.at, size }
    }
}

/// Where the content of a [`Piece`] comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PieceSource {
    /// A part of the kernel image.
    Kernel {
        /// Where it starts in the file.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// The initial RAM file system, whole.
    Initramfs {
        /// Number of bytes: the size that was given in the request.
        len: u64,
    },
    /// These bytes.
    Bytes(Vec<u8>),
    /// Zeros. Memory that is known to be fresh needs no copy.
    Zero {
        /// Number of bytes.
        len: u64,
    },
}

/// Finds out what the image is and plans its boot.
///
/// # Errors
/// The image is none that can be booted, is damaged, or does not fit into the guest's memory.
pub fn plan(request: &BootRequest<'_>) -> Result<BootPlan, BootError> {
    let size = request.kernel.size();
    if size == 0 {
        return Err(BootError::Empty);
    }
    if elf::is_elf(request.kernel)? {
        return pvh::plan(request);
    }
    if bzimage::is_bzimage(request.kernel)? {
        return bzimage::plan(request);
    }
    let seen = image::read(request.kernel, 0, size.min(8))?;
    Err(BootError::UnknownFormat {
        seen: seen.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "),
    })
}

/// The command line with its NUL, ready for [`layout::CMDLINE_START`].
fn cmdline_piece(cmdline: &[u8], kernel_limit: u64) -> Result<Piece, BootError> {
    let limit = kernel_limit.min(layout::CMDLINE_SIZE - 1);
    let len = cmdline.len() as u64;
    if len > limit {
        return Err(BootError::CmdlineTooLong { len, limit });
    }
    if let Some(position) = cmdline.iter().position(|byte| *byte == 0) {
        return Err(BootError::CmdlineNul { position });
    }
    let mut bytes = cmdline.to_vec();
    bytes.push(0);
    Ok(Piece { at: layout::CMDLINE_START, source: PieceSource::Bytes(bytes) })
}

/// Checks that a kernel may occupy `range`: it is RAM, and no boot data lies there.
fn check_load_range(what: &str, range: Range, memory: &MemoryMap) -> Result<(), BootError> {
    let what = || what.to_owned();
    let (start, end) = (range.start, range.end());
    if range.start.checked_add(range.size).is_none() {
        return Err(BootError::AddressOverflow { what: what(), start, size: range.size });
    }
    let boot_data = Range { start: 0, size: layout::BOOT_DATA_END };
    if range.overlaps(&boot_data) {
        return Err(BootError::OverlapsBootData { what: what(), start, end, limit: layout::BOOT_DATA_END });
    }
    if memory.ram().any(|ram| ram.contains(&range)) {
        return Ok(());
    }
    let hole = Range { start: layout::HOLE_START, size: layout::HOLE_END - layout::HOLE_START };
    if range.overlaps(&hole) {
        return Err(BootError::InHole { what: what(), start, end });
    }
    let ram_end = memory.ram().next_back().map_or(0, |ram| ram.end());
    if end > ram_end {
        return Err(BootError::BeyondMemory { what: what(), start, end, ram_end });
    }
    Err(BootError::NotRam { what: what(), start, end })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86_64::layout::ram_regions;

    fn memory() -> MemoryMap {
        MemoryMap::new(&ram_regions(64 << 20).unwrap(), &[]).unwrap()
    }

    fn plan_of(kernel: &[u8]) -> Result<BootPlan, BootError> {
        let memory = memory();
        plan(&BootRequest { kernel: &kernel, initramfs_size: None, cmdline: b"", memory: &memory, rsdp: 0 })
    }

    #[test]
    fn an_unknown_image_is_named_by_what_it_begins_with() {
        assert_eq!(plan_of(b"").unwrap_err().to_string(), "the image is empty");
        assert_eq!(
            plan_of(b"#!/bin/sh\n").unwrap_err().to_string(),
            "neither an ELF file nor a Linux bzImage: begins with 23 21 2f 62 69 6e 2f 73"
        );
        assert_eq!(
            plan_of(b"MZ").unwrap_err().to_string(),
            "neither an ELF file nor a Linux bzImage: begins with 4d 5a"
        );
        assert!(matches!(plan_of(&[0; 4096]), Err(BootError::UnknownFormat { .. })));
    }

    #[test]
    fn load_ranges_are_checked_against_memory() {
        let gib = 1u64 << 30;
        let memory = MemoryMap::new(&ram_regions(4 * gib).unwrap(), &[]).unwrap();
        let check = |start, size| check_load_range("segment 0", Range { start, size }, &memory);
        assert!(check(0x10_0000, gib).is_ok());
        assert!(check(4 * gib, gib).is_ok());
        assert!(check(0x4_0000, 0x1000).is_ok());
        assert_eq!(
            check(0x1000, 0x1000).unwrap_err().to_string(),
            "segment 0 at 0x1000..0x2000 overlaps the boot data below 0x30000"
        );
        assert_eq!(
            check(gib, 4 * gib).unwrap_err().to_string(),
            "segment 0 at 0x40000000..0x140000000 overlaps the memory hole 0xc0000000..0x100000000"
        );
        assert_eq!(
            check(4 * gib, gib + 1).unwrap_err().to_string(),
            "segment 0 at 0x100000000..0x140000001 is beyond the end of guest memory at 0x140000000"
        );
        assert_eq!(
            check(0x9_0000, 0x20_000).unwrap_err().to_string(),
            "segment 0 at 0x90000..0xb0000 is not in RAM"
        );
        assert_eq!(
            check(u64::MAX - 10, 20).unwrap_err().to_string(),
            "segment 0 at 0xfffffffffffffff5 of 0x14 bytes ends beyond the address space"
        );
    }

    #[test]
    fn command_lines_are_bounded_and_hold_no_nul() {
        assert_eq!(
            cmdline_piece(b"console=hvc0", 2047).unwrap().source,
            PieceSource::Bytes(b"console=hvc0\0".to_vec())
        );
        assert!(cmdline_piece(&[b'a'; 0xffff], u64::MAX).is_ok());
        assert_eq!(
            cmdline_piece(&[b'a'; 0x10000], u64::MAX).unwrap_err().to_string(),
            "command line of 65536 bytes: at most 65535"
        );
        assert_eq!(
            cmdline_piece(&[b'a'; 2048], 2047).unwrap_err().to_string(),
            "command line of 2048 bytes: at most 2047"
        );
        assert_eq!(
            cmdline_piece(b"a\0b", 2047).unwrap_err().to_string(),
            "command line has a NUL byte at position 1"
        );
    }
}
