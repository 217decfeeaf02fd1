//! Registers by name: reading, setting, and the values that a boot protocol asks for.
//!
//! A register travels as 128 bits, whatever it is; the layouts are HV_REGISTER_VALUE's (Hyper-V
//! TLFS, "Virtual processor registers"). General registers, instruction pointer and flags may also
//! live in the register page that the vCPU shares with the hypervisor, and then the page is what
//! counts: they are read and set with mshv-ioctls' `get_regs` and `set_regs` only, which know. All
//! others are read and set by hypercall only.
#![expect(unsafe_code, reason = "register values are a union")]

use mshv_bindings::*;
use mshv_ioctls::{MshvError, VcpuFd};

use super::{
    call::with_deposits,
    emulate::{RegisterFile, SegmentSlot},
    exits::Exception,
};
use crate::x86_64::{DescriptorTable, ReadyRegisters, Segment};

/// A register of the hypervisor, by its number.
pub(super) type Name = hv_register_name;

/// The value of a register, low half first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Value {
    pub low: u64,
    pub high: u64,
}

impl From<u64> for Value {
    fn from(low: u64) -> Self {
        Self { low, high: 0 }
    }
}

/// Segment registers in the order in which instructions encode them.
pub(super) const SEGMENTS: [Name; 6] = [
    hv_register_name_HV_X64_REGISTER_ES,
    hv_register_name_HV_X64_REGISTER_CS,
    hv_register_name_HV_X64_REGISTER_SS,
    hv_register_name_HV_X64_REGISTER_DS,
    hv_register_name_HV_X64_REGISTER_FS,
    hv_register_name_HV_X64_REGISTER_GS,
];

/// General registers in the order in which instructions encode them.
pub(super) const GENERAL: [Name; 16] = [
    hv_register_name_HV_X64_REGISTER_RAX,
    hv_register_name_HV_X64_REGISTER_RCX,
    hv_register_name_HV_X64_REGISTER_RDX,
    hv_register_name_HV_X64_REGISTER_RBX,
    hv_register_name_HV_X64_REGISTER_RSP,
    hv_register_name_HV_X64_REGISTER_RBP,
    hv_register_name_HV_X64_REGISTER_RSI,
    hv_register_name_HV_X64_REGISTER_RDI,
    hv_register_name_HV_X64_REGISTER_R8,
    hv_register_name_HV_X64_REGISTER_R9,
    hv_register_name_HV_X64_REGISTER_R10,
    hv_register_name_HV_X64_REGISTER_R11,
    hv_register_name_HV_X64_REGISTER_R12,
    hv_register_name_HV_X64_REGISTER_R13,
    hv_register_name_HV_X64_REGISTER_R14,
    hv_register_name_HV_X64_REGISTER_R15,
];

/// Reads registers by hypercall.
pub(super) fn get(vcpu: &VcpuFd, names: &[Name]) -> Result<Vec<Value>, MshvError> {
    let mut registers: Vec<hv_register_assoc> =
        names.iter().map(|name| hv_register_assoc { name: *name, ..Default::default() }).collect();
    with_deposits(|| vcpu.get_reg(&mut registers))?;
    Ok(registers.iter().map(value_of).collect())
}

/// Sets registers by hypercall, in the order given.
pub(super) fn set(vcpu: &VcpuFd, registers: &[(Name, Value)]) -> Result<(), MshvError> {
    let registers: Vec<hv_register_assoc> =
        registers.iter().map(|(name, value)| named(*name, *value)).collect();
    with_deposits(|| vcpu.set_reg(&registers))
}

fn named(name: Name, value: Value) -> hv_register_assoc {
    hv_register_assoc {
        name,
        value: hv_register_value { reg128: hv_u128 { low_part: value.low, high_part: value.high } },
        ..Default::default()
    }
}

fn value_of(register: &hv_register_assoc) -> Value {
    // SAFETY: the union is 128 bits of which every pattern is a value, and all were initialized.
    let whole = unsafe { register.value.reg128 };
    Value { low: whole.low_part, high: whole.high_part }
}

/// Sets the interrupt vectors that the hypervisor left pending in the register page. `false` if
/// there is no page.
pub(super) fn set_pending_vectors(vcpu: &VcpuFd, vectors: u64) -> bool {
    let Some(page) = vcpu.get_vp_reg_page() else { return false };
    // SAFETY: the page was mapped when the vCPU was made and stays as long as `vcpu`, which nobody
    // runs meanwhile: running it takes the `&mut` of its owner. The offset is the field's own.
    let field = unsafe { &raw mut (*page.0).interrupt_vectors.as_uint64 };
    // SAFETY: as above; the page is packed, so that no alignment is taken for granted.
    unsafe { field.write_unaligned(vectors) };
    true
}

/// General registers, instruction pointer and flags in the emulator's order.
pub(super) fn to_file(regs: &StandardRegisters) -> RegisterFile {
    RegisterFile {
        general: [
            regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r9,
            regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ],
        rip: regs.rip,
        rflags: regs.rflags,
        segments: Default::default(),
    }
}

/// The inverse of [`to_file`].
pub(super) fn from_file(file: &RegisterFile) -> StandardRegisters {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = file.general;
    StandardRegisters {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: file.rip,
        rflags: file.rflags,
    }
}

/// Base and selector of a segment register's value.
pub(super) fn segment_slot(value: Value) -> SegmentSlot {
    SegmentSlot { base: value.low, selector: u16::try_from(value.high >> 32 & 0xffff).unwrap_or(0) }
}

/// HV_X64_SEGMENT_REGISTER: base, limit, selector, attributes (as in a descriptor, bits 40 to 55).
fn segment(segment: &Segment) -> Value {
    let mut attributes = u64::from(segment.kind & 0xf) | u64::from(segment.dpl & 3) << 5;
    for (set, bit) in [
        (segment.code_or_data, 4),
        (segment.present, 7),
        (segment.long, 13),
        (segment.big, 14),
        (segment.granularity, 15),
    ] {
        attributes |= u64::from(set) << bit;
    }
    Value {
        low: segment.base,
        high: u64::from(segment.limit) | u64::from(segment.selector) << 32 | attributes << 48,
    }
}

/// HV_X64_TABLE_REGISTER: three unused half-words, limit, base.
fn table(table: &DescriptorTable) -> Value {
    Value { low: u64::from(table.limit) << 48, high: table.base }
}

/// The pending-exception event (HV_X64_PENDING_EXCEPTION_EVENT) of an exception: pending in bit 0,
/// type 0 in bits 1 to 3, error code in bit 8, vector in bits 16 to 31; then error code and parameter.
pub(super) fn pending_exception(exception: Exception) -> (Name, Value) {
    let (vector, error_code, parameter) = match exception {
        Exception::PageFault { address, error_code } => (14_u64, error_code, address),
        Exception::Protection => (13, 0, 0),
    };
    let event = 1 | 1 << 8 | vector << 16 | u64::from(error_code) << 32;
    (hv_register_name_HV_REGISTER_PENDING_EVENT0, Value { low: event, high: parameter })
}

/// An LDTR or TR that holds nothing, as after reset (Intel SDM volume 3, table 10-1).
const EMPTY_LDT: Segment = Segment {
    base: 0,
    limit: 0xffff,
    selector: 0,
    kind: 2,
    code_or_data: false,
    dpl: 0,
    present: true,
    long: false,
    big: false,
    granularity: false,
};

/// What [`crate::Vcpu::set_ready`] sets: the general registers, and all others in order.
pub(super) fn ready(ready: &ReadyRegisters) -> (StandardRegisters, Vec<(Name, Value)>) {
    let regs = StandardRegisters {
        rip: ready.rip,
        rsp: ready.rsp,
        rbx: ready.rbx,
        rsi: ready.rsi,
        rdx: ready.rdx,
        rflags: ready.rflags | 2,
        ..Default::default()
    };
    let data = segment(&ready.data);
    let others = vec![
        // Neither halted nor waiting for a start-up interrupt, and nothing pending.
        (hv_register_name_HV_REGISTER_INTERNAL_ACTIVITY_STATE, Value::default()),
        (hv_register_name_HV_REGISTER_PENDING_INTERRUPTION, Value::default()),
        (hv_register_name_HV_REGISTER_INTERRUPT_STATE, Value::default()),
        (hv_register_name_HV_X64_REGISTER_CS, segment(&ready.cs)),
        (hv_register_name_HV_X64_REGISTER_DS, data),
        (hv_register_name_HV_X64_REGISTER_ES, data),
        (hv_register_name_HV_X64_REGISTER_FS, data),
        (hv_register_name_HV_X64_REGISTER_GS, data),
        (hv_register_name_HV_X64_REGISTER_SS, data),
        (hv_register_name_HV_X64_REGISTER_TR, segment(&ready.tr)),
        (hv_register_name_HV_X64_REGISTER_LDTR, segment(&EMPTY_LDT)),
        (hv_register_name_HV_X64_REGISTER_GDTR, table(&ready.gdt)),
        (hv_register_name_HV_X64_REGISTER_IDTR, table(&ready.idt)),
        // The intermediate names take each control register by itself, without the checks of the
        // instruction that would set it.
        (hv_register_name_HV_X64_REGISTER_INTERMEDIATE_CR0, ready.cr0.into()),
        (hv_register_name_HV_X64_REGISTER_CR2, 0.into()),
        (hv_register_name_HV_X64_REGISTER_INTERMEDIATE_CR3, ready.cr3.into()),
        (hv_register_name_HV_X64_REGISTER_INTERMEDIATE_CR4, ready.cr4.into()),
        (hv_register_name_HV_X64_REGISTER_CR8, 0.into()),
        (hv_register_name_HV_X64_REGISTER_EFER, ready.efer.into()),
        (hv_register_name_HV_X64_REGISTER_XFEM, 1.into()),
        (hv_register_name_HV_X64_REGISTER_DR0, 0.into()),
        (hv_register_name_HV_X64_REGISTER_DR1, 0.into()),
        (hv_register_name_HV_X64_REGISTER_DR2, 0.into()),
        (hv_register_name_HV_X64_REGISTER_DR3, 0.into()),
        (hv_register_name_HV_X64_REGISTER_DR6, 0xffff_0ff0.into()),
        (hv_register_name_HV_X64_REGISTER_DR7, 0x400.into()),
    ];
    (regs, others)
}

/// Floating-point state after FNINIT, which is what boot protocols assume and the power-on values
/// are close to (Intel SDM volume 3, table 10-1).
pub(super) fn ready_fpu() -> FloatingPointUnit {
    FloatingPointUnit { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: Segment = Segment {
        base: 0x1_0000,
        limit: 0xffff_ffff,
        selector: 0x10,
        kind: 0xb,
        code_or_data: true,
        dpl: 3,
        present: true,
        long: true,
        big: false,
        granularity: true,
    };

    #[test]
    fn a_segment_is_what_the_bindings_read() {
        let register = named(hv_register_name_HV_X64_REGISTER_CS, segment(&CODE));
        // SAFETY: every pattern is a segment register.
        let read = SegmentRegister::from(unsafe { register.value.segment });
        assert_eq!((read.base, read.limit, read.selector), (0x1_0000, 0xffff_ffff, 0x10));
        assert_eq!((read.type_, read.s, read.dpl, read.present), (0xb, 1, 3, 1));
        assert_eq!((read.l, read.db, read.g, read.avl), (1, 0, 1, 0));
        assert_eq!(segment_slot(value_of(&register)), SegmentSlot { base: 0x1_0000, selector: 0x10 });
        let big = Segment { long: false, big: true, granularity: false, dpl: 0xff, kind: 0xff, ..CODE };
        // SAFETY: as above.
        let read = SegmentRegister::from(unsafe { named(0, segment(&big)).value.segment });
        assert_eq!((read.l, read.db, read.g, read.avl), (0, 1, 0, 0));
        assert_eq!((read.type_, read.dpl), (0xf, 3), "too large a value reaches no other field");
    }

    #[test]
    fn a_table_is_what_the_bindings_read() {
        let register = named(0, table(&DescriptorTable { base: 0x1234_5678, limit: 0x7f }));
        // SAFETY: every pattern is a table register.
        let read = TableRegister::from(unsafe { register.value.table });
        assert_eq!((read.base, read.limit), (0x1234_5678, 0x7f));
    }

    #[test]
    fn an_exception_is_what_the_bindings_read() {
        let (name, value) =
            pending_exception(Exception::PageFault { address: 0xffff_8000_0000_1000, error_code: 6 });
        assert_eq!(name, hv_register_name_HV_REGISTER_PENDING_EVENT0);
        // SAFETY: every pattern is an event.
        let event = unsafe { named(name, value).value.pending_exception_event };
        // SAFETY: as above.
        let event = unsafe { event.__bindgen_anon_1 };
        assert_eq!((event.event_pending(), event.event_type(), event.deliver_error_code()), (1, 0, 1));
        assert_eq!(
            (event.vector(), { event.error_code }, { event.exception_parameter }),
            (14, 6, 0xffff_8000_0000_1000)
        );
        let (_, value) = pending_exception(Exception::Protection);
        assert_eq!(value, Value { low: 1 | 1 << 8 | 13 << 16, high: 0 });
    }

    #[test]
    fn general_registers_keep_their_places() {
        let file = RegisterFile {
            general: std::array::from_fn(|n| n as u64 + 100),
            rip: 1,
            rflags: 2,
            segments: Default::default(),
        };
        let regs = from_file(&file);
        assert_eq!((regs.rax, regs.rcx, regs.rdx, regs.rbx), (100, 101, 102, 103));
        assert_eq!(
            (regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r15),
            (104, 105, 106, 107, 108, 115)
        );
        assert_eq!(to_file(&regs), file);
        // The hypervisor numbers them in the same order.
        assert!(
            GENERAL.iter().zip(hv_register_name_HV_X64_REGISTER_RAX..).all(|(name, number)| *name == number)
        );
    }

    #[test]
    fn ready_registers_are_all_set() {
        let registers = ReadyRegisters {
            rip: 0x10_0000,
            rbx: 0x6000,
            rsi: 0x7000,
            rsp: 0x8000,
            cs: CODE,
            cr0: 1,
            cr4: 0x20,
            efer: 0x500,
            gdt: DescriptorTable { base: 0x500, limit: 0x1f },
            ..Default::default()
        };
        let (regs, others) = ready(&registers);
        let expected = StandardRegisters {
            rip: 0x10_0000,
            rbx: 0x6000,
            rsi: 0x7000,
            rsp: 0x8000,
            rflags: 2,
            ..Default::default()
        };
        assert_eq!(regs, expected);
        let find = |name| others.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
        assert_eq!(find(hv_register_name_HV_X64_REGISTER_CS), Some(segment(&CODE)));
        assert_eq!(find(hv_register_name_HV_X64_REGISTER_INTERMEDIATE_CR4), Some(0x20.into()));
        assert_eq!(find(hv_register_name_HV_X64_REGISTER_EFER), Some(0x500.into()));
        assert_eq!(find(hv_register_name_HV_X64_REGISTER_GDTR), Some(Value { low: 0x1f << 48, high: 0x500 }));
        let mut names: Vec<Name> = others.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), others.len(), "each once");
    }
}
