"""The steps of `prepare`: what each makes, from what, under which names.

A step's stamp is a digest of everything that decides its bytes except the versions that Debian has on the day: its
source files, the suite, and the stamps of the steps it builds on. `prepare --force` takes the versions of today.
"""

import dataclasses
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable

from . import full_image, guests, host
from .debian import FIRMWARE_SUITE, SUITE, Debian, unpack
from .errors import LabError, log

HERE = host.HERE
QEMU_PACKAGES = "qemu-system-x86 ipxe-qemu seabios qemu-system-data".split()
# Program -> the Debian package that has it. L1's own QEMU comes from the cache, so none is needed here.
TOOLS = {"apt-get": "apt", "dpkg": "dpkg", "depmod": "kmod", "ldconfig": "libc-bin", "mkfs.erofs": "erofs-utils",
         "zstd": "zstd", "xz": "xz-utils"}
FULL_TOOLS = {"mmdebstrap": "mmdebstrap", "mkfs.ext4": "e2fsprogs", "mkfs.vfat": "dosfstools", "mcopy": "mtools",
              "sgdisk": "gdisk"}
KEYRING_PACKAGE = "debian-archive-keyring"


def build_qemu(cache, _artefacts, dest):
    """A QEMU of its own, run through its own dynamic linker: machines with an older one crash L1."""
    unpack(Debian(cache).fetch(QEMU_PACKAGES), dest, dest + "/MANIFEST")


@dataclasses.dataclass(frozen=True)
class Step:
    name: str
    build: Callable
    sources: tuple                  # files that decide the result, relative to tests/lab
    holds: dict                     # name under /art -> path inside the artefact
    needs: tuple = ()
    suite: str = SUITE
    by_default: bool = True
    mib: int = 100                  # room that building takes


KIT = ("labkit/debian.py",)
STEPS = {s.name: s for s in (
    Step("qemu", build_qemu, KIT, {"qemu": "."}, mib=400),
    Step("busybox", guests.build_busybox, KIT, {"busybox": "."}),
    Step("l1kernel", host.build_kernel, KIT + ("labkit/kernels.py",), {"l1kernel": "."}, mib=700),
    Step("l1root", host.build_root, KIT + ("labkit/host.py",), {"l1root.erofs": "l1root.erofs"},
         needs=("l1kernel",), mib=2500),
    Step("l1initrd", host.build_initramfs, ("labkit/cpio.py", "labkit/kernels.py", "labkit/host.py", "l1/init", "l1/rc"),
         {"l1initrd.cpio": "initrd.cpio"}, needs=("l1kernel", "busybox")),
    Step("guestkernel", guests.build_kernel, KIT + ("labkit/kernels.py",), {"guestkernel": "."}, mib=400),
    Step("nano", guests.build_nano, KIT + ("labkit/cpio.py", "labkit/guests.py", "labkit/pvh.py", "guest/nano-init"),
         {"nano.cpio": "nano.cpio", "nano.vmlinux": "nano.vmlinux"}, needs=("guestkernel", "busybox"), mib=200),
    Step("firmware", guests.build_firmware, KIT, {"CLOUDHV.fd": "CLOUDHV.fd"}, suite=FIRMWARE_SUITE),
    Step("full", full_image.build,
         KIT + ("labkit/cpio.py", "labkit/full_image.py", "labkit/pvh.py", "guest/full-init", "guest/full-firstboot"),
         {n: n for n in ("full.raw", "full.extents", "full.vmlinux", "full-initrd.cpio")},
         needs=("guestkernel", "busybox"), by_default=False, mib=1500),
)}


def stamp(name):
    step = STEPS[name]
    digest = hashlib.sha256(f"{name} {step.suite}".encode())
    for source in step.sources:
        with open(os.path.join(HERE, source), "rb") as f:
            digest.update(f"\n{source}\n".encode() + f.read())
    for need in step.needs:
        digest.update(f"\n{need} {stamp(need)}".encode())
    return digest.hexdigest()[:16]


def in_order(names):
    """The named steps and those they build on, each after what it needs."""
    order = []

    def add(name):
        if name not in STEPS:
            raise LabError(f"no step {name!r}; there are: {' '.join(STEPS)}")
        for need in STEPS[name].needs:
            add(need)
        if name not in order:
            order.append(name)

    for name in names:
        add(name)
    return order


def defaults(full=False):
    return [s.name for s in STEPS.values() if s.by_default or (full and s.name == "full")]


def missing_packages(names):
    """Debian packages that preparing these steps needs and this machine lacks."""
    tools = dict(TOOLS, **(FULL_TOOLS if "full" in names else {}))
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    gone = {package for tool, package in tools.items() if not shutil.which(tool, path=path)}
    if not os.path.exists(f"/usr/share/keyrings/{KEYRING_PACKAGE}.gpg"):
        gone.add(KEYRING_PACKAGE)
    return sorted(gone)


def prepare(cache, names, force=False, install=False):
    """Makes what is missing of the named steps and of what they need. Returns {step: path of its artefact}."""
    order = in_order(names)
    stamps = {name: stamp(name) for name in order}
    artefacts = {name: cache.artefact(name, stamps[name]) for name in order}
    if force or not all(cache.has(n, stamps[n]) for n in order):
        with cache.preparing():
            _build_missing(cache, order, stamps, artefacts, names if force else (), install)
    return artefacts


def named(artefacts):
    """{name under /art: path in the cache} for what these artefacts hold."""
    return {name: os.path.normpath(os.path.join(path, inside))
            for step, path in artefacts.items() for name, inside in STEPS[step].holds.items()}


def where(cache, name):
    """The path of what is called `name` under /art, whether it has been built or not."""
    all_named = named({step: cache.artefact(step, stamp(step)) for step in STEPS})
    if name not in all_named:
        raise LabError(f"nothing is called {name!r}; there are: {' '.join(sorted(all_named))}")
    return all_named[name]


def live_artefacts():
    """The directory names of artefacts that this version of the lab can use."""
    return {f"{name}-{stamp(name)}" for name in STEPS}


def _build_missing(cache, order, stamps, artefacts, forced, install):
    todo = [n for n in order if n in forced or not cache.has(n, stamps[n])]
    if not todo:
        return
    gone = missing_packages(todo)
    if gone and install:
        subprocess.run(["apt-get", "install", "-y", "--no-install-recommends", *gone], check=True)
        gone = missing_packages(todo)
    if gone:
        raise LabError(f"preparing needs these packages, which are missing: apt-get install -y {' '.join(gone)} "
                       "(or `lab.py prepare --install`)")
    cache.require_space(sum(STEPS[n].mib for n in todo))
    for name in todo:
        began = time.monotonic()
        log(f"prepare {name} ...")
        try:
            cache.build(name, stamps[name], lambda dest, s=STEPS[name]: s.build(cache, artefacts, dest))
        except subprocess.CalledProcessError as e:
            raise LabError(f"prepare {name}: {e.cmd[0]} failed with status {e.returncode}") from e
        log(f"prepare {name}: {time.monotonic() - began:.1f} s")
