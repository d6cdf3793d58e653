"""The keeper's process, whatever the cores do that it serves."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from core_service.keeper.client import _spawn
from core_service.keeper.wire import Message, packed, receive


@pytest.fixture
def path() -> Iterator[Path]:
    """Where it listens; short, as sockets need."""
    with tempfile.TemporaryDirectory(prefix="vmsession-test-") as directory:
        yield Path(directory) / "keeper.sock"


def connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(20)
    connection.connect(str(path))
    return connection


def read(connection: socket.socket) -> Message:
    received = receive(connection)
    assert received
    return received[0]


def test_what_a_core_left_that_ended_before_its_keeper_began(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(path))
        listening.listen(1)
        with connected(path) as first:
            first.send(packed({"op": "put", "key": "sessions/x", "value": 7}))
        keeper = _spawn(path, 20, listening.fileno())
    try:
        with connected(path) as second:
            assert read(second) == {"op": "put", "key": "sessions/x", "value": 7}
            assert read(second) == {"op": "ready", "pid": keeper}
            second.send(packed({"op": "end"}))
            os.waitid(os.P_PID, keeper, os.WEXITED | os.WNOWAIT)
    finally:
        os.kill(keeper, signal.SIGKILL)
        os.waitpid(keeper, 0)
