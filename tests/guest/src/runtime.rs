//! What the compiler expects of any environment: the memory routines and the panic handler.
//!
//! The host target's compiler-builtins leaves the memory routines to the C library, which is not here.

#![expect(unsafe_code, reason = "the memory routines have C signatures")]

use core::arch::asm;
use core::fmt::Write;
use core::panic::PanicInfo;

use crate::cpu;
use crate::serial::Serial;

/// Exit code of a guest that lost an invariant of its own.
pub const EXIT_PANIC: u32 = 0x7d;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let _ = writeln!(Serial::new(), "panic {}", info.message());
    if let Some(location) = info.location() {
        let _ = writeln!(Serial::new(), "panic at {}:{}", location.file(), location.line());
    }
    cpu::exit(EXIT_PANIC)
}

/// Named by the unwind tables of the prebuilt core library, which the linker script drops.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// Named by the prebuilt core library in builds without optimisation. Never called: panics abort.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    cpu::stop()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller gives two ranges of `len` bytes, as C has it; the direction flag is clear.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") len => _,
             options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= len {
        // SAFETY: a forward copy is right when `to` does not lie inside the source.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: as for memcpy, from the last byte to the first; the direction flag is cleared again.
    unsafe {
        asm!("std", "lea rdi, [rdi + rcx - 1]", "lea rsi, [rsi + rcx - 1]", "rep movsb", "cld",
             inout("rdi") to => _, inout("rsi") from => _, inout("rcx") len => _, options(nostack));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller gives a range of `len` bytes, as C has it; the direction flag is clear.
    unsafe {
        asm!("rep stosb", inout("rdi") to => _, inout("rcx") len => _, in("eax") byte,
             options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
    let mut at = 0;
    while at < len {
        // SAFETY: the caller gives `len` readable bytes on the left.
        let a = unsafe { *left.wrapping_add(at) };
        // SAFETY: and on the right.
        let b = unsafe { *right.wrapping_add(at) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
        at += 1;
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(left, right, len) }
}
