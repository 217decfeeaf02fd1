//! Base address registers (PCI 3.0 section 6.2.5): what a BAR holds, and the register that the
//! guest sizes and moves it with.
//!
//! A BAR's content is a [`BarShape`]: handlers, windows onto host memory and doorbells at offsets.
//! [`BarShape::at`] gives the wiring of that shape at an address, as a value: moving a BAR is
//! staging another value.

use std::{fmt, sync::Arc};

use address_manager::{
    Arm, Doorbell, DoorbellSpec, Handler, HandlerRange, IoSpace, Owner, Slot, SlotFlags, SlotRole, Wired,
};
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::EventFd;

/// Width of a memory BAR's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// 32-bit address, one register.
    Memory32,
    /// 64-bit address, two registers.
    Memory64,
}

/// What a BAR is, fixed when the function is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarSpec {
    /// Number of its first register, 0 to 5 (0 to 4 for 64-bit ones).
    pub index: u8,
    /// Size in bytes: a power of two, 4096 at least (so that BARs never share a page).
    pub size: u64,
    /// Address width.
    pub kind: BarKind,
    /// Whether reads have no side effects.
    pub prefetchable: bool,
}

/// A handler inside a BAR.
#[derive(Clone)]
pub struct HandlerPart {
    /// Offset in the BAR.
    pub offset: u64,
    /// Length in bytes.
    pub size: u64,
    /// Who answers; sees offsets from `offset`.
    pub handler: Arc<dyn Handler>,
}

impl fmt::Debug for HandlerPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandlerPart({:#x}+{:#x})", self.offset, self.size)
    }
}

/// A window onto host memory inside a BAR.
#[derive(Clone, Debug)]
pub struct SlotPart {
    /// Offset in the BAR; page-aligned.
    pub offset: u64,
    /// Length in bytes; a multiple of the page size.
    pub size: u64,
    /// The host memory.
    pub mapping: Arc<MmapRegion>,
    /// Where in the mapping it begins.
    pub mapping_offset: u64,
    /// Access flags.
    pub flags: SlotFlags,
}

/// A doorbell inside a BAR.
#[derive(Clone, Debug)]
pub struct DoorbellPart {
    /// Offset in the BAR.
    pub offset: u64,
    /// Width of the write in bytes; 0 for any.
    pub width: u8,
    /// The value that rings, if only one does.
    pub data_match: Option<u64>,
    /// What it signals.
    pub event: Arc<EventFd>,
    /// When it is registered with the kernel.
    pub arm: Arm,
}

/// What a BAR holds.
#[derive(Clone, Debug, Default)]
pub struct BarShape {
    /// Its handlers.
    pub handlers: Vec<HandlerPart>,
    /// Its windows onto host memory.
    pub slots: Vec<SlotPart>,
    /// Its doorbells.
    pub doorbells: Vec<DoorbellPart>,
}

impl BarShape {
    /// The wiring of this shape with the BAR at `base`.
    pub fn at(&self, base: u64, owner: &Owner) -> Wired {
        let handlers = self.handlers.iter().map(|part| HandlerRange {
            space: IoSpace::Mmio,
            base: base.saturating_add(part.offset),
            size: part.size,
            handler: Arc::clone(&part.handler),
            owner: owner.clone(),
        });
        let slots = self.slots.iter().map(|part| Slot {
            base: base.saturating_add(part.offset),
            size: part.size,
            mapping: Arc::clone(&part.mapping),
            offset: part.mapping_offset,
            flags: part.flags,
            role: SlotRole::Device,
            owner: owner.clone(),
        });
        let doorbells = self.doorbells.iter().map(|part| Doorbell {
            spec: DoorbellSpec {
                space: IoSpace::Mmio,
                address: base.saturating_add(part.offset),
                width: part.width,
                data_match: part.data_match,
            },
            event: Arc::clone(&part.event),
            arm: part.arm,
            owner: owner.clone(),
        });
        Wired {
            slots: slots.collect(),
            handlers: handlers.collect(),
            doorbells: doorbells.collect(),
            ..Wired::default()
        }
    }
}

/// A BAR's registers as the guest sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarRegister {
    spec: BarSpec,
    address: u64,
}

impl BarRegister {
    /// A BAR at `address`, or unassigned at 0.
    ///
    /// # Panics
    /// The specification breaks the rules of [`BarSpec`], or `address` is not aligned to the size:
    /// both are decided by this program, not by the guest.
    pub fn new(spec: BarSpec, address: u64) -> Self {
        let registers = if spec.kind == BarKind::Memory64 { 2 } else { 1 };
        assert!(spec.size.is_power_of_two() && spec.size >= 4096, "BAR size {:#x}", spec.size);
        assert!(spec.index + registers <= 6, "BAR {} has no register", spec.index);
        let bar = Self { spec, address };
        assert!(bar.fits(address), "BAR {} of size {:#x} at {address:#x}", spec.index, spec.size);
        bar
    }

    /// What it is.
    pub fn spec(&self) -> BarSpec {
        self.spec
    }

    /// What the address bits hold, valid or not.
    pub fn raw_address(&self) -> u64 {
        self.address
    }

    /// The address, if the registers hold one: not 0, and not the pattern of a sizing write.
    pub fn address(&self) -> Option<u64> {
        let sizing = match self.spec.kind {
            BarKind::Memory32 => self.address == self.mask() & u64::from(u32::MAX),
            // Linux sizes the halves one after the other: a half that is all ones is no address.
            BarKind::Memory64 => {
                self.address >> 32 == u64::from(u32::MAX)
                    || (self.low_mask() != 0
                        && self.address & u64::from(u32::MAX) == self.low_mask()
                        && self.spec.size <= u64::from(u32::MAX))
            }
        };
        let in_space = self.address.checked_add(self.spec.size).is_some();
        (self.address != 0 && !sizing && in_space).then_some(self.address)
    }

    /// Whether `address` can be held: aligned to the size, and within the register width.
    pub fn fits(&self, address: u64) -> bool {
        address & (self.spec.size - 1) == 0
            && (self.spec.kind == BarKind::Memory64 || address <= u64::from(u32::MAX))
    }

    /// Sets the address bits; what does not fit the size is cut off as the hardware would.
    pub fn set_address(&mut self, address: u64) {
        self.address = address & self.mask();
        if self.spec.kind == BarKind::Memory32 {
            self.address &= u64::from(u32::MAX);
        }
    }

    /// Whether register `index` (0 to 5) belongs to this BAR.
    pub fn has_register(&self, index: u8) -> bool {
        index == self.spec.index
            || (self.spec.kind == BarKind::Memory64 && index.checked_sub(1) == Some(self.spec.index))
    }

    /// The value of register `index`, one of this BAR's.
    pub fn register(&self, index: u8) -> u32 {
        if index == self.spec.index { low_half(self.address) | self.flags() } else { high_half(self.address) }
    }

    /// The guest writes register `index`, one of this BAR's.
    pub fn set_register(&mut self, index: u8, value: u32) {
        let address = if index == self.spec.index {
            self.address & !u64::from(u32::MAX) | u64::from(value & !0xf)
        } else {
            self.address & u64::from(u32::MAX) | u64::from(value) << 32
        };
        self.set_address(address);
    }

    fn mask(&self) -> u64 {
        !(self.spec.size - 1)
    }

    fn low_mask(&self) -> u64 {
        self.mask() & u64::from(u32::MAX)
    }

    fn flags(&self) -> u32 {
        let width = if self.spec.kind == BarKind::Memory64 { 0b100 } else { 0 };
        width | if self.spec.prefetchable { 0b1000 } else { 0 }
    }
}

fn low_half(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or(u32::MAX)
}

fn high_half(value: u64) -> u32 {
    u32::try_from(value >> 32).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(kind: BarKind, size: u64, address: u64) -> BarRegister {
        BarRegister::new(BarSpec { index: 0, size, kind, prefetchable: false }, address)
    }

    #[test]
    fn a_32_bit_bar_is_sized_and_moved() {
        let mut bar = bar(BarKind::Memory32, 0x4000, 0xc000_0000);
        assert_eq!(bar.address(), Some(0xc000_0000));
        bar.set_register(0, u32::MAX);
        assert_eq!(bar.register(0), 0xffff_c000);
        assert_eq!(bar.address(), None);
        bar.set_register(0, 0xd000_4000);
        assert_eq!(bar.address(), Some(0xd000_4000));
        bar.set_register(0, 0xd000_4ff8);
        assert_eq!(bar.address(), Some(0xd000_4000));
    }

    #[test]
    fn a_64_bit_bar_is_sized_half_by_half() {
        let mut bar = bar(BarKind::Memory64, 0x8_0000, 0x40_0000_0000);
        assert_eq!(bar.register(0), 0b100);
        assert_eq!(bar.register(1), 0x40);
        bar.set_register(0, u32::MAX);
        assert_eq!(bar.register(0), 0xfff8_0004);
        assert_eq!(bar.address(), None);
        bar.set_register(0, 4);
        bar.set_register(1, u32::MAX);
        assert_eq!((bar.register(1), bar.address()), (u32::MAX, None));
        bar.set_register(1, 0x41);
        assert_eq!(bar.address(), Some(0x41_0000_0000));
        bar.set_register(1, 0);
        bar.set_register(0, 0xc010_0000);
        assert_eq!(bar.address(), Some(0xc010_0000));
    }

    #[test]
    fn a_bar_larger_than_4_gib_has_no_low_bits() {
        let mut bar = bar(BarKind::Memory64, 1 << 33, 1 << 40);
        bar.set_register(0, u32::MAX);
        assert_eq!(bar.register(0), 0b100);
        bar.set_register(1, u32::MAX);
        assert_eq!((bar.register(1), bar.address()), (u32::MAX - 1, None));
    }
}
