"""Kernel and initramfs in one PVH ELF file, for loaders that take a kernel and nothing else.

The PVH boot ABI enters at the address in the ELF note XEN_ELFNOTE_PHYS32_ENTRY (type 18, name "Xen"), in 32-bit flat
mode with %ebx pointing at `struct hvm_start_info`. The file gets one more segment: a stub, a module list entry and
the initramfs; the note points at the stub. The stub fills nr_modules and modlist_paddr in unless the loader has
passed a module itself, and jumps to the kernel's own entry.
"""

import struct

from .errors import LabError

PT_LOAD, PT_NOTE = 1, 4
XEN_ELFNOTE_PHYS32_ENTRY = 18
PROGRAM_HEADER = "<IIQQQQQQ"
# Guest-physical, above the largest kernel and below the smallest memory that the tests use it with.
SEGMENT_AT = 0x1000_0000


def embed_initramfs(kernel, initramfs, out, at=SEGMENT_AT):
    with open(kernel, "rb") as f:
        image = bytearray(f.read())
    with open(initramfs, "rb") as f:
        payload = f.read()
    headers = _program_headers(image)
    entry = None
    for header in headers:
        if header[0] == PT_NOTE:
            entry = _redirect_entry(image, header[2], header[5], at) or entry
    if entry is None:
        raise LabError(f"{kernel}: no PVH entry note")
    segment = _segment(at, entry, payload)
    image += b"\0" * (-len(image) % 4096)
    headers.append([PT_LOAD, 7, len(image), at, at, len(segment), len(segment), 4096])
    image += segment
    image += b"\0" * (-len(image) % 8)
    struct.pack_into("<Q", image, 0x20, len(image))     # e_phoff: the longer table goes to the end
    struct.pack_into("<H", image, 0x38, len(headers))   # e_phnum
    for header in headers:
        image += struct.pack(PROGRAM_HEADER, *header)
    with open(out, "wb") as f:
        f.write(image)


def _program_headers(image):
    if image[:5] != b"\x7fELF\x02":
        raise LabError("the kernel is not a 64-bit ELF file")
    offset, = struct.unpack_from("<Q", image, 0x20)
    count, = struct.unpack_from("<H", image, 0x38)
    return [list(struct.unpack_from(PROGRAM_HEADER, image, offset + 56 * i)) for i in range(count)]


def _redirect_entry(image, start, size, to):
    """Puts `to` in the place of the PVH entry, if the note is in this segment; returns the entry it had."""
    at = start
    while at + 12 <= start + size:
        name_size, desc_size, kind = struct.unpack_from("<III", image, at)
        desc = at + 12 + (name_size + 3 & ~3)
        if kind == XEN_ELFNOTE_PHYS32_ENTRY and image[at + 12:at + 15] == b"Xen":
            entry, = struct.unpack_from("<I", image, desc)
            struct.pack_into("<I", image, desc, to)
            return entry
        at = desc + (desc_size + 3 & ~3)
    return None


def _segment(at, entry, payload):
    module = at + 0x100
    stub = (b"\x83\x7b\x0c\x00"                              # cmp dword [ebx+12], 0: nr_modules
            + b"\x75\x15"                                    # jne over the next three
            + b"\xc7\x43\x0c" + struct.pack("<I", 1)         # mov dword [ebx+12], 1
            + b"\xc7\x43\x10" + struct.pack("<I", module)    # mov dword [ebx+16], module: modlist_paddr
            + b"\xc7\x43\x14" + struct.pack("<I", 0)         # mov dword [ebx+20], 0
            + b"\xb8" + struct.pack("<I", entry)             # mov eax, entry
            + b"\xff\xe0")                                   # jmp eax
    # hvm_modlist_entry: paddr, size, cmdline_paddr, reserved
    entry_bytes = struct.pack("<QQQQ", at + 0x1000, len(payload), 0, 0)
    return (stub.ljust(0x100, b"\0") + entry_bytes).ljust(0x1000, b"\0") + payload
