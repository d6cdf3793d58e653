"""`vmm health`: what probes and scripts ask."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from vmsession.v1 import vm_session_pb2

from tests.integration.commands import BIN, vmm
from tests.integration.running_core import RunningCore, Stubs
from tests.integration.waiting import eventually

SERVICES = ["core", "CoreService", "VmSessionService", "DataspaceService", "AuditService"]


def test_a_core_that_serves_is_healthy(core: RunningCore) -> None:
    asked = vmm("health", socket=core.socket)
    assert (asked.returncode, asked.stderr) == (0, "")
    assert asked.stdout.splitlines() == ["service\tserves", *(f"{name}\tyes" for name in SERVICES)]


def test_a_core_that_drains_is_not(core: RunningCore, stubs: Stubs) -> None:
    """A session keeps it from ending."""
    session = stubs.vm.CreateSession(vm_session_pb2.CreateSessionRequest(engine="soft")).session
    draining = subprocess.Popen([BIN / "vmcore", "drain", "--directory", core.directory])
    try:
        eventually(lambda: vmm("health", socket=core.socket).returncode == 1)
        told = health(core.socket)
        assert told == dict.fromkeys(SERVICES, False)
        stubs.vm.DeleteSession(vm_session_pb2.DeleteSessionRequest(name=session.name))
        assert draining.wait(20) == 0
        assert core.process.wait(20) == 0
    finally:
        draining.kill()
        draining.wait()
    assert vmm("health", socket=core.socket).returncode == 1


def health(socket: Path) -> dict[str, bool]:
    rows = json.loads(vmm("health", "--json", socket=socket).stdout)
    return {row["service"]: row["serves"] for row in rows}
