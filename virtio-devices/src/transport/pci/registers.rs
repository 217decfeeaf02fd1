//! The common configuration structure (virtio 1.3 section 4.1.4.3) and the state machine of a device's
//! status (section 3.1).
//!
//! ```text
//!            ACKNOWLEDGE   DRIVER    FEATURES_OK (if the     DRIVER_OK
//!   reset ------> * ------> * ------> * features fit) ------> * active
//!     ^                                                        |
//!     +-------------- status 0, at any time -------------------+
//! ```
//!
//! Registers only: what a write means for the device and its wiring is an [`Action`], which the function
//! carries out. A write that the specification forbids to the driver changes nothing.

use log::debug;

use super::state::QueueRegistersState;
use crate::{
    device::FeatureRule,
    features,
    interrupt::{Interrupts, NO_VECTOR, status},
    queue::{MAX_QUEUE_SIZE, QueueConfig},
};

/// What a register write asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing more.
    None,
    /// The driver is ready: DRIVER_OK is to be set, and the device to be activated.
    Activate,
    /// The device is to be reset.
    Reset,
    /// A queue that was reset on its own is to be served again.
    StartQueue(u16),
    /// A queue is to be reset on its own.
    StopQueue(u16),
}

/// The registers of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueRegisters {
    pub(super) max_size: u16,
    pub(super) config: QueueConfig,
    pub(super) enabled: bool,
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        Self { max_size, config: QueueConfig { size: max_size, ..QueueConfig::default() }, enabled: false }
    }

    /// Back to what it was at power-on.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }
}

/// The registers that are not shared with the device's threads (those are in [`Interrupts`]).
#[derive(Clone, Debug)]
pub(super) struct Registers {
    id: String,
    offered: u64,
    rules: &'static [FeatureRule],
    pub(super) device_feature_select: u32,
    pub(super) driver_feature_select: u32,
    pub(super) driver_features: u64,
    pub(super) queue_select: u16,
    pub(super) queues: Vec<QueueRegisters>,
}

impl Registers {
    pub(super) fn new(id: &str, offered: u64, rules: &'static [FeatureRule], max_sizes: &[u16]) -> Self {
        Self {
            id: id.to_owned(),
            offered,
            rules,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues: max_sizes.iter().map(|size| QueueRegisters::new(*size)).collect(),
        }
    }

    /// Everything as at power-on, the shared registers included.
    pub(super) fn reset(&mut self, shared: &Interrupts) {
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        for (index, queue) in (0..).zip(&mut self.queues) {
            queue.reset();
            shared.set_queue_vector(index, NO_VECTOR);
        }
        shared.set_config_vector(NO_VECTOR);
        shared.set_isr(0);
        shared.set_status(0);
    }

    pub(super) fn offered(&self) -> u64 {
        self.offered
    }

    pub(super) fn negotiated(&self, bit: u64) -> bool {
        self.driver_features & bit != 0
    }

    /// Number of queues.
    pub(super) fn count(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// The guest reads: any part of the structure, in any width.
    pub(super) fn read(&self, offset: u64, data: &mut [u8], shared: &Interrupts) {
        let mut image = [0; 64];
        let half = |word: u64, select: u32| match select {
            0 => low(word),
            1 => low(word >> 32),
            _ => 0,
        };
        put(&mut image, 0, &self.device_feature_select.to_le_bytes());
        put(&mut image, 4, &half(self.offered, self.device_feature_select).to_le_bytes());
        put(&mut image, 8, &self.driver_feature_select.to_le_bytes());
        put(&mut image, 12, &half(self.driver_features, self.driver_feature_select).to_le_bytes());
        put(&mut image, 16, &shared.config_vector().to_le_bytes());
        put(&mut image, 18, &self.count().to_le_bytes());
        put(&mut image, 20, &[shared.status(), shared.generation()]);
        put(&mut image, 22, &self.queue_select.to_le_bytes());
        if let Some(queue) = self.selected() {
            put(&mut image, 24, &queue.config.size.to_le_bytes());
            put(&mut image, 26, &shared.queue_vector(self.queue_select).to_le_bytes());
            put(&mut image, 28, &u16::from(queue.enabled).to_le_bytes());
            put(&mut image, 30, &self.queue_select.to_le_bytes());
            put(&mut image, 32, &queue.config.descriptors.to_le_bytes());
            put(&mut image, 40, &queue.config.driver.to_le_bytes());
            put(&mut image, 48, &queue.config.device.to_le_bytes());
        } else {
            // A queue that does not exist has size 0.
            put(&mut image, 26, &NO_VECTOR.to_le_bytes());
        }
        crate::device::read_config_bytes(&image, offset, data);
    }

    /// The guest writes: whole fields, 64-bit ones also by halves.
    pub(super) fn write(&mut self, offset: u64, data: &[u8], shared: &Interrupts) -> Action {
        match (offset, data) {
            (0, &[a, b, c, d]) => self.device_feature_select = u32::from_le_bytes([a, b, c, d]),
            (8, &[a, b, c, d]) => self.driver_feature_select = u32::from_le_bytes([a, b, c, d]),
            (12, &[a, b, c, d]) => self.write_features(u32::from_le_bytes([a, b, c, d]), shared.status()),
            (16, &[a, b]) => shared.set_config_vector(u16::from_le_bytes([a, b])),
            (20, &[value]) => return self.write_status(value, shared),
            (22, &[a, b]) => self.queue_select = u16::from_le_bytes([a, b]),
            (24, &[a, b]) => self.write_size(u16::from_le_bytes([a, b])),
            (26, &[a, b]) => shared.set_queue_vector(self.queue_select, u16::from_le_bytes([a, b])),
            (28, &[a, b]) => return self.write_enable(u16::from_le_bytes([a, b]), shared.status()),
            (58, &[a, b]) => return self.write_reset(u16::from_le_bytes([a, b]), shared.status()),
            (32 | 36 | 40 | 44 | 48 | 52, &[a, b, c, d]) => {
                self.write_address(offset, u32::from_le_bytes([a, b, c, d]));
            }
            (32 | 40 | 48, &[a, b, c, d, e, f, g, h]) => {
                self.write_address(offset, u32::from_le_bytes([a, b, c, d]));
                self.write_address(offset + 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => debug!("{}: write of {} bytes to common configuration {offset:#x}", self.id, data.len()),
        }
        Action::None
    }

    fn write_features(&mut self, value: u32, current: u8) {
        if current & status::DRIVER == 0 || current & status::FEATURES_OK != 0 {
            return self.refuse("features outside of their negotiation");
        }
        let value = u64::from(value);
        match self.driver_feature_select {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | value,
            1 => self.driver_features = self.driver_features & 0xffff_ffff | value << 32,
            _ if value == 0 => {}
            _ => self.refuse("feature bits above 63"),
        }
    }

    fn write_status(&mut self, value: u8, shared: &Interrupts) -> Action {
        let current = shared.status();
        if value == 0 {
            return Action::Reset;
        }
        let kept = current & !status::NEEDS_RESET;
        if value & kept != kept {
            self.refuse("status bits taken away without a reset");
            return Action::None;
        }
        let known =
            status::ACKNOWLEDGE | status::DRIVER | status::DRIVER_OK | status::FEATURES_OK | status::FAILED;
        let added = value & known & !current;
        let after = current | added;
        let steps = [
            (status::DRIVER, status::ACKNOWLEDGE),
            (status::FEATURES_OK, status::DRIVER),
            (status::DRIVER_OK, status::FEATURES_OK),
        ];
        if steps.iter().any(|(bit, before)| after & bit != 0 && after & before == 0) {
            self.refuse("status bits out of order");
            return Action::None;
        }
        if added & status::FEATURES_OK != 0 && !self.features_fit() {
            // The driver reads the status again and finds the bit missing.
            debug!("{}: features {:#x} do not fit {:#x}", self.id, self.driver_features, self.offered);
            shared.add_status(added & !(status::FEATURES_OK | status::DRIVER_OK));
            return Action::None;
        }
        // DRIVER_OK appears when the device is active.
        shared.add_status(added & !status::DRIVER_OK);
        if added & status::DRIVER_OK != 0 { Action::Activate } else { Action::None }
    }

    /// A subset of what is offered, version 1, and nothing that lacks what it needs.
    pub(super) fn features_fit(&self) -> bool {
        let broken = |(bit, needs): &FeatureRule| self.negotiated(*bit) && !self.negotiated(*needs);
        self.driver_features & !self.offered == 0
            && self.negotiated(features::VERSION_1)
            && !self.rules.iter().any(broken)
    }

    fn write_size(&mut self, size: u16) {
        let packed = self.negotiated(features::RING_PACKED);
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        if queue.enabled {
            return self.refuse("size of an enabled queue");
        }
        if !size_fits(size, queue.max_size, packed) {
            return self.refuse("queue size");
        }
        queue.config.size = size;
    }

    fn write_address(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        if queue.enabled {
            return self.refuse("address of an enabled queue");
        }
        let address = match offset & !7 {
            32 => &mut queue.config.descriptors,
            40 => &mut queue.config.driver,
            _ => &mut queue.config.device,
        };
        let value = u64::from(value);
        *address = if offset.is_multiple_of(8) {
            *address & !0xffff_ffff | value
        } else {
            *address & 0xffff_ffff | value << 32
        };
    }

    fn write_enable(&mut self, value: u16, current: u8) -> Action {
        let after_reset = self.negotiated(features::RING_RESET);
        let packed = self.negotiated(features::RING_PACKED);
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return Action::None };
        if value != 1 {
            self.refuse("value for queue_enable");
        } else if current & status::FEATURES_OK == 0 {
            self.refuse("queue enabled before features are negotiated");
        } else if queue.enabled {
            // Harmless: it is enabled.
        } else if current & status::DRIVER_OK != 0 && !after_reset {
            self.refuse("queue enabled when the device is active");
        } else if !size_fits(queue.config.size, queue.max_size, packed) {
            self.refuse("queue enabled with a size that does not fit");
        } else {
            queue.enabled = true;
            if current & status::DRIVER_OK != 0 {
                return Action::StartQueue(self.queue_select);
            }
        }
        Action::None
    }

    fn write_reset(&mut self, value: u16, current: u8) -> Action {
        let allowed = self.negotiated(features::RING_RESET) && current & status::DRIVER_OK != 0;
        match self.selected() {
            Some(queue) if value == 1 && allowed && queue.enabled => Action::StopQueue(self.queue_select),
            _ => {
                self.refuse("queue_reset");
                Action::None
            }
        }
    }

    fn refuse(&self, what: &str) {
        debug!("{}: the driver broke a rule: {what}", self.id);
    }

    /// The saved form of queue `index`'s registers.
    pub(super) fn save_queue(&self, index: u16, shared: &Interrupts) -> Option<QueueRegistersState> {
        let QueueRegisters { max_size: _, config, enabled } = *self.queues.get(usize::from(index))?;
        let QueueConfig { size, descriptors, driver, device } = config;
        let vector = shared.queue_vector(index);
        Some(QueueRegistersState { size, enabled, vector, descriptors, driver, device, progress: None })
    }
}

/// Whether a queue of at most `max` descriptors can have `size` of them.
pub(super) fn size_fits(size: u16, max: u16, packed: bool) -> bool {
    size != 0 && size <= max && size <= MAX_QUEUE_SIZE && (packed || size.is_power_of_two())
}

fn low(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or(u32::MAX)
}

fn put(image: &mut [u8; 64], at: usize, bytes: &[u8]) {
    for (old, new) in image.iter_mut().skip(at).zip(bytes) {
        *old = *new;
    }
}
