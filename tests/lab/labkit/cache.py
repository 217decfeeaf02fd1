"""Where the lab's artefacts live, and the rules that keep a broken one from being used.

One artefact is one directory `steps/NAME-STAMP`. The stamp is a digest of all that the artefact is made from
(steps.py), so a change of an input is another directory, and a directory that exists is complete: it is built under
a temporary name in the same file system, flushed, and renamed. A build that is killed, or that meets a full disk,
leaves only a temporary directory, which the next `prepare` removes.

Two locks, both released by the kernel when their holder dies:

  prepare.lock   exclusive while something is built; a second `prepare` waits and then finds the work done
  use.lock       shared while an L1 runs from the artefacts; removing superseded ones takes it exclusively, or not
                 at all

Work trees with different versions of the lab share one cache, so nothing in it says which version of an artefact is
the current one: every run names its own.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import time

from .errors import LabError, log


def default_root():
    """$CUMULET_LAB_CACHE, or `cumulet/lab` in the user's cache directory."""
    named = os.environ.get("CUMULET_LAB_CACHE")
    if named:
        return named
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "cumulet", "lab")


class Cache:
    def __init__(self, root):
        self.root = os.path.abspath(root)
        os.makedirs(self.path("steps"), exist_ok=True)
        os.makedirs(self.path("saved"), exist_ok=True)

    def path(self, *parts):
        return os.path.join(self.root, *parts)

    def artefact(self, name, stamp):
        return self.path("steps", f"{name}-{stamp}")

    def has(self, name, stamp):
        return os.path.isdir(self.artefact(name, stamp))

    @contextlib.contextmanager
    def preparing(self):
        """Holds the right to build. What an earlier builder left unfinished is removed first."""
        with self._locked("prepare.lock", fcntl.LOCK_EX, "another `prepare` is at work: waiting for it"):
            for entry in os.listdir(self.path("steps")):
                if entry.startswith(".building-"):
                    remove(self.path("steps", entry))
            yield

    @contextlib.contextmanager
    def in_use(self):
        """Keeps the artefacts of a running L1 from being removed."""
        with self._locked("use.lock", fcntl.LOCK_SH, None):
            yield

    @contextlib.contextmanager
    def alone(self):
        """At most one L1 on this machine at a time, for runs that want the processors to themselves."""
        with self._locked("alone.lock", fcntl.LOCK_EX, "another lab is running: waiting for it"):
            yield

    @contextlib.contextmanager
    def _locked(self, name, how, waiting):
        with open(self.path(name), "a") as lock:
            try:
                fcntl.flock(lock, how | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting:
                    log(waiting)
                fcntl.flock(lock, how)
            yield

    def build(self, name, stamp, make):
        """Makes the artefact by calling `make(directory)`, in the place of one that may be there already.

        Call it inside `preparing()`.
        """
        building = self.path("steps", f".building-{name}-{os.getpid()}")
        os.mkdir(building)
        try:
            make(building)
            # The name must not reach the disk before the bytes do.
            os.sync()
            self._replace(building, self.artefact(name, stamp))
        except OSError as e:
            remove(building)
            if e.errno in (errno.ENOSPC, errno.EDQUOT):
                raise LabError(f"{name}: no space left in {self.root}") from e
            raise
        except BaseException:
            remove(building)
            raise

    def _replace(self, fresh, final):
        """Neither name ever holds half a tree: between the two renames there is none."""
        old = fresh + "-old"
        with contextlib.suppress(FileNotFoundError):
            os.rename(final, old)
        os.rename(fresh, final)
        remove(old)

    def sweep(self, live):
        """Removes artefacts that are not in `live` (directory names), unless an L1 may be using them."""
        with open(self.path("use.lock"), "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return []
            gone = [e for e in os.listdir(self.path("steps")) if e not in live]
            for entry in gone:
                remove(self.path("steps", entry))
            return gone

    def sweep_saved(self, keep):
        """Removes all but the `keep` most recently used saved machines, and unfinished ones of an hour ago."""
        saved = []
        for entry in os.listdir(self.path("saved")):
            path = self.path("saved", entry)
            with contextlib.suppress(FileNotFoundError):
                used = os.stat(path).st_mtime
                if not entry.endswith(".part"):
                    saved.append((used, path))
                elif time.time() - used > 3600:
                    os.unlink(path)
        for _, path in sorted(saved, reverse=True)[keep:]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def require_space(self, mib):
        free = shutil.disk_usage(self.root).free >> 20
        if free < mib:
            raise LabError(f"{self.root} has {free} MiB free, but preparing the lab needs about {mib} MiB")


def remove(path):
    """Removes a file, a link or a whole tree; read-only directories inside included."""
    if os.path.islink(path) or not os.path.isdir(path):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return
    for where, dirs, _ in os.walk(path):
        for d in dirs:
            inner = os.path.join(where, d)
            if not os.path.islink(inner):
                os.chmod(inner, 0o755)
    shutil.rmtree(path)
