"""Debian's kernel packages, unpacked into what the lab boots: bzImage, the ELF file inside it, and the modules.

The modules are stored plain and without their signatures. Checking a signature costs tens of milliseconds under
emulation, for each of some twenty modules, in L1 and again in L2; the code of the modules is Debian's, unchanged.
"""

import lzma
import os
import shutil
import struct
import subprocess

from .debian import Debian, one, unpack
from .errors import LabError

# What no lab machine has; leaving it out makes the root image smaller and depmod quicker.
UNUSED = ("sound", "drivers/gpu", "drivers/media", "drivers/net/wireless", "drivers/staging", "drivers/infiniband",
          "drivers/iio", "drivers/isdn", "drivers/usb", "drivers/hid")
DECOMPRESSORS = {b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zX": "xz", b"\x1f\x8b": "gzip", b"\x02\x21\x4c\x18": "lz4"}
SIGNATURE_MARK = b"~Module signature appended~\n"


def build(cache, flavour, dest):
    """Unpacks the newest kernel of a flavour ("" is the generic one) into `dest`."""
    debian = Debian(cache)
    package = debian.depends(f"linux-image-{flavour + '-' if flavour else ''}amd64")
    unpack(debian.fetch([package], dependencies=False), dest, os.path.join(dest, "MANIFEST"))
    os.replace(one(dest + "/boot/vmlinuz-*"), dest + "/bzImage")
    extract_elf(dest + "/bzImage", dest + "/vmlinux")
    modules = one(dest + "/usr/lib/modules/*")
    for unused in UNUSED:
        shutil.rmtree(f"{modules}/kernel/{unused}", ignore_errors=True)
    for where, _, names in os.walk(modules):
        for name in names:
            if name.endswith(".ko.xz"):
                _plain_module(os.path.join(where, name))
    subprocess.run(["depmod", "-b", dest + "/usr", os.path.basename(modules)], check=True)


def release(kernel):
    """The `uname -r` of an unpacked kernel."""
    return os.path.basename(one(kernel + "/usr/lib/modules/*"))


def extract_elf(bzimage, out):
    """Writes the ELF file that a bzImage carries (payload_offset and payload_length of the Linux boot protocol)."""
    with open(bzimage, "rb") as f:
        image = f.read()
    if image[0x202:0x206] != b"HdrS":
        raise LabError(f"{bzimage}: not a bzImage")
    setup = (image[0x1F1] + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    packed = image[setup + offset:setup + offset + length]
    tool = next((t for magic, t in DECOMPRESSORS.items() if packed.startswith(magic)), None)
    if tool is None:
        raise LabError(f"{bzimage}: compressed in an unknown way")
    size, = struct.unpack_from("<I", packed, len(packed) - 4)
    if tool != "gzip":
        packed = packed[:-4]                             # the size, appended by the kernel's build
    plain = subprocess.run([tool, "-dc"], input=packed, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    if len(plain) != size or plain[:4] != b"\x7fELF":
        raise LabError(f"{bzimage}: {tool} gave {len(plain)} bytes where {size} bytes of ELF were promised")
    with open(out, "wb") as f:
        f.write(plain)


def unsigned(module):
    """The bytes of a module without the signature at their end (struct module_signature, then a mark)."""
    if not module.endswith(SIGNATURE_MARK):
        return module
    info = len(module) - len(SIGNATURE_MARK) - 12
    signature_size, = struct.unpack_from(">I", module, info + 8)
    return module[:info - signature_size]


def closure(kernel, names):
    """Paths of the named modules and of what they need, in load order. What is built in is left out."""
    base = one(kernel + "/usr/lib/modules/*")
    with open(base + "/modules.dep") as f:
        return [os.path.join(base, path) for path in load_order(f.read(), names)]


def load_order(modules_dep, names):
    """`closure` on the text of modules.dep; paths as in that text."""
    known = {}
    for line in modules_dep.splitlines():
        path, _, needs = line.partition(":")
        known[_module_name(path)] = (path, needs.split())
    order = []

    def add(path):
        # modules.dep lists what must be loaded last first.
        for need in reversed(known[_module_name(path)][1]):
            add(need)
        if path not in order:
            order.append(path)

    for name in names:
        entry = known.get(name.replace("-", "_"))
        if entry:
            add(entry[0])
    return order


def add_modules(archive, kernel, names):
    """Puts modules under mods/ of an initramfs, and mods/order, the list in which its init loads them."""
    paths = closure(kernel, names)
    for path in paths:
        archive.copy("mods/" + os.path.basename(path), path)
    archive.file("mods/order", "".join(os.path.basename(p) + "\n" for p in paths).encode())


def _module_name(path):
    return os.path.basename(path).split(".")[0].replace("-", "_")


def _plain_module(path):
    with lzma.open(path) as f:
        module = f.read()
    with open(path[:-len(".xz")], "wb") as f:
        f.write(unsigned(module))
    os.unlink(path)
