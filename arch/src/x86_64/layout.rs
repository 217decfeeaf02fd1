//! The guest-physical address map: the fixed places, and where RAM and the 64-bit device window go.
//!
//! Constants and arithmetic only. Which devices get which addresses inside the windows is
//! `vmm::layout`'s business; what the map looks like to the guest is [`memory_map`](super::memory_map)'s.
//!
//! ```text
//! 0x0000_0000  boot data: GDT, start info, page tables, command line     RAM
//! 0x0003_0000  free RAM, left to the guest's AP trampoline                RAM
//! 0x0009_fc00  extended BIOS data area                                    reserved
//! 0x000e_0000  ACPI: RSDP and, when they fit, all tables                  reserved
//! 0x000e_f000  VM generation id, in a page of its own                     reserved
//! 0x000f_0000  SMBIOS                                                     reserved
//! 0x000f_fff0  code that asks for a reset, where a BIOS begins            reserved
//! 0x0010_0000  RAM up to its end, at most up to the hole
//! 0xc000_0000  32-bit PCI window, 512 MiB                                 the hole begins
//! 0xe000_0000  ECAM, one bus (1 MiB) a PCI segment                        reserved
//! 0xf000_0000  platform devices with registers in memory
//! 0xfec0_0000  IOAPIC
//! 0xfee0_0000  local APICs
//! 0xfeff_c000  pages that KVM on Intel hosts takes for itself             reserved
//! 0xff00_0000  firmware image that is data only, ending at 4 GiB          the hole ends
//! 0x1_0000_0000  RAM above the hole, then memory that may be hotplugged
//!              64-bit PCI window, up to the end of the address space
//! ```
//!
//! The hole starts where OVMF's Cloud Hypervisor platform expects it: that firmware assumes a
//! 32-bit device window from 0xc000_0000, one contiguous stretch of RAM from 1 MiB to the highest
//! RAM address below 4 GiB, and SMBIOS at 0xf_0000.

use thiserror::Error;

/// Size of a page, and the alignment of everything that becomes a memory slot.
pub const PAGE_SIZE: u64 = 0x1000;

/// Boot data that this crate writes lies in `[BOOT_DATA_START, BOOT_DATA_END)`.
pub const BOOT_DATA_START: u64 = 0x500;
/// Global descriptor table of the boot CPU.
pub const GDT_START: u64 = 0x500;
/// Room for the global descriptor table.
pub const GDT_SIZE: u64 = 0x100;
/// PVH start info (`hvm_start_info`).
pub const PVH_START_INFO_START: u64 = 0x6000;
/// Room for the PVH start info.
pub const PVH_START_INFO_SIZE: u64 = 0x40;
/// PVH module list, one entry: the initramfs.
pub const PVH_MODULES_START: u64 = 0x6040;
/// Room for the PVH module list.
pub const PVH_MODULES_SIZE: u64 = 0x40;
/// Linux zero page (`boot_params`).
pub const ZERO_PAGE_START: u64 = 0x7000;
/// Size of the Linux zero page.
pub const ZERO_PAGE_SIZE: u64 = PAGE_SIZE;
/// PVH memory map.
pub const PVH_MEMORY_MAP_START: u64 = 0x8000;
/// Room for the PVH memory map.
pub const PVH_MEMORY_MAP_SIZE: u64 = PAGE_SIZE;
/// Page tables of the 64-bit Linux entry: a PML4, a PDPT, and four page directories.
pub const PAGE_TABLES_START: u64 = 0x9000;
/// Room for the page tables.
pub const PAGE_TABLES_SIZE: u64 = 6 * PAGE_SIZE;
/// Stack of the boot CPU, growing down from the end of this page.
pub const BOOT_STACK_START: u64 = 0xf000;
/// Size of that stack.
pub const BOOT_STACK_SIZE: u64 = PAGE_SIZE;
/// Kernel command line, NUL-terminated.
pub const CMDLINE_START: u64 = 0x2_0000;
/// Room for the command line with its NUL.
pub const CMDLINE_SIZE: u64 = 0x1_0000;
/// End of the boot data.
pub const BOOT_DATA_END: u64 = CMDLINE_START + CMDLINE_SIZE;

/// Extended BIOS data area: empty, and reserved because guests expect it so.
pub const EBDA_START: u64 = 0x9_fc00;
/// End of conventional memory, and of the extended BIOS data area.
pub const EBDA_END: u64 = 0xa_0000;
/// ACPI tables; the RSDP is first, where a guest that searches for it looks (ACPI 6.5, 5.2.5.1).
pub const ACPI_START: u64 = 0xe_0000;
/// Room for ACPI tables below 1 MiB. Larger sets keep only the RSDP here.
pub const ACPI_SIZE: u64 = 0xf000;
/// The VM generation id, alone in its page: the guest maps it cached whatever it does with its neighbours.
pub const GENERATION_ID_START: u64 = ACPI_START + ACPI_SIZE;
/// Size of the generation id.
pub const GENERATION_ID_SIZE: u64 = 16;
/// SMBIOS entry point and table (SMBIOS 3.0, 5.2.2: 0xf_0000 to 0xf_ffff is searched).
pub const SMBIOS_START: u64 = 0xf_0000;
/// Room for SMBIOS.
pub const SMBIOS_SIZE: u64 = 0xfff0;
/// Where software that reboots through a BIOS jumps to, in real mode.
pub const RESET_VECTOR_START: u64 = SMBIOS_START + SMBIOS_SIZE;
/// Room for what it finds.
pub const RESET_VECTOR_SIZE: u64 = 16;
/// First byte that kernels are loaded to.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// Where RAM below 4 GiB ends at the latest, and the hole for devices begins.
pub const HOLE_START: u64 = 0xc000_0000;
/// Where the hole ends and RAM goes on.
pub const HOLE_END: u64 = 0x1_0000_0000;
/// 32-bit PCI window.
pub const PCI32_START: u64 = HOLE_START;
/// Size of the 32-bit PCI window.
pub const PCI32_SIZE: u64 = 512 << 20;
/// Configuration space in memory (ECAM) of PCI segment 0; the others follow.
pub const ECAM_START: u64 = 0xe000_0000;
/// Size of the configuration space of one segment: one bus.
pub const ECAM_SEGMENT_SIZE: u64 = 1 << 20;
/// Greatest number of PCI segments.
pub const MAX_PCI_SEGMENTS: u16 = 96;
/// Room for the configuration spaces of all segments.
pub const ECAM_SIZE: u64 = 256 << 20;
/// Platform devices with registers in memory.
pub const PLATFORM_MMIO_START: u64 = 0xf000_0000;
/// Size of the window of platform devices.
pub const PLATFORM_MMIO_SIZE: u64 = 0x0ec0_0000;
/// IOAPIC registers.
pub const IOAPIC_START: u64 = 0xfec0_0000;
/// Size of the IOAPIC's registers.
pub const IOAPIC_SIZE: u64 = PAGE_SIZE;
/// Local APIC registers, and the target of message-signalled interrupts.
pub const LOCAL_APIC_START: u64 = 0xfee0_0000;
/// Range of message-signalled interrupts.
pub const LOCAL_APIC_SIZE: u64 = 1 << 20;
/// Identity page table of KVM on Intel hosts without unrestricted guest (KVM API 4.64).
pub const KVM_IDENTITY_MAP_START: u64 = 0xfeff_c000;
/// Size of the identity page table.
pub const KVM_IDENTITY_MAP_SIZE: u64 = PAGE_SIZE;
/// Task state segment of KVM on Intel hosts (KVM API 4.34).
pub const KVM_TSS_START: u64 = 0xfeff_d000;
/// Size of that task state segment.
pub const KVM_TSS_SIZE: u64 = 3 * PAGE_SIZE;
/// Lowest address of a data-only firmware image, which ends at [`HOLE_END`].
pub const FLASH_START: u64 = 0xff00_0000;

/// Least number of physical address bits of a guest: what the 64-bit architecture begins with.
pub const MIN_PHYS_BITS: u8 = 36;
/// Greatest number of physical address bits (Intel SDM volume 3, 4.1.4).
pub const MAX_PHYS_BITS: u8 = 52;

/// The 64-bit PCI window starts at a multiple of this, so that a huge BAR wastes little.
const PCI64_ALIGNMENT: u64 = 1 << 30;

/// A range of guest-physical addresses, `[start, start + size)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Number of bytes.
    pub size: u64,
}

impl Range {
    /// The first address after the range; saturating for a range that no address space holds.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.size)
    }

    /// Whether the two ranges share a byte.
    pub fn overlaps(&self, other: &Range) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// Whether `other` lies wholly inside this range.
    pub fn contains(&self, other: &Range) -> bool {
        self.start <= other.start && other.start.checked_add(other.size).is_some_and(|end| end <= self.end())
    }
}

/// Why guest memory cannot be laid out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// No memory at all.
    #[error("memory size is 0")]
    NoMemory,

    /// Not a whole number of pages.
    #[error("memory size {size:#x} is not a multiple of the page size, 4096")]
    Unaligned {
        /// The size asked for, in bytes.
        size: u64,
    },

    /// More than can be addressed.
    #[error("memory of {size:#x} bytes does not fit into an address space of {phys_bits} bits")]
    TooLarge {
        /// The size asked for, in bytes.
        size: u64,
        /// Physical address bits of the guest.
        phys_bits: u8,
    },

    /// A width that no guest of this architecture has.
    #[error("{phys_bits} physical address bits: expected {MIN_PHYS_BITS} to {MAX_PHYS_BITS}")]
    PhysBits {
        /// The width asked for.
        phys_bits: u8,
    },

    /// Nothing is left for devices above RAM.
    #[error("RAM up to {ram_end:#x} leaves no room for 64-bit devices in {phys_bits} address bits")]
    NoDeviceWindow {
        /// First address after RAM and memory that may be hotplugged.
        ram_end: u64,
        /// Physical address bits of the guest.
        phys_bits: u8,
    },

    /// No such PCI segment.
    #[error("PCI segment {segment}: at most {MAX_PCI_SEGMENTS} segments")]
    Segment {
        /// The segment asked for.
        segment: u16,
    },

    /// A firmware image that cannot be mapped below 4 GiB.
    #[error("firmware image of {size:#x} bytes: expected a multiple of 4096 up to {max:#x}", max = HOLE_END - FLASH_START)]
    Flash {
        /// Size of the image in bytes.
        size: u64,
    },

    /// Two entries of the memory map claim the same bytes.
    #[error("memory map: {first:#x}..{first_end:#x} and {second:#x}..{second_end:#x} overlap")]
    Overlap {
        /// Start of the lower entry.
        first: u64,
        /// End of the lower entry.
        first_end: u64,
        /// Start of the higher entry.
        second: u64,
        /// End of the higher entry.
        second_end: u64,
    },

    /// The memory map has more entries than the boot protocols carry.
    #[error("memory map of {entries} entries: at most {max}")]
    TooManyEntries {
        /// Number of entries.
        entries: usize,
        /// Most that the boot protocols carry.
        max: usize,
    },
}

/// Where RAM of `size` bytes lies: below the hole, and what is left above it.
///
/// # Errors
/// The size is zero, not a multiple of the page size, or beyond what 52 bits address.
pub fn ram_regions(size: u64) -> Result<Vec<Range>, LayoutError> {
    place_ram(0, size)
}

/// Where the bytes `[offset, offset + size)` of the guest's RAM lie, when all RAM is counted from 0
/// without the hole. Zones are placed one after another with it: a zone that straddles the hole
/// becomes two ranges.
///
/// # Errors
/// The size is zero, offset or size is not a multiple of the page size, or the end is beyond what
/// 52 bits address.
pub fn place_ram(offset: u64, size: u64) -> Result<Vec<Range>, LayoutError> {
    if size == 0 {
        return Err(LayoutError::NoMemory);
    }
    for value in [offset, size] {
        if !value.is_multiple_of(PAGE_SIZE) {
            return Err(LayoutError::Unaligned { size: value });
        }
    }
    let too_large = LayoutError::TooLarge { size, phys_bits: MAX_PHYS_BITS };
    let end = offset.checked_add(size).ok_or(too_large.clone())?;
    let hole = HOLE_END - HOLE_START;
    if end > (1 << MAX_PHYS_BITS) - hole {
        return Err(too_large);
    }
    let mut ranges = Vec::with_capacity(2);
    if offset < HOLE_START {
        ranges.push(Range { start: offset, size: end.min(HOLE_START) - offset });
    }
    if end > HOLE_START {
        let start = offset.max(HOLE_START);
        ranges.push(Range { start: start + hole, size: end - start });
    }
    Ok(ranges)
}

/// The 64-bit PCI window: from the end of RAM (and of what may be hotplugged), at least 4 GiB, to
/// the end of the guest's physical address space.
///
/// # Errors
/// The width is none that a guest can have, or RAM leaves nothing.
pub fn pci64_window(ram_end: u64, phys_bits: u8) -> Result<Range, LayoutError> {
    if !(MIN_PHYS_BITS..=MAX_PHYS_BITS).contains(&phys_bits) {
        return Err(LayoutError::PhysBits { phys_bits });
    }
    let end = 1u64 << phys_bits;
    ram_end
        .max(HOLE_END)
        .checked_next_multiple_of(PCI64_ALIGNMENT)
        .filter(|start| *start < end)
        .map(|start| Range { start, size: end - start })
        .ok_or(LayoutError::NoDeviceWindow { ram_end, phys_bits })
}

/// The configuration space in memory of one PCI segment.
///
/// # Errors
/// The segment is beyond [`MAX_PCI_SEGMENTS`].
pub fn ecam(segment: u16) -> Result<Range, LayoutError> {
    if segment >= MAX_PCI_SEGMENTS {
        return Err(LayoutError::Segment { segment });
    }
    Ok(Range { start: ECAM_START + u64::from(segment) * ECAM_SEGMENT_SIZE, size: ECAM_SEGMENT_SIZE })
}

/// Where a data-only firmware image of `size` bytes is mapped: its end is at 4 GiB, so that the
/// reset vector is in its last 16 bytes.
///
/// # Errors
/// The size is zero, not a multiple of the page size, or larger than the room for it.
pub fn flash(size: u64) -> Result<Range, LayoutError> {
    if size == 0 || !size.is_multiple_of(PAGE_SIZE) || size > HOLE_END - FLASH_START {
        return Err(LayoutError::Flash { size });
    }
    Ok(Range { start: HOLE_END - size, size })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every fixed place, in the order of the map.
    const PLACES: &[(&str, u64, u64)] = &[
        ("GDT", GDT_START, GDT_SIZE),
        ("PVH start info", PVH_START_INFO_START, PVH_START_INFO_SIZE),
        ("PVH modules", PVH_MODULES_START, PVH_MODULES_SIZE),
        ("zero page", ZERO_PAGE_START, ZERO_PAGE_SIZE),
        ("PVH memory map", PVH_MEMORY_MAP_START, PVH_MEMORY_MAP_SIZE),
        ("page tables", PAGE_TABLES_START, PAGE_TABLES_SIZE),
        ("boot stack", BOOT_STACK_START, BOOT_STACK_SIZE),
        ("command line", CMDLINE_START, CMDLINE_SIZE),
        ("EBDA", EBDA_START, EBDA_END - EBDA_START),
        ("ACPI", ACPI_START, ACPI_SIZE),
        ("generation id", GENERATION_ID_START, PAGE_SIZE),
        ("SMBIOS", SMBIOS_START, SMBIOS_SIZE),
        ("reset vector", RESET_VECTOR_START, RESET_VECTOR_SIZE),
        ("high RAM", HIGH_RAM_START, HOLE_START - HIGH_RAM_START),
        ("32-bit PCI", PCI32_START, PCI32_SIZE),
        ("ECAM", ECAM_START, ECAM_SIZE),
        ("platform", PLATFORM_MMIO_START, PLATFORM_MMIO_SIZE),
        ("IOAPIC", IOAPIC_START, IOAPIC_SIZE),
        ("local APIC", LOCAL_APIC_START, LOCAL_APIC_SIZE),
        ("KVM identity map", KVM_IDENTITY_MAP_START, KVM_IDENTITY_MAP_SIZE),
        ("KVM TSS", KVM_TSS_START, KVM_TSS_SIZE),
        ("flash", FLASH_START, HOLE_END - FLASH_START),
    ];

    #[test]
    fn fixed_places_are_in_order_and_disjoint() {
        for pair in PLACES.windows(2) {
            let [(name, start, size), (next, next_start, _)] = pair else { unreachable!() };
            assert!(start + size <= *next_start, "{name} runs into {next}");
        }
        assert_eq!(PLACES.last().map(|(_, start, size)| start + size), Some(HOLE_END));
    }

    #[test]
    fn the_hypervisor_takes_the_pages_that_are_kept_for_it() {
        use hypervisor::x86_64::{IDENTITY_MAP_ADDRESS, TSS_ADDRESS};
        assert_eq!((IDENTITY_MAP_ADDRESS, TSS_ADDRESS), (KVM_IDENTITY_MAP_START, KVM_TSS_START));
    }

    #[test]
    fn boot_data_bounds_hold_all_boot_data() {
        for (name, start, size) in &PLACES[..8] {
            assert!(*start >= BOOT_DATA_START && start + size <= BOOT_DATA_END, "{name}");
        }
        assert!(PLACES[8].1 >= BOOT_DATA_END);
    }

    #[test]
    fn ecam_of_every_segment_fits() {
        assert!(u64::from(MAX_PCI_SEGMENTS) * ECAM_SEGMENT_SIZE <= ECAM_SIZE);
        assert_eq!(ecam(3).unwrap().start, 0xe030_0000);
        assert_eq!(ecam(MAX_PCI_SEGMENTS), Err(LayoutError::Segment { segment: 96 }));
    }

    #[test]
    fn ram_is_split_at_the_hole() {
        let gib = 1 << 30;
        assert_eq!(ram_regions(512 << 20).unwrap(), [Range { start: 0, size: 512 << 20 }]);
        assert_eq!(ram_regions(3 * gib).unwrap(), [Range { start: 0, size: 3 * gib }]);
        assert_eq!(
            ram_regions(3 * gib + 4096).unwrap(),
            [Range { start: 0, size: 3 * gib }, Range { start: HOLE_END, size: 4096 }]
        );
        assert_eq!(
            place_ram(4 * gib, gib).unwrap(),
            [Range { start: 5 * gib, size: gib }],
            "a zone above the hole"
        );
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert_eq!(ram_regions(0), Err(LayoutError::NoMemory));
        assert_eq!(ram_regions(4097), Err(LayoutError::Unaligned { size: 4097 }));
        for size in [!0xfff, 1 << 52] {
            assert_eq!(ram_regions(size), Err(LayoutError::TooLarge { size, phys_bits: 52 }));
        }
        assert!(place_ram(!0xfff, 4096).is_err());
    }

    #[test]
    fn device_window_follows_ram() {
        assert_eq!(pci64_window(1 << 29, 46).unwrap(), Range { start: HOLE_END, size: (1 << 46) - HOLE_END });
        assert_eq!(pci64_window((5 << 30) + 4096, 39).unwrap().start, 6 << 30);
        assert!(pci64_window(1 << 40, 39).is_err());
        assert!(pci64_window(u64::MAX, 46).is_err());
        assert_eq!(pci64_window(0, 64), Err(LayoutError::PhysBits { phys_bits: 64 }));
    }

    #[test]
    fn flash_ends_at_4_gib() {
        assert_eq!(flash(4 << 20).unwrap(), Range { start: 0xffc0_0000, size: 4 << 20 });
        assert!(flash(0).is_err());
        assert!(flash(17 << 20).is_err());
        assert!(flash(100).is_err());
    }

    proptest! {
        #[test]
        fn placed_ram_keeps_its_size_and_avoids_the_hole(offset in 0u64..1 << 30, size in 1u64..1 << 30) {
            let (offset, size) = (offset * PAGE_SIZE, size * PAGE_SIZE);
            let ranges = place_ram(offset, size).unwrap();
            prop_assert_eq!(ranges.iter().map(|range| range.size).sum::<u64>(), size);
            let hole = Range { start: HOLE_START, size: HOLE_END - HOLE_START };
            for range in &ranges {
                prop_assert!(!range.overlaps(&hole));
            }
        }

        #[test]
        fn nothing_panics(offset: u64, size: u64, bits: u8) {
            let _ = place_ram(offset, size);
            let _ = pci64_window(offset, bits);
            let _ = flash(size);
        }
    }
}
