"""`vmm doctor --installation` against a real core."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vmsession.v1 import vm_session_pb2

from tests.integration.commands import vmm
from tests.integration.running_core import RunningCore, Stubs


def examined(socket: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    asked = vmm("doctor", "--installation", "--json", socket=socket)
    assert asked.stderr == ""
    return asked.returncode, {row["what"]: row for row in json.loads(asked.stdout)}


def test_a_core_is_found_and_examined(core: RunningCore, stubs: Stubs) -> None:
    stubs.vm.CreateSession(vm_session_pb2.CreateSessionRequest(engine="soft"))
    (engine,) = core.engine_pids()
    _, found = examined(core.socket)
    assert found["process"]["detail"].startswith(f"{core.process.pid}, of ")
    assert found[str(core.socket)]["works"]
    assert found["serves"]["works"]
    assert found["keeper"]["works"] is None
    assert found[str(core.audit)]["where"] == "audit log"
    assert found[f"vmsession-soft {engine}"]["where"] == "engine"


def test_no_core_is_told_with_what_to_do(tmp_path: Path) -> None:
    status, found = examined(tmp_path / "core.sock")
    assert status == 1
    assert found[str(tmp_path / "core.sock")]["works"] is False
    assert "systemctl start vmsession.socket" in found[str(tmp_path / "core.sock")]["detail"]
    assert found["serves"]["works"] is False
    assert "process" not in found


def test_a_core_that_was_killed_is_told(core: RunningCore) -> None:
    core.kill()
    status, found = examined(core.socket)
    assert status == 1
    assert "nobody listens" in found["serves"]["detail"]
    assert "process" not in found
