"""One run: start L1, run a command there, bring its output, status and files back, leave nothing behind.

L1 and this side talk over two channels. `out` is L1's hvc0: whatever the command prints. `ctl` is a line protocol:

  L1 -> READY                          booted, nothing mounted yet: the moment at which an L1 is saved
     <- GO <unix time> <hex seed>      a restored L1 has an old clock and old entropy
  L1 -> STARTED                        shares are mounted, the command starts
  L1 -> EXIT <status>                  the command ended and its files are synced
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from . import machine as qemu
from .errors import LabError, log
from .qmp import Qmp

# Like timeout(1), and one that no command gives by chance.
TIMED_OUT, DIED = 124, 125
SAVED_MACHINES = 4
CACHE_IN_L1 = "/lab/cache"


@dataclasses.dataclass
class Job:
    command: list
    environment: dict = dataclasses.field(default_factory=dict)
    shares: list = dataclasses.field(default_factory=list)
    out: str | None = None          # host directory that L1 sees as /lab/out
    payload: str | None = None      # host directory whose copy L1 sees as /payload
    art: dict = dataclasses.field(default_factory=dict)     # name under /art -> path in the cache
    timeout: float = 600
    snapshot: bool = False          # start from a saved L1, made on first use
    keep: bool = False
    stats: bool = False
    verbose: bool = False


def run(cache, artefacts, machine, job):
    if len(job.shares) > qemu.SHARES:
        raise LabError(f"{len(job.shares)} shares, but L1 has room for {qemu.SHARES}")
    for share in job.shares:
        if not os.path.isdir(share.path):
            raise LabError(f"share {share.where}: {share.path} is not a directory")
    # Sockets have short names at most, so not below the cache.
    run_dir = tempfile.mkdtemp(prefix="cumulet-lab-")
    try:
        return _run(cache, artefacts, machine, job, run_dir)
    finally:
        if job.keep:
            log(f"kept {run_dir}")
        else:
            shutil.rmtree(run_dir, ignore_errors=True)


def _run(cache, artefacts, machine, job, run_dir):
    for directory in ("job", "empty"):
        os.mkdir(f"{run_dir}/{directory}")
    if job.out:
        os.makedirs(job.out, exist_ok=True)
        os.symlink(os.path.abspath(job.out), f"{run_dir}/out")
    else:
        os.mkdir(f"{run_dir}/out")
    write_job(f"{run_dir}/job", job, cache.root)
    args = qemu.arguments(machine, artefacts, run_dir, job.shares)
    saved = _saved_path(cache, artefacts, args, run_dir) if job.snapshot else None
    restored = saved is not None and os.path.exists(saved)
    if restored:
        os.utime(saved)
        args += ["-incoming", f"exec:cat '{saved}'"]
    command = qemu.qemu(artefacts["qemu"], machine.qemu) + args
    if job.verbose:
        log(shlex.join(command))
    began = time.monotonic()
    process = start(command)
    status = DIED
    try:
        status = _drive(process, job, run_dir, None if restored else saved, began)
    except TimeoutError:
        log(f"timeout after {job.timeout:.0f} s")
        status = TIMED_OUT
    except (EOFError, ConnectionError) as e:
        log(f"L1 died: {e}; {ending(process)}")
    finally:
        stop(process)
        if status in (TIMED_OUT, DIED):
            with contextlib.suppress(OSError), open(f"{run_dir}/console.log", errors="replace") as f:
                sys.stderr.write(f.read()[-4000:])
    if saved:
        cache.sweep_saved(SAVED_MACHINES)
    return status


def _drive(process, job, run_dir, save_to, began):
    deadline = began + job.timeout
    output, control = connect(f"{run_dir}/out.sock", process), connect(f"{run_dir}/ctl.sock", process)
    pump = Pump(output)
    lines = Lines(control, deadline)
    if save_to is not None:
        lines.wait("READY")
        _save(connect(f"{run_dir}/qmp.sock", process), save_to)
    # A restored L1 said READY in an earlier life; one that boots has it in its buffer.
    control.sendall(f"GO {time.time():.3f} {os.urandom(32).hex()}\n".encode())
    lines.wait("STARTED")
    started, started_cpu = time.monotonic(), cpu_seconds(process)
    status = int(lines.wait("EXIT").split()[1])
    ended, ended_cpu = time.monotonic(), cpu_seconds(process)
    pump.drain()
    if job.stats:
        log(f"payload started after {started - began:.2f} s (cpu {started_cpu:.2f}) and ran "
            f"{ended - started:.2f} s (cpu {ended_cpu - started_cpu:.2f}), status {status}, "
            f"host load {os.getloadavg()[0]:.1f}")
    return status


def write_job(directory, job, cache_root):
    """What l1/rc reads: what to mount, and what to run. The payload is copied, so that it may change meanwhile."""
    os.mkdir(f"{directory}/art")
    for name, path in job.art.items():
        os.symlink(os.path.join(CACHE_IN_L1, os.path.relpath(path, cache_root)), f"{directory}/art/{name}")
    if job.payload:
        shutil.copytree(job.payload, f"{directory}/payload")
    with open(f"{directory}/mounts", "w") as f:
        for i, share in enumerate(job.shares):
            f.write(f"share{i} {share.where} {'ro' if share.readonly else 'rw'}\n")
    with open(f"{directory}/cmd", "w") as f:
        for name, value in job.environment.items():
            f.write(f"export {name}={shlex.quote(value)}\n")
        f.write(shlex.join(job.command) + "\n")


def _saved_path(cache, artefacts, args, run_dir):
    key = json.dumps([qemu.shape(args, run_dir), sorted(artefacts.items())])
    return cache.path("saved", hashlib.sha256(key.encode()).hexdigest()[:16])


def _save(connection, path):
    part = f"{path}.{os.getpid()}.part"
    try:
        Qmp(connection).save(part)
        os.rename(part, path)
    except LabError as e:
        # The run goes on without: only the next start is slower.
        log(e)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


def start(command):
    """Starts QEMU so that it dies with this process, however this process dies."""
    if shutil.which("setpriv"):
        command = ["setpriv", "--pdeathsig", "KILL", *command]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)


def stop(process):
    process.kill()
    process.wait()


def ending(process, seconds=3):
    """How QEMU ended by itself. Status 0 is a reset of L1: a panic, or a triple fault."""
    try:
        return f"QEMU ended with status {process.wait(seconds)}"
    except subprocess.TimeoutExpired:
        return "QEMU is still there"


def exit_on_signals():
    """Makes SIGTERM and SIGHUP run the clean-up that an exception runs."""
    def leave(number, _frame):
        sys.exit(128 + number)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


def connect(path, process, seconds=20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(path)
            return connection
        except OSError:
            connection.close()
        if process.poll() is not None:
            raise EOFError(f"QEMU ended with status {process.returncode}")
        time.sleep(0.01)
    raise EOFError(f"QEMU did not open {path} within {seconds} s")


class Lines:
    """The control channel, read line by line up to one deadline for the whole run."""

    def __init__(self, connection, deadline):
        self._connection = connection
        self._deadline = deadline
        self._buffer = b""

    def wait(self, word):
        while True:
            line = self._next().decode(errors="replace").strip()
            if line.split(" ")[0] == word:
                return line

    def _next(self):
        while b"\n" not in self._buffer:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._connection.settimeout(left)
            received = self._connection.recv(4096)
            if not received:
                raise EOFError("the control channel closed")
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


class Pump:
    """Copies what L1 prints to standard output as it comes."""

    def __init__(self, connection, to=None):
        self._connection = connection
        self._to = to or sys.stdout.buffer
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()

    def drain(self, quiet=0.15, most=3.0):
        """Returns when nothing has come for a moment. L1's writes to hvc0 are synchronous, so little is under way."""
        end = time.monotonic() + most
        begun = time.monotonic()
        while time.monotonic() < end and time.monotonic() - max(self._last, begun) < quiet:
            self._thread.join(0.02)
            if not self._thread.is_alive():
                return

    def _copy(self):
        while True:
            try:
                received = self._connection.recv(65536)
            except OSError:
                return
            if not received:
                return
            self._last = time.monotonic()
            try:
                self._to.write(received.replace(b"\r\n", b"\n"))
                self._to.flush()
            except (BrokenPipeError, ValueError):
                return


def cpu_seconds(process):
    """Processor time a process has used: steadier than wall time on a busy machine."""
    try:
        with open(f"/proc/{process.pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return float("nan")
