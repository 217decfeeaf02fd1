"""The lab: a throw-away Linux host with a complete /dev/kvm, for tests of the VMM.

Not a general tool for virtual machines: it builds one kind of host (L1) and a few guests (L2) from Debian
packages, keeps them in a cache, boots the host in QEMU's software emulation with nested SVM, and runs one command
there. `lab.py` is the command line on top of it; docs/lab.md says how it is used.

  cache.py       where artefacts live, and why a half-made one is never taken for a good one
  debian.py      packages: resolved, downloaded and unpacked without touching the machine's own apt
  kernels.py     Debian's kernel packages: the plain ELF, the modules
  cpio.py        initramfs archives
  pvh.py         kernel and initramfs as one PVH ELF file
  host.py        L1: its root file system and initramfs
  guests.py      L2: `nano`, the firmware
  full_image.py  L2: `full`, a Debian with systemd on a disk
  steps.py       the steps of `prepare`, what each is made of, and their order
  machine.py     the QEMU command line of L1
  session.py     one run: start L1, run the command, bring back the status, leave nothing behind
"""
