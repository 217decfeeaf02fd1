"""What check.py adds to schemathesis: the VM is in its state before each request, and headers are looked at too."""

import os
import urllib.request

import schemathesis

STATE = f"http://127.0.0.1:{os.environ['CUMULET_STATE_PORT']}/"
OWN = "x-cumulet-"


@schemathesis.hook
def before_call(context, case, kwargs):
    urllib.request.urlopen(STATE, timeout=60).close()


@schemathesis.hook
def after_call(context, case, response):
    with open(os.environ["CUMULET_ANSWERS"], "a", encoding="utf-8") as answers:
        print(case.operation.path.lstrip("/"), response.status_code, file=answers)


@schemathesis.check
def own_headers_conformance(ctx, response, case):
    """A header of ours that the document does not name for this status."""
    definition = case.operation.responses.find_by_status_code(response.status_code)
    named = {name.lower() for name, _ in definition.headers.items()} if definition else set()
    unnamed = [name for name in response.headers if name.lower().startswith(OWN) and name.lower() not in named]
    if unnamed:
        raise AssertionError(f"{response.status_code} has headers that are not documented: {', '.join(unnamed)}")
