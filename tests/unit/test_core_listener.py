"""A listening socket when the system has no fd left, and when it is closed."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from core_service import listener
from core_service.listener import ACCEPTED_AT_ONCE, Listener


class Counting(Listener):
    """Counts how often the loop finds a connection to accept, and keeps all of them."""

    def __init__(self) -> None:
        super().__init__(self._keep)
        self.looks = 0
        self.connections: list[socket.socket] = []
        self.kept = asyncio.Event()

    def _keep(self, connection: socket.socket) -> None:
        self.connections.append(connection)
        self.kept.set()

    def _accept(self) -> None:
        self.looks += 1
        super()._accept()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "a.sock")


@pytest.fixture
def listening(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as bound:
        bound.bind(path)
        bound.listen(2 * ACCEPTED_AT_ONCE)
        yield bound


async def test_without_fds_the_loop_does_not_spin(
    path: str, listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "ACCEPT_AGAIN", 0.1)
    accepting = Counting()
    accepting.open(listening)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(path)
        resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, limits[1]))
        try:
            for _ in range(20):
                await asyncio.sleep(0)
            assert accepting.looks == 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        async with asyncio.timeout(10):
            await accepting.kept.wait()
        assert accepting.looks == 2
    accepting.close()
    for connection in accepting.connections:
        connection.close()


async def test_others_have_their_turn_between_many_connections(
    path: str, listening: socket.socket
) -> None:
    accepting = Counting()
    clients = [
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(ACCEPTED_AT_ONCE + 1)
    ]
    for client in clients:
        client.connect(path)
    accepting.open(listening)
    await accepting.kept.wait()
    assert len(accepting.connections) == ACCEPTED_AT_ONCE
    accepting.close()
    for connection in (*clients, *accepting.connections):
        connection.close()


async def test_who_closes_it_for_one_who_arrived_sees_no_other(
    path: str, listening: socket.socket
) -> None:
    arrived = asyncio.Event()

    def refuse(connection: socket.socket) -> None:
        connection.close()
        accepting.close()
        arrived.set()

    accepting = Listener(refuse)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as second,
    ):
        first.connect(path)
        second.connect(path)
        accepting.open(listening)
        await arrived.wait()
        assert listening.fileno() < 0
        accepting.close()
