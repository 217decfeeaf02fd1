//! Saved state as bytes, and back: the pure half of loading, which makes no system call.
//!
//! The bytes come from a snapshot or from another host, so nothing is taken for granted: every part
//! has exactly its length, none is missing, none is unknown and none comes twice. What the *values*
//! may be is KVM's to judge, which checks them as it does for any process. [`parse_vcpu`] and
//! [`parse_irqchip`] are public for the fuzz targets.

use std::{collections::BTreeMap, fmt};

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, kvm_debugregs, kvm_fpu, kvm_ioapic_state, kvm_irqchip, kvm_lapic_state,
    kvm_mp_state, kvm_nested_state, kvm_pic_state, kvm_pit_state2, kvm_regs, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs, kvm_xsave, nested::KvmNestedStateBuffer,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{invalid, msr};
use crate::{
    HypervisorError,
    x86_64::{IrqchipState, Msr, StatePart, VcpuState},
};

// Names of the parts. Stable: they are in snapshots.
pub(super) const MP_STATE: &str = "kvm.mp_state";
pub(super) const REGS: &str = "kvm.regs";
pub(super) const SREGS: &str = "kvm.sregs";
pub(super) const XCRS: &str = "kvm.xcrs";
pub(super) const DEBUGREGS: &str = "kvm.debugregs";
pub(super) const VCPU_EVENTS: &str = "kvm.vcpu_events";
pub(super) const LAPIC: &str = "kvm.lapic";
pub(super) const XSAVE: &str = "kvm.xsave";
pub(super) const FPU: &str = "kvm.fpu";
pub(super) const NESTED: &str = "kvm.nested";
pub(super) const PIC_MASTER: &str = "kvm.pic_master";
pub(super) const PIC_SLAVE: &str = "kvm.pic_slave";
pub(super) const IOAPIC: &str = "kvm.ioapic";
pub(super) const PIT: &str = "kvm.pit2";

/// Longest XSAVE area that is believed; AMX, the largest feature so far, needs 11 KiB.
const XSAVE_MAX: usize = 64 << 10;
const XSAVE_MIN: usize = size_of::<kvm_xsave>();
/// Where a chip's own structure begins in `kvm_irqchip`: behind its id and a pad.
pub(super) const CHIP_OFFSET: usize = std::mem::offset_of!(kvm_irqchip, chip);
const NESTED_MIN: usize = size_of::<kvm_nested_state>();

/// The parts of a vCPU's state, each whole and of its type. Only [`parse_vcpu`] makes one.
pub struct ParsedVcpu {
    pub(super) mp_state: kvm_mp_state,
    pub(super) regs: kvm_regs,
    pub(super) sregs: kvm_sregs,
    pub(super) xcrs: Option<kvm_xcrs>,
    pub(super) debugregs: kvm_debugregs,
    pub(super) events: kvm_vcpu_events,
    pub(super) lapic: Option<kvm_lapic_state>,
    pub(super) fpu: FpuState,
    pub(super) nested: Option<Box<KvmNestedStateBuffer>>,
}

/// Floating-point state, in the form that the saving host had.
pub(super) enum FpuState {
    Xsave(Vec<u8>),
    Legacy(Box<kvm_fpu>),
}

/// The parts of the interrupt controllers' state. Only [`parse_irqchip`] makes one.
pub struct ParsedIrqchip {
    /// PIC master, PIC slave, IOAPIC.
    pub(super) chips: Option<[kvm_irqchip; 3]>,
    pub(super) pit: Option<kvm_pit_state2>,
}

impl fmt::Debug for ParsedVcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParsedVcpu").field("regs", &self.regs).finish_non_exhaustive()
    }
}

impl fmt::Debug for ParsedIrqchip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParsedIrqchip").field("pit", &self.pit).finish_non_exhaustive()
    }
}

/// Checks the form of a vCPU's state.
///
/// # Errors
/// A part is missing, unknown, there twice or of another length; too many or repeated registers.
/// Names the part.
pub fn parse_vcpu(state: &VcpuState) -> Result<ParsedVcpu, HypervisorError> {
    if state.cpuid.len() > KVM_MAX_CPUID_ENTRIES {
        let detail = format!("{} CPUID entries, at most {KVM_MAX_CPUID_ENTRIES}", state.cpuid.len());
        return Err(invalid(VCPU, detail));
    }
    check_msrs(&state.msrs)?;
    let mut parts = Parts::new(VCPU, &state.parts)?;
    let fpu = match (parts.take_bytes(XSAVE), parts.take::<Fpu>(FPU)?) {
        (Some(bytes), None) => FpuState::Xsave(check_xsave(bytes)?),
        (None, Some(fpu)) => FpuState::Legacy(Box::new(fpu.to_kvm())),
        (Some(_), Some(_)) => return Err(invalid(VCPU, format!("both {XSAVE} and {FPU}"))),
        (None, None) => return Err(invalid(VCPU, format!("{XSAVE} is missing"))),
    };
    let parsed = ParsedVcpu {
        mp_state: parts.need(MP_STATE)?,
        regs: parts.need(REGS)?,
        sregs: parts.need(SREGS)?,
        xcrs: parts.take(XCRS)?,
        debugregs: parts.need(DEBUGREGS)?,
        events: parts.need(VCPU_EVENTS)?,
        lapic: parts.take(LAPIC)?,
        fpu,
        nested: parts.take_bytes(NESTED).map(parse_nested).transpose()?,
    };
    parts.finish()?;
    Ok(parsed)
}

/// Checks the form of the interrupt controllers' state.
///
/// # Errors
/// As [`parse_vcpu`].
pub fn parse_irqchip(state: &IrqchipState) -> Result<ParsedIrqchip, HypervisorError> {
    let mut parts = Parts::new(IRQCHIP, &state.parts)?;
    let pit = parts.take(PIT)?;
    if parts.is_empty() && pit.is_none() {
        return Ok(ParsedIrqchip { chips: None, pit: None });
    }
    let chips = [parts.chip(0, PIC_MASTER)?, parts.chip(1, PIC_SLAVE)?, parts.chip(2, IOAPIC)?];
    parts.finish()?;
    Ok(ParsedIrqchip { chips: Some(chips), pit })
}

const VCPU: &str = "vCPU state";
const IRQCHIP: &str = "interrupt controller state";

/// Makes a part.
pub(super) fn part(name: &str, bytes: &[u8]) -> StatePart {
    StatePart { name: name.to_owned(), bytes: bytes.to_vec() }
}

/// Length of the structure of a chip.
pub(super) fn chip_len(name: &str) -> usize {
    if name == IOAPIC { size_of::<kvm_ioapic_state>() } else { size_of::<kvm_pic_state>() }
}

/// The content of [`NESTED`]: as much of KVM's buffer as it says it used.
pub(super) fn nested_bytes(buffer: &KvmNestedStateBuffer) -> &[u8] {
    let len = usize::try_from(buffer.size).unwrap_or(usize::MAX);
    buffer.as_bytes().get(..len).unwrap_or_default()
}

/// The parts that nobody has asked for yet.
struct Parts<'state> {
    what: &'static str,
    left: BTreeMap<&'state str, &'state [u8]>,
}

impl<'state> Parts<'state> {
    fn new(what: &'static str, parts: &'state [StatePart]) -> Result<Self, HypervisorError> {
        let mut left = BTreeMap::new();
        for part in parts {
            if left.insert(part.name.as_str(), part.bytes.as_slice()).is_some() {
                return Err(invalid(what, format!("{:?} comes twice", part.name)));
            }
        }
        Ok(Self { what, left })
    }

    fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    fn take_bytes(&mut self, name: &str) -> Option<&'state [u8]> {
        self.left.remove(name)
    }

    fn take<T: FromBytes>(&mut self, name: &str) -> Result<Option<T>, HypervisorError> {
        let Some(bytes) = self.take_bytes(name) else { return Ok(None) };
        match T::read_from_bytes(bytes) {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(self.wrong_length(name, bytes.len(), size_of::<T>())),
        }
    }

    fn need<T: FromBytes>(&mut self, name: &str) -> Result<T, HypervisorError> {
        self.take(name)?.ok_or_else(|| self.missing(name))
    }

    fn chip(&mut self, chip_id: u32, name: &str) -> Result<kvm_irqchip, HypervisorError> {
        let bytes = self.take_bytes(name).ok_or_else(|| self.missing(name))?;
        let len = chip_len(name);
        if bytes.len() != len {
            return Err(self.wrong_length(name, bytes.len(), len));
        }
        let mut whole = [0; size_of::<kvm_irqchip>()];
        if let Some(content) = whole.get_mut(CHIP_OFFSET..CHIP_OFFSET + len) {
            content.copy_from_slice(bytes);
        }
        let mut chip =
            kvm_irqchip::read_from_bytes(&whole).map_err(|_| self.wrong_length(name, bytes.len(), len))?;
        chip.chip_id = chip_id;
        Ok(chip)
    }

    fn finish(self) -> Result<(), HypervisorError> {
        match self.left.keys().next() {
            Some(name) => Err(invalid(self.what, format!("unknown part {name:?}"))),
            None => Ok(()),
        }
    }

    fn missing(&self, name: &str) -> HypervisorError {
        invalid(self.what, format!("{name} is missing"))
    }

    fn wrong_length(&self, name: &str, found: usize, need: usize) -> HypervisorError {
        invalid(self.what, format!("{name} has {found} bytes, need {need}"))
    }
}

fn check_msrs(msrs: &[Msr]) -> Result<(), HypervisorError> {
    if msrs.len() > msr::SAVED_MAX {
        let detail = format!("{} model-specific registers, at most {}", msrs.len(), msr::SAVED_MAX);
        return Err(invalid(VCPU, detail));
    }
    let mut indices: Vec<u32> = msrs.iter().map(|msr| msr.index).collect();
    indices.sort_unstable();
    match indices.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(invalid(VCPU, format!("model-specific register {:#x} comes twice", pair[0]))),
        None => Ok(()),
    }
}

fn check_xsave(bytes: &[u8]) -> Result<Vec<u8>, HypervisorError> {
    if !(XSAVE_MIN..=XSAVE_MAX).contains(&bytes.len()) {
        let detail = format!("{XSAVE} has {} bytes, need {XSAVE_MIN} to {XSAVE_MAX}", bytes.len());
        return Err(invalid(VCPU, detail));
    }
    Ok(bytes.to_vec())
}

fn parse_nested(bytes: &[u8]) -> Result<Box<KvmNestedStateBuffer>, HypervisorError> {
    let max = size_of::<KvmNestedStateBuffer>();
    if !(NESTED_MIN..=max).contains(&bytes.len()) {
        let detail = format!("{NESTED} has {} bytes, need {NESTED_MIN} to {max}", bytes.len());
        return Err(invalid(VCPU, detail));
    }
    let mut buffer = Box::new(KvmNestedStateBuffer::empty());
    let mut whole = vec![0; max];
    if let Some(content) = whole.get_mut(..bytes.len()) {
        content.copy_from_slice(bytes);
    }
    if let Ok(content) = KvmNestedStateBuffer::read_from_bytes(&whole) {
        *buffer = content;
    }
    // KVM reads as much as the buffer says, not as much as there is.
    if usize::try_from(buffer.size) != Ok(bytes.len()) {
        let detail = format!("{NESTED} has {} bytes and says {}", bytes.len(), buffer.size);
        return Err(invalid(VCPU, detail));
    }
    Ok(buffer)
}

/// `kvm_fpu`, for hosts without XSAVE: kvm-bindings gives it no bytes.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Fpu {
    fpr: [[u8; 16]; 8],
    fcw: u16,
    fsw: u16,
    ftwx: u8,
    pad1: u8,
    last_opcode: u16,
    last_ip: u64,
    last_dp: u64,
    xmm: [[u8; 16]; 16],
    mxcsr: u32,
    pad2: u32,
}

impl Fpu {
    pub(super) fn from_kvm(fpu: &kvm_fpu) -> Self {
        let kvm_fpu { fpr, fcw, fsw, ftwx, pad1, last_opcode, last_ip, last_dp, xmm, mxcsr, pad2 } = *fpu;
        Self { fpr, fcw, fsw, ftwx, pad1, last_opcode, last_ip, last_dp, xmm, mxcsr, pad2 }
    }

    fn to_kvm(self) -> kvm_fpu {
        let Self { fpr, fcw, fsw, ftwx, pad1, last_opcode, last_ip, last_dp, xmm, mxcsr, pad2 } = self;
        kvm_fpu { fpr, fcw, fsw, ftwx, pad1, last_opcode, last_ip, last_dp, xmm, mxcsr, pad2 }
    }
}
