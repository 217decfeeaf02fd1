import json
import os
import tempfile
import unittest

from labkit import own_tests
from labkit.errors import LabError


def artifact(name, executable, test=True):
    return json.dumps({"reason": "compiler-artifact", "target": {"name": name}, "profile": {"test": test},
                       "executable": executable})


class OwnTestsTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.dir = scratch.name
        self.addCleanup(os.environ.update, {k: v for k, v in os.environ.items() if k == "CARGO"})
        self.addCleanup(os.environ.pop, "CARGO", None)

    def cargo(self, script):
        path = os.path.join(self.dir, "cargo")
        with open(path, "w") as f:
            f.write("#!/bin/sh\n" + script)
        os.chmod(path, 0o755)
        os.environ["CARGO"] = path

    def test_only_test_programs_count(self):
        said = "\n".join([artifact("a", "/t/a-1"), artifact("b", "/t/b-1", test=False), artifact("c", None), "warning: x"])
        self.assertEqual(own_tests.executables(said), {"a": "/t/a-1"})

    def test_the_directory_holds_what_was_built_and_nothing_else(self):
        into = os.path.join(self.dir, "into")
        os.makedirs(into)
        open(os.path.join(into, "old"), "w").close()
        self.cargo(f"echo '{artifact('a', os.path.join(self.dir, 'cargo'))}'")
        own_tests.build(self.dir, ["p"], into)
        self.assertEqual(os.listdir(into), ["a"])
        self.assertTrue(os.access(os.path.join(into, "a"), os.X_OK))

    def test_a_build_that_fails_or_brings_nothing_is_an_error(self):
        for script, said in (("exit 101", "cannot be built"), ("true", "no tests")):
            self.cargo(script)
            with self.assertRaisesRegex(LabError, said):
                own_tests.build(self.dir, ["p"], os.path.join(self.dir, "into"))
        os.environ["CARGO"] = os.path.join(self.dir, "missing")
        with self.assertRaisesRegex(LabError, "cannot be started"):
            own_tests.build(self.dir, ["p"], os.path.join(self.dir, "into"))
