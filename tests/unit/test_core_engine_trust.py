"""Engines that lie, stall or die: their session ends, and core keeps exact books."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from vmsession.v1 import vcpu_pb2, vm_session_pb2

from core_service.adoption import agree
from core_service.engine import process as engine_process
from core_service.engine.process import EngineProcess
from core_service.refusal import Refusal
from core_service.rpc import vcpu_calls
from core_service.settings import Settings
from core_service.vcpu import Vcpu
from core_service.verify.verification import Verification
from dataspace.address_map import AddressMap
from dataspace.vcpu_page import PAGE_BYTES
from tests.unit.core_in_process import PAGE, InProcess, behaviours, in_process, open_fds, until

NAMES = (
    "good",
    "brief",
    "old",
    "silent",
    "deaf",
    "keeps",
    "dies_unmapping",
    "polite_twice",
    "stranger",
    "floods",
    "floods_failures",
    "impossible_exit",
    "unknown_status",
    "unclaimed_exit",
    "unclaimed_register",
    "unclaimed_fpu",
    "too_much_data",
    "cpuid_for_state",
    "refuses_to_run",
    "lists_without_end",
    "lists_in_crumbs",
    "lists_slowly",
    "dawdles",
)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[InProcess]:
    """A core with bad engines, of which nothing must be left."""
    before = open_fds()
    settings = Settings(audit_directory=tmp_path / "audit")
    running = in_process(monkeypatch, behaviours(tmp_path, *NAMES), settings)
    yield running
    await running.must_be_empty()
    assert open_fds() == before


async def test_a_call_that_is_cancelled_costs_the_session_nothing(world: InProcess) -> None:
    """Its answer comes late, and is no answer that nobody asked for."""
    session = await world.session(world.client())
    os.kill(session.engine.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await session.engine.pause(0)
    os.kill(session.engine.pid, signal.SIGCONT)
    for _ in range(100):  # beyond the time that an engine takes to die
        await session.engine.pause(0)


async def test_a_cancelled_call_does_not_spare_an_engine_that_never_answers(
    world: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_process, "ANSWER_LIMIT", 0.2)
    session = await world.session(world.client(), "silent")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await session.engine.pause(0)
    await until(lambda: session.closing)
    assert session.engine.died == "it did not answer within 0.2 s"


async def test_an_unanswered_call_names_its_reason(
    world: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_process, "ANSWER_LIMIT", 0.1)
    session = await world.session(world.client(), "silent")
    with pytest.raises(Refusal, match="it did not answer within") as died:
        await session.engine.pause(0)
    assert died.value.reason == "ENGINE_DIED"


async def test_freed_while_it_is_being_attached(world: InProcess) -> None:
    client = world.client()
    session = await world.session(client)
    dataspace = world.dataspace(client)
    os.kill(session.engine.pid, signal.SIGSTOP)
    attaching = asyncio.create_task(session.memory.attach(dataspace, 0, 0, 0, read_only=False))
    await asyncio.sleep(0)
    freeing = asyncio.create_task(world.core.dataspaces.end(dataspace, "test"))
    await asyncio.sleep(0)
    os.kill(session.engine.pid, signal.SIGCONT)
    assert (await attaching).size == PAGE
    assert await freeing is False
    assert session.memory.attachments() == []
    assert session.account.used.caps == 0


@pytest.mark.parametrize("engine", ["dies_unmapping", "keeps"])
async def test_freed_where_the_engine_does_not_unmap(world: InProcess, engine: str) -> None:
    client = world.client()
    session = await world.session(client, engine)
    dataspace = world.dataspace(client)
    await session.memory.attach(dataspace, 0, 0, 0, read_only=False)
    await world.core.dataspaces.end(dataspace, "test")
    await until(lambda: not world.core.sessions)
    assert client.account.used.ram == 0
    assert client.account.used.caps == 0


async def test_a_detach_looks_at_nothing_beside_its_range(
    world: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the dataspace is attached elsewhere."""
    client = world.client()
    session, dataspace = await world.session(client), world.dataspace(client)
    for gpa in range(0, 8 * PAGE, 2 * PAGE):
        await session.memory.attach(dataspace, gpa, 0, 0, read_only=False)
    with monkeypatch.context() as looking:
        for name in ("of", "__iter__"):
            looking.setattr(AddressMap, name, lambda *_: pytest.fail("all of it"))
        await session.memory.detach(2 * PAGE, PAGE)
    assert [each.gpa for each in session.memory.attachments()] == [0, 4 * PAGE, 6 * PAGE]


async def test_a_refused_detach_leaves_what_is_mapped_on_record(world: InProcess) -> None:
    client = world.client()
    session = await world.session(client, "keeps")
    dataspace = world.dataspace(client, 4 * PAGE)
    await session.memory.attach(dataspace, 0, 0, 0, read_only=False)
    with pytest.raises(Refusal) as refused:
        await session.memory.detach(PAGE, PAGE)
    assert refused.value.reason == "ENGINE_DIED"
    await until(lambda: not world.core.sessions)


async def test_an_engine_that_is_gone_after_its_greeting(
    world: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greeting and end are seen at once."""
    spawn = EngineProcess.spawn

    def spawn_and_wait(*arguments: Any) -> EngineProcess:
        process = spawn(*arguments)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return process

    monkeypatch.setattr(EngineProcess, "spawn", spawn_and_wait)
    client = world.client()
    for _ in range(4):
        with pytest.raises(Refusal) as refused:
            await world.session(client, "brief")
        assert refused.value.reason == "ENGINE_UNAVAILABLE"
    assert not client.sessions
    assert client.account.used.caps == 0


async def test_an_engine_with_another_page_abi(world: InProcess) -> None:
    with pytest.raises(Refusal, match="page ABI 77") as refused:
        await world.session(world.client(), "old")
    assert refused.value.reason == "ENGINE_UNAVAILABLE"


async def test_an_engine_that_closes_its_channel_and_stays(world: InProcess) -> None:
    client = world.client()
    session = await world.session(client, "deaf")
    dataspace = world.dataspace(client)
    with pytest.raises(Refusal):
        await session.memory.attach(dataspace, 0, 0, 0, read_only=False)
    with pytest.raises(Refusal):
        await session.memory.attach(dataspace, 0, 0, 0, read_only=False)
    await until(lambda: not world.core.sessions)
    assert not dataspace.memory.held()


@pytest.mark.parametrize(
    "engine", ["polite_twice", "stranger", "floods_failures", "unknown_status"]
)
async def test_engines_that_talk_nonsense_end(world: InProcess, engine: str) -> None:
    session = await world.session(world.client(), engine)
    with pytest.raises(Refusal) as died:
        await session.engine.pause(0)
    assert died.value.reason == "ENGINE_DIED"
    await until(lambda: not world.core.sessions)


@pytest.mark.parametrize(
    "engine",
    [
        "floods",
        "impossible_exit",
        "unclaimed_exit",
        "unclaimed_register",
        "unclaimed_fpu",
        "too_much_data",
    ],
)
async def test_exits_that_cannot_be(world: InProcess, engine: str) -> None:
    session = await world.session(world.client(), engine)
    vcpu = await session.create_vcpu(0, page_transport=False)
    if engine != "floods":
        await vcpu_calls.run(session, vcpu, vm_session_pb2.RunRequest())
    await until(lambda: not world.core.sessions)
    assert session.engine.died
    assert "malformed" in session.engine.died


@pytest.mark.parametrize("engine", ["good", "cpuid_for_state"])
async def test_answers_to_another_question(world: InProcess, engine: str) -> None:
    session = await world.session(world.client(), engine)
    with pytest.raises(Refusal) as died:
        await session.engine.get_state(0, bytes(2048))
    assert died.value.reason == "ENGINE_DIED"
    assert "in answer to a request for" in str(died.value)
    await until(lambda: not world.core.sessions)


async def test_what_an_engine_does_not_have_is_not_asked_of_it(world: InProcess) -> None:
    session = await world.session(world.client())
    vcpu = await session.create_vcpu(0, page_transport=False)
    table = vm_session_pb2.SetVcpuCpuidRequest()
    charged = vm_session_pb2.UpdateVcpuStateRequest(state=vcpu_pb2.VcpuState(fpu=b"x"))
    for call, feature in (
        (vcpu_calls.get_cpuid(session, vcpu), "cpuid"),
        (vcpu_calls.set_cpuid(session, vcpu, table), "cpuid"),
        (vcpu_calls.update_state(session, vcpu, charged), "fpu"),
    ):
        with pytest.raises(Refusal) as refused:
            await call
        assert refused.value.reason == "UNSUPPORTED"
        assert refused.value.numbers == {"engine": "good", "feature": feature}


async def test_a_refused_run_is_no_licence_to_exit(world: InProcess) -> None:
    session = await world.session(world.client(), "refuses_to_run")
    vcpu = await session.create_vcpu(0, page_transport=False)
    with pytest.raises(Refusal) as refused:
        await vcpu_calls.run(session, vcpu, vm_session_pb2.RunRequest())
    assert refused.value.reason == "NOT_STOPPED"
    await until(lambda: not world.core.sessions)
    assert session.engine.died
    assert "which does not run" in session.engine.died


@pytest.mark.parametrize(
    ("engine", "why"),
    [
        ("lists_without_end", "it listed 262144 mappings, of 256 that it can have"),
        ("lists_in_crumbs", "it listed 1 of 120 mappings from 0 on"),
        ("lists_slowly", "it did not list its mappings within 0.2 s"),
    ],
)
async def test_lists_that_would_hold_up_verification(
    world: InProcess, monkeypatch: pytest.MonkeyPatch, engine: str, why: str
) -> None:
    monkeypatch.setattr(engine_process, "ANSWER_LIMIT", 0.2)
    session = await world.session(world.client(), engine)
    async with asyncio.timeout(5):
        verified = await Verification(world.core).run(whole_chain=False)
    assert verified.mappings == 0
    await until(lambda: not world.core.sessions)
    assert session.engine.died == why


async def test_an_engine_that_would_hold_up_the_next_core(
    world: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Core asks an adopted engine many things before it serves: not each of them may take its time."""
    monkeypatch.setattr(engine_process, "ANSWER_LIMIT", 0.3)
    session = await world.session(world.client(), "dawdles")
    for index in range(8):
        session.vcpus[index] = Vcpu(f"{session.name}/vcpus/{index}", index, None)
        session.account.charge(ram=PAGE_BYTES, caps=1)
    await agree(session)
    await until(lambda: not world.core.sessions)
    assert session.engine.died == "it did not tell what it has within 0.3 s"


async def test_requests_that_are_not_answered_do_not_pile_up(world: InProcess) -> None:
    """Each is kept with its packet, also when its caller has gone."""
    session = await world.session(world.client(), "silent")
    for _ in range(engine_process.REQUESTS_LIMIT):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await session.engine.pause(0)
    with pytest.raises(Refusal) as refused:
        await session.engine.pause(0)
    assert refused.value.reason == "ENGINE_LIMIT"
    limit = engine_process.REQUESTS_LIMIT
    assert refused.value.numbers == {"asked": 1, "used": limit, "limit": limit}


async def test_too_many_fds_in_flight_cost_no_engine_its_life(
    world: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel counts those of all sessions, and of the fd channels (unix(7))."""
    client = world.client()
    session, dataspace = await world.session(client), world.dataspace(client)
    send_fds = socket.send_fds

    def refuse(channel: socket.socket, parts: list[bytes], fds: list[int]) -> int:
        if fds:
            raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        return send_fds(channel, parts, fds)

    before = open_fds()
    with monkeypatch.context() as patched:
        patched.setattr(socket, "send_fds", refuse)
        with pytest.raises(Refusal) as refused:
            await session.memory.attach(dataspace, 0, 0, 0, read_only=False)
    assert refused.value.reason == "MEMORY_FAILURE"
    assert session.memory.attachments() == []
    assert open_fds() == before
    await session.memory.attach(dataspace, 0, 0, 0, read_only=False)
    assert len(session.memory.attachments()) == 1
