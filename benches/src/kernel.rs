//! The smallest kernel that there is.

/// Where it is loaded.
const ADDRESS: u32 = 0x10_0000;
/// Bytes before its code: the ELF header, two program headers and the note.
const CODE_OFFSET: u32 = 64 + 2 * 56 + NOTE_BYTES;
const NOTE_BYTES: u32 = 20;
const CODE_BYTES: u32 = 10;
/// In 32-bit protected mode: `mov dx, 0x3f8; mov al, '!'; out dx, al`, which is the third instruction of the guest, and
/// `hlt` for ever.
const CODE: [u8; CODE_BYTES as usize] = [0x66, 0xba, 0xf8, 0x03, 0xb0, SAYS, 0xee, 0xf4, 0xeb, 0xfd];

/// What it writes to the first serial port.
pub const SAYS: u8 = b'!';

/// An ELF file with a PVH entry (ELF-64 object file format, 4 and 5; Xen's note 18, `PHYS32_ENTRY`) that writes
/// [`SAYS`] to the first serial port at once, and then halts.
pub fn first_instruction() -> Vec<u8> {
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut put = |value: u32, bytes: usize| elf.extend_from_slice(&u64::from(value).to_le_bytes()[..bytes]);
    let entry = ADDRESS + CODE_OFFSET;
    // An executable for x86-64, with program headers right behind this header and no sections.
    for (value, bytes) in [(2, 2), (62, 2), (1, 4), (entry, 8), (64, 8), (0, 8), (0, 4)] {
        put(value, bytes);
    }
    for value in [64, 56, 2, 64, 0, 0] {
        put(value, 2);
    }
    let note = 64 + 2 * 56;
    let size = CODE_OFFSET + CODE_BYTES;
    for (kind, flags, offset, length, align) in [(1, 7, 0, size, 4096), (4, 4, note, NOTE_BYTES, 4)] {
        put(kind, 4);
        put(flags, 4);
        for value in [offset, ADDRESS + offset, ADDRESS + offset, length, length, align] {
            put(value, 8);
        }
    }
    for value in [4, 4, 18] {
        put(value, 4);
    }
    elf.extend_from_slice(b"Xen\0");
    elf.extend_from_slice(&entry.to_le_bytes());
    elf.extend_from_slice(&CODE);
    elf
}
