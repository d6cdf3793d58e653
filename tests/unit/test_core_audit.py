"""Core while its audit log fails: nothing is done that will not be on record."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from core_service.audit import AuditFailure, AuditLog, Query, Recorded
from core_service.audit.query import EventFilter
from core_service.audit.watch import News
from core_service.core import Core
from core_service.dataspaces import Dataspace
from core_service.refusal import Refusal
from core_service.rpc import audit_filters
from core_service.rpc.audit_log import AuditQueries
from core_service.rpc.audit_watch import Watcher
from core_service.service import Service
from core_service.settings import Settings
from dataspace.memory import Memory
from dataspace.record import EventKind
from tests.unit.core_in_process import InProcess, behaviours, in_process, open_fds

Fail = Callable[[], None]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(directory=tmp_path / "run", audit_directory=tmp_path / "audit")


@pytest.fixture
async def world(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: Settings
) -> AsyncIterator[InProcess]:
    """A core of which nothing must be left."""
    running = in_process(monkeypatch, behaviours(tmp_path, "good"), settings)
    yield running
    await running.must_be_empty()


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Make the log refuse what is made, from now on."""

    def refuse(_log: AuditLog) -> None:
        raise AuditFailure("disk I/O error")

    return lambda: monkeypatch.setattr(AuditLog, "require", refuse)


async def test_what_is_sealed_is_on_record_though_the_log_fails_meanwhile(
    world: InProcess, fails: Fail, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    client = world.client()
    dataspace = world.dataspace(client)
    seal = Memory.seal

    def seal_then_fail(memory: Memory) -> None:
        seal(memory)
        fails()

    monkeypatch.setattr(Memory, "seal", seal_then_fail)
    await world.core.dataspaces.seal(client, dataspace.name)
    monkeypatch.undo()
    await world.core.everything_recorded()
    last = Query(settings.audit_directory).history(dataspace.name)[-1].event
    assert last.kind is EventKind.SEALED


async def test_a_client_is_let_in_though_the_log_fails_at_that_moment(
    world: InProcess, fails: Fail, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails()
    client = world.client()
    assert not client.on_record
    with pytest.raises(AuditFailure):
        world.core.must_record(client)
    monkeypatch.undo()
    world.core.must_record(client)
    assert client.on_record


async def test_a_snapshot_is_made_in_turns_and_is_of_one_revision(world: InProcess) -> None:
    client, core = world.client(), world.core
    made = [world.dataspace(client) for _ in range(300)]
    added: list[Dataspace] = []

    def change() -> None:
        core.dataspaces.dispose(client.dataspaces.pop(made[0].name), "freed by its owner")
        added.append(world.dataspace(client))

    async with aclosing(Watcher(core, client, 0).messages()) as messages:
        asyncio.get_running_loop().call_soon(change)
        snapshot = (await anext(messages)).snapshot
    assert snapshot.revision == core.ledger.revision
    assert [record.name for record in snapshot.records] == [
        each.name for each in (*made[1:], *added)
    ]


async def test_a_snapshot_with_much_to_tell_of_each_comes_in_small_parts(
    world: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_filters, "ROOM", 1)
    client = world.client()
    made = [world.dataspace(client).name for _ in range(3)]
    async with aclosing(Watcher(world.core, client, 0).messages()) as messages:
        parts = [(await anext(messages)).snapshot for _ in made]
    assert [[record.name for record in part.records] for part in parts] == [[name] for name in made]
    assert [part.more for part in parts] == [True, True, False]


async def test_a_watcher_that_falls_behind_is_told_and_goes_on_from_a_snapshot(
    world: InProcess,
) -> None:
    core, client = world.core, world.client()
    core.news = News(core.audit, kept=4)
    async with aclosing(Watcher(core, client, 0).messages()) as messages:
        began = (await anext(messages)).snapshot.revision
        made = [world.dataspace(client).name for _ in range(2)]
        await core.everything_recorded()
        assert (await anext(messages)).event.subject == made[0]
        made += [world.dataspace(client).name for _ in range(6)]
        await core.everything_recorded()
        assert (await anext(messages)).event.subject == made[1]  # it had that already
        lagged = (await anext(messages)).lagged
        assert (lagged.first, lagged.last) == (began + 3, core.ledger.revision)
        snapshot = (await anext(messages)).snapshot
        assert snapshot.revision == lagged.last
        assert [record.name for record in snapshot.records] == made
        made.append(world.dataspace(client).name)
        event = (await anext(messages)).event
        assert (event.revision, event.subject) == (lagged.last + 1, made[-1])


async def test_events_that_retention_takes_from_under_a_query_are_missed_by_nobody(
    world: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = world.client()
    for _ in range(5):
        world.dataspace(client)
    log = AuditQueries(world.core, client)
    await log.settled()
    events = Query.events

    def events_then_none(query: Query, *arguments: Any) -> list[Recorded]:
        monkeypatch.setattr(Query, "oldest_revision", lambda _query: 5)
        return events(query, *arguments)[4:]

    monkeypatch.setattr(Query, "events", events_then_none)
    assert await log.events(4, 10, EventFilter()) == []
    with pytest.raises(Refusal) as refused:
        await log.events(3, 10, EventFilter())
    assert refused.value.reason == "COMPACTED"
    assert refused.value.numbers == {"asked": 4, "oldest": 5}


@pytest.mark.parametrize("method", ["__init__", "begin"])
async def test_a_core_that_cannot_begin_leaves_no_thread(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def fail(*_arguments: object) -> None:
        raise AuditFailure("disk I/O error")

    monkeypatch.setattr(Core, method, fail)
    before, threads = open_fds(), writers()
    service = Service(settings)
    with pytest.raises(AuditFailure):
        await service.start()
    await service.stop()
    assert writers() == threads
    assert open_fds() == before


def writers() -> int:
    """Threads that write a log."""
    return sum(thread.name == "audit writer" for thread in threading.enumerate())
