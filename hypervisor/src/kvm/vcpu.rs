//! A vCPU of KVM: entering the guest and answering its exits.

use std::{mem::offset_of, sync::Arc};

use kvm_bindings::{
    CpuId, KVM_EXIT_DEBUG, KVM_EXIT_DIRTY_RING_FULL, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT,
    KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_IOAPIC_EOI,
    KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MEMORY_FAULT, KVM_EXIT_MMIO, KVM_EXIT_NMI, KVM_EXIT_SET_TPR,
    KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT, KVM_EXIT_TPR_ACCESS, KVM_EXIT_UNKNOWN, KVM_MAX_CPUID_ENTRIES,
    KVM_MP_STATE_RUNNABLE, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_mp_state, kvm_regs,
};
use kvm_ioctls::VcpuFd;

use super::{
    call, convert,
    exit::{FailEntry, InternalError, Io, MemoryFault, Mmio, SystemEvent},
    invalid,
    kick::{self, KvmKicker},
    msr,
    run_page::{KICKED, RunPage, SETTLING},
    state,
    vm::VmShared,
};
use crate::{
    ExitBus, HypervisorError, Vcpu, VcpuExit, VcpuKicker,
    x86_64::{CpuidEntry, Msr, ReadyRegisters, VcpuState},
};

/// Accesses that one instruction may still have to make when it is settled. KVM itself comes back
/// to the guest after 1024 iterations of a string instruction.
const SETTLE_ACCESSES: usize = 4096;

/// Flags after reset: the bit that is always 1 (Intel SDM volume 1, 3.4.3).
const RFLAGS_FIXED: u64 = 1 << 1;

/// One vCPU. Its descriptor keeps the VM alive in the kernel.
#[derive(Debug)]
pub(super) struct KvmVcpu {
    pub(super) index: u32,
    pub(super) fd: VcpuFd,
    pub(super) vm: Arc<VmShared>,
    /// What the guest was given; KVM's own copy has bits that follow the control registers.
    pub(super) cpuid: Vec<CpuidEntry>,
    page: RunPage,
}

impl KvmVcpu {
    pub(super) fn new(vm: &Arc<VmShared>, index: u32, apic_id: u32) -> Result<Self, HypervisorError> {
        let detail = || format!("vCPU {index} (APIC id {apic_id})");
        let limit = vm.host.capabilities.max_vcpu_id;
        if apic_id >= limit {
            return Err(invalid("APIC id", format!("{apic_id}, the limit is {limit}")));
        }
        kick::install_handler()
            .map_err(|error| call("cannot handle", "the kick signal".to_owned(), error))?;
        let fd = vm.fd.create_vcpu(apic_id.into()).map_err(|error| call("cannot create", detail(), error))?;
        let page = RunPage::map(&fd, vm.fd.run_size())
            .map_err(|error| call("cannot map the run page of", detail(), error))?;
        vm.dirty.add_vcpu(&fd)?;
        Ok(Self { index, fd, vm: Arc::clone(vm), cpuid: Vec::new(), page })
    }

    /// An error that names this vCPU.
    pub(super) fn failed(
        &self,
        operation: &'static str,
        what: &str,
        source: impl Into<std::io::Error>,
    ) -> HypervisorError {
        call(operation, format!("{what} of vCPU {}", self.index), source)
    }

    /// One KVM_RUN. What it came back for is in the run page.
    fn enter(&mut self) -> Result<(), kvm_ioctls::Error> {
        self.fd.run().map(|_| ())
    }

    /// Does what the exit asks for.
    fn answer(&mut self, bus: &mut dyn ExitBus) -> Result<VcpuExit, HypervisorError> {
        let exit = match self.page.exit_reason() {
            KVM_EXIT_IO => self.answer_port(bus),
            KVM_EXIT_MMIO => self.answer_mmio(bus),
            KVM_EXIT_HLT => VcpuExit::Halted,
            KVM_EXIT_SHUTDOWN => VcpuExit::Reset,
            KVM_EXIT_IOAPIC_EOI => VcpuExit::EndOfInterrupt(self.page.exit_data()),
            KVM_EXIT_SYSTEM_EVENT => self.system_event(),
            KVM_EXIT_DIRTY_RING_FULL => {
                self.vm.dirty.harvest(&self.vm)?;
                VcpuExit::Handled
            }
            KVM_EXIT_INTERNAL_ERROR => {
                let error: InternalError = self.page.exit_data();
                self.give_up(&error.describe())
            }
            KVM_EXIT_FAIL_ENTRY => {
                let entry: FailEntry = self.page.exit_data();
                let FailEntry { reason, cpu, .. } = entry;
                self.give_up(&format!("host CPU {cpu} cannot enter the guest, reason {reason:#x}"))
            }
            KVM_EXIT_MEMORY_FAULT => {
                let MemoryFault { flags, address, size } = self.page.exit_data();
                self.give_up(&format!("memory fault at {address:#x}+{size:#x}, flags {flags:#x}"))
            }
            KVM_EXIT_UNKNOWN => {
                let reason: u64 = self.page.exit_data();
                self.give_up(&format!("unknown exit of the hardware, reason {reason:#x}"))
            }
            // Nobody asked for these, and they ask for nothing.
            KVM_EXIT_INTR
            | KVM_EXIT_NMI
            | KVM_EXIT_IRQ_WINDOW_OPEN
            | KVM_EXIT_SET_TPR
            | KVM_EXIT_TPR_ACCESS
            | KVM_EXIT_DEBUG => VcpuExit::Handled,
            other => self.give_up(&format!("unexpected KVM exit {other}")),
        };
        Ok(exit)
    }

    /// One access, or a run of them for string I/O.
    fn answer_port(&mut self, bus: &mut dyn ExitBus) -> VcpuExit {
        let io: Io = self.page.exit_data();
        let width = usize::from(io.size);
        let count = usize::try_from(io.count).unwrap_or(usize::MAX);
        let offset = usize::try_from(io.data_offset).unwrap_or(usize::MAX);
        let data = width.checked_mul(count).and_then(|len| self.page.bytes(offset, len));
        let (1 | 2 | 4, Some(data)) = (width, data) else {
            return self.give_up(&format!("malformed port access {io:x?}"));
        };
        for access in data.chunks_exact_mut(width) {
            if u32::from(io.direction) == KVM_EXIT_IO_IN {
                bus.port_read(io.port, access);
            } else {
                bus.port_write(io.port, access);
            }
        }
        VcpuExit::Handled
    }

    fn answer_mmio(&mut self, bus: &mut dyn ExitBus) -> VcpuExit {
        let mmio: Mmio = self.page.exit_data();
        let len = usize::try_from(mmio.len).unwrap_or(usize::MAX);
        let data = self.page.bytes(RunPage::exit_field(offset_of!(Mmio, data)), len);
        match data {
            Some(data) if (1..=mmio.data.len()).contains(&len) => {
                if mmio.is_write == 0 {
                    bus.mmio_read(mmio.address, data);
                } else {
                    bus.mmio_write(mmio.address, data);
                }
                VcpuExit::Handled
            }
            _ => self.give_up(&format!("malformed memory access {mmio:x?}")),
        }
    }

    fn system_event(&self) -> VcpuExit {
        let event: SystemEvent = self.page.exit_data();
        match event.kind {
            KVM_SYSTEM_EVENT_SHUTDOWN => VcpuExit::Shutdown,
            KVM_SYSTEM_EVENT_RESET => VcpuExit::Reset,
            other => {
                let count = usize::try_from(event.count).unwrap_or(usize::MAX).min(event.data.len());
                self.give_up(&format!("system event {other}, data {:x?}", &event.data[..count]))
            }
        }
    }

    fn give_up(&self, why: &str) -> VcpuExit {
        VcpuExit::Failed(format!("vCPU {}{}: {why}", self.index, self.location()))
    }

    /// Where the guest is, for a message.
    fn location(&self) -> String {
        match self.fd.get_regs() {
            Ok(regs) => format!(" at rip {:#x}", regs.rip),
            Err(_) => String::new(),
        }
    }
}

/// A signal, a kick, or a vCPU that was just woken for its start-up: nothing happened, go on.
fn is_interruption(error: kvm_ioctls::Error) -> bool {
    matches!(error.errno(), libc::EINTR | libc::EAGAIN)
}

impl Vcpu for KvmVcpu {
    fn index(&self) -> u32 {
        self.index
    }

    fn set_cpuid(&mut self, entries: &[CpuidEntry]) -> Result<(), HypervisorError> {
        if entries.len() > KVM_MAX_CPUID_ENTRIES {
            let detail = format!("{} entries, at most {KVM_MAX_CPUID_ENTRIES}", entries.len());
            return Err(invalid("CPUID table", detail));
        }
        let table: Vec<_> = entries.iter().map(convert::cpuid_to_kvm).collect();
        let table =
            CpuId::from_entries(&table).map_err(|error| invalid("CPUID table", format!("{error:?}")))?;
        self.fd.set_cpuid2(&table).map_err(|error| self.failed("cannot set", "the CPUID table", error))?;
        self.cpuid = entries.to_vec();
        Ok(())
    }

    fn set_ready(&mut self, ready: &ReadyRegisters) -> Result<(), HypervisorError> {
        let sregs = self
            .fd
            .get_sregs()
            .map_err(|error| self.failed("cannot read", "the segment registers", error))?;
        self.fd
            .set_sregs(&convert::ready_sregs(sregs, ready))
            .map_err(|error| self.failed("cannot set", "the segment registers", error))?;
        let regs = kvm_regs {
            rip: ready.rip,
            rsp: ready.rsp,
            rbx: ready.rbx,
            rsi: ready.rsi,
            rdx: ready.rdx,
            rflags: ready.rflags | RFLAGS_FIXED,
            ..kvm_regs::default()
        };
        self.fd.set_regs(&regs).map_err(|error| self.failed("cannot set", "the registers", error))?;
        self.fd
            .set_fpu(&convert::ready_fpu())
            .map_err(|error| self.failed("cannot set", "the floating-point registers", error))?;
        let memory_types = (msr::MTRR_DEF_TYPE, ready.mtrr_default);
        let msrs = msr::READY.into_iter().chain([memory_types]).map(|(index, value)| Msr { index, value });
        let msrs: Vec<Msr> = msrs.collect();
        msr::write(self, &msrs)?;
        let runnable = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
        self.fd.set_mp_state(runnable).map_err(|error| self.failed("cannot set", "the activity state", error))
    }

    fn run(&mut self, bus: &mut dyn ExitBus) -> Result<VcpuExit, HypervisorError> {
        match self.enter() {
            Ok(()) => self.answer(bus),
            Err(error) if is_interruption(error) => {
                self.page.clear_exit(KICKED);
                Ok(VcpuExit::Interrupted)
            }
            Err(error) => Err(call("cannot run", format!("vCPU {}{}", self.index, self.location()), error)),
        }
    }

    fn kicker(&mut self) -> Box<dyn VcpuKicker> {
        Box::new(KvmKicker::for_this_thread(self.page.remote()))
    }

    fn settle(&mut self, bus: &mut dyn ExitBus) -> Result<(), HypervisorError> {
        self.page.request_exit(SETTLING);
        let mut result = Err(invalid("guest instruction", "it does not end"));
        for _ in 0..SETTLE_ACCESSES {
            match self.enter() {
                // Everything that was answered is delivered, and nothing more was run.
                Err(error) if is_interruption(error) => result = Ok(()),
                Err(error) => result = Err(self.failed("cannot finish", "an access", error)),
                Ok(()) => match self.answer(bus) {
                    Ok(VcpuExit::Handled) => continue,
                    Ok(exit) => result = Err(invalid("guest instruction", format!("{exit:?}"))),
                    Err(error) => result = Err(error),
                },
            }
            break;
        }
        self.page.clear_exit(SETTLING);
        result
    }

    fn save(&self) -> Result<VcpuState, HypervisorError> {
        state::save(self)
    }

    fn load(&mut self, state: &VcpuState) -> Result<(), HypervisorError> {
        state::load(self, state)
    }

    fn inject_nmi(&self) -> Result<(), HypervisorError> {
        self.fd.nmi().map_err(|error| self.failed("cannot inject", "a non-maskable interrupt", error))
    }

    fn notify_pause(&self) {
        // EINVAL: the guest has no such clock.
        if let Err(error) = self.fd.kvmclock_ctrl()
            && error.errno() != libc::EINVAL
        {
            log::warn!("vCPU {}: cannot tell the guest's clock of a pause: {error}", self.index);
        }
    }
}
