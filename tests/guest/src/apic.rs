//! The local APIC: x2APIC where the processor has it, else the memory-mapped one. The timer, and interrupts to others.
//!
//! Each processor calls `setup` once. Reads no tables: how many processors there are is smp.rs's business.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::cpu::{Width, cpuid, out8, rdmsr, read, write, wrmsr};

const MSR_APIC_BASE: u32 = 0x1b;
const APIC_BASE_ENABLE: u64 = 1 << 11;
const APIC_BASE_X2APIC: u64 = 1 << 10;

/// Where the memory-mapped registers are; the reset value, never moved.
pub const XAPIC_BASE: u64 = 0xfee0_0000;

// Registers, as offsets of the memory-mapped form; register `n` is MSR 0x800 + n / 16 (Intel SDM volume 3, table 13-6).
const ID: u32 = 0x20;
const TASK_PRIORITY: u32 = 0x80;
const SPURIOUS: u32 = 0xf0;
const REQUESTED: u32 = 0x200;
const COMMAND: u32 = 0x300;
const COMMAND_HIGH: u32 = 0x310;
const TIMER: u32 = 0x320;
const LINT0: u32 = 0x350;
const TIMER_INITIAL: u32 = 0x380;
const TIMER_CURRENT: u32 = 0x390;
const TIMER_DIVIDE: u32 = 0x3e0;

const MASKED: u64 = 1 << 16;
const PERIODIC: u64 = 1 << 17;
const DIVIDE_BY_1: u64 = 0xb;

/// The timer counts at 1 GHz under KVM and under QEMU's own emulation; nothing of a virtual machine says so itself.
pub const TIMER_HZ: u64 = 1_000_000_000;

static X2APIC: AtomicBool = AtomicBool::new(false);

/// Returns whether this processor has an x2APIC.
pub fn has_x2apic() -> bool {
    cpuid(1, 0).ecx & (1 << 21) != 0
}

/// Enables this processor's APIC, with everything but messages masked.
pub fn setup() {
    let x2apic = has_x2apic();
    X2APIC.store(x2apic, Ordering::Relaxed);
    let mode = if x2apic { APIC_BASE_ENABLE | APIC_BASE_X2APIC } else { APIC_BASE_ENABLE };
    let base = rdmsr(MSR_APIC_BASE);
    if base & mode != mode {
        wrmsr(MSR_APIC_BASE, base | mode);
    }
    set(SPURIOUS, 0x1ff);
    set(TASK_PRIORITY, 0);
    set(LINT0, MASKED);
    set(TIMER_DIVIDE, DIVIDE_BY_1);
}

/// Masks the legacy interrupt controller, which firmware may have left in use. Called before the first `setup`, so that
/// no interrupt of its own is pending when the APIC stops to listen to it.
pub fn mask_pic() {
    out8(0x21, 0xff);
    out8(0xa1, 0xff);
}

/// Returns this processor's APIC ID.
pub fn id() -> u64 {
    if X2APIC.load(Ordering::Relaxed) { get(ID) } else { get(ID) >> 24 }
}

/// Lets the timer send `vector` every `period` counts.
pub fn start_timer(vector: u8, period: u64) {
    set(TIMER, PERIODIC | u64::from(vector));
    set(TIMER_INITIAL, period.clamp(1, u64::from(u32::MAX)));
}

/// Lets the timer send `vector` once, after `delay` counts.
pub fn start_timer_once(vector: u8, delay: u64) {
    set(TIMER, u64::from(vector));
    set(TIMER_INITIAL, delay.clamp(1, u64::from(u32::MAX)));
}

/// Lets the timer count down from its largest value without an interrupt.
pub fn start_countdown() {
    set(TIMER, MASKED);
    set(TIMER_INITIAL, u64::from(u32::MAX));
}

pub fn stop_timer() {
    set(TIMER_INITIAL, 0);
    set(TIMER, MASKED);
}

/// Returns the counts that the timer has left.
pub fn timer_left() -> u64 {
    get(TIMER_CURRENT)
}

/// Sends `vector` to the processor with APIC ID `to`.
pub fn send(to: u64, vector: u8) {
    command(to, u64::from(vector));
}

/// Returns whether `vector` waits in this processor's interrupt request register.
pub fn is_requested(vector: u8) -> bool {
    let vector = u32::from(vector);
    get(REQUESTED + vector / 32 * 16) >> (vector % 32) & 1 != 0
}

/// Sends INIT and then the start-up address `page` (a page number below 256) to all other processors.
pub fn start_others(page: u8) {
    const ALL_OTHERS: u64 = 3 << 18;
    const ASSERT: u64 = 1 << 14;
    command(0, ALL_OTHERS | ASSERT | 5 << 8);
    for _ in 0..2 {
        command(0, ALL_OTHERS | ASSERT | 6 << 8 | u64::from(page));
    }
}

fn command(to: u64, low: u64) {
    if X2APIC.load(Ordering::Relaxed) {
        set(COMMAND, to << 32 | low);
    } else {
        set(COMMAND_HIGH, to << 24);
        set(COMMAND, low);
    }
}

fn get(register: u32) -> u64 {
    if X2APIC.load(Ordering::Relaxed) {
        rdmsr(0x800 + register / 16)
    } else {
        read(XAPIC_BASE + u64::from(register), Width::Long)
    }
}

fn set(register: u32, value: u64) {
    if X2APIC.load(Ordering::Relaxed) {
        wrmsr(0x800 + register / 16, value);
    } else {
        write(XAPIC_BASE + u64::from(register), Width::Long, value);
    }
}
