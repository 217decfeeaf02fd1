"""Debian packages, resolved, downloaded and unpacked without touching the machine's own apt.

Each suite has a private apt root in the cache (`apt/SUITE`) that asks the same mirrors as the machine's own apt.
Packages are unpacked and never configured: no maintainer script runs, so nothing here needs root.

A download counts only after its size and its SHA-256 are the ones that the signed index names.
"""

import glob
import hashlib
import os
import re
import subprocess

from .errors import LabError, log

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SUITE = os.environ.get("CUMULET_LAB_SUITE", "trixie")
# Debian has the firmware for Cloud-Hypervisor-like machines (CLOUDHV.fd) only here.
FIRMWARE_SUITE = "sid"


def mirrors():
    """The archive and the security archive: named by the environment, else those of the machine's own apt."""
    main = os.environ.get("CUMULET_LAB_MIRROR")
    security = os.environ.get("CUMULET_LAB_MIRROR_SECURITY")
    if main and security:
        return main.rstrip("/"), security.rstrip("/")
    try:
        listed = subprocess.run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)"],
                                stdout=subprocess.PIPE, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as e:
        raise LabError(f"apt-get cannot list this machine's archives: {e}") from e
    own_main, own_security = choose_mirrors(listed)
    main, security = main or own_main, security or own_security or main or own_main
    if not main:
        raise LabError("no Debian archive among this machine's apt sources: set CUMULET_LAB_MIRROR to one")
    return main.rstrip("/"), security.rstrip("/")


def choose_mirrors(listed):
    """(archive, security archive) out of lines `URI RELEASE`; None for what is not there."""
    pairs = [line.split() for line in listed.splitlines() if "debian" in line]
    pairs = [p for p in pairs if len(p) == 2]
    main = [uri for uri, release in pairs if "-" not in release]
    security = [uri for uri, release in pairs if release.endswith("-security")]
    return (main[0] if main else None), (security[0] if security else None)


def parse_uris(text):
    """[(file name, size, SHA-256 or None)] out of what `apt-get --print-uris` prints."""
    found = []
    for line in text.splitlines():
        m = re.match(r"'[^']+' (\S+\.deb) (\d+)(?: SHA256:([0-9a-f]{64}))?", line)
        if m:
            found.append((m.group(1), int(m.group(2)), m.group(3)))
    return found


class Debian:
    """The private apt of one suite."""

    def __init__(self, cache, suite=SUITE):
        self.suite = suite
        self.root = cache.path("apt", suite)
        self.archives = os.path.join(self.root, "archives")
        self.env = dict(os.environ, APT_CONFIG=os.path.join(self.root, "apt.conf"), LC_ALL="C",
                        DEBIAN_FRONTEND="noninteractive")

    def fetch(self, packages, dependencies=True):
        """Downloads the packages (and what they depend on); returns the paths of the .deb files."""
        self._configure()
        try:
            return self._fetch(packages, dependencies)
        except subprocess.CalledProcessError:
            # The lists may be older than the mirror: versions they name may be gone from it.
            log(f"{self.suite}: fetching failed; asking the mirror for fresh lists")
            self._update()
        try:
            return self._fetch(packages, dependencies)
        except subprocess.CalledProcessError as e:
            raise LabError(f"{self.suite}: apt-get cannot fetch {' '.join(packages)} (status {e.returncode})") from e

    def depends(self, package):
        """The first dependency of a metapackage."""
        self._configure()
        out = subprocess.run(["apt-cache", "depends", package], env=self.env, stdout=subprocess.PIPE,
                             text=True, check=True).stdout
        m = re.search(r"Depends: (\S+)", out)
        if not m:
            raise LabError(f"{self.suite}: package {package} depends on nothing")
        return m.group(1)

    def _fetch(self, packages, dependencies):
        if dependencies:
            ask = ["-o", f"Dir::Cache::archives={self.root}/parts", "install", "-y", "--print-uris", *packages]
            get = ["install", "-y", "--download-only", *packages]
        else:
            ask = ["download", "--print-uris", *packages]
            get = ["download", *packages]
        # In an empty directory, or apt leaves out the packages that are here already.
        out = subprocess.run(["apt-get", "-qq", "-o", "Acquire::ForceHash=SHA256", *ask], env=self.env,
                             cwd=os.path.join(self.root, "parts"), stdout=subprocess.PIPE, text=True,
                             check=True).stdout
        wanted = parse_uris(out)
        if not wanted:
            raise LabError(f"{self.suite}: apt-get names no file for {' '.join(packages)}")
        if not all(self._whole(w) for w in wanted):
            subprocess.run(["apt-get", "-qq", *get], env=self.env, cwd=self.archives, stdout=subprocess.DEVNULL,
                           check=True)
        for w in wanted:
            if not self._whole(w, remove=True):
                raise LabError(f"{self.suite}: {w[0]} did not arrive whole")
        return [os.path.join(self.archives, name) for name, _, _ in wanted]

    def _whole(self, wanted, remove=False):
        """Is the file here, with the size and the digest that the index names?"""
        name, size, digest = wanted
        path = os.path.join(self.archives, name)
        try:
            with open(path, "rb") as f:
                good = os.fstat(f.fileno()).st_size == size
                if good and digest:
                    good = hashlib.file_digest(f, "sha256").hexdigest() == digest
        except FileNotFoundError:
            return False
        if not good:
            # A stale file of the right name would be taken for the download.
            os.unlink(path)
        return good

    def _configure(self):
        done = os.path.join(self.root, "ok")
        if os.path.exists(done):
            return
        if not os.path.exists(KEYRING):
            raise LabError(f"{KEYRING} is missing: install the package debian-archive-keyring")
        main, security = mirrors()
        for d in ("lists/partial", "archives/partial", "parts"):
            os.makedirs(os.path.join(self.root, d), exist_ok=True)
        with open(os.path.join(self.root, "status"), "w"):
            pass
        sources = [(main, self.suite)]
        if self.suite != "sid":
            sources += [(main, self.suite + "-updates"), (security, self.suite + "-security")]
        with open(os.path.join(self.root, "sources.list"), "w") as f:
            for uri, suite in sources:
                f.write(f"deb [signed-by={KEYRING}] {uri} {suite} main\n")
        with open(self.env["APT_CONFIG"], "w") as f:
            f.write(APT_CONF.format(root=self.root))
        self._update()
        with open(done, "w"):
            pass

    def _update(self):
        try:
            subprocess.run(["apt-get", "-qq", "update"], env=self.env, check=True)
        except subprocess.CalledProcessError as e:
            raise LabError(f"{self.suite}: apt-get update failed with status {e.returncode}") from e


APT_CONF = """Dir::Etc::SourceList "{root}/sources.list";
Dir::Etc::SourceParts "{root}/parts";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "{root}/parts";
Dir::State "{root}";
Dir::State::Lists "{root}/lists";
Dir::State::status "{root}/status";
Dir::Cache "{root}";
Dir::Cache::archives "{root}/archives";
APT::Architecture "amd64";
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "3";
"""


def unpack(debs, root, manifest):
    """Unpacks packages into a tree, and notes in the file `manifest` which ones it is made of."""
    os.makedirs(root, exist_ok=True)
    for deb in debs:
        subprocess.run(["dpkg", "-x", deb, root], check=True)
    with open(manifest, "a") as f:
        for deb in debs:
            f.write(os.path.basename(deb) + "\n")


def one(pattern):
    """The single path that matches."""
    found = glob.glob(pattern)
    if len(found) != 1:
        raise LabError(f"{pattern}: expected one match, found {len(found)}")
    return found[0]


def run_unpacked(root, command, **how):
    """Runs a program of an unpacked tree with that tree's own libraries."""
    lib = os.path.join(root, "usr/lib/x86_64-linux-gnu")
    return subprocess.run([f"{lib}/ld-linux-x86-64.so.2", "--library-path", lib, os.path.join(root, command[0]),
                           *command[1:]], check=True, **how)


def libraries(root, program):
    """The shared libraries that a program of an unpacked tree loads, as paths inside the tree."""
    lib = os.path.join(root, "usr/lib/x86_64-linux-gnu")
    out = subprocess.run([f"{lib}/ld-linux-x86-64.so.2", "--library-path", lib, "--list",
                          os.path.join(root, program)], stdout=subprocess.PIPE, text=True, check=True).stdout
    return re.findall(r"=> (/\S+)", out)
