"""Core's log in the journal: every line tells what it is about."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from vmsession.v1 import core_pb2, vm_session_pb2

from tests.integration.running_core import RunningCore, Stubs, cancel
from tests.journal_socket import JournalSocket


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JournalSocket]:
    """The journal of the cores that are started."""
    listening = JournalSocket(tmp_path / "journal")
    monkeypatch.setenv("TEST_JOURNAL", str(tmp_path / "journal"))
    yield listening
    listening.close()


@pytest.fixture
def core(journal: JournalSocket) -> Iterator[RunningCore]:
    """A core that logs there."""
    running = RunningCore(command=(sys.executable, "-m", "tests.integration.journalled"))
    yield running
    running.close()


def test_every_line_tells_client_and_session(core: RunningCore, journal: JournalSocket) -> None:
    serving = journal.until("serving")
    assert serving["SYSLOG_IDENTIFIER"] == "vmcore"
    assert serving["PRIORITY"] == "6"
    stubs = Stubs(core.socket)
    beats = stubs.core.KeepAlive(core_pb2.KeepAliveRequest())
    next(iter(beats))
    connected = journal.until("client connected")
    uid, client = str(os.getuid()), connected["VMSESSION_CLIENT"]
    assert connected["VMSESSION_UID"] == uid
    assert connected["VMSESSION_PID"] == str(os.getpid())

    request = vm_session_pb2.CreateSessionRequest(engine="soft")
    session = stubs.vm.CreateSession(request).session
    about = {
        "VMSESSION_CLIENT": client,
        "VMSESSION_UID": uid,
        "VMSESSION_SESSION": session.name,
    }
    opened = journal.until("session opened")
    assert about.items() <= opened.items()
    assert opened["VMSESSION_ENGINE_PID"] == str(session.engine_pid)
    transport = vm_session_pb2.TRANSPORT_STREAM
    stubs.vm.CreateVcpu(
        vm_session_pb2.CreateVcpuRequest(session=session.name, index=3, transport=transport)
    )
    made = journal.until("vCPU created")
    assert {**about, "VMSESSION_VCPU": "3"}.items() <= made.items()

    os.kill(session.engine_pid, signal.SIGKILL)
    died = journal.until("engine ended")
    assert about.items() <= died.items()
    assert died["PRIORITY"] == "4"
    assert about.items() <= journal.until("session closed").items()
    cancel(beats)
    stubs.close()
    core.process.terminate()
    assert journal.until("client ended")["VMSESSION_CLIENT"] == client
    journal.until("stopped")
    assert core.log() == ""


def test_a_session_that_is_not_the_callers_is_not_in_his_lines(
    core: RunningCore, journal: JournalSocket
) -> None:
    stubs = Stubs(core.socket)
    for name in (
        "sessions/another",
        "sessions/\nVMSESSION_UID=0",
        "sessions/x/vcpus/" + "9" * 5000,
    ):
        with pytest.raises(grpc.RpcError):
            stubs.vm.DeleteSession(vm_session_pb2.DeleteSessionRequest(name=name))
    opened = stubs.vm.CreateSession(vm_session_pb2.CreateSessionRequest(engine="soft"))
    assert journal.until("session opened")["VMSESSION_SESSION"] == opened.session.name
    stubs.close()


def test_who_drains_is_told(core: RunningCore, journal: JournalSocket) -> None:
    stubs = Stubs(core.socket)
    (answer,) = stubs.core.Drain(core_pb2.DrainRequest())
    assert answer.over
    client = journal.until("client connected")["VMSESSION_CLIENT"]
    draining = journal.until("draining")
    assert draining["VMSESSION_CLIENT"] == client
    assert draining["VMSESSION_UID"] == str(os.getuid())
    stubs.close()
    assert core.process.wait(20) == 0
