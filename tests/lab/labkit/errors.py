"""The one exception of the lab that is meant for its user: one line that names the thing and the cause."""

import sys


class LabError(Exception):
    """Something the user can act on; `lab.py` prints it without a traceback and exits with 125."""


def log(*words):
    print("lab:", *words, file=sys.stderr, flush=True)
