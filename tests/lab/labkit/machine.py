"""The QEMU command line of L1.

The set of devices is the same in every run (unused shares are exported as empty directories), so that a saved L1
fits every later run that asks for the same machine.
"""

import dataclasses
import os
import shlex

# In the cache through its own dynamic linker; what the machine has installed does not matter.
LIB = "usr/lib/x86_64-linux-gnu"
SHARES = 5

# A queue's notification is then handled by the emulation thread that makes it. As an eventfd it goes by the main loop,
# which also runs every timer of the guest's and looks at all its descriptors each time: with eventfds, eighty of them.
DIRECT = "ioeventfd=off"

# Kernel work at boot that means nothing here and costs a second under emulation: self tests of ciphers, timing jitter
# as entropy, certificates for module signatures.
APPEND = ("console=ttyS0 quiet panic=-1 mitigations=off no_timer_check tsc=reliable rcupdate.rcu_expedited=1 "
          "random.trust_cpu=on 8250.nr_uarts=1 cryptomgr.notests=1 "
          "initcall_blacklist=jent_mod_init,load_system_certificate_list")


# With `icount`, time passes in L1 by executed instructions: however busy the machine is, L1 does not notice. OVMF in L2
# needs that. QEMU (10.0 to 11.1) aborts when an L2 writes CR8 while its host waits for L2 to open its interrupt window
# (`helper_write_crN` calls `cpu_interrupt` without the lock). OVMF writes CR8 at the end of every interrupt handler; if its
# timer's 10 ms pass meanwhile, which by the clock they do whenever the emulation is held up, the next tick waits.

@dataclasses.dataclass
class Share:
    """A host directory and where L1 mounts it."""
    where: str
    path: str
    readonly: bool = False


@dataclasses.dataclass
class Machine:
    memory: str = "4G"
    smp: int = 2
    cpu: str = "max,+svm,la57=off"
    single: bool = False            # one emulation thread
    icount: int | None = None       # time by instructions, each 2^icount ns (see below)
    translation_mib: int = 1024
    iommu: str | None = None
    disks: tuple = ()
    append: str = ""
    extra: tuple = ()
    qemu: str | None = None         # a QEMU in the place of the cached one


def qemu(cached, named=None):
    if named:
        return [named]
    lib = f"{cached}/{LIB}"
    return [f"{lib}/ld-linux-x86-64.so.2", "--library-path", lib, f"{cached}/usr/bin/qemu-system-x86_64",
            "-L", f"{cached}/usr/share/qemu", "-L", f"{cached}/usr/share/seabios"]


def arguments(machine, artefacts, run_dir, shares):
    """QEMU's arguments for one run, whose sockets and job are in `run_dir`."""
    root = artefacts["l1root"] + "/l1root.erofs"
    threads = "single" if machine.single or machine.icount is not None else "multi"
    args = [
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", "q35,vmport=off,smbus=off,sata=off,hpet=off",
        "-accel", f"tcg,thread={threads},tb-size={machine.translation_mib}",
        "-cpu", machine.cpu, "-smp", str(machine.smp), "-m", machine.memory,
        "-kernel", artefacts["l1kernel"] + "/vmlinux", "-initrd", artefacts["l1initrd"] + "/initrd.cpio",
        "-append", f"{APPEND} {machine.append}".strip(),
        "-serial", f"file:{run_dir}/console.log",
        "-qmp", f"unix:{run_dir}/qmp.sock,server=on,wait=off",
        "-device", f"virtio-serial-pci,{DIRECT}",
        "-chardev", f"socket,id=out,path={run_dir}/out.sock,server=on,wait=off",
        "-device", "virtconsole,chardev=out",
        "-chardev", f"socket,id=ctl,path={run_dir}/ctl.sock,server=on,wait=off",
        "-device", "virtserialport,chardev=ctl,name=lab.ctl",
        "-blockdev", f"file,node-name=root,filename={root},read-only=on,locking=off",
        "-device", f"virtio-blk-pci,drive=root,{DIRECT}",
        "-device", f"virtio-rng-pci,{DIRECT}",
    ]
    exported = [("job", f"{run_dir}/job", True), ("out", f"{run_dir}/out", False)]
    for i in range(SHARES):
        share = shares[i] if i < len(shares) else Share("", f"{run_dir}/empty")
        exported.append((f"share{i}", share.path, share.readonly))
    for tag, path, readonly in exported:
        args += ["-fsdev", f"local,id={tag},path={os.path.abspath(path)},security_model=none,multidevs=remap,"
                           f"readonly={'on' if readonly else 'off'}",
                 "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag},{DIRECT}"]
    args += {None: [], "intel": ["-device", "intel-iommu,intremap=on,caching-mode=on"],
             "amd": ["-device", "amd-iommu,intremap=on"], "virtio": ["-device", "virtio-iommu-pci"]}[machine.iommu]
    for i, disk in enumerate(machine.disks):            # /dev/vdb, /dev/vdc ...
        args += ["-blockdev", f"file,node-name=disk{i},filename={os.path.abspath(disk)},locking=off",
                 "-device", f"virtio-blk-pci,drive=disk{i}"]
    if machine.icount is not None:
        # When L1 is idle, its clock goes straight to the next timer.
        args += ["-icount", f"shift={machine.icount},sleep=off"]
    for words in machine.extra:
        args += shlex.split(words)
    return args


def shape(args, run_dir):
    """What a saved L1 depends on: the command line without the parts that may differ from run to run."""
    return [a.replace(run_dir, "RUN") for a in args if not a.startswith("local,")]
