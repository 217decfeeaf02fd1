//! A guest that writes junk into a function's configuration space and vectors, and a saved state that is junk.
//!
//! No panic; the wiring that comes out lies inside the host bridge's window and belongs to the function; a refused
//! state changes no wiring; and what was saved is accepted by a fresh function and saved alike again.

#![no_main]

use std::sync::Arc;

use address_manager::{AddressManager, Window, WindowKind, Windows};
use cumulet_fuzz::Bytes;
use devices::{
    MsiSink,
    pci::{BarKind, BarShape, BarSpec, ConfigEffect, Endpoint, EndpointState, Identity, MsixTable},
};
use hypervisor::{MsiMessage, fake::FakeVm};
use libfuzzer_sys::fuzz_target;

const LOW: u64 = 0xc000_0000;
const HIGH: u64 = 0x40_0000_0000;
const WINDOW_SIZE: u64 = 0x10_0000;
const VECTORS: u16 = 3;

/// More would only repeat.
const MAX_OPERATIONS: usize = 128;

struct Discard;

impl MsiSink for Discard {
    fn send(&self, _message: MsiMessage) {}
}

struct Guest {
    manager: Arc<AddressManager>,
    function: Endpoint,
}

fuzz_target!(|input: &[u8]| {
    let mut input = Bytes::new(input);
    let mut guest = Guest::new();
    for _ in 0..MAX_OPERATIONS {
        if guest.operation(&mut input).is_none() {
            break;
        }
    }
    guest.check();
});

impl Guest {
    fn new() -> Self {
        let window = |kind| Window { kind, segment: 0 };
        let windows = Windows::new().with(window(WindowKind::Mmio32), LOW, WINDOW_SIZE).with(
            window(WindowKind::Mmio64),
            HIGH,
            WINDOW_SIZE,
        );
        Self { manager: AddressManager::new(FakeVm::new(), 32, windows), function: function() }
    }

    /// `None` when the input is used up.
    fn operation(&mut self, input: &mut Bytes<'_>) -> Option<()> {
        let kind = input.byte()?;
        let width = 1 << (kind >> 4 & 3).min(2);
        match kind % 8 {
            0..=4 => {
                let offset = (input.half()? % 0x200) & !(width - 1);
                let value = input.word()?.to_le_bytes();
                if self.function.write(offset, &value[..usize::from(width)]) == ConfigEffect::Rewire {
                    self.rewire();
                }
            }
            5 => {
                let (offset, value) = (u64::from(input.half()?), input.double()?.to_le_bytes());
                let msix = Arc::clone(self.function.msix()?);
                // The dispatcher bounds an access to the range of the handler.
                let size = u64::from(VECTORS) * 16;
                let width = u64::from(width);
                let offset = (offset % size) & !(width - 1);
                msix.table_handler().write(offset, &value[..usize::try_from(width).ok()?]);
                msix.vector(u16::from(kind >> 6)).inspect(|vector| vector.signal());
            }
            6 => self.load(input)?,
            _ => {
                self.function.reset();
                self.rewire();
            }
        }
        let mut data = [0; 4];
        (0..0x100).step_by(4).for_each(|offset| self.function.read(offset, &mut data));
        Some(())
    }

    fn rewire(&mut self) {
        let transaction = self.manager.begin();
        let staged = self.function.stage(&transaction);
        transaction.commit().expect("the back end refuses nothing that the transaction accepted");
        self.function.committed(staged);
    }

    /// Loads a state into a function of its own, as a restore does, and goes on with that one if it is accepted.
    fn load(&mut self, input: &mut Bytes<'_>) -> Option<()> {
        let junk = input.byte()?;
        let mut state = self.function.save();
        if junk & 1 != 0 {
            state.command = input.half()?;
        }
        if junk & 2 != 0 {
            state.bars = (0..junk >> 5).map_while(|_| input.double()).collect();
        }
        if junk & 4 != 0 {
            state.msix = None;
        }
        if junk & 8 != 0
            && let Some(msix) = &mut state.msix
        {
            msix.control = input.half()?;
            msix.vectors.truncate(usize::from(junk >> 6));
        }
        let before = self.manager.live();
        let mut fresh = function();
        let accepted = fresh.load(&state).is_ok();
        assert!(*self.manager.live() == *before, "loading changes no wiring");
        if accepted {
            let transaction = self.manager.begin();
            self.function.unplug(&transaction);
            transaction.commit().expect("what is wired can be taken away");
            self.function = fresh;
            self.rewire();
        }
        Some(())
    }

    fn check(&self) {
        let owner = self.function.owner();
        for handler in self.manager.live().handlers() {
            assert_eq!(&handler.owner, owner);
            let inside = |start: u64| handler.base >= start && handler.end() <= start + WINDOW_SIZE;
            assert!(inside(LOW) || inside(HIGH), "{handler:?}");
        }
        let state: EndpointState = self.function.save();
        let mut again = function();
        again.load(&state).expect("a state of our own is accepted");
        assert_eq!(again.save(), state);
    }
}

fn function() -> Endpoint {
    let identity =
        Identity { vendor: 1, device: 2, revision: 0, class: 0xff_0000, subsystem_vendor: 0, subsystem: 0 };
    let mut endpoint = Endpoint::new("function", 0, identity);
    let bar = |index, kind| BarSpec { index, size: 0x4000, kind, prefetchable: false };
    endpoint.add_bar(bar(0, BarKind::Memory64), HIGH, BarShape::default());
    endpoint.add_bar(bar(2, BarKind::Memory32), LOW, BarShape::default());
    endpoint.add_msix(MsixTable::new(Arc::new(Discard), 0, VECTORS), 0, 0x2000, 0x3000);
    endpoint
}
