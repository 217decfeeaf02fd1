//! What is done about an intercept.
//!
//! Pure, but for the [`Processor`] it asks and changes, which the vCPU implements with hypercalls
//! and the tests with a structure.

use parking_lot::RwLock;

use super::{
    emulate::{
        self, Access, DecodeError, Decoded, EmulateError, Fault, MAX_INSTRUCTION_BYTES, RegisterFile,
        SegmentSlot,
    },
    guest::{Guest, chain},
    message::{AccessKind, CpuidIntercept, Header, Intercept, MemoryIntercept, MsrIntercept, PortIntercept},
    slots::{Backing, SlotTable},
};
use crate::{ExitBus, HypervisorError, VcpuExit};

/// RAX, RCX, RDX and RBX in [`RegisterFile::general`].
const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;

/// How often in a row an access to memory that is there may come back. While a slot is exchanged,
/// its range is unmapped for a moment; anything longer is a mistake that would go round for ever.
const RETRIES: u32 = 1000;

/// An exception for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exception {
    /// #PF: linear address and error code.
    PageFault { address: u64, error_code: u32 },
    /// #GP(0).
    Protection,
}

/// Where a linear page leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Translation {
    /// To this guest-physical page.
    Page(u64),
    /// Nowhere.
    NotPresent,
    /// Somewhere that this access is not allowed to go.
    Forbidden,
    /// To an entry with reserved bits set.
    ReservedBits,
    /// The hypervisor cannot say; the text tells why.
    Impossible(String),
}

/// The stopped vCPU.
pub(super) trait Processor {
    /// General registers, instruction pointer and flags; the segments are left at zero.
    fn registers(&mut self) -> Result<RegisterFile, HypervisorError>;

    /// ES, CS, SS, DS, FS, GS.
    fn segments(&mut self) -> Result<[SegmentSlot; 6], HypervisorError>;

    /// Sets general registers, instruction pointer and flags.
    fn set_registers(&mut self, registers: &RegisterFile) -> Result<(), HypervisorError>;

    /// Sets the instruction pointer and some general registers, by their number.
    fn advance(&mut self, rip: u64, changed: &[(usize, u64)]) -> Result<(), HypervisorError>;

    /// Where a linear page leads, for code at the current privilege level.
    fn translate(&mut self, linear_page: u64, access: Access) -> Result<Translation, HypervisorError>;

    /// Makes an exception pending.
    fn inject(&mut self, exception: Exception) -> Result<(), HypervisorError>;

    /// Ends the shadow that `sti` or a load of SS casts on the instruction after it.
    fn clear_interrupt_shadow(&mut self) -> Result<(), HypervisorError>;
}

/// Counts accesses to memory that came back though the memory is there.
#[derive(Debug, Default)]
pub(super) struct Retries {
    place: (u64, u64),
    count: u32,
}

impl Retries {
    /// Whether the access at this instruction to this address may be tried once more.
    fn again(&mut self, rip: u64, physical: u64) -> bool {
        if self.place == (rip, physical) {
            self.count = self.count.saturating_add(1);
        } else {
            *self = Self { place: (rip, physical), count: 1 };
        }
        self.count <= RETRIES
    }
}

/// Answers an intercept, through `bus` where it is an access.
pub(super) fn answer(
    intercept: &Intercept,
    processor: &mut dyn Processor,
    slots: &RwLock<SlotTable>,
    retries: &mut Retries,
    bus: &mut dyn ExitBus,
) -> Result<VcpuExit, HypervisorError> {
    let failed = |text: String| Ok(VcpuExit::Failed(text));
    match intercept {
        Intercept::Nothing => Ok(VcpuExit::Handled),
        Intercept::Port(port) if port.string => string_port(port, processor, slots, bus),
        Intercept::Port(port) => single_port(port, processor, bus),
        Intercept::Memory(memory) => self::memory(memory, processor, slots, retries, bus),
        Intercept::Cpuid(cpuid) => self::cpuid(cpuid, processor),
        Intercept::Msr(msr) => self::msr(msr, processor),
        Intercept::Halt => Ok(VcpuExit::Halted),
        // An interrupt vector has eight bits.
        Intercept::EndOfInterrupt(vector) => match u8::try_from(*vector) {
            Ok(vector) => Ok(VcpuExit::EndOfInterrupt(vector)),
            Err(_) => failed(format!("end of interrupt {vector}, which is no vector")),
        },
        Intercept::UnrecoverableException => Ok(VcpuExit::Reset),
        Intercept::InvalidRegister => failed("the hypervisor found an invalid register value".into()),
        Intercept::UnsupportedFeature => {
            failed("the guest used a feature that the hypervisor does not support".into())
        }
        Intercept::Exception { vector, rip } => {
            failed(format!("exception {vector} at {rip:#x} was intercepted, which nobody asked for"))
        }
        Intercept::Other(message_type) => {
            failed(format!("intercept message of unknown type {message_type:#x}"))
        }
    }
}

/// `in` or `out` of one value.
fn single_port(
    intercept: &PortIntercept,
    processor: &mut dyn Processor,
    bus: &mut dyn ExitBus,
) -> Result<VcpuExit, HypervisorError> {
    let header = &intercept.header;
    let size = usize::from(intercept.size);
    let mut value = [0; 4];
    let (Some(data), 1 | 2 | 4) = (value.get_mut(..size), size) else {
        return Ok(VcpuExit::Failed(format!("access of {size} bytes to port {:#x}", intercept.port)));
    };
    let length = instruction_length(header, intercept.instruction.as_slice());
    let Some(next) = length.map(|length| next_rip(header, length)) else {
        return Ok(VcpuExit::Failed(format!("no instruction at {:#x}, which used a port", header.rip)));
    };
    match header.access {
        AccessKind::Write => {
            for (to, from) in data.iter_mut().zip(intercept.rax.to_le_bytes()) {
                *to = from;
            }
            bus.port_write(intercept.port, data);
            finish(header, processor, next, &[])
        }
        AccessKind::Read => {
            bus.port_read(intercept.port, data);
            let read = u64::from(u32::from_le_bytes(value));
            // Into EAX clears the upper half, into AL or AX leaves the rest alone.
            let rax = match size {
                4 => read,
                _ => intercept.rax & !((1 << (8 * size)) - 1) | read,
            };
            finish(header, processor, next, &[(RAX, rax)])
        }
        AccessKind::Execute => Ok(VcpuExit::Failed(format!("port {:#x} was executed", intercept.port))),
    }
}

/// `ins` or `outs`.
fn string_port(
    intercept: &PortIntercept,
    processor: &mut dyn Processor,
    slots: &RwLock<SlotTable>,
    bus: &mut dyn ExitBus,
) -> Result<VcpuExit, HypervisorError> {
    let header = &intercept.header;
    let what = || format!("string access to port {:#x} at {:#x}", intercept.port, header.rip);
    let mut guest = Guest::new(processor, slots, bus, header.cpl == 3);
    let decoded = match decode(header, intercept.instruction.as_slice(), &mut guest) {
        Ok(decoded) => decoded,
        Err(stop) => return stop.answer(processor, &what()),
    };
    let mut registers = processor.registers()?;
    // The processor checked the guest's right to this port, not to one that another vCPU has
    // written into the instruction's place meanwhile.
    if !decoded.uses_port() || registers.general[RDX] & 0xffff != u64::from(intercept.port) {
        return Ok(VcpuExit::Failed(format!("{}: the instruction is another one", what())));
    }
    run(header, &decoded, &mut registers, None, processor, slots, bus, &what)
}

/// An access to memory that is not there, or may not be written.
fn memory(
    intercept: &MemoryIntercept,
    processor: &mut dyn Processor,
    slots: &RwLock<SlotTable>,
    retries: &mut Retries,
    bus: &mut dyn ExitBus,
) -> Result<VcpuExit, HypervisorError> {
    let header = &intercept.header;
    let what = || format!("access to {:#x} at {:#x}", intercept.physical, header.rip);
    let write = header.access == AccessKind::Write;
    match slots.read().backing(intercept.physical, write) {
        Backing::Memory if retries.again(header.rip, intercept.physical) => return Ok(VcpuExit::Handled),
        Backing::Memory => {
            return Ok(VcpuExit::Failed(format!("{}: memory is there, and is not found", what())));
        }
        Backing::ReadOnly | Backing::Absent => {}
    }
    if header.access == AccessKind::Execute {
        return Ok(VcpuExit::Failed(format!(
            "the guest executes at {:#x}, where no memory is (instruction pointer {:#x})",
            intercept.physical, header.rip
        )));
    }
    let mut guest = Guest::new(processor, slots, bus, header.cpl == 3);
    let decoded = match decode(header, intercept.instruction.as_slice(), &mut guest) {
        Ok(decoded) => decoded,
        Err(stop) => return stop.answer(processor, &what()),
    };
    if decoded.uses_port() {
        return Ok(VcpuExit::Failed(format!("{}: the instruction is one for ports", what())));
    }
    let mut registers = processor.registers()?;
    let known = intercept.linear.map(|linear| (linear, intercept.physical));
    run(header, &decoded, &mut registers, known, processor, slots, bus, &what)
}

#[expect(clippy::too_many_arguments, reason = "the two callers' locals")]
fn run(
    header: &Header,
    decoded: &Decoded,
    registers: &mut RegisterFile,
    known: Option<(u64, u64)>,
    processor: &mut dyn Processor,
    slots: &RwLock<SlotTable>,
    bus: &mut dyn ExitBus,
    what: &dyn Fn() -> String,
) -> Result<VcpuExit, HypervisorError> {
    if decoded.uses_segments() {
        registers.segments = processor.segments()?;
    }
    let mut guest = Guest::new(processor, slots, bus, header.cpl == 3);
    if let Some((linear, physical)) = known {
        guest.knows(linear, physical, header.access == AccessKind::Write);
    }
    match emulate::execute(decoded, registers, &mut guest) {
        Ok(_) => {
            processor.set_registers(registers)?;
            end_shadow(header, processor)?;
            Ok(VcpuExit::Handled)
        }
        Err(EmulateError::Fault(fault)) => {
            // A repeated instruction counts what it has done.
            processor.set_registers(registers)?;
            Stop::Fault(fault).answer(processor, &what())
        }
        Err(error @ EmulateError::Unsupported { .. }) => {
            Ok(VcpuExit::Failed(format!("{}: cannot emulate {}", what(), chain(&error))))
        }
    }
}

/// Why there is no instruction to run.
enum Stop {
    Fault(Fault),
    Invalid(String),
}

impl Stop {
    fn answer(self, processor: &mut dyn Processor, what: &str) -> Result<VcpuExit, HypervisorError> {
        match self {
            Self::Fault(Fault::Page { address, error_code }) => {
                processor.inject(Exception::PageFault { address, error_code })?;
                Ok(VcpuExit::Handled)
            }
            Self::Fault(Fault::Protection) => {
                processor.inject(Exception::Protection)?;
                Ok(VcpuExit::Handled)
            }
            Self::Fault(Fault::Host(why)) | Self::Invalid(why) => {
                Ok(VcpuExit::Failed(format!("{what}: {why}")))
            }
        }
    }
}

/// Decodes the instruction, and fetches what the intercept did not bring of it.
fn decode(header: &Header, at_hand: &[u8], guest: &mut Guest<'_>) -> Result<Decoded, Stop> {
    let mut bytes = [0; MAX_INSTRUCTION_BYTES];
    let mut count = 0;
    for (to, from) in bytes.iter_mut().zip(at_hand) {
        *to = *from;
        count += 1;
    }
    loop {
        match Decoded::new(header.mode, header.rip, bytes.get(..count).unwrap_or(&bytes)) {
            Ok(decoded) => return Ok(decoded),
            Err(DecodeError::Short(_)) => {
                let Some(rest) = bytes.get_mut(count..).filter(|rest| !rest.is_empty()) else {
                    return Err(Stop::Invalid("the instruction has no end".into()));
                };
                let rip = header.mode.instruction_pointer(header.rip.wrapping_add(count as u64));
                let fetched = guest.fetch(header.code_base.wrapping_add(rip), rest).map_err(Stop::Fault)?;
                if fetched == 0 {
                    return Err(Stop::Invalid("the instruction cannot be fetched".into()));
                }
                count += fetched;
            }
            Err(error @ DecodeError::Invalid(_)) => return Err(Stop::Invalid(chain(&error))),
        }
    }
}

fn cpuid(intercept: &CpuidIntercept, processor: &mut dyn Processor) -> Result<VcpuExit, HypervisorError> {
    let [rax, rcx, rdx, rbx] = intercept.answer;
    let header = &intercept.header;
    let next = next_rip(header, if header.instruction_length == 0 { 2 } else { header.instruction_length });
    finish(header, processor, next, &[(RAX, rax), (RCX, rcx), (RDX, rdx), (RBX, rbx)])
}

/// As the partition answers for registers it does not know: reads are zero, writes are lost.
fn msr(intercept: &MsrIntercept, processor: &mut dyn Processor) -> Result<VcpuExit, HypervisorError> {
    let header = &intercept.header;
    let next = next_rip(header, if header.instruction_length == 0 { 2 } else { header.instruction_length });
    match header.access {
        AccessKind::Write => finish(header, processor, next, &[]),
        AccessKind::Read => finish(header, processor, next, &[(RAX, 0), (RDX, 0)]),
        AccessKind::Execute => Ok(VcpuExit::Failed(format!("MSR {:#x} was executed", intercept.number))),
    }
}

fn finish(
    header: &Header,
    processor: &mut dyn Processor,
    next: u64,
    changed: &[(usize, u64)],
) -> Result<VcpuExit, HypervisorError> {
    processor.advance(next, changed)?;
    end_shadow(header, processor)?;
    Ok(VcpuExit::Handled)
}

fn end_shadow(header: &Header, processor: &mut dyn Processor) -> Result<(), HypervisorError> {
    if header.interrupt_shadow { processor.clear_interrupt_shadow() } else { Ok(()) }
}

/// The length that the hypervisor tells, or that the bytes have.
fn instruction_length(header: &Header, bytes: &[u8]) -> Option<u8> {
    if header.instruction_length != 0 {
        return Some(header.instruction_length);
    }
    let decoded = Decoded::new(header.mode, header.rip, bytes).ok()?;
    u8::try_from(decoded.length()).ok()
}

fn next_rip(header: &Header, length: u8) -> u64 {
    header.mode.instruction_pointer(header.rip.wrapping_add(length.into()))
}

#[cfg(test)]
mod tests;
