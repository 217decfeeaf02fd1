import io
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import lab
from labkit import machine, session
from labkit.errors import LabError
from labkit.machine import Machine, Share
from labkit.qmp import Qmp

ARTEFACTS = {n: f"/c/{n}" for n in ("l1root", "l1kernel", "l1initrd", "qemu")}


class ControlTest(unittest.TestCase):
    def setUp(self):
        self.ours, self.theirs = socket.socketpair()
        self.addCleanup(self.ours.close)
        self.addCleanup(self.theirs.close)

    def test_lines_arrive_in_any_pieces(self):
        lines = session.Lines(self.ours, time.monotonic() + 10)
        for piece in (b"REA", b"DY\nSTARTED\nEX", b"IT 3\n"):
            self.theirs.sendall(piece)
        self.assertEqual(lines.wait("READY"), "READY")
        self.assertEqual(lines.wait("EXIT"), "EXIT 3")

    def test_a_closed_channel_and_a_passed_deadline_are_told_apart(self):
        with self.assertRaises(TimeoutError):
            session.Lines(self.ours, time.monotonic()).wait("READY")
        self.theirs.close()
        with self.assertRaises(EOFError):
            session.Lines(self.ours, time.monotonic() + 10).wait("READY")

    def test_output_is_drained_before_the_run_ends(self):
        sink = io.BytesIO()
        pump = session.Pump(self.ours, sink)
        self.theirs.sendall(b"one\r\ntwo\n")
        pump.drain()
        self.assertEqual(sink.getvalue(), b"one\ntwo\n")

    def test_saving_waits_until_qemu_says_completed(self):
        def serve():
            f = self.theirs.makefile("rw")
            statuses = iter([{"status": "setup"}, {"status": "active"}, {"status": "completed"}])
            f.write('{"QMP": {}}\n')
            f.flush()
            for line in f:
                asked.append(line)
                answer = session.json.dumps(next(statuses)) if "query-migrate" in line else "{}"
                f.write('{"event": "STOP"}\n{"return": ' + answer + "}\n")
                f.flush()
                if '"cont"' in line:
                    return
        asked = []
        thread = threading.Thread(target=serve)
        thread.start()
        Qmp(self.ours).save("/x/saved")
        thread.join(10)
        self.assertIn("exec:cat > '/x/saved'", asked[2])
        self.assertIn('"cont"', asked[-1])

    def test_an_error_of_qemu_is_passed_on(self):
        self.theirs.sendall(b'{"QMP": {}}\n{"error": {"desc": "no such thing"}}\n')
        with self.assertRaisesRegex(LabError, "no such thing"):
            Qmp(self.ours)


class ProcessTest(unittest.TestCase):
    def test_qemu_dies_with_the_lab_even_when_the_lab_is_killed(self):
        script = ("import sys, time; from labkit import session\n"
                  "print(session.start(['sleep', '1000']).pid, flush=True); time.sleep(1000)\n")
        parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True,
                                  env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)))
        child = int(parent.stdout.readline())
        # setpriv has to have replaced itself by `sleep`: only then is the death signal set.
        for _ in range(500):
            with open(f"/proc/{child}/comm") as f:
                if f.read() == "sleep\n":
                    break
            time.sleep(0.01)
        parent.kill()
        parent.wait()
        parent.stdout.close()
        for _ in range(500):
            try:
                with open(f"/proc/{child}/stat") as f:
                    if f.read().rsplit(")", 1)[1].split()[0] == "Z":
                        return
            except FileNotFoundError:
                return
            time.sleep(0.01)
        self.fail(f"process {child} outlived its parent")

    def test_a_qemu_that_ends_at_once_is_reported(self):
        process = session.start(["false"])
        self.addCleanup(process.wait)
        with self.assertRaisesRegex(EOFError, "status 1"):
            session.connect("/nonexistent/sock", process)

    def test_the_job_says_what_to_mount_and_what_to_run(self):
        with tempfile.TemporaryDirectory() as scratch:
            job = session.Job(command=["echo", "a b", "$HOME"], environment={"X": "it's"},
                              shares=[Share("/art", "/c", readonly=True), Share("/vmm", "/t")],
                              art={"nano.cpio": "/c/steps/nano-1/nano.cpio"})
            session.write_job(scratch, job, "/c")
            self.assertEqual(os.readlink(scratch + "/art/nano.cpio"), "/lab/cache/steps/nano-1/nano.cpio")
            with open(scratch + "/mounts") as f:
                self.assertEqual(f.read(), "share0 /art ro\nshare1 /vmm rw\n")
            printed = subprocess.run(["bash", "-c", f". {shlex.quote(scratch)}/cmd; echo $X"],
                                     stdout=subprocess.PIPE, text=True).stdout
            self.assertEqual(printed, "a b $HOME\nit's\n")

    def test_a_share_that_is_no_directory_is_refused(self):
        job = session.Job(command=["true"], shares=[Share("/x", "/nonexistent")])
        with self.assertRaisesRegex(LabError, "share /x: /nonexistent is not a directory"):
            session.run(None, ARTEFACTS, Machine(), job)


class MachineTest(unittest.TestCase):
    def arguments(self, run_dir="/tmp/r", shares=(), **options):
        return machine.arguments(Machine(**options), ARTEFACTS, run_dir, list(shares))

    def test_a_saved_machine_fits_whatever_is_shared_and_wherever_it_runs(self):
        one = machine.shape(self.arguments("/tmp/r1", [Share("/art", "/c")]), "/tmp/r1")
        other = machine.shape(self.arguments("/tmp/r2"), "/tmp/r2")
        self.assertEqual(one, other)

    def test_another_machine_does_not_fit(self):
        base = machine.shape(self.arguments(), "/tmp/r")
        for options in ({"smp": 1}, {"memory": "8G"}, {"iommu": "intel"}, {"single": True}, {"icount": 2}, {"disks": ("/d",)}):
            self.assertNotEqual(machine.shape(self.arguments(**options), "/tmp/r"), base, options)

    def test_read_only_shares_are_exported_read_only(self):
        args = self.arguments(shares=[Share("/art", "/c", readonly=True)])
        self.assertTrue(any(a.startswith("local,id=share0,path=/c,") and a.endswith("readonly=on") for a in args))


class CommandLineTest(unittest.TestCase):
    def test_run_may_be_left_out(self):
        self.assertEqual(lab.with_run(["--", "true"]), ["run", "--", "true"])
        self.assertEqual(lab.with_run(["--cache", "/c", "--snapshot", "--", "true"]),
                         ["--cache", "/c", "run", "--snapshot", "--", "true"])
        self.assertEqual(lab.with_run(["--cache=/c", "prepare"]), ["--cache=/c", "prepare"])
        self.assertEqual(lab.with_run(["run", "true"]), ["run", "true"])
        self.assertEqual(lab.with_run(["--help"]), ["--help"])

    def test_the_names_that_scripts_know_point_at_our_binaries(self):
        with tempfile.TemporaryDirectory() as scratch:
            open(scratch + "/cumulet", "w").close()
            lab.add_aliases(scratch)
            lab.add_aliases(scratch)
            self.assertEqual(os.readlink(scratch + "/cloud-hypervisor"), "cumulet")
            self.assertFalse(os.path.lexists(scratch + "/ch-remote"))

    def test_values_without_a_name_are_refused(self):
        with self.assertRaisesRegex(LabError, "expected NAME=VALUE"):
            lab.pair("/vmm", "--share")
