"""Verification as its callers see it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from vmsession.v1 import audit_pb2, dataspace_pb2

from core_service.verify.chain import AT_ONCE
from tests.integration.engines import on_every_engine
from tests.integration.running_core import OTHER_USER, RunningCore, Stubs
from tests.integration.victim import Victim

ROOT = Path(__file__).parents[2]

ASK = """
import sys
from pathlib import Path
import grpc
from vmsession.v1 import audit_pb2, dataspace_pb2
from tests.integration.running_core import Stubs, become_other_user
become_other_user(int(sys.argv[2]))
try:
    Stubs(Path(sys.argv[1])).audit.Verify(audit_pb2.VerifyRequest())
except grpc.RpcError as error:
    print(error.code().name)
"""


@on_every_engine
def test_a_machine_that_runs_is_verified(core: RunningCore, stubs: Stubs, engine: str) -> None:
    with Victim(core, engine):
        found = stubs.verify()
        assert list(found.discrepancies) == []
        assert found.events_checked == found.revision
        assert found.mappings_checked == found.descriptors_checked == 1
        assert found.accounts_checked == 6  # a session's, two clients', two users', core's
        again = stubs.audit.Verify(audit_pb2.VerifyRequest())
        assert again.events_checked == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_a_user_may_not_verify(core: RunningCore) -> None:
    completed = subprocess.run(
        [sys.executable, "-c", ASK, core.socket, str(OTHER_USER)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert completed.stdout == "PERMISSION_DENIED\n"


def test_a_long_log_is_checked_beside_a_core_that_serves(core: RunningCore, stubs: Stubs) -> None:
    calls, made = stubs.dataspaces, AT_ONCE // 2 + 1
    for _ in range(made):
        created = calls.CreateDataspace(dataspace_pb2.CreateDataspaceRequest(size=4096))
        calls.FreeDataspace(dataspace_pb2.FreeDataspaceRequest(name=created.dataspace.name))
    verified = stubs.audit.Verify(audit_pb2.VerifyRequest(whole_chain=True))
    assert list(verified.discrepancies) == []
    assert verified.events_checked > AT_ONCE
