"""Core while its audit log fails: nothing is done that will not be on record."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vmsession.v1 import audit_pb2

from core_service.audit import AuditFailure, AuditLog, Query, Recorded
from core_service.audit.query import EventFilter
from core_service.audit.watch import News
from core_service.client import Client
from core_service.core import Core
from core_service.dataspaces import Dataspace
from core_service.engine.process import EngineProcess
from core_service.refusal import Refusal
from core_service.rpc import audit_filters
from core_service.rpc.audit_log import AuditQueries
from core_service.rpc.audit_servicer import AuditServicer
from core_service.rpc.audit_watch import Watcher
from core_service.service import Service
from core_service.session import Session
from core_service.settings import Settings
from core_service.shares import Share
from core_service.verify.accounts import check_accounts
from core_service.verify.ledger import check_ledger
from core_service.verify.look import Look
from dataspace.memory import Memory
from dataspace.record import EventKind
from tests.unit.core_in_process import PAGE, InProcess, behaviours, in_process, open_fds

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


@dataclass
class Scene:
    """What there is before something is made; `offered` is not accepted yet."""

    world: InProcess
    client: Client
    session: Session
    memory: Dataspace
    offered: Share
    rom: Path

    def costs(self) -> tuple[object, ...]:
        """What is charged to whom, and what is open."""
        users = self.world.core.users
        accounts = [users.root, *users.accounts.values(), self.client.account, self.session.account]
        charged = [(each.used, each.own, each.transferred) for each in accounts]
        return charged, users.sessions.total(), self.world.core.engines.processes, open_fds()


Make = Callable[[Scene], Coroutine[Any, Any, object]]


async def create(there: Scene) -> object:
    return there.world.dataspace(there.client, 3 * PAGE)


async def offer(there: Scene) -> object:
    return there.world.core.shares.offer(there.client, there.memory, 1000, 0, 0, 0, True)


async def accept(there: Scene) -> object:
    return there.world.core.shares.accept(there.client, there.offered.name)


async def upgrade(there: Scene) -> None:
    there.session.upgrade(1 << 30, 300)


MAKES: dict[str, tuple[Make, int]] = {
    "dataspace": (create, 1),
    "ROM": (lambda there: there.world.core.roms.create(there.client, str(there.rom)), 1),
    "session": (lambda there: there.world.session(there.client), 1),
    "vCPU with a page": (lambda there: there.session.create_vcpu(0, page_transport=True), 2),
    "vCPU with a stream": (lambda there: there.session.create_vcpu(0, page_transport=False), 1),
    "attachment": (
        lambda there: there.session.memory.attach(there.memory, 0, 0, 0, read_only=False),
        1,
    ),
    "offer": (offer, 1),
    "share": (accept, 2),
    "upgrade": (upgrade, 1),
}


@pytest.fixture
async def there(world: InProcess, tmp_path: Path) -> Scene:
    client = world.client()
    memory = world.dataspace(client)
    offered = world.core.shares.offer(client, memory, 1000, 0, 0, 0, True)
    rom = tmp_path / "rom"
    rom.write_bytes(b"x")
    client.rom_paths = (tmp_path,)
    return Scene(world, client, await world.session(client), memory, offered, rom)


@pytest.mark.parametrize(
    ("what", "at"), [(what, at) for what, (_, events) in MAKES.items() for at in range(events)]
)
async def test_what_cannot_be_recorded_costs_nothing(
    there: Scene, what: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of its events fails; and once they can be recorded it is made."""
    make, _ = MAKES[what]
    before, left = there.costs(), [at]

    def refuse(_log: AuditLog) -> None:
        if not left[0]:
            raise AuditFailure("disk I/O error")
        left[0] -= 1

    with monkeypatch.context() as failing:
        failing.setattr(AuditLog, "require", refuse)
        with pytest.raises(AuditFailure):
            await make(there)
    assert there.costs() == before
    look = Look()
    check_accounts(there.world.core, look)
    await check_ledger(there.world.core, look)
    assert look.findings == set()
    await make(there)
    assert there.costs() != before


async def test_each_attempt_to_make_a_vcpu_has_its_record(
    there: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise Refusal("ENGINE_LIMIT", "no memory for it")

    with monkeypatch.context() as failing:
        failing.setattr(EngineProcess, "create_vcpu", refuse)
        with pytest.raises(Refusal):
            await there.session.create_vcpu(0, page_transport=True)
    await there.session.create_vcpu(0, page_transport=True)
    servicer = AuditServicer(there.world.core, lambda: 0)
    context: Any = SimpleNamespace(peer=lambda: f"peer-{there.client.identity.pid}")
    request = audit_pb2.ListRecordsRequest(kind=audit_pb2.DATASPACE_KIND_VCPU_PAGE)
    told = (await servicer.ListRecords(request, context)).records
    assert {record.name for record in told} == {f"{there.session.name}/vcpus/0"}
    assert [(record.state, record.cause) for record in told] == [
        (audit_pb2.DATASPACE_STATE_FREED, "vCPU could not be created"),
        (audit_pb2.DATASPACE_STATE_ALIVE, ""),
    ]


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
