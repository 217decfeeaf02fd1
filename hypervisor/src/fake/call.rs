//! What was asked of the fake back end, in order, and which call is to fail.

use std::{io, os::fd::RawFd};

use parking_lot::Mutex;

use crate::{
    DoorbellSpec, HypervisorError, IrqchipMode, MemorySlot, MsiMessage, Route,
    x86_64::{CpuidEntry, ReadyRegisters, VmClock},
};

/// One call of a trait method, with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the trait method of the same name")]
pub enum Call {
    SupportedCpuid,
    CreateVm { dirty_ring_entries: u32 },
    SetSlot(MemorySlot),
    RemoveSlot(MemorySlot),
    AddDoorbell { doorbell: DoorbellSpec, event: RawFd },
    RemoveDoorbell { doorbell: DoorbellSpec, event: RawFd },
    SetRoutes(Vec<Route>),
    AddIrqfd { gsi: u32, event: RawFd, resample: Option<RawFd> },
    RemoveIrqfd { gsi: u32, event: RawFd, resample: Option<RawFd> },
    CreateIrqchip { mode: IrqchipMode, pit: bool },
    CreateVcpu { index: u32, apic_id: u32 },
    SignalMsi(MsiMessage),
    SetIrqLine { gsi: u32, high: bool },
    SaveIrqchip,
    LoadIrqchip,
    Clock,
    SetClock(VmClock),
    TakeDirtyLog { slot: u32, size: u64 },
    Vcpu { index: u32, call: VcpuCall },
}

/// One call of a vCPU's method.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the trait method of the same name")]
pub enum VcpuCall {
    SetCpuid(Vec<CpuidEntry>),
    SetReady(ReadyRegisters),
    Run,
    Settle,
    Save,
    Load,
    InjectNmi,
    NotifyPause,
    /// A kick through [`VcpuKicker`](crate::VcpuKicker).
    Kick,
    /// Not a call: the scripted guest wrote to an armed doorbell, so no exit was seen.
    Rang(RawFd),
}

impl Call {
    /// Whether this is a method of [`WiringOps`](crate::WiringOps).
    pub fn is_wiring(&self) -> bool {
        matches!(
            self,
            Self::SetSlot(_)
                | Self::RemoveSlot(_)
                | Self::AddDoorbell { .. }
                | Self::RemoveDoorbell { .. }
                | Self::SetRoutes(_)
                | Self::AddIrqfd { .. }
                | Self::RemoveIrqfd { .. }
        )
    }
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What was asked.
    pub call: Call,
    /// Whether the call failed because of a [`Fault`]. It had no effect then.
    pub injected: bool,
}

/// Which calls are to fail. A call that fails so has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The wiring call with this number, counted from 0 at the time the fault is set.
    Wiring(usize),
    /// The wiring call with this number and every later one.
    WiringFrom(usize),
    /// The call of any kind with this number.
    Any(usize),
    /// The call of any kind with this number and every later one.
    AnyFrom(usize),
}

/// The log of one fake hypervisor, or of one VM that was made alone.
#[derive(Debug, Default)]
pub struct Recorder {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: Vec<Entry>,
    fault: Option<Fault>,
    /// Calls since the fault was set: of the wiring, and of any kind.
    wiring: usize,
    any: usize,
}

impl Recorder {
    /// Makes calls fail from now on, in place of any earlier fault.
    pub fn inject(&self, fault: Fault) {
        let mut inner = self.inner.lock();
        inner.fault = Some(fault);
        inner.wiring = 0;
        inner.any = 0;
    }

    /// No further call is to fail.
    pub fn clear_fault(&self) {
        self.inner.lock().fault = None;
    }

    /// Every call so far, whether or not it succeeded.
    pub fn calls(&self) -> Vec<Call> {
        self.inner.lock().entries.iter().map(|entry| entry.call.clone()).collect()
    }

    /// Every call so far, with whether it was made to fail.
    pub fn entries(&self) -> Vec<Entry> {
        self.inner.lock().entries.clone()
    }

    /// The calls of [`WiringOps`](crate::WiringOps) so far.
    pub fn wiring_calls(&self) -> Vec<Call> {
        let inner = self.inner.lock();
        inner.entries.iter().filter(|entry| entry.call.is_wiring()).map(|entry| entry.call.clone()).collect()
    }

    /// How many calls were made.
    pub fn len(&self) -> usize {
        self.inner.lock().entries.len()
    }

    /// Whether no call was made.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hands the log out and starts a new one.
    pub fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut self.inner.lock().entries)
    }

    /// Writes a call down and says whether it is to fail.
    pub(super) fn record(&self, call: Call) -> Result<(), HypervisorError> {
        let mut inner = self.inner.lock();
        let injected = inner.fault.is_some_and(|fault| match fault {
            Fault::Wiring(k) => call.is_wiring() && inner.wiring == k,
            Fault::WiringFrom(k) => call.is_wiring() && inner.wiring >= k,
            Fault::Any(k) => inner.any == k,
            Fault::AnyFrom(k) => inner.any >= k,
        });
        inner.any += 1;
        inner.wiring += usize::from(call.is_wiring());
        let error = injected.then(|| HypervisorError::Call {
            operation: "injected fault:",
            detail: format!("{call:?}"),
            source: io::Error::from_raw_os_error(libc::ENOSPC),
        });
        inner.entries.push(Entry { call, injected });
        error.map_or(Ok(()), Err)
    }

    /// Writes down what happened without asking anybody.
    pub(super) fn note(&self, call: Call) {
        self.inner.lock().entries.push(Entry { call, injected: false });
    }
}
