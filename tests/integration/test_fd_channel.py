"""The fd channel: tickets, leases, and clients that do not read."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from vmsession.v1 import core_pb2, dataspace_pb2, vm_session_pb2

from tests.integration.refusals import reason_of
from tests.integration.running_core import RunningCore, Stubs
from tests.integration.victim import Victim
from tests.integration.waiting import eventually

PAGE = 4096


def ticket(stubs: Stubs) -> str:
    return stubs.core.OpenFdChannel(core_pb2.OpenFdChannelRequest()).ticket


def connect(core: RunningCore) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel.connect(os.fspath(core.directory / "fds.sock"))
    channel.settimeout(10)
    return channel


@pytest.fixture
def channel(core: RunningCore, stubs: Stubs) -> Iterator[socket.socket]:
    """An open channel."""
    with connect(core) as opened:
        opened.send(ticket(stubs).encode())
        assert opened.recv(100) == b"ok"
        yield opened


@pytest.fixture
def dataspace(stubs: Stubs) -> str:
    """One page."""
    return stubs.dataspaces.CreateDataspace(
        dataspace_pb2.CreateDataspaceRequest(size=PAGE)
    ).dataspace.name


def ask(channel: socket.socket, request: str) -> tuple[bytes, list[int]]:
    channel.send(request.encode())
    answer, fds, _, _ = socket.recv_fds(channel, 300, 4)
    return answer, fds


def test_memory_is_shared_through_the_fd(
    stubs: Stubs, channel: socket.socket, dataspace: str
) -> None:
    answer, (fd,) = ask(channel, dataspace)
    assert answer == b"ok"
    os.pwrite(fd, b"from the client", 5)
    os.close(fd)
    request = dataspace_pb2.ReadDataspaceRequest(name=dataspace, offset=5, size=15)
    assert stubs.dataspaces.ReadDataspace(request).data == b"from the client"


def test_a_read_only_fd_does_not_write(channel: socket.socket, dataspace: str) -> None:
    _, (fd,) = ask(channel, f"{dataspace} read-only")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(fd, b"x", 0)
    with pytest.raises(PermissionError):  # sealed: not even through the path
        os.truncate(f"/proc/self/fd/{fd}", 0)
    os.close(fd)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ("dataspaces/none", "NOT_FOUND"),
        ("sessions/none/vcpus/0", "NOT_FOUND"),
        ("\x00", "NOT_FOUND"),
        ("DATASPACE read-write", "INVALID_ARGUMENT"),
        ("9" * 220 + " DATASPACE", "INVALID_ARGUMENT"),  # no number: it would crowd out the answer
    ],
)
def test_requests_for_nothing(
    channel: socket.socket, dataspace: str, request_: str, reason: str
) -> None:
    answer, fds = ask(channel, request_.replace("DATASPACE", dataspace))
    assert not fds
    assert answer.startswith(f"error {reason} ".encode())
    answer, (fd,) = ask(channel, dataspace)  # and the channel goes on
    assert answer == b"ok"
    os.close(fd)


def test_a_ticket_is_good_once(core: RunningCore, stubs: Stubs) -> None:
    once = ticket(stubs).encode()
    with connect(core) as first, connect(core) as second:
        first.send(once)
        assert first.recv(100) == b"ok"
        second.send(once)
        assert second.recv(100).startswith(b"error DENIED")
        assert second.recv(100) == b""


def test_a_ticket_is_good_for_its_process_only(core: RunningCore, stubs: Stubs) -> None:
    thief = f"""
import socket
channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
channel.connect({os.fspath(core.directory / "fds.sock")!r})
channel.send({ticket(stubs)!r}.encode())
print(channel.recv(300).decode())
"""
    said = subprocess.run(
        [sys.executable, "-c", thief], capture_output=True, text=True, timeout=20, check=True
    )
    assert said.stdout.startswith("error DENIED")


def test_unspent_tickets_are_bounded(stubs: Stubs) -> None:
    for _ in range(16):
        ticket(stubs)
    with pytest.raises(grpc.RpcError) as refused:
        ticket(stubs)
    assert reason_of(refused.value) == "OUT_OF_CAPS"


def ask_until_full(channel: socket.socket, name: str) -> int:
    """How many requests the kernel takes."""
    before = channel.gettimeout()
    channel.setblocking(False)
    asked = 0
    with suppress(BlockingIOError):
        while True:
            channel.send(name.encode())
            asked += 1
    channel.settimeout(before)
    assert asked > 1
    return asked


def test_a_client_that_does_not_read_gets_one_fd_in_flight(
    core: RunningCore, stubs: Stubs, channel: socket.socket, dataspace: str
) -> None:
    """The kernel limits the fds in flight for core's user, for all clients together."""
    asked = ask_until_full(channel, dataspace)
    eventually(lambda: stubs.totals().extra_fds == 1)  # the dataspace itself: none piles up
    answer, (fd,), _, _ = socket.recv_fds(channel, 300, 4)
    assert answer == b"ok"
    os.close(fd)
    for _ in range(asked - 1):  # one after the other, as they are read
        answer, (fd,), _, _ = socket.recv_fds(channel, 300, 4)
        assert answer == b"ok"
        os.close(fd)


def test_a_packet_that_is_too_long_ends_the_channel(channel: socket.socket) -> None:
    channel.send(b"x" * 1000)
    assert channel.recv(100) == b""


def test_the_channel_is_a_lease() -> None:
    core = RunningCore("--grace", "0.2")
    try:
        stubs = Stubs(core.socket)
        with connect(core) as channel, Victim(core, "soft", lease="none") as victim:
            channel.send(ticket(stubs).encode())
            assert channel.recv(100) == b"ok"
            request = dataspace_pb2.CreateDataspaceRequest(size=PAGE)
            name = stubs.dataspaces.CreateDataspace(request).dataspace.name
            # the victim, which has no lease, is outlived: its grace period is as long as ours
            eventually(lambda: stubs.totals().live == 1)
            assert victim.process.poll() is None
            answer, (fd,) = ask(channel, name)
            assert answer == b"ok"
            os.close(fd)
        eventually(lambda: stubs.totals().live == 0)
        stubs.close()
        core.stop()
    finally:
        core.close()


def test_freed_memory_that_is_held_stays_charged(
    stubs: Stubs, channel: socket.socket, dataspace: str
) -> None:
    _, (fd,) = ask(channel, dataspace)
    freed = stubs.dataspaces.FreeDataspace(dataspace_pb2.FreeDataspaceRequest(name=dataspace))
    assert freed.held
    totals = stubs.totals()
    assert (totals.live, totals.live_bytes, totals.held_bytes) == (1, PAGE, PAGE)
    os.close(fd)
    eventually(lambda: stubs.totals().held_bytes == 0)
    assert stubs.totals().freed == totals.freed + 1


def test_the_page_of_a_stream_vcpu_does_not_exist(stubs: Stubs, channel: socket.socket) -> None:
    session = stubs.vm.CreateSession(vm_session_pb2.CreateSessionRequest(engine="soft")).session
    vcpu = stubs.vm.CreateVcpu(
        vm_session_pb2.CreateVcpuRequest(
            session=session.name, transport=vm_session_pb2.TRANSPORT_STREAM
        )
    ).vcpu
    answer, fds = ask(channel, vcpu.name)
    assert answer.startswith(b"error WRONG_TRANSPORT")
    assert not fds


def test_unidentified_channels_are_bounded(core: RunningCore, stubs: Stubs) -> None:
    channels = [connect(core) for _ in range(80)]
    eventually(lambda: sum(_closed(channel) for channel in channels) == 80 - 64)
    for channel in channels:
        channel.close()
    assert Path(core.socket).exists()


def _closed(channel: socket.socket) -> bool:
    channel.settimeout(0)
    try:
        return channel.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


POOR_CORE = """
import resource
from importlib.metadata import version
version("vmsession")
from core_service.main import main
from tests.integration.running_core import become_other_user
become_other_user()
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
main()
"""

HOG = """
import os, socket, sys
from tests.integration.running_core import become_other_user
become_other_user()
fd = os.memfd_create("hog")
pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(8)]
for ours, _ in pairs:
    socket.send_fds(ours, [b"x"], [fd] * 50)
print("in flight", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a core for another user")
def test_too_many_fds_in_flight_cost_nobody_his_lease() -> None:
    """The kernel counts those of core's user, and refuses more than core may have open (unix(7))."""
    core = RunningCore(command=(sys.executable, "-c", POOR_CORE))
    try:
        stubs = Stubs(core.socket)
        with connect(core) as channel:
            channel.send(ticket(stubs).encode())
            assert channel.recv(100) == b"ok"
            size = dataspace_pb2.CreateDataspaceRequest(size=PAGE)
            name = stubs.dataspaces.CreateDataspace(size).dataspace.name
            hog = subprocess.Popen(
                [sys.executable, "-c", HOG],
                cwd=Path(__file__).parents[2],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert hog.stdout
            assert hog.stdout.readline() == "in flight\n"
            answer, fds = ask(channel, f"7 {name}")
            assert answer.startswith(b"error 7 MEMORY_FAILURE ")
            assert not fds
            hog.communicate("")
            answer, (fd,) = ask(channel, f"8 {name}")
            assert answer == b"ok 8"
            os.close(fd)
            stubs.dataspaces.FreeDataspace(dataspace_pb2.FreeDataspaceRequest(name=name))
        stubs.close()
        core.stop()
    finally:
        core.close()
