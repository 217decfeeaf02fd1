"""Holds the OpenAPI document against a running VMM: `check.py VMM KERNEL SCHEMATHESIS STATE`.

STATE is none, created, running or paused: what the VM is in while schemathesis sends what the document allows, and
what it does not. No answer may have a status, a content type or a shape that the document does not name. Endpoints that
would leave the state are left out. Ends with 0 if all is well and the VMM still answers.
"""

import http.client
import json
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time

# What the document calls an error of the server is one that clients are told of: it is named, and so allowed.
CHECKS = "status_code_conformance,content_type_conformance,response_schema_conformance"
LEAVING = {
    "none": ["vmm.shutdown"],
    "created": ["vmm.shutdown", "vm.delete", "vm.boot"],
    "running": ["vmm.shutdown", "vm.delete", "vm.shutdown", "vm.pause", "vm.reboot"],
    "paused": ["vmm.shutdown", "vm.delete", "vm.shutdown", "vm.resume", "vm.reboot"],
}


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost")
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(self.path)


def ask(path, method, endpoint, body=None):
    connection = UnixConnection(path)
    connection.request(method, "/api/v1/" + endpoint, body)
    return connection.getresponse().status


def forward(source, sink):
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
    except OSError:
        pass
    for end in (source, sink):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def serve_on_loopback(path):
    """A port that leads to the socket: schemathesis knows no Unix sockets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept():
        while True:
            client, _ = listener.accept()
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(str(path))
            except OSError:
                client.close()
                continue
            for ends in ((client, server), (server, client)):
                threading.Thread(target=forward, args=ends, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def bring_to(state, path, kernel, folder):
    """Requests that lead to the state, and whether all were answered well."""
    image = folder / "image"
    image.write_bytes(bytes(1 << 20))
    config = {
        "payload": {"kernel": kernel, "cmdline": ""},
        "memory": {"size": 64 << 20},
        "console": {"mode": "Off"},
        "disks": [{"path": str(image), "id": "disk"}],
    }
    steps = [("vm.create", json.dumps(config)), ("vm.boot", None), ("vm.pause", None)]
    count = ["none", "created", "running", "paused"].index(state)
    return all(ask(path, "PUT", endpoint, body) == 204 for endpoint, body in steps[:count])


def main(vmm, kernel, schemathesis, state):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        path = folder / "api"
        process = subprocess.Popen(
            [vmm, "--api-socket", path, "--no-shutdown", "--log-file", folder / "log"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            while not path.exists() and process.poll() is None:
                time.sleep(0.01)
            if not bring_to(state, path, kernel, folder):
                print(f"the VM cannot be brought to the state {state}")
                return 1
            base = f"http://127.0.0.1:{serve_on_loopback(path)}/api/v1"
            left_out = "/(" + "|".join(map(re.escape, LEAVING[state])) + ")$"
            arguments = ["run", base + "/openapi.json", "--url", base, "--checks", CHECKS, "--seed", "1"]
            arguments += ["--phases", "coverage,fuzzing", "-n", "20", "--continue-on-failure"]
            arguments += ["--exclude-path-regex", left_out, "--no-color"]
            code = subprocess.run([schemathesis, *arguments], cwd=folder, check=False).returncode
            if ask(path, "GET", "vmm.ping") != 200:
                print("the VMM does not answer any more")
                return 1
            return code
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
