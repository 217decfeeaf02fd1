//! An IOAPIC (Intel 82093AA, and the EOI register of its successors) for a VM whose hypervisor has local APICs
//! only: it turns the edges of interrupt lines into messages.
//!
//! Destinations have 15 bits: bits 55 to 49 of an entry are bits 14 to 8 of the APIC id, which go into bits 11 to
//! 5 of the message's address, as guests know from KVM and Hyper-V that say so in CPUID. Level-triggered entries are
//! ended by a write to the EOI register; that a local APIC broadcasts the end does not arrive here, and no line of
//! this machine is level-triggered.

use std::{fmt, sync::Arc};

use address_manager::Transaction;
use hypervisor::MsiMessage;
use serde::{Deserialize, Serialize};
use vm_migration::{LoadError, State};

use crate::{Device, Mmio, MsiSink, PauseError, Stateful};

/// Number of pins, and of the last one.
const PINS: usize = 24;
const LAST_PIN: u32 = 23;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const END_OF_INTERRUPT: u64 = 0x40;

const ID: u8 = 0x00;
const VERSION: u8 = 0x01;
const ARBITRATION: u8 = 0x02;
const FIRST_ENTRY: u8 = 0x10;

/// Has an EOI register.
const VERSION_NUMBER: u32 = 0x20;

const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const DELIVERY_STATUS: u64 = 1 << 12;
/// What a guest cannot write.
const READ_ONLY: u64 = REMOTE_IRR | DELIVERY_STATUS;

/// Saved form of an IOAPIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoApicState {
    /// Register that the window shows.
    pub select: u8,
    /// Its APIC id, which nothing uses.
    pub id: u8,
    /// The entries, by pin.
    pub entries: Vec<u64>,
    /// Lines that are high, by bit.
    pub lines: u32,
}

impl State for IoApicState {
    const KIND: &'static str = "io-apic";
    const VERSION: u32 = 1;
}

/// The controller.
pub struct IoApic {
    select: u8,
    id: u8,
    entries: [u64; PINS],
    lines: u32,
    sink: Arc<dyn MsiSink>,
}

impl IoApic {
    /// Size of its registers.
    pub const SIZE: u64 = 0x1000;

    /// With every pin masked; messages go to `sink`.
    pub fn new(sink: Arc<dyn MsiSink>) -> Self {
        Self { select: 0, id: 0, entries: [MASKED; PINS], lines: 0, sink }
    }

    /// Raises or lowers the line of a pin.
    pub fn set_line(&mut self, pin: u32, high: bool) {
        let Some(index) = usize::try_from(pin).ok().filter(|index| *index < PINS) else { return };
        let before = self.lines >> pin & 1 != 0;
        self.lines = self.lines & !(1 << pin) | u32::from(high) << pin;
        if high && !before {
            self.deliver(index);
        }
    }

    /// Sends the message of a pin, unless it is masked or waits for its end.
    fn deliver(&mut self, index: usize) {
        let Some(entry) = self.entries.get_mut(index) else { return };
        if *entry & (MASKED | REMOTE_IRR) != 0 {
            return;
        }
        if *entry & LEVEL != 0 {
            *entry |= REMOTE_IRR;
        }
        self.sink.send(message(*entry));
    }

    /// A level-triggered interrupt that is still wanted comes again.
    fn end_of_interrupt(&mut self, vector: u8) {
        for index in 0..PINS {
            let Some(entry) = self.entries.get_mut(index) else { return };
            if entry.to_le_bytes()[0] == vector && *entry & (LEVEL | REMOTE_IRR) == LEVEL | REMOTE_IRR {
                *entry &= !REMOTE_IRR;
                self.deliver_level(index);
            }
        }
    }

    fn deliver_level(&mut self, index: usize) {
        let level = self.entries.get(index).is_some_and(|entry| entry & LEVEL != 0);
        if level && self.lines >> index & 1 != 0 {
            self.deliver(index);
        }
    }

    fn read_register(&self) -> u32 {
        match self.select {
            ID | ARBITRATION => u32::from(self.id) << 24,
            VERSION => VERSION_NUMBER | LAST_PIN << 16,
            _ => match self.place() {
                Some((index, shift)) => {
                    let [a, b, c, d, ..] = (self.entries.get(index).unwrap_or(&0) >> shift).to_le_bytes();
                    u32::from_le_bytes([a, b, c, d])
                }
                None => 0,
            },
        }
    }

    fn write_register(&mut self, value: u32) {
        if self.select == ID {
            self.id = value.to_le_bytes()[3] & 0xf;
        }
        let Some((index, shift)) = self.place() else { return };
        let Some(entry) = self.entries.get_mut(index) else { return };
        let half = u64::from(u32::MAX) << shift;
        let written = *entry & !half | u64::from(value) << shift;
        *entry = written & !READ_ONLY | *entry & READ_ONLY;
        if *entry & LEVEL == 0 {
            *entry &= !REMOTE_IRR;
        }
        self.deliver_level(index);
    }

    /// The entry that is selected, and which of its bits the window shows.
    fn place(&self) -> Option<(usize, u32)> {
        let offset = self.select.checked_sub(FIRST_ENTRY)?;
        let index = usize::from(offset / 2);
        (index < PINS).then_some((index, 32 * u32::from(offset % 2)))
    }
}

/// What an entry sends (Intel SDM volume 3, 11.11).
fn message(entry: u64) -> MsiMessage {
    const BASE: u64 = 0xfee0_0000;
    let (destination, extended, logical) = (entry >> 56, entry >> 49 & 0x7f, entry >> 11 & 1);
    let [vector, delivery, ..] = entry.to_le_bytes();
    let level = u32::from(entry & LEVEL != 0);
    MsiMessage {
        address: BASE | destination << 12 | extended << 5 | logical << 2,
        // A level-triggered message is an assertion.
        data: u32::from(vector) | u32::from(delivery & 7) << 8 | level << 14 | level << 15,
        device_id: 0,
    }
}

impl Mmio for IoApic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            SELECT => u32::from(self.select),
            WINDOW => self.read_register(),
            _ => return,
        };
        for (byte, value) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = value;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(first) = data.first() else { return };
        match (offset, data) {
            (SELECT, _) => self.select = *first,
            (WINDOW, [a, b, c, d, ..]) => self.write_register(u32::from_le_bytes([*a, *b, *c, *d])),
            (END_OF_INTERRUPT, _) => self.end_of_interrupt(*first),
            _ => {}
        }
    }
}

impl fmt::Debug for IoApic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoApic(lines {:#x})", self.lines)
    }
}

impl Stateful for IoApic {
    type State = IoApicState;

    fn save(&self) -> IoApicState {
        let Self { select, id, entries, lines, sink: _ } = self;
        IoApicState { select: *select, id: *id, entries: entries.to_vec(), lines: *lines }
    }

    fn load(&mut self, state: IoApicState, _transaction: &Transaction<'_>) -> Result<(), LoadError> {
        let IoApicState { select, id, entries, lines } = state;
        let length = entries.len();
        let entries = entries
            .try_into()
            .map_err(|_| LoadError::field("entries", format!("{length}, expected {PINS}")))?;
        if lines >> PINS != 0 {
            return Err(LoadError::field("lines", format!("{lines:#x}: there are {PINS}")));
        }
        (self.select, self.id, self.entries, self.lines) = (select, id & 0xf, entries, lines);
        Ok(())
    }
}

impl Device for IoApic {
    fn pause(&mut self) -> Result<(), PauseError> {
        Ok(())
    }

    fn resume(&mut self) {}

    fn reset(&mut self) {
        (self.select, self.id, self.entries, self.lines) = (0, 0, [MASKED; PINS], 0);
    }

    fn mmio(&mut self) -> Option<&mut dyn Mmio> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use address_manager::{AddressManager, Windows};
    use hypervisor::fake::FakeVm;

    use super::*;
    use crate::testing::Messages;

    fn controller() -> (IoApic, Arc<Messages>) {
        let messages = Messages::new();
        (IoApic::new(Arc::clone(&messages) as _), messages)
    }

    fn register(io_apic: &mut IoApic, index: u8) -> u32 {
        io_apic.write(SELECT, &u32::from(index).to_le_bytes());
        let mut data = [0xff; 4];
        io_apic.read(WINDOW, &mut data);
        u32::from_le_bytes(data)
    }

    fn set(io_apic: &mut IoApic, pin: u8, entry: u64) {
        for (half, index) in [(entry >> 32, 1), (entry & 0xffff_ffff, 0)] {
            io_apic.write(SELECT, &[FIRST_ENTRY + 2 * pin + index]);
            io_apic.write(WINDOW, &u32::try_from(half).unwrap().to_le_bytes());
        }
    }

    #[test]
    fn an_edge_is_one_message() {
        let (mut io_apic, messages) = controller();
        assert_eq!(register(&mut io_apic, VERSION), 23 << 16 | 0x20);
        assert_eq!(register(&mut io_apic, FIRST_ENTRY), 1 << 16);
        io_apic.set_line(4, true);
        io_apic.set_line(4, false);
        assert_eq!(messages.take(), [], "it is masked");
        // To APIC id 0x1234, physical, fixed, vector 0x41.
        set(&mut io_apic, 4, 0x34 << 56 | 0x12 << 49 | 0x41);
        for high in [true, true, false, true] {
            io_apic.set_line(4, high);
        }
        let expected = MsiMessage { address: 0xfee3_4000 | 0x12 << 5, data: 0x41, device_id: 0 };
        assert_eq!(messages.take(), [expected; 2]);
        assert_eq!(register(&mut io_apic, FIRST_ENTRY + 9), 0x34 << 24 | 0x12 << 17);
        // Lowest priority to a logical destination.
        set(&mut io_apic, 4, 0xff << 56 | 1 << 11 | 1 << 8 | 0x41);
        io_apic.set_line(4, false);
        io_apic.set_line(4, true);
        assert_eq!(messages.take()[0].address, 0xfeef_f004);
        io_apic.set_line(24, true);
        io_apic.set_line(u32::MAX, true);
        assert_eq!(messages.take(), []);
    }

    #[test]
    fn a_level_comes_again_until_it_is_gone() {
        let (mut io_apic, messages) = controller();
        set(&mut io_apic, 5, LEVEL | MASKED | 0x50);
        io_apic.set_line(5, true);
        set(&mut io_apic, 5, LEVEL | 0x50);
        assert_eq!(messages.take()[0].data, 0xc050);
        io_apic.set_line(5, false);
        io_apic.set_line(5, true);
        assert_eq!(messages.take(), [], "its end has not come");
        assert_ne!(u64::from(register(&mut io_apic, FIRST_ENTRY + 10)) & REMOTE_IRR, 0);
        io_apic.write(END_OF_INTERRUPT, &0x50u32.to_le_bytes());
        assert_eq!(messages.take().len(), 1);
        io_apic.set_line(5, false);
        io_apic.write(END_OF_INTERRUPT, &0x50u32.to_le_bytes());
        assert_eq!(messages.take(), []);
    }

    #[test]
    fn junk_is_survived() {
        let (mut io_apic, _) = controller();
        for offset in (0..0x60).chain([IoApic::SIZE - 1, u64::MAX]) {
            for width in [0, 1, 2, 4, 8] {
                io_apic.write(offset, &[0xff; 8][..width]);
                io_apic.read(offset, &mut [0; 8][..width]);
            }
        }
    }

    #[test]
    fn its_state_is_kept_and_a_broken_one_refused() {
        let (mut io_apic, messages) = controller();
        set(&mut io_apic, 4, LEVEL | 0x41);
        io_apic.set_line(4, true);
        messages.take();
        let saved = io_apic.save();
        let manager = AddressManager::new(FakeVm::new(), 32, Windows::new());
        let transaction = manager.begin();
        let (mut other, messages) = controller();
        other.load(saved.clone(), &transaction).unwrap();
        assert_eq!(messages.take(), [], "what was raised has been sent");
        assert_eq!(other.save(), saved);
        for broken in [
            IoApicState { entries: vec![0; 23], ..saved.clone() },
            IoApicState { lines: 1 << 24, ..saved.clone() },
        ] {
            assert!(other.load(broken, &transaction).is_err());
        }
    }
}
