"""L2, the guests that need no disk: `nano`, the firmware, and the pieces that `full` shares with them."""

import os
import shutil

from . import kernels
from .cpio import Cpio
from .debian import FIRMWARE_SUITE, Debian, libraries, one, run_unpacked, unpack
from .pvh import embed_initramfs

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# virtio_pci, the virtio console, ext4 and fuse are built into the cloud kernel.
NANO_MODULES = """virtio_blk virtio_net vmw_vsock_virtio_transport virtio_balloon
 virtio_mem virtio_pmem nd_pmem virtio-rng nvme e1000e virtio_iommu vfat nls_cp437
 nls_ascii nls_iso8859-1 ptp_kvm overlay button evdev pvpanic-mmio""".split()
NANO_PACKAGES = "busybox dropbear-bin util-linux".split()
# busybox's blkdiscard, which is in the way of the other's name, writes no zeroes.
NANO_PROGRAMS = {"usr/sbin/dropbear": "dropbear", "usr/bin/dropbearkey": "dropbearkey", "usr/sbin/blkdiscard": "discard"}
NANO_DIRECTORIES = ("bin", "mods", "proc", "sys", "dev", "tmp", "run", "root", "mnt", "etc/dropbear", "lib", "lib64")


def build_kernel(cache, _artefacts, dest):
    kernels.build(cache, "cloud", dest)


def build_busybox(cache, _artefacts, dest):
    """The static busybox that every initramfs of the lab starts from."""
    unpack(Debian(cache).fetch(["busybox-static"], dependencies=False), dest + "/tree", dest + "/MANIFEST")
    os.replace(dest + "/tree/usr/bin/busybox", dest + "/busybox")
    shutil.rmtree(dest + "/tree")


def build_nano(cache, artefacts, dest):
    """A guest in an initramfs: busybox, an ssh server, virtio modules. guest/nano-init says what it can do."""
    tree = dest + "/tree"
    unpack(Debian(cache).fetch(NANO_PACKAGES), tree, dest + "/MANIFEST")
    archive = Cpio(*NANO_DIRECTORIES)
    archive.copy("bin/busybox", artefacts["busybox"] + "/busybox", 0o755)
    for program, name in NANO_PROGRAMS.items():
        archive.copy("bin/" + name, os.path.join(tree, program), 0o755)
    for library in sorted({library for program in NANO_PROGRAMS for library in libraries(tree, program)}):
        archive.copy("lib/" + os.path.basename(library), library, 0o755)
    archive.copy("lib64/ld-linux-x86-64.so.2", tree + "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", 0o755)
    # Made here, because making one in an emulated guest takes longer than its boot.
    key = dest + "/hostkey"
    run_unpacked(tree, ["usr/bin/dropbearkey", "-t", "ed25519", "-f", key], capture_output=True)
    archive.copy("etc/dropbear/dropbear_ed25519_host_key", key, 0o600)
    archive.file("etc/passwd", b"root::0:0:root:/root:/bin/sh\n")
    archive.file("etc/group", b"root:x:0:\n")
    archive.file("etc/shells", b"/bin/sh\n")
    kernels.add_modules(archive, artefacts["guestkernel"], NANO_MODULES)
    archive.copy("init", HERE + "/guest/nano-init", 0o755)
    archive.write(dest + "/nano.cpio")
    embed_initramfs(artefacts["guestkernel"] + "/vmlinux", dest + "/nano.cpio", dest + "/nano.vmlinux")
    shutil.rmtree(tree)


def build_firmware(cache, _artefacts, dest):
    """OVMF as Debian builds it for this kind of machine."""
    packages = Debian(cache, FIRMWARE_SUITE).fetch(["cloudhv-efi-x86-64"], dependencies=False)
    unpack(packages, dest + "/tree", dest + "/MANIFEST")
    os.replace(one(dest + "/tree/usr/share/*/CLOUDHV.fd"), dest + "/CLOUDHV.fd")
    shutil.rmtree(dest + "/tree")
