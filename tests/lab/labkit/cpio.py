"""Initramfs archives in the kernel's `newc` format, written without cpio(1), without root, and reproducibly."""


class Cpio:
    def __init__(self, *directories):
        self._bytes = bytearray()
        self._names = set()
        for directory in directories:
            self.directory(directory)

    def directory(self, name):
        """Adds a directory and those above it."""
        parts = name.split("/")
        for i in range(len(parts)):
            self._add("/".join(parts[:i + 1]), 0o40755, b"")

    def file(self, name, data, mode=0o644):
        self._add(name, 0o100000 | mode, data)

    def copy(self, name, path, mode=0o644):
        with open(path, "rb") as f:
            self.file(name, f.read(), mode)

    def link(self, name, target):
        self._add(name, 0o120777, target.encode())

    def write(self, path):
        self._add("TRAILER!!!", 0, b"")
        with open(path, "wb") as f:
            f.write(self._bytes)

    def _add(self, name, mode, data):
        if name in self._names:
            return
        self._names.add(name)
        encoded = name.encode() + b"\0"
        # ino, mode, uid, gid, nlink, mtime, filesize, dev (2), rdev (2), namesize, check
        fields = (len(self._names), mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        self._bytes += b"070701" + b"".join(b"%08X" % x for x in fields) + encoded
        self._pad()
        self._bytes += data
        self._pad()

    def _pad(self):
        self._bytes += b"\0" * (-len(self._bytes) % 4)
