"""QEMU's machine protocol, as far as saving a running L1 needs it."""

import json
import time

from .errors import LabError


class Qmp:
    def __init__(self, connection):
        connection.settimeout(60)
        self._connection = connection
        self._lines = connection.makefile("r")
        self._answer("QMP")
        self.execute("qmp_capabilities")

    def execute(self, command, **arguments):
        self._connection.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        return self._answer("return")

    def _answer(self, key):
        for line in self._lines:                          # events come in between
            message = json.loads(line)
            if "error" in message:
                raise LabError(f"QEMU: {message['error'].get('desc')}")
            if key in message:
                return message[key]
        raise EOFError("QEMU closed its control connection")

    def save(self, path, seconds=120):
        """Writes the running machine to a file; it runs on afterwards."""
        # Unlimited, and not stopped first: the state in the file has to say "running".
        self.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        self.execute("migrate", uri=f"exec:cat > '{path}'")
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            state = self.execute("query-migrate")
            if state.get("status") == "completed":
                self.execute("cont")
                return
            if state.get("status") in ("failed", "cancelled"):
                raise LabError(f"L1 could not be saved: {state.get('error-desc', state['status'])}")
            time.sleep(0.05)
        raise LabError(f"L1 was not saved within {seconds} s")
