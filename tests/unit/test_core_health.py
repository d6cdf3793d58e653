"""What health checks are told, and when that changes."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2

from core_service.audit import AuditFailure, AuditLog
from core_service.audit.store import Store
from core_service.health import AUDIT, CORE, DATASPACES, SERVICES, SESSIONS, WHOLE, Health
from core_service.life import Life, Phase
from core_service.rpc.health_servicer import HealthServicer
from core_service.settings import Settings
from dataspace.record import EventKind
from tests.unit import core_fake_engine as fake
from tests.unit.audit_events import Script
from tests.unit.core_in_process import behaviours, in_process, until

ALL = {WHOLE, *SERVICES}
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Log:
    """What Health knows of the audit log."""

    healthy = True

    def __init__(self) -> None:
        self.on_health: Callable[[], None] = lambda: None

    def set(self, healthy: bool) -> None:
        self.healthy = healthy
        self.on_health()


class Engines:
    """What Health knows of the catalog."""

    def __init__(self) -> None:
        self.works = {"kvm": True, "soft": True}
        self.surveys = 0
        self.on_start: Callable[[str, bool], None] = lambda engine, well: None

    async def survey(self) -> None:
        self.surveys += 1
        for engine, well in self.works.items():
            self.on_start(engine, well)


class World:
    """A health of all that it depends on."""

    def __init__(self, survey_again: float = 3600) -> None:
        self.life = Life()
        self.log = Log()
        self.engines = Engines()
        self.health = Health(self.life, self.log, self.engines, survey_again)  # type: ignore[arg-type]

    def serving(self) -> set[str]:
        return {service for service in ALL if not self.health.why_not(service)}


@pytest.fixture
async def world() -> World:
    """One that serves."""
    world = World()
    await world.health.begin()
    world.life.reach(Phase.SERVING)
    return world


async def test_nothing_serves_while_core_starts() -> None:
    world = World()
    assert world.serving() == set()
    await world.health.begin()
    assert world.serving() == set()
    assert world.health.why_not(WHOLE) == "core is starting"
    world.life.reach(Phase.SERVING)
    assert world.serving() == ALL
    await world.health.close()


@pytest.mark.parametrize("phase", [Phase.DRAINING, Phase.STOPPING])
async def test_nothing_serves_at_the_end(world: World, phase: Phase) -> None:
    world.life.reach(phase)
    assert world.serving() == set()
    await world.health.close()


async def test_without_the_log_core_and_its_audit_serve(world: World) -> None:
    world.log.set(False)
    assert world.serving() == {CORE, AUDIT}
    assert world.health.why_not(WHOLE) == "the audit log cannot be written"
    world.log.set(True)
    assert world.serving() == ALL
    await world.health.close()


async def test_one_engine_that_works_is_enough(world: World) -> None:
    world.engines.on_start("kvm", False)
    assert world.serving() == ALL
    world.engines.on_start("soft", False)
    assert world.serving() == {CORE, AUDIT, DATASPACES}
    assert world.health.why_not(SESSIONS) == "no engine works"
    world.engines.on_start("kvm", True)
    assert world.serving() == ALL
    assert world.engines.surveys == 1
    await world.health.close()


async def test_engines_that_do_not_work_are_looked_at_again() -> None:
    world = World(survey_again=0.01)
    world.engines.works = {"kvm": False, "soft": False}
    await world.health.begin()
    world.life.reach(Phase.SERVING)
    assert SESSIONS not in world.serving()
    while world.engines.surveys < 3:
        await asyncio.wait_for(asyncio.sleep(0.001), 5)
    world.engines.works["soft"] = True
    while SESSIONS not in world.serving():
        await asyncio.wait_for(world.health.change(), 5)
    surveys = world.engines.surveys
    world.log.set(False)
    await asyncio.sleep(0.05)
    assert world.engines.surveys == surveys
    await world.health.close()


class Watch:
    """A watch of one service, as gRPC runs it."""

    def __init__(self, health: Health, service: str) -> None:
        request = health_pb2.HealthCheckRequest(service=service)
        self._answers = HealthServicer(health).Watch(request, None)  # type: ignore[arg-type]

    async def next(self) -> int:
        return (await asyncio.wait_for(anext(self._answers), 5)).status


async def test_a_watch_tells_each_change_once_and_ends_with_core(world: World) -> None:
    watch = Watch(world.health, WHOLE)
    assert await watch.next() == SERVING
    coming = asyncio.ensure_future(watch.next())
    await asyncio.sleep(0)
    world.engines.on_start("kvm", False)  # changes nothing of what is told
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not coming.done()
    world.log.set(False)
    assert await coming == NOT_SERVING
    world.log.set(True)
    assert await watch.next() == SERVING
    world.life.reach(Phase.STOPPING)
    assert await watch.next() == NOT_SERVING
    with pytest.raises(StopAsyncIteration):
        await watch.next()
    await world.health.close()


async def test_a_change_while_an_answer_is_sent_is_not_missed(world: World) -> None:
    watch = Watch(world.health, WHOLE)
    assert await watch.next() == SERVING
    world.log.set(False)  # nobody waits: the answer is still being sent
    assert await watch.next() == NOT_SERVING
    await world.health.close()


async def test_who_does_not_read_keeps_nobody_from_being_told(world: World) -> None:
    slow, quick = Watch(world.health, WHOLE), Watch(world.health, WHOLE)
    assert await slow.next() == await quick.next() == SERVING
    world.log.set(False)
    assert await quick.next() == NOT_SERVING
    await world.health.close()


async def test_a_service_that_is_not_there(world: World) -> None:
    watch = Watch(world.health, "vmsession.v1.Nothing")
    assert await watch.next() == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    await world.health.close()


async def test_the_catalog_tells_which_engines_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = Settings(directory=tmp_path, audit_directory=tmp_path / "audit")
    process = in_process(monkeypatch, behaviours(tmp_path, "old"), settings)
    core = process.core
    health = Health(core.life, core.audit, core.engines)
    await core.begin()
    await health.begin()
    core.life.reach(Phase.SERVING)
    assert health.why_not(SESSIONS) == "no engine works"
    fake.install(tmp_path, "good").rename(tmp_path / "vmsession-old")  # somebody mended it
    await process.session(process.client(), "old")
    assert health.why_not(SESSIONS) == ""
    await health.close()
    await process.must_be_empty()


async def test_the_log_tells_that_it_cannot_be_written_and_can_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script, broken = Script(), True

    def append(self: Store, *arguments: object) -> object:
        if broken:
            raise sqlite3.OperationalError("disk I/O error")
        return whole(self, *arguments)  # type: ignore[arg-type]

    whole = Store.append
    monkeypatch.setattr(Store, "append", append)
    with closing(AuditLog.open(tmp_path)) as log:
        health = Health(Life(), log, Engines())  # type: ignore[arg-type]
        changes = asyncio.ensure_future(health.change())
        log.append(script(EventKind.STARTED, "cores/1", {"kind": "core"}))
        with pytest.raises(AuditFailure):
            await log.recorded(1)
        await asyncio.wait_for(changes, 5)
        assert not log.healthy
        changes = asyncio.ensure_future(health.change())
        broken = False
        await until(lambda: log.healthy)
        await asyncio.wait_for(changes, 5)
