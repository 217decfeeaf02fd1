//! The Linux x86 boot protocol, entered in 64-bit mode (Linux `Documentation/arch/x86/boot.rst`).
//!
//! A bzImage is a real-mode part, which is not run here but holds the setup header, and a
//! protected-mode part, which unpacks the kernel. The second is loaded, the first's header is copied
//! into a zero page, and the boot CPU enters 0x200 bytes into the loaded part, in long mode with
//! identity-mapped memory.

use super::{
    BootError, BootPlan, BootProtocol, BootRequest, Piece, PieceSource, check_load_range, cmdline_piece,
    image::{self, Fields, ReadAt},
    initramfs, registers,
};
use crate::x86_64::layout::{self, Range, ZERO_PAGE_START};

/// The setup header, at the same offsets in the image and in the zero page.
mod header {
    pub const START: usize = 0x1f1;
    pub const SETUP_SECTORS: usize = 0x1f1;
    pub const PROTECTED_SIZE_16: usize = 0x1f4;
    pub const BOOT_FLAG: usize = 0x1fe;
    pub const JUMP_DISTANCE: usize = 0x201;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const LOADER_TYPE: usize = 0x210;
    pub const LOAD_FLAGS: usize = 0x211;
    pub const CODE32_START: usize = 0x214;
    pub const INITRAMFS_ADDRESS: usize = 0x218;
    pub const INITRAMFS_SIZE: usize = 0x21c;
    pub const CMDLINE_ADDRESS: usize = 0x228;
    pub const INITRAMFS_MAX: usize = 0x22c;
    pub const ALIGNMENT: usize = 0x230;
    pub const RELOCATABLE: usize = 0x234;
    pub const EXTENDED_LOAD_FLAGS: usize = 0x236;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const PREFERRED_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
    /// First byte after the last field that is looked at.
    pub const KNOWN_END: usize = 0x264;
}

/// Fields of the zero page outside the setup header (`struct boot_params`).
mod zero_page {
    pub const RSDP: usize = 0x070;
    pub const E820_COUNT: usize = 0x1e8;
    pub const E820_TABLE: usize = 0x2d0;
    /// The setup header ends here at the latest.
    pub const HEADER_LIMIT: usize = 0x290;
}

const BOOT_FLAG: u64 = 0xaa55;
const SECTOR: u64 = 512;
/// The oldest protocol with `xloadflags`.
const MIN_VERSION: u64 = 0x020c;
const LOADED_HIGH: u8 = 1 << 0;
const XLF_KERNEL_64: u16 = 1 << 0;
/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
const ENTRY64_OFFSET: u64 = 0x200;

/// Whether the image has the boot flag and the magic of a Linux setup header.
///
/// # Errors
/// The image cannot be read.
pub fn is_bzimage(image: &dyn ReadAt) -> Result<bool, BootError> {
    if image.size() < header::VERSION as u64 {
        return Ok(false);
    }
    let bytes = image::read(image, header::BOOT_FLAG as u64, 8)?;
    let fields = Fields(&bytes);
    Ok(fields.u16(0).map(u64::from) == Some(BOOT_FLAG) && bytes.get(4..8) == Some(b"HdrS".as_slice()))
}

/// Plans the boot of a bzImage.
///
/// # Errors
/// The image is damaged, too old, has no 64-bit entry point, or does not fit into the guest's
/// memory.
pub fn plan(request: &BootRequest<'_>) -> Result<BootPlan, BootError> {
    let setup = Setup::read(request.kernel)?;
    let load_address = setup.load_address(request)?;
    let occupied = Range { start: load_address, size: setup.memory_size() };

    let initramfs = request
        .initramfs_size
        .map(|size| initramfs::place(size, setup.initramfs_limit, request.memory, &[occupied]))
        .transpose()?;
    let cmdline = cmdline_piece(request.cmdline, setup.cmdline_limit)?;

    let zero_page = setup.zero_page(request, load_address, initramfs.as_ref().map(Piece::range));
    let registers = registers::linux64(load_address + ENTRY64_OFFSET, ZERO_PAGE_START);
    let content = PieceSource::Kernel { offset: setup.protected_offset, len: setup.protected_size };
    let mut pieces = vec![
        Piece { at: load_address, source: content },
        Piece { at: ZERO_PAGE_START, source: PieceSource::Bytes(zero_page) },
        cmdline,
        registers::identity_page_tables(),
        registers::gdt(&registers),
    ];
    pieces.extend(initramfs);
    Ok(BootPlan { protocol: BootProtocol::Linux64, pieces, entry: registers })
}

/// What the setup header says, checked.
struct Setup {
    /// The header's bytes, from [`header::START`] on.
    header: Vec<u8>,
    protected_offset: u64,
    protected_size: u64,
    /// First address an initramfs may not touch.
    initramfs_limit: u64,
    cmdline_limit: u64,
    preferred_address: u64,
    /// Memory the kernel needs from where it is loaded, until it looks at the memory map.
    init_size: u64,
    alignment: u64,
    relocatable: bool,
}

impl Setup {
    fn read(image: &dyn ReadAt) -> Result<Self, BootError> {
        let truncated =
            |what: &str, end: u64| BootError::Truncated { what: what.to_owned(), end, size: image.size() };
        let known_end = header::KNOWN_END as u64;
        if image.size() < known_end {
            return Err(truncated("the setup header", known_end));
        }
        let sector = image::read(image, 0, known_end)?;
        let fields = Fields(&sector);
        let byte = |offset| fields.u8(offset).unwrap_or_default();
        let half = |offset| fields.u16(offset).unwrap_or_default();
        let word = |offset| u64::from(fields.u32(offset).unwrap_or_default());

        let version = u64::from(half(header::VERSION));
        if version < MIN_VERSION {
            return Err(BootError::Field {
                what: "version of the Linux boot protocol",
                value: version,
                expected: "0x20c or later",
            });
        }
        if byte(header::LOAD_FLAGS) & LOADED_HIGH == 0 {
            return Err(BootError::Field {
                what: "bzImage load flags",
                value: byte(header::LOAD_FLAGS).into(),
                expected: "bit 0 set (loaded at 1 MiB)",
            });
        }
        let flags = half(header::EXTENDED_LOAD_FLAGS);
        if flags & XLF_KERNEL_64 == 0 {
            return Err(BootError::No64BitEntry { flags });
        }
        let alignment = word(header::ALIGNMENT);
        if !alignment.is_power_of_two() {
            return Err(BootError::Field {
                what: "bzImage kernel alignment",
                value: alignment,
                expected: "a power of two",
            });
        }

        // The jump at the header's start skips it, so its distance is the header's length. A later
        // protocol may have a longer header than we know; all of it has to reach the kernel.
        let header_end = header::MAGIC + usize::from(byte(header::JUMP_DISTANCE));
        if !(header::KNOWN_END..=zero_page::HEADER_LIMIT).contains(&header_end) {
            return Err(BootError::Field {
                what: "end of the setup header",
                value: header_end as u64,
                expected: "0x264 to 0x290",
            });
        }
        let header_size = (header_end - header::START) as u64;
        if image.size() < header_end as u64 {
            return Err(truncated("the setup header", header_end as u64));
        }
        let header = image::read(image, header::START as u64, header_size)?;

        let sectors = match byte(header::SETUP_SECTORS) {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let protected_offset = (sectors + 1) * SECTOR;
        let protected_size = word(header::PROTECTED_SIZE_16) * 16;
        if protected_size <= ENTRY64_OFFSET {
            return Err(BootError::Field {
                what: "size of the protected-mode part",
                value: protected_size,
                expected: "more than 0x200",
            });
        }
        let end = protected_offset + protected_size;
        if end > image.size() {
            return Err(truncated("the protected-mode part", end));
        }
        Ok(Self {
            header,
            protected_offset,
            protected_size,
            initramfs_limit: word(header::INITRAMFS_MAX) + 1,
            cmdline_limit: word(header::CMDLINE_SIZE),
            preferred_address: fields.u64(header::PREFERRED_ADDRESS).unwrap_or_default(),
            init_size: word(header::INIT_SIZE),
            alignment,
            relocatable: byte(header::RELOCATABLE) != 0,
        })
    }

    /// Memory the kernel needs from its load address on.
    fn memory_size(&self) -> u64 {
        self.init_size.max(self.protected_size)
    }

    /// The preferred address if the kernel fits there, else, for a relocatable kernel, the first
    /// aligned one above 1 MiB.
    fn load_address(&self, request: &BootRequest<'_>) -> Result<u64, BootError> {
        let size = self.memory_size();
        let preferred = Range { start: self.preferred_address, size };
        let refused = match check_load_range("kernel", preferred, request.memory) {
            Ok(()) if preferred.end() <= layout::HOLE_START => return Ok(preferred.start),
            Ok(()) => {
                BootError::InHole { what: "kernel".into(), start: preferred.start, end: preferred.end() }
            }
            Err(refused) => refused,
        };
        if !self.relocatable {
            return Err(refused);
        }
        let alignment = self.alignment;
        request
            .memory
            .ram()
            .filter_map(|ram| {
                let start = ram.start.max(layout::HIGH_RAM_START).checked_next_multiple_of(alignment)?;
                let range = Range { start, size };
                (ram.contains(&range) && range.end() <= layout::HOLE_START).then_some(start)
            })
            .next()
            .ok_or(BootError::KernelNoRoom { size, preferred: self.preferred_address, alignment })
    }

    fn zero_page(&self, request: &BootRequest<'_>, load_address: u64, initramfs: Option<Range>) -> Vec<u8> {
        let mut page = ZeroPage(vec![0; 4096]);
        page.put(header::START, &self.header);
        page.put(header::LOADER_TYPE, &[LOADER_UNDEFINED]);
        page.put_u32(header::CODE32_START, load_address);
        page.put_u32(header::CMDLINE_ADDRESS, layout::CMDLINE_START);
        if let Some(initramfs) = initramfs {
            page.put_u32(header::INITRAMFS_ADDRESS, initramfs.start);
            page.put_u32(header::INITRAMFS_SIZE, initramfs.size);
        }
        page.put(zero_page::RSDP, &request.rsdp.to_le_bytes());
        let count = u8::try_from(request.memory.entries().len()).unwrap_or(u8::MAX);
        page.put(zero_page::E820_COUNT, &[count]);
        page.put(zero_page::E820_TABLE, &request.memory.to_e820());
        page.0
    }
}

/// A page that is filled field by field, at offsets that are constants of this module.
struct ZeroPage(Vec<u8>);

impl ZeroPage {
    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// Writes an address or size that has been checked to lie below 4 GiB.
    fn put_u32(&mut self, offset: usize, value: u64) {
        let value = u32::try_from(value).expect("placed below 4 GiB");
        self.put(offset, &value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::x86_64::{boot::sample, layout::ram_regions, memory_map::MemoryMap};

    const MIB: u64 = 1 << 20;

    fn memory(size: u64) -> MemoryMap {
        MemoryMap::new(&ram_regions(size).unwrap(), &[]).unwrap()
    }

    fn plan_in(image: &[u8], memory: &MemoryMap, initramfs_size: Option<u64>) -> Result<BootPlan, BootError> {
        let request =
            BootRequest { kernel: &image, initramfs_size, cmdline: b"quiet", memory, rsdp: 0xe_0000 };
        crate::x86_64::boot::plan(&request)
    }

    fn message(image: &[u8]) -> String {
        plan_in(image, &memory(128 * MIB), None).unwrap_err().to_string()
    }

    /// A valid image with bytes replaced.
    fn patched(offset: usize, bytes: &[u8]) -> Vec<u8> {
        let mut image = sample::bzimage();
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
        image
    }

    #[test]
    fn zero_page_and_placement() {
        let plan = plan_in(&sample::bzimage(), &memory(128 * MIB), Some(5000)).unwrap();
        assert_eq!(plan.protocol, BootProtocol::Linux64);
        assert_eq!((plan.entry.rip, plan.entry.rsi), (0x100_0200, 0x7000));
        assert_eq!(
            plan.pieces[0],
            Piece { at: 0x100_0000, source: PieceSource::Kernel { offset: 2 * 512, len: 0x1000 } }
        );
        let initramfs = plan.pieces.last().unwrap();
        assert_eq!(
            (initramfs.at, &initramfs.source),
            (128 * MIB - 0x2000, &PieceSource::Initramfs { len: 5000 })
        );

        let PieceSource::Bytes(page) = &plan.pieces[1].source else { panic!() };
        let page = Fields(page);
        assert_eq!(page.u64(0x070), Some(0xe_0000));
        assert_eq!(page.u32(0x202), Some(u32::from_le_bytes(*b"HdrS")));
        assert_eq!(page.u8(0x210), Some(0xff));
        assert_eq!(page.u32(0x214), Some(0x100_0000));
        assert_eq!((page.u32(0x218), page.u32(0x21c)), (Some(0x7ff_e000), Some(5000)));
        assert_eq!(page.u32(0x228), Some(0x2_0000));
        assert_eq!(page.u8(0x1e8), Some(6));
        assert_eq!((page.u64(0x2d0), page.u64(0x2d8), page.u32(0x2e0)), (Some(0), Some(0x9_fc00), Some(1)));
        sample::check_pieces(&plan, &memory(128 * MIB));
    }

    #[test]
    fn a_relocatable_kernel_goes_where_it_fits() {
        let image = sample::bzimage();
        // 16 MiB and 32 MiB of working memory from there: 48 MiB are enough, less is not.
        assert_eq!(plan_in(&image, &memory(48 * MIB), None).unwrap().entry.rip, 0x100_0200);
        assert_eq!(plan_in(&image, &memory(40 * MIB), None).unwrap().entry.rip, 0x20_0200);
        assert_eq!(
            plan_in(&image, &memory(33 * MIB), None).unwrap_err().to_string(),
            "kernel needs 0x2000000 bytes of RAM at 0x1000000 or aligned to 0x200000 above 0x100000: there is none"
        );
        assert_eq!(
            plan_in(&patched(header::RELOCATABLE, &[0]), &memory(40 * MIB), None).unwrap_err().to_string(),
            "kernel at 0x1000000..0x3000000 is beyond the end of guest memory at 0x2800000"
        );
    }

    #[test]
    fn limits_of_the_image_are_kept() {
        let image = patched(header::INITRAMFS_MAX, &0x37ff_ffff_u32.to_le_bytes());
        let plan = plan_in(&image, &memory(3 << 30), Some(4096)).unwrap();
        assert_eq!(plan.pieces.last().unwrap().at, 0x3800_0000 - 4096);
        assert_eq!(
            message(&patched(header::CMDLINE_SIZE, &4u32.to_le_bytes())),
            "command line of 5 bytes: at most 4"
        );
    }

    #[test]
    fn bad_images_are_named() {
        assert_eq!(
            message(&patched(header::VERSION, &[0x0b, 0x02])),
            "version of the Linux boot protocol is 0x20b, expected 0x20c or later"
        );
        assert_eq!(
            message(&patched(header::EXTENDED_LOAD_FLAGS, &[2, 0])),
            "bzImage has no 64-bit entry point (xloadflags is 0x2)"
        );
        assert_eq!(
            message(&patched(header::LOAD_FLAGS, &[0])),
            "bzImage load flags is 0x0, expected bit 0 set (loaded at 1 MiB)"
        );
        assert_eq!(
            message(&patched(header::ALIGNMENT, &[1, 0, 0x20, 0])),
            "bzImage kernel alignment is 0x200001, expected a power of two"
        );
        assert_eq!(
            message(&patched(header::JUMP_DISTANCE, &[0xff])),
            "end of the setup header is 0x301, expected 0x264 to 0x290"
        );
        assert_eq!(
            message(&patched(header::PROTECTED_SIZE_16, &[0x20, 0, 0, 0])),
            "size of the protected-mode part is 0x200, expected more than 0x200"
        );
        let image = sample::bzimage();
        assert_eq!(
            message(&image[..image.len() - 1]),
            "truncated: the protected-mode part ends at byte 0x1400, the image has 0x13ff bytes"
        );
        assert_eq!(
            message(&image[..0x210]),
            "truncated: the setup header ends at byte 0x264, the image has 0x210 bytes"
        );
    }

    proptest! {
        #[test]
        fn damaged_images_never_panic(
            flips in prop::collection::vec((0usize..0x300, any::<u8>()), 0..8),
            len in 0usize..0x1400,
            cut: bool,
            ram in 1u64..1 << 21,
            initramfs in proptest::option::of(any::<u64>()),
        ) {
            let mut image = sample::bzimage();
            for (offset, byte) in flips {
                image[offset] = byte;
            }
            if cut {
                image.truncate(len);
            }
            let memory = memory(ram * 4096);
            if let Ok(plan) = plan_in(&image, &memory, initramfs) {
                sample::check_pieces(&plan, &memory);
            }
        }
    }
}
