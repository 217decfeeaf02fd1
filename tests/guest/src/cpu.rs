//! Instructions that Rust has no word for, and the services that ring 0 gives (`boot.s`), one software interrupt each.
//!
//! Ports and memory-mapped registers are reached by plain `mov`, `in` and `out`, which every hypervisor can decode.

#![expect(unsafe_code, reason = "each function is one instruction")]

use core::arch::asm;
use core::arch::x86_64::_rdtsc;
use core::sync::atomic::AtomicU64;

use crate::boot::service_call;

/// Port of QEMU's `isa-debug-exit` as the tests configure it, and of Cumulet's.
pub const DEBUG_EXIT_PORT: u16 = 0x501;

/// The services, in the order of `services` in `boot.s`.
const SERVICE_HALT: u64 = 0;
const SERVICE_ENABLE: u64 = 1;
const SERVICE_RDMSR: u64 = 2;
const SERVICE_WRMSR: u64 = 3;
const SERVICE_STOP: u64 = 4;
const SERVICE_TRIPLE_FAULT: u64 = 5;
const SERVICE_CPUID: u32 = 6;
const SERVICE_RDTSC: u64 = 7;
const SERVICE_DISABLE: u64 = 8;

/// How wide an access is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    Byte,
    Word,
    Long,
    Quad,
}

impl Width {
    pub fn from_bytes(bytes: u64) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Long),
            8 => Some(Self::Quad),
            _ => None,
        }
    }

    pub fn bytes(self) -> u64 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Long => 4,
            Self::Quad => 8,
        }
    }
}

macro_rules! port_access {
    ($read:ident, $write:ident, $type:ty, $register:tt) => {
        pub fn $read(port: u16) -> $type {
            let value;
            // SAFETY: the guest owns its ports; a port read touches no memory of the program.
            unsafe {
                asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value,
                     options(nostack, preserves_flags));
            }
            value
        }

        pub fn $write(port: u16, value: $type) {
            // SAFETY: the guest owns its ports; whoever starts a device on memory gives it memory set aside for it.
            unsafe {
                asm!(concat!("out dx, ", $register), in("dx") port, in($register) value,
                     options(nostack, preserves_flags));
            }
        }
    };
}

port_access!(in8, out8, u8, "al");
port_access!(in16, out16, u16, "ax");
port_access!(in32, out32, u32, "eax");

/// Reads `width` at an address that is mapped: memory that no Rust value lives in, or a device's register.
#[inline]
pub fn read(address: u64, width: Width) -> u64 {
    let value: u64;
    macro_rules! load {
        ($instruction:literal) => {
            // SAFETY: the address is mapped; a load through assembly is no access that Rust reasons about.
            unsafe {
                asm!($instruction, to = out(reg) value, at = in(reg) address, options(nostack, preserves_flags));
            }
        };
    }
    match width {
        Width::Byte => load!("movzx {to:e}, byte ptr [{at}]"),
        Width::Word => load!("movzx {to:e}, word ptr [{at}]"),
        Width::Long => load!("mov {to:e}, dword ptr [{at}]"),
        Width::Quad => load!("mov {to}, qword ptr [{at}]"),
    }
    value
}

/// Reads a 16-bit word.
#[expect(clippy::cast_possible_truncation, reason = "a word is read")]
pub fn read_word(address: u64) -> u16 {
    read(address, Width::Word) as u16
}

/// Writes `width` at an address that is mapped: memory that no Rust value lives in, or a device's register.
#[inline]
pub fn write(address: u64, width: Width, value: u64) {
    macro_rules! store {
        ($instruction:literal) => {
            // SAFETY: the address is mapped, and the program keeps its own values out of the reach of orders.
            unsafe {
                asm!($instruction, at = in(reg) address, from = in(reg_abcd) value, options(nostack, preserves_flags));
            }
        };
    }
    match width {
        Width::Byte => store!("mov byte ptr [{at}], {from:l}"),
        Width::Word => store!("mov word ptr [{at}], {from:x}"),
        Width::Long => store!("mov dword ptr [{at}], {from:e}"),
        Width::Quad => store!("mov qword ptr [{at}], {from}"),
    }
}

/// Reads the time stamp counter from ring 3: the cheap way, to time what the guest does. A hypervisor that cannot trap
/// or offset it there shows the host's own counter.
pub fn tsc() -> u64 {
    // SAFETY: reads a counter.
    unsafe { _rdtsc() }
}

/// Reads the time stamp counter from ring 0, as the hypervisor wants the guest to see it.
pub fn tsc_ring0() -> u64 {
    let (low, high) = service(SERVICE_RDTSC, 0, 0, 0);
    high << 32 | low
}

/// The registers that `cpuid` returns.
#[derive(Clone, Copy, Debug)]
pub struct Cpuid {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// Asks ring 0 for a CPUID leaf: in ring 3, some hypervisors cannot put their own answer in the place of the host's.
pub fn cpuid(leaf: u32, subleaf: u32) -> Cpuid {
    let mut is = Cpuid { eax: 0, ebx: 0, ecx: 0, edx: 0 };
    // SAFETY: as in `service`; this one also returns values in ecx and r8d.
    unsafe {
        asm!("call {entry}", entry = sym service_call, inout("eax") SERVICE_CPUID => is.eax, in("edi") leaf,
             in("esi") subleaf, out("r8d") is.ebx, out("ecx") is.ecx, out("edx") is.edx);
    }
    is
}

/// Runs a loop of two instructions `rounds` times.
pub fn spin(rounds: u64) {
    if rounds > 0 {
        // SAFETY: counts a register down.
        unsafe { asm!("2: dec {0}", "jnz 2b", inout(reg) rounds => _, options(nomem, nostack)) };
    }
}

/// Returns a number that is different at every boot: from `rdrand`, or else mixed from the time stamp counter.
pub fn random() -> u64 {
    if cpuid(1, 0).ecx & (1 << 30) != 0 {
        for _ in 0..10 {
            let value: u64;
            let good: u8;
            // SAFETY: the processor has the instruction; it writes two registers.
            unsafe {
                asm!("rdrand {0}", "setc {1}", out(reg) value, out(reg_byte) good, options(nomem, nostack))
            };
            if good != 0 {
                return value;
            }
        }
    }
    test_guest::pattern::word(tsc(), 0)
}

/// Lets interrupts in. Not `sti`: see `boot.s`.
pub fn enable_interrupts() {
    service(SERVICE_ENABLE, 0, 0, 0);
}

/// Keeps interrupts out. Not `cli`: see `boot.s`.
pub fn disable_interrupts() {
    service(SERVICE_DISABLE, 0, 0, 0);
}

/// Halts until an interrupt comes, unless `word` is no longer `seen`. An interrupt that changes it is never lost.
pub fn halt_while(word: &AtomicU64, seen: u64) {
    service(SERVICE_HALT, seen, core::ptr::from_ref(word).expose_provenance() as u64, 0);
}

/// Reads a model-specific register. One that is not there faults, which ends the run.
pub fn rdmsr(index: u32) -> u64 {
    let (low, high) = service(SERVICE_RDMSR, u64::from(index), 0, 0);
    high << 32 | low
}

/// Writes a model-specific register. One that is not there faults, which ends the run.
pub fn wrmsr(index: u32, value: u64) {
    service(SERVICE_WRMSR, u64::from(index), value & 0xffff_ffff, value >> 32);
}

/// Halts this processor for ever, with interrupts off.
pub fn stop() -> ! {
    loop {
        service(SERVICE_STOP, 0, 0, 0);
    }
}

/// Shuts the processor down by a fault that has no handler.
pub fn triple_fault() -> ! {
    service(SERVICE_TRIPLE_FAULT, 0, 0, 0);
    stop()
}

/// Asks ring 0 for a service; returns its eax and edx.
fn service(number: u64, first: u64, second: u64, third: u64) -> (u64, u64) {
    let low: u64;
    let high: u64;
    // SAFETY: the services keep all registers but those named here; what they do to memory is said by each caller. The
    // call pushes one word, so the stack must be usable (no `nostack`).
    unsafe {
        asm!("call {entry}", entry = sym service_call, inout("rax") number => low, inout("rdx") third => high,
             in("rdi") first, in("rsi") second, out("rcx") _);
    }
    (low, high)
}

/// Takes a fault (an undefined instruction), which ends the run with a report.
pub fn undefined() -> ! {
    // SAFETY: the fault stub does not come back.
    unsafe { asm!("ud2", options(noreturn)) }
}

/// Ends the run with `code`, or halts where there is no debug exit port.
pub fn exit(code: u32) -> ! {
    out32(DEBUG_EXIT_PORT, code);
    stop()
}
