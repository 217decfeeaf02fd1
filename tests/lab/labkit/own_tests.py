"""The project's own test programs, built here and seen in L1 at /tests: for what needs a KVM that is complete."""

import json
import os
import shutil
import subprocess

from .errors import LabError


def build(project, packages, into):
    """Builds the test programs of packages, and puts them into the directory `into`, each under the name of its target.

    Nothing else is in the directory afterwards.
    """
    cargo = os.environ.get("CARGO", "cargo")
    arguments = [cargo, "test", "--no-run", "--quiet", "--message-format", "json-render-diagnostics"]
    for package in packages:
        arguments += ["--package", package]
    try:
        built = subprocess.run(arguments, cwd=project, stdout=subprocess.PIPE, text=True)
    except OSError as e:
        raise LabError(f"{cargo} cannot be started to build tests: {e.strerror}") from e
    if built.returncode:
        raise LabError(f"the tests of {' '.join(packages)} cannot be built")
    programs = executables(built.stdout)
    if not programs:
        raise LabError(f"{' '.join(packages)}: no tests")
    shutil.rmtree(into, ignore_errors=True)
    os.makedirs(into)
    for name, path in programs.items():
        shutil.copy2(path, os.path.join(into, name))


def executables(messages):
    """{name of the target: path of its test program} of what Cargo says, a line of JSON each."""
    found = {}
    for line in messages.splitlines():
        try:
            message = json.loads(line)
        except ValueError:
            continue
        if message.get("reason") == "compiler-artifact" and message.get("executable") and message["profile"]["test"]:
            found[message["target"]["name"]] = message["executable"]
    return found
