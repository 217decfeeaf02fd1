//! The real-time clock and CMOS memory of a PC (MC146818): the time of day, which runs with the
//! host's, the alarm and update interrupts left out, and 128 bytes of memory.

use std::time::{SystemTime, UNIX_EPOCH};

use address_manager::Transaction;
use serde::{Deserialize, Serialize};
use vm_migration::{LoadError, Section, State};

use crate::{Device, PauseError, PortIo, Stateful};

/// Number of registers: 14 of the clock, the rest memory.
const REGISTERS: usize = 128;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;
/// Status B: binary instead of BCD, and 24 hours.
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
/// Status D: the battery is good.
const VALID: u8 = 1 << 7;
/// Status A: the 32,768 Hz time base and the periodic rate that a PC's firmware sets.
const TIME_BASE: u8 = 0x26;

const NS_PER_SECOND: i128 = 1_000_000_000;

/// Saved form of the clock and its memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RtcState {
    /// Register that the data port shows.
    pub index: u8,
    /// The registers.
    pub registers: Vec<u8>,
    /// How far the time that it shows is ahead of the host's, in nanoseconds.
    pub offset_ns: i64,
}

impl State for RtcState {
    const KIND: &'static str = "rtc-cmos";
    const VERSION: u32 = 2;

    fn upgrade(from: u32, old: &Section) -> Result<Self, LoadError> {
        /// Version 1, of a clock that could show the host's time only.
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Following {
            index: u8,
            registers: Vec<u8>,
        }
        if from != 1 {
            return Err(old.unknown_version::<Self>(from));
        }
        let Following { index, registers } = old.content()?;
        Ok(Self { index, registers, offset_ns: 0 })
    }
}

/// The clock.
#[derive(Debug)]
pub struct Rtc {
    index: u8,
    registers: [u8; REGISTERS],
    offset_ns: i64,
    now: fn() -> SystemTime,
}

impl Rtc {
    /// Index port; data is the next.
    pub const BASE: u64 = 0x70;
    /// Both ports.
    pub const SIZE: u64 = 2;
    /// ISA interrupt.
    pub const IRQ: u32 = 8;

    /// A clock that shows the host's time in UTC. `low` and `high` are the sizes in bytes of RAM
    /// below and above 4 GiB, which firmware looks for in CMOS memory.
    pub fn new(low: u64, high: u64) -> Self {
        let mut registers = [0; REGISTERS];
        registers[usize::from(STATUS_A)] = TIME_BASE;
        registers[usize::from(STATUS_B)] = HOURS_24;
        registers[usize::from(STATUS_D)] = VALID;
        // RAM from 16 MiB to 4 GiB and above 4 GiB, in 64 KiB units (as QEMU and OVMF agree on).
        let above_16m = low.saturating_sub(16 << 20) >> 16;
        let [a, b, ..] = u16::try_from(above_16m).unwrap_or(u16::MAX).to_le_bytes();
        (registers[0x34], registers[0x35]) = (a, b);
        let [a, b, c, ..] = (high >> 16).min(0xff_ffff).to_le_bytes();
        (registers[0x5b], registers[0x5c], registers[0x5d]) = (a, b, c);
        Self { index: 0, registers, offset_ns: 0, now: SystemTime::now }
    }

    /// Sets the time that it shows forward by so many nanoseconds, or back. It is as far from the host's from then
    /// on, and in every later life.
    pub fn shift(&mut self, ns: i64) {
        self.offset_ns = self.offset_ns.saturating_add(ns);
    }

    fn read_register(&self) -> u8 {
        let Some(time) = self.time() else { return 0 };
        let value = match self.index {
            0x00 => time.second,
            0x02 => time.minute,
            0x04 => self.hour(time.hour),
            0x06 => time.weekday,
            0x07 => time.day,
            0x08 => time.month,
            0x09 => time.year % 100,
            CENTURY => time.year / 100,
            // No interrupt is ever pending, and no update in progress.
            STATUS_C => return 0,
            STATUS_D => return VALID,
            other => return self.registers.get(usize::from(other)).copied().unwrap_or(0),
        };
        let value = u8::try_from(value).unwrap_or(0);
        let in_12_hours = value & if self.index == 0x04 { 0x80 } else { 0 };
        in_12_hours | self.encode(value & !in_12_hours)
    }

    fn encode(&self, value: u8) -> u8 {
        if self.status_b() & BINARY != 0 { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn hour(&self, hour: u32) -> u32 {
        if self.status_b() & HOURS_24 != 0 {
            return hour;
        }
        let afternoon = if hour >= 12 { 0x80 } else { 0 };
        afternoon | if hour.is_multiple_of(12) { 12 } else { hour % 12 }
    }

    fn status_b(&self) -> u8 {
        self.registers[usize::from(STATUS_B)]
    }

    /// The time that the clock shows.
    fn time(&self) -> Option<Civil> {
        let host_ns = (self.now)().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let shown_ns = i128::try_from(host_ns).ok()?.checked_add(self.offset_ns.into())?;
        Civil::from_unix(i64::try_from(shown_ns.div_euclid(NS_PER_SECOND)).ok()?)
    }

    fn write_register(&mut self, value: u8) {
        match self.index {
            // The guest does not set it: Linux does that only from a synchronized clock, and reads
            // it at the next boot.
            0x00..=0x09 | CENTURY | STATUS_C | STATUS_D => {}
            index => {
                if let Some(register) = self.registers.get_mut(usize::from(index)) {
                    *register = value;
                }
            }
        }
    }
}

impl PortIo for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let [byte] = data {
            *byte = if offset == 0 { self.index } else { self.read_register() };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            // Bit 7 gates NMI on a PC; there is no such NMI here.
            (0, [value]) => self.index = value & 0x7f,
            (1, [value]) => self.write_register(*value),
            _ => {}
        }
    }
}

impl Stateful for Rtc {
    type State = RtcState;

    fn save(&self) -> RtcState {
        RtcState { index: self.index, registers: self.registers.to_vec(), offset_ns: self.offset_ns }
    }

    fn load(&mut self, state: RtcState, _transaction: &Transaction<'_>) -> Result<(), LoadError> {
        let RtcState { index, registers, offset_ns } = state;
        if usize::from(index) >= REGISTERS {
            return Err(LoadError::field("index", format!("{index} is beyond {REGISTERS} registers")));
        }
        let length = registers.len();
        self.registers = registers
            .try_into()
            .map_err(|_| LoadError::field("registers", format!("{length}, expected {REGISTERS}")))?;
        self.index = index;
        self.offset_ns = offset_ns;
        Ok(())
    }
}

impl Device for Rtc {
    fn pause(&mut self) -> Result<(), PauseError> {
        Ok(())
    }

    fn resume(&mut self) {}

    fn reset(&mut self) {
        self.index = 0;
    }

    fn ports(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

/// A date and time of day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Civil {
    year: u32,
    month: u32,
    day: u32,
    /// 1 is Sunday.
    weekday: u32,
    hour: u32,
    minute: u32,
    second: u32,
}

impl Civil {
    /// Of seconds since 1970, in UTC; `None` before that or beyond the year 9999.
    fn from_unix(seconds: i64) -> Option<Self> {
        let seconds = u64::try_from(seconds).ok()?;
        let (mut days, rest) = (seconds / 86_400, u32::try_from(seconds % 86_400).ok()?);
        // 1 January 1970 was a Thursday.
        let weekday = u32::try_from((days + 4) % 7).ok()? + 1;
        let mut year = 1970;
        loop {
            let length = if leap(year) { 366 } else { 365 };
            if days < length {
                break;
            }
            days -= length;
            year += 1;
            if year > 9999 {
                return None;
            }
        }
        let february = if leap(year) { 29 } else { 28 };
        let mut month = 1;
        for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
            if days < length {
                break;
            }
            days -= length;
            month += 1;
        }
        let day = u32::try_from(days).ok()? + 1;
        Some(Self { year, month, day, weekday, hour: rest / 3600, minute: rest / 60 % 60, second: rest % 60 })
    }
}

fn leap(year: u32) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use address_manager::{AddressManager, Windows};
    use hypervisor::fake::FakeVm;
    use serde_json::{Value, json};
    use vm_migration::Section;

    use super::*;

    fn clock() -> Rtc {
        let mut rtc = Rtc::new(3 << 30, 1 << 30);
        // 2024-02-29 17:04:05 UTC, a Thursday.
        rtc.now = || UNIX_EPOCH + Duration::from_secs(1_709_226_245);
        rtc
    }

    fn register(rtc: &mut Rtc, index: u8) -> u8 {
        rtc.write(0, &[index]);
        let mut data = [0xff];
        rtc.read(1, &mut data);
        data[0]
    }

    #[test]
    fn the_time_is_shown_in_bcd_and_binary() {
        let mut rtc = clock();
        let bcd: Vec<u8> = [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| register(&mut rtc, index)).to_vec();
        assert_eq!(bcd, [0x20, 0x24, 0x02, 0x29, 0x05, 0x17, 0x04, 0x05]);
        rtc.write(0, &[STATUS_B]);
        rtc.write(1, &[BINARY]);
        assert_eq!(register(&mut rtc, 4), 0x80 | 5);
        assert_eq!(register(&mut rtc, 9), 24);
    }

    /// Hours, minutes and seconds as they are read, in BCD.
    fn time_of_day(rtc: &mut Rtc) -> [u8; 3] {
        [4, 2, 0].map(|index| register(rtc, index))
    }

    fn loaded(version: u32, state: &Value) -> Result<Rtc, LoadError> {
        let manager = AddressManager::new(FakeVm::new(), 32, Windows::new());
        let section =
            json!({ "id": "__rtc_cmos", "kind": RtcState::KIND, "version": version, "state": state });
        let section: Section = serde_json::from_str(&section.to_string()).unwrap();
        let mut rtc = clock();
        rtc.load(section.load()?, &manager.begin())?;
        Ok(rtc)
    }

    #[test]
    fn what_it_is_ahead_of_the_host_or_behind_it_keeps_through_all_its_lives() {
        let mut rtc = clock();
        rtc.shift(-3_600_000_000_000);
        assert_eq!(time_of_day(&mut rtc), [0x16, 0x04, 0x05]);
        let mut again = loaded(2, &serde_json::to_value(rtc.save()).unwrap()).unwrap();
        assert_eq!(again.save(), rtc.save());
        assert_eq!(time_of_day(&mut again), [0x16, 0x04, 0x05]);
        // Not even half a second is lost by it.
        again.shift(-500_000_000);
        assert_eq!(time_of_day(&mut again), [0x16, 0x04, 0x04]);
        again.shift(3_600_500_000_000);
        assert_eq!(time_of_day(&mut again), [0x17, 0x04, 0x05]);
        // The battery goes on when the machine is reset.
        again.shift(1_000_000_000);
        again.reset();
        assert_eq!(time_of_day(&mut again), [0x17, 0x04, 0x06]);
    }

    #[test]
    fn a_clock_of_the_first_version_shows_the_hosts_time() {
        let mut registers = vec![0; REGISTERS];
        registers[usize::from(STATUS_B)] = HOURS_24;
        let mut rtc = loaded(1, &json!({ "index": 5, "registers": registers })).unwrap();
        assert_eq!((rtc.index, rtc.offset_ns), (5, 0));
        assert_eq!(time_of_day(&mut rtc), [0x17, 0x04, 0x05]);
        let mixed = json!({ "index": 5, "registers": registers, "offset_ns": 0 });
        assert!(loaded(1, &mixed).is_err());
        assert!(loaded(2, &json!({ "index": 5, "registers": registers })).is_err());
        assert!(loaded(3, &mixed).is_err());
    }

    #[test]
    fn no_distance_is_too_far() {
        for offset_ns in [i64::MIN, i64::MAX] {
            let state = json!({ "index": 0, "registers": vec![0; REGISTERS], "offset_ns": offset_ns });
            let mut rtc = loaded(2, &state).unwrap();
            rtc.shift(offset_ns.signum());
            assert_eq!(rtc.offset_ns, offset_ns);
            for index in 0..128 {
                register(&mut rtc, index);
            }
        }
    }

    #[test]
    fn memory_sizes_are_in_cmos() {
        let mut rtc = clock();
        let word = u16::from_le_bytes([register(&mut rtc, 0x34), register(&mut rtc, 0x35)]);
        assert_eq!((u64::from(word) << 16) + (16 << 20), 3 << 30);
        assert_eq!(register(&mut rtc, 0x5c), 0x40);
    }

    #[test]
    fn dates() {
        assert_eq!(Civil::from_unix(-1), None);
        let first = Civil::from_unix(0).unwrap();
        assert_eq!((first.year, first.month, first.day, first.weekday), (1970, 1, 1, 5));
        let last = Civil::from_unix(253_402_300_799).unwrap();
        assert_eq!((last.year, last.month, last.day, last.hour), (9999, 12, 31, 23));
        assert_eq!(Civil::from_unix(253_402_300_800), None);
    }
}
