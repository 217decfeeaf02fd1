//! Plain data of an x86_64 processor and its interrupt controllers, in no hypervisor's layout.
//!
//! What a boot protocol needs is spelled out register by register. What only ever travels from
//! [`save`](crate::Vcpu::save) to [`load`](crate::Vcpu::load) is a list of named sections, so that
//! a missing or unknown one is an error that names it.

use serde::{Deserialize, Serialize};

/// Guest-physical page that a hypervisor may take for a page table of its own, where the processor
/// cannot run real mode in a guest (KVM API 4.41). No memory or device may be placed there.
pub const IDENTITY_MAP_ADDRESS: u64 = 0xfeff_c000;
/// First of three guest-physical pages taken for the same reason (KVM API 4.38).
pub const TSS_ADDRESS: u64 = 0xfeff_d000;
/// Bytes taken, from [`IDENTITY_MAP_ADDRESS`] on.
pub const HYPERVISOR_WINDOW_SIZE: u64 = 0x4000;

/// One leaf of the CPU identification (Intel SDM volume 2, CPUID).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CpuidEntry {
    /// EAX on input.
    pub leaf: u32,
    /// ECX on input, for leaves that look at it.
    pub subleaf: u32,
    /// Whether the leaf looks at ECX.
    pub subleaf_significant: bool,
    /// EAX on output.
    pub eax: u32,
    /// EBX on output.
    pub ebx: u32,
    /// ECX on output.
    pub ecx: u32,
    /// EDX on output.
    pub edx: u32,
}

/// A segment register with its hidden part (Intel SDM volume 3, 3.4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, granularity already applied.
    pub limit: u32,
    /// Visible selector.
    pub selector: u16,
    /// Descriptor type, 4 bits.
    pub kind: u8,
    /// Code or data (true) or system (false).
    pub code_or_data: bool,
    /// Privilege level, 0 to 3.
    pub dpl: u8,
    /// Present.
    pub present: bool,
    /// 64-bit code.
    pub long: bool,
    /// 32-bit default operand size.
    pub big: bool,
    /// Limit counted in 4 KiB units.
    pub granularity: bool,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// The registers that boot protocols fix. Everything not named is at its reset value, but for the floating-point unit,
/// which is as after `FNINIT`: what is started at the reset vector has to run that before it uses the unit (Intel SDM
/// volume 3, 10.2), and everybody else finds it done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadyRegisters {
    /// Instruction pointer.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// First general register of PVH: address of the start info (Xen PVH boot ABI).
    pub rbx: u64,
    /// Address of the zero page (Linux x86 boot protocol, 64-bit entry).
    pub rsi: u64,
    /// After a reset, the processor's signature (Intel SDM volume 3, 10.1.2).
    pub rdx: u64,
    /// Flags; bit 1 is always set.
    pub rflags: u64,
    /// Code segment.
    pub cs: Segment,
    /// DS, ES, FS, GS and SS alike.
    pub data: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdt: DescriptorTable,
    /// Interrupt descriptor table.
    pub idt: DescriptorTable,
    /// Control register 0.
    pub cr0: u64,
    /// Control register 3.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Extended feature enable register.
    pub efer: u64,
    /// IA32_MTRR_DEF_TYPE (Intel SDM volume 3, 12.11.2.1): 0 after a reset, when nothing is cached. MSHV leaves it as it
    /// is in a new partition.
    pub mtrr_default: u64,
}

/// A named part of saved processor or interrupt-controller state. The bytes are the back end's
/// own; the name carries the back end and the part, as in `kvm.regs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatePart {
    /// Stable name, never reused for another layout.
    pub name: String,
    /// Content, exactly as long as the part. Base64 in its saved form: there are kilobytes of it a vCPU, and a
    /// list of numbers takes ten times as long to read.
    #[serde(with = "base64_bytes")]
    pub bytes: Vec<u8>,
}

mod base64_bytes {
    use std::borrow::Cow;

    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        STANDARD.decode(text.as_bytes()).map_err(D::Error::custom)
    }
}

/// A model-specific register and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Msr {
    /// Register number.
    pub index: u32,
    /// Value.
    pub value: u64,
}

/// All state of one vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// The CPU identification the guest was given.
    pub cpuid: Vec<CpuidEntry>,
    /// Model-specific registers, in the order in which they are to be set.
    pub msrs: Vec<Msr>,
    /// TSC frequency in kHz, where the host tells it.
    pub tsc_khz: Option<u32>,
    /// The other parts, by name.
    pub parts: Vec<StatePart>,
}

/// All state of the in-kernel interrupt controllers and timer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IrqchipState {
    /// The parts, by name.
    pub parts: Vec<StatePart>,
}

/// The guest's paravirtual clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmClock {
    /// Nanoseconds since the VM was made, as the guest sees them.
    pub guest_ns: u64,
    /// The host's wall clock at that moment, in nanoseconds since 1970, where it can be had with it.
    pub realtime_ns: Option<u64>,
    /// The host's TSC at that moment, where it can be had with it.
    pub host_tsc: Option<u64>,
}
