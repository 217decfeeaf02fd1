"""The `full` guest: a Debian with systemd and sshd on a GPT disk (p1 its ext4 root, p15 the EFI system partition).

User `cloud`, password `cloud123`, sudo without a password. The network comes from a NoCloud ("cidata") disk, or from
DHCP without one. It boots three ways: a PVH or bzImage kernel with full-initrd.cpio and root=/dev/vda1; the same in
one file, full.vmlinux; and firmware, by systemd-boot on the EFI partition. Building it needs root, for the chroot in
which mmdebstrap configures the packages.
"""

import os
import shutil
import subprocess

from . import kernels
from .cpio import Cpio
from .debian import KEYRING, SUITE, Debian, mirrors, one, unpack
from .errors import LabError
from .pvh import embed_initramfs

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

PACKAGES = """systemd systemd-sysv udev dbus openssh-server sudo
 iproute2 iputils-ping procps kmod pciutils numactl iperf3 ethtool
 util-linux e2fsprogs netcat-openbsd""".split()
INITRD_MODULES = ["virtio_blk", "nvme", "virtio_iommu"]
SIZE_MIB = 1024
ESP_MIB = 64
ROOT_AT_MIB = 1 + ESP_MIB
ROOT_MIB = SIZE_MIB - ROOT_AT_MIB - 1

# Neither needed by a test nor quick under emulation.
MASKED = """apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
 dpkg-db-backup.timer systemd-networkd-wait-online.service systemd-timesyncd.service systemd-pstore.service
 systemd-hwdb-update.service systemd-journal-catalog-update.service ldconfig.service systemd-tpm2-setup.service
 systemd-tpm2-setup-early.service sys-kernel-debug.mount sys-kernel-tracing.mount tmp.mount""".split()
ENABLED = ["lab-firstboot", "lab-booted", "ssh", "systemd-networkd", "serial-getty@ttyS0.service",
           "serial-getty@hvc0.service"]
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"

FILES = {
    "etc/fstab": "/dev/vda1 / ext4 defaults,noatime 0 0\n",
    "etc/hostname": "cloud\n",
    "etc/hosts": "127.0.0.1 localhost cloud\n",
    "etc/profile": PATH + "export PATH\n",
    "etc/environment": PATH,
    "etc/resolv.conf": "",
    "etc/ssh/sshd_config.d/lab.conf": "PasswordAuthentication yes\nPermitRootLogin yes\nUseDNS no\n",
    "etc/systemd/network/90-dhcp.network":
        "[Match]\nName=en* eth*\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=ipv6\n",
    "etc/systemd/system.conf.d/lab.conf": "[Manager]\nDefaultTimeoutStartSec=240\nDefaultTimeoutStopSec=30\n",
    "etc/systemd/journald.conf.d/lab.conf": "[Journal]\nStorage=volatile\n",
    "etc/systemd/system/lab-firstboot.service": """[Unit]
Description=Apply the cidata disk
DefaultDependencies=no
After=local-fs.target systemd-udev-trigger.service
Before=systemd-networkd.service network-pre.target
Wants=network-pre.target
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/lab-firstboot
[Install]
WantedBy=sysinit.target
""",
    "etc/systemd/system/lab-booted.service": """[Unit]
Description=Tell the host that the guest is up
After=ssh.service network.target
[Service]
Type=simple
ExecStart=/usr/local/sbin/lab-firstboot notify
Restart=on-failure
RestartSec=1
[Install]
WantedBy=multi-user.target
""",
}
BOOT_ENTRY = """title Debian
linux /linux
initrd /initrd
options root=/dev/vda1 rw console=tty0 console=ttyS0 console=hvc0
"""


def build(cache, artefacts, dest):
    if os.geteuid() != 0:
        raise LabError("the `full` guest can be built by root only: its packages are configured in a chroot")
    root = dest + "/tree"
    _debootstrap(root, dest + "/MANIFEST")
    _configure(root)
    os.makedirs(root + "/usr/lib/modules", exist_ok=True)
    subprocess.run(["cp", "-a", one(artefacts["guestkernel"] + "/usr/lib/modules/*"), root + "/usr/lib/modules/"],
                   check=True)
    archive = Cpio("bin", "mods", "proc", "sys", "dev", "new")
    archive.copy("bin/busybox", artefacts["busybox"] + "/busybox", 0o755)
    kernels.add_modules(archive, artefacts["guestkernel"], INITRD_MODULES)
    archive.copy("init", HERE + "/guest/full-init", 0o755)
    archive.write(dest + "/full-initrd.cpio")
    embed_initramfs(artefacts["guestkernel"] + "/vmlinux", dest + "/full-initrd.cpio", dest + "/full.vmlinux")
    _disk(cache, artefacts, root, dest)
    shutil.rmtree(root)


def _debootstrap(root, manifest):
    main, security = mirrors()
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{d}/*" for d in ("man", "doc", "locale", "info", "i18n/locales")]
    subprocess.run(["mmdebstrap", "-q", "--variant=minbase", "--mode=root", "--skip=cleanup/apt",
                    '--aptopt=Acquire::Languages "none"', '--aptopt=APT::Install-Recommends "false"', *excluded,
                    "--include=" + ",".join(PACKAGES), SUITE, root,
                    f"deb [signed-by={KEYRING}] {main} {SUITE} main",
                    f"deb [signed-by={KEYRING}] {security} {SUITE}-security main"],
                   env=dict(os.environ, APT_CONFIG=""), check=True)
    with open(manifest, "w") as f:
        subprocess.run(["dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W", "-f", "${Package}_${Version}\\n"],
                       stdout=f, check=True)


def _configure(root):
    _inside(root, "useradd", "-m", "-s", "/bin/bash", "cloud")
    _inside(root, "chpasswd", input=b"cloud:cloud123\nroot:cloud123\n")
    for path, text in FILES.items():
        _put(root, path, text)
    _put(root, "etc/sudoers.d/cloud", "cloud ALL=(ALL) NOPASSWD:ALL\n", 0o440)
    with open(HERE + "/guest/full-firstboot") as f:
        _put(root, "usr/local/sbin/lab-firstboot", f.read(), 0o755)
    _inside(root, "ssh-keygen", "-A", stdout=subprocess.DEVNULL)
    _inside(root, "systemctl", "-q", "enable", *ENABLED)
    _inside(root, "systemctl", "-q", "mask", *MASKED)
    for unused in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man"):
        shutil.rmtree(os.path.join(root, unused), ignore_errors=True)


def _disk(cache, artefacts, root, dest):
    """Partition table, root file system straight from the tree, EFI partition by mtools: no loop device, no mount."""
    image, esp = dest + "/full.raw", dest + "/esp"
    _sparse(image, SIZE_MIB)
    subprocess.run(["sgdisk", "-a1", "-n", f"15:{1 << 11}:+{ESP_MIB}M", "-t", "15:ef00",
                    "-n", f"1:{ROOT_AT_MIB << 11}:+{ROOT_MIB}M", "-c", "1:root", image],
                   check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-L", "root", "-m0", "-O", "^has_journal",
                    "-E", f"offset={ROOT_AT_MIB << 20},lazy_itable_init=0", "-d", root, image, f"{ROOT_MIB}M"],
                   check=True, stdout=subprocess.DEVNULL)
    _sparse(esp, ESP_MIB)
    subprocess.run(["mkfs.vfat", "-n", "ESP", esp], check=True, stdout=subprocess.DEVNULL)
    loader = dest + "/bootloader"
    unpack(Debian(cache).fetch(["systemd-boot-efi"], dependencies=False), loader, dest + "/MANIFEST")
    entry = dest + "/debian.conf"
    with open(entry, "w") as f:
        f.write(BOOT_ENTRY)
    for directory in ("EFI", "EFI/BOOT", "loader", "loader/entries"):
        subprocess.run(["mmd", "-i", esp, "::/" + directory], check=True)
    for source, name in ((loader + "/usr/lib/systemd/boot/efi/systemd-bootx64.efi", "EFI/BOOT/BOOTX64.EFI"),
                         (artefacts["guestkernel"] + "/bzImage", "linux"),
                         (dest + "/full-initrd.cpio", "initrd"),
                         (entry, "loader/entries/debian.conf")):
        subprocess.run(["mcopy", "-i", esp, source, "::/" + name], check=True)
    subprocess.run(["dd", f"if={esp}", f"of={image}", "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none"],
                   check=True)
    os.unlink(esp)
    os.unlink(entry)
    shutil.rmtree(loader)
    with open(image, "rb") as f, open(dest + "/full.extents", "w") as out:
        out.writelines(f"{start} {count}\n" for start, count in extents(f))


def extents(image, block=1 << 20, gap=4):
    """[(first block, blocks)] of a file that hold anything but zeros; short gaps are taken along.

    9p shows no holes, so this is how L1 copies the image without reading all of it.
    """
    found, zeros, at = [], bytes(block), 0
    while data := image.read(block):
        if data != zeros[:len(data)]:
            if found and at - sum(found[-1]) <= gap:
                found[-1] = (found[-1][0], at + 1 - found[-1][0])
            else:
                found.append((at, 1))
        at += 1
    return found


def _sparse(path, mib):
    with open(path, "wb") as f:
        f.truncate(mib << 20)


def _put(root, path, text, mode=0o644):
    full = os.path.join(root, path)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    with open(full, "w") as f:
        f.write(text)
    os.chmod(full, mode)


def _inside(root, *command, **how):
    subprocess.run(["chroot", root, *command], check=True, **how)
