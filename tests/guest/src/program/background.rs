//! Orders that start, stop and ask after what runs by itself: the tick, dirtying, the watch; and the processors.

use core::sync::atomic::Ordering;

use test_guest::orders::{Malformed, Words};

use super::Program;
use super::reply::{OrderError, say};
use crate::clock::{TICK_HZ_MAX, VECTOR_TICK};
use crate::jobs::{self, Dirty};
use crate::{apic, cpu, interrupts, smp};

const PAGE: u64 = 4096;
const WAIT_TSC: u64 = 20_000_000_000;

impl Program {
    /// `cpus [N]`: waits until N processors run, or says how many do.
    pub(super) fn cpus(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let wanted = words.optional_number("N")?;
        words.end()?;
        let started = cpu::tsc();
        while wanted.is_some_and(|wanted| (smp::online() as u64) < wanted) {
            if cpu::tsc().wrapping_sub(started) > WAIT_TSC {
                return Err(OrderError::Refused("not so many processors came up"));
            }
            core::hint::spin_loop();
        }
        say!(self.reply, " {}", smp::online());
        for index in smp::indices() {
            say!(self.reply, " {}", smp::apic_id(index).unwrap_or(0));
        }
        Ok(())
    }

    /// `ticks`, `ticks start HZ`, `ticks stop`.
    pub(super) fn ticks(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        match words.optional_word() {
            None => say!(self.reply, " {}", self.clock.ticks()),
            Some("start") => {
                let hz = words.number("HZ")?;
                words.end()?;
                if !(1..=TICK_HZ_MAX).contains(&hz) {
                    return Err(Malformed::NotANumber { what: "HZ" }.into());
                }
                self.clock.start_ticks(hz);
            }
            Some("stop") => {
                words.end()?;
                self.clock.stop_ticks();
                say!(self.reply, " {}", self.clock.ticks());
            }
            Some(_) => return Err(OrderError::Refused("ticks can start or stop")),
        }
        Ok(())
    }

    /// `timer HZ COUNT`: how long COUNT interrupts of the timer take.
    pub(super) fn timer(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let hz = words.number("HZ")?;
        let count = words.number("COUNT")?;
        words.end()?;
        if !(1..=TICK_HZ_MAX).contains(&hz) {
            return Err(Malformed::NotANumber { what: "HZ" }.into());
        }
        let tsc_hz = self.clock.tsc_hz();
        self.clock.stop_ticks();
        let counter = interrupts::counter(VECTOR_TICK);
        let first = counter.load(Ordering::Relaxed);
        let start = cpu::tsc();
        apic::start_timer(VECTOR_TICK, apic::TIMER_HZ / hz);
        while counter.load(Ordering::Relaxed).wrapping_sub(first) < count {
            core::hint::spin_loop();
        }
        let elapsed = cpu::tsc().wrapping_sub(start);
        apic::stop_timer();
        say!(self.reply, " {elapsed} {tsc_hz}");
        Ok(())
    }

    /// `dirty ADDR LEN BYTES_PER_SECOND [SECONDS]`, on one processor; `dirty-all`, on all that can.
    pub(super) fn dirty(&mut self, words: &mut Words<'_>, on_all: bool) -> Result<(), OrderError> {
        let (address, len) = self.free_words(words)?;
        let bytes_per_second = words.number("BYTES_PER_SECOND")?;
        let seconds = words.optional_number("SECONDS")?.unwrap_or(0);
        words.end()?;
        if address % PAGE != 0 || len % PAGE != 0 {
            return Err(OrderError::Refused("ADDR and LEN must be multiples of 4096"));
        }
        let others = smp::online() as u64 - 1;
        let workers = if on_all { others.max(1) } else { 1 };
        let pages = len / PAGE / workers;
        if pages == 0 {
            return Err(OrderError::Refused("LEN is less than a page for each processor"));
        }
        let tsc_hz = self.clock.tsc_hz();
        self.dirty_stop();
        let rate = (bytes_per_second / workers).max(u64::from(bytes_per_second != 0));
        for (part, index) in smp::indices().skip(usize::from(others > 0)).zip(0..workers).map(|(i, n)| (n, i))
        {
            let address = address + part * pages * PAGE;
            let duration_tsc = seconds.saturating_mul(tsc_hz);
            jobs::stop(core::iter::once(index));
            jobs::start_dirty(index, Dirty { address, pages, bytes_per_second: rate, duration_tsc, tsc_hz });
        }
        say!(self.reply, " {workers}");
        Ok(())
    }

    /// `dirty-stop`: returns how many pages were written.
    pub(super) fn dirty_stop(&mut self) -> u64 {
        jobs::stop(smp::indices().filter(|index| jobs::is_dirty(*index)));
        smp::indices().map(jobs::pages_written).sum()
    }

    pub(super) fn dirty_state(&mut self) {
        let workers = || smp::indices().filter(|index| jobs::is_dirty(*index));
        let running = workers().filter(|index| jobs::is_busy(*index)).count();
        let written: u64 = smp::indices().map(jobs::pages_written).sum();
        let least = workers().map(jobs::pages_written).min().unwrap_or(0);
        say!(self.reply, " running={running} pages={written} least={least}");
    }

    /// `dirty-check`: stops, and checks that every page holds what was last written to it.
    pub(super) fn dirty_check(&mut self) {
        let written = self.dirty_stop();
        let (mut good, mut bad) = (0, 0);
        for (good_here, bad_here) in smp::indices().map(jobs::check) {
            good += good_here;
            bad += bad_here;
        }
        say!(self.reply, " pages={written} good={good} bad={bad}");
    }

    /// `watch start`, `watch`, `watch stop`: the largest gap in time that a processor sees.
    pub(super) fn watch(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let what = words.optional_word();
        words.end()?;
        let index = smp::indices().last().filter(|index| *index > 0);
        let index = index.ok_or(OrderError::Refused("a watch needs a second processor"))?;
        match what {
            Some("start") => {
                jobs::stop(core::iter::once(index));
                jobs::start_watch(index);
                return Ok(());
            }
            Some("stop") => jobs::stop(core::iter::once(index)),
            None => {}
            Some(_) => return Err(OrderError::Refused("watch can start or stop")),
        }
        let gap = jobs::gap(index);
        let tsc_hz = self.clock.tsc_hz();
        say!(self.reply, " gap={} at={} rounds={} hz={tsc_hz}", gap.max_tsc, gap.at_tsc, gap.rounds);
        Ok(())
    }
}
