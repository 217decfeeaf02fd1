import io
import os
import struct
import subprocess
import tempfile
import unittest

from labkit import full_image, kernels, pvh
from labkit.cpio import Cpio
from labkit.errors import LabError


class Scratch(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.dir = scratch.name

    def write(self, name, data):
        path = os.path.join(self.dir, name)
        with open(path, "wb") as f:
            f.write(data)
        return path

    def read(self, name):
        with open(os.path.join(self.dir, name), "rb") as f:
            return f.read()


def parse_newc(data):
    """{name: (mode, contents)} of a newc archive, by the format's own rules."""
    entries, at = {}, 0
    while True:
        assert data[at:at + 6] == b"070701", at
        fields = [int(data[at + 6 + 8 * i:at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = data[at + 110:at + 110 + name_size - 1].decode()
        start = (at + 110 + name_size + 3) & ~3
        if name == "TRAILER!!!":
            return entries
        entries[name] = (mode, data[start:start + size])
        at = (start + size + 3) & ~3


class CpioTest(Scratch):
    def archive(self):
        archive = Cpio("etc/deep")
        archive.file("etc/deep/a", b"12345", 0o600)
        archive.link("b", "etc/deep/a")
        archive.write(os.path.join(self.dir, "out"))
        return self.read("out")

    def test_names_modes_and_contents_come_back(self):
        self.assertEqual(parse_newc(self.archive()), {
            "etc": (0o40755, b""), "etc/deep": (0o40755, b""),
            "etc/deep/a": (0o100600, b"12345"), "b": (0o120777, b"etc/deep/a")})

    def test_the_same_bytes_every_time(self):
        self.assertEqual(self.archive(), self.archive())


MODULES_DEP = """\
kernel/net/9p/9pnet.ko:
kernel/fs/netfs/netfs.ko:
kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko kernel/fs/netfs/netfs.ko
kernel/net/9p/9pnet_virtio.ko: kernel/net/9p/9pnet.ko
kernel/drivers/char/hw_random/virtio-rng.ko:
"""


class ModulesTest(unittest.TestCase):
    def order(self, *names):
        return [os.path.basename(p) for p in kernels.load_order(MODULES_DEP, names)]

    def test_what_a_module_needs_comes_first_and_once(self):
        self.assertEqual(self.order("9p", "9pnet_virtio"), ["netfs.ko", "9pnet.ko", "9p.ko", "9pnet_virtio.ko"])

    def test_dashes_and_underscores_are_one(self):
        self.assertEqual(self.order("virtio_rng"), ["virtio-rng.ko"])

    def test_what_is_built_in_is_left_out(self):
        self.assertEqual(self.order("ext4"), [])

    def test_a_signature_is_cut_off_and_nothing_else(self):
        signed = b"ELF code" + b"S" * 40 + b"\0" * 8 + struct.pack(">I", 40) + b"~Module signature appended~\n"
        self.assertEqual(kernels.unsigned(signed), b"ELF code")
        self.assertEqual(kernels.unsigned(b"ELF code"), b"ELF code")


class BzImageTest(Scratch):
    def bzimage(self, elf, promised=None):
        packed = subprocess.run(["xz", "-c"], input=elf, stdout=subprocess.PIPE, check=True).stdout
        packed += struct.pack("<I", len(elf) if promised is None else promised)
        setup = bytearray(1024)                          # one setup sector and the boot sector
        setup[0x1F1] = 1
        setup[0x202:0x206] = b"HdrS"
        struct.pack_into("<II", setup, 0x248, 16, len(packed))
        return self.write("bz", bytes(setup) + b"\0" * 16 + packed)

    def test_the_elf_comes_out_whole(self):
        elf = b"\x7fELF" + os.urandom(5000)
        kernels.extract_elf(self.bzimage(elf), self.dir + "/out")
        self.assertEqual(self.read("out"), elf)

    def test_a_damaged_one_is_refused(self):
        with self.assertRaisesRegex(LabError, "were promised"):
            kernels.extract_elf(self.bzimage(b"\x7fELF" + bytes(100), promised=200), self.dir + "/out")
        with self.assertRaisesRegex(LabError, "not a bzImage"):
            kernels.extract_elf(self.write("junk", bytes(4096)), self.dir + "/out")
        self.assertFalse(os.path.exists(self.dir + "/out"))


class PvhTest(Scratch):
    ENTRY = 0x0100_0040

    def kernel(self, note_type=pvh.XEN_ELFNOTE_PHYS32_ENTRY):
        note = struct.pack("<III", 4, 8, 1) + b"GNU\0" + bytes(8)
        note += struct.pack("<III", 4, 4, note_type) + b"Xen\0" + struct.pack("<I", self.ENTRY)
        head = bytearray(64)
        head[:6] = b"\x7fELF\x02\x01"
        struct.pack_into("<Q", head, 0x20, 64)
        struct.pack_into("<H", head, 0x38, 1)
        header = struct.pack(pvh.PROGRAM_HEADER, pvh.PT_NOTE, 4, 120, 0, 0, len(note), len(note), 4)
        return self.write("kernel", bytes(head) + header + note)

    def test_the_entry_is_the_stub_and_the_stub_ends_at_the_old_entry(self):
        initramfs = os.urandom(3000)
        pvh.embed_initramfs(self.kernel(), self.write("initrd", initramfs), self.dir + "/out")
        image = bytearray(self.read("out"))
        note, load = pvh._program_headers(image)
        self.assertEqual(pvh._redirect_entry(image, note[2], note[5], 0), pvh.SEGMENT_AT)
        self.assertEqual(load[:2] + load[3:5], [pvh.PT_LOAD, 7, pvh.SEGMENT_AT, pvh.SEGMENT_AT])
        segment = image[load[2]:load[2] + load[5]]
        self.assertEqual(segment[:6], b"\x83\x7b\x0c\x00\x75\x15")
        self.assertEqual(segment[6 + 0x15:13 + 0x15], b"\xb8" + struct.pack("<I", self.ENTRY) + b"\xff\xe0")
        at, size = struct.unpack_from("<QQ", segment, 0x100)
        self.assertEqual((at, size), (pvh.SEGMENT_AT + 0x1000, 3000))
        self.assertEqual(segment[0x1000:], initramfs)

    def test_a_kernel_without_the_note_is_refused(self):
        with self.assertRaisesRegex(LabError, "no PVH entry note"):
            pvh.embed_initramfs(self.kernel(note_type=17), self.write("initrd", b"x"), self.dir + "/out")
        with self.assertRaisesRegex(LabError, "not a 64-bit ELF"):
            pvh.embed_initramfs(self.write("junk", bytes(100)), self.write("initrd", b"x"), self.dir + "/out")


class ExtentsTest(unittest.TestCase):
    def extents(self, text):
        blocks = b"".join((b"x" if c == "x" else b"\0") * 8 for c in text)
        return full_image.extents(io.BytesIO(blocks), block=8, gap=1)

    def test_what_is_not_zero_is_in_one_and_long_gaps_are_in_none(self):
        self.assertEqual(self.extents("xx.x...x"), [(0, 4), (7, 1)])
        self.assertEqual(self.extents("...."), [])
        self.assertEqual(self.extents(""), [])

    def test_a_last_piece_of_a_block_counts(self):
        self.assertEqual(full_image.extents(io.BytesIO(bytes(8) + b"x"), block=8), [(1, 1)])
        self.assertEqual(full_image.extents(io.BytesIO(bytes(8) + bytes(3)), block=8), [])
