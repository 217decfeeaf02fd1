import contextlib
import errno
import os
import subprocess
import sys
import tempfile
import unittest

from labkit.cache import Cache, default_root, remove
from labkit.errors import LabError


def make_one(text):
    def make(directory):
        with open(directory + "/one", "w") as f:
            f.write(text)
    return make


def die_half_way(directory):
    make_one("half")(directory)
    raise RuntimeError("killed")


class CacheTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.cache = Cache(scratch.name)

    def steps(self):
        return sorted(os.listdir(self.cache.path("steps")))

    def read(self, *parts):
        with open(self.cache.path(*parts)) as f:
            return f.read()

    def test_a_built_artefact_is_there_under_its_stamp_only(self):
        self.cache.build("root", "1", make_one("x"))
        self.assertTrue(self.cache.has("root", "1"))
        self.assertFalse(self.cache.has("root", "2"))
        self.assertEqual(self.steps(), ["root-1"])

    def test_a_failed_build_leaves_nothing(self):
        with self.assertRaises(RuntimeError):
            self.cache.build("root", "1", die_half_way)
        self.assertEqual(self.steps(), [])

    def test_a_failed_rebuild_leaves_the_old_artefact(self):
        self.cache.build("root", "1", make_one("old"))
        with self.assertRaises(RuntimeError):
            self.cache.build("root", "1", die_half_way)
        self.assertEqual(self.read("steps", "root-1", "one"), "old")
        self.cache.build("root", "1", make_one("new"))
        self.assertEqual(self.read("steps", "root-1", "one"), "new")
        self.assertEqual(self.steps(), ["root-1"])

    def test_a_killed_build_is_not_taken_for_a_good_one_and_goes_at_the_next_prepare(self):
        script = ("import os, sys; from labkit.cache import Cache\n"
                  "def make(d):\n"
                  "    open(d + '/half', 'w').close(); os.kill(os.getpid(), 9)\n"
                  "c = Cache(sys.argv[1])\n"
                  "with c.preparing(): c.build('root', '1', make)\n")
        killed = subprocess.run([sys.executable, "-c", script, self.cache.root],
                                env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)))
        self.assertEqual(killed.returncode, -9)
        self.assertEqual(len(self.steps()), 1)
        self.assertFalse(self.cache.has("root", "1"))
        with self.cache.preparing():
            self.assertEqual(self.steps(), [])

    def test_a_full_disk_is_named(self):
        def make(_directory):
            raise OSError(errno.ENOSPC, "No space left on device")
        with self.assertRaisesRegex(LabError, "root: no space left in"):
            self.cache.build("root", "1", make)
        self.assertEqual(self.steps(), [])

    def test_a_second_prepare_waits_for_the_first(self):
        script = ("import sys; from labkit.cache import Cache\n"
                  "with Cache(sys.argv[1]).preparing(): print('in', flush=True)\n")
        with self.cache.preparing():
            second = subprocess.Popen([sys.executable, "-c", script, self.cache.root], text=True,
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                      env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)))
            self.assertIn("waiting", second.stderr.readline())
            self.assertIsNone(second.poll())
        self.assertEqual(second.communicate()[0], "in\n")
        self.assertEqual(second.returncode, 0)

    def test_sweeping_spares_what_is_live_and_waits_for_no_user(self):
        for stamp in ("1", "2"):
            self.cache.build("root", stamp, make_one(stamp))
        with self.cache.in_use():
            self.assertEqual(self.cache.sweep({"root-2"}), [])
        self.assertEqual(self.cache.sweep({"root-2"}), ["root-1"])
        self.assertEqual(self.steps(), ["root-2"])

    def test_only_the_newest_saved_machines_are_kept(self):
        for i in range(6):
            path = self.cache.path("saved", str(i))
            open(path, "w").close()
            os.utime(path, (1000 + i, 1000 + i))
        old_part, new_part = self.cache.path("saved", "a.part"), self.cache.path("saved", "b.part")
        for path in (old_part, new_part):
            open(path, "w").close()
        os.utime(old_part, (1, 1))
        self.cache.sweep_saved(2)
        self.assertEqual(sorted(os.listdir(self.cache.path("saved"))), ["4", "5", "b.part"])

    def test_too_little_space_is_refused_before_the_work(self):
        with self.assertRaisesRegex(LabError, "MiB free"):
            self.cache.require_space(1 << 40)

    def test_remove_gets_read_only_directories(self):
        top = self.cache.path("tree")
        os.makedirs(top + "/inner")
        open(top + "/inner/file", "w").close()
        os.chmod(top + "/inner", 0o500)
        remove(top)
        self.assertFalse(os.path.exists(top))


class DefaultRootTest(unittest.TestCase):
    @contextlib.contextmanager
    def environment(self, **values):
        saved = dict(os.environ)
        for name in ("CUMULET_LAB_CACHE", "XDG_CACHE_HOME"):
            os.environ.pop(name, None)
        os.environ.update(values)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(saved)

    def test_it_is_in_the_users_cache_directory(self):
        with self.environment(HOME="/home/x"):
            self.assertEqual(default_root(), "/home/x/.cache/cumulet/lab")
        with self.environment(HOME="/home/x", XDG_CACHE_HOME="/var/x"):
            self.assertEqual(default_root(), "/var/x/cumulet/lab")
        with self.environment(CUMULET_LAB_CACHE="/srv/lab", XDG_CACHE_HOME="/var/x"):
            self.assertEqual(default_root(), "/srv/lab")
