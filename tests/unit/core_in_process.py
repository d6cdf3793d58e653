"""Core without its sockets, in the test's own event loop, on engines that misbehave."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest

from core_service.audit import AuditLog
from core_service.census import Census, take_census
from core_service.client import Client
from core_service.core import Core
from core_service.dataspaces import Dataspace
from core_service.engine import catalog
from core_service.identity import Identity
from core_service.session import Session
from core_service.settings import Settings
from tests.unit import core_fake_engine as fake

PAGE = 4096


@dataclass(frozen=True, slots=True)
class FakeKind:
    """A kind of engine, as the catalog knows them."""

    name: str
    executable: Path
    whole: bool = True

    @staticmethod
    def environment() -> dict[str, str]:
        """None."""
        return {}


def behaviours(directory: Path, *names: str) -> tuple[FakeKind, ...]:
    """Kinds to put into the catalog."""
    return tuple(FakeKind(name, fake.install(directory, name)) for name in names)


@dataclass
class InProcess:
    """A core and clients that it takes for processes."""

    core: Core
    _pids: count[int] = field(default_factory=lambda: count(1 << 23))  # beyond pid_max

    def client(self, uid: int = 1000) -> Client:
        """A new client."""
        pid = next(self._pids)
        return self.core.clients.connected(f"peer-{pid}", Identity(uid, uid, pid, 1), None)

    async def session(self, client: Client, engine: str = "good") -> Session:
        """A session of it."""
        return await self.core.create_session(client, "", engine, 0, 0)

    def dataspace(self, client: Client, size: int = PAGE) -> Dataspace:
        """A dataspace of it."""
        return self.core.dataspaces.create(client, self.core.names.new("dataspaces"), size)

    async def must_be_empty(self) -> None:
        """Everything ends; nothing must be charged, on record or open."""
        await asyncio.wait_for(self.core.stop(), 20)
        root = self.core.users.root.used
        assert (root.ram, root.caps) == (0, 0)
        totals = self.core.ledger.totals()
        assert (totals.live, totals.held) == (0, 0)
        assert not self.core.sessions
        assert not self.core.engines.processes


async def until(condition: Callable[[], bool], limit: float = 10) -> None:
    """Let the loop run until it holds."""
    async with asyncio.timeout(limit):
        while not condition():  # noqa: ASYNC110 - another process sets no event
            await asyncio.sleep(0.005)


def open_fds() -> Census:
    """fds of this process of the kinds that core keeps for clients: gRPC's come and go."""
    gc.collect()  # what a failed call of an earlier test left to the collector is not ours
    return take_census()


def in_process(
    monkeypatch: pytest.MonkeyPatch, kinds: tuple[FakeKind | catalog.Kind, ...], settings: Settings
) -> InProcess:
    """A core that knows these engines; `must_be_empty` ends it."""
    monkeypatch.setattr(catalog, "KINDS", kinds)
    return InProcess(Core(settings, AuditLog.open(settings.audit_directory)))
