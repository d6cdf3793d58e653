"""Virtual machines outlive core: a guest counts, and a VMM serves its exits and makes control calls,
while core is restarted and killed again and again. Nothing is lost, nothing happens twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from itertools import cycle, islice
from pathlib import Path

import pytest

from tests.integration.engines import on_every_engine
from tests.integration.running_core import RunningCore
from tests.integration.test_adoption import kept

__all__ = ["kept"]

ROOT = Path(__file__).parents[2]
SHORT = 4
RESTARTS = int(os.environ.get("VMSESSION_RESTARTS", "100"))


def run(core: RunningCore, engine: str, transport: str, restarts: int) -> dict[str, object]:
    """A VMM through so many restarts; what it says in the end."""
    command = [sys.executable, "-m", "tests.integration.restarts_vmm", str(core.socket)]
    vmm = subprocess.Popen(
        [*command, engine, transport],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert vmm.stdout
        session = json.loads(vmm.stdout.readline())
        for how in islice(cycle((signal.SIGTERM, signal.SIGKILL)), restarts):
            core.restart(how)
            assert vmm.stdin
            vmm.stdin.write("go on\n")
            vmm.stdin.flush()
            assert vmm.stdout.readline() == "made\n", core.log()
        told, _ = vmm.communicate(timeout=40)
        said: dict[str, object] = json.loads(told)
    finally:
        vmm.kill()
        vmm.communicate()
    assert said.pop("session") == session
    assert (vmm.returncode, said["wrong"]) == (0, ""), core.log()
    return said


def must_add_up(said: dict[str, object], core: RunningCore) -> None:
    """Each exit was served once, and core has nothing left."""
    assert said["exits"] == said["counted"]
    assert said["calls"]
    core.must_agree()


@on_every_engine
@pytest.mark.parametrize("transport", ["page", "stream"])
def test_a_guest_counts_through_restarts_of_core(
    kept: RunningCore, engine: str, transport: str
) -> None:
    must_add_up(run(kept, engine, transport, SHORT), kept)


@pytest.mark.soak
@on_every_engine
@pytest.mark.parametrize("transport", ["page", "stream"])
def test_a_hundred_restarts(kept: RunningCore, engine: str, transport: str) -> None:
    said = run(kept, engine, transport, RESTARTS)
    print(f"\n{engine} {transport}: {RESTARTS} restarts, {said}")
    must_add_up(said, kept)
