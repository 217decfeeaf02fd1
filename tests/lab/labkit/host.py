"""L1, the host that the VMM under test runs on: its root file system and the initramfs that reaches it.

The root is an erofs image with a tmpfs over it, so every run starts from the same bytes and leaves none. It has no
init system: l1/rc is all that runs before the command.
"""

import os
import shutil
import subprocess

from . import kernels
from .cpio import Cpio
from .debian import Debian, one, unpack

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# qemu-system-x86 is there as the peer of benchmarks, qemu-utils and qemu-system-common (qemu-storage-daemon), virtiofsd
# and passt as vhost-user back ends, swtpm as a TPM.
PACKAGES = """base-files base-passwd bash dash busybox coreutils util-linux
 mount sed grep gawk findutils diffutils tar gzip xz-utils zstd cpio libc-bin
 kmod procps psmisc iproute2 iputils-ping iputils-arping ethtool bridge-utils
 nftables iptables tcpdump socat netcat-openbsd curl jq bc file hostname
 openssh-client sshpass python3-minimal python3 strace gdb ltrace
 pciutils numactl e2fsprogs xfsprogs dosfstools mtools genisoimage erofs-utils
 qemu-utils qemu-system-common qemu-system-x86 seabios virtiofsd swtpm swtpm-tools
 passt iperf3 fio sudo screen dmsetup linux-perf""".split()

# Loaded by the initramfs, whose modules are in memory already: what reaches the root, then what makes a KVM host.
EARLY_MODULES = "crc32c_generic virtio_blk 9pnet_virtio 9p erofs overlay kvm-amd tun vhost_net".split()

# Of a package's files, what no test reads.
UNUSED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "boot")
# Of QEMU's data, what a PC with a direct-booted kernel reads; the rest is firmware for other machines.
QEMU_DATA = {"kvmvapic.bin", "linuxboot.bin", "linuxboot_dma.bin", "multiboot.bin", "multiboot_dma.bin", "pvh.bin",
             "keymaps", "qboot.rom"}

# What maintainer scripts would have set up.
ALTERNATIVES = {"usr/bin/awk": "gawk", "usr/bin/nc": "nc.openbsd", "usr/sbin/iptables": "xtables-nft-multi",
                "usr/bin/mkisofs": "genisoimage", "etc/mtab": "/proc/self/mounts"}
DIRECTORIES = ("proc", "sys", "dev", "run", "tmp", "root", "mnt", "var/tmp", "var/empty", "lab/job", "lab/out")


def build_kernel(cache, _artefacts, dest):
    kernels.build(cache, "", dest)


def build_root(cache, artefacts, dest):
    root = dest + "/root"
    unpack(Debian(cache).fetch(PACKAGES), root, dest + "/MANIFEST")
    for unused in UNUSED:
        shutil.rmtree(os.path.join(root, unused), ignore_errors=True)
    _prune(root + "/usr/share/qemu", QEMU_DATA)
    for name in ("passwd", "group"):
        shutil.copy(f"{root}/usr/share/base-passwd/{name}.master", f"{root}/etc/{name}")
    for link, target in ALTERNATIVES.items():
        path = os.path.join(root, link)
        if os.path.lexists(path):
            os.unlink(path)
        os.symlink(target, path)
    _put(root + "/etc/hosts", "127.0.0.1 localhost l1\n")
    _put(root + "/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n")
    os.makedirs(root + "/usr/lib/modules", exist_ok=True)
    subprocess.run(["cp", "-a", one(artefacts["l1kernel"] + "/usr/lib/modules/*"), root + "/usr/lib/modules/"],
                   check=True)
    for directory in DIRECTORIES:
        os.makedirs(os.path.join(root, directory), exist_ok=True)
    subprocess.run(["ldconfig", "-r", root], check=True, stderr=subprocess.DEVNULL)
    # Not compressed: decompression would be emulated, and the file is in the page cache anyway.
    subprocess.run(["mkfs.erofs", "--all-root", "-Enosbcrc", dest + "/l1root.erofs", root], check=True,
                   stdout=subprocess.DEVNULL)
    shutil.rmtree(root)


def build_initramfs(_cache, artefacts, dest):
    # Not compressed, for the same reason.
    archive = Cpio("mods", "bin", "proc", "sys", "dev", "ro", "rw", "new")
    archive.copy("bin/busybox", artefacts["busybox"] + "/busybox", 0o755)
    kernels.add_modules(archive, artefacts["l1kernel"], EARLY_MODULES)
    archive.copy("init", HERE + "/l1/init", 0o755)
    archive.copy("rc", HERE + "/l1/rc", 0o755)
    archive.write(dest + "/initrd.cpio")


def _prune(directory, keep):
    for name in os.listdir(directory):
        if name not in keep:
            path = os.path.join(directory, name)
            shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)


def _put(path, text):
    with open(path, "w") as f:
        f.write(text)
