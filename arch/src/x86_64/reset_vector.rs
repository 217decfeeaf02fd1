//! What a processor finds that jumps to a BIOS's entry in real mode: code that asks for a reset.
//!
//! Linux reboots so, with no other method tried before, where the ACPI tables are those of a hardware-reduced machine
//! and it was not started by EFI. There is no BIOS; without this code the processor runs through whatever lies there.

use super::layout::RESET_VECTOR_START;

/// The address, and the code for it: writes `value` to the reset register at `port`, and halts.
pub fn build(port: u16, value: u8) -> (u64, [u8; 16]) {
    let [low, high] = port.to_le_bytes();
    #[rustfmt::skip]
    let code = [
        0xb0, value,       // mov al, value
        0xba, low, high,   // mov dx, port
        0xee,              // out dx, al
        0xf4,              // hlt
        0xeb, 0xfd,        // jmp to the hlt
        0, 0, 0, 0, 0, 0, 0,
    ];
    (RESET_VECTOR_START, code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_where_a_bios_begins_and_names_the_register() {
        let (at, code) = build(0x602, 1);
        // 0xf000:0xfff0, which is 0xffff:0 too.
        assert_eq!(at, (0xf000 << 4) + 0xfff0);
        assert_eq!(code[..9], [0xb0, 1, 0xba, 0x02, 0x06, 0xee, 0xf4, 0xeb, 0xfd]);
    }
}
