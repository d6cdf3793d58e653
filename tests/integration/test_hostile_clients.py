"""Clients that take more than their share: core stays small, and serves the others."""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from vmsession.v1 import core_pb2, dataspace_pb2, vm_session_pb2

from tests.integration.running_core import RunningCore, Stubs, cancel
from tests.integration.waiting import eventually

MIB = 1 << 20


class Valve:
    """A proxy on a client's connection that can stop reading what core sends."""

    def __init__(self, core: RunningCore) -> None:
        self.path = core.directory / "valve.sock"
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(os.fspath(self.path))
        self._listening.listen(1)
        self._core = socket.socket(socket.AF_UNIX)
        self._core.connect(os.fspath(core.socket))
        self._shut = threading.Event()
        self._thread = threading.Thread(target=self._pump, daemon=True)
        self._thread.start()

    def shut(self) -> None:
        """From now on nothing is read of core."""
        self._shut.set()

    def close(self) -> None:
        """End both connections."""
        self._core.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._core.close()
        self._listening.close()

    def _pump(self) -> None:
        client, _ = self._listening.accept()
        with client, selectors.DefaultSelector() as ready:
            ready.register(client, selectors.EVENT_READ, self._core)
            ready.register(self._core, selectors.EVENT_READ, client)
            while True:
                for key, _ in ready.select():
                    if key.fileobj is self._core and self._shut.is_set():
                        ready.unregister(self._core)
                        continue
                    source: socket.socket = key.fileobj  # type: ignore[assignment]
                    with suppress(OSError):
                        if data := source.recv(1 << 16):
                            key.data.sendall(data)
                            continue
                    return


def resident(core: RunningCore) -> int:
    """Bytes of memory that core uses."""
    status = Path(f"/proc/{core.process.pid}/status").read_text()
    return next(
        int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:")
    )


def test_answers_that_nobody_reads_do_not_pile_up(core: RunningCore, stubs: Stubs) -> None:
    name = stubs.dataspaces.CreateDataspace(
        dataspace_pb2.CreateDataspaceRequest(size=MIB)
    ).dataspace.name
    request = dataspace_pb2.ReadDataspaceRequest(name=name, size=MIB)
    valve = Valve(core)
    greedy = Stubs(valve.path)
    greedy.core.GetInfo(core_pb2.GetInfoRequest())
    before = resident(core)
    valve.shut()
    calls = [greedy.dataspaces.ReadDataspace.future(request) for _ in range(300)]
    watcher = Stubs(core.socket)
    for _ in range(200):  # each is a round through core's loop
        watcher.core.GetInfo(core_pb2.GetInfoRequest())
    assert resident(core) - before < 64 * MIB
    for call in calls:
        cancel(call)
    valve.close()
    greedy.close()
    for _ in range(20):  # what the cancelled calls held is free again
        assert stubs.dataspaces.ReadDataspace(request, timeout=10).data == bytes(MIB)
    watcher.close()


def test_many_reads_at_once_are_all_answered(stubs: Stubs) -> None:
    name = stubs.dataspaces.CreateDataspace(
        dataspace_pb2.CreateDataspaceRequest(size=MIB)
    ).dataspace.name
    request = dataspace_pb2.ReadDataspaceRequest(name=name, size=MIB)
    calls = [stubs.dataspaces.ReadDataspace.future(request, timeout=20) for _ in range(40)]
    for call in calls[::3]:
        cancel(call)
    for call in calls[1::3]:
        assert call.result().data == bytes(MIB)


SQUATTER = """
import os, socket, sys
from tests.integration.running_core import become_other_user
become_other_user()
channels = []
for _ in range(100):
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel.connect(sys.argv[1])
    channels.append(channel)
print("connected", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def squatter(core: RunningCore) -> Iterator[None]:
    """Another user who opens fd channels and says nothing."""
    process = subprocess.Popen(
        [sys.executable, "-c", SQUATTER, core.directory / "fds.sock"],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "connected\n"
    yield
    process.communicate("")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has other users")
@pytest.mark.usefixtures("squatter")
def test_another_users_silent_channels_are_not_ours(core: RunningCore, stubs: Stubs) -> None:
    ticket = stubs.core.OpenFdChannel(core_pb2.OpenFdChannelRequest()).ticket
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.settimeout(10)
        channel.connect(os.fspath(core.directory / "fds.sock"))
        channel.send(ticket.encode())
        assert channel.recv(100) == b"ok"


def test_channels_of_a_client_are_bounded(core: RunningCore, stubs: Stubs) -> None:
    channels: list[socket.socket] = []
    answers = []
    for _ in range(18):
        ticket = stubs.core.OpenFdChannel(core_pb2.OpenFdChannelRequest()).ticket
        channels.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        channels[-1].settimeout(10)
        channels[-1].connect(os.fspath(core.directory / "fds.sock"))
        channels[-1].send(ticket.encode())
        answers.append(channels[-1].recv(200))
    assert answers[:16] == [b"ok"] * 16
    assert all(answer.startswith(b"error OUT_OF_CAPS ") for answer in answers[16:])
    for channel in channels:
        channel.close()


def test_an_abandoned_stream_of_requests(core: RunningCore, stubs: Stubs) -> None:
    """Streams that never say what they want end with their connection."""
    other = Stubs(core.socket)
    gate = threading.Event()

    def silence() -> Iterator[vm_session_pb2.HandleExitsRequest]:
        gate.wait(20)
        yield from ()

    calls = [other.vm.HandleExits(silence()) for _ in range(20)]
    other.core.GetInfo(core_pb2.GetInfoRequest())
    other.close()
    gate.set()
    eventually(lambda: all(call.code() is grpc.StatusCode.CANCELLED for call in calls))
    assert stubs.totals().clients == 1
