#!/usr/bin/env python3
"""A throw-away Linux host with a complete /dev/kvm, built from Debian packages (docs/lab.md).

  lab.py prepare [STEP ...]          build what is missing (by default all but `full`)
  lab.py [run] [options] -- COMMAND  boot the host (L1), run COMMAND in it, exit with its status
  lab.py where NAME                  print the path of a cached artefact
  lab.py needs                       print the Debian packages that preparing lacks on this machine
  lab.py sweep                       remove artefacts that this version of the lab no longer uses

In L1, /vmm is the release build output, /art the cache, /payload the checks of tests/lab/payload (/payload/run.sh),
/lab/out a directory whose files come back (--out).
"""

import argparse
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
# The sources are read from a work tree that may be read-only.
sys.dont_write_bytecode = True

from labkit import machine, own_tests, session, steps  # noqa: E402
from labkit.cache import Cache, default_root  # noqa: E402
from labkit.errors import LabError, log  # noqa: E402

PROJECT = os.path.dirname(os.path.dirname(HERE))
# Names that scripts written for Cloud Hypervisor call, and our binaries.
ALIASES = {"cloud-hypervisor": "cumulet", "ch-remote": "cumulet-remote"}

SUBCOMMANDS = ("prepare", "run", "where", "needs", "sweep")


def build_output():
    """Where `cargo build --release` of this project puts its binaries."""
    target = os.environ.get("CARGO_TARGET_DIR") or os.path.join(PROJECT, "target")
    return os.path.join(target, "release")


def add_aliases(directory):
    for alias, binary in ALIASES.items():
        path = os.path.join(directory, alias)
        if os.path.exists(os.path.join(directory, binary)) and not os.path.lexists(path):
            try:
                os.symlink(binary, path)
            except FileExistsError:
                pass
            except OSError as e:
                log(f"no link {path}: {e.strerror}")


def parser():
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--cache", default=default_root(), help="default: %(default)s")
    sub = top.add_subparsers(dest="what", required=True)
    p = sub.add_parser("prepare")
    p.add_argument("step", nargs="*", help=f"of: {' '.join(steps.STEPS)}")
    p.add_argument("--full", action="store_true", help="the default steps and `full`")
    p.add_argument("--force", action="store_true", help="build the named steps again, from today's packages")
    p.add_argument("--install", action="store_true", help="install what preparing needs with apt-get")
    n = sub.add_parser("needs")
    n.add_argument("--full", action="store_true")
    sub.add_parser("where").add_argument("name")
    sub.add_parser("sweep")
    r = sub.add_parser("run")
    r.add_argument("--vmm", default=build_output(), metavar="DIR", help="seen as /vmm; default: %(default)s")
    r.add_argument("--share", action="append", default=[], metavar="L1DIR=HOSTDIR",
                   help="host directory seen in L1 and writable there (at most 3)")
    r.add_argument("--out", metavar="DIR", help="host directory seen as /lab/out")
    r.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    r.add_argument("--full", action="store_true", help="the command needs the `full` guest: prepare it too")
    r.add_argument("--mem", default="4G")
    r.add_argument("--smp", type=int, default=2)
    r.add_argument("--cpu", default=machine.Machine.cpu)
    r.add_argument("--single", action="store_true", help="one emulation thread")
    r.add_argument("--icount", type=int, metavar="SHIFT",
                   help="one emulation thread, and time by executed instructions, each 2^SHIFT ns: firmware in L2 needs it")
    r.add_argument("--tb", type=int, default=1024, metavar="MIB", help="QEMU's translation cache")
    r.add_argument("--iommu", choices=["intel", "amd", "virtio"])
    r.add_argument("--disk", action="append", default=[], metavar="IMAGE", help="/dev/vdb and on in L1")
    r.add_argument("--append", default="", help="more of L1's kernel command line")
    r.add_argument("--qemu", metavar="PROGRAM", help="in the place of the cached QEMU")
    r.add_argument("--qemu-arg", action="append", default=[])
    r.add_argument("--snapshot", action="store_true", help="start from a saved L1, made on first use")
    r.add_argument("--tests", action="append", default=[], metavar="PACKAGE",
                   help="build this package's test programs, seen in /tests under their targets' names")
    r.add_argument("--alone", action="store_true", help="wait until no other --alone run is going on")
    r.add_argument("--timeout", type=float, default=600, metavar="SECONDS")
    r.add_argument("--keep", action="store_true", help="keep L1's console log and job")
    r.add_argument("--stats", action="store_true")
    r.add_argument("-v", "--verbose", action="store_true")
    r.add_argument("command", nargs=argparse.REMAINDER)
    return top


def pair(text, what):
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise LabError(f"{what} {text!r}: expected NAME=VALUE")
    return name, value


def run(cache, a):
    command = a.command[1:] if a.command[:1] == ["--"] else a.command
    if not command:
        raise LabError("run: no command")
    shares = [machine.Share(session.CACHE_IN_L1, cache.root, readonly=True)]
    named = [machine.Share(*pair(s, "--share")) for s in a.share]
    if not any(s.where == "/vmm" for s in named):
        if os.path.isdir(a.vmm):
            add_aliases(a.vmm)
            shares.append(machine.Share("/vmm", a.vmm))
        else:
            log(f"{a.vmm} is not there: /vmm will be missing")
    environment = dict(pair(e, "--env") for e in a.env)
    if a.tests:
        tests = os.path.join(os.path.dirname(build_output()), "lab-tests")
        own_tests.build(PROJECT, a.tests, tests)
        shares.append(machine.Share("/tests", tests))
        environment["PROJECT"] = PROJECT
    # A share of the caller takes the place of ours.
    shares = [s for s in shares if s.where not in {n.where for n in named}] + named
    l1 = machine.Machine(memory=a.mem, smp=a.smp, cpu=a.cpu, single=a.single, icount=a.icount, translation_mib=a.tb, iommu=a.iommu,
                         disks=tuple(a.disk), append=a.append, extra=tuple(a.qemu_arg), qemu=a.qemu)
    job = session.Job(command=command, environment=environment, shares=shares, out=a.out,
                      payload=os.path.join(HERE, "payload"), timeout=a.timeout, snapshot=a.snapshot, keep=a.keep, stats=a.stats, verbose=a.verbose)
    with cache.in_use():
        artefacts = steps.prepare(cache, steps.defaults(a.full))
        job.art = steps.named(artefacts)
        if not a.alone:
            return session.run(cache, artefacts, l1, job)
        with cache.alone():
            return session.run(cache, artefacts, l1, job)


def with_run(arguments):
    """`run` may be left out: `lab.py [--cache DIR] [options] -- COMMAND`."""
    at = 0
    while at < len(arguments) and arguments[at].startswith("--cache"):
        at += 1 if "=" in arguments[at] else 2
    if at < len(arguments) and arguments[at] in (*SUBCOMMANDS, "-h", "--help"):
        return arguments
    return arguments[:at] + ["run"] + arguments[at:]


def main():
    a = parser().parse_args(with_run(sys.argv[1:]))
    os.environ["PATH"] = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
    session.exit_on_signals()
    cache = Cache(a.cache)
    if a.what == "prepare":
        steps.prepare(cache, a.step or steps.defaults(a.full), force=a.force, install=a.install)
    elif a.what == "needs":
        print(" ".join(steps.missing_packages(steps.defaults(a.full))))
    elif a.what == "where":
        print(steps.where(cache, a.name))
    elif a.what == "sweep":
        for gone in cache.sweep(steps.live_artefacts()):
            log(f"removed {gone}")
    else:
        return run(cache, a)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        log(error)
        sys.exit(session.DIED)
    except KeyboardInterrupt:
        sys.exit(130)
