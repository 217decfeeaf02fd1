//! The guest's memory: the page tables, mapped on demand from ring 3, and the heap.
//!
//! Everything is mapped one to one. `boot.s` maps the first GiB; `reach` adds whole GiB as the program touches them:
//! memory write-back, everything else uncached. Nothing is ever unmapped and nothing on the heap is ever freed.

use core::fmt;
use core::sync::atomic::Ordering;

use crate::boot::pml4;
use crate::cpu::{Width, cpuid, read, write};
use crate::start_info::{Range, StartInfo};

const GIB: u64 = 1 << 30;
const MIB2: u64 = 2 << 20;
const PAGE: u64 = 4096;

/// The image lies below the heap (`guest.ld`).
const IMAGE_START: u64 = 1 << 20;
const HEAP_START: u64 = 2 << 20;
/// Memory from here on is free for the tests.
const HEAP_END_MAX: u64 = 32 << 20;

const PRESENT_WRITABLE_USER: u64 = 0x7;
const UNCACHED: u64 = 0x18;
const LARGE: u64 = 0x80;

/// How many windows of devices can be free for the tests.
const WINDOWS: usize = 16;

/// The lower half of the canonical addresses.
const VIRTUAL_BITS: u32 = 47;

/// Why memory cannot be had.
#[derive(Clone, Copy, Debug)]
pub enum MemoryError {
    /// The range is beyond the processor's physical addresses, or beyond what one half of the page tables can map.
    Beyond { bits: u32 },
    /// Not all of the range is memory that is free for the tests.
    NotFree { address: u64 },
    /// The heap is used up.
    HeapFull,
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Beyond { bits } => write!(f, "the range goes beyond {bits} address bits"),
            Self::NotFree { address } => write!(f, "the range at {address:#x} is not free memory"),
            Self::HeapFull => f.write_str("the guest's heap is full"),
        }
    }
}

/// All memory of the machine.
#[derive(Debug)]
pub struct Memory {
    start_info: &'static StartInfo,
    address_bits: u32,
    gib_pages: bool,
    heap_next: u64,
    heap_end: u64,
    /// Windows that devices show memory in, and how many: start and end.
    windows: [(u64, u64); WINDOWS],
    window_count: usize,
}

impl Memory {
    pub fn new(start_info: &'static StartInfo) -> Self {
        let extended = cpuid(0x8000_0000, 0).eax;
        let physical_bits = if extended >= 0x8000_0008 { cpuid(0x8000_0008, 0).eax & 0xff } else { 36 };
        let gib_pages = extended >= 0x8000_0001 && cpuid(0x8000_0001, 0).edx & (1 << 26) != 0;
        let heap_end = start_info
            .ram()
            .find(|range| range.start <= IMAGE_START && range.end() > HEAP_START)
            .map_or(HEAP_START, |range| range.end().min(HEAP_END_MAX));
        Self {
            start_info,
            address_bits: physical_bits.min(VIRTUAL_BITS),
            gib_pages,
            heap_next: HEAP_START,
            heap_end,
            windows: [(0, 0); WINDOWS],
            window_count: 0,
        }
    }

    /// Maps a range, whatever is there.
    pub fn reach(&mut self, address: u64, len_bytes: u64) -> Result<(), MemoryError> {
        let beyond = MemoryError::Beyond { bits: self.address_bits };
        let end = address.checked_add(len_bytes).ok_or(beyond)?;
        if end > 1 << self.address_bits {
            return Err(beyond);
        }
        if end > GIB && len_bytes > 0 {
            for gib in address / GIB..=(end - 1) / GIB {
                self.map_gib(gib)?;
            }
        }
        Ok(())
    }

    /// Maps a range after a check that the tests may do with it what they like: memory, and not the guest's own.
    pub fn reach_free(&mut self, address: u64, len_bytes: u64) -> Result<(), MemoryError> {
        let end = address.checked_add(len_bytes).ok_or(MemoryError::NotFree { address })?;
        let is_window = |(start, last): &(u64, u64)| *start <= address && end <= *last;
        if !self.free().any(|range| range.start <= address && end <= range.end())
            && !self.windows.iter().any(is_window)
        {
            return Err(MemoryError::NotFree { address });
        }
        self.reach(address, len_bytes)
    }

    /// Lets the tests do what they like with the memory that a device shows.
    pub fn free_window(&mut self, start: u64, size: u64) -> Result<(), MemoryError> {
        self.reach(start, size)?;
        let window = (start, start + size);
        if self.windows.contains(&window) {
            return Ok(());
        }
        *self.windows.get_mut(self.window_count).ok_or(MemoryError::HeapFull)? = window;
        self.window_count += 1;
        Ok(())
    }

    /// The ranges that are free for the tests, in the order of the memory map.
    pub fn free(&self) -> impl Iterator<Item = Range> {
        let heap_end = self.heap_end;
        self.start_info.ram().filter(move |range| range.end() > heap_end).map(move |range| {
            let start = range.start.max(heap_end);
            Range { start, len_bytes: range.end() - start, kind: range.kind }
        })
    }

    /// Takes zeroed memory from the heap.
    pub fn allocate(&mut self, len_bytes: u64, align: u64) -> Result<u64, MemoryError> {
        let start = self.allocate_raw(len_bytes, align)?;
        for address in (start..self.heap_next).step_by(8) {
            write(address, Width::Quad, 0);
        }
        Ok(start)
    }

    /// Takes memory from the heap, with whatever is in it.
    pub fn allocate_raw(&mut self, len_bytes: u64, align: u64) -> Result<u64, MemoryError> {
        let start = self.heap_next.next_multiple_of(align.max(8));
        let end = start
            .checked_add(len_bytes.next_multiple_of(8))
            .filter(|end| *end <= self.heap_end)
            .ok_or(MemoryError::HeapFull)?;
        self.heap_next = end;
        Ok(start)
    }

    /// Returns how much of the heap is left.
    pub fn heap_left_bytes(&self) -> u64 {
        self.heap_end - self.heap_next
    }

    fn map_gib(&mut self, gib: u64) -> Result<(), MemoryError> {
        let root = &pml4[usize::try_from(gib >> 9).unwrap_or(0) & 0xff];
        if root.load(Ordering::Relaxed) == 0 {
            let table = self.allocate(PAGE, PAGE)?;
            root.store(table | PRESENT_WRITABLE_USER, Ordering::Relaxed);
        }
        let entry = (root.load(Ordering::Relaxed) & !(PAGE - 1)) + 8 * (gib & 0x1ff);
        if read(entry, Width::Quad) != 0 {
            return Ok(());
        }
        let start = gib * GIB;
        let value = match self.uniform(start, GIB).filter(|_| self.gib_pages) {
            Some(caching) => start | PRESENT_WRITABLE_USER | LARGE | caching,
            None => self.directory(start)? | PRESENT_WRITABLE_USER,
        };
        write(entry, Width::Quad, value);
        Ok(())
    }

    /// Makes a page directory for the GiB at `start`.
    fn directory(&mut self, start: u64) -> Result<u64, MemoryError> {
        let table = self.allocate(PAGE, PAGE)?;
        for index in 0..512 {
            let page = start + index * MIB2;
            let caching = self.uniform(page, MIB2).unwrap_or(0);
            write(table + 8 * index, Width::Quad, page | PRESENT_WRITABLE_USER | LARGE | caching);
        }
        Ok(table)
    }

    /// Returns the caching bits of a range that is all memory or has none; `None` if it is mixed.
    fn uniform(&self, start: u64, len_bytes: u64) -> Option<u64> {
        let end = start + len_bytes;
        let mut ram = 0;
        for range in self.start_info.ram() {
            ram += range.end().min(end).saturating_sub(range.start.max(start));
        }
        match ram {
            0 => Some(UNCACHED),
            bytes if bytes == len_bytes => Some(0),
            _ => None,
        }
    }
}
