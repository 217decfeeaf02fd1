//! A vCPU that plays a script in the place of a guest.

use std::{collections::VecDeque, os::fd::RawFd, sync::Arc};

use parking_lot::{Condvar, Mutex};

use super::{
    call::{Call, Recorder, VcpuCall},
    vm::VmState,
};
use crate::{
    Capabilities, ExitBus, HypervisorError, IoSpace, Vcpu, VcpuExit, VcpuKicker,
    x86_64::{CpuidEntry, Msr, ReadyRegisters, StatePart, VcpuState},
};

const REGISTERS: &str = "fake.registers";
const POSITION: &str = "fake.position";
const LAST_READ: &str = "fake.last-read";
/// Longest read a guest makes.
const READ_MAX: u8 = 8;

/// What the guest does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Reads that many bytes from a port.
    PortRead {
        /// The port.
        port: u16,
        /// Bytes: 1, 2 or 4.
        width: u8,
    },
    /// Writes to a port.
    PortWrite {
        /// The port.
        port: u16,
        /// What is written.
        data: Vec<u8>,
    },
    /// Reads that many bytes of memory that no slot backs.
    MmioRead {
        /// Guest-physical address.
        address: u64,
        /// Bytes: 1 to 8.
        width: u8,
    },
    /// Writes to memory that no slot backs.
    MmioWrite {
        /// Guest-physical address.
        address: u64,
        /// What is written.
        data: Vec<u8>,
    },
    /// Comes back with this exit.
    Exit(VcpuExit),
}

/// A vCPU of the fake back end. At the end of its script it behaves as a halted guest whose
/// interrupt controller is in the kernel: the run lasts until somebody kicks.
#[derive(Debug)]
pub struct FakeVcpu {
    index: u32,
    script: VecDeque<Step>,
    /// Steps done, over save and load.
    position: u64,
    registers: ReadyRegisters,
    cpuid: Vec<CpuidEntry>,
    msrs: Vec<Msr>,
    last_read: Vec<u8>,
    kick: Arc<FakeKick>,
    recorder: Arc<Recorder>,
    vm: Arc<Mutex<VmState>>,
}

#[derive(Debug, Default)]
struct FakeKick {
    pending: Mutex<bool>,
    changed: Condvar,
}

/// Kicks a [`FakeVcpu`].
#[derive(Debug)]
pub struct FakeKicker {
    index: u32,
    kick: Arc<FakeKick>,
    recorder: Arc<Recorder>,
}

impl VcpuKicker for FakeKicker {
    fn kick(&self) {
        self.recorder.note(Call::Vcpu { index: self.index, call: VcpuCall::Kick });
        *self.kick.pending.lock() = true;
        self.kick.changed.notify_all();
    }
}

impl FakeVcpu {
    pub(super) fn new(
        index: u32,
        script: Vec<Step>,
        recorder: Arc<Recorder>,
        vm: Arc<Mutex<VmState>>,
    ) -> Self {
        Self {
            index,
            script: script.into(),
            position: 0,
            registers: ReadyRegisters::default(),
            cpuid: Vec::new(),
            msrs: vec![Msr { index: 0x10, value: 0 }],
            last_read: Vec::new(),
            kick: Arc::default(),
            recorder,
            vm,
        }
    }

    fn record(&self, call: VcpuCall) -> Result<(), HypervisorError> {
        self.recorder.record(Call::Vcpu { index: self.index, call })
    }

    /// The doorbell that swallows a write, as the kernel would before any exit.
    fn rings(&self, space: IoSpace, address: u64, data: &[u8]) -> Option<RawFd> {
        self.vm.lock().wiring.rung_by(space, address, data)
    }

    fn step(&mut self, step: Step, bus: &mut dyn ExitBus) -> VcpuExit {
        match step {
            Step::PortRead { port, width } => {
                let mut data = vec![0; width.min(READ_MAX).into()];
                bus.port_read(port, &mut data);
                self.last_read = data;
            }
            Step::PortWrite { port, data } => match self.rings(IoSpace::Pio, port.into(), &data) {
                Some(event) => self.rang(event),
                None => bus.port_write(port, &data),
            },
            Step::MmioRead { address, width } => {
                let mut data = vec![0; width.min(READ_MAX).into()];
                bus.mmio_read(address, &mut data);
                self.last_read = data;
            }
            Step::MmioWrite { address, data } => match self.rings(IoSpace::Mmio, address, &data) {
                Some(event) => self.rang(event),
                None => bus.mmio_write(address, &data),
            },
            Step::Exit(exit) => return exit,
        }
        VcpuExit::Handled
    }

    fn rang(&self, event: RawFd) {
        self.recorder.note(Call::Vcpu { index: self.index, call: VcpuCall::Rang(event) });
    }
}

impl Vcpu for FakeVcpu {
    fn index(&self) -> u32 {
        self.index
    }

    fn set_cpuid(&mut self, entries: &[CpuidEntry]) -> Result<(), HypervisorError> {
        self.record(VcpuCall::SetCpuid(entries.to_vec()))?;
        self.cpuid = entries.to_vec();
        Ok(())
    }

    fn set_ready(&mut self, registers: &ReadyRegisters) -> Result<(), HypervisorError> {
        self.record(VcpuCall::SetReady(*registers))?;
        self.registers = *registers;
        Ok(())
    }

    fn run(&mut self, bus: &mut dyn ExitBus) -> Result<VcpuExit, HypervisorError> {
        self.record(VcpuCall::Run)?;
        let kicked = std::mem::take(&mut *self.kick.pending.lock());
        if kicked {
            return Ok(VcpuExit::Interrupted);
        }
        if let Some(step) = self.script.pop_front() {
            self.position = self.position.saturating_add(1);
            return Ok(self.step(step, bus));
        }
        let mut pending = self.kick.pending.lock();
        self.kick.changed.wait_while(&mut pending, |pending| !*pending);
        *pending = false;
        Ok(VcpuExit::Interrupted)
    }

    fn kicker(&mut self) -> Box<dyn VcpuKicker> {
        Box::new(FakeKicker {
            index: self.index,
            kick: Arc::clone(&self.kick),
            recorder: Arc::clone(&self.recorder),
        })
    }

    fn settle(&mut self, _bus: &mut dyn ExitBus) -> Result<(), HypervisorError> {
        self.record(VcpuCall::Settle)
    }

    fn save(&self) -> Result<VcpuState, HypervisorError> {
        self.record(VcpuCall::Save)?;
        let parts = vec![
            part(REGISTERS, words(&self.registers).iter().flat_map(|word| word.to_le_bytes()).collect()),
            part(POSITION, self.position.to_le_bytes().to_vec()),
            part(LAST_READ, self.last_read.clone()),
        ];
        Ok(VcpuState { cpuid: self.cpuid.clone(), msrs: self.msrs.clone(), tsc_khz: Some(TSC_KHZ), parts })
    }

    /// The script goes on where the saved vCPU's stood, so give both the same one.
    fn load(&mut self, state: &VcpuState) -> Result<(), HypervisorError> {
        self.record(VcpuCall::Load)?;
        let refuse = |detail: String| Err(HypervisorError::Invalid { what: "vCPU state", detail });
        let [registers, position, last_read] = state.parts.as_slice() else {
            return refuse(format!("{} parts, need 3", state.parts.len()));
        };
        for (part, name) in [(registers, REGISTERS), (position, POSITION), (last_read, LAST_READ)] {
            if part.name != name {
                return refuse(format!("part {:?} in the place of {name}", part.name));
            }
        }
        let Ok(at) = <[u8; 8]>::try_from(position.bytes.as_slice()) else {
            return refuse(format!("{POSITION}: {} bytes, need 8", position.bytes.len()));
        };
        if registers.bytes.len() != 8 * REGISTER_COUNT {
            return refuse(format!(
                "{REGISTERS}: {} bytes, need {}",
                registers.bytes.len(),
                8 * REGISTER_COUNT
            ));
        }
        if last_read.bytes.len() > READ_MAX.into() {
            return refuse(format!("{LAST_READ}: {} bytes, at most {READ_MAX}", last_read.bytes.len()));
        }
        let mut values = [0; REGISTER_COUNT];
        for (value, bytes) in values.iter_mut().zip(registers.bytes.chunks_exact(8)) {
            *value = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        set_words(&mut self.registers, values);
        let position = u64::from_le_bytes(at);
        let skipped = position.saturating_sub(self.position);
        let skipped = usize::try_from(skipped).unwrap_or(usize::MAX).min(self.script.len());
        self.script.drain(..skipped);
        self.position = position;
        self.last_read.clone_from(&last_read.bytes);
        self.cpuid.clone_from(&state.cpuid);
        self.msrs.clone_from(&state.msrs);
        Ok(())
    }

    fn inject_nmi(&self) -> Result<(), HypervisorError> {
        self.record(VcpuCall::InjectNmi)
    }

    fn notify_pause(&self) {
        self.recorder.note(Call::Vcpu { index: self.index, call: VcpuCall::NotifyPause });
    }
}

/// At which rate the counters of a fake host count.
const TSC_KHZ: u32 = 1_000_000;

/// A host without control over its counters has their rate, and no other.
pub(super) fn check_tsc_khz(host: &Capabilities, khz: u32) -> Result<(), HypervisorError> {
    if host.tsc_control || khz == TSC_KHZ {
        return Ok(());
    }
    let detail = format!("TSC of {khz} kHz; this host's has {TSC_KHZ} kHz and cannot be scaled");
    Err(HypervisorError::Invalid { what: "vCPU state", detail })
}

const REGISTER_COUNT: usize = 9;

/// The registers that a fake guest has; segments and tables stay behind.
fn words(registers: &ReadyRegisters) -> [u64; REGISTER_COUNT] {
    let r = registers;
    [r.rip, r.rsp, r.rbx, r.rsi, r.rflags, r.cr0, r.cr3, r.cr4, r.efer]
}

fn set_words(registers: &mut ReadyRegisters, words: [u64; REGISTER_COUNT]) {
    let [rip, rsp, rbx, rsi, rflags, cr0, cr3, cr4, efer] = words;
    *registers = ReadyRegisters { rip, rsp, rbx, rsi, rflags, cr0, cr3, cr4, efer, ..*registers };
}

fn part(name: &str, bytes: Vec<u8>) -> StatePart {
    StatePart { name: name.to_owned(), bytes }
}
