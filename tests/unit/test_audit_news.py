"""News of the log: watchers at their own pace, and what they are told when they fall behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from vmsession.v1 import dataspace_pb2, vm_session_pb2

from core_service.audit import AuditLog, Committed
from core_service.audit.watch import LaggedError, News
from core_service.rpc.recording import MAKING
from dataspace.record import EventKind
from tests.unit.audit_events import Script, created

KEPT = 4


class World:
    """A log, its news, and the means to make some."""

    def __init__(self, directory: Path) -> None:
        self.log = AuditLog.open(directory)
        self.script = Script()
        self.news: News | None = None

    async def make(self, count: int) -> None:
        for _ in range(count):
            revision = self.log.last_revision + 1
            self.log.append(self.script(EventKind.CREATED, f"dataspaces/{revision}", created()))
        await self.log.recorded(self.log.last_revision)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path / "audit")
    yield made
    made.log.close()


def revisions(events: list[Committed]) -> list[int]:
    return [each.event.revision for each in events]


async def test_each_watcher_gets_what_follows_what_it_has_seen(world: World) -> None:
    await world.make(3)
    news = News(world.log, KEPT)
    assert (news.first, news.last) == (4, 3)
    await world.make(3)
    assert revisions(await news.after(3)) == [4, 5, 6]
    assert revisions(await news.after(5)) == [6]
    waiting = asyncio.ensure_future(news.after(6))
    await asyncio.sleep(0)
    assert not waiting.done()
    await world.make(1)
    assert revisions(await waiting) == [7]


async def test_who_falls_behind_what_is_kept_is_told(world: World) -> None:
    news = News(world.log, KEPT)
    await world.make(KEPT)
    assert revisions(await news.after(0)) == [1, 2, 3, 4]
    await world.make(1)
    with pytest.raises(LaggedError):
        await news.after(0)
    assert revisions(await news.after(1)) == [2, 3, 4, 5]


async def test_events_before_a_gap_are_not_kept(world: World) -> None:
    """The writer does not tell of events that it found on disk after a commit that seemed to fail."""
    news = News(world.log, KEPT)
    await world.make(2)
    following = Script(after=3)(EventKind.FREED, "dataspaces/1")
    news._committed([Committed(following, b"", frozenset())])
    with pytest.raises(LaggedError):
        await news.after(1)
    assert revisions(await news.after(3)) == [4]


async def test_who_waits_when_core_stops_is_told(world: World) -> None:
    news = News(world.log, KEPT)
    await world.make(1)
    waiting = asyncio.ensure_future(news.after(1))
    await asyncio.sleep(0)
    news.close()
    assert await waiting == []
    assert revisions(await news.after(0)) == [1]


def test_every_mutation_either_makes_something_or_frees_something() -> None:
    """A new mutation is to be put on one side: what makes is refused while the log cannot be written."""
    freeing = {"DeleteSession", "Detach", "AttachPic", "FreeDataspace", "RevokeShare"}
    mutations = {
        message.name.removesuffix("Request")
        for file in (dataspace_pb2, vm_session_pb2)
        for message in file.DESCRIPTOR.message_types_by_name.values()
        if "request_id" in message.fields_by_name
    }
    assert {each.DESCRIPTOR.name.removesuffix("Request") for each in MAKING} == mutations - freeing
