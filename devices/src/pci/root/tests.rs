//! A segment with a function on the fake back end: finding it, moving its BAR, junk.

use std::sync::Arc;

use address_manager::{AddressManager, Dispatcher, Handler, IoSpace, Windows};
use hypervisor::fake::FakeVm;
use proptest::prelude::*;

use super::*;
use crate::{
    pci::{BarKind, BarShape, BarSpec, MsixTable, bar::HandlerPart, config::COMMAND_MEMORY},
    testing::Messages,
};

const ECAM: u64 = 0xe000_0000;
const LOW: u64 = 0xc000_0000;
const HIGH: u64 = 0x40_0000_0000;
const BAR_SIZE: u64 = 0x4000;

/// Answers with a byte that says who it is.
struct Echo(u8);

impl Handler for Echo {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(self.0);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

/// A function with one 64-bit BAR that echoes, and vectors behind it.
struct Function(Endpoint);

impl Function {
    fn new(name: u8, address: u64) -> Self {
        let identity = Identity {
            vendor: 1,
            device: 2,
            revision: 0,
            class: 0xff0000,
            subsystem_vendor: 0,
            subsystem: 0,
        };
        let mut endpoint = Endpoint::new(&format!("echo{name}"), 0, identity);
        let spec = BarSpec { index: 0, size: BAR_SIZE, kind: BarKind::Memory64, prefetchable: false };
        let echo = HandlerPart { offset: 0, size: 0x1000, handler: Arc::new(Echo(name)) };
        endpoint.add_bar(spec, address, BarShape { handlers: vec![echo], ..BarShape::default() });
        endpoint.add_msix(MsixTable::new(Messages::new(), 0, 4), 0, 0x2000, 0x3000);
        Self(endpoint)
    }
}

impl PciFunction for Function {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) -> ConfigEffect {
        self.0.write(offset, data)
    }

    fn endpoint(&mut self) -> &mut Endpoint {
        &mut self.0
    }
}

impl Stateful for Function {
    type State = NoState;

    fn save(&self) -> NoState {
        NoState {}
    }

    fn load(&mut self, _state: NoState, _transaction: &Transaction<'_>) -> Result<(), LoadError> {
        Ok(())
    }
}

impl Device for Function {
    fn pause(&mut self) -> Result<(), PauseError> {
        Ok(())
    }

    fn resume(&mut self) {}

    fn reset(&mut self) {
        self.0.reset();
    }

    fn pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }
}

struct Bench {
    manager: Arc<AddressManager>,
    dispatcher: Dispatcher,
    segment: Arc<PciSegment>,
}

impl Bench {
    fn new() -> Self {
        let window = |kind| address_manager::Window { kind, segment: 0 };
        let windows = Windows::new()
            .with(window(address_manager::WindowKind::Mmio32), LOW, 0x2000_0000)
            .with(window(address_manager::WindowKind::Mmio64), HIGH, 1 << 36);
        let manager = AddressManager::new(FakeVm::new(), 32, windows);
        let segment = PciSegment::new(0, &manager);
        segment.plug(0, SharedDevice::new(HostBridge::new("__pci0", 0))).unwrap();
        let transaction = manager.begin();
        let owner = address_manager::Owner::new("__pci0");
        let handler = segment.ecam_handler();
        let range = address_manager::HandlerRange {
            space: IoSpace::Mmio,
            base: ECAM,
            size: ECAM_BUS_SIZE,
            handler,
            owner: owner.clone(),
        };
        transaction.add_handler(range).unwrap();
        let ports = ConfigPorts::new(Arc::clone(&segment)).handler();
        let range = address_manager::HandlerRange {
            space: IoSpace::Pio,
            base: ConfigPorts::BASE,
            size: ConfigPorts::SIZE,
            handler: ports,
            owner,
        };
        transaction.add_handler(range).unwrap();
        transaction.commit().unwrap();
        let dispatcher = manager.dispatcher();
        Self { manager, dispatcher, segment }
    }

    fn plug(&self, slot: u8, name: u8, address: u64) {
        self.segment.plug(slot, SharedDevice::new(Function::new(name, address))).unwrap();
    }

    fn write(&mut self, slot: u64, register: u64, data: &[u8]) {
        assert!(self.dispatcher.write(IoSpace::Mmio, ECAM + slot * 0x8000 + register, data));
    }

    fn read(&mut self, slot: u64, register: u64) -> u32 {
        let mut data = [0xff; 4];
        assert!(self.dispatcher.read(IoSpace::Mmio, ECAM + slot * 0x8000 + register, &mut data));
        u32::from_le_bytes(data)
    }

    fn decode(&mut self, slot: u64, on: bool) {
        self.write(slot, 4, &(if on { COMMAND_MEMORY } else { 0 }).to_le_bytes());
    }

    /// Who answers at an address, if anybody.
    fn answer(&mut self, address: u64) -> Option<u8> {
        let mut data = [0xff];
        self.dispatcher.read(IoSpace::Mmio, address, &mut data).then_some(data[0])
    }
}

#[test]
fn functions_are_found_both_ways() {
    let mut bench = Bench::new();
    bench.plug(3, 7, HIGH);
    assert_eq!(bench.read(0, 0), 0x0d57_8086);
    assert_eq!(bench.read(3, 0), 0x0002_0001);
    assert_eq!(bench.read(4, 0), u32::MAX);
    let select = (1u32 << 31 | 3 << 11).to_le_bytes();
    assert!(bench.dispatcher.write(IoSpace::Pio, 0xcf8, &select));
    let mut device = [0xff; 2];
    assert!(bench.dispatcher.read(IoSpace::Pio, 0xcfe, &mut device));
    assert_eq!(device, [2, 0]);
}

#[test]
fn a_bar_answers_where_it_is_put_while_decoding_is_on() {
    let mut bench = Bench::new();
    bench.plug(1, 7, HIGH);
    assert_eq!(bench.answer(HIGH), None);
    bench.decode(1, true);
    assert_eq!(bench.answer(HIGH), Some(7));
    bench.write(1, 0x10, &0u32.to_le_bytes());
    bench.write(1, 0x14, &0x41u32.to_le_bytes());
    assert_eq!((bench.answer(HIGH), bench.answer(0x41_0000_0000)), (None, Some(7)));
    bench.write(1, 0x14, &0u32.to_le_bytes());
    bench.write(1, 0x10, &0xc010_0000u32.to_le_bytes());
    assert_eq!(bench.answer(0xc010_0000), Some(7));
    bench.decode(1, false);
    assert_eq!(bench.answer(0xc010_0000), None);
}

#[test]
fn functions_that_do_not_decode_can_change_places() {
    let mut bench = Bench::new();
    let (low, high) = (HIGH, HIGH + (1 << 20));
    bench.plug(1, 7, low);
    bench.plug(2, 8, high);
    for slot in [1, 2] {
        bench.decode(slot, true);
        bench.decode(slot, false);
    }
    for (slot, address) in [(1u64, high), (2, low)] {
        let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
        bench.write(slot, 0x10, &[a, b, c, d]);
        bench.write(slot, 0x14, &[e, f, g, h]);
        // The other one still has its old address in its registers.
        bench.decode(slot, true);
    }
    assert_eq!((bench.answer(low), bench.answer(high)), (Some(8), Some(7)));
}

#[test]
fn one_register_write_is_one_transaction_at_most() {
    let mut bench = Bench::new();
    bench.plug(1, 7, HIGH);
    let before = bench.manager.totals().commits;
    bench.decode(1, true);
    assert_eq!(bench.manager.totals().commits, before + 1);
    bench.decode(1, true);
    bench.write(1, 0x3c, &[5]);
    assert_eq!(bench.manager.totals().commits, before + 1);
}

#[test]
fn a_bar_on_another_device_stays_unwired_until_it_is_moved() {
    let mut bench = Bench::new();
    bench.plug(1, 7, HIGH);
    bench.plug(2, 8, HIGH + BAR_SIZE);
    bench.decode(1, true);
    bench.decode(2, true);
    bench.write(2, 0x10, &0u32.to_le_bytes());
    assert_eq!((bench.answer(HIGH), bench.answer(HIGH + BAR_SIZE)), (Some(7), None));
    bench.write(2, 0x10, &0x8000u32.to_le_bytes());
    assert_eq!((bench.answer(HIGH), bench.answer(HIGH + 0x8000)), (Some(7), Some(8)));
}

#[test]
fn a_bar_that_was_refused_is_placed_when_the_other_one_goes() {
    for goes_by_moving in [true, false] {
        let mut bench = Bench::new();
        bench.plug(1, 7, HIGH);
        bench.plug(2, 8, HIGH);
        bench.plug(3, 9, HIGH);
        for slot in 1..=3 {
            bench.decode(slot, true);
        }
        assert_eq!(bench.answer(HIGH), Some(7));
        if goes_by_moving {
            bench.write(1, 0x10, &0x8000u32.to_le_bytes());
        } else {
            bench.decode(1, false);
        }
        // The first of those that wait; and then the next.
        assert_eq!(bench.answer(HIGH), Some(8));
        assert_eq!(bench.answer(HIGH + 0x8000), goes_by_moving.then_some(7));
        bench.decode(2, false);
        assert_eq!(bench.answer(HIGH), Some(9));
        // One that was refused and does not decode any more waits for nothing.
        bench.decode(2, true);
        bench.decode(2, false);
        let before = bench.manager.totals().commits;
        bench.decode(3, false);
        assert_eq!((bench.answer(HIGH), bench.manager.totals().commits), (None, before + 1));
    }
}

#[test]
fn a_slot_is_filled_once() {
    let bench = Bench::new();
    bench.plug(1, 7, HIGH);
    let again = SharedDevice::new(Function::new(8, 0));
    assert_eq!(bench.segment.plug(1, again.clone()), Err(SlotError::Taken { segment: 0, slot: 1 }));
    assert_eq!(bench.segment.plug(32, again), Err(SlotError::Number(32)));
}

proptest! {
    /// Whatever is written to whatever register, nothing panics and no handler is lost or doubled.
    #[test]
    fn junk_is_survived(writes in proptest::collection::vec((0..3u64, 0..0x120u64, any::<u32>(), 0..4usize), 1..80)) {
        let mut bench = Bench::new();
        bench.plug(1, 7, HIGH);
        bench.plug(2, 8, HIGH + BAR_SIZE);
        for (slot, register, value, width) in writes {
            let length = [1, 2, 4, 8][width];
            let bytes = u64::from(value).to_le_bytes();
            bench.write(slot, register, &bytes[..length]);
        }
        // Wherever the junk has left them, both can be put back.
        for (slot, address) in [(1, HIGH), (2, HIGH + BAR_SIZE)] {
            bench.decode(slot, false);
            bench.write(slot, 0x10, &address.to_le_bytes()[..4]);
            bench.write(slot, 0x14, &address.to_le_bytes()[4..]);
        }
        bench.decode(1, true);
        bench.decode(2, true);
        bench.decode(1, false);
        bench.decode(1, true);
        prop_assert_eq!(bench.answer(HIGH), Some(7));
        prop_assert_eq!(bench.answer(HIGH + BAR_SIZE), Some(8));
    }
}
