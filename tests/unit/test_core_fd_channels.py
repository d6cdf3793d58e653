"""The fd channel's door when the system has no fd left."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core_service import fd_channel
from core_service.fd_channel import FdChannels
from core_service.settings import Settings
from tests.unit.core_in_process import in_process


class Counting(FdChannels):
    """Counts how often the loop finds a connection to accept."""

    looks = 0

    def _accept(self) -> None:
        self.looks += 1
        super()._accept()


@pytest.fixture
async def channels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Counting]:
    """Channels of a core without engines."""
    running = in_process(monkeypatch, (), Settings(audit_directory=tmp_path / "audit"))
    core = running.core
    opened = Counting(core.clients, core.tickets, core.hand_out, core.may_leave)
    yield opened
    opened.close()
    await running.must_be_empty()


async def test_without_fds_the_loop_does_not_spin(
    channels: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fd_channel, "ACCEPT_AGAIN", 0.1)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(str(tmp_path / "fds.sock"))
    listening.listen()
    channels.open(listening)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(str(tmp_path / "fds.sock"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, limits[1]))
        try:
            for _ in range(20):
                await asyncio.sleep(0)
            assert channels.looks == 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        async with asyncio.timeout(10):
            while not len(channels):  # noqa: ASYNC110 - the timer of the channels sets no event
                await asyncio.sleep(0.01)
        assert channels.looks == 2
