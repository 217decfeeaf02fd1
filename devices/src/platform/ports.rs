//! Small port devices: the debug port, the panic notifier and the ACPI PM timer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use address_manager::Transaction;
use serde::{Deserialize, Serialize};
use vm_migration::{LoadError, NoState, State};

use super::reset::stateless_port_device;
use crate::{
    Device, PauseError, PortIo, Stateful,
    handle::{GuestRequest, RequestSink},
};

/// Port 0x80, where firmware writes its progress: logged, never answered.
#[derive(Debug, Default)]
pub struct DebugPort {}

impl DebugPort {
    /// Its port.
    pub const BASE: u64 = 0x80;
    /// One port.
    pub const SIZE: u64 = 1;
}

impl PortIo for DebugPort {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _offset: u64, data: &[u8]) {
        log::trace!("debug port: {data:02x?}");
    }
}

stateless_port_device!(DebugPort);

/// The panic notifier (pvpanic): the guest's kernel says that it has panicked.
#[derive(Debug)]
pub struct PvPanic {
    sink: Arc<dyn RequestSink>,
}

impl PvPanic {
    /// Its port.
    pub const BASE: u64 = 0x505;
    /// One port.
    pub const SIZE: u64 = 1;

    /// The guest has panicked; and it has, and will load a crash kernel.
    const EVENTS: u8 = 0b11;

    /// A notifier that tells `sink`.
    pub fn new(sink: Arc<dyn RequestSink>) -> Self {
        Self { sink }
    }
}

impl PortIo for PvPanic {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        if let [byte] = data {
            *byte = Self::EVENTS;
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if let [events] = data
            && events & Self::EVENTS != 0
        {
            self.sink.request(GuestRequest::Panicked(events & Self::EVENTS));
        }
    }
}

stateless_port_device!(PvPanic);

/// Saved form of the PM timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PmTimerState {
    /// How long it has run, in nanoseconds.
    pub elapsed_ns: u64,
}

impl State for PmTimerState {
    const KIND: &'static str = "acpi-pm-timer";
    const VERSION: u32 = 1;
}

/// The ACPI PM timer (ACPI 6.5, 4.8.2.1): 32 bits at 3.579545 MHz. Stands still while the machine does.
#[derive(Debug)]
pub struct PmTimer {
    elapsed: Duration,
    running_since: Option<Instant>,
}

impl PmTimer {
    /// Its port; firmware for this kind of machine knows it as well.
    pub const BASE: u64 = 0x608;
    /// Four ports.
    pub const SIZE: u64 = 4;
    /// Ticks a second.
    const FREQUENCY_HZ: u128 = 3_579_545;

    /// A timer at 0, standing still.
    pub fn new() -> Self {
        Self { elapsed: Duration::ZERO, running_since: None }
    }

    fn now(&self) -> Duration {
        self.elapsed.saturating_add(self.running_since.map_or(Duration::ZERO, |since| since.elapsed()))
    }

    fn ticks(&self) -> u32 {
        let ticks = self.now().as_nanos().saturating_mul(Self::FREQUENCY_HZ) / 1_000_000_000;
        u32::try_from(ticks & u128::from(u32::MAX)).unwrap_or(0)
    }
}

impl Default for PmTimer {
    fn default() -> Self {
        Self::new()
    }
}

impl PortIo for PmTimer {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = self.ticks().to_le_bytes();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (byte, value) in data.iter_mut().zip(value.iter().skip(from)) {
            *byte = *value;
        }
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}

impl Stateful for PmTimer {
    type State = PmTimerState;

    fn save(&self) -> PmTimerState {
        PmTimerState { elapsed_ns: u64::try_from(self.now().as_nanos()).unwrap_or(u64::MAX) }
    }

    fn load(&mut self, state: PmTimerState, _transaction: &Transaction<'_>) -> Result<(), LoadError> {
        let PmTimerState { elapsed_ns } = state;
        self.elapsed = Duration::from_nanos(elapsed_ns);
        Ok(())
    }
}

impl Device for PmTimer {
    fn pause(&mut self) -> Result<(), PauseError> {
        self.elapsed = self.now();
        self.running_since = None;
        Ok(())
    }

    fn resume(&mut self) {
        self.running_since.get_or_insert_with(Instant::now);
    }

    fn reset(&mut self) {
        self.elapsed = Duration::ZERO;
        self.running_since = self.running_since.map(|_| Instant::now());
    }

    fn ports(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Requests;

    #[test]
    fn the_timer_stands_still_while_paused() {
        let mut timer = PmTimer::new();
        timer.resume();
        timer.running_since = timer.running_since.and_then(|since| since.checked_sub(Duration::from_secs(2)));
        timer.pause().unwrap();
        let ticks = timer.ticks();
        assert!(ticks >= 2 * 3_579_545, "{ticks}");
        assert_eq!(timer.ticks(), ticks);
        let mut high = [0; 2];
        timer.read(2, &mut high);
        assert_eq!(u16::from_le_bytes(high), u16::try_from(ticks >> 16).unwrap());
        timer.elapsed = Duration::MAX;
        timer.ticks();
    }

    #[test]
    fn a_panic_is_passed_on() {
        let requests = Requests::new();
        let mut notifier = PvPanic::new(requests.clone());
        let mut events = [0xff];
        notifier.read(0, &mut events);
        assert_eq!(events, [3]);
        notifier.write(0, &[4]);
        notifier.write(0, &[1]);
        assert_eq!(requests.take(), [GuestRequest::Panicked(1)]);
    }
}
