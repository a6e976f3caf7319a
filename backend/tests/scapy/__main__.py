"""Sends frames made by scapy through a real daemon and checks with scapy what comes out.

    python3 backend/tests/scapy DAEMON [NAME...]

runs the tests whose names contain one of the words, or all. The last line is `test run: N passed, M failed in T s`. Needs the right to
make network namespaces and TAP interfaces: root's, or those of user namespaces.
"""

import importlib
import os
import signal
import sys
import time
import traceback

MODULES = (
    "test_tunnel",
    "test_l2",
    "test_tables",
    "test_isolation",
    "test_rules",
    "test_routing",
    "test_translation",
    "test_quality",
    "test_services",
)
#: A test that takes longer hangs.
TEST_S = 60


class TooLong(AssertionError):
    """A test hangs."""


def _too_long(*_):
    raise TooLong(f"took more than {TEST_S} s")


def _stop(*_):
    # So that what is being run is taken down.
    sys.exit(1)


def tests(words):
    for name in MODULES:
        module = importlib.import_module(name)
        for case, function in vars(module).items():
            title = f"{name[5:]}.{case[5:]}"
            if case.startswith("test_") and callable(function) and (not words or any(word in title for word in words)):
                yield title, function


def main(arguments):
    if not arguments or arguments[0].startswith("-"):
        print(__doc__.strip())
        return 2
    binary, words = os.path.realpath(arguments[0]), arguments[1:]
    # Before any test module, so that scapy sees the namespace's interfaces alone.
    rig = importlib.import_module("rig")
    rig.enter_namespace()
    signal.signal(signal.SIGALRM, _too_long)
    signal.signal(signal.SIGTERM, _stop)
    start, passed, failed = time.monotonic(), 0, []
    for title, function in tests(words):
        begun = time.monotonic()
        signal.alarm(TEST_S)
        try:
            function(binary)
            signal.alarm(0)
            passed += 1
            print(f"ok     {title} ({time.monotonic() - begun:.1f} s)", flush=True)
        except Exception:  # whatever a test fails by
            signal.alarm(0)
            failed.append(title)
            print(f"FAILED {title}\n{traceback.format_exc()}", flush=True)
    for title in failed:
        print(f"failed: {title}")
    print(f"test run: {passed} passed, {len(failed)} failed in {time.monotonic() - start:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
