import hashlib
import os
import tempfile
import unittest

from labkit import steps
from labkit.cache import Cache
from labkit.debian import Debian, choose_mirrors, parse_uris
from labkit.errors import LabError

LISTED = """\
http://mirror.example/debian-security/ trixie-security
http://mirror.example/debian/ trixie-updates
http://mirror.example/debian/ trixie
http://other.example/tools/ stable
"""


class MirrorsTest(unittest.TestCase):
    def test_the_archive_and_the_security_archive_are_told_apart(self):
        self.assertEqual(choose_mirrors(LISTED),
                         ("http://mirror.example/debian/", "http://mirror.example/debian-security/"))

    def test_a_machine_without_a_debian_archive_has_none(self):
        self.assertEqual(choose_mirrors("http://other.example/tools/ stable\n"), (None, None))


class DownloadsTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.debian = Debian(Cache(scratch.name))
        os.makedirs(self.debian.archives)
        self.path = os.path.join(self.debian.archives, "a_1_amd64.deb")

    def whole(self, content, size=4):
        with open(self.path, "wb") as f:
            f.write(content)
        return self.debian._whole(("a_1_amd64.deb", size, hashlib.sha256(b"good").hexdigest()))

    def test_the_list_of_files_is_read_with_sizes_and_digests(self):
        digest = "ab" * 32
        text = f"'http://m/a%3a1.deb' a_1%3a1_amd64.deb 1234 SHA256:{digest}\nnoise\n'http://m/b.deb' b_2_all.deb 7\n"
        self.assertEqual(parse_uris(text), [("a_1%3a1_amd64.deb", 1234, digest), ("b_2_all.deb", 7, None)])

    def test_a_whole_download_counts(self):
        self.assertTrue(self.whole(b"good"))
        self.assertTrue(os.path.exists(self.path))

    def test_a_partial_or_altered_one_is_removed(self):
        for content in (b"goo", b"evil"):
            self.assertFalse(self.whole(content))
            self.assertFalse(os.path.exists(self.path))


class StepsTest(unittest.TestCase):
    def test_what_a_step_needs_comes_before_it(self):
        order = steps.in_order(["nano", "l1root"])
        self.assertLess(order.index("guestkernel"), order.index("nano"))
        self.assertLess(order.index("l1kernel"), order.index("l1root"))
        self.assertEqual(len(order), len(set(order)))

    def test_an_unknown_step_is_named(self):
        with self.assertRaisesRegex(LabError, "no step 'nono'"):
            steps.in_order(["nono"])

    def test_stamps_differ_and_change_with_what_is_built_upon(self):
        self.assertEqual(len({steps.stamp(n) for n in steps.STEPS}), len(steps.STEPS))
        before = {n: steps.stamp(n) for n in steps.STEPS}
        changed = dict(steps.STEPS)
        changed["guestkernel"] = steps.dataclasses.replace(changed["guestkernel"], suite="another")
        original, steps.STEPS = steps.STEPS, changed
        try:
            after = {n: steps.stamp(n) for n in steps.STEPS}
        finally:
            steps.STEPS = original
        self.assertEqual({n for n in before if before[n] != after[n]}, {"guestkernel", "nano", "full"})

    def test_all_sources_of_the_stamps_exist(self):
        for step in steps.STEPS.values():
            for source in step.sources:
                self.assertTrue(os.path.isfile(os.path.join(steps.HERE, source)), source)

    def test_a_finished_preparation_builds_nothing(self):
        with tempfile.TemporaryDirectory() as scratch:
            cache = Cache(scratch)
            for name in steps.STEPS:
                os.mkdir(cache.artefact(name, steps.stamp(name)))
            artefacts = steps.prepare(cache, ["nano"])
            self.assertEqual(set(artefacts), {"guestkernel", "busybox", "nano"})
            self.assertEqual(steps.named(artefacts)["nano.cpio"], artefacts["nano"] + "/nano.cpio")
            self.assertEqual(steps.where(cache, "nano.cpio"), artefacts["nano"] + "/nano.cpio")
            self.assertEqual(steps.where(cache, "guestkernel"), artefacts["guestkernel"])
            with self.assertRaisesRegex(LabError, "nothing is called 'mano'"):
                steps.where(cache, "mano")
