"""A page that is let go of while it is in use: an error or the answer, never a crash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PREAMBLE = """
import mmap, os, threading
from dataspace import vcpu_page as view
from dataspace._page import Waiter, wait_any

fd = os.memfd_create("page")
os.ftruncate(fd, view.PAGE_BYTES)
shared = mmap.mmap(fd, view.PAGE_BYTES)
words = memoryview(shared).cast("I")
mapping = mmap.mmap(fd, view.PAGE_BYTES)
waiter = Waiter(mapping, spin_ns=0)

class Releasing:
    def __index__(self):
        waiter.release()
        mapping.close()
        return 0

    def __float__(self):
        return float(self.__index__())

def refused(call):
    try:
        call()
    except ValueError as error:
        assert "released" in str(error), error
    else:
        raise AssertionError("not refused")
"""


def run(script: str) -> None:
    """In a process of its own, which may crash."""
    completed = subprocess.run(
        [sys.executable, "-c", PREAMBLE + script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (completed.returncode, completed.stderr) == (0, "")


@pytest.mark.parametrize(
    "call",
    [
        "waiter.wait(Releasing(), 0.0)",
        "waiter.wait(0, Releasing())",
        "waiter.exchange(Releasing())",
        "wait_any((waiter,), (Releasing(),), 0.0)",
    ],
)
def test_released_by_its_own_arguments(call: str) -> None:
    run(f"refused(lambda: {call})")


@pytest.mark.parametrize("call", ["waiter.wait(0, 30)", "wait_any((waiter,), (0,), 30)"])
def test_released_while_somebody_waits(call: str) -> None:
    """The wait has the last hold on the mapping, and still tells what it saw."""
    run(f"""
seen = []
thread = threading.Thread(target=lambda: seen.append({call}))
thread.start()
while not words[(view.VMM_HALF + view.VMM_WAITING_AT) // 4]:
    pass
waiter.release()
del mapping
words[view.EXIT_SEQ_AT // 4] = 1
thread.join(20)
assert seen in ([1], [0]), seen
""")
