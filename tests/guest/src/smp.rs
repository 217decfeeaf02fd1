//! The other processors.

#![expect(unsafe_code, reason = "other processors enter from assembly")]

use crate::cpu;

#[unsafe(no_mangle)]
extern "C" fn ap_main(_index: u64) -> ! {
    cpu::stop()
}
