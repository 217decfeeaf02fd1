//! Type-0 configuration space (PCI 3.0 section 6.1) without the BARs: bytes, and which of their
//! bits the guest may write.

/// Size in bytes of a function's configuration space with PCI Express.
pub const CONFIG_SIZE: u16 = 4096;
/// Where BAR 0 is.
pub const BAR0: u16 = 0x10;
/// First byte after the BARs.
pub const BARS_END: u16 = 0x28;
/// The command register.
pub const COMMAND: u16 = 0x04;
/// Command: the function answers I/O addresses.
pub const COMMAND_IO: u16 = 1 << 0;
/// Command: the function answers memory addresses.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: the function may reach memory.
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Command: no INTx.
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// The interrupt line register: storage for the guest's software.
pub const INTERRUPT_LINE: u16 = 0x3c;

const STATUS: u16 = 0x06;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const CAPABILITIES_POINTER: u16 = 0x34;
const FIRST_CAPABILITY: u16 = 0x40;
const STANDARD_SIZE: u16 = 256;

/// What a function says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Base class, sub-class and programming interface: 0xCCSSPP.
    pub class: u32,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// The bytes of a configuration space and the mask of guest-writable bits.
#[derive(Debug)]
pub struct ConfigSpace {
    bytes: Box<[u8]>,
    writable: Box<[u8]>,
    last_capability: Option<u16>,
    free: u16,
}

impl ConfigSpace {
    /// A configuration space with nothing but its identity.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: vec![0; usize::from(CONFIG_SIZE)].into(),
            writable: vec![0; usize::from(CONFIG_SIZE)].into(),
            last_capability: None,
            free: FIRST_CAPABILITY,
        };
        space.set_u16(0x00, identity.vendor);
        space.set_u16(0x02, identity.device);
        let [prog_if, sub_class, class, _] = identity.class.to_le_bytes();
        space.set(0x08, &[identity.revision, prog_if, sub_class, class]);
        space.set_u16(0x2c, identity.subsystem_vendor);
        space.set_u16(0x2e, identity.subsystem);
        space.allow(COMMAND, &(COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE).to_le_bytes());
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Adds a capability (PCI 3.0 section 6.7): its id, the bytes after the next pointer, and the
    /// writable bits of those. Returns the offset of its first byte.
    ///
    /// # Panics
    /// The standard space is full: a function's capabilities are fixed when it is built.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u16 {
        let at = self.free;
        let length = u16::try_from(body.len() + 2).unwrap_or(u16::MAX);
        let end = at.saturating_add(length).next_multiple_of(4);
        assert!(end <= STANDARD_SIZE, "capabilities beyond configuration space");
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.allow(at + 2, writable);
        let [pointer, _] = at.to_le_bytes();
        let previous = self.last_capability.map_or(CAPABILITIES_POINTER, |last| last + 1);
        self.set(previous, &[pointer]);
        self.set_u16(STATUS, self.u16(STATUS) | STATUS_CAPABILITIES);
        self.last_capability = Some(at);
        self.free = end;
        at
    }

    /// Copies bytes out; beyond the end reads as zero.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (at, byte) in (usize::from(offset)..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// The guest writes: only writable bits change.
    pub fn guest_write(&mut self, offset: u16, data: &[u8]) {
        for (at, byte) in (usize::from(offset)..).zip(data) {
            if let (Some(old), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *old = (*old & !mask) | (byte & mask);
            }
        }
    }

    /// Sets bytes, writable or not.
    pub fn set(&mut self, offset: u16, data: &[u8]) {
        for (at, byte) in (usize::from(offset)..).zip(data) {
            if let Some(old) = self.bytes.get_mut(at) {
                *old = *byte;
            }
        }
    }

    /// Sets a 16-bit register.
    pub fn set_u16(&mut self, offset: u16, value: u16) {
        self.set(offset, &value.to_le_bytes());
    }

    /// A 16-bit register.
    pub fn u16(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        self.u16(COMMAND)
    }

    fn allow(&mut self, offset: u16, mask: &[u8]) {
        for (at, bits) in (usize::from(offset)..).zip(mask) {
            if let Some(old) = self.writable.get_mut(at) {
                *old |= bits;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: 0x018000,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        })
    }

    #[test]
    fn the_identity_cannot_be_written() {
        let mut space = space();
        for at in 0..CONFIG_SIZE {
            space.guest_write(at, &[0xff]);
        }
        assert_eq!((space.u16(0), space.u16(2)), (0x1af4, 0x1042));
        let mut class = [0; 4];
        space.read(8, &mut class);
        assert_eq!(class, [1, 0, 0x80, 1]);
        assert_eq!(space.command(), COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE);
    }

    #[test]
    fn capabilities_are_chained() {
        let mut space = space();
        let first = space.add_capability(0x11, &[1, 2, 3], &[0, 0xf0]);
        let second = space.add_capability(0x09, &[4], &[]);
        let mut pointer = [0; 1];
        space.read(CAPABILITIES_POINTER, &mut pointer);
        assert_eq!(u16::from(pointer[0]), first);
        space.read(first + 1, &mut pointer);
        assert_eq!(u16::from(pointer[0]), second);
        assert_eq!(second % 4, 0);
        space.guest_write(first, &[0xff, 0xff, 0xff, 0xff]);
        let mut body = [0; 4];
        space.read(first, &mut body);
        assert_eq!(body, [0x11, second.to_le_bytes()[0], 1, 0xf2]);
    }

    #[test]
    fn accesses_beyond_the_end_are_harmless() {
        let mut space = space();
        space.guest_write(CONFIG_SIZE - 1, &[1, 2, 3, 4]);
        let mut data = [9; 4];
        space.read(CONFIG_SIZE - 2, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
