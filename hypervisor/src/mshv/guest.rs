//! What an emulated instruction reaches: the guest's page tables, its memory, its devices.

use parking_lot::RwLock;

use super::{
    emulate::{Access, Environment, Fault},
    exits::{Processor, Translation},
    slots::{Backing, PAGE_SIZE, SlotTable},
};
use crate::ExitBus;

/// Error code bits of a page fault (Intel SDM volume 3, 4.7).
const PRESENT: u32 = 1 << 0;
const WRITE: u32 = 1 << 1;
const USER: u32 = 1 << 2;
const RESERVED: u32 = 1 << 3;

/// A page that was translated for this instruction.
#[derive(Clone, Copy, Debug)]
struct Translated {
    linear_page: u64,
    physical_page: u64,
    write: bool,
}

/// The [`Environment`] of one intercepted instruction.
pub(super) struct Guest<'a> {
    processor: &'a mut dyn Processor,
    slots: &'a RwLock<SlotTable>,
    bus: &'a mut dyn ExitBus,
    user: bool,
    /// An instruction touches two operands of two pages at most, except for a repeated one, which
    /// goes from page to page.
    translated: Vec<Translated>,
}

impl<'a> Guest<'a> {
    /// `user` tells whether the code runs at privilege level 3.
    pub fn new(
        processor: &'a mut dyn Processor,
        slots: &'a RwLock<SlotTable>,
        bus: &'a mut dyn ExitBus,
        user: bool,
    ) -> Self {
        Self { processor, slots, bus, user, translated: Vec::new() }
    }

    /// Enters the translation that came with the intercept, for the kind of access that the
    /// processor had checked. A read says nothing about writes: a string instruction may go on to
    /// write a page that the guest's tables let it only read.
    pub fn knows(&mut self, linear: u64, physical: u64, write: bool) {
        let page = |address| address / PAGE_SIZE * PAGE_SIZE;
        self.translated.push(Translated { linear_page: page(linear), physical_page: page(physical), write });
    }

    /// Reads the bytes of an instruction: from memory, never from a device, and not beyond the end
    /// of the page. Returns how many were read.
    pub fn fetch(&mut self, address: u64, bytes: &mut [u8]) -> Result<usize, Fault> {
        let to_end = usize::try_from(PAGE_SIZE - address % PAGE_SIZE).unwrap_or(1);
        let length = bytes.len().min(to_end);
        let physical = self.translate(address, Access::Read)?;
        let Some(part) = bytes.get_mut(..length) else { return Ok(0) };
        match self.slots.read().read(physical, part) {
            Backing::Memory => Ok(length),
            Backing::ReadOnly | Backing::Absent => {
                Err(Fault::Host(format!("no memory at {physical:#x}, where the guest executes")))
            }
        }
    }

    fn translate(&mut self, address: u64, access: Access) -> Result<u64, Fault> {
        let offset = address % PAGE_SIZE;
        let linear_page = address - offset;
        let write = access == Access::Write;
        let known = self.translated.iter().find(|t| t.linear_page == linear_page && (t.write || !write));
        if let Some(known) = known {
            return Ok(known.physical_page | offset);
        }
        let fault = |bits: u32| {
            let write = if write { WRITE } else { 0 };
            let user = if self.user { USER } else { 0 };
            Fault::Page { address, error_code: bits | write | user }
        };
        match self.processor.translate(linear_page, access).map_err(|error| Fault::Host(chain(&error)))? {
            Translation::Page(physical) => {
                let physical_page = physical / PAGE_SIZE * PAGE_SIZE;
                if self.translated.len() >= 8 {
                    self.translated.remove(1);
                }
                self.translated.push(Translated { linear_page, physical_page, write });
                Ok(physical_page | offset)
            }
            Translation::NotPresent => Err(fault(0)),
            Translation::Forbidden => Err(fault(PRESENT)),
            Translation::ReservedBits => Err(fault(PRESENT | RESERVED)),
            Translation::Impossible(why) => {
                Err(Fault::Host(format!("no translation of {address:#x}: {why}")))
            }
        }
    }

    /// Calls `each` with the physical address, and the range within the access, of each page of it.
    fn pages(
        &mut self,
        address: u64,
        size: usize,
        access: Access,
        mut each: impl FnMut(&mut Self, u64, std::ops::Range<usize>),
    ) -> Result<(), Fault> {
        let Some(last) = size.checked_sub(1) else { return Ok(()) };
        let last =
            u64::try_from(last).ok().and_then(|last| address.checked_add(last)).ok_or(Fault::Protection)?;
        let first = self.translate(address, access)?;
        // No access is as long as a page, so that it touches two at most.
        let in_first = usize::try_from(PAGE_SIZE - address % PAGE_SIZE).unwrap_or(size).min(size);
        if in_first == size {
            each(self, first, 0..size);
            return Ok(());
        }
        // Both translations come before the first byte moves.
        let second = self.translate(last - last % PAGE_SIZE, access)?;
        each(self, first, 0..in_first);
        each(self, second, in_first..size);
        Ok(())
    }
}

impl Environment for Guest<'_> {
    fn probe(&mut self, address: u64, size: usize, access: Access) -> Result<(), Fault> {
        self.pages(address, size, access, |_, _, _| {})
    }

    fn read(&mut self, address: u64, data: &mut [u8]) -> Result<(), Fault> {
        let size = data.len();
        self.pages(address, size, Access::Read, |guest, physical, range| {
            let Some(part) = data.get_mut(range) else { return };
            // The lock is let go before the bus is called, which may want to change slots.
            let backing = guest.slots.read().read(physical, part);
            if backing != Backing::Memory {
                guest.bus.mmio_read(physical, part);
            }
        })
    }

    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Fault> {
        self.pages(address, data.len(), Access::Write, |guest, physical, range| {
            let Some(part) = data.get(range) else { return };
            // Only a write that is for memory needs the lock alone.
            let known = guest.slots.read().backing(physical, true);
            let done =
                known == Backing::Memory && guest.slots.write().write(physical, part) == Backing::Memory;
            if !done {
                guest.bus.mmio_write(physical, part);
            }
        })
    }

    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        self.bus.port_read(port, data);
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        self.bus.port_write(port, data);
    }
}

/// An error and what caused it, on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}
