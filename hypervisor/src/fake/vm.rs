//! A VM that records, and keeps the model of its wiring.

use std::{
    collections::BTreeMap,
    os::fd::{AsRawFd, BorrowedFd},
    sync::Arc,
};

use parking_lot::Mutex;

use super::{
    call::{Call, Fault, Recorder},
    capable,
    vcpu::{FakeVcpu, Step},
    wiring::{FakeIrqfd, FakeWiring},
};
use crate::{
    Capabilities, DoorbellSpec, HypervisorError, IrqchipMode, Irqfd, MemorySlot, MsiMessage, Route,
    SlotFlags, Vcpu, Vm, WiringOps,
    x86_64::{IrqchipState, StatePart, VmClock},
};

/// Name of the one part that a fake interrupt controller saves: the levels of its lines.
const LINES: &str = "fake.lines";
/// Lines of the fake interrupt controller, as many as an IOAPIC has pins.
const LINE_COUNT: usize = 24;

/// A VM made of plain data.
#[derive(Debug)]
pub struct FakeVm {
    capabilities: Capabilities,
    recorder: Arc<Recorder>,
    state: Arc<Mutex<VmState>>,
}

/// What a VM and its vCPUs share.
#[derive(Debug, Default)]
pub(super) struct VmState {
    pub(super) wiring: FakeWiring,
    irqchip: Option<IrqchipMode>,
    lines: [bool; LINE_COUNT],
    vcpus: BTreeMap<u32, u32>,
    scripts: BTreeMap<u32, Vec<Step>>,
    clock: VmClock,
    dirty: BTreeMap<u32, Vec<u64>>,
    messages: Vec<MsiMessage>,
}

impl FakeVm {
    /// A VM alone, on a host that can do everything, with in-kernel interrupt controllers: what a
    /// test of the wiring needs.
    pub fn new() -> Arc<Self> {
        let vm = Self::empty(capable(), Arc::default());
        vm.state.lock().irqchip = Some(IrqchipMode::Kernel);
        Arc::new(vm)
    }

    /// What [`create_vm`](crate::Hypervisor::create_vm) hands out.
    pub(super) fn empty(capabilities: Capabilities, recorder: Arc<Recorder>) -> Self {
        Self { capabilities, recorder, state: Arc::default() }
    }

    /// The log of this VM (of its whole hypervisor, if it was made by one).
    pub fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    /// Makes calls fail from now on.
    pub fn inject(&self, fault: Fault) {
        self.recorder.inject(fault);
    }

    /// A copy of what the kernel would hold now.
    pub fn wiring_state(&self) -> FakeWiring {
        self.state.lock().wiring.clone()
    }

    /// Gives the vCPU with that index, which is not made yet, something to do.
    pub fn script(&self, index: u32, steps: Vec<Step>) {
        self.state.lock().scripts.insert(index, steps);
    }

    /// The messages sent by [`signal_msi`](Vm::signal_msi) so far.
    pub fn messages(&self) -> Vec<MsiMessage> {
        self.state.lock().messages.clone()
    }

    /// The level of a line set by [`set_irq_line`](Vm::set_irq_line).
    pub fn line(&self, gsi: u32) -> bool {
        usize::try_from(gsi).ok().and_then(|gsi| self.state.lock().lines.get(gsi).copied()).unwrap_or(false)
    }

    /// Pretends that the guest wrote to a page of a slot. Ignored for a slot that is not tracked.
    pub fn dirty_page(&self, slot: u32, page: u64) {
        let mut state = self.state.lock();
        let Some(memory) = state.wiring.slots.get(&slot).copied() else { return };
        if !memory.flags.contains(SlotFlags::LOG_DIRTY) || page >= memory.size / 4096 {
            return;
        }
        let words = bitmap_words(memory.size);
        let bitmap = state.dirty.entry(slot).or_insert_with(|| vec![0; words]);
        if let Some(word) = usize::try_from(page / 64).ok().and_then(|at| bitmap.get_mut(at)) {
            *word |= 1 << (page % 64);
        }
    }

    fn need_irqchip(state: &VmState) -> Result<IrqchipMode, HypervisorError> {
        state.irqchip.ok_or(HypervisorError::Missing { what: "an in-kernel interrupt controller" })
    }
}

impl WiringOps for FakeVm {
    fn set_slot(&self, slot: &MemorySlot) -> Result<(), HypervisorError> {
        self.recorder.record(Call::SetSlot(*slot))?;
        let mut state = self.state.lock();
        state.wiring.set_slot(slot, &self.capabilities)?;
        if !slot.flags.contains(SlotFlags::LOG_DIRTY) {
            state.dirty.remove(&slot.slot);
        }
        Ok(())
    }

    fn remove_slot(&self, slot: &MemorySlot) -> Result<(), HypervisorError> {
        self.recorder.record(Call::RemoveSlot(*slot))?;
        let mut state = self.state.lock();
        state.wiring.remove_slot(slot)?;
        state.dirty.remove(&slot.slot);
        Ok(())
    }

    fn add_doorbell(&self, doorbell: &DoorbellSpec, event: BorrowedFd<'_>) -> Result<(), HypervisorError> {
        let event = event.as_raw_fd();
        self.recorder.record(Call::AddDoorbell { doorbell: *doorbell, event })?;
        self.state.lock().wiring.add_doorbell(doorbell, event, &self.capabilities)
    }

    fn remove_doorbell(&self, doorbell: &DoorbellSpec, event: BorrowedFd<'_>) -> Result<(), HypervisorError> {
        let event = event.as_raw_fd();
        self.recorder.record(Call::RemoveDoorbell { doorbell: *doorbell, event })?;
        self.state.lock().wiring.remove_doorbell(doorbell, event)
    }

    fn set_routes(&self, routes: &[Route]) -> Result<(), HypervisorError> {
        self.recorder.record(Call::SetRoutes(routes.to_vec()))?;
        let mut state = self.state.lock();
        Self::need_irqchip(&state)?;
        state.wiring.set_routes(routes, &self.capabilities)
    }

    fn add_irqfd(&self, irqfd: &Irqfd<'_>) -> Result<(), HypervisorError> {
        let (gsi, event, resample) = numbers(irqfd);
        self.recorder.record(Call::AddIrqfd { gsi, event, resample })?;
        let mut state = self.state.lock();
        // KVM hears of an acknowledgement from its own IOAPIC only (`kvm_arch_irqfd_allowed`).
        if Self::need_irqchip(&state)? == IrqchipMode::Split && resample.is_some() {
            return Err(HypervisorError::Missing { what: "resampling with a split interrupt controller" });
        }
        state.wiring.add_irqfd(event, FakeIrqfd { gsi, resample }, &self.capabilities)
    }

    fn remove_irqfd(&self, irqfd: &Irqfd<'_>) -> Result<(), HypervisorError> {
        let (gsi, event, resample) = numbers(irqfd);
        self.recorder.record(Call::RemoveIrqfd { gsi, event, resample })?;
        self.state.lock().wiring.remove_irqfd(event, gsi)
    }
}

impl Vm for FakeVm {
    fn wiring(&self) -> &dyn WiringOps {
        self
    }

    fn create_irqchip(&self, mode: IrqchipMode, pit: bool) -> Result<(), HypervisorError> {
        self.recorder.record(Call::CreateIrqchip { mode, pit })?;
        let mut state = self.state.lock();
        if mode == IrqchipMode::Split && !self.capabilities.split_irqchip {
            return Err(HypervisorError::Missing { what: "a split interrupt controller" });
        }
        if state.irqchip.is_some() || !state.vcpus.is_empty() {
            return Err(HypervisorError::Invalid {
                what: "interrupt controller",
                detail: "to be made once, before the first vCPU".to_owned(),
            });
        }
        state.irqchip = Some(mode);
        state.wiring.routes = mode.first_routes();
        Ok(())
    }

    fn create_vcpu(&self, index: u32, apic_id: u32) -> Result<Box<dyn Vcpu>, HypervisorError> {
        self.recorder.record(Call::CreateVcpu { index, apic_id })?;
        let mut state = self.state.lock();
        let refuse = |why: &str| {
            let detail = format!("index {index}, APIC id {apic_id}: {why}");
            Err(HypervisorError::Invalid { what: "vCPU", detail })
        };
        if apic_id >= self.capabilities.max_vcpu_id
            || state.vcpus.len() >= self.capabilities.max_vcpus as usize
        {
            return refuse("beyond the limit");
        }
        if state.vcpus.contains_key(&index) || state.vcpus.values().any(|id| *id == apic_id) {
            return refuse("taken");
        }
        state.vcpus.insert(index, apic_id);
        let script = state.scripts.remove(&index).unwrap_or_default();
        Ok(Box::new(FakeVcpu::new(index, script, Arc::clone(&self.recorder), Arc::clone(&self.state))))
    }

    fn signal_msi(&self, message: &MsiMessage) -> Result<(), HypervisorError> {
        self.recorder.record(Call::SignalMsi(*message))?;
        if !self.capabilities.signal_msi {
            return Err(HypervisorError::Missing { what: "interrupts by message" });
        }
        let mut state = self.state.lock();
        Self::need_irqchip(&state)?;
        state.messages.push(*message);
        Ok(())
    }

    fn set_irq_line(&self, gsi: u32, high: bool) -> Result<(), HypervisorError> {
        self.recorder.record(Call::SetIrqLine { gsi, high })?;
        let mut state = self.state.lock();
        Self::need_irqchip(&state)?;
        match usize::try_from(gsi).ok().and_then(|gsi| state.lines.get_mut(gsi)) {
            Some(line) => {
                *line = high;
                Ok(())
            }
            None => Err(HypervisorError::Invalid { what: "GSI line", detail: gsi.to_string() }),
        }
    }

    fn save_irqchip(&self) -> Result<IrqchipState, HypervisorError> {
        self.recorder.record(Call::SaveIrqchip)?;
        let state = self.state.lock();
        let bytes = state.lines.iter().map(|line| u8::from(*line)).collect();
        Ok(IrqchipState { parts: vec![StatePart { name: LINES.to_owned(), bytes }] })
    }

    fn load_irqchip(&self, saved: &IrqchipState) -> Result<(), HypervisorError> {
        self.recorder.record(Call::LoadIrqchip)?;
        let refuse =
            |detail: String| Err(HypervisorError::Invalid { what: "interrupt controller state", detail });
        let [part] = saved.parts.as_slice() else {
            return refuse(format!("{} parts, need 1", saved.parts.len()));
        };
        if part.name != LINES {
            return refuse(format!("unknown part {:?}", part.name));
        }
        let Ok(lines) = <[u8; LINE_COUNT]>::try_from(part.bytes.as_slice()) else {
            return refuse(format!("{LINES}: {} bytes, need {LINE_COUNT}", part.bytes.len()));
        };
        self.state.lock().lines = lines.map(|line| line != 0);
        Ok(())
    }

    fn clock(&self) -> Result<VmClock, HypervisorError> {
        self.recorder.record(Call::Clock)?;
        Ok(self.state.lock().clock)
    }

    fn set_clock(&self, clock: &VmClock) -> Result<(), HypervisorError> {
        self.recorder.record(Call::SetClock(*clock))?;
        self.state.lock().clock = *clock;
        Ok(())
    }

    fn take_dirty_log(&self, slot: u32, size: u64) -> Result<Vec<u64>, HypervisorError> {
        self.recorder.record(Call::TakeDirtyLog { slot, size })?;
        let mut state = self.state.lock();
        match state.wiring.slots.get(&slot) {
            Some(memory) if memory.flags.contains(SlotFlags::LOG_DIRTY) && memory.size == size => {}
            other => {
                let detail = format!("slot {slot} of {size:#x} bytes, have {other:x?}");
                return Err(HypervisorError::Invalid { what: "dirty log", detail });
            }
        }
        Ok(state.dirty.remove(&slot).unwrap_or_else(|| vec![0; bitmap_words(size)]))
    }
}

fn numbers(irqfd: &Irqfd<'_>) -> (u32, i32, Option<i32>) {
    (irqfd.gsi, irqfd.event.as_raw_fd(), irqfd.resample.map(|fd| fd.as_raw_fd()))
}

/// Words of a bitmap with one bit for each page. A slot is bounded by `max_slot` pages when set.
fn bitmap_words(size: u64) -> usize {
    usize::try_from(size.div_ceil(4096 * 64)).unwrap_or(usize::MAX)
}
