//! Time: the rate of the time stamp counter, and the periodic tick of the boot processor.

use core::sync::atomic::Ordering;

use crate::{apic, cpu, interrupts};

/// Vector of the tick.
pub const VECTOR_TICK: u8 = 0x40;

/// Fastest tick that the guest sets; a host that emulates ring 0 spends about 10 us on each.
pub const TICK_HZ_MAX: u64 = 20_000;

/// The timer never runs slower than this, so that a wait for its interrupt is short; a slow tick is several interrupts.
const TIMER_HZ_MIN: u64 = 250;

/// How long the counters are compared: 10 ms.
const CALIBRATE_COUNTS: u64 = apic::TIMER_HZ / 100;

/// The clock of the boot processor.
#[derive(Debug)]
pub struct Clock {
    tsc_hz: u64,
    running: bool,
    interrupts_per_tick: u64,
    /// Count of interrupts at the start, and at the end if the tick is stopped.
    first: u64,
    last: u64,
}

impl Clock {
    pub fn new() -> Self {
        Self { tsc_hz: 0, running: false, interrupts_per_tick: 1, first: 0, last: 0 }
    }

    /// Returns the rate of the time stamp counter, measured once against the APIC's timer.
    pub fn tsc_hz(&mut self) -> u64 {
        // A tick that runs was started after the measurement, so the timer is free here.
        if self.tsc_hz == 0 {
            apic::start_countdown();
            let start = read_both(u64::MAX);
            let mut end = start;
            while start.timer_left.saturating_sub(end.timer_left) < CALIBRATE_COUNTS {
                end = read_both(start.timer_left - CALIBRATE_COUNTS);
            }
            apic::stop_timer();
            let elapsed = u128::from(end.tsc.wrapping_sub(start.tsc));
            let hz = elapsed * u128::from(apic::TIMER_HZ) / u128::from(start.timer_left - end.timer_left);
            self.tsc_hz = u64::try_from(hz).unwrap_or(u64::MAX);
        }
        self.tsc_hz
    }

    /// Returns whether the tick runs. The timer then belongs to it.
    pub fn is_ticking(&self) -> bool {
        self.running
    }

    /// Starts the tick anew, at `hz` from 1 to `TICK_HZ_MAX`.
    pub fn start_ticks(&mut self, hz: u64) {
        self.tsc_hz();
        self.interrupts_per_tick = TIMER_HZ_MIN.div_ceil(hz);
        self.first = count();
        self.running = true;
        apic::start_timer(VECTOR_TICK, apic::TIMER_HZ / (hz * self.interrupts_per_tick));
    }

    pub fn stop_ticks(&mut self) {
        if self.running {
            apic::stop_timer();
            self.running = false;
            self.last = count();
        }
    }

    /// Returns the ticks since the last start.
    pub fn ticks(&self) -> u64 {
        let now = if self.running { count() } else { self.last };
        (now - self.first) / self.interrupts_per_tick
    }
}

/// Both counters at one moment.
#[derive(Clone, Copy)]
struct Moment {
    tsc: u64,
    timer_left: u64,
}

/// Reads both counters as close together as they can be had: the best of a few readings, as the host may take the
/// processor away in the middle of one. Waits until the timer has `until` counts left.
fn read_both(until: u64) -> Moment {
    const READINGS: u32 = 16;
    while apic::timer_left() > until {}
    let mut best = Moment { tsc: 0, timer_left: 0 };
    let mut best_gap = u64::MAX;
    for _ in 0..READINGS {
        let before = cpu::tsc();
        let timer_left = apic::timer_left();
        let gap = cpu::tsc().wrapping_sub(before);
        if gap < best_gap {
            best_gap = gap;
            best = Moment { tsc: before.wrapping_add(gap / 2), timer_left };
        }
    }
    best
}

fn count() -> u64 {
    interrupts::counter(VECTOR_TICK).load(Ordering::Relaxed)
}
