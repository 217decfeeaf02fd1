//! The other processors: starting them, waking them, and the loop in which they wait for jobs.
//!
//! All are started by one broadcast, so nothing needs to know their APIC IDs before they report themselves. They leave
//! ring 0 at once and wait halted; each processor has a vector of its own for wake-ups, whose counter it waits on.

#![expect(unsafe_code, reason = "other processors enter from assembly")]

use core::sync::atomic::{AtomicU64, Ordering};

use crate::boot::{self, MAX_CPUS, address};
use crate::cpu::{self, Width};
use crate::memory::{Memory, MemoryError};
use crate::start_info::{Range, StartInfo};
use crate::{apic, interrupts, jobs};

/// Page below 1 MiB that the trampoline is copied to; free of what Cumulet and QEMU put there for the boot.
const TRAMPOLINE_PAGE: u8 = 0x10;
const TRAMPOLINE: u64 = TRAMPOLINE_PAGE as u64 * 4096;
const STACK_BYTES: u64 = 16 << 10;

/// How long the processors that the ACPI tables name may take to come up.
const WAIT_ALL_TSC: u64 = 20_000_000_000;
/// How long to look for processors where no table says how many there are.
const WAIT_ANY_TSC: u64 = 5_000_000;

/// Vector of processor `n`'s wake-ups is this plus `n`.
const VECTOR_WAKE: u8 = 0x80;

/// APIC ID of each processor that reported itself, plus 1; 0 if it has not.
static APIC_IDS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Starts all other processors. `listed` is how many the ACPI tables list, this one included.
pub fn start(memory: &mut Memory, start_info: &StartInfo, listed: Option<usize>) -> Result<(), MemoryError> {
    APIC_IDS[0].store(apic::id() + 1, Ordering::Release);
    let is_ram = |range: &Range| range.start <= TRAMPOLINE && range.end() >= TRAMPOLINE + 4096;
    if listed == Some(1) || !start_info.ram().any(is_ram) {
        return Ok(());
    }
    let wanted = listed.unwrap_or(MAX_CPUS).min(MAX_CPUS);
    for index in 1..wanted {
        let stack = memory.allocate_raw(STACK_BYTES, 4096)?;
        // As a call would leave it: 16-byte aligned but for the return address.
        boot::ap_user_stacks[index].store(stack + STACK_BYTES - 8, Ordering::Relaxed);
        let base = address(&boot::tss[index]);
        let descriptor = &boot::gdt[6 + 2 * index];
        descriptor.store(descriptor.load(Ordering::Relaxed) | (base & 0xff_ffff) << 16, Ordering::Relaxed);
    }
    let from = address(&boot::ap_trampoline);
    for offset in 0..address(&boot::ap_trampoline_end) - from {
        cpu::write(TRAMPOLINE + offset, Width::Byte, cpu::read(from + offset, Width::Byte));
    }
    apic::start_others(TRAMPOLINE_PAGE);
    let started = cpu::tsc();
    let patience = if listed.is_some() { WAIT_ALL_TSC } else { WAIT_ANY_TSC };
    while online() < wanted && cpu::tsc().wrapping_sub(started) < patience {
        core::hint::spin_loop();
    }
    Ok(())
}

/// Returns how many processors run, this one included.
pub fn online() -> usize {
    indices().count()
}

/// The numbers of the processors that run: 0 is the boot processor.
pub fn indices() -> impl Iterator<Item = usize> + Clone {
    (0..MAX_CPUS).filter(|index| APIC_IDS[*index].load(Ordering::Acquire) != 0)
}

/// Returns the APIC ID of a processor that runs.
pub fn apic_id(index: usize) -> Option<u64> {
    APIC_IDS.get(index)?.load(Ordering::Acquire).checked_sub(1)
}

/// Wakes a processor, so that it looks at its job.
pub fn wake(index: usize) {
    if let Some(id) = apic_id(index) {
        apic::send(id, wake_vector(index));
    }
}

/// Returns the vector that wakes a processor; its counter is the word to wait on.
pub fn wake_vector(index: usize) -> u8 {
    VECTOR_WAKE + u8::try_from(index).unwrap_or(0)
}

/// Halts processor `index`, which calls this, until `counter` is no longer `seen`; for `counts` of the timer at most.
pub fn halt(index: usize, counter: &AtomicU64, seen: u64, counts: Option<u64>) {
    if let Some(counts) = counts {
        apic::start_timer_once(wake_vector(index), counts);
    }
    cpu::halt_while(counter, seen);
}

/// Where `boot.s` enters ring 3 on the other processors.
#[unsafe(no_mangle)]
extern "C" fn ap_main(index: u64) -> ! {
    let index = usize::try_from(index).unwrap_or(0);
    apic::setup();
    cpu::enable_interrupts();
    APIC_IDS[index].store(apic::id() + 1, Ordering::Release);
    let wakes = interrupts::counter(wake_vector(index));
    loop {
        let seen = wakes.load(Ordering::Acquire);
        match jobs::step(index) {
            jobs::Next::Again => {}
            jobs::Next::After(counts) => halt(index, wakes, seen, Some(counts)),
            jobs::Next::WhenWoken => halt(index, wakes, seen, None),
        }
    }
}
