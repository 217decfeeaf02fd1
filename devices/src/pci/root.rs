//! The root of a PCI segment: finds the function a configuration access is for, through ECAM (PCI
//! Express 4.0 section 7.2.2) or through ports 0xcf8 and 0xcfc (PCI 3.0 section 3.2.2.3.2), and
//! carries out the rewiring that a write asks for, in one transaction.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering},
    },
};

use address_manager::{AddressManager, Handler, Transaction};
use log::error;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_migration::{LoadError, NoState, State};

use super::{
    ConfigEffect, PciFunction,
    config::{CONFIG_SIZE, Identity},
    endpoint::Endpoint,
};
use crate::{Device, PauseError, SharedDevice, Stateful};

/// Size in bytes of one bus in ECAM: 32 devices of 8 functions of 4 KiB.
pub const ECAM_BUS_SIZE: u64 = 1 << 20;

/// A slot could not be filled.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SlotError {
    /// There is no such slot.
    #[error("PCI slot {0} does not exist: slots are 0 to 31")]
    Number(u8),
    /// A device is there.
    #[error("PCI slot {slot} of segment {segment} is taken")]
    Taken {
        /// The segment.
        segment: u16,
        /// The slot.
        slot: u8,
    },
}

/// Bus 0 of one segment. Shared by its handlers; slots change under a lock of their own.
pub struct PciSegment {
    number: u16,
    // The manager's wiring holds this segment's handlers: a strong reference would be a cycle.
    manager: Weak<AddressManager>,
    slots: RwLock<BTreeMap<u8, SharedDevice>>,
}

impl PciSegment {
    /// A segment with empty slots.
    pub fn new(number: u16, manager: &Arc<AddressManager>) -> Arc<Self> {
        Arc::new(Self { number, manager: Arc::downgrade(manager), slots: RwLock::new(BTreeMap::new()) })
    }

    /// The segment's number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Puts a function into a slot.
    ///
    /// # Errors
    /// There is no such slot, or it is taken.
    pub fn plug(&self, slot: u8, device: SharedDevice) -> Result<(), SlotError> {
        if slot >= 32 {
            return Err(SlotError::Number(slot));
        }
        let mut slots = self.slots.write();
        if slots.contains_key(&slot) {
            return Err(SlotError::Taken { segment: self.number, slot });
        }
        slots.insert(slot, device);
        Ok(())
    }

    /// Empties a slot.
    pub fn unplug(&self, slot: u8) -> Option<SharedDevice> {
        self.slots.write().remove(&slot)
    }

    /// The handler of the segment's ECAM range.
    pub fn ecam_handler(self: &Arc<Self>) -> Arc<dyn Handler> {
        Arc::new(EcamHandler(Arc::clone(self)))
    }

    fn device(&self, bus: u64, devfn: u64) -> Option<SharedDevice> {
        // Function 0 only: multi-function devices do not exist here.
        if bus != 0 || !devfn.is_multiple_of(8) {
            return None;
        }
        self.slots.read().get(&u8::try_from(devfn / 8).ok()?).cloned()
    }

    fn read(&self, bus: u64, devfn: u64, register: u16, data: &mut [u8]) {
        if valid(register, data.len())
            && let Some(device) = self.device(bus, devfn)
            && let Some(function) = device.lock().pci()
        {
            function.config_read(register, data);
        }
    }

    fn write(&self, bus: u64, devfn: u64, register: u16, data: &[u8]) {
        if !valid(register, data.len()) {
            return;
        }
        let Some(device) = self.device(bus, devfn) else { return };
        let effect = device.lock().pci().map(|function| function.config_write(register, data));
        if effect == Some(ConfigEffect::Rewire)
            && let Some(manager) = self.manager.upgrade()
            && rewire(&manager, &device, "BAR")
        {
            self.place_refused(&manager);
        }
    }

    /// A place has become free: has functions with a BAR that was refused try again, in the order of their slots. A BAR
    /// that is placed so gives nothing up, so that once is enough.
    fn place_refused(&self, manager: &AddressManager) {
        let all: Vec<SharedDevice> = self.slots.read().values().cloned().collect();
        for device in all {
            let refused = device.lock().pci().is_some_and(|function| function.endpoint().is_refused());
            if refused {
                rewire(manager, &device, "BAR, refused before");
            }
        }
    }
}

/// Brings the wiring of a function in line with its registers and the shape of its BARs, in one
/// transaction. The transaction is opened before the device is locked, as everybody does; the caller
/// holds no lock. `label` says in the commit report what it is for. Tells whether the function has given up a place
/// that it had.
pub fn rewire(manager: &AddressManager, device: &SharedDevice, label: &str) -> bool {
    let transaction = manager.begin_labelled(label);
    let mut device = device.lock();
    let Some(function) = device.pci() else { return false };
    let endpoint = function.endpoint();
    let staged = endpoint.stage(&transaction);
    match transaction.commit() {
        Ok(_) => endpoint.committed(staged),
        Err(problem) => {
            error!("{}: BARs stay where they were: {problem}", endpoint.owner());
            false
        }
    }
}

impl fmt::Debug for PciSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PciSegment({}, {} functions)", self.number, self.slots.read().len())
    }
}

/// Accesses are 1, 2 or 4 bytes, aligned.
fn valid(register: u16, length: usize) -> bool {
    matches!(length, 1 | 2 | 4) && usize::from(register) % length == 0 && register < CONFIG_SIZE
}

struct EcamHandler(Arc<PciSegment>);

/// Bus, device and function, register of an ECAM offset.
fn ecam(offset: u64) -> (u64, u64, u16) {
    (offset >> 20, (offset >> 12) & 0xff, u16::try_from(offset & 0xfff).unwrap_or(0))
}

impl Handler for EcamHandler {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let (bus, devfn, register) = ecam(offset);
        self.0.read(bus, devfn, register, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (bus, devfn, register) = ecam(offset);
        self.0.write(bus, devfn, register, data);
    }
}

/// Saved form of the address port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigPortsState {
    /// Content of port 0xcf8.
    pub address: u32,
}

impl State for ConfigPortsState {
    const KIND: &'static str = "pci-config-ports";
    const VERSION: u32 = 1;
}

/// Ports 0xcf8 to 0xcff: configuration of segment 0, the first 256 bytes of each function.
///
/// The ports answer without the lock of their device: a write may open a transaction, and a lock
/// held around that could be wanted by whoever has the transaction.
#[derive(Debug)]
pub struct ConfigPorts(Arc<Ports>);

#[derive(Debug)]
struct Ports {
    segment: Arc<PciSegment>,
    address: AtomicU32,
}

impl ConfigPorts {
    /// First port.
    pub const BASE: u64 = 0xcf8;
    /// Number of ports.
    pub const SIZE: u64 = 8;

    /// The ports of a segment.
    pub fn new(segment: Arc<PciSegment>) -> Self {
        Self(Arc::new(Ports { segment, address: AtomicU32::new(0) }))
    }

    /// The handler of the ports.
    pub fn handler(&self) -> Arc<dyn Handler> {
        let ports: Arc<Ports> = Arc::clone(&self.0);
        ports
    }
}

impl Ports {
    const ENABLE: u32 = 1 << 31;

    fn target(&self, offset: u64) -> Option<(u64, u64, u16)> {
        let address = self.address.load(Ordering::SeqCst);
        let byte = u16::try_from(offset.checked_sub(4)?).ok()?;
        let register = u16::try_from(address & 0xfc).ok()? + byte;
        (address & Self::ENABLE != 0).then_some((
            u64::from(address >> 16 & 0xff),
            u64::from(address >> 8 & 0xff),
            register,
        ))
    }
}

impl Handler for Ports {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&self.address.load(Ordering::SeqCst).to_le_bytes());
        } else if let Some((bus, devfn, register)) = self.target(offset) {
            self.segment.read(bus, devfn, register, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, &[a, b, c, d]) = (offset, data) {
            self.address.store(u32::from_le_bytes([a, b, c, d]), Ordering::SeqCst);
        } else if let Some((bus, devfn, register)) = self.target(offset) {
            self.segment.write(bus, devfn, register, data);
        }
    }
}

impl Stateful for ConfigPorts {
    type State = ConfigPortsState;

    fn save(&self) -> ConfigPortsState {
        ConfigPortsState { address: self.0.address.load(Ordering::SeqCst) }
    }

    fn load(&mut self, state: ConfigPortsState, _transaction: &Transaction<'_>) -> Result<(), LoadError> {
        let ConfigPortsState { address } = state;
        self.0.address.store(address, Ordering::SeqCst);
        Ok(())
    }
}

impl Device for ConfigPorts {
    fn pause(&mut self) -> Result<(), PauseError> {
        Ok(())
    }

    fn resume(&mut self) {}

    fn reset(&mut self) {
        self.0.address.store(0, Ordering::SeqCst);
    }
}

/// Function 0 of slot 0 of every segment: says that there is a bus.
#[derive(Debug)]
pub struct HostBridge {
    endpoint: Endpoint,
}

impl HostBridge {
    /// The host bridge of a segment.
    pub fn new(id: &str, segment: u16) -> Self {
        let identity = Identity {
            // What firmware built for this kind of machine looks for.
            vendor: 0x8086,
            device: 0x0d57,
            revision: 0,
            class: 0x06_0000,
            subsystem_vendor: 0,
            subsystem: 0,
        };
        Self { endpoint: Endpoint::new(id, segment, identity) }
    }
}

impl PciFunction for HostBridge {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.endpoint.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) -> ConfigEffect {
        self.endpoint.write(offset, data)
    }

    fn endpoint(&mut self) -> &mut Endpoint {
        &mut self.endpoint
    }
}

impl Stateful for HostBridge {
    // Nothing a guest writes there has a meaning.
    type State = NoState;

    fn save(&self) -> NoState {
        NoState {}
    }

    fn load(&mut self, state: NoState, _transaction: &Transaction<'_>) -> Result<(), LoadError> {
        let NoState {} = state;
        Ok(())
    }
}

impl Device for HostBridge {
    fn pause(&mut self) -> Result<(), PauseError> {
        Ok(())
    }

    fn resume(&mut self) {}

    fn reset(&mut self) {
        self.endpoint.reset();
    }

    fn pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }
}

#[cfg(test)]
mod tests;
