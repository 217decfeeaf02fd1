//! MSI-X (PCI 3.0 section 6.8.2): the vector table, the pending bits, and the handle that raises a
//! vector.
//!
//! A device of this process sends its interrupt as a message, so the table needs no interrupt route
//! and masking a vector changes nothing outside this file.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use address_manager::Handler;
use hypervisor::MsiMessage;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use vm_migration::LoadError;

use crate::handle::MsiSink;

/// Capability id.
pub const CAPABILITY_ID: u8 = 0x11;
/// Greatest number of vectors of one function.
pub const MAX_VECTORS: u16 = 2048;
/// Message control: MSI-X is on.
pub const ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
pub const FUNCTION_MASK: u16 = 1 << 14;
/// Bytes of one table entry.
pub const ENTRY_SIZE: u64 = 16;

const VECTOR_MASKED: u32 = 1;

/// One entry of the vector table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Vector {
    address: u64,
    data: u32,
    control: u32,
    pending: bool,
}

impl Vector {
    const RESET: Self = Self { address: 0, data: 0, control: VECTOR_MASKED, pending: false };
}

/// Saved form of a vector table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsixState {
    /// Enable and function mask bits of message control.
    pub control: u16,
    /// The vectors.
    pub vectors: Vec<VectorState>,
}

/// Saved form of one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VectorState {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// Vector control; bit 0 masks.
    pub control: u32,
    /// Raised while masked.
    pub pending: bool,
}

/// A function's vectors. Shared by the function, the handlers of its table and pending bits, and
/// the [`MsiVector`]s handed to the device's threads; each vector has its own lock.
pub struct MsixTable {
    sink: Arc<dyn MsiSink>,
    /// The requester id that goes with every message.
    device_id: u32,
    control: AtomicU16,
    vectors: Box<[Mutex<Vector>]>,
}

impl MsixTable {
    /// `count` masked vectors (1 to 2048) that send through `sink`.
    pub fn new(sink: Arc<dyn MsiSink>, device_id: u32, count: u16) -> Arc<Self> {
        let count = count.clamp(1, MAX_VECTORS);
        Arc::new(Self {
            sink,
            device_id,
            control: AtomicU16::new(0),
            vectors: (0..count).map(|_| Mutex::new(Vector::RESET)).collect(),
        })
    }

    /// Number of vectors.
    pub fn count(&self) -> u16 {
        u16::try_from(self.vectors.len()).unwrap_or(MAX_VECTORS)
    }

    /// The handle of one vector, if there is that many.
    pub fn vector(self: &Arc<Self>, index: u16) -> Option<MsiVector> {
        (index < self.count()).then(|| MsiVector { table: Arc::clone(self), index })
    }

    /// Whether the guest has switched MSI-X on.
    pub fn enabled(&self) -> bool {
        self.control.load(Ordering::SeqCst) & ENABLE != 0
    }

    /// The guest-writable bits of message control.
    pub fn control(&self) -> u16 {
        self.control.load(Ordering::SeqCst)
    }

    /// The guest writes message control. Vectors that were raised while all were masked are sent.
    pub fn set_control(&self, control: u16) {
        self.control.store(control & (ENABLE | FUNCTION_MASK), Ordering::SeqCst);
        // A vector raised at the same time either saw the new value under its lock, or has set its
        // pending bit before this loop takes that lock.
        for vector in &self.vectors {
            self.deliver_pending(&mut vector.lock());
        }
    }

    /// Raises a vector: sends its message, or leaves it pending while masked.
    fn signal(&self, index: u16) {
        if let Some(vector) = self.vectors.get(usize::from(index)) {
            let mut vector = vector.lock();
            vector.pending = true;
            self.deliver_pending(&mut vector);
        }
    }

    fn deliver_pending(&self, vector: &mut Vector) {
        let control = self.control.load(Ordering::SeqCst);
        if vector.pending
            && control & (ENABLE | FUNCTION_MASK) == ENABLE
            && vector.control & VECTOR_MASKED == 0
        {
            vector.pending = false;
            self.sink.send(MsiMessage {
                address: vector.address,
                data: vector.data,
                device_id: self.device_id,
            });
        }
    }

    /// All vectors masked, nothing pending, MSI-X off.
    pub fn reset(&self) {
        self.control.store(0, Ordering::SeqCst);
        for vector in &self.vectors {
            *vector.lock() = Vector::RESET;
        }
    }

    /// The saved form.
    pub fn save(&self) -> MsixState {
        let vectors = self.vectors.iter().map(|vector| {
            let Vector { address, data, control, pending } = *vector.lock();
            VectorState { address, data, control, pending }
        });
        MsixState { control: self.control(), vectors: vectors.collect() }
    }

    /// Takes over a saved form. Nothing is sent: what is pending and unmasked goes out with
    /// [`resume`](Self::resume).
    ///
    /// # Errors
    /// Another number of vectors, or reserved bits set.
    pub fn load(&self, state: &MsixState) -> Result<(), LoadError> {
        let MsixState { control, vectors } = state;
        if vectors.len() != self.vectors.len() {
            let why = format!("{} vectors, the device has {}", vectors.len(), self.vectors.len());
            return Err(LoadError::field("msix.vectors", why));
        }
        if control & !(ENABLE | FUNCTION_MASK) != 0 {
            return Err(LoadError::field("msix.control", format!("{control:#x} has reserved bits")));
        }
        self.control.store(*control, Ordering::SeqCst);
        for (vector, saved) in self.vectors.iter().zip(vectors) {
            let VectorState { address, data, control, pending } = *saved;
            *vector.lock() = Vector { address, data, control: control & VECTOR_MASKED, pending };
        }
        Ok(())
    }

    /// Sends what is pending and not masked.
    pub fn resume(&self) {
        for vector in &self.vectors {
            self.deliver_pending(&mut vector.lock());
        }
    }

    /// The handler of the table's place in its BAR.
    pub fn table_handler(self: &Arc<Self>) -> Arc<dyn Handler> {
        Arc::new(TableHandler(Arc::clone(self)))
    }

    /// The handler of the pending bits' place in the BAR.
    pub fn pending_handler(self: &Arc<Self>) -> Arc<dyn Handler> {
        Arc::new(PendingHandler(Arc::clone(self)))
    }

    fn read_word(&self, offset: u64) -> u32 {
        let Some(vector) = self.entry(offset) else { return u32::MAX };
        let vector = vector.lock();
        let [low, high] = halves(vector.address);
        match offset % ENTRY_SIZE {
            0 => low,
            4 => high,
            8 => vector.data,
            _ => vector.control,
        }
    }

    fn write_word(&self, offset: u64, value: u32) {
        let Some(vector) = self.entry(offset) else { return };
        let mut vector = vector.lock();
        let [low, high] = halves(vector.address);
        match offset % ENTRY_SIZE {
            // The low two bits of the address are reserved and read as zero.
            0 => vector.address = join(value & !3, high),
            4 => vector.address = join(low, value),
            8 => vector.data = value,
            _ => vector.control = value & VECTOR_MASKED,
        }
        self.deliver_pending(&mut vector);
    }

    fn entry(&self, offset: u64) -> Option<&Mutex<Vector>> {
        self.vectors.get(usize::try_from(offset / ENTRY_SIZE).ok()?)
    }

    fn pending_word(&self, offset: u64) -> u32 {
        let first = usize::try_from(offset.saturating_mul(8)).unwrap_or(usize::MAX);
        let bits = self.vectors.iter().skip(first).take(32).enumerate();
        bits.fold(0, |word, (bit, vector)| word | u32::from(vector.lock().pending) << bit)
    }
}

impl fmt::Debug for MsixTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MsixTable({} vectors, control {:#x})", self.vectors.len(), self.control())
    }
}

fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

fn join(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// The right to raise one vector. What is raised while masked is pending until unmasked.
#[derive(Clone)]
pub struct MsiVector {
    table: Arc<MsixTable>,
    index: u16,
}

impl MsiVector {
    /// Raises the vector.
    pub fn signal(&self) {
        self.table.signal(self.index);
    }

    /// Which vector.
    pub fn index(&self) -> u16 {
        self.index
    }
}

impl fmt::Debug for MsiVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MsiVector({})", self.index)
    }
}

/// Splits an access into aligned 32-bit words; the table is accessed by 4 or 8 bytes (PCI 3.0
/// section 6.8.2), anything else reads as ones and is ignored.
fn words(offset: u64, length: usize) -> Option<usize> {
    (offset.is_multiple_of(4) && (length == 4 || (length == 8 && offset.is_multiple_of(8))))
        .then_some(length / 4)
}

fn read_words(offset: u64, data: &mut [u8], word: impl Fn(u64) -> u32) {
    if words(offset, data.len()).is_some() {
        for (at, bytes) in (offset..).step_by(4).zip(data.chunks_exact_mut(4)) {
            bytes.copy_from_slice(&word(at).to_le_bytes());
        }
    }
}

struct TableHandler(Arc<MsixTable>);

impl Handler for TableHandler {
    fn read(&self, offset: u64, data: &mut [u8]) {
        read_words(offset, data, |at| self.0.read_word(at));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if words(offset, data.len()).is_some() {
            for (at, bytes) in (offset..).step_by(4).zip(data.chunks_exact(4)) {
                let value = bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
                self.0.write_word(at, value);
            }
        }
    }
}

struct PendingHandler(Arc<MsixTable>);

impl Handler for PendingHandler {
    fn read(&self, offset: u64, data: &mut [u8]) {
        read_words(offset, data, |at| self.0.pending_word(at));
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Sent(Mutex<Vec<MsiMessage>>);

    impl MsiSink for Sent {
        fn send(&self, message: MsiMessage) {
            self.0.lock().push(message);
        }
    }

    fn table(count: u16) -> (Arc<Sent>, Arc<MsixTable>) {
        let sent = Arc::new(Sent::default());
        (Arc::clone(&sent), MsixTable::new(sent, 0x18, count))
    }

    fn program(table: &Arc<MsixTable>, index: u64, data: u32, control: u32) {
        let handler = table.table_handler();
        handler.write(index * 16, &0xfee0_1000u64.to_le_bytes());
        handler.write(index * 16 + 8, &data.to_le_bytes());
        handler.write(index * 16 + 12, &control.to_le_bytes());
    }

    #[test]
    fn a_vector_is_sent_when_enabled_and_not_masked() {
        let (sent, table) = table(4);
        program(&table, 2, 0x41, 0);
        table.set_control(ENABLE);
        table.vector(2).unwrap().signal();
        assert_eq!(*sent.0.lock(), [MsiMessage { address: 0xfee0_1000, data: 0x41, device_id: 0x18 }]);
        assert!(table.vector(4).is_none());
    }

    #[test]
    fn what_is_raised_while_masked_is_sent_once_after() {
        let (sent, table) = table(40);
        program(&table, 33, 0x41, 1);
        table.set_control(ENABLE);
        let vector = table.vector(33).unwrap();
        vector.signal();
        vector.signal();
        assert!(sent.0.lock().is_empty());
        let mut bits = [0; 8];
        table.pending_handler().read(0, &mut bits);
        assert_eq!(u64::from_le_bytes(bits), 1 << 33);
        table.table_handler().write(33 * 16 + 12, &0u32.to_le_bytes());
        assert_eq!(sent.0.lock().len(), 1);
        table.set_control(ENABLE | FUNCTION_MASK);
        vector.signal();
        assert_eq!(sent.0.lock().len(), 1);
        table.set_control(ENABLE);
        assert_eq!(sent.0.lock().len(), 2);
    }

    #[test]
    fn a_loaded_table_sends_nothing_before_resume() {
        let (_, source) = table(2);
        program(&source, 0, 0x50, 1);
        source.set_control(ENABLE);
        source.vector(0).unwrap().signal();
        let mut state = source.save();
        state.vectors[0].control = 0;
        let (sent, table) = table(2);
        table.load(&state).unwrap();
        assert!(sent.0.lock().is_empty());
        assert_eq!(table.save(), state);
        table.resume();
        assert_eq!(sent.0.lock().len(), 1);
        state.vectors.pop();
        assert!(table.load(&state).unwrap_err().to_string().contains("1 vectors, the device has 2"));
    }

    #[test]
    fn odd_accesses_are_ignored() {
        let (_, table) = table(1);
        let handler = table.table_handler();
        handler.write(1, &[0; 4]);
        handler.write(0, &[0; 2]);
        handler.write(12, &[0; 8]);
        handler.write(1 << 40, &[0; 4]);
        assert_eq!(table.save().vectors[0].control, 1);
        let mut data = [0xff; 4];
        handler.read(16, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}
