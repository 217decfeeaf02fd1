//! The virtio capabilities of a function (virtio 1.3 section 4.1.4), and the one of them that is itself a
//! way to the BAR: the window in configuration space (4.1.4.9), for software that cannot map BARs yet.

use devices::pci::Endpoint;

use super::{
    layout::{
        BAR, BarLayout, COMMON, COMMON_SIZE, DEVICE, DEVICE_SIZE, ISR, ISR_SIZE, NOTIFY, NOTIFY_MULTIPLIER,
    },
    state::WindowState,
};

const VENDOR_CAPABILITY: u8 = 0x09;

const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_ISR: u8 = 3;
const TYPE_DEVICE: u8 = 4;
const TYPE_WINDOW: u8 = 5;

/// Offsets in the window's capability.
const WINDOW_BAR: u16 = 4;
const WINDOW_OFFSET: u16 = 8;
const WINDOW_LENGTH: u16 = 12;
const WINDOW_DATA: u16 = 16;

/// Adds the capabilities; returns where the window's is.
pub(super) fn add_capabilities(endpoint: &mut Endpoint, layout: BarLayout) -> u16 {
    let word = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let mut add = |kind: u8, offset: u64, size: u64, extra: &[u8], writable: &[u8]| {
        let length = u8::try_from(16 + extra.len()).unwrap_or(u8::MAX);
        let mut body = vec![length, kind, BAR, 0, 0, 0];
        body.extend(word(offset).to_le_bytes());
        body.extend(word(size).to_le_bytes());
        body.extend(extra);
        endpoint.add_capability(VENDOR_CAPABILITY, &body, writable)
    };
    add(TYPE_COMMON, COMMON, COMMON_SIZE, &[], &[]);
    add(TYPE_ISR, ISR, ISR_SIZE, &[], &[]);
    add(TYPE_DEVICE, DEVICE, DEVICE_SIZE, &[], &[]);
    add(TYPE_NOTIFY, NOTIFY, layout.notify_size(), &NOTIFY_MULTIPLIER.to_le_bytes(), &[]);
    // The guest writes BAR number, offset, length and data.
    let mut writable = [0xff; 18];
    if let Some(fixed) = writable.get_mut(..6) {
        fixed.copy_from_slice(&[0, 0, 0xff, 0, 0, 0]);
    }
    add(TYPE_WINDOW, 0, 0, &[0; 4], &writable)
}

/// The window of one function.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    capability: u16,
}

/// One access through the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WindowAccess {
    /// Offset in the BAR.
    pub(super) offset: u64,
    /// Width in bytes: 1, 2 or 4.
    pub(super) width: usize,
}

impl Window {
    pub(super) fn new(capability: u16) -> Self {
        Self { capability }
    }

    /// Where the data register is, if an access to configuration space touches it.
    pub(super) fn data_touched(self, offset: u16, len: usize) -> Option<u16> {
        let data = self.capability + WINDOW_DATA;
        let end = usize::from(offset) + len;
        (offset < data + 4 && end > usize::from(data)).then_some(data)
    }

    /// The access that the registers describe, if it is one: to the function's BAR, inside of it, aligned.
    pub(super) fn access(self, endpoint: &Endpoint, layout: BarLayout) -> Option<WindowAccess> {
        let WindowState { bar, offset, length } = self.save(endpoint);
        let valid = bar == BAR
            && matches!(length, 1 | 2 | 4)
            && offset.is_multiple_of(length)
            && u64::from(offset) + u64::from(length) <= layout.spec().size;
        let width = usize::try_from(length).ok()?;
        valid.then_some(WindowAccess { offset: u64::from(offset), width })
    }

    pub(super) fn save(self, endpoint: &Endpoint) -> WindowState {
        let mut bar = [0];
        endpoint.read(self.capability + WINDOW_BAR, &mut bar);
        let word = |at| {
            let mut bytes = [0; 4];
            endpoint.read(self.capability + at, &mut bytes);
            u32::from_le_bytes(bytes)
        };
        WindowState { bar: bar[0], offset: word(WINDOW_OFFSET), length: word(WINDOW_LENGTH) }
    }

    pub(super) fn load(self, endpoint: &mut Endpoint, state: WindowState) {
        let WindowState { bar, offset, length } = state;
        // Storage for the guest: any value is one that the guest can write.
        endpoint.write(self.capability + WINDOW_BAR, &[bar]);
        endpoint.write(self.capability + WINDOW_OFFSET, &offset.to_le_bytes());
        endpoint.write(self.capability + WINDOW_LENGTH, &length.to_le_bytes());
    }
}
