"""Fixtures: a core, stubs that speak to it, and the proof that nothing is left after each test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from vmsession.v1 import core_pb2, dataspace_pb2, vm_session_pb2

from tests.integration.running_core import RunningCore, Stubs, cancel
from tests.integration.waiting import eventually


@pytest.fixture
def core() -> Iterator[RunningCore]:
    """A core of its own for a test, which must stop in order with nothing left."""
    running = RunningCore()
    try:
        yield running
        if running.process.poll() is None:
            running.stop()
            for trouble in (
                "defect",
                "reclaiming failed",
                "Fatal error",
                "Traceback",
                "never retrieved",
            ):
                assert trouble not in running.log(), running.log()
    finally:
        running.close()


@pytest.fixture
def stubs(core: RunningCore) -> Iterator[Stubs]:
    """Stubs on that core, with a lease. When the test is over, everything of it must be gone."""
    client = Stubs(core.socket)
    beats = client.core.KeepAlive(core_pb2.KeepAliveRequest())
    try:
        next(iter(beats))
        yield client
        if core.process.poll() is None:
            core.must_agree()
            leave_nothing(client)
    finally:
        cancel(beats)
        client.close()


def leave_nothing(stubs: Stubs) -> None:
    """End all sessions and dataspaces of this client; then core must hold nothing."""
    for session in stubs.vm.ListSessions(vm_session_pb2.ListSessionsRequest()).sessions:
        if session.client.pid == os.getpid():
            stubs.vm.DeleteSession(vm_session_pb2.DeleteSessionRequest(name=session.name))
    for dataspace in stubs.dataspaces.ListDataspaces(
        dataspace_pb2.ListDataspacesRequest()
    ).dataspaces:
        stubs.dataspaces.FreeDataspace(dataspace_pb2.FreeDataspaceRequest(name=dataspace.name))
    eventually(lambda: _left(stubs) == NOTHING, lambda: f"left: {_left(stubs)}")


NOTHING = {"live": 0, "live_bytes": 0, "sessions": 0, "engine_processes": 0, "extra_fds": 0}


def _left(stubs: Stubs) -> dict[str, int]:
    totals = stubs.totals()
    return {name: getattr(totals, name) for name in NOTHING}
