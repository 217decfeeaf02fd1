//! Saving and loading a virtio function. Everything loaded is checked as untrusted input.

use address_manager::{Arm, Transaction};
use devices::Stateful;
use vm_migration::LoadError;

use super::{
    VirtioPci,
    registers::{QueueRegisters, size_fits},
    state::{QueueRegistersState, VirtioPciState},
};
use crate::{
    features,
    interrupt::status,
    queue::{QueueConfig, QueueState},
};

const KNOWN_STATUS: u8 = status::ACKNOWLEDGE
    | status::DRIVER
    | status::DRIVER_OK
    | status::FEATURES_OK
    | status::NEEDS_RESET
    | status::FAILED;

impl Stateful for VirtioPci {
    type State = VirtioPciState;

    fn save(&self) -> VirtioPciState {
        let served = serving(self.interrupts.status());
        let progress = |index| self.stopped.iter().find(|(stopped, _)| served && *stopped == index);
        let queues = (0..self.registers.count()).filter_map(|index| {
            let mut queue = self.registers.save_queue(index, &self.interrupts)?;
            queue.progress = progress(index).map(|(_, state)| state.progress);
            Some(queue)
        });
        VirtioPciState {
            pci: self.endpoint.save(),
            window: self.window.save(&self.endpoint),
            device_feature_select: self.registers.device_feature_select,
            driver_feature_select: self.registers.driver_feature_select,
            driver_features: self.registers.driver_features,
            status: self.interrupts.status(),
            isr: self.interrupts.isr(),
            config_generation: self.interrupts.generation(),
            config_vector: self.interrupts.config_vector(),
            queue_select: self.registers.queue_select,
            queues: queues.collect(),
            device: self.device.save_section(&self.id).expect("a device's state is plain data"),
        }
    }

    fn load(&mut self, state: VirtioPciState, transaction: &Transaction<'_>) -> Result<(), LoadError> {
        let VirtioPciState {
            pci,
            window,
            device_feature_select,
            driver_feature_select,
            driver_features,
            status: device_status,
            isr,
            config_generation,
            config_vector,
            queue_select,
            queues,
            device,
        } = state;
        self.registers.device_feature_select = device_feature_select;
        self.registers.driver_feature_select = driver_feature_select;
        self.registers.driver_features = driver_features;
        self.registers.queue_select = queue_select;
        self.check_status(device_status)?;
        self.load_queues(&queues, device_status)?;
        self.interrupts.set_config_vector(config_vector);
        if self.interrupts.config_vector() != config_vector {
            return Err(LoadError::field("config_vector", format!("vector {config_vector} does not exist")));
        }
        if isr & !3 != 0 {
            return Err(LoadError::field("isr", format!("{isr:#x} has reserved bits")));
        }
        self.interrupts.set_status(device_status);
        self.interrupts.set_isr(isr);
        self.interrupts.set_generation(config_generation);
        self.endpoint.load(&pci)?;
        self.window.load(&mut self.endpoint, window);
        if device.id != self.id {
            return Err(LoadError::field("device.id", format!("state of {:?}", device.id)));
        }
        self.device.load_section(&device, transaction)?;
        if serving(device_status) {
            self.activate_loaded(&queues, transaction)?;
        }
        Ok(())
    }
}

/// Whether the device of that status is active. One that waits for its reset serves nothing.
fn serving(device_status: u8) -> bool {
    device_status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
}

impl VirtioPci {
    /// Whether the driver can have brought the device to that status with those features.
    fn check_status(&self, device_status: u8) -> Result<(), LoadError> {
        let wrong = |why: &str| Err(LoadError::field("status", format!("{device_status:#x} {why}")));
        if device_status & !KNOWN_STATUS != 0 {
            return wrong("has reserved bits");
        }
        let steps = [
            (status::DRIVER, status::ACKNOWLEDGE),
            (status::FEATURES_OK, status::DRIVER),
            (status::DRIVER_OK, status::FEATURES_OK),
        ];
        if steps.iter().any(|(bit, before)| device_status & bit != 0 && device_status & before == 0) {
            return wrong("lacks a bit that comes before another");
        }
        if device_status & status::FEATURES_OK != 0 && !self.registers.features_fit() {
            let missing = self.registers.driver_features & !self.registers.offered();
            let why = if missing == 0 {
                format!("{:#x} lack version 1, or contradict each other", self.registers.driver_features)
            } else {
                format!("the guest uses {missing:#x}, which this device does not offer")
            };
            return Err(LoadError::field("driver_features", why));
        }
        Ok(())
    }

    fn load_queues(&mut self, queues: &[QueueRegistersState], device_status: u8) -> Result<(), LoadError> {
        if queues.len() != self.registers.queues.len() {
            let why = format!("{}, the device has {}", queues.len(), self.registers.queues.len());
            return Err(LoadError::field("queues", why));
        }
        let packed = self.registers.negotiated(features::RING_PACKED);
        for (index, (state, registers)) in (0u16..).zip(queues.iter().zip(&mut self.registers.queues)) {
            let QueueRegistersState { size, enabled, vector, descriptors, driver, device, progress } = *state;
            let field = |name: &str| format!("queues[{index}].{name}");
            // A size that only the packed format allows may have been written before the choice was made.
            if !size_fits(size, registers.max_size, packed || !enabled) {
                let why = format!("{size}, with at most {}", registers.max_size);
                return Err(LoadError::field(field("size"), why));
            }
            if enabled && device_status & status::FEATURES_OK == 0 {
                return Err(LoadError::field(field("enabled"), "before features were negotiated"));
            }
            match (progress, enabled && serving(device_status)) {
                (Some(_), false) => {
                    return Err(LoadError::field(field("progress"), "of a queue that is not served"));
                }
                (None, true) => return Err(LoadError::field(field("progress"), "missing")),
                _ => {}
            }
            let config = QueueConfig { size, descriptors, driver, device };
            *registers = QueueRegisters { max_size: registers.max_size, config, enabled };
            self.interrupts.set_queue_vector(index, vector);
            if self.interrupts.queue_vector(index) != vector {
                return Err(LoadError::field(field("vector"), format!("vector {vector} does not exist")));
            }
        }
        Ok(())
    }

    /// Gives the device its queues, where they stood. It serves them once resumed; their doorbells are armed
    /// after that.
    fn activate_loaded(
        &mut self,
        queues: &[QueueRegistersState],
        transaction: &Transaction<'_>,
    ) -> Result<(), LoadError> {
        let memory = transaction.memory();
        let progress = |index: u16| {
            let progress = queues.get(usize::from(index))?.progress?;
            Some(QueueState { progress })
        };
        let active = self
            .build_queues(&memory, progress)
            .map_err(|(index, error)| LoadError::field(format_args!("queues[{index}]"), error))?;
        self.stopped = active.iter().map(|active| (active.index, active.queue.state())).collect();
        let activation = self.activation(active);
        self.device.activate(activation).map_err(|error| LoadError::field("queues", Chain(&error)))?;
        self.active = true;
        self.add_doorbells(Arm::Late);
        Ok(())
    }
}

/// An error with its causes on one line: a field's error has no source of its own.
struct Chain<'e>(&'e dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
