//! The machine's side of the devices' handles: interrupts go to the VM, requests to the control
//! thread.

use std::{
    collections::VecDeque,
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use devices::{GuestRequest, LineSink, MsiSink, RequestSink, platform::IoApic};
use hypervisor::{IrqchipMode, MsiMessage, Vm};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

/// Delivers interrupts to a VM.
pub struct Interrupts {
    vm: Arc<dyn Vm>,
    /// Takes the lines of a VM whose hypervisor has local APICs only.
    io_apic: Option<Arc<Mutex<IoApic>>>,
}

impl Interrupts {
    /// To `vm`, whose hypervisor has an IOAPIC with [`IrqchipMode::Kernel`].
    pub fn new(vm: Arc<dyn Vm>, mode: IrqchipMode) -> Arc<Self> {
        let io_apic = match mode {
            IrqchipMode::Kernel => None,
            IrqchipMode::Split => {
                let messages = Arc::new(Self { vm: Arc::clone(&vm), io_apic: None });
                Some(Arc::new(Mutex::new(IoApic::new(messages))))
            }
        };
        Arc::new(Self { vm, io_apic })
    }

    /// The IOAPIC, where it is a device of this process.
    pub fn io_apic(&self) -> Option<&Arc<Mutex<IoApic>>> {
        self.io_apic.as_ref()
    }
}

impl fmt::Debug for Interrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Interrupts({})", if self.io_apic.is_some() { "split" } else { "kernel" })
    }
}

impl LineSink for Interrupts {
    fn set(&self, gsi: u32, high: bool) {
        if let Some(io_apic) = &self.io_apic {
            io_apic.lock().set_line(gsi, high);
        } else if let Err(error) = self.vm.set_irq_line(gsi, high) {
            log::warn!("{}", crate::error::chain(&error));
        }
    }
}

impl MsiSink for Interrupts {
    fn send(&self, message: MsiMessage) {
        // The guest writes the message: one that the hypervisor refuses is the guest's own loss.
        if let Err(error) = self.vm.signal_msi(&message) {
            log::debug!("{}", crate::error::chain(&error));
        }
    }
}

/// What the guest has asked for and the control thread has not seen yet. Readable as a descriptor
/// when there is something.
pub struct RequestQueue {
    requests: Mutex<VecDeque<GuestRequest>>,
    event: OwnedFd,
}

/// A guest that asks again and again is asking for the same thing.
const QUEUE_LIMIT: usize = 64;

impl RequestQueue {
    /// An empty queue.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new() -> io::Result<Arc<Self>> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Arc::new(Self { requests: Mutex::default(), event }))
    }

    /// The oldest request, if there is one.
    pub fn take(&self) -> Option<GuestRequest> {
        let mut requests = self.requests.lock();
        let oldest = requests.pop_front();
        if requests.is_empty() {
            // Fails only if it was not signalled.
            let _ = rustix::io::read(&self.event, &mut [0; 8]);
        }
        oldest
    }
}

impl AsFd for RequestQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl fmt::Debug for RequestQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestQueue({} waiting)", self.requests.lock().len())
    }
}

impl RequestSink for RequestQueue {
    fn request(&self, request: GuestRequest) {
        let mut requests = self.requests.lock();
        if requests.len() < QUEUE_LIMIT && requests.back() != Some(&request) {
            requests.push_back(request);
        }
        // Fails only when the counter is full, which means it is signalled.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }
}
