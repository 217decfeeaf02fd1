//! A vCPU of a partition: running it, and moving its state.
#![expect(
    unsafe_code,
    reason = "a message's payload and a state page are a union and a buffer of the bindings"
)]

use std::{slice, sync::Arc};

use mshv_bindings::{
    Buffer, HV_PAGE_SIZE, HV_TRANSLATE_GVA_SET_PAGE_TABLE_BITS, HV_TRANSLATE_GVA_VALIDATE_READ,
    HV_TRANSLATE_GVA_VALIDATE_WRITE, HV_X64_MSR_GUEST_OS_ID, hv_message,
    hv_register_name_HV_REGISTER_INTERRUPT_STATE, hv_register_name_HV_X64_REGISTER_HYPERCALL,
    hv_register_name_HV_X64_REGISTER_RIP, hv_translate_gva_result_code_HV_TRANSLATE_GVA_GPA_NO_READ_ACCESS,
    hv_translate_gva_result_code_HV_TRANSLATE_GVA_GPA_NO_WRITE_ACCESS,
    hv_translate_gva_result_code_HV_TRANSLATE_GVA_GPA_UNMAPPED,
    hv_translate_gva_result_code_HV_TRANSLATE_GVA_INVALIDE_PAGE_TABLE_FLAGS,
    hv_translate_gva_result_code_HV_TRANSLATE_GVA_PAGE_NOT_PRESENT,
    hv_translate_gva_result_code_HV_TRANSLATE_GVA_PRIVILEGE_VIOLATION,
    hv_translate_gva_result_code_HV_TRANSLATE_GVA_SUCCESS, mshv_get_set_vp_state, msr_to_hv_reg_name,
};
use mshv_ioctls::{MshvError, VcpuFd};

use super::{
    call::{self, failed, invalid, with_deposits},
    cpuid,
    emulate::{Access, RegisterFile, SegmentSlot},
    exits::{self, Exception, Processor, Retries, Translation},
    kick::Kicks,
    message::{self, PAYLOAD_BYTES},
    registers::{self, GENERAL, Name, Value},
    slots::PAGE_SIZE,
    state::{self, GROUPS, MISC, PAGES, REGS},
    vm::Partition,
};
use crate::{
    ExitBus, HypervisorError, Vcpu, VcpuExit, VcpuKicker,
    x86_64::{CpuidEntry, Msr, ReadyRegisters, VcpuState},
};

/// One vCPU.
#[derive(Debug)]
pub(super) struct MshvVcpu {
    partition: Arc<Partition>,
    fd: VcpuFd,
    index: u32,
    apic_id: u8,
    cpuid: Vec<CpuidEntry>,
    kicks: Arc<Kicks>,
    retries: Retries,
}

impl MshvVcpu {
    /// A vCPU that the hypervisor has made.
    pub fn new(partition: Arc<Partition>, fd: VcpuFd, index: u32, apic_id: u8) -> Self {
        Self {
            partition,
            fd,
            index,
            apic_id,
            cpuid: Vec::new(),
            kicks: Arc::default(),
            retries: Retries::default(),
        }
    }

    fn failed(&self, operation: &'static str, what: &str, error: MshvError) -> HypervisorError {
        failed(operation, format!("{what} of vCPU {}", self.index), error)
    }

    fn set(&self, what: &str, list: &[(Name, Value)]) -> Result<(), HypervisorError> {
        registers::set(&self.fd, list).map_err(|error| self.failed("set", what, error))
    }

    fn msr_names(&self) -> Result<Vec<Name>, HypervisorError> {
        let name =
            |msr: &u32| msr_to_hv_reg_name(*msr).map_err(|why| invalid("MSR", format!("{msr:#x}: {why}")));
        self.partition.msrs.iter().map(name).collect()
    }

    fn save_page(&self, page: &state::Page) -> Result<Vec<u8>, HypervisorError> {
        let refuse = |error| self.failed("save", page.part, error);
        let buffer = Buffer::new(HV_PAGE_SIZE, HV_PAGE_SIZE).map_err(|error| refuse(error.into()))?;
        let mut request = page_request(page, &buffer);
        with_deposits(|| self.fd.get_vp_state_ioctl(&mut request)).map_err(refuse)?;
        // SAFETY: the buffer holds a page, was zeroed when it was made, and is not written any more.
        let bytes = unsafe { slice::from_raw_parts(buffer.buf, buffer.size()) };
        Ok(bytes.get(..page.bytes).unwrap_or(bytes).to_vec())
    }

    fn load_page(&self, page: &state::Page, content: &[u8]) -> Result<(), HypervisorError> {
        let refuse = |error| self.failed("load", page.part, error);
        let buffer = Buffer::new(HV_PAGE_SIZE, HV_PAGE_SIZE).map_err(|error| refuse(error.into()))?;
        // SAFETY: as in `save_page`, and nothing else points into the buffer.
        let bytes = unsafe { slice::from_raw_parts_mut(buffer.buf, buffer.size()) };
        for (to, from) in bytes.iter_mut().zip(content) {
            *to = *from;
        }
        with_deposits(|| self.fd.set_vp_state_ioctl(&page_request(page, &buffer))).map_err(refuse)
    }

    fn set_regs(&self, file: &RegisterFile) -> Result<(), HypervisorError> {
        let regs = registers::from_file(file);
        with_deposits(|| self.fd.set_regs(&regs)).map_err(|error| self.failed("set", "registers", error))
    }
}

/// The driver takes whole pages, whatever the part's length.
fn page_request(page: &state::Page, buffer: &Buffer) -> mshv_get_set_vp_state {
    mshv_get_set_vp_state {
        type_: page.kind,
        rsvd: [0; 3],
        buf_sz: u32::try_from(buffer.size()).unwrap_or(0),
        buf_ptr: buffer.buf.expose_provenance() as u64,
    }
}

/// Type and payload of a message.
fn parts_of(message: &hv_message) -> (u32, [u8; PAYLOAD_BYTES]) {
    // SAFETY: the union has this one field, and every pattern is a value of it.
    let words = unsafe { message.u.payload };
    let mut payload = [0; PAYLOAD_BYTES];
    for (bytes, word) in payload.as_chunks_mut().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    (message.header.message_type, payload)
}

impl Vcpu for MshvVcpu {
    fn index(&self) -> u32 {
        self.index
    }

    fn set_cpuid(&mut self, entries: &[CpuidEntry]) -> Result<(), HypervisorError> {
        if entries.len() > cpuid::MAX_ENTRIES {
            let limit = cpuid::MAX_ENTRIES;
            return Err(invalid("CPUID table", format!("{} entries, the limit is {limit}", entries.len())));
        }
        for entry in entries {
            if let Some(result) = cpuid::registration(entry) {
                call::register_cpuid_result(&self.fd, self.apic_id.into(), result).map_err(|error| {
                    self.failed("set CPUID", &format!("leaf {:#x}.{:#x}", entry.leaf, entry.subleaf), error)
                })?;
            }
        }
        self.cpuid = entries.to_vec();
        Ok(())
    }

    /// The local APIC is left alone: it is at its reset values in a new partition, and after a guest
    /// has run a machine is built anew.
    fn set_ready(&mut self, ready: &ReadyRegisters) -> Result<(), HypervisorError> {
        let (regs, others) = registers::ready(ready);
        self.set("start registers", &others)?;
        with_deposits(|| self.fd.set_fpu(&registers::ready_fpu()))
            .map_err(|error| self.failed("set", "floating-point registers", error))?;
        self.set_regs(&registers::to_file(&regs))
    }

    fn run(&mut self, bus: &mut dyn ExitBus) -> Result<VcpuExit, HypervisorError> {
        if self.kicks.take() {
            return Ok(VcpuExit::Interrupted);
        }
        let message = match self.fd.run() {
            Ok(message) => message,
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                self.kicks.take();
                return Ok(VcpuExit::Interrupted);
            }
            Err(error) => return Err(failed("run", format!("vCPU {}", self.index), error)),
        };
        let (message_type, payload) = parts_of(&message);
        let intercept = message::decode(message_type, &payload);
        let mut stopped = Stopped { fd: &self.fd, index: self.index };
        exits::answer(&intercept, &mut stopped, &self.partition.slots, &mut self.retries, bus)
    }

    fn kicker(&mut self) -> Box<dyn VcpuKicker> {
        match self.kicks.kicker() {
            Ok(kicker) => Box::new(kicker),
            Err(error) => {
                log::error!("vCPU {} cannot be kicked out of a run: {error}", self.index);
                Box::new(super::kick::MshvKicker::without_signal(&self.kicks))
            }
        }
    }

    /// Every access is finished within the run that it came from.
    fn settle(&mut self, _bus: &mut dyn ExitBus) -> Result<(), HypervisorError> {
        Ok(())
    }

    fn save(&self) -> Result<VcpuState, HypervisorError> {
        let mut parts = Vec::new();
        let regs = self.fd.get_regs().map_err(|error| self.failed("save", REGS, error))?;
        let file = registers::to_file(&regs);
        let words: Vec<u64> = file.general.into_iter().chain([file.rip, file.rflags]).collect();
        parts.push(state::encode_words(REGS, &words));
        let misc = self.fd.get_misc_regs().map_err(|error| self.failed("save", MISC, error))?;
        parts.push(state::encode_words(MISC, &[misc.hypercall, misc.int_vec]));
        for group in &GROUPS {
            let names: Vec<Name> = group.registers.iter().map(|(name, _)| *name).collect();
            let values =
                registers::get(&self.fd, &names).map_err(|error| self.failed("save", group.part, error))?;
            parts.push(state::encode(group, &values));
        }
        for page in &PAGES {
            parts.push(crate::x86_64::StatePart { name: page.part.into(), bytes: self.save_page(page)? });
        }
        let values = registers::get(&self.fd, &self.msr_names()?)
            .map_err(|error| self.failed("save", "MSRs", error))?;
        let msrs = self.partition.msrs.iter().zip(values);
        Ok(VcpuState {
            cpuid: self.cpuid.clone(),
            msrs: msrs.map(|(index, value)| Msr { index: *index, value: value.low }).collect(),
            tsc_khz: self.partition.tsc_khz,
            parts,
        })
    }

    fn load(&mut self, saved: &VcpuState) -> Result<(), HypervisorError> {
        let parsed = state::parse(saved, &self.partition.msrs, self.partition.tsc_khz)?;
        self.set_cpuid(&saved.cpuid)?;
        // The guest's identity opens the hypercall register, and both belong to the whole partition:
        // the hypervisor takes them from one vCPU.
        let first = self.index == 0;
        let mut msrs = Vec::new();
        for msr in &saved.msrs {
            if first || msr.index != HV_X64_MSR_GUEST_OS_ID {
                let name = msr_to_hv_reg_name(msr.index);
                let name = name.map_err(|why| invalid("MSR", format!("{:#x}: {why}", msr.index)))?;
                msrs.push((name, msr.value.into()));
            }
        }
        if !msrs.is_empty() {
            self.set("MSRs", &msrs)?;
        }
        for (group, values) in GROUPS.iter().zip(&parsed.groups) {
            self.set(group.part, values)?;
        }
        self.set_regs(&RegisterFile {
            general: parsed.general,
            rip: parsed.rip,
            rflags: parsed.rflags,
            ..Default::default()
        })?;
        if first {
            self.set(MISC, &[(hv_register_name_HV_X64_REGISTER_HYPERCALL, parsed.hypercall.into())])?;
        }
        for (page, content) in PAGES.iter().zip(&parsed.pages) {
            self.load_page(page, content)?;
        }
        if !registers::set_pending_vectors(&self.fd, parsed.pending_vectors) && parsed.pending_vectors != 0 {
            return Err(HypervisorError::Missing { what: "a register page, where interrupts were pending" });
        }
        Ok(())
    }

    fn inject_nmi(&self) -> Result<(), HypervisorError> {
        self.partition.inject_nmi(self.apic_id)
    }

    /// The reference time has no such notion; Linux's watchdog does not look at it.
    fn notify_pause(&self) {}
}

/// The vCPU between two runs, as the exits see it.
struct Stopped<'a> {
    fd: &'a VcpuFd,
    index: u32,
}

impl Stopped<'_> {
    fn failed(&self, operation: &'static str, what: &str, error: MshvError) -> HypervisorError {
        failed(operation, format!("{what} of vCPU {}", self.index), error)
    }
}

impl Processor for Stopped<'_> {
    fn registers(&mut self) -> Result<RegisterFile, HypervisorError> {
        let regs = self.fd.get_regs().map_err(|error| self.failed("read", "registers", error))?;
        Ok(registers::to_file(&regs))
    }

    fn segments(&mut self) -> Result<[SegmentSlot; 6], HypervisorError> {
        let values = registers::get(self.fd, &registers::SEGMENTS)
            .map_err(|error| self.failed("read", "segment registers", error))?;
        let mut slots = [SegmentSlot::default(); 6];
        for (slot, value) in slots.iter_mut().zip(values) {
            *slot = registers::segment_slot(value);
        }
        Ok(slots)
    }

    fn set_registers(&mut self, file: &RegisterFile) -> Result<(), HypervisorError> {
        let regs = registers::from_file(file);
        self.fd.set_regs(&regs).map_err(|error| self.failed("set", "registers", error))
    }

    fn advance(&mut self, rip: u64, changed: &[(usize, u64)]) -> Result<(), HypervisorError> {
        if self.fd.get_vp_reg_page().is_some() {
            // Two accesses to memory instead of a hypercall.
            let mut file = self.registers()?;
            file.rip = rip;
            for (number, value) in changed {
                if let Some(register) = file.general.get_mut(*number) {
                    *register = *value;
                }
            }
            return self.set_registers(&file);
        }
        let mut list = vec![(hv_register_name_HV_X64_REGISTER_RIP, Value::from(rip))];
        for (number, value) in changed {
            if let Some(name) = GENERAL.get(*number) {
                list.push((*name, (*value).into()));
            }
        }
        registers::set(self.fd, &list).map_err(|error| self.failed("set", "registers", error))
    }

    fn translate(&mut self, linear_page: u64, access: Access) -> Result<Translation, HypervisorError> {
        let validate = match access {
            Access::Read => HV_TRANSLATE_GVA_VALIDATE_READ,
            Access::Write => HV_TRANSLATE_GVA_VALIDATE_READ | HV_TRANSLATE_GVA_VALIDATE_WRITE,
        };
        let flags = u64::from(validate | HV_TRANSLATE_GVA_SET_PAGE_TABLE_BITS);
        let (physical, result) = with_deposits(|| self.fd.translate_gva(linear_page, flags))
            .map_err(|error| self.failed("translate", &format!("{linear_page:#x}"), error))?;
        // SAFETY: every pattern of the union is an integer.
        let result = unsafe { result.as_uint64 };
        Ok(translation(physical, result))
    }

    fn inject(&mut self, exception: Exception) -> Result<(), HypervisorError> {
        registers::set(self.fd, &[registers::pending_exception(exception)])
            .map_err(|error| self.failed("inject", &format!("{exception:x?}"), error))
    }

    fn clear_interrupt_shadow(&mut self) -> Result<(), HypervisorError> {
        // Bit 0; bit 1 masks NMIs and stays.
        let name = hv_register_name_HV_REGISTER_INTERRUPT_STATE;
        let refuse = |error| self.failed("set", "interrupt state", error);
        let values = registers::get(self.fd, &[name]).map_err(refuse)?;
        let low = values.first().map_or(0, |value| value.low);
        registers::set(self.fd, &[(name, (low & !1).into())]).map_err(refuse)
    }
}

/// HV_TRANSLATE_GVA_RESULT: a code in the low half. The page is valid on success and where only the
/// access to it fails, which is what a device's page looks like to the hypervisor.
fn translation(physical: u64, result: u64) -> Translation {
    let page = physical / PAGE_SIZE * PAGE_SIZE;
    #[expect(non_upper_case_globals, reason = "names of the bindings")]
    match u32::try_from(result & 0xffff_ffff).unwrap_or(u32::MAX) {
        hv_translate_gva_result_code_HV_TRANSLATE_GVA_SUCCESS
        | hv_translate_gva_result_code_HV_TRANSLATE_GVA_GPA_UNMAPPED
        | hv_translate_gva_result_code_HV_TRANSLATE_GVA_GPA_NO_READ_ACCESS
        | hv_translate_gva_result_code_HV_TRANSLATE_GVA_GPA_NO_WRITE_ACCESS => Translation::Page(page),
        hv_translate_gva_result_code_HV_TRANSLATE_GVA_PAGE_NOT_PRESENT => Translation::NotPresent,
        hv_translate_gva_result_code_HV_TRANSLATE_GVA_PRIVILEGE_VIOLATION => Translation::Forbidden,
        hv_translate_gva_result_code_HV_TRANSLATE_GVA_INVALIDE_PAGE_TABLE_FLAGS => Translation::ReservedBits,
        code => Translation::Impossible(format!("result {code}")),
    }
}

#[cfg(test)]
mod tests {
    use mshv_bindings::hv_message_type_HVMSG_X64_APIC_EOI;

    use super::*;

    #[test]
    fn a_message_is_taken_apart() {
        let mut message = hv_message::default();
        message.header.message_type = hv_message_type_HVMSG_X64_APIC_EOI;
        message.u.payload = [0x31_0000_0002; 30];
        let (message_type, payload) = parts_of(&message);
        assert_eq!(message::decode(message_type, &payload), message::Intercept::EndOfInterrupt(0x31));
        assert_eq!(payload[..8], [2, 0, 0, 0, 0x31, 0, 0, 0]);
    }

    #[test]
    fn translations() {
        let cache_type_and_overlay = 0x106_0000_0000;
        for code in [0, 4, 5, 6] {
            assert_eq!(
                translation(0xd000_0123, cache_type_and_overlay | code),
                Translation::Page(0xd000_0000)
            );
        }
        assert_eq!(translation(0x1000, 1), Translation::NotPresent);
        assert_eq!(translation(0x1000, 2), Translation::Forbidden);
        assert_eq!(translation(0x1000, 3), Translation::ReservedBits);
        assert_eq!(translation(0x1000, 8), Translation::Impossible("result 8".into()));
    }

    #[test]
    fn a_page_request_is_a_whole_page() {
        let buffer = Buffer::new(HV_PAGE_SIZE, HV_PAGE_SIZE).unwrap();
        let request = page_request(&PAGES[4], &buffer);
        assert_eq!((request.type_, request.buf_sz), (4, 4096));
        assert_eq!(request.buf_ptr % 4096, 0);
    }
}
