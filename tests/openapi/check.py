"""Holds the OpenAPI document against a running VMM: `check.py VMM KERNEL SCHEMATHESIS STATE`.

STATE is none, created, running or paused: what the VM is in whenever schemathesis sends a request, be it one that the
document allows or one that it does not. A request that leaves the state is tried like all others; before the next one,
the state is made again, if need be with a new VMM (hooks.py asks for it). No answer may have a status, a content type, a
shape or a header of ours that the document does not name. Ends with 0 if all is well, each request that leaves the state
has left it at least once, and the VMM still answers.
"""

import http.client
import http.server
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time

# What the document calls an error of the server is one that clients are told of: it is named, and so allowed.
CHECKS = [
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "own_headers_conformance",
]
STATES = ["none", "created", "running", "paused"]
# What leaves a state, and must have done so in the end.
LEAVING = {
    "none": ["vmm.shutdown", "vm.create"],
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
    answer = connection.getresponse()
    return answer.status, answer.read()


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


class Subject:
    """A VMM that can be brought back to its state, however it was left."""

    def __init__(self, vmm, kernel, state, folder):
        self.vmm, self.state, self.folder = vmm, state, folder
        self.path = folder / "api"
        self.process = None
        self.known = None
        self.remade = 0
        image = folder / "image"
        image.write_bytes(bytes(1 << 20))
        self.config = {
            "payload": {"kernel": kernel, "cmdline": ""},
            "memory": {"size": 64 << 20},
            "console": {"mode": "Off"},
            "disks": [{"path": str(image), "id": "disk"}],
        }

    def start(self):
        # In the folder: what a request names may be made there.
        self.process = subprocess.Popen(
            [self.vmm, "--api-socket", self.path, "--no-shutdown", "--log-file", self.folder / "log"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd=self.folder,
        )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                return ask(self.path, "GET", "vmm.ping")
            except OSError:
                time.sleep(0.01)
        raise RuntimeError("the VMM does not serve its API")

    def end(self):
        if self.process:
            self.process.kill()
            self.process.wait()

    def seen(self):
        """What the VM is, or None if there is no VMM any more."""
        try:
            status, body = ask(self.path, "GET", "vm.info")
        except (OSError, http.client.HTTPException):
            return None
        info = json.loads(body) if status == 200 else {}
        return status, info.get("state"), info.get("config")

    def establish(self):
        seen = self.seen()
        if seen is not None and seen == self.known:
            return
        self.remade += 1
        if seen is None:
            self.end()
            self.start()
        steps = [("vm.delete", None), ("vm.create", json.dumps(self.config)), ("vm.boot", None), ("vm.pause", None)]
        for endpoint, body in steps[: STATES.index(self.state) + 1]:
            status, said = ask(self.path, "PUT", endpoint, body)
            if status != 204:
                raise RuntimeError(f"{endpoint} on the way to the state {self.state}: {status} {said}")
        seen = self.seen()
        # The first time it is what it shall be; a booted VM has names for its devices then.
        if self.known is None:
            self.known = seen
        elif seen != self.known:
            raise RuntimeError(f"the VM is not as before: {seen}, not {self.known}")


def serve_state(subject):
    """A port where hooks.py has the state made again: whatever is asked for there."""

    class Control(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            try:
                subject.establish()
                status, text = 204, b""
            except Exception as error:
                status, text = 500, str(error).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Control)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def never_left(state, answers):
    """Requests that should have left the state, but never did."""
    done = {tuple(line.split()) for line in answers.read_text().splitlines()}
    return [name for name in LEAVING[state] if not {(name, "200"), (name, "204")} & done]


def main(vmm, kernel, schemathesis, state):
    vmm, kernel = (str(pathlib.Path(program).resolve()) for program in (vmm, kernel))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        subject = Subject(vmm, kernel, state, folder)
        answers = folder / "answers"
        answers.touch()
        try:
            subject.establish()
            base = f"http://127.0.0.1:{serve_on_loopback(subject.path)}/api/v1"
            environment = os.environ | {
                "SCHEMATHESIS_HOOKS": "hooks",
                "PYTHONPATH": str(pathlib.Path(__file__).resolve().parent),
                "PYTHONDONTWRITEBYTECODE": "1",
                "CUMULET_STATE_PORT": str(serve_state(subject)),
                "CUMULET_ANSWERS": str(answers),
            }
            arguments = ["run", base + "/openapi.json", "--url", base, "--checks", ",".join(CHECKS), "--seed", "1"]
            arguments += ["--phases", "coverage,fuzzing", "-n", "20", "--continue-on-failure", "--no-color"]
            code = subprocess.run([schemathesis, *arguments], cwd=folder, env=environment, check=False).returncode
            subject.establish()
            print(f"the state was made {subject.remade} times")
            if missing := never_left(state, answers):
                print(f"answered well not once: {', '.join(missing)}")
                return 1
            return code
        finally:
            subject.end()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
