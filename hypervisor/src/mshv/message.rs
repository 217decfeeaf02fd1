//! Intercept messages: why the hypervisor stopped a vCPU (Hyper-V TLFS, "Intercepts").
//!
//! Pure: from the message's bytes to an [`Intercept`]. The bindings have the messages as packed
//! structures with unions; here the same fields are read by their offsets, so that nothing is
//! trusted to be a value it is not.

use std::mem::offset_of;

use mshv_bindings::{
    HV_INTERCEPT_ACCESS_EXECUTE, HV_INTERCEPT_ACCESS_WRITE, hv_message_type_HVMSG_GPA_INTERCEPT,
    hv_message_type_HVMSG_INVALID_VP_REGISTER_VALUE, hv_message_type_HVMSG_NONE,
    hv_message_type_HVMSG_UNMAPPED_GPA, hv_message_type_HVMSG_UNRECOVERABLE_EXCEPTION,
    hv_message_type_HVMSG_UNSUPPORTED_FEATURE, hv_message_type_HVMSG_X64_APIC_EOI,
    hv_message_type_HVMSG_X64_CPUID_INTERCEPT, hv_message_type_HVMSG_X64_EXCEPTION_INTERCEPT,
    hv_message_type_HVMSG_X64_HALT, hv_message_type_HVMSG_X64_IO_PORT_INTERCEPT,
    hv_message_type_HVMSG_X64_MSR_INTERCEPT, hv_x64_apic_eoi_message, hv_x64_cpuid_intercept_message,
    hv_x64_exception_intercept_message, hv_x64_intercept_message_header, hv_x64_io_port_intercept_message,
    hv_x64_memory_intercept_message, hv_x64_msr_intercept_message, hv_x64_segment_register,
};

use super::emulate::Mode;

/// Bytes of a message behind its header.
pub(super) const PAYLOAD_BYTES: usize = 240;

/// What an intercepted access would have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AccessKind {
    Read,
    Write,
    Execute,
}

/// What every intercept of an instruction says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub rip: u64,
    /// Length of the instruction where the hypervisor knows it, else 0.
    pub instruction_length: u8,
    pub access: AccessKind,
    /// How the code is read.
    pub mode: Mode,
    /// Base of the code segment as it counts in that mode.
    pub code_base: u64,
    /// Privilege level.
    pub cpl: u8,
    /// The instruction before was `sti` or a load of SS.
    pub interrupt_shadow: bool,
}

/// An access to an I/O port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PortIntercept {
    pub header: Header,
    pub port: u16,
    pub size: u8,
    /// `ins` or `outs`.
    pub string: bool,
    pub rax: u64,
    pub instruction: InstructionBytes,
}

/// An access to a guest-physical address that no slot backs, or not that way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemoryIntercept {
    pub header: Header,
    /// Linear address, if the hypervisor knows it and how it is translated.
    pub linear: Option<u64>,
    pub physical: u64,
    pub instruction: InstructionBytes,
}

/// The bytes of the instruction that the hypervisor has fetched: all, some, or none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InstructionBytes {
    bytes: [u8; 16],
    count: usize,
}

impl InstructionBytes {
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.count).unwrap_or(&self.bytes)
    }

    #[cfg(test)]
    pub fn of(bytes: &[u8]) -> Self {
        let mut all = [0; 16];
        all[..bytes.len()].copy_from_slice(bytes);
        Self { bytes: all, count: bytes.len() }
    }
}

/// A `cpuid` that was intercepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CpuidIntercept {
    pub header: Header,
    /// What the hypervisor would have answered: RAX, RCX, RDX, RBX.
    pub answer: [u64; 4],
}

/// An access to a model-specific register that was intercepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MsrIntercept {
    pub header: Header,
    pub number: u32,
}

/// Why a vCPU came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Intercept {
    Nothing,
    Port(PortIntercept),
    Memory(MemoryIntercept),
    Cpuid(CpuidIntercept),
    Msr(MsrIntercept),
    Halt,
    EndOfInterrupt(u32),
    UnrecoverableException,
    InvalidRegister,
    UnsupportedFeature,
    Exception {
        vector: u16,
        rip: u64,
    },
    /// A type that is not asked for.
    Other(u32),
}

/// Takes a message apart.
pub(super) fn decode(message_type: u32, payload: &[u8; PAYLOAD_BYTES]) -> Intercept {
    let payload = Payload(payload);
    #[expect(non_upper_case_globals, reason = "names of the bindings")]
    match message_type {
        hv_message_type_HVMSG_NONE => Intercept::Nothing,
        hv_message_type_HVMSG_X64_IO_PORT_INTERCEPT => Intercept::Port(port(payload)),
        hv_message_type_HVMSG_UNMAPPED_GPA | hv_message_type_HVMSG_GPA_INTERCEPT => {
            Intercept::Memory(memory(payload))
        }
        hv_message_type_HVMSG_X64_CPUID_INTERCEPT => Intercept::Cpuid(CpuidIntercept {
            header: header(payload),
            answer: [
                payload.u64(offset_of!(hv_x64_cpuid_intercept_message, default_result_rax)),
                payload.u64(offset_of!(hv_x64_cpuid_intercept_message, default_result_rcx)),
                payload.u64(offset_of!(hv_x64_cpuid_intercept_message, default_result_rdx)),
                payload.u64(offset_of!(hv_x64_cpuid_intercept_message, default_result_rbx)),
            ],
        }),
        hv_message_type_HVMSG_X64_MSR_INTERCEPT => Intercept::Msr(MsrIntercept {
            header: header(payload),
            number: payload.u32(offset_of!(hv_x64_msr_intercept_message, msr_number)),
        }),
        hv_message_type_HVMSG_X64_HALT => Intercept::Halt,
        hv_message_type_HVMSG_X64_APIC_EOI => {
            Intercept::EndOfInterrupt(payload.u32(offset_of!(hv_x64_apic_eoi_message, interrupt_vector)))
        }
        hv_message_type_HVMSG_UNRECOVERABLE_EXCEPTION => Intercept::UnrecoverableException,
        hv_message_type_HVMSG_INVALID_VP_REGISTER_VALUE => Intercept::InvalidRegister,
        hv_message_type_HVMSG_UNSUPPORTED_FEATURE => Intercept::UnsupportedFeature,
        hv_message_type_HVMSG_X64_EXCEPTION_INTERCEPT => Intercept::Exception {
            vector: payload.u16(offset_of!(hv_x64_exception_intercept_message, exception_vector)),
            rip: header(payload).rip,
        },
        other => Intercept::Other(other),
    }
}

fn header(payload: Payload<'_>) -> Header {
    let state = payload.u16(offset_of!(hv_x64_intercept_message_header, execution_state));
    let code = offset_of!(hv_x64_intercept_message_header, cs_segment);
    let attributes = payload.u16(code + offset_of!(hv_x64_segment_register, __bindgen_anon_1));
    // Instruction length and CR8 share the byte behind the processor's index.
    let [length_and_cr8] = payload.bytes(offset_of!(hv_x64_intercept_message_header, _bitfield_1));
    let [access] = payload.bytes(offset_of!(hv_x64_intercept_message_header, intercept_access_type));
    let mode = Mode::of(state & 1 << 4 != 0, attributes & 1 << 13 != 0, attributes & 1 << 14 != 0);
    let base = payload.u64(code + offset_of!(hv_x64_segment_register, base));
    Header {
        rip: payload.u64(offset_of!(hv_x64_intercept_message_header, rip)),
        instruction_length: length_and_cr8 & 0xf,
        access: match u32::from(access) {
            HV_INTERCEPT_ACCESS_WRITE => AccessKind::Write,
            HV_INTERCEPT_ACCESS_EXECUTE => AccessKind::Execute,
            _ => AccessKind::Read,
        },
        mode,
        code_base: if mode == Mode::Bits64 { 0 } else { base },
        cpl: u8::try_from(state & 3).unwrap_or(3),
        interrupt_shadow: state & 1 << 12 != 0,
    }
}

fn port(payload: Payload<'_>) -> PortIntercept {
    // Size in bits 0 to 2, string in bit 3, rep in bit 4.
    let [info] = payload.bytes(offset_of!(hv_x64_io_port_intercept_message, access_info));
    PortIntercept {
        header: header(payload),
        port: payload.u16(offset_of!(hv_x64_io_port_intercept_message, port_number)),
        size: info & 7,
        string: info & 1 << 3 != 0,
        rax: payload.u64(offset_of!(hv_x64_io_port_intercept_message, rax)),
        instruction: instruction(
            payload,
            offset_of!(hv_x64_io_port_intercept_message, instruction_byte_count),
            offset_of!(hv_x64_io_port_intercept_message, instruction_bytes),
        ),
    }
}

fn memory(payload: Payload<'_>) -> MemoryIntercept {
    // Linear address valid in bit 0, its translation to the physical address in bit 1.
    let [info] = payload.bytes(offset_of!(hv_x64_memory_intercept_message, memory_access_info));
    let linear = payload.u64(offset_of!(hv_x64_memory_intercept_message, guest_virtual_address));
    MemoryIntercept {
        header: header(payload),
        linear: (info & 0b11 == 0b11).then_some(linear),
        physical: payload.u64(offset_of!(hv_x64_memory_intercept_message, guest_physical_address)),
        instruction: instruction(
            payload,
            offset_of!(hv_x64_memory_intercept_message, instruction_byte_count),
            offset_of!(hv_x64_memory_intercept_message, instruction_bytes),
        ),
    }
}

fn instruction(payload: Payload<'_>, count: usize, bytes: usize) -> InstructionBytes {
    let [count] = payload.bytes(count);
    InstructionBytes { bytes: payload.bytes(bytes), count: usize::from(count).min(16) }
}

/// The bytes behind a message's header.
#[derive(Clone, Copy)]
struct Payload<'a>(&'a [u8; PAYLOAD_BYTES]);

impl Payload<'_> {
    /// The bytes of a field. Every field of every message ends within the payload (a test checks
    /// it), so that the zeros are never taken.
    fn bytes<const N: usize>(self, offset: usize) -> [u8; N] {
        offset
            .checked_add(N)
            .and_then(|end| self.0.get(offset..end))
            .and_then(|field| field.try_into().ok())
            .unwrap_or([0; N])
    }

    fn u16(self, offset: usize) -> u16 {
        u16::from_le_bytes(self.bytes(offset))
    }

    fn u32(self, offset: usize) -> u32 {
        u32::from_le_bytes(self.bytes(offset))
    }

    fn u64(self, offset: usize) -> u64 {
        u64::from_le_bytes(self.bytes(offset))
    }
}

#[cfg(test)]
mod tests {
    #![expect(unsafe_code, reason = "the bindings' own structures as bytes, to compare with")]

    use mshv_bindings::{
        hv_x64_io_port_access_info__bindgen_ty_1, hv_x64_memory_access_info__bindgen_ty_1,
        hv_x64_segment_register__bindgen_ty_1__bindgen_ty_1, hv_x64_vp_execution_state__bindgen_ty_1,
    };
    use proptest::prelude::*;

    use super::*;

    /// A message of the bindings as the payload it is sent as.
    fn payload<T: Copy>(message: T) -> [u8; PAYLOAD_BYTES] {
        assert!(size_of::<T>() <= PAYLOAD_BYTES);
        let mut bytes = [0; PAYLOAD_BYTES];
        // SAFETY: the source is a whole packed structure of integers, the target at least as long.
        unsafe { bytes.as_mut_ptr().cast::<T>().write_unaligned(message) };
        bytes
    }

    fn bindings_header(long: bool) -> hv_x64_intercept_message_header {
        let mut header = hv_x64_intercept_message_header { rip: 0x1234, rflags: 2, ..Default::default() };
        header.set_instruction_length(3);
        header.set_cr8(15);
        header.intercept_access_type = 1;
        let mut state = hv_x64_vp_execution_state__bindgen_ty_1::default();
        state.set_cpl(3);
        state.set_cr0_pe(1);
        state.set_efer_lma(long.into());
        state.set_interrupt_shadow(1);
        header.execution_state.__bindgen_anon_1 = state;
        let mut attributes = hv_x64_segment_register__bindgen_ty_1__bindgen_ty_1::default();
        attributes.set__long(long.into());
        attributes.set__default((!long).into());
        header.cs_segment.base = 0x5_0000;
        header.cs_segment.__bindgen_anon_1.__bindgen_anon_1 = attributes;
        header
    }

    #[test]
    fn the_header_is_read() {
        let mut message =
            hv_x64_memory_intercept_message { header: bindings_header(true), ..Default::default() };
        let read = memory(Payload(&payload(message))).header;
        let expected = Header {
            rip: 0x1234,
            instruction_length: 3,
            access: AccessKind::Write,
            mode: Mode::Bits64,
            code_base: 0,
            cpl: 3,
            interrupt_shadow: true,
        };
        assert_eq!(read, expected);
        message.header = bindings_header(false);
        let read = memory(Payload(&payload(message))).header;
        assert_eq!(read, Header { mode: Mode::Bits32, code_base: 0x5_0000, ..expected });
    }

    #[test]
    fn a_port_intercept_is_read() {
        let mut message = hv_x64_io_port_intercept_message {
            header: bindings_header(true),
            port_number: 0x3f8,
            rax: 0x1122_3344_5566_7788,
            instruction_byte_count: 2,
            ..Default::default()
        };
        let mut info = hv_x64_io_port_access_info__bindgen_ty_1::default();
        info.set_access_size(4);
        info.set_string_op(1);
        message.access_info.__bindgen_anon_1 = info;
        message.instruction_bytes = *b"0123456789abcdef";
        let Intercept::Port(read) = decode(hv_message_type_HVMSG_X64_IO_PORT_INTERCEPT, &payload(message))
        else {
            panic!("not a port intercept")
        };
        assert_eq!((read.port, read.size, read.string, read.rax), (0x3f8, 4, true, 0x1122_3344_5566_7788));
        assert_eq!(read.instruction.as_slice(), b"01");
        assert_eq!(read.header.rip, 0x1234);
    }

    #[test]
    fn a_memory_intercept_is_read() {
        let mut message = hv_x64_memory_intercept_message {
            header: bindings_header(true),
            guest_virtual_address: 0xffff_8000_0000_0123,
            guest_physical_address: 0xfee0_0123,
            instruction_byte_count: 255,
            instruction_bytes: [0x90; 16],
            ..Default::default()
        };
        let mut info = hv_x64_memory_access_info__bindgen_ty_1::default();
        info.set_gva_valid(1);
        message.memory_access_info.__bindgen_anon_1 = info;
        for kind in [hv_message_type_HVMSG_UNMAPPED_GPA, hv_message_type_HVMSG_GPA_INTERCEPT] {
            let Intercept::Memory(read) = decode(kind, &payload(message)) else {
                panic!("not a memory intercept")
            };
            assert_eq!((read.linear, read.physical), (None, 0xfee0_0123));
            assert_eq!(read.instruction.as_slice(), [0x90; 16], "a count beyond the bytes is cut");
        }
        info.set_gva_gpa_valid(1);
        message.memory_access_info.__bindgen_anon_1 = info;
        let read = memory(Payload(&payload(message)));
        assert_eq!(read.linear, Some(0xffff_8000_0000_0123));
    }

    #[test]
    fn the_short_messages_are_read() {
        let eoi = hv_x64_apic_eoi_message { vp_index: 1, interrupt_vector: 0x31 };
        assert_eq!(
            decode(hv_message_type_HVMSG_X64_APIC_EOI, &payload(eoi)),
            Intercept::EndOfInterrupt(0x31)
        );
        let msr = hv_x64_msr_intercept_message {
            header: bindings_header(true),
            msr_number: 0x1a0,
            ..Default::default()
        };
        let Intercept::Msr(read) = decode(hv_message_type_HVMSG_X64_MSR_INTERCEPT, &payload(msr)) else {
            panic!("not an MSR intercept")
        };
        assert_eq!((read.number, read.header.access), (0x1a0, AccessKind::Write));
        let cpuid = hv_x64_cpuid_intercept_message {
            header: bindings_header(true),
            rax: 9,
            default_result_rax: 1,
            default_result_rcx: 2,
            default_result_rdx: 3,
            default_result_rbx: 4,
            ..Default::default()
        };
        let Intercept::Cpuid(read) = decode(hv_message_type_HVMSG_X64_CPUID_INTERCEPT, &payload(cpuid))
        else {
            panic!("not a CPUID intercept")
        };
        assert_eq!(read.answer, [1, 2, 3, 4]);
        let exception = hv_x64_exception_intercept_message {
            header: bindings_header(true),
            exception_vector: 14,
            ..Default::default()
        };
        assert_eq!(
            decode(hv_message_type_HVMSG_X64_EXCEPTION_INTERCEPT, &payload(exception)),
            Intercept::Exception { vector: 14, rip: 0x1234 }
        );
        assert_eq!(decode(hv_message_type_HVMSG_X64_HALT, &[0; PAYLOAD_BYTES]), Intercept::Halt);
        assert_eq!(decode(0x8001_0009, &[0; PAYLOAD_BYTES]), Intercept::Other(0x8001_0009));
    }

    proptest! {
        #[test]
        fn any_message_is_answered(
            message_type in prop_oneof![any::<u32>(), 0x8000_0000_u32..0x8000_0030, 0x8001_0000_u32..0x8001_0010],
            payload in proptest::collection::vec(any::<u8>(), PAYLOAD_BYTES),
        ) {
            let payload = payload.try_into().unwrap();
            match decode(message_type, &payload) {
                Intercept::Port(read) => prop_assert!(read.instruction.as_slice().len() <= 16 && read.header.cpl < 4),
                Intercept::Memory(read) => prop_assert!(read.instruction.as_slice().len() <= 16),
                _ => {}
            }
        }
    }
}
